"""The part that bounds the norm of the gradient."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from steepest.errors import BadCall
from steepest.training.parts.part import NOTHING, Fitting, Knob, Knobs, Part, Script


class Clip(Part):
    name, kind = "clip", "clip"
    about, source = "the gradient's norm stays below a bound", "arXiv:1211.5063"
    needs = NOTHING
    knobs: ClassVar[Knobs] = {"norm": Knob(0.03, 1.0, 30.0)}

    def on_optimizer(self, fitting: Fitting) -> None:
        """Attach the clipping. It runs before the noise is added, so the noise is not clipped."""
        params = [p for group in fitting.optimizer.param_groups for p in group["params"]]
        norm = self.value(fitting.hyper, "norm")

        def clip(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if any(map(callable, (*args, *kwargs.values()))):  # a closure: no gradients yet
                raise BadCall(
                    f"entry {fitting.entry!r}: +clip was given step(closure): expected a loop "
                    f"that calls backward() and then step() without a closure"
                )
            torch.nn.utils.clip_grad_norm_(params, norm)

        fitting.optimizer.register_step_pre_hook(clip)

    def code(self, script: Script) -> list[str]:
        norm = self.value(script.hyper, "norm")
        return [
            "",
            "",
            "def clip(*_):",
            f"    torch.nn.utils.clip_grad_norm_(model.parameters(), {norm!r})",
            "",
            "",
            "optimizer.register_step_pre_hook(clip)",
        ]
