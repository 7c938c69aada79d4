"""Rates of a given shape, warm-up, stable, decay and cosines, and schedules of other options."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from math import cos, inf, isfinite, pi, sqrt
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from ..checks import choice, number, plain, real, several, whole
from .rising import put, rates

SHAPES: dict[str, Callable[[float], float]] = {
    "linear": lambda x: x,
    "cosine": lambda x: (1 - cos(pi * x)) / 2,
    "1-sqrt": sqrt,
}
"""How much of a fall is behind at a share x of its steps."""

Shares = float | Sequence[float]


class _Shares(LRScheduler):
    """lr is a share of each group's own, which follows from the step alone.

    A group that is added later takes part with the lr that it comes with.
    """

    floors: list[float]

    def share(self, step: int, floor: float) -> float:
        """The share at a step, from 0, of a group with that floor."""
        raise NotImplementedError

    def get_lr(self) -> list[float | Tensor]:
        """The learning rate of each param group."""
        groups = self.optimizer.param_groups
        if len(self.floors) not in (1, len(groups)):
            raise ValueError(
                f"{type(self).__name__}: floor has {len(self.floors)} shares and the optimizer "
                f"{len(groups)} param groups by now, expected one for each; give one for all"
            )
        floors = self.floors * len(groups) if len(self.floors) == 1 else self.floors
        for group, lr in zip(groups, rates(self.optimizer), strict=True):
            group.setdefault("initial_lr", lr)
        return [
            group["initial_lr"] * self.share(self.last_epoch, floor)
            for group, floor in zip(groups, floors, strict=True)
        ]


def _floors(called: str, floor: Shares, optimizer: Any) -> list[float]:
    one = type(plain(floor)) in (int, float)
    groups = getattr(optimizer, "param_groups", ())  # torch refuses what is no optimizer
    many = [floor] if one else several(floor, len(groups)) or []
    found = [real(f) for f in many]
    if not found or not all(0 <= f <= 1 for f in found):
        raise ValueError(
            f"{called}: floor={floor!r} was given, expected a share in [0, 1], or one for each of "
            f"the {len(groups)} param groups"
        )
    return found


class WSDLR(_Shares):
    """Warm-up, stable, decay. Hu et al. 2024, arXiv:2404.06395 (MiniCPM).

    lr rises linearly for `warmup` steps, stays, and falls during the last `decay` of `steps`:

        lr0 * (start + (1 - start) * k / warmup)            k = 0, 1, ... < warmup
        lr0                                                 until steps - decay
        lr0 * (floor + (1 - floor) * s(x))                  x = (k - steps + decay) / decay
        lr0 * floor                                         from steps on

    shape: s(x) is 1 - x ("linear"), 1 - sqrt(x) ("1-sqrt": Hägele et al. 2024, arXiv:2405.18392)
    or (1 + cos(pi * x)) / 2 ("cosine"). With decay = steps - warmup nothing is stable, and "linear"
    is the straight line to zero (Bergsma et al. 2025, arXiv:2502.15938).

    steps: all of them; warmup and decay are among them. floor: the share of lr0 that is left, in
    [0, 1], or one per param group. start: the share of the first step, in [0, 1]; 1 / (warmup + 1)
    unless given, as in WarmupLR, so that no step is wasted at lr 0. lr0 is the lr that the group
    was made with. Call `step()` after every optimizer step.

    To end a run earlier or later, or to branch off from a checkpoint of the stable part, set
    `scheduler.steps` (after load_state_dict, which brings back the old one); one below warmup +
    decay is refused at the next step. Raises TypeError and ValueError for arguments.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        steps: int,
        *,
        decay: int,
        warmup: int = 0,
        shape: str = "linear",
        floor: Shares = 0.0,
        start: float | None = None,
        last_epoch: int = -1,
    ) -> None:
        self.steps = whole("WSDLR", "steps", steps, 1)
        self.decay = whole("WSDLR", "decay", decay, 1)
        self.warmup = whole("WSDLR", "warmup", warmup, 0)
        self._check()
        self.shape = choice("WSDLR", "shape", shape, tuple(SHAPES))
        self.floors = _floors("WSDLR", floor, optimizer)
        first = 1 / (self.warmup + 1)
        self.start = first if start is None else number("WSDLR", "start", start, "[0, 1]")
        super().__init__(optimizer, last_epoch)

    def _check(self) -> None:
        if self.warmup + self.decay > whole("WSDLR", "steps", self.steps, 1):
            raise ValueError(
                f"WSDLR: warmup={self.warmup} and decay={self.decay} were given, expected at most "
                f"steps={self.steps} together"
            )

    def get_lr(self) -> list[float | Tensor]:
        """The learning rate of each param group; ValueError if `steps` was set too low."""
        self._check()
        return super().get_lr()

    def share(self, step: int, floor: float) -> float:
        """The share of a group's own lr at a step, from 0."""
        if step < self.warmup:
            return self.start + (1 - self.start) * step / self.warmup
        gone = min((step - self.steps + self.decay) / self.decay, 1.0)
        if gone <= 0:
            return 1.0
        return floor + (1 - floor) * (1 - SHAPES[self.shape](gone))


