"""What may stand behind an optimizer in an entry: `adam+noise`, `momentum+batch-growth`.

Schedules, noise and clipping act at the optimizer's step, and so in any task. The others act in the
training loop, and need a task that says what is trained: see `course.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import zip_longest
from typing import Literal

import torch
from torch.optim import lr_scheduler as torchs
from torch.optim.lr_scheduler import LRScheduler

from steepest.errors import BadCall

Knobs = Mapping[str, tuple[float, float, float]]
"""name -> (low, default, high)"""
WARMUP = 0.1
"""Share of the steps over which `+warmup` raises the learning rate from near 0, linearly."""
MILESTONES, DROP = (0.3, 0.6, 0.8), 0.2
"""Shares of the steps at which `+step` multiplies the learning rate, and by what: the baseline of
Loshchilov and Hutter 2017, arXiv:1608.03983, and of Smith et al. 2017, arXiv:1711.00489."""
CYCLES, DEPTH = 4, 6.0
"""Triangles of a run, and how far below its highest the rate falls: Smith 2017, arXiv:1506.01186,
figure 1a, has .001 to .006."""
END = 0.01
"""Share of the rate that `+exponential` and `+exp-range` end at."""
PERIODS = 7
"""`+sgdr` has periods of 1, 2 and 4 sevenths of the run, so that the last ends with it."""


class Undone(BadCall):
    """What a part does to the optimizer was undone by the loop that calls it."""


@dataclass(frozen=True)
class Part:
    """kind: of those of one kind an entry has one. about, source: for people. knobs: what is tuned
    beside the optimizer's own, name -> (low, default, high), log-uniform.
    """

    kind: str
    about: str
    source: str
    knobs: Knobs = field(default_factory=dict)

    @property
    def needs(self) -> str:
        """Of a task."""
        if self.kind in SWITCHES:
            return "a bundled task with the switch"
        return NEEDS.get(self.kind, "nothing" if self.kind in ANYWHERE else "the race's loop")


_SGDR, _CYCLIC, _ORDERS = "arXiv:1608.03983", "arXiv:1506.01186", "arXiv:1904.03626"
_START: Knobs = {"start": (0.05, 0.2, 0.8)}
PARTS = {
    "warmup": Part("warmup", "lr rises over a tenth of the steps", "arXiv:1706.02677"),
    "cosine": Part("rate", "lr falls as half a cosine, to 0", _SGDR),
    "step": Part("rate", "lr times 0.2 after 30, 60, 80 % of the steps", _SGDR),
    "exponential": Part("rate", "lr falls by one factor a step, to 1 %", "torch.optim"),
    "polynomial": Part(
        "rate", "lr falls to 0 as a power of the steps left", "torch.optim",
        {"power": (0.5, 1.0, 4.0)},
    ),
    "sgdr": Part("rate", "cosines over 1, 2 and 4 sevenths, each anew", _SGDR),
    "triangular": Part("rate", "lr from a sixth to all and back, 4 times", _CYCLIC),
    "triangular2": Part("rate", "triangular, each time half as high", _CYCLIC),
    "exp-range": Part("rate", "triangular, falling to 1 %", _CYCLIC),
    "one-cycle": Part("rate", "lr rises for 30 % of the steps, then to 0", "arXiv:1708.07120"),
    "noam": Part("rate", "lr rises for a tenth, then 1/sqrt(step)", "arXiv:1706.03762"),
    "batchnorm": Part("norm", "batch normalisation in the task's model", "arXiv:1502.03167"),
    "dropout": Part(
        "dropout", "dropout in the task's model", "Srivastava 2014", {"p": (0.05, 0.2, 0.6)}
    ),
    "batch-growth": Part("batch", "batches grow where +step lowers lr", "arXiv:1711.00489"),
    "adaptive-batch": Part("batch", "batches by the spread of their gradients", "Yin 2017"),
    "full-batch": Part("batch", "all training data in every step", "Cauchy 1847"),
    "one-sample": Part("batch", "one sample in every step", "Robbins 1951"),
    "curriculum": Part("order", "easy samples first, by a trained copy's loss", _ORDERS, _START),
    "anti-curriculum": Part("order", "hard samples first", _ORDERS, _START),
    "random-curriculum": Part("order", "more and more samples, in no order", _ORDERS, _START),
    "noise": Part(
        "noise", "normal noise of variance eta/(1+t)^0.55", "arXiv:1511.06807",
        {"eta": (1e-4, 0.01, 1.0)},
    ),
    "clip": Part(
        "clip", "the gradient's norm stays below a bound", "arXiv:1211.5063",
        {"norm": (0.03, 1.0, 30.0)},
    ),
    "early-stopping": Part("stopping", "stops, and ends with the best weights", "Prechelt 1998"),
    "restarts": Part("stopping", "back to the best weights, with half the lr", "arXiv:1706.09733"),
}  # fmt: skip
"""In the order in which an entry has them."""
ANYWHERE = {"warmup", "rate", "noise", "clip"}
"""Kinds that act at the optimizer's step."""
SWITCHES = {"norm": "batchnorm", "dropout": "dropout"}
"""Kinds that another model is made of."""
NEEDS = {"batch": "samples", "order": "samples", "stopping": "the race's loop, test data"}
_BATCH = "draws batches of the task's size"
CLASHES: dict[str, tuple[tuple[str, ...], str]] = {
    "one-cycle": (("warmup",), "has a warm-up"),
    "noam": (("warmup",), "has a warm-up"),
    "batchnorm": (("one-sample", "adaptive-batch"), "needs several samples at once"),
    "batch-growth": (("rate", "warmup"), "is a schedule"),
    "curriculum": (("batch",), _BATCH),
    "anti-curriculum": (("batch",), _BATCH),
    "random-curriculum": (("batch",), _BATCH),
    "restarts": (("rate", "batch-growth"), "sets the learning rate"),
}
"""Part -> the parts and kinds that it cannot stand beside, and why."""
NEED_RATE = ("warmup", "rate", "batch-growth", "adaptive-batch", "restarts")
"""Parts and kinds that read or write the optimizer's learning rate."""


