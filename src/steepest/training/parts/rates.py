"""Parts that change the learning rate from step to step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import zip_longest
from typing import ClassVar, Literal

import torch
from torch.optim import lr_scheduler as torchs
from torch.optim.lr_scheduler import LRScheduler

from steepest.errors import BadCall
from steepest.training.parts.part import NOTHING, Fitting, Knob, Knobs, Part, Script

WARMUP = 0.1
"""Share of the steps over which `+warmup` raises the learning rate from near 0, linearly."""
MILESTONES, DROP = (0.3, 0.6, 0.8), 0.2
"""`+step` multiplies the learning rate by DROP after the shares MILESTONES of the steps. These
numbers are those of the baseline in Loshchilov and Hutter 2017, arXiv:1608.03983, and in Smith et
al. 2017, arXiv:1711.00489."""
CYCLES, DEPTH = 4, 6.0
"""`+triangular` has CYCLES triangles in a run. Its highest rate is DEPTH times its lowest rate. In
Smith 2017, arXiv:1506.01186, figure 1a, these two rates are .006 and .001."""
END = 0.01
"""`+exponential` ends at this share of the initial learning rate. For `+exp-range`, the height of
the triangles falls to this share."""
PERIODS = 7
"""`+sgdr` has periods of 1, 2 and 4 sevenths of the run, so the last period ends with the run."""
SGDR, CYCLIC = "arXiv:1608.03983", "arXiv:1506.01186"
PEAK = 'peak = [group["lr"] for group in optimizer.param_groups]'
"""The learning rate of each group, as code: see `rates`."""

Hyper = Mapping[str, float]


class Undone(BadCall):
    """The error for a training loop that has undone what a part did to the optimizer."""


class Warmup(Part):
    name, kind = "warmup", "warmup"
    about, source = "lr rises over a tenth of the steps", "arXiv:1706.02677"
    needs, needs_rate = NOTHING, True
    lead = WARMUP

    def on_optimizer(self, fitting: Fitting) -> None:
        from steepest.schedules import WarmupLR

        if fitting.schedule:
            fitting.schedule = WarmupLR(fitting.schedule, fitting.warmup)
        else:
            first, length = 1 / (fitting.warmup + 1), fitting.warmup
            fitting.schedule = torchs.LinearLR(fitting.optimizer, first, 1.0, length)

    def code(self, script: Script) -> list[str]:
        length = script.warmup
        if script.scheduled:
            return [f"scheduler = steepest.schedules.WarmupLR(scheduler, steps={length})"]
        first = f"start_factor=1 / {length + 1}, total_iters={length}"
        return [f"scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, {first})"]


class Rate(Part):
    """A learning rate schedule over the whole run, or over the steps that follow a warm-up."""

    kind = "rate"
    needs, needs_rate = NOTHING, True

    def on_optimizer(self, fitting: Fitting) -> None:
        steps = max(1, fitting.steps - fitting.warmup)
        fitting.schedule = self.schedule(fitting.optimizer, steps, fitting.hyper)

    def schedule(self, optimizer: torch.optim.Optimizer, steps: int, hyper: Hyper) -> LRScheduler:
        raise NotImplementedError

    def call(self, steps: int, hyper: Hyper) -> str:
        """The call that makes the schedule, as code. In it, `peak` is the rate of each group."""
        raise NotImplementedError

    def code(self, script: Script) -> list[str]:
        call = self.call(max(1, script.steps - script.warmup), script.hyper)
        return [*([PEAK] if "peak" in call else []), *f"scheduler = {call}".splitlines()]


class Cosine(Rate):
    name, about, source = "cosine", "lr falls as half a cosine, to 0", SGDR

    def schedule(self, optimizer, steps, hyper):
        return torchs.CosineAnnealingLR(optimizer, steps)

    def call(self, steps, hyper):
        return f"torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max={steps})"


class Step(Rate):
    name, about, source = "step", "lr times 0.2 after 30, 60, 80 % of the steps", SGDR

    def schedule(self, optimizer, steps, hyper):
        return torchs.MultiStepLR(optimizer, self.milestones(steps), DROP)

    def call(self, steps, hyper):
        at = f"milestones={self.milestones(steps)}, gamma={DROP}"
        return f"torch.optim.lr_scheduler.MultiStepLR(optimizer, {at})"

    def milestones(self, steps: int) -> list[int]:
        """The steps after which lr falls."""
        return [max(1, round(share * steps)) for share in MILESTONES]


class Exponential(Rate):
    name, about, source = "exponential", "lr falls by one factor a step, to 1 %", "torch.optim"

    def schedule(self, optimizer, steps, hyper):
        return torchs.ExponentialLR(optimizer, END ** (1 / steps))

    def call(self, steps, hyper):
        return f"torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma={END} ** (1 / {steps}))"


class Polynomial(Rate):
    name, about, source = "polynomial", "lr falls to 0 as a power of the steps left", "torch.optim"
    knobs: ClassVar[Knobs] = {"power": Knob(0.5, 1.0, 4.0)}

    def schedule(self, optimizer, steps, hyper):
        return torchs.PolynomialLR(optimizer, steps, self.value(hyper, "power"))

    def call(self, steps, hyper):
        shape = f"total_iters={steps}, power={self.value(hyper, 'power')!r}"
        return f"torch.optim.lr_scheduler.PolynomialLR(optimizer, {shape})"


class Sgdr(Rate):
    name, about, source = "sgdr", "cosines over 1, 2 and 4 sevenths of the run", SGDR

    def schedule(self, optimizer, steps, hyper):
        return torchs.CosineAnnealingWarmRestarts(optimizer, math.ceil(steps / PERIODS), 2)

    def call(self, steps, hyper):
        periods = f"T_0={math.ceil(steps / PERIODS)}, T_mult=2"
        return f"torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, {periods})"


class Triangular(Rate):
    name, about, source = "triangular", "lr from a sixth to full and back, 4 times", CYCLIC
    mode: Literal["triangular", "triangular2", "exp_range"] = "triangular"

    def schedule(self, optimizer, steps, hyper):
        top = rates(optimizer)
        return torchs.CyclicLR(
            optimizer,
            [lr / DEPTH for lr in top],
            top,
            math.ceil(steps / (2 * CYCLES)),
            mode=self.mode,
            gamma=END ** (1 / steps),
            cycle_momentum=False,
        )

    def call(self, steps, hyper):
        gamma = f"    gamma={END} ** (1 / {steps}),\n" if self.mode == "exp_range" else ""
        return (
            f"torch.optim.lr_scheduler.CyclicLR(\n"
            f"    optimizer,\n"
            f"    base_lr=[lr / {DEPTH:g} for lr in peak],\n"
            f"    max_lr=peak,\n"
            f"    step_size_up={math.ceil(steps / (2 * CYCLES))},\n"
            f'    mode="{self.mode}",\n'
            f"{gamma}"
            f"    cycle_momentum=False,\n"
            f")"
        )


class Triangular2(Triangular):
    name, about, mode = "triangular2", "triangular, each time half as high", "triangular2"


class ExpRange(Triangular):
    name, about, mode = "exp-range", "triangular, falling to 1 %", "exp_range"


class OneCycle(Rate):
    name, about = "one-cycle", "lr rises over 30 % of the steps, falls to 0"
    source = "arXiv:1708.07120"
    conflicts, why = ("warmup",), "has a warm-up"

    def schedule(self, optimizer, steps, hyper):
        # the lowest rate would come one step after the last step, as in +cosine
        return torchs.OneCycleLR(
            optimizer, rates(optimizer), total_steps=steps + 1, cycle_momentum=False
        )

    def call(self, steps, hyper):
        return (
            f"torch.optim.lr_scheduler.OneCycleLR(\n"
            f"    optimizer, max_lr=peak, total_steps={steps + 1}, cycle_momentum=False\n"
            f")"
        )


class Noam(Rate):
    name, about, source = "noam", "lr rises for a tenth, then 1/sqrt(step)", "arXiv:1706.03762"
    conflicts, why = ("warmup",), "has a warm-up"

    def schedule(self, optimizer, steps, hyper):
        from steepest.schedules import NoamLR

        warm = self.rising(steps)
        peak = [lr * warm**0.5 for lr in rates(optimizer)]
        return NoamLR(optimizer, width=1, warmup=warm, factor=peak)

    def call(self, steps, hyper):
        warm = self.rising(steps)
        return (
            f"steepest.schedules.NoamLR(\n"
            f"    optimizer, width=1, warmup={warm}, factor=[lr * {warm}**0.5 for lr in peak]\n"
            f")"
        )

    def rising(self, steps: int) -> int:
        """The step at which lr peaks, at the optimizer's own lr."""
        return max(1, round(WARMUP * steps))


