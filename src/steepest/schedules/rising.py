"""Schedulers in which lr rises first: NoamLR, and WarmupLR for a warm-up before any scheduler."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from math import inf
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import (
    CosineAnnealingWarmRestarts,
    CyclicLR,
    LambdaLR,
    LRScheduler,
    MultiplicativeLR,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
)

from ..checks import plain, real, several, whole

_FIXED_GROUPS = (CosineAnnealingWarmRestarts, CyclicLR, LambdaLR, MultiplicativeLR, OneCycleLR)
"""torch's schedulers that keep a list with one value per group. The list is fixed when the
scheduler is made.
"""


class NoamLR(LRScheduler):
    """Linear warm-up, then a decay with the inverse square root of the step.

    Vaswani et al. 2017, arXiv:1706.03762, equation 3.

    lr = factor * width**-0.5 * min(t**-0.5, t * warmup**-1.5), with t = 1 at the first optimizer
    step. The peak, at t = warmup, is factor * (width * warmup)**-0.5. The paper uses width 512,
    warmup 4000 and Adam(betas=(0.9, 0.98), eps=1e-9).

    width: the width of the model's layers (d_model), not the model's number of parameters.
    warmup: the number of warm-up steps.
    factor: a number, or a list with one number per param group.

    Call `step()` after every optimizer step. NoamLR replaces the lr that the optimizer had before.
    AdaBound scales its bounds by the current lr divided by the lr that it was made with. So make
    AdaBound with the peak lr. Raises TypeError or ValueError for invalid arguments.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        width: int,
        warmup: int = 4000,
        factor: float | Sequence[float] = 1.0,
        last_epoch: int = -1,
    ) -> None:
        self.width = whole("NoamLR", "width", width, 1)
        self.warmup = whole("NoamLR", "warmup", warmup, 1)
        groups = getattr(optimizer, "param_groups", ())  # super() refuses anything but optimizers
        single = type(plain(factor)) in (int, float)
        factors = [factor] * len(groups) if single else several(factor, len(groups)) or []
        self.factors = [real(f) for f in factors]
        if len(factors) != len(groups) or not all(0 <= f < inf for f in self.factors):
            raise ValueError(
                f"NoamLR: factor={factor!r} was given, expected a number in [0, inf), or one for "
                f"each of the {len(groups)} param groups"
            )
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float | Tensor]:
        """The learning rate of each param group."""
        t = self.last_epoch + 1
        scale = self.width**-0.5 * min(t**-0.5, t * self.warmup**-1.5)
        groups = len(self.optimizer.param_groups)
        added = groups - len(self.factors)
        if added and len({*self.factors}) > 1:
            raise ValueError(
                f"NoamLR: factor has {len(self.factors)} numbers but the optimizer now has "
                f"{groups} param groups, expected one number per group; pass a single number"
            )
        return [factor * scale for factor in [*self.factors, *self.factors[:1] * added]]