class CosineLR(_Shares):
    """A cosine to a floor, once or with restarts that may become longer and lower.

    Loshchilov & Hutter 2017, arXiv:1608.03983, equation 5, with what timm's CosineLRScheduler has
    beside it. Period i = 0, 1, ... has T = round(steps * factor**i) steps; at its step k

        lr = lr0 * (floor + (peak - floor) * (1 + cos(pi * k / T)) / 2),  peak = decay**i

    and no peak is below the floor. Behind the last period lr stays at the floor, where torch's
    CosineAnnealingLR rises again.

    steps: of the first period. floor: the lowest share of lr0, in [0, 1], or one per param group;
    for a lowest lr of 1e-5 it is 1e-5 / lr0. periods: how many; None is no end. factor: at least 1.
    decay: in (0, 1]. lr0 is the lr that the group was made with. Call `step()` after every
    optimizer step. Raises TypeError and ValueError for arguments.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        steps: int,
        *,
        floor: Shares = 0.0,
        periods: int | None = 1,
        factor: float = 1.0,
        decay: float = 1.0,
        last_epoch: int = -1,
    ) -> None:
        self.steps = whole("CosineLR", "steps", steps, 1)
        self.periods = None if periods is None else whole("CosineLR", "periods", periods, 1)
        self.factor = number("CosineLR", "factor", factor, "[1, inf)")
        self.decay = number("CosineLR", "decay", decay, "(0, 1]")
        self.floors = _floors("CosineLR", floor, optimizer)
        super().__init__(optimizer, last_epoch)

    def share(self, step: int, floor: float) -> float:
        """The share of a group's own lr at a step, from 0."""
        period, length = 0, self.steps
        if self.factor == 1:
            period, step = divmod(step, length)
        else:
            while step >= length and period != self.periods:
                step, period = step - length, period + 1
                length = round(self.steps * self.factor**period)
        if self.periods is not None and period >= self.periods:
            return floor
        peak = max(self.decay**period, floor)
        return floor + (peak - floor) * (1 + cos(pi * step / length)) / 2


def ramp(first: float, last: float, steps: int, shape: str = "linear") -> Callable[[int], float]:
    """From `first` at step 0 to `last` at `steps`, which stays: values for an OptionSchedule.

    shape: "linear", "cosine" or "1-sqrt", as in WSDLR. Raises ValueError for arguments.
    """
    ends = [
        number("ramp", name, v, "(-inf, inf)") for name, v in (("first", first), ("last", last))
    ]
    steps = whole("ramp", "steps", steps, 1)
    return partial(_ramp, *ends, steps, choice("ramp", "shape", shape, tuple(SHAPES)))


def _ramp(first: float, last: float, steps: int, shape: str, step: int) -> float:
    if step >= steps:
        return last
    return first + (last - first) * SHAPES[shape](step / steps)


