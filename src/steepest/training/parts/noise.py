"""The part that adds noise to the gradients."""

from __future__ import annotations

from typing import ClassVar

from steepest.training.parts.part import NOTHING, Fitting, Knob, Knobs, Part, Script


class Noise(Part):
    name, kind = "noise", "noise"
    about, source = "normal noise of variance eta/(1+t)^0.55", "arXiv:1511.06807"
    needs = NOTHING
    knobs: ClassVar[Knobs] = {"eta": Knob(1e-4, 0.01, 1.0, "[0, inf)")}

    def on_optimizer(self, fitting: Fitting) -> None:
        from steepest.strategies import GradientNoise

        eta = self.value(fitting.hyper, "eta")
        GradientNoise(fitting.optimizer, eta, seed=fitting.seed)

    def code(self, script: Script) -> list[str]:
        eta = self.value(script.hyper, "eta")
        return [f"steepest.strategies.GradientNoise(optimizer, eta={eta!r}, seed=0)"]
