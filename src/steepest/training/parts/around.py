"""Parts that are an optimizer around the entry's optimizer: SAM, ASAM and Lookahead."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any, ClassVar

import torch
from torch import Tensor

from steepest import wrappers
from steepest.errors import BadCall
from steepest.tasks.task import turn, two_points
from steepest.training.parts.part import CLOSURE, NOTHING, Knob, Knobs, Part, Script


class Sam(Part):
    name, kind = "sam", "sharpness"
    about, source = "the gradient at the worst point nearby", "arXiv:2010.01412"
    needs, closure = CLOSURE, True
    knobs: ClassVar[Knobs] = {"rho": Knob(0.01, 0.05, 0.5, "[0, inf)")}
    """The ends of the paper's grid and its default."""
    adaptive: ClassVar[bool] = False

    def around(
        self, optimizer: torch.optim.Optimizer, hyper: Mapping[str, float], entry: str
    ) -> torch.optim.Optimizer:
        if "closure" not in signature(type(optimizer).step).parameters:
            raise BadCall(
                f"entry {entry!r}: +{self.name} gives step() a closure, but step() of "
                f"{type(optimizer).__name__} has no argument closure: expected an optimizer with "
                f"step(closure=None), or an entry without +{self.name}"
            )
        kind = TwoPointSAM if two_points(optimizer) else wrappers.SAM
        return kind(optimizer, rho=self.value(hyper, "rho"), adaptive=self.adaptive)

    def code(self, script: Script) -> list[str]:
        options = f"rho={self.value(script.hyper, 'rho')!r}"
        options += ", adaptive=True" if self.adaptive else ""
        return [
            f"optimizer = steepest.SAM(optimizer, {options})",
            "# each step needs optimizer.step(closure); the closure runs twice on the same batch",
            "# in the race both passes had the same dropout masks, and only the first changed the",
            "# statistics of batch normalisation: help(steepest.SAM) says how",
        ]


class Asam(Sam):
    name, about = "asam", "sam, with a radius in each weight's size"
    source = "arXiv:2102.11600"
    knobs: ClassVar[Knobs] = {"rho": Knob(0.05, 0.5, 2.0, "[0, inf)")}
    """The upper end is from the paper's grid. The default is from the authors' code. It is ten
    times SAM's. The paper's grid begins far below 0.05, where ASAM hardly changes a step."""
    adaptive = True


class Lookahead(Part):
    name, kind = "lookahead", "lookahead"
    about, source = "6 steps forward, then a part of the way back", "arXiv:1907.08610"
    needs = NOTHING
    knobs: ClassVar[Knobs] = {"alpha": Knob(0.2, 0.5, 0.8, "(0, 1]")}
    """The paper searches alpha for each task, and finds that k hardly matters: k stays 6."""

    def around(
        self, optimizer: torch.optim.Optimizer, hyper: Mapping[str, float], entry: str
    ) -> torch.optim.Optimizer:
        if two_points(optimizer):
            raise BadCall(
                f"entry {entry!r}: +{self.name} and the optimizer's eval() and train() would both "
                f"exchange the weights for evaluation: use another optimizer, or leave "
                f"+{self.name} out"
            )
        return SlowAtEvaluation(optimizer, alpha=self.value(hyper, "alpha"))

    def code(self, script: Script) -> list[str]:
        alpha = self.value(script.hyper, "alpha")
        return [
            f"optimizer = steepest.Lookahead(optimizer, alpha={alpha!r})",
            "# evaluate the slow weights: with optimizer.slow(): ...",
        ]


class TwoPointSAM(wrappers.SAM):
    """SAM around an optimizer that has eval() and train(), such as Schedule-Free."""

    def eval(self) -> None:
        """Switch the parameters to the weights for evaluation."""
        turn(self.optimizer, "eval")

    def train(self) -> None:
        """Switch the parameters to the weights for training."""
        turn(self.optimizer, "train")


class SlowAtEvaluation(wrappers.Lookahead):
    """Lookahead with eval() and train(). The race calls them, and so do loops for Schedule-Free.

    Between eval() and train() the parameters are the slow weights, as in `slow()`.
    """

    _fast: dict[Tensor, Tensor] | None = None
    """The fast weights between eval() and train(), else None."""

    @property
    def slow_weights(self) -> dict[Tensor, Tensor]:
        """Parameter -> its slow weight."""
        return self._slow

    @torch.no_grad()
    def eval(self) -> None:
        """Set the parameters to the slow weights."""
        if self._fast is None:
            params = [p for p in self._params() if self._count and p in self._slow]
            self._fast = {p: p.detach().clone() for p in params}
            for p in params:
                p.copy_(self._slow[p])

    @torch.no_grad()
    def train(self) -> None:
        """Set the parameters to the fast weights.

        If the state was reset after eval(), as by `+restarts`, the parameters stay as they are.
        """
        if self._fast and self._count:
            for p, fast in self._fast.items():
                p.copy_(fast)
        self._fast = None

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Raises RuntimeError between eval() and train()."""
        if self._fast is not None:
            raise RuntimeError(
                "Lookahead: step() was called after eval(), while the parameters are the slow "
                "weights; call optimizer.train() before training continues"
            )
        return super().step(closure)