def check(name: str, words: tuple[str, ...]) -> None:
    """BadCall for what cannot stand behind an optimizer, alone or together."""
    for word in words:
        if word not in PARTS:
            near = get_close_matches(word, list(PARTS), n=1)
            hint = f"did you mean +{near[0]}?" if near else f"expected one of {', '.join(PARTS)}"
            raise BadCall(f"entry {name!r}: +{word} is unknown; {hint}")
    if (right := tuple(w for w in PARTS if w in words)) != words:
        raise BadCall(f"entry {name!r}: expected its parts once, as +{'+'.join(right)}")
    kinds = [PARTS[word].kind for word in words]
    for word, kind in zip(words, kinds, strict=True):
        if kinds.count(kind) > 1:
            both = " and ".join(f"+{w}" for w in words if PARTS[w].kind == kind)
            raise BadCall(f"entry {name!r}: {both} do the same: expected one of them")
        others, why = CLASHES.get(word, ((), ""))
        for other in words:
            if named(other, others):
                raise BadCall(f"entry {name!r}: +{word} {why}: expected no +{other} beside it")


def named(word: str, which: Collection[str]) -> bool:
    """Whether the part or its kind is among `which`."""
    return word in which or PARTS[word].kind in which


def knobs(words: tuple[str, ...]) -> dict[str, tuple[float, float, float]]:
    """What is tuned of the parts: "noise.eta" -> (low, default, high)."""
    return {f"{w}.{knob}": span for w in words for knob, span in PARTS[w].knobs.items()}


def rate(
    words: tuple[str, ...], optimizer: torch.optim.Optimizer, steps: int, hyper: Mapping[str, float]
) -> LRScheduler | None:
    """The schedule of the parts over `steps` steps of the optimizer; None if they have none."""
    from steepest.schedules import WarmupLR

    warm = min(max(1, round(WARMUP * steps)), steps) if "warmup" in words else 0
    word = next((w for w in words if PARTS[w].kind == "rate"), None)
    if word is None:
        return torchs.LinearLR(optimizer, 1 / (warm + 1), 1.0, warm) if warm else None
    made = _MADE[word](optimizer, max(1, steps - warm), hyper)
    return WarmupLR(made, warm) if warm else made