def rates(optimizer: torch.optim.Optimizer) -> list[float]:
    """The learning rate of each group."""
    return [float(group["lr"]) for group in optimizer.param_groups]


def guard(entry: str, scheduled: str, optimizer: torch.optim.Optimizer) -> None:
    """Make a step raise Undone if the learning rate is not the one that the schedule has set.

    A training loop with its own schedule would overwrite the entry's schedule, and the entry would
    run without it. Call `guard` after the schedule's own hook is registered.

    scheduled: the names of the parts that set the rate, such as "+warmup+cosine".
    """
    expected = rates(optimizer)

    def compare(*_: object) -> None:
        now = rates(optimizer)
        if now == expected:
            return
        if len(now) > len(expected) and now[: len(expected)] == expected:
            raise Undone(
                f"entry {entry!r}: the loop has added a group of parameters to the optimizer, but "
                f"{scheduled} schedules only the first groups; pass all parameters to "
                f"make_optimizer(...), or race entries without {scheduled}. To train some "
                f"parameters only later, set their requires_grad to False until then"
            )
        was, became = next((a, b) for a, b in zip_longest(expected, now) if a != b)
        raise Undone(
            f"entry {entry!r}: {scheduled} set lr to {was}, but at the next step lr is {became}: "
            f"the training loop sets lr too, by its own schedule or by hand; expected a loop that "
            f"leaves lr alone, or entries without {scheduled}. With Hugging Face's Trainer, pass "
            f"optimizers=(optimizer, MultiplicativeLR(optimizer, lambda _: 1.0))"
        )

    def remember(*_: object) -> None:
        nonlocal expected
        expected = rates(optimizer)

    optimizer.register_step_pre_hook(compare)
    optimizer.register_step_post_hook(remember)
