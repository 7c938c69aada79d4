"""Learning rates that rise first: Noam's, and a warm-up in front of any scheduler."""

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

_FIXED = (CosineAnnealingWarmRestarts, CyclicLR, LambdaLR, MultiplicativeLR, OneCycleLR)
"""They keep a list with a member for each group that there was."""


class NoamLR(LRScheduler):
    """Linear warm-up, then the inverse square root of the step. Vaswani et al. 2017,
    arXiv:1706.03762, equation 3.

    lr = factor * width**-0.5 * min(t**-0.5, t * warmup**-1.5), t = 1 at the first optimizer step:
    it peaks at t = warmup with factor * (width * warmup)**-0.5. The paper's model has width 512,
    warmup 4000 and Adam(betas=(0.9, 0.98), eps=1e-9).

    width: the width of the model's layers (d_model), not its number of parameters. warmup: steps.
    factor: a number, or one per param group. Call `step()` after every optimizer step. The lr that
    the optimizer was made with is replaced; AdaBound scales its bounds by lr over that one, so make
    it with the peak. Raises TypeError and ValueError for arguments.
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
        groups = getattr(optimizer, "param_groups", ())  # torch refuses what is no optimizer
        one = type(plain(factor)) in (int, float)
        many = [factor] * len(groups) if one else several(factor, len(groups)) or []
        self.factors = [real(f) for f in many]
        if len(many) != len(groups) or not all(0 <= f < inf for f in self.factors):
            raise ValueError(
                f"NoamLR: factor={factor!r} was given, expected a number in [0, inf), or one for "
                f"each of the {len(groups)} param groups"
            )
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float | Tensor]:
        """The learning rate of each param group."""
        t = self.last_epoch + 1
        scale = self.width**-0.5 * min(t**-0.5, t * self.warmup**-1.5)
        added = len(self.optimizer.param_groups) - len(self.factors)
        if added and len({*self.factors}) > 1:
            raise ValueError(
                f"NoamLR: factor has {len(self.factors)} numbers and the optimizer {added} param "
                "groups more by now, expected one for each; give one for all"
            )
        return [factor * scale for factor in [*self.factors, *self.factors[:1] * added]]


class WarmupLR(LRScheduler):
    """A linear warm-up in front of any scheduler. Goyal et al. 2017, arXiv:1706.02677, section 2.2.

    `WarmupLR(CosineAnnealingLR(optimizer, 900), steps=100)`: for `steps` steps lr is the share
    start + (1 - start) * k / steps, k = 0, 1, ..., of the first lr of the scheduler `after`, which
    then begins, as if the step k = steps were its first. Its momentum, where it cycles one, waits
    meanwhile at its first value.

    after: a scheduler that is made already and was not stepped; torch's SequentialLR, which does
    the same for some, cannot take one that has parts (ChainedScheduler, another SequentialLR) or
    ReduceLROnPlateau. steps: at least 1, in the unit that `after` is stepped in. start: in [0, 1],
    1 / (steps + 1) unless given, so that no step is wasted at lr 0.

    As a part of SequentialLR it begins from the optimizer's initial lr, as torch's schedulers do.
    What others do to lr meanwhile, in a ChainedScheduler or by hand, is multiplied in: the ratio of
    what they set to what this had set, unless one of the two is 0 or not finite. A param group that
    is added during the warm-up takes part from the next `step()` on; until then its lr is its own.
    Where `after` is one of torch's that keep a value per group (LambdaLR, MultiplicativeLR,
    CyclicLR, OneCycleLR, CosineAnnealingWarmRestarts) that step raises ValueError.

    In front of ReduceLROnPlateau or its kin this is one itself, to all who ask by isinstance and so
    hand it a metric. Where `step(metric)` is all that is called, as in Lightning and the Trainer of
    transformers, it counts the warm-up, and goes to `after` behind that. From the first `step()`
    without a metric on, two clocks run: `step()` counts the warm-up and does nothing behind it,
    `step(metric)` is ignored during the warm-up.

    state_dict() holds the state of `after`: save and load this one alone. Raises TypeError and
    ValueError for arguments, TypeError for a metric or an epoch that `after` would not take.
    """

    def __new__(cls, after: LRScheduler | None = None, *_: Any, **__: Any) -> WarmupLR:
        plateau = cls is WarmupLR and isinstance(after, ReduceLROnPlateau)
        return super().__new__(_WarmupPlateau if plateau else cls)  # type: ignore[arg-type]

    def __init__(self, after: LRScheduler, steps: int, start: float | None = None) -> None:
        if not isinstance(after, LRScheduler):
            raise TypeError(
                f"WarmupLR: a {type(after).__name__} was given, expected a scheduler that is made "
                "already; write WarmupLR(CosineAnnealingLR(optimizer, 900), steps=100)"
            )
        self.steps = whole("WarmupLR", "steps", steps, 1)
        self.start = 1 / (self.steps + 1) if start is None else real(start)
        if not 0 <= self.start <= 1:
            raise ValueError(f"WarmupLR: start={start!r} was given, expected a share in [0, 1]")
        self.after = after
        self.targets = rates(after.optimizer)
        self._last_lr = []
        self._made: list[float | Tensor] = []  # until the step after a load: what it was made with
        LRScheduler.__init__(self, after.optimizer)

    def _initial_step(self) -> None:
        if self._last_lr:  # not of the constructor: SequentialLR begins with this part
            self._begin()
        LRScheduler._initial_step(self)

    def _begin(self) -> None:
        """Let `after` make its first step again, from the lr that the groups have now."""
        _first(self.after)
        self.targets, self._last_lr = rates(self.optimizer), []

    def _get_closed_form_lr(self) -> list[float | Tensor]:
        # torch asks for it where SequentialLR comes to a later part, with last_epoch 0
        for group in self.optimizer.param_groups:
            put(group, "lr", group.get("initial_lr", group["lr"]))
        self._begin()
        return self.get_lr()

    def get_lr(self) -> list[float | Tensor]:
        """The learning rate of each param group."""
        if self.last_epoch > self.steps:
            return rates(self.optimizer)  # what `after` has set
        now = rates(self.optimizer)
        for i, (last, lr) in enumerate(zip(self._last_lr, now, strict=False)):
            # one that was loaded before this was made has lost its lr to the constructor
            own = [last, *self._made[i : i + 1]]
            ratio = float(lr) / float(last) if float(last) else 0.0
            if float(lr) not in map(float, own) and 0 < ratio < inf:  # another's doing
                self.targets[i] = self.targets[i] * ratio
        added = now[len(self.targets) :]
        if added and (name := _fixed(self.after)):
            raise ValueError(
                f"WarmupLR: the optimizer has {len(now)} param groups by now, expected the "
                f"{len(self.targets)} that the {name} behind it was made with; add groups first"
            )
        self.targets += added
        self._made = []
        if self.last_epoch == self.steps:
            return [*self.targets]
        share = self.start + (1 - self.start) * self.last_epoch / self.steps
        return [share * target for target in self.targets]

    def step(self, metrics: Any = None) -> None:  # type: ignore[override]
        """One step; in front of a scheduler that goes by a metric, one step or a metric."""
        if metrics is not None:
            raise TypeError(
                f"WarmupLR: step({metrics!r}) was called in front of a "
                f"{type(self.after).__name__}, expected step() after each of its steps"
            )
        if self.last_epoch >= self.steps:
            self.after.step()
        super().step()

    def state_dict(self) -> dict[str, Any]:
        """What is needed to go on, that of the scheduler behind included."""
        state = {**super().state_dict(), "after": self.after.state_dict()}
        del state["_made"]
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict()` returned, and leave it unchanged."""
        own = dict(state_dict)
        self.after.load_state_dict(dict(own.pop("after")))  # a copy: CyclicLR takes an entry out
        own["targets"] = [*own["targets"]]
        self._made = self._last_lr
        LRScheduler.load_state_dict(self, own)