class OptionSchedule(LRScheduler):
    """A schedule of any number among an optimizer's options: weight decay, betas, momentum, lr.

        OptionSchedule(optimizer, "weight_decay", ramp(0.04, 0.4, 10_000, "cosine"))
        OptionSchedule(optimizer, "beta1", ramp(0.85, 0.95, 300))
        OptionSchedule(optimizer, "lr", [0.1, 0.1, 0.05, 0.01])

    The first is that of Caron et al. 2021, arXiv:2104.14294 (DINO).

    option: a key of the param groups with a number; "beta1", "beta2", ... are the members of
    `betas`. values: a list, one value per step, of which the last stays, or a function of the step,
    from 0. relative: whether they are shares of what the group was made with. A group that was made
    with 0, as those without weight decay are, keeps it: that is off.

    It leaves lr alone (unless that is the option), so it may stand beside any schedule of it: step
    both, or put both in a ChainedScheduler. Call `step()` after every optimizer step. The values
    are not saved: make it with the same ones to resume. Raises TypeError and ValueError for
    arguments, ValueError for a value that the option cannot have: below 0, and from 1 on for betas
    and momentum.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        option: str,
        values: Sequence[float] | Tensor | Callable[[int], float],
        *,
        relative: bool = False,
        last_epoch: int = -1,
    ) -> None:
        self.option, self.relative = option, bool(relative)
        self._values: Any = values
        if not callable(values):
            found = several(values, len(values)) if hasattr(values, "__len__") else None
            self._values = [real(v) for v in found or ()]
            if not self._values or not all(map(isfinite, self._values)):
                raise ValueError(
                    f"OptionSchedule: values={values!r} was given, expected a list of numbers, or "
                    "a function of the step"
                )
        self.own: list[float] = []
        super().__init__(optimizer, last_epoch)
        if not any(self.own):
            text = (
                f"OptionSchedule: every group of the {type(optimizer).__name__} has {option}=0, "
                "expected one that has not; make the optimizer with a value"
            )
            if not optimizer.state:
                raise ValueError(text)
            # its state may be that of the end of a ramp to 0, and ours is loaded next
            warnings.warn(f"{text}, or load the state of this schedule", stacklevel=2)

    def value(self, step: int) -> float:
        """The value, or the share, at a step, from 0."""
        if callable(self._values):
            return real(self._values(step))
        return self._values[min(step, len(self._values) - 1)]

    def get_lr(self) -> list[float | Tensor]:
        """The learning rate of each param group; the option is set with it."""
        groups = self.optimizer.param_groups
        self.own = [*self.own, *(self._get(group) for group in groups[len(self.own) :])]
        given = self.value(self.last_epoch)
        values = [given * own if self.relative else given for own in self.own]
        below = 1 if self.option == "momentum" or self.option.startswith("beta") else inf
        for value in values:
            if not 0 <= value < below:
                raise ValueError(
                    f"OptionSchedule: {self.option}={value} came out at step {self.last_epoch}, "
                    f"expected a number in [0, {below:g})"
                )
        for group, own, value in zip(groups, self.own, values, strict=True):
            if own:
                kept = type(own) is int and float(value).is_integer()  # Muon's ns_steps
                self._put(group, int(value) if kept else value)
        return rates(self.optimizer)

    def _beta(self, group: dict[str, Any]) -> int | None:
        """Which of the betas it is."""
        name, place = self.option[:4], self.option[4:]
        if self.option in group or name != "beta" or not place.isdecimal():
            return None
        return int(place) - 1 if 0 < int(place) <= len(group.get("betas", ())) else None

    def _get(self, group: dict[str, Any]) -> float:
        at = self._beta(group)
        given = group.get(self.option) if at is None else group["betas"][at]
        if self.option == "lr":  # as a later part of SequentialLR not that of the parts before
            given = group.get("initial_lr", given)
        found = real(given)
        if isinstance(group.get(self.option), bool) or not isfinite(found):
            betas = [f"beta{k + 1}" for k in range(len(group.get("betas", ())))]
            numbers = [k for k, v in group.items() if type(v) in (int, float)]
            raise ValueError(
                f"OptionSchedule: option={self.option!r} was given, expected one of "
                f"{', '.join(sorted({'lr', *numbers, *betas} - {'initial_lr'}))}"
            )
        return given if type(given) is int else found

    def _put(self, group: dict[str, Any], value: float) -> None:
        at = self._beta(group)
        if at is None:
            put(group, self.option, value)
        elif isinstance(group["betas"][at], Tensor):
            group["betas"][at].fill_(value)
        else:
            betas = [*group["betas"]]
            betas[at] = value
            group["betas"] = tuple(betas)

    def state_dict(self) -> dict[str, Any]:
        """The step, and what the groups were made with."""
        state = super().state_dict()
        del state["_values"]
        return state
