"""Learning rates that rise first: Noam's, and a warm-up in front of any scheduler."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from ..checks import plain, real, several, whole


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
        return [factor * scale for factor in self.factors]


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

    In front of ReduceLROnPlateau and its kin two clocks run: `step()` counts the warm-up and does
    nothing behind it, `step(metric)` hands an evaluation on and is ignored during the warm-up.

    state_dict() holds the state of `after`: save and load this one alone. Raises TypeError and
    ValueError for arguments, TypeError for a metric or an epoch that `after` would not take.
    """

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
        lrs = [group["lr"] for group in after.optimizer.param_groups]
        self.targets = [lr.clone() if isinstance(lr, Tensor) else lr for lr in lrs]
        super().__init__(after.optimizer)

    def get_lr(self) -> list[float | Tensor]:
        """The learning rate of each param group."""
        if self.last_epoch > self.steps:
            return self.after.get_last_lr()
        share = self.start + (1 - self.start) * self.last_epoch / self.steps
        return [share * target for target in self.targets]

    def step(self, metrics: Any = None) -> None:  # type: ignore[override]
        """One step, or a metric for a scheduler that goes by one."""
        warm = self.last_epoch >= self.steps
        if not isinstance(self.after, ReduceLROnPlateau):
            if metrics is not None:
                raise TypeError(
                    f"WarmupLR: step({metrics!r}) was called in front of a "
                    f"{type(self.after).__name__}, expected step() after each of its steps"
                )
            if warm:
                self.after.step()
            super().step()
        elif metrics is None and not warm:
            super().step()
        elif metrics is not None and warm:
            self.after.step(metrics)
            self._last_lr = self.after.get_last_lr()

    def state_dict(self) -> dict[str, Any]:
        """What is needed to go on, that of the scheduler behind included."""
        return {**super().state_dict(), "after": self.after.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict()` returned, and leave it unchanged."""
        own = dict(state_dict)
        self.after.load_state_dict(dict(own.pop("after")))  # a copy: CyclicLR takes an entry out
        super().load_state_dict(own)
