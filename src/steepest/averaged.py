"""The base class of the Schedule-Free classes, which train and evaluate at different points."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import codecs
from .shell import RuleOptimizer
from .tensors import describe, in_bounds


class AveragedOptimizer(RuleOptimizer):
    """Call `optimizer.eval()` before you evaluate the model or save it for use, and
    `optimizer.train()` before training continues. A new optimizer is in train mode: the parameters
    are the point y, where gradients are taken. In eval mode the parameters are the average x, and
    `step()` raises RuntimeError.

    A checkpoint may be saved in either mode, because each group saves its mode as `train_mode`.
    Load the checkpoint together with the model parameters that were saved at the same time.
    """

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        groups = self.param_groups
        groups[-1].setdefault("train_mode", groups[0].get("train_mode", True))

    def eval(self) -> None:
        """Switch to eval mode: set the parameters to the average x."""
        self._switch(False)

    def train(self) -> None:
        """Switch to train mode: set the parameters to y, where the next gradient is taken."""
        self._switch(True)

    def _switch(self, train: bool) -> None:
        groups = [g for g in self.param_groups if g.get("train_mode", True) is not train]
        for group in groups:  # check everything before anything is written
            for p in group["params"]:
                z = self.state.get(p, {}).get("z")
                fits = isinstance(z, Tensor) and (z.shape, z.device) == (p.shape, p.device)
                if z is not None and not (fits and in_bounds(p) and in_bounds(z)):
                    raise RuntimeError(
                        f"{self._called}: state 'z' is {describe(z)}, expected a tensor in memory "
                        f"like its parameter, {describe(p)}; restore both tensors, or load the "
                        "checkpoint that was saved with the parameters"
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
                f"{self._called}: step() was called in eval mode, where the parameters are the "
                "average; call optimizer.train() before training continues"
            )
        return super()._step(closure)