def guard(name: str, optimizer: torch.optim.Optimizer) -> None:
    """Undone at a step whose rate is not what the parts of the entry `name` have set.

    For a loop with a schedule of its own, in which the entry would be the one without the parts.
    Its hook behind a step must be registered after the schedule's.
    """
    now = _rates(optimizer)
    words = "+".join(w for w in name.split("+")[1:] if PARTS[w].kind in ("warmup", "rate"))

    def look(*_: object) -> None:
        found = _rates(optimizer)
        if found == now:
            return
        if len(found) > len(now) and found[: len(now)] == now:
            raise Undone(
                f"entry {name!r}: the loop has added a group of parameters, which +{words} does "
                f"not know: expected all parameters in make_optimizer(...) (those to train later "
                f"with requires_grad False until then), or entries without +{words}"
            )
        was, became = next((a, b) for a, b in zip_longest(now, found) if a != b)
        raise Undone(
            f"entry {name!r}: +{words} set lr to {was}, and at the step it is {became}: the loop "
            f"sets it too, by a schedule of its own or by hand; expected a loop that leaves lr "
            f"alone, or entries without +{words} (Hugging Face's Trainer leaves it alone with "
            f"optimizers=(optimizer, MultiplicativeLR(optimizer, lambda _: 1.0)))"
        )

    def remember(*_: object) -> None:
        nonlocal now
        now = _rates(optimizer)

    optimizer.register_step_pre_hook(look)
    optimizer.register_step_post_hook(remember)


def _rates(optimizer: torch.optim.Optimizer) -> list[float]:
    return [float(group["lr"]) for group in optimizer.param_groups]


def falling(optimizer: torch.optim.Optimizer, steps: int) -> LRScheduler:
    """The rate of `+step`, which `+batch-growth` turns into batch sizes."""
    milestones = [max(1, round(share * steps)) for share in MILESTONES]
    return torchs.MultiStepLR(optimizer, milestones, DROP)


def _triangles(
    mode: Literal["triangular", "triangular2", "exp_range"],
) -> Callable[..., LRScheduler]:
    def make(
        optimizer: torch.optim.Optimizer, steps: int, hyper: Mapping[str, float]
    ) -> LRScheduler:
        top = [float(group["lr"]) for group in optimizer.param_groups]
        return torchs.CyclicLR(
            optimizer, [lr / DEPTH for lr in top], top, math.ceil(steps / (2 * CYCLES)),
            mode=mode, gamma=END ** (1 / steps), cycle_momentum=False,
        )  # fmt: skip

    return make


def _one_cycle(
    optimizer: torch.optim.Optimizer, steps: int, hyper: Mapping[str, float]
) -> LRScheduler:
    top = [float(group["lr"]) for group in optimizer.param_groups]
    # the lowest rate would be that of the step after the last, as in +cosine
    return torchs.OneCycleLR(optimizer, top, total_steps=steps + 1, cycle_momentum=False)


def _noam(optimizer: torch.optim.Optimizer, steps: int, hyper: Mapping[str, float]) -> LRScheduler:
    from steepest.schedules import NoamLR

    warm = max(1, round(WARMUP * steps))  # where it peaks, with the optimizer's own lr
    peak = [float(group["lr"]) * warm**0.5 for group in optimizer.param_groups]
    return NoamLR(optimizer, width=1, warmup=warm, factor=peak)


_MADE: dict[str, Callable[..., LRScheduler]] = {
    "cosine": lambda o, steps, hyper: torchs.CosineAnnealingLR(o, steps),
    "step": lambda o, steps, hyper: falling(o, steps),
    "exponential": lambda o, steps, hyper: torchs.ExponentialLR(o, END ** (1 / steps)),
    "polynomial": lambda o, steps, hyper: torchs.PolynomialLR(o, steps, hyper["polynomial.power"]),
    "sgdr": lambda o, steps, hyper: torchs.CosineAnnealingWarmRestarts(
        o, math.ceil(steps / PERIODS), 2
    ),
    "triangular": _triangles("triangular"),
    "triangular2": _triangles("triangular2"),
    "exp-range": _triangles("exp_range"),
    "one-cycle": _one_cycle,
    "noam": _noam,
}
