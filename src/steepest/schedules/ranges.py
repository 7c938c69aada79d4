"""The learning rate range test: which rates make the loss fall, and which make it rise."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from math import exp, inf, isfinite, log
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checks import plain, real, unwrapped

Loss = Callable[[Any, Any], Tensor]
_FEWEST_STEPS = 10
_WINDOWS = 10  # that many windows of the moving mean side by side make up the curve


@dataclass(frozen=True)
class Interval:
    """A learning rate over seeds: median (of its logarithm), lowest and highest, of n seeds."""

    median: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.median:.2g} [{self.low:.2g}, {self.high:.2g}], n={self.n}"


@dataclass(frozen=True)
class RangeTest:
    """What a range test saw. `print` it for a few lines; the intervals are what to go by.

    lrs: the rates, one per step. losses: seed -> the loss at each step, before that step, until
    the run stopped; a shorter list than `lrs` or a last loss that is not finite means that it
    diverged. falls, rises: seed -> the rate where the smoothed loss falls fastest, and where it
    begins to rise, None where it does not.
    """

    lrs: list[float]
    losses: dict[int, list[float]]
    falls: dict[int, float | None]
    rises: dict[int, float | None]

    @property
    def fall(self) -> Interval | None:
        """Where the smoothed loss falls fastest; None if it falls with no seed."""
        return _interval(self.falls)

    @property
    def rise(self) -> Interval | None:
        """Where the smoothed loss begins to rise; None if it does with no seed."""
        return _interval(self.rises)

    def __str__(self) -> str:
        n, lines = len(self.losses), []
        for words, found in (("falls fastest", self.fall), ("begins to rise", self.rise)):
            missing = n - (found.n if found else 0)
            where = f"at lr {found}" if found else "nowhere"
            lines.append(
                f"the loss {words} {where}" + (f" of {n} seeds" if found and missing else "")
            )
        head = f"range test: lr {self.lrs[0]:g} to {self.lrs[-1]:g} in {len(self.lrs)} steps"
        return "\n".join([f"{head}, {n} seed{'s' * (n > 1)}", *lines])


def range_test(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: Loss,
    batches: Iterable[Any],
    *,
    low: float = 1e-6,
    high: float = 10.0,
    steps: int = 100,
    seeds: int | Sequence[int] = 5,
    diverged: float = 4.0,
) -> RangeTest:
    """Train copies while lr grows exponentially from low to high. Smith 2017, arXiv:1506.01186,
    section 3.3 (there lr grows linearly, and accuracy is watched).

    For each seed a copy of model and optimizer makes `steps` steps, and stops early when the loss
    is not finite or its mean over a window is `diverged` times the lowest such mean (for losses
    below 0: that far above it). The curve is then smoothed by a moving mean over a tenth of the
    steps. What a seed changes is the order of the batches and the model's own noise: the interval
    over seeds says how far that moves the answer, and is no confidence interval.

    model: in the mode to train it in. optimizer: over the model's parameters; step() is given a
    closure, so SAM and the like can be given. Its hooks are not copied; lr of its groups keep their
    ratios, and lr here is the largest group's. loss: `loss(model, batch)` returns the loss, a
    tensor of one element; it must use the model that it is given, which is the copy. batches:
    anything that can be gone through repeatedly; it is begun again as often as needed. A list is
    gone through in a new order each time, a DataLoader in the order that it chooses.
    low, high: 0 < low < high. steps: at least 10. seeds: their number, or the seeds themselves.

    Nothing that was given is changed, neither when a loss raises nor at Ctrl-C: weights, buffers,
    gradients, modes, the optimizer with its lr, and the generators of torch, numpy, Python and of
    the DataLoader; only what a data set keeps on its own may be. Raises TypeError and ValueError
    for arguments, and for a model that cannot be copied: call it before DDP and its like.
    """
    optimizer = unwrapped(optimizer)
    if not isinstance(model, torch.nn.Module) or not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(
            f"range_test: a {type(model).__name__} and a {type(optimizer).__name__} were given, "
            "expected a torch.nn.Module and an optimizer"
        )
    if isinstance(optimizer, torch.optim.LBFGS):  # a copy of which has no parameters
        raise TypeError(
            "range_test: an LBFGS was given, expected an optimizer that can be copied; let its "
            'line_search_fn="strong_wolfe" find the rate'
        )
    seeds, steps = plain(seeds), plain(steps)
    chosen = list(range(seeds)) if isinstance(seeds, int) else [*map(plain, seeds)]
    if not chosen or len({*chosen}) != len(chosen) or any(type(s) is not int for s in chosen):
        raise ValueError(
            f"range_test: seeds={seeds!r} was given, expected their number, at least 1, or "
            "different whole numbers"
        )
    if not 0 < real(low) < real(high) < inf:
        raise ValueError(
            f"range_test: low={low!r}, high={high!r} were given, expected 0 < low < high"
        )
    if type(steps) is not int or steps < _FEWEST_STEPS:
        raise ValueError(
            f"range_test: steps={steps!r} was given, expected a whole number from {_FEWEST_STEPS}"
        )
    if not real(diverged) > 1:
        raise ValueError(f"range_test: diverged={diverged!r} was given, expected a number above 1")
    low, high, diverged = real(low), real(high), real(diverged)
    if isinstance(batches, Iterator):
        raise TypeError(
            f"range_test: batches is a {type(batches).__name__}, which can be gone through only "
            "once; give a list or a DataLoader"
        )
    known = {id(p) for p in model.parameters()}
    if not all(id(p) in known for group in optimizer.param_groups for p in group["params"]):
        raise ValueError(
            "range_test: the optimizer has parameters that the model has not, expected an "
            "optimizer over the model's parameters; give the module that holds them all"
        )
    lrs = [low * (high / low) ** (k / (steps - 1)) for k in range(steps)]
    width = max(3, 2 * (steps // (2 * _WINDOWS)) + 1)
    losses: dict[int, list[float]] = {}
    with _seeding(batches) as seed:
        for number in chosen:
            seed(number)
            try:
                copies = deepcopy((model, optimizer))
            except Exception as error:
                raise TypeError(
                    f"range_test: the model or the optimizer cannot be copied ({error}), expected "
                    "plain ones; test before they are wrapped"
                ) from error
            losses[number] = _run(*copies, loss, _stream(batches, number), lrs, width, diverged)
    found = {number: _read(lrs, row, width) for number, row in losses.items()}
    return RangeTest(
        lrs,
        losses,
        {n: fall for n, (fall, _) in found.items()},
        {n: rise for n, (_, rise) in found.items()},
    )


def _run(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: Loss,
    stream: Iterator[Any],
    lrs: list[float],
    width: int,
    diverged: float,
) -> list[float]:
    """The losses of one run, which ends where it diverges."""
    given = [float(group["lr"]) for group in optimizer.param_groups]
    shares = [lr / max(given) if max(given) > 0 else 1.0 for lr in given]
    row: list[float] = []
    best = inf
    for lr, batch in zip(lrs, stream, strict=False):
        for group, share in zip(optimizer.param_groups, shares, strict=True):
            # AdaBound's own: it is to be as if made with this lr, not as if scheduled to it
            for key in {"lr", "base_lr"} & group.keys():
                if isinstance(group[key], Tensor):
                    group[key].fill_(lr * share)
                else:
                    group[key] = lr * share
        row.append(float(optimizer.step(partial(_closure, model, optimizer, loss, batch))))  # type: ignore[arg-type]
        recent = sum(row[-width:]) / len(row[-width:])
        best = min(best, recent)
        if not isfinite(row[-1]) or recent > best + (diverged - 1) * abs(best):
            break
    return row


def _closure(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, loss: Loss, batch: Any
) -> Tensor:
    optimizer.zero_grad()
    value: Any = loss(model, batch)
    if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
        raise TypeError(
            f"range_test: loss returned {value!r}, expected a tensor of one element that depends "
            "on the parameters"
        )
    value.backward()
    if all(p.grad is None for p in model.parameters()):
        raise ValueError(
            "range_test: the loss does not depend on the model that it was given; write it with "
            "its first argument, which is a copy"
        )
    return value.detach()


def _read(lrs: list[float], row: list[float], width: int) -> tuple[float | None, float | None]:
    """Where the smoothed losses fall fastest, and where they begin to rise."""
    finite = row if isfinite(row[-1]) else row[:-1]
    if len(finite) < width + 1:
        return None, None
    smooth = np.convolve(finite, np.full(width, 1 / width), "valid")
    centres = lrs[width // 2 :]
    bottom = int(smooth.argmin())
    slopes = [after - before for before, after in pairwise(smooth)]
    fall = min(range(bottom), key=slopes.__getitem__) if bottom else None
    ended = bottom == len(smooth) - 1 and len(finite) == len(lrs)
    return (
        None if fall is None else (centres[fall] * centres[fall + 1]) ** 0.5,
        None if ended else centres[bottom],
    )


def _interval(found: dict[int, float | None]) -> Interval | None:
    seen = [lr for lr in found.values() if lr is not None]
    return Interval(exp(median(map(log, seen))), min(seen), max(seen), len(seen)) if seen else None


def _stream(batches: Iterable[Any], seed: int) -> Iterator[Any]:
    """The batches without end, a list's in a new order each time."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        if isinstance(batches, Sequence):
            order = torch.randperm(len(batches), generator=generator).tolist()
            one_pass = iter([batches[i] for i in order])
        else:
            one_pass = iter(batches)
        empty = True
        for batch in one_pass:
            empty = False
            yield batch
        if empty:
            raise ValueError("range_test: batches is empty, expected at least one batch")


