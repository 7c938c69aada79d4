"""The part that bounds the norm of the gradient."""

from __future__ import annotations

from typing import ClassVar

import torch

from steepest.training.parts.part import NOTHING, Fitting, Knob, Knobs, Part, Script


class Clip(Part):
    name, kind = "clip", "clip"
    about, source = "the gradient's norm stays below a bound", "arXiv:1211.5063"
    needs = NOTHING
    knobs: ClassVar[Knobs] = {"norm": Knob(0.03, 1.0, 30.0)}

    def on_optimizer(self, fitting: Fitting) -> None:
        """Attach the clipping. It runs before the noise is added, so the noise is not clipped."""
        from steepest.strategies.hooks import on_gradients

        params = [p for group in fitting.optimizer.param_groups for p in group["params"]]
        norm = self.value(fitting.hyper, "norm")

        def clip() -> None:
            torch.nn.utils.clip_grad_norm_(params, norm)

        on_gradients(fitting.optimizer, lambda: clip)

    def code(self, script: Script) -> list[str]:
        norm = self.value(script.hyper, "norm")
        return [
            "from steepest.strategies.hooks import on_gradients",
            "",
            "",
            "def clip():",
            f"    torch.nn.utils.clip_grad_norm_(model.parameters(), {norm!r})",
            "",
            "",
            "on_gradients(optimizer, lambda: clip)  # also if step() is given a closure",
        ]
