"""Warmup-stable-decay, cosines with a floor, and schedules of any numeric option."""

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
from .rising import read_lrs, set_option

SHAPES: dict[str, Callable[[float], float]] = {
    "linear": lambda x: x,
    "cosine": lambda x: (1 - cos(pi * x)) / 2,
    "1-sqrt": sqrt,
}
"""Name of a shape -> function f. After the fraction x of the steps, the value has made the fraction
f(x) of its total change.
"""

Floor = float | Sequence[float]


class _ScaledLR(LRScheduler):
    """A schedule that multiplies each group's initial lr by a factor.

    The factor depends only on the step and on the group's floor.

    A group that is added later is scheduled too. Its initial lr is the lr that it is added with.
    """

    floors: list[float]

    def share(self, step: int, floor: float) -> float:
        """Return the factor of a group's initial lr at `step`; the first step is 0.

        floor: the group's final or lowest lr, as a fraction of its initial lr.
        """
        raise NotImplementedError

    def get_lr(self) -> list[float | Tensor]:
        """The learning rate of each param group."""
        groups = self.optimizer.param_groups
        if len(self.floors) not in (1, len(groups)):
            raise ValueError(
                f"{type(self).__name__}: floor has {len(self.floors)} numbers but the optimizer "
                f"now has {len(groups)} param groups, expected one number per group; pass a single "
                "number"
            )
        floors = self.floors * len(groups) if len(self.floors) == 1 else self.floors
        for group, lr in zip(groups, read_lrs(self.optimizer), strict=True):
            group.setdefault("initial_lr", lr)
        return [
            group["initial_lr"] * self.share(self.last_epoch, floor)
            for group, floor in zip(groups, floors, strict=True)
        ]


def _check_floors(called: str, floor: Floor, optimizer: Any) -> list[float]:
    single = type(plain(floor)) in (int, float)
    groups = getattr(optimizer, "param_groups", ())  # LRScheduler refuses anything but optimizers
    floors = [floor] if single else several(floor, len(groups)) or []
    numbers = [real(f) for f in floors]
    if not numbers or not all(0 <= f <= 1 for f in numbers):
        raise ValueError(
            f"{called}: floor={floor!r} was given, expected a number in [0, 1], or one for each of "
            f"the {len(groups)} param groups"
        )
    return numbers


class WSDLR(_ScaledLR):
    """Warm-up, stable, decay. Hu et al. 2024, arXiv:2404.06395 (MiniCPM).

    lr rises linearly for `warmup` steps, then stays constant, and falls in the last `decay` steps:

        lr0 * (start + (1 - start) * k / warmup)            k = 0, 1, ... < warmup
        lr0                                                 until steps - decay
        lr0 * (floor + (1 - floor) * s(x))                  x = (k - steps + decay) / decay
        lr0 * floor                                         from steps on

    shape: s(x) is 1 - x ("linear"), 1 - sqrt(x) ("1-sqrt": Hägele et al. 2024, arXiv:2405.18392)
    or (1 + cos(pi * x)) / 2 ("cosine"). With decay = steps - warmup there is no constant phase.
    Then "linear" with floor 0 is the straight line to zero of Bergsma et al. 2025,
    arXiv:2502.15938.

    lr0: the lr that the group was made with.
    steps: the number of all steps, including warmup and decay.
    floor: the last lr as a fraction of lr0, in [0, 1]: a number, or a list with one per param
    group.
    start: the first lr as a fraction of lr0, in [0, 1]. The default is 1 / (warmup + 1), as in
    WarmupLR, because at lr 0 the first step would be wasted.

    Call `step()` after every optimizer step. To end a run earlier or later, or to continue from a
    checkpoint of the constant phase, set `scheduler.steps`. Set it after load_state_dict, because
    load_state_dict restores the old value. A value below warmup + decay raises ValueError at the
    next step. Raises TypeError or ValueError for invalid arguments.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        steps: int,
        *,
        decay: int,
        warmup: int = 0,
        shape: str = "linear",
        floor: Floor = 0.0,
        start: float | None = None,
        last_epoch: int = -1,
    ) -> None:
        self.steps = whole("WSDLR", "steps", steps, 1)
        self.decay = whole("WSDLR", "decay", decay, 1)
        self.warmup = whole("WSDLR", "warmup", warmup, 0)
        self._check()
        self.shape = choice("WSDLR", "shape", shape, tuple(SHAPES))
        self.floors = _check_floors("WSDLR", floor, optimizer)
        first = 1 / (self.warmup + 1)
        self.start = first if start is None else number("WSDLR", "start", start, "[0, 1]")
        super().__init__(optimizer, last_epoch)

    def _check(self) -> None:
        if self.warmup + self.decay > whole("WSDLR", "steps", self.steps, 1):
            raise ValueError(
                f"WSDLR: warmup={self.warmup} and decay={self.decay} were given, expected at most "
                f"steps={self.steps} in total"
            )

    def get_lr(self) -> list[float | Tensor]:
        """The learning rate of each param group. Raises ValueError if `steps` was set too low."""
        self._check()
        return super().get_lr()

    def share(self, step: int, floor: float) -> float:
        """Return the factor of a group's initial lr at `step`; the first step is 0."""
        if step < self.warmup:
            return self.start + (1 - self.start) * step / self.warmup
        fraction = min((step - self.steps + self.decay) / self.decay, 1.0)
        if fraction <= 0:
            return 1.0
        return floor + (1 - floor) * (1 - SHAPES[self.shape](fraction))


