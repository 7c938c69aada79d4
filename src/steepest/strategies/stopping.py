"""Early stopping: stop when a metric no longer improves, and restore the best weights."""

from __future__ import annotations

import copy
import math
from typing import Any

from torch import Tensor, nn

from ..checks import choice, number, saved, whole


class EarlyStopping:
    """Stop after `patience` evaluations in a row without a new best, and keep the best weights.

        if stopping.step(validation_loss):
            break
        ...
        stopping.restore()

    model: its parameters and buffers are copied at each new best, on their device.
    patience: a number of evaluations, at least 1. least: a new best metric must be better than the
    old best by more than `least`. mode: "min" if a lower metric is better, "max" if a higher metric
    is better. A metric that is nan or infinite is never a new best. Prechelt 1998, "Early stopping
    - but when?", compares such criteria.
    """

    def __init__(
        self, model: nn.Module, patience: int = 10, *, least: float = 0.0, mode: str = "min"
    ) -> None:
        self.model = model
        self.patience = whole("EarlyStopping", "patience", patience, 1)
        self.least = number("EarlyStopping", "least", least, "[0, inf)")
        self.mode = choice("EarlyStopping", "mode", mode, ("min", "max"))
        self.best: float | None = None
        """The best metric; None before the first finite metric."""
        self.evaluations = self.best_at = 0
        """How many evaluations were reported, and which of them was the best, counted from 1."""
        self._weights: dict[str, Any] = {}

    def step(self, metric: Any) -> bool:
        """Report a metric, as a number or a tensor of one element. Returns whether to stop."""
        value = float(metric.detach() if isinstance(metric, Tensor) else metric)
        self.evaluations += 1
        better = self.best is None or (
            value > self.best + self.least if self.mode == "max" else value < self.best - self.least
        )
        if better and math.isfinite(value):
            self.best, self.best_at = value, self.evaluations
            self._weights = copy.deepcopy(self.model.state_dict())
        return self.evaluations - self.best_at >= self.patience

    def restore(self) -> None:
        """Load the parameters and buffers of the best evaluation into the model.

        Raises RuntimeError, and does not change the model, if no metric was finite.
        """
        if self.best is None:
            raise RuntimeError(
                f"EarlyStopping: restore() was called after {self.evaluations} evaluations without "
                "a finite metric, expected at least one; check the values that step() gets"
            )
        self.model.load_state_dict(self._weights)

    def state_dict(self) -> dict[str, Any]:
        """The best metric and its weights, `evaluations` and `best_at`."""
        return {
            "best": self.best,
            "best_at": self.best_at,
            "evaluations": self.evaluations,
            "weights": self._weights,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load what state_dict() returned. Raises ValueError for anything else."""
        new = saved("EarlyStopping", state, {"best", "best_at", "evaluations", "weights"})
        self._weights = copy.deepcopy(new.pop("weights"))
        self.__dict__.update(new)
