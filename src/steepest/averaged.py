"""The classes whose parameters are one point in training and another in use: Schedule-Free."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import codecs
from .shell import RuleOptimizer
from .tensors import describe, in_bounds


class AveragedOptimizer(RuleOptimizer):
    """Call `optimizer.eval()` before the model is evaluated or saved for use, and
    `optimizer.train()` before training goes on: between the two the parameters are the average x,
    else the point y at which gradients are taken. A new optimizer is in training. A step in between
    raises RuntimeError.

    Groups keep `train_mode`, so a checkpoint may be taken in either mode: load it together with the
    model's parameters that were saved beside it.
    """

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        groups = self.param_groups
        groups[-1].setdefault("train_mode", groups[0].get("train_mode", True))

    def eval(self) -> None:
        """Put x, the average, in the place of the parameters."""
        self._switch(False)

    def train(self) -> None:
        """Put y, the point of the next gradient, in the place of the parameters."""
        self._switch(True)

    def _switch(self, train: bool) -> None:
        groups = [g for g in self.param_groups if g.get("train_mode", True) is not train]
        for group in groups:  # all is checked before anything is written
            for p in group["params"]:
                z = self.state.get(p, {}).get("z")
                fits = isinstance(z, Tensor) and (z.shape, z.device) == (p.shape, p.device)
                if z is not None and not (fits and in_bounds(p) and in_bounds(z)):
                    raise RuntimeError(
                        f"{self._called}: state 'z' is {describe(z)}, expected one in memory like "
                        f"its parameter, {describe(p)}; bring both back, or load the checkpoint "
                        "that the parameters are from"
                    )
        for group in groups:
            family = self._family(group)
            rule = family.rule(group)
            name = "momentum" if "momentum" in rule.defaults else "beta1"
            with torch.set_grad_enabled(bool(group.get("differentiable"))):
                beta = family.read(group, name, rule)
                weight = 1 - beta if train else 1 - 1 / beta
                for p in group["params"]:
                    if (z := self.state.get(p, {}).get("z")) is not None:
                        z, y = codecs.view(z), codecs.view(p)
                        share = torch.as_tensor(weight, dtype=torch.float64).to(z)
                        y.copy_(torch.lerp(y.to(z, copy=True), z, share))  # z may be wider than p
            group["train_mode"] = train

    def _step(self, closure: Callable[[], Any] | None = None) -> Any:
        if not all(group.get("train_mode", True) for group in self.param_groups):
            raise RuntimeError(
                f"{self._called}: step() was called while the parameters are the average, expected "
                "the point of the gradient; call optimizer.train() before training goes on"
            )
        return super()._step(closure)