class WarmupLR(LRScheduler):
    """A linear warm-up before any scheduler. Goyal et al. 2017, arXiv:1706.02677, section 2.2.

    Example: `WarmupLR(CosineAnnealingLR(optimizer, 900), steps=100)`. At step k = 0, 1, ... <
    steps, lr is (start + (1 - start) * k / steps) * lr0, where lr0 is the first lr of the scheduler
    `after`. At step k = steps, `after` begins with lr0. If `after` cycles the momentum too, the
    momentum keeps its first value during the warm-up.

    after: a scheduler that has not been stepped yet. It may consist of other schedulers
    (ChainedScheduler, SequentialLR). It may also be a ReduceLROnPlateau, which torch's SequentialLR
    does not support.
    steps: the length of the warm-up, at least 1, in the unit in which `after` is stepped, such as
    batches or epochs.
    start: the factor of lr0 at step 0, in [0, 1]. The default is 1 / (steps + 1), because at lr 0
    the first step would be wasted.

    Inside a SequentialLR the warm-up starts from the optimizer's initial lr, as torch's schedulers
    do. If other code, such as a ChainedScheduler, multiplies lr by a ratio during the warm-up, the
    following warm-up steps keep this ratio. Such a change is ignored if lr is 0 or not finite
    before or after the change. A param group that is added during the warm-up joins the warm-up at
    the next `step()`. This call raises ValueError if `after` is one of torch's schedulers with a
    fixed number of groups (LambdaLR, MultiplicativeLR, CyclicLR, OneCycleLR,
    CosineAnnealingWarmRestarts).

    If `after` is a ReduceLROnPlateau or an object of a subclass, the WarmupLR is itself an instance
    of ReduceLROnPlateau, so trainers pass it a metric. If only `step(metric)` is called, as
    Lightning and transformers' Trainer do, each call counts as a warm-up step. Calls after the
    warm-up go to `after`. From the first `step()` without a metric on, `step()` makes the warm-up
    steps, and does nothing after the warm-up. `step(metric)` is then ignored during the warm-up,
    and goes to `after` once the warm-up is over.

    state_dict() includes the state of `after`, so save and load only the WarmupLR. Raises TypeError
    or ValueError for invalid arguments, and TypeError for a metric if `after` takes no metric.
    """

    def __new__(cls, after: LRScheduler | None = None, *_: Any, **__: Any) -> WarmupLR:
        plateau = cls is WarmupLR and isinstance(after, ReduceLROnPlateau)
        return super().__new__(_WarmupPlateau if plateau else cls)  # type: ignore[arg-type]

    def __init__(self, after: LRScheduler, steps: int, start: float | None = None) -> None:
        if not isinstance(after, LRScheduler):
            raise TypeError(
                f"WarmupLR: a {type(after).__name__} was given, expected a scheduler object; write "
                "WarmupLR(CosineAnnealingLR(optimizer, 900), steps=100)"
            )
        self.steps = whole("WarmupLR", "steps", steps, 1)
        self.start = 1 / (self.steps + 1) if start is None else real(start)
        if not 0 <= self.start <= 1:
            raise ValueError(f"WarmupLR: start={start!r} was given, expected a number in [0, 1]")
        self.after = after
        self.targets = read_lrs(after.optimizer)
        self._last_lr = []
        # between load_state_dict and the next step: the lrs that were set before the load
        self._made: list[float | Tensor] = []
        LRScheduler.__init__(self, after.optimizer)

    def _initial_step(self) -> None:
        if self._last_lr:  # called by a SequentialLR that begins with this one, not by __init__
            self._restart_after()
        LRScheduler._initial_step(self)

    def _restart_after(self) -> None:
        """Let `after` repeat its first step, starting from the current lr of the groups."""
        _repeat_first_step(self.after)
        self.targets, self._last_lr = read_lrs(self.optimizer), []

    def _get_closed_form_lr(self) -> list[float | Tensor]:
        # called when a SequentialLR moves on to this scheduler, with last_epoch 0
        for group in self.optimizer.param_groups:
            set_option(group, "lr", group.get("initial_lr", group["lr"]))
        self._restart_after()
        return self.get_lr()

    def get_lr(self) -> list[float | Tensor]:
        """The learning rate of each param group."""
        if self.last_epoch > self.steps:
            return read_lrs(self.optimizer)  # as set by `after`
        lrs = read_lrs(self.optimizer)
        for i, (last, lr) in enumerate(zip(self._last_lr, lrs, strict=False)):
            # if the optimizer's state was loaded first, __init__ has overwritten the loaded lr
            own = [last, *self._made[i : i + 1]]
            ratio = float(lr) / float(last) if float(last) else 0.0
            if float(lr) not in map(float, own) and 0 < ratio < inf:  # other code changed it
                self.targets[i] = self.targets[i] * ratio
        added = lrs[len(self.targets) :]
        if added and (name := _find_fixed(self.after)):
            raise ValueError(
                f"WarmupLR: the optimizer now has {len(lrs)} param groups, expected "
                f"{len(self.targets)}: {name}, which follows the warm-up, accepts no new groups; "
                "add all groups before making the schedulers"
            )
        self.targets += added
        self._made = []
        if self.last_epoch == self.steps:
            return [*self.targets]
        share = self.start + (1 - self.start) * self.last_epoch / self.steps
        return [share * target for target in self.targets]

    def step(self, metrics: Any = None) -> None:  # type: ignore[override]
        """Make one step. A metric is allowed only if `after` is a ReduceLROnPlateau."""
        if metrics is not None:
            raise TypeError(
                f"WarmupLR: step({metrics!r}) was called, expected step() without an argument: "
                f"{type(self.after).__name__} takes no metric"
            )
        if self.last_epoch >= self.steps:
            self.after.step()
        super().step()

    def state_dict(self) -> dict[str, Any]:
        """The state of the warm-up, and of `after`."""
        state = {**super().state_dict(), "after": self.after.state_dict()}
        del state["_made"]
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict()` returned. The argument is not changed."""
        own = dict(state_dict)
        self.after.load_state_dict(dict(own.pop("after")))  # a copy: CyclicLR removes an entry
        own["targets"] = [*own["targets"]]
        self._made = self._last_lr
        LRScheduler.load_state_dict(self, own)


class _WarmupPlateau(WarmupLR, ReduceLROnPlateau):
    """The class of a WarmupLR whose `after` is a ReduceLROnPlateau."""

    two_clocks = False
    """Whether step() has been called without a metric."""

    def __getattr__(self, name: str) -> Any:
        if name == "after":  # not set yet, during unpickling
            raise AttributeError(name)
        return getattr(self.after, name)  # patience, best and the like

    def _separate_clocks(self) -> None:
        self.two_clocks = True
        if isinstance(self.after, _WarmupPlateau):
            self.after._separate_clocks()

    def step(self, metrics: Any = None, epoch: None = None) -> None:  # type: ignore[override]
        """Make one step, with or without a metric.

        WarmupLR explains how the two kinds of calls differ.
        """
        warm = self.last_epoch >= self.steps
        if metrics is None:
            if not (warm or self.two_clocks):
                # calls of step(metric) before the first step() were no warm-up steps
                self.last_epoch = min(self.last_epoch, 0)
            if self._step_count:  # not a call by __init__
                self._separate_clocks()
            if not warm:
                LRScheduler.step(self)
            elif isinstance(self.after, WarmupLR):
                self.after.step()
        elif warm:
            self.after.step(metrics)
        elif not self.two_clocks:
            LRScheduler.step(self)
        self._last_lr = read_lrs(self.optimizer)


def read_lrs(optimizer: torch.optim.Optimizer) -> list[float | Tensor]:
    """Return the lr of each group. If an lr is a tensor, a copy is returned."""
    lrs = [group["lr"] for group in optimizer.param_groups]
    return [lr.clone() if isinstance(lr, Tensor) else lr for lr in lrs]


def set_option(group: dict[str, Any], key: str, value: Any) -> None:
    """Set an option of a group. If the old value is a tensor, this tensor is filled in place."""
    if isinstance(group[key], Tensor):
        with torch.no_grad():
            group[key].fill_(float(value))
    else:
        group[key] = float(value) if isinstance(value, Tensor) else value


def _find_fixed(scheduler: Any) -> str | None:
    """Return the class name of the first scheduler to which no group can be added later.

    Looks at this scheduler, then at its parts. Returns None if groups can be added to all of them.
    """
    if isinstance(scheduler, _FIXED_GROUPS):
        return type(scheduler).__name__
    parts = [*getattr(scheduler, "_schedulers", ()), getattr(scheduler, "after", None)]
    names = (_find_fixed(part) for part in parts if part is not None)
    return next(filter(None, names), None)


def _repeat_first_step(scheduler: LRScheduler) -> None:
    """Make a scheduler repeat its first step."""
    parts: list[LRScheduler] | None = getattr(scheduler, "_schedulers", None)
    if parts is not None:
        if isinstance(scheduler, SequentialLR):
            parts = [parts[bisect_right(scheduler._milestones, 0)]]
        for part in parts:
            _repeat_first_step(part)
        scheduler._last_lr = read_lrs(scheduler.optimizer)
    elif isinstance(scheduler, WarmupLR) or not isinstance(scheduler, ReduceLROnPlateau):
        scheduler.last_epoch = -1
        scheduler._initial_step()
