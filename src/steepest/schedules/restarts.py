"""Annealing with restarts from the best weights."""

from __future__ import annotations

from copy import deepcopy
from typing import Any, Literal, SupportsFloat

import torch
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau

from ..checks import number, whole


class RestartFromBest(ReduceLROnPlateau):
    """Restart from the best weights at a lower rate. Denkowski & Neubig 2017, arXiv:1706.09733.

    Call `step(metric)` after each evaluation. A restart comes when `patience` evaluations in a row
    have not improved on the best metric. The model then gets back the weights and buffers of its
    best evaluation, the optimizer's state is reset, and every group's lr is multiplied by `factor`.
    After `restarts` restarts, instead of another restart, the model gets back the best weights and
    `stopped` becomes True. Further calls of `step` then change nothing.
    Train `while not scheduler.stopped`.

    model: the module that the optimizer trains. The scheduler keeps one copy of the best weights. A
    saved state_dict of the scheduler holds another copy.
    mode: "min" if a lower metric is better, "max" if a higher metric is better. A nan is never
    better. Until the first metric that is not nan, the best weights are those that the model had at
    the start.
    factor: what lr is multiplied by at a restart, in (0, 1).
    patience: a number of evaluations, at least 1. torch's ReduceLROnPlateau allows one more
    evaluation at the same patience. This class is still a subclass of ReduceLROnPlateau, because
    frameworks look for that class.
    restarts: the number of restarts. With 0, the scheduler only stops early, with the best weights.

    A reset gives the optimizer the state that it had when the scheduler was made, including the
    state of wrappers. It changes no option of the param groups except lr. Raises TypeError or
    ValueError for invalid arguments.
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
        """Report the metric of the model's current weights."""
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
            self._reset_optimizer()

    def _reset_optimizer(self) -> None:
        # not state.clear(): Adagrad makes its state in __init__, Lookahead keeps more than `state`
        groups = self.optimizer.state_dict()["param_groups"]
        fresh = deepcopy(self._fresh)  # torch's optimizers would change the loaded tensors
        self.optimizer.load_state_dict({**fresh, "param_groups": groups})
        groups = self.optimizer.param_groups
        # all products first: groups may share one lr tensor
        self._last_lr = [group["lr"] * self.factor for group in groups]
        for group, lr in zip(groups, self._last_lr, strict=True):
            if isinstance(lr, Tensor):
                group["lr"].copy_(lr)
            else:
                group["lr"] = lr

    def state_dict(self) -> dict[str, Any]:
        """The state of the schedule, including the best weights."""
        state = super().state_dict()
        del state["model"]
        return state
