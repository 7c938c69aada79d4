"""Stop when nothing gets better, and go back to the best."""

from __future__ import annotations

import copy
import math
from typing import Any

from torch import Tensor, nn

from ..checks import choice, number, saved, whole


class EarlyStopping:
    """Tell when `patience` evaluations in a row have not been better than the best, and keep that.

        if stopping.step(validation_loss):
            break
        ...
        stopping.restore()

    model: whose parameters and buffers are copied at each best, on the device where they are.
    patience: evaluations, at least 1. least: by how much, in units of the metric, one has to be
    better than the best to count. mode: "min" or "max". A metric that is nan or infinite is never
    better. Prechelt 1998, "Early stopping - but when?", compares such criteria.
    """

    def __init__(
        self, model: nn.Module, patience: int = 10, *, least: float = 0.0, mode: str = "min"
    ) -> None:
        self.model = model
        self.patience = whole("EarlyStopping", "patience", patience, 1)
        self.least = number("EarlyStopping", "least", least, "[0, inf)")
        self.mode = choice("EarlyStopping", "mode", mode, ("min", "max"))
        self.best: float | None = None
        """The best metric; None before the first finite one."""
        self.evaluations = self.best_at = 0
        """How many there were, and which of them was the best, from 1."""
        self._weights: dict[str, Any] = {}

    def step(self, metric: Any) -> bool:
        """Take an evaluation's metric (a number, or a tensor of one element); whether to stop."""
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
        """Put the parameters and buffers of the best evaluation into the model.

        RuntimeError if no evaluation was finite; the model is as before then.
        """
        if self.best is None:
            raise RuntimeError(
                f"EarlyStopping: restore() was called after {self.evaluations} evaluations without "
                "a finite metric, expected one; there is nothing to restore"
            )
        self.model.load_state_dict(self._weights)

    def state_dict(self) -> dict[str, Any]:
        """The best metric with its weights, and the counts."""
        return {
            "best": self.best, "best_at": self.best_at, "evaluations": self.evaluations,
            "weights": self._weights,
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a saved state; ValueError for one of something else."""
        new = saved("EarlyStopping", state, {"best", "best_at", "evaluations", "weights"})
        self._weights = copy.deepcopy(new.pop("weights"))
        self.__dict__.update(new)