@contextmanager
def _seeding(batches: Any) -> Iterator[Callable[[int], None]]:
    """A function that seeds whatever draws; afterwards all generators are as they were."""
    inner = getattr(batches, "batch_sampler", None)
    owners = (batches, getattr(batches, "sampler", None), inner, getattr(inner, "sampler", None))
    drawn = {id(g): g for g in (getattr(owner, "generator", None) for owner in owners)}
    generators = [g for g in drawn.values() if isinstance(g, torch.Generator)]
    states = [g.get_state() for g in generators]
    back = _place(batches, inner)
    python, numpys = random.getstate(), np.random.get_state()
    accelerator = torch.accelerator.current_accelerator()
    every = range(torch.accelerator.device_count())

    def seed(number: int) -> None:
        torch.manual_seed(number)
        for generator in generators:
            generator.manual_seed(number)
        random.seed(number)
        np.random.seed(number % 2**32)

    try:
        with torch.random.fork_rng(every, device_type=accelerator.type if accelerator else "cuda"):
            yield seed
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
        back()
        random.setstate(python)
        np.random.set_state(numpys)


def _place(batches: Any, inner: Any) -> Callable[[], None]:
    """What takes batches that know where they are back to where they are now."""
    if hasattr(inner, "place"):  # a Loader's, which accelerate may have taken out of it
        back, iteration = inner.place(), getattr(batches, "iteration", None)

        def both() -> None:
            back()
            if iteration is not None:  # accelerate's count of epochs
                batches.iteration = iteration

        return both
    try:
        return partial(batches.load_state_dict, batches.state_dict())
    except AttributeError:  # accelerate's has both methods, whatever it wraps
        return lambda: None
