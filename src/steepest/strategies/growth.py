"""A learning rate schedule turned into the schedule of the batch size at equal noise scale."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from ..checks import batch_size, number, saved, whole


def noise_scale(lr: float, batch_size: int, samples: int, momentum: float = 0.0) -> float:
    """lr * samples / (batch_size * (1 - momentum)), in units of lr.

    Smith, Kindermans, Ying and Le 2017, arXiv:1711.00489, section 3: the scale of the random
    fluctuations of SGD with momentum, for batch sizes far below the number of samples.
    """
    lr = number("noise_scale", "lr", lr, "[0, inf)")
    momentum = number("noise_scale", "momentum", momentum, "[0, 1)")
    size = whole("noise_scale", "batch_size", batch_size, 1)
    return lr * whole("noise_scale", "samples", samples, 1) / (size * (1 - momentum))


class BatchGrowth(LRScheduler):
    """Do what a schedule of the learning rate asks for by the batch size instead.

    Smith, Kindermans, Ying and Le 2017, arXiv:1711.00489. Where the schedule says lr_0 * f, the
    learning rate stays lr_0 and the batch size becomes B_0 / f, rounded: lr / B is the schedule's.
    Beyond `largest` (and below 1) the batch size stays there and the learning rate does the rest,
    lr_0 * f * B / B_0: their hybrid. `BatchGrowth(MultiStepLR(optimizer, [60, 120, 160], 0.2),
    loader)` grows the batch five-fold at each milestone.

    schedule: any scheduler of torch.optim.lr_scheduler, made already; lr_0 is the `initial_lr` that
    it keeps in each group, and f has to be one for all groups (a limit such as eta_min is a rate:
    with one, all groups need one lr). A warm-up becomes a large batch that shrinks. loader: a
    `Loader`, or anything with a `batch_size` that may be set; B_0 is what it has now, so that a
    schedule that begins below lr_0 begins with more. largest: the whole data if not given; at least
    B_0.

    `step(...)` takes the place of the schedule's own, with its arguments; around a
    ReduceLROnPlateau this is one itself, to all who ask by isinstance. The momentum is the
    schedule's. Raises ValueError for another schedule per group, for param groups that are added
    later, for lr_0 = 0 and for a `largest` below B_0 or above the data.
    """

    def __new__(cls, schedule: LRScheduler | None = None, *_: Any, **__: Any) -> BatchGrowth:
        plateau = cls is BatchGrowth and isinstance(schedule, ReduceLROnPlateau)
        return super().__new__(_GrowthPlateau if plateau else cls)  # type: ignore[arg-type]

    def __init__(self, schedule: LRScheduler, loader: Any, largest: int | None = None) -> None:
        # as for torch's SequentialLR, all that LRScheduler.__init__ does was done by the schedule
        if not isinstance(schedule, LRScheduler):
            raise TypeError(
                f"BatchGrowth: a {type(schedule).__name__} was given, expected a scheduler of "
                "torch.optim.lr_scheduler that is made already"
            )
        self.schedule, self.loader, self.optimizer = schedule, loader, schedule.optimizer
        self.batch_size = batch_size("BatchGrowth", loader, 1)
        data = getattr(loader, "dataset", None)
        most = len(data) if data is not None else None
        if largest is None and most is None:
            raise ValueError("BatchGrowth: no largest was given, expected one for this loader")
        largest = most if largest is None else largest
        self.largest = whole("BatchGrowth", "largest", largest, self.batch_size)
        if most is not None and self.largest > most:
            raise ValueError(
                f"BatchGrowth: largest={largest} was given, expected at most {most}, all the data"
            )
        # ReduceLROnPlateau keeps no initial_lr
        groups = self.optimizer.param_groups
        self.initial: list[float] = [float(g.get("initial_lr", g["lr"])) for g in groups]
        if not min(self.initial) > 0:
            raise ValueError("BatchGrowth: an initial lr of 0 was given, expected more")
        self._apply()

    def _apply(self) -> None:
        """Read what the schedule has set, and set what stands for it."""
        groups = self.optimizer.param_groups
        self.wrapped: list[float] = [float(g["lr"]) for g in groups]
        factors = [lr / first for lr, first in zip(self.wrapped, self.initial, strict=True)]
        if not all(math.isclose(f, factors[0], rel_tol=1e-9) for f in factors):
            raise ValueError(
                f"BatchGrowth: the schedule multiplies the groups by {factors}, expected one "
                "factor for all, for there is one batch size"
            )
        wanted = self.batch_size / factors[0] if factors[0] > 0 else math.inf
        size = round(min(max(wanted, 1), self.largest))
        self.loader.batch_size = size
        within = 1 <= wanted <= self.largest and self.loader.batch_size == size
        for group, lr, first in zip(groups, self.wrapped, self.initial, strict=True):
            _set(group, first if within else lr * self.loader.batch_size / self.batch_size)
        self._last_lr = [
            lr.clone() if isinstance(lr := group["lr"], Tensor) else lr for group in groups
        ]

    def step(self, *args: Any, **kwargs: Any) -> None:
        """One step of the schedule, with its arguments, and the batch size that follows."""
        groups = self.optimizer.param_groups
        if len(groups) != len(self.wrapped):
            raise ValueError(
                f"BatchGrowth: the optimizer has {len(groups)} param groups, expected the "
                f"{len(self.wrapped)} that it had; make BatchGrowth when all groups are there"
            )
        # most schedules compute the next lr from the one in the group
        for group, lr in zip(groups, self.wrapped, strict=True):
            _set(group, lr)
        self.schedule.step(*args, **kwargs)
        self._apply()

    def state_dict(self) -> dict[str, Any]:
        """The schedule's state and what it asks for; loader and optimizer save their own."""
        return {
            "schedule": self.schedule.state_dict(), "wrapped": [*self.wrapped],
            "initial": [*self.initial], "batch_size": self.batch_size, "largest": self.largest,
        }  # fmt: skip

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a saved state; ValueError for one of something else. As with torch's schedulers
        the learning rates come back with the optimizer's state, and the batch size with the
        loader's.
        """
        new = saved("BatchGrowth", state_dict, {*self.state_dict()})
        self.schedule.load_state_dict(new.pop("schedule"))
        self.__dict__.update(new, wrapped=[*new["wrapped"]], initial=[*new["initial"]])


class _GrowthPlateau(BatchGrowth, ReduceLROnPlateau):
    """Growth around a scheduler that goes by a metric: what BatchGrowth makes then."""

    def __getattr__(self, name: str) -> Any:
        if name == "schedule":  # not there yet, while it is unpickled
            raise AttributeError(name)
        return getattr(self.schedule, name)  # patience, best and the like


def _set(group: dict[str, Any], lr: float) -> None:
    if isinstance(group["lr"], Tensor):
        with torch.no_grad():
            group["lr"].fill_(lr)
    else:
        group["lr"] = lr
