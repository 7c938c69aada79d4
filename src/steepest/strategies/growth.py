"""A learning rate schedule turned into a batch size schedule with the same noise scale."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from ..checks import batch_size, number, saved, whole


def noise_scale(lr: float, batch_size: int, samples: int, momentum: float = 0.0) -> float:
    """lr * samples / (batch_size * (1 - momentum)), in units of lr.

    Smith, Kindermans, Ying and Le 2017, arXiv:1711.00489, section 3. The noise scale measures the
    random fluctuations of SGD with momentum, if batch_size is far below the number of samples.
    """
    lr = number("noise_scale", "lr", lr, "[0, inf)")
    momentum = number("noise_scale", "momentum", momentum, "[0, 1)")
    size = whole("noise_scale", "batch_size", batch_size, 1)
    return lr * whole("noise_scale", "samples", samples, 1) / (size * (1 - momentum))


class BatchGrowth(LRScheduler):
    """Change the batch size where a schedule would change the learning rate.

    Smith, Kindermans, Ying and Le 2017, arXiv:1711.00489. If the schedule asks for lr_0 * f, the
    learning rate stays lr_0 and the batch size B becomes B_0 / f, rounded, so lr / B follows the
    schedule. If B_0 / f is above `largest` or below 1, B stays at `largest` or at 1, and the
    learning rate becomes lr_0 * f * B / B_0: the paper's hybrid.
    `BatchGrowth(MultiStepLR(optimizer, [60, 120, 160], 0.2), loader)` multiplies the batch size by
    5 at each milestone.

    schedule: any scheduler object of torch.optim.lr_scheduler. lr_0 is the `initial_lr` that
    schedulers keep in each group. f must be the same for all groups. So if the schedule has an
    absolute limit such as eta_min, all groups need the same lr. In a warm-up, the batch size starts
    above B_0 and shrinks.
    loader: a `Loader`, or anything with a `batch_size` that can be set. B_0 is the current batch
    size.
    largest: at least B_0; by default the number of samples.

    Call `step(...)` instead of `schedule.step(...)`, with the same arguments. If `schedule` is a
    ReduceLROnPlateau, this object is itself an instance of ReduceLROnPlateau. A momentum that the
    schedule sets is not changed.

    Raises ValueError if the groups have different schedules, if param groups are added later, if
    lr_0 is 0, or if `largest` is below B_0 or above the number of samples.
    """

    def __new__(cls, schedule: LRScheduler | None = None, *_: Any, **__: Any) -> BatchGrowth:
        plateau = cls is BatchGrowth and isinstance(schedule, ReduceLROnPlateau)
        return super().__new__(_GrowthPlateau if plateau else cls)  # type: ignore[arg-type]

    def __init__(self, schedule: LRScheduler, loader: Any, largest: int | None = None) -> None:
        # no super().__init__(): the schedule has already set up the optimizer, as with SequentialLR
        if not isinstance(schedule, LRScheduler):
            raise TypeError(
                f"BatchGrowth: a {type(schedule).__name__} was given, expected a scheduler object "
                "of torch.optim.lr_scheduler"
            )
        self.schedule, self.loader, self.optimizer = schedule, loader, schedule.optimizer
        self.batch_size = batch_size("BatchGrowth", loader, 1)
        data = getattr(loader, "dataset", None)
        samples = len(data) if data is not None else None
        if largest is None and samples is None:
            raise ValueError(
                "BatchGrowth: this loader has no dataset, so `largest` has no default; give "
                "largest=NUMBER"
            )
        largest = samples if largest is None else largest
        self.largest = whole("BatchGrowth", "largest", largest, self.batch_size)
        if samples is not None and self.largest > samples:
            raise ValueError(
                f"BatchGrowth: largest={largest} was given, expected at most {samples}, the number "
                "of samples"
            )
        # ReduceLROnPlateau keeps no initial_lr
        groups = self.optimizer.param_groups
        self.initial: list[float] = [float(g.get("initial_lr", g["lr"])) for g in groups]
        if not min(self.initial) > 0:
            raise ValueError("BatchGrowth: an initial lr of 0 was given, expected an lr above 0")
        self._apply()

    def _apply(self) -> None:
        """Read the lr that the schedule has set. Replace it by a batch size and a new lr."""
        groups = self.optimizer.param_groups
        self.wrapped: list[float] = [float(g["lr"]) for g in groups]
        factors = [lr / first for lr, first in zip(self.wrapped, self.initial, strict=True)]
        if not all(math.isclose(f, factors[0], rel_tol=1e-9) for f in factors):
            raise ValueError(
                f"BatchGrowth: the schedule multiplies the lr of the groups by {factors}, expected "
                "one factor for all, because there is only one batch size"
            )
        wanted = self.batch_size / factors[0] if factors[0] > 0 else math.inf
        size = round(min(max(wanted, 1), self.largest))
        self.loader.batch_size = size
        reached = 1 <= wanted <= self.largest and self.loader.batch_size == size
        for group, lr, first in zip(groups, self.wrapped, self.initial, strict=True):
            _set_lr(group, first if reached else lr * self.loader.batch_size / self.batch_size)
        self._last_lr = [
            lr.clone() if isinstance(lr := group["lr"], Tensor) else lr for group in groups
        ]

    def step(self, *args: Any, **kwargs: Any) -> None:
        """Pass the arguments to `schedule.step`, then set the batch size and the lr."""
        groups = self.optimizer.param_groups
        if len(groups) != len(self.wrapped):
            raise ValueError(
                f"BatchGrowth: the optimizer has {len(groups)} param groups, expected "
                f"{len(self.wrapped)} as before; make BatchGrowth after adding all groups"
            )
        # restore the schedule's own lr: most schedules compute the next lr from it
        for group, lr in zip(groups, self.wrapped, strict=True):
            _set_lr(group, lr)
        self.schedule.step(*args, **kwargs)
        self._apply()

    def state_dict(self) -> dict[str, Any]:
        """The state of the schedule and of this object, but not of the loader or the optimizer."""
        return {
            "schedule": self.schedule.state_dict(),
            "wrapped": [*self.wrapped],
            "initial": [*self.initial],
            "batch_size": self.batch_size,
            "largest": self.largest,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what state_dict() returned. Raises ValueError for anything else.

        Load the states of the optimizer and the loader too. The optimizer's state restores the
        learning rates (as with torch's schedulers), and the loader's state restores the batch size.
        """
        new = saved("BatchGrowth", state_dict, {*self.state_dict()})
        self.schedule.load_state_dict(new.pop("schedule"))
        self.__dict__.update(new, wrapped=[*new["wrapped"]], initial=[*new["initial"]])


class _GrowthPlateau(BatchGrowth, ReduceLROnPlateau):
    """The class of a BatchGrowth around a ReduceLROnPlateau."""

    def __getattr__(self, name: str) -> Any:
        if name == "schedule":  # not set yet, during unpickling
            raise AttributeError(name)
        return getattr(self.schedule, name)  # such as patience and best


def _set_lr(group: dict[str, Any], lr: float) -> None:
    if isinstance(group["lr"], Tensor):
        with torch.no_grad():
            group["lr"].fill_(lr)
    else:
        group["lr"] = lr
