"""Annealing with restarts from the best weights."""

from __future__ import annotations

from copy import deepcopy
from typing import Any, Literal, SupportsFloat

import torch
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau

from ..checks import number, whole


class RestartFromBest(ReduceLROnPlateau):
    """Restarts from the best weights at a lower rate. Denkowski & Neubig 2017, arXiv:1706.09733.

    After each evaluation call `step(metric)`. When `patience` evaluations in a row have not
    improved on the best one, the model gets its weights and buffers of then back, the optimizer's
    state begins anew, and every group's lr is multiplied by `factor`. When patience runs out after
    `restarts` restarts, the best weights come back and `stopped` is True: train
    `while not scheduler.stopped`. Later calls change nothing.

    model: the module whose weights are kept: one copy, and a second one in a state_dict. mode:
    "min" or "max", what is better; nan never is, and before the first evaluation that is no nan
    the best weights are those that the model had when this was made. factor: in (0, 1). patience:
    evaluations, at least 1 (ReduceLROnPlateau, which this is to frameworks that look for one,
    allows one more). restarts: 0 keeps the best weights and stops early.

    The optimizer's state becomes what it was when this was made, wrappers' included; its groups
    keep their other options. Raises TypeError and ValueError for arguments.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        model: torch.nn.Module,
        *,
        mode: Literal["min", "max"] = "min",
        factor: float = 0.5,
        patience: int = 10,
        restarts: int = 2,
    ) -> None:
        if not isinstance(model, torch.nn.Module):
            raise TypeError(
                f"RestartFromBest: a {type(model).__name__} was given as the model, expected the "
                "torch.nn.Module that the optimizer trains"
            )
        factor = number("RestartFromBest", "factor", factor, "(0, 1)")
        restarts = whole("RestartFromBest", "restarts", restarts, 0)
        super().__init__(optimizer, mode, factor, whole("RestartFromBest", "patience", patience, 1))
        self.model = model
        self.restarts, self.restarted, self.stopped = restarts, 0, False
        self._weights = deepcopy(model.state_dict())
        self._fresh = deepcopy(optimizer.state_dict())

    def step(self, metrics: SupportsFloat, epoch: None = None) -> None:  # type: ignore[override]
        """Take an evaluation, of the weights that the model has now."""
        if self.stopped:
            return
        metric = float(metrics)
        self.last_epoch += 1
        if metric < self.best if self.mode == "min" else metric > self.best:
            self.best, self.num_bad_epochs = metric, 0
            self._weights = deepcopy(self.model.state_dict())
            return
        self.num_bad_epochs += 1
        if self.num_bad_epochs < self.patience:
            return
        self.model.load_state_dict(self._weights)
        self.num_bad_epochs = 0
        self.stopped = self.restarted == self.restarts
        if not self.stopped:
            self.restarted += 1
            self._begin_anew()

    def _begin_anew(self) -> None:
        # not state.clear(): torch's Adagrad makes its state at construction, Lookahead has its own
        groups = self.optimizer.state_dict()["param_groups"]
        fresh = deepcopy(self._fresh)  # torch's optimizers step the very tensors that they load
        self.optimizer.load_state_dict({**fresh, "param_groups": groups})
        groups = self.optimizer.param_groups
        self._last_lr = [group["lr"] * self.factor for group in groups]  # first: they may share one
        for group, lr in zip(groups, self._last_lr, strict=True):
            if isinstance(lr, Tensor):
                group["lr"].copy_(lr)
            else:
                group["lr"] = lr

    def state_dict(self) -> dict[str, Any]:
        """What is needed to go on, the best weights included."""
        state = super().state_dict()
        del state["model"]
        return state