class CosineLR(_ScaledLR):
    """A cosine decay to a floor, once or with restarts.

    Later periods may be longer and start lower.

    Loshchilov & Hutter 2017, arXiv:1608.03983, equation 5, with the floors and decaying restarts of
    timm's CosineLRScheduler. Period i = 0, 1, ... has T = round(steps * factor**i) steps. At step k
    of a period

        lr = lr0 * (floor + (peak - floor) * (1 + cos(pi * k / T)) / 2),  peak = decay**i

    If decay**i is below the floor, peak is the floor. After the last period lr stays at the floor.
    In torch's CosineAnnealingLR, lr rises again.

    lr0: the lr that the group was made with.
    steps: the length of the first period.
    floor: the lowest lr as a fraction of lr0, in [0, 1]: a number, or a list with one per param
    group. For a lowest lr of 1e-5, pass 1e-5 / lr0.
    periods: the number of periods. None repeats them forever.
    factor: the length of a period divided by the length of the period before, at least 1.
    decay: the peak of a period divided by the peak of the period before, in (0, 1].

    Call `step()` after every optimizer step. Raises TypeError or ValueError for invalid arguments.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        steps: int,
        *,
        floor: Floor = 0.0,
        periods: int | None = 1,
        factor: float = 1.0,
        decay: float = 1.0,
        last_epoch: int = -1,
    ) -> None:
        self.steps = whole("CosineLR", "steps", steps, 1)
        self.periods = None if periods is None else whole("CosineLR", "periods", periods, 1)
        self.factor = number("CosineLR", "factor", factor, "[1, inf)")
        self.decay = number("CosineLR", "decay", decay, "(0, 1]")
        self.floors = _check_floors("CosineLR", floor, optimizer)
        super().__init__(optimizer, last_epoch)

    def share(self, step: int, floor: float) -> float:
        """Return the factor of a group's initial lr at `step`; the first step is 0."""
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
    """Return a function for an OptionSchedule that goes from `first` to `last` in `steps` steps.

    The value is `first` at step 0. It is `last` at step `steps` and at all later steps.

    shape: "linear", "cosine" or "1-sqrt", as in WSDLR. Raises ValueError for invalid arguments.
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
    """A schedule of any numeric option of an optimizer: weight decay, betas, momentum, lr.

        OptionSchedule(optimizer, "weight_decay", ramp(0.04, 0.4, 10_000, "cosine"))
        OptionSchedule(optimizer, "beta1", ramp(0.85, 0.95, 300))
        OptionSchedule(optimizer, "lr", [0.1, 0.1, 0.05, 0.01])

    The first example is from Caron et al. 2021, arXiv:2104.14294 (DINO).

    option: a key of the param groups whose value is a number. "beta1", "beta2", ... are the first,
    second, ... number in `betas`.
    values: a list with one value per step, or a function of the step. The first step is 0. After
    the end of a list, its last value stays.
    relative: whether the values are multiplied by the value that the group was made with.

    A group in which the option was 0 from the start keeps 0, because the option is switched off for
    this group. An example is weight decay, which is often 0 for biases. Unless the option is lr,
    this schedule leaves lr alone, so it works together with any lr schedule: step both, or put both
    in a ChainedScheduler.

    Call `step()` after every optimizer step. state_dict() does not hold `values`: to resume, pass
    the same values. Raises TypeError or ValueError for invalid arguments. A value below 0 raises
    ValueError. For betas and momentum, a value of 1 or more raises ValueError too.
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
            members = several(values, len(values)) if hasattr(values, "__len__") else None
            self._values = [real(v) for v in members or ()]
            if not self._values or not all(map(isfinite, self._values)):
                raise ValueError(
                    f"OptionSchedule: values={values!r} was given, expected a list of numbers, or "
                    "a function of the step"
                )
        self.own: list[float] = []
        super().__init__(optimizer, last_epoch)
        if not any(self.own):
            message = (
                f"OptionSchedule: every group of the {type(optimizer).__name__} has {option}=0, "
                f"expected a group with another value; make the optimizer with {option} above 0"
            )
            if not optimizer.state:
                raise ValueError(message)
            # the optimizer's state may be from the end of a ramp to 0, and this schedule's state
            # may be loaded next
            warnings.warn(f"{message}, or load the state of this schedule", stacklevel=2)

    def value(self, step: int) -> float:
        """Return the value at `step`; the first step is 0.

        If `relative` is set, this is the factor by which each group's original value is multiplied.
        """
        if callable(self._values):
            return real(self._values(step))
        return self._values[min(step, len(self._values) - 1)]

    def get_lr(self) -> list[float | Tensor]:
        """Set the option in all groups. Returns the learning rate of each param group."""
        groups = self.optimizer.param_groups
        self.own = [*self.own, *(self._read_option(group) for group in groups[len(self.own) :])]
        new = self.value(self.last_epoch)
        values = [new * own if self.relative else new for own in self.own]
        below = 1 if self.option == "momentum" or self.option.startswith("beta") else inf
        for value in values:
            if not 0 <= value < below:
                raise ValueError(
                    f"OptionSchedule: the values give {self.option}={value} at step "
                    f"{self.last_epoch}, expected a number in [0, {below:g})"
                )
        for group, own, value in zip(groups, self.own, values, strict=True):
            if own:
                integer = type(own) is int and float(value).is_integer()  # such as Muon's ns_steps
                self._write_option(group, int(value) if integer else value)
        return read_lrs(self.optimizer)

    def _beta_index(self, group: dict[str, Any]) -> int | None:
        """The index in `betas` of an option such as "beta1"; None for any other option."""
        name, number = self.option[:4], self.option[4:]
        if self.option in group or name != "beta" or not number.isdecimal():
            return None
        return int(number) - 1 if 0 < int(number) <= len(group.get("betas", ())) else None

    def _read_option(self, group: dict[str, Any]) -> float:
        index = self._beta_index(group)
        value = group.get(self.option) if index is None else group["betas"][index]
        if self.option == "lr":  # inside a SequentialLR, earlier parts have already set lr
            value = group.get("initial_lr", value)
        number = real(value)
        if isinstance(group.get(self.option), bool) or not isfinite(number):
            betas = [f"beta{k + 1}" for k in range(len(group.get("betas", ())))]
            options = [k for k, v in group.items() if type(v) in (int, float)]
            raise ValueError(
                f"OptionSchedule: option={self.option!r} was given, expected one of "
                f"{', '.join(sorted({'lr', *options, *betas} - {'initial_lr'}))}"
            )
        return value if type(value) is int else number

    def _write_option(self, group: dict[str, Any], value: float) -> None:
        index = self._beta_index(group)
        if index is None:
            set_option(group, self.option, value)
        elif isinstance(group["betas"][index], Tensor):
            group["betas"][index].fill_(value)
        else:
            betas = [*group["betas"]]
            betas[index] = value
            group["betas"] = tuple(betas)

    def state_dict(self) -> dict[str, Any]:
        """Return the step, and the original value of the option in each group."""
        state = super().state_dict()
        del state["_values"]
        return state