class _WarmupPlateau(WarmupLR, ReduceLROnPlateau):
    """A warm-up in front of a scheduler that goes by a metric: what WarmupLR makes then."""

    two_clocks = False
    """Whether step() was called without a metric."""

    def __getattr__(self, name: str) -> Any:
        if name == "after":  # not there yet, while it is unpickled
            raise AttributeError(name)
        return getattr(self.after, name)  # patience, best and the like

    def _by_steps(self) -> None:
        self.two_clocks = True
        if isinstance(self.after, _WarmupPlateau):
            self.after._by_steps()

    def step(self, metrics: Any = None, epoch: None = None) -> None:  # type: ignore[override]
        """One step, or a metric."""
        warm = self.last_epoch >= self.steps
        if metrics is None:
            if not (warm or self.two_clocks):
                self.last_epoch = min(self.last_epoch, 0)  # an evaluation before the first step
            if self._step_count:  # else it is the constructor's
                self._by_steps()
            if not warm:
                LRScheduler.step(self)
            elif isinstance(self.after, WarmupLR):
                self.after.step()
        elif warm:
            self.after.step(metrics)
        elif not self.two_clocks:
            LRScheduler.step(self)
        self._last_lr = rates(self.optimizer)


def rates(optimizer: torch.optim.Optimizer) -> list[float | Tensor]:
    """The lr of each group; of one that is a tensor, a copy."""
    lrs = [group["lr"] for group in optimizer.param_groups]
    return [lr.clone() if isinstance(lr, Tensor) else lr for lr in lrs]


def put(group: dict[str, Any], key: str, value: Any) -> None:
    """Set an option of a group; one that is a tensor stays that tensor."""
    if isinstance(group[key], Tensor):
        with torch.no_grad():
            group[key].fill_(float(value))
    else:
        group[key] = float(value) if isinstance(value, Tensor) else value


def _fixed(scheduler: Any) -> str | None:
    """The first part of a scheduler that takes no group later."""
    parts = [*getattr(scheduler, "_schedulers", ()), getattr(scheduler, "after", None)]
    if isinstance(scheduler, _FIXED):
        return type(scheduler).__name__
    return next((name for part in parts if part is not None and (name := _fixed(part))), None)


def _first(scheduler: LRScheduler) -> None:
    """Let a scheduler make its first step again."""
    parts: list[LRScheduler] | None = getattr(scheduler, "_schedulers", None)
    if parts is not None:
        if isinstance(scheduler, SequentialLR):
            parts = [parts[bisect_right(scheduler._milestones, 0)]]
        for part in parts:
            _first(part)
        scheduler._last_lr = rates(scheduler.optimizer)
    elif isinstance(scheduler, WarmupLR) or not isinstance(scheduler, ReduceLROnPlateau):
        scheduler.last_epoch = -1
        scheduler._initial_step()
