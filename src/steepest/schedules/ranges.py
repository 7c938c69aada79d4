"""The learning rate range test finds the rates at which the loss falls, and at which it rises."""

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
_WINDOWS = 10  # the moving mean is over about a tenth of the steps


@dataclass(frozen=True)
class Interval:
    """Summary of learning rates, one from each of n seeds.

    median: the median, computed on the logarithms of the rates.
    low, high: the lowest and the highest rate.
    """

    median: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.median:.2g} [{self.low:.2g}, {self.high:.2g}], n={self.n}"


@dataclass(frozen=True)
class RangeTest:
    """The result of a range test. `print` shows it in a few lines.

    lrs: the learning rate of each step.
    losses: seed -> the loss before each step, until the run stopped. A run diverged if its list of
    losses is shorter than `lrs`, or if its last loss is not finite.
    falls: seed -> the rate at which the smoothed loss falls fastest, or None if it never falls.
    rises: seed -> the rate at which the smoothed loss begins to rise, or None if it never rises.
    fall, rise: the rates in `falls` and `rises`, as intervals over the seeds. Use these intervals
    to choose a learning rate.
    """

    lrs: list[float]
    losses: dict[int, list[float]]
    falls: dict[int, float | None]
    rises: dict[int, float | None]

    @property
    def fall(self) -> Interval | None:
        """The rate at which the smoothed loss falls fastest. None if it never falls."""
        return _interval(self.falls)

    @property
    def rise(self) -> Interval | None:
        """The rate at which the smoothed loss begins to rise. None if it never rises."""
        return _interval(self.rises)

    def __str__(self) -> str:
        n = len(self.losses)
        seeds = "1 seed" if n == 1 else f"{n} seeds"
        lines = [
            f"range test: lr {self.lrs[0]:g} to {self.lrs[-1]:g} in {len(self.lrs)} steps, {seeds}"
        ]
        for verb, interval in (("falls fastest", self.fall), ("begins to rise", self.rise)):
            if interval is None:
                lines.append(f"the loss {verb} at no lr")
            elif interval.n < n:
                lines.append(f"the loss {verb} at lr {interval} of {n} seeds")
            else:
                lines.append(f"the loss {verb} at lr {interval}")
        return "\n".join(lines)


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
    """Train copies of the model while lr grows exponentially from `low` to `high`.

    Smith 2017, arXiv:1506.01186, section 3.3. In that paper lr grows linearly, and the accuracy is
    watched instead of the loss.

    For each seed a copy of model and optimizer makes `steps` steps. A run stops early when the loss
    is not finite, or when its moving mean exceeds `diverged` times the lowest moving mean so far.
    If that lowest mean is negative, the run stops when the current moving mean is more than
    (diverged - 1) * abs(lowest mean) above the lowest mean. Moving means are over about a tenth of
    the steps. The loss curve is smoothed in the same way. A seed changes the order of the batches
    and the model's own randomness. The interval over seeds shows how much the rates depend on the
    seed. It is not a confidence interval.

    model: its copies keep its mode, so call train() or eval() before range_test.
    optimizer: an optimizer over the model's parameters. Its step() gets a closure, so SAM works
    too. The optimizer's hooks are not copied. If groups have different lr, the ratios between their
    lr are kept, and the result gives the lr of the group with the largest lr.
    loss: `loss(model, batch)` returns the loss, a tensor of one element. The function must use the
    model that is passed to it, which is a copy.
    batches: anything that can be iterated repeatedly. A list is iterated in a new order each time.
    A DataLoader is iterated in the order that it chooses.
    low, high: the first and the last lr, 0 < low < high.
    steps: the number of steps per seed, at least 10.
    seeds: the number of seeds, or a list of seeds.

    Nothing that you pass in is changed, even after an error or Ctrl-C: weights, buffers, gradients,
    modes, the optimizer and its lr, and the random generators of torch, numpy, Python and the
    DataLoader all keep their state. The only exception is state inside your data set. Raises
    TypeError or ValueError for invalid arguments, and for a model that cannot be copied. Call
    range_test before you wrap the model in DDP or the like.
    """
    optimizer = unwrapped(optimizer)
    if not isinstance(model, torch.nn.Module) or not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(
            f"range_test: a {type(model).__name__} and a {type(optimizer).__name__} were given, "
            "expected a torch.nn.Module and an optimizer"
        )
    if isinstance(optimizer, torch.optim.LBFGS):  # its copy has no parameters
        raise TypeError(
            "range_test: an LBFGS was given, which range_test cannot copy; with "
            'line_search_fn="strong_wolfe", an LBFGS needs no range test'
        )
    seeds, steps = plain(seeds), plain(steps)
    numbers = list(range(seeds)) if isinstance(seeds, int) else [*map(plain, seeds)]
    if not numbers or len({*numbers}) != len(numbers) or any(type(n) is not int for n in numbers):
        raise ValueError(
            f"range_test: seeds={seeds!r} was given, expected the number of seeds, at least 1, or "
            "a list of different whole numbers"
        )
    if not 0 < real(low) < real(high) < inf:
        raise ValueError(
            f"range_test: low={low!r}, high={high!r} were given, expected 0 < low < high"
        )
    if type(steps) is not int or steps < _FEWEST_STEPS:
        raise ValueError(
            f"range_test: steps={steps!r} was given, expected a whole number of {_FEWEST_STEPS} or "
            "more"
        )
    if not real(diverged) > 1:
        raise ValueError(f"range_test: diverged={diverged!r} was given, expected a number above 1")
    low, high, diverged = real(low), real(high), real(diverged)
    if isinstance(batches, Iterator):
        raise TypeError(
            f"range_test: batches is a {type(batches).__name__}, which can be iterated only once; "
            "pass a list or a DataLoader"
        )
    known = {id(p) for p in model.parameters()}
    if not all(id(p) in known for group in optimizer.param_groups for p in group["params"]):
        raise ValueError(
            "range_test: the optimizer has parameters that the model does not have; pass the "
            "module that contains all parameters of the optimizer"
        )
    lrs = [low * (high / low) ** (k / (steps - 1)) for k in range(steps)]
    width = max(3, 2 * (steps // (2 * _WINDOWS)) + 1)
    losses: dict[int, list[float]] = {}
    with _seeding(batches) as seed_all:
        for seed in numbers:
            seed_all(seed)
            try:
                copies = deepcopy((model, optimizer))
            except Exception as error:
                raise TypeError(
                    f"range_test: the model or the optimizer cannot be copied ({error}), expected "
                    "both without wrappers; call range_test before you wrap them"
                ) from error
            losses[seed] = _run(*copies, loss, _repeat(batches, seed), lrs, width, diverged)
    rates = {seed: _find_rates(lrs, curve, width) for seed, curve in losses.items()}
    return RangeTest(
        lrs,
        losses,
        {seed: fall for seed, (fall, _) in rates.items()},
        {seed: rise for seed, (_, rise) in rates.items()},
    )


def _run(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: Loss,
    batches: Iterator[Any],
    lrs: list[float],
    width: int,
    diverged: float,
) -> list[float]:
    """Return the losses of one run, up to the step at which the run diverges."""
    initial = [float(group["lr"]) for group in optimizer.param_groups]
    ratios = [lr / max(initial) if max(initial) > 0 else 1.0 for lr in initial]
    losses: list[float] = []
    best = inf
    for lr, batch in zip(lrs, batches, strict=False):
        for group, ratio in zip(optimizer.param_groups, ratios, strict=True):
            # base_lr too, so that AdaBound behaves as if it was made with this lr
            for key in {"lr", "base_lr"} & group.keys():
                if isinstance(group[key], Tensor):
                    group[key].fill_(lr * ratio)
                else:
                    group[key] = lr * ratio
        closure = partial(_compute_loss, model, optimizer, loss, batch)
        losses.append(float(optimizer.step(closure)))  # type: ignore[arg-type]
        recent = sum(losses[-width:]) / len(losses[-width:])
        best = min(best, recent)
        if not isfinite(losses[-1]) or recent > best + (diverged - 1) * abs(best):
            break
    return losses


def _compute_loss(
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
            "range_test: the loss does not depend on the copy of the model that is trained; "
            "compute the loss from the model that the loss function gets as its first argument"
        )
    return value.detach()


def _find_rates(
    lrs: list[float], losses: list[float], width: int
) -> tuple[float | None, float | None]:
    """Return two lr: where the smoothed loss falls fastest, and where it begins to rise."""
    finite = losses if isfinite(losses[-1]) else losses[:-1]
    if len(finite) < width + 1:
        return None, None
    smooth = np.convolve(finite, np.full(width, 1 / width), "valid")
    centres = lrs[width // 2 :]
    bottom = int(smooth.argmin())
    slopes = [after - before for before, after in pairwise(smooth)]
    fall = min(range(bottom), key=slopes.__getitem__) if bottom else None
    never_rises = bottom == len(smooth) - 1 and len(finite) == len(lrs)
    return (
        None if fall is None else (centres[fall] * centres[fall + 1]) ** 0.5,
        None if never_rises else centres[bottom],
    )


def _interval(rates: dict[int, float | None]) -> Interval | None:
    lrs = [lr for lr in rates.values() if lr is not None]
    return Interval(exp(median(map(log, lrs))), min(lrs), max(lrs), len(lrs)) if lrs else None


def _repeat(batches: Iterable[Any], seed: int) -> Iterator[Any]:
    """Yield the batches, repeated without end. A list gets a new order at each repetition."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        if isinstance(batches, Sequence):
            order = torch.randperm(len(batches), generator=generator).tolist()
            epoch = iter([batches[i] for i in order])
        else:
            epoch = iter(batches)
        empty = True
        for batch in epoch:
            empty = False
            yield batch
        if empty:
            raise ValueError("range_test: batches is empty, expected at least one batch")


@contextmanager
def _seeding(batches: Any) -> Iterator[Callable[[int], None]]:
    """Yield a function that seeds every random generator; restore all of them on exit."""
    inner = getattr(batches, "batch_sampler", None)
    owners = (batches, getattr(batches, "sampler", None), inner, getattr(inner, "sampler", None))
    owned = {id(g): g for g in (getattr(owner, "generator", None) for owner in owners)}
    generators = [g for g in owned.values() if isinstance(g, torch.Generator)]
    states = [g.get_state() for g in generators]
    restore_position = _save_position(batches, inner)
    python_state, numpy_state = random.getstate(), np.random.get_state()
    accelerator = torch.accelerator.current_accelerator()
    devices = range(torch.accelerator.device_count())
    device_type = accelerator.type if accelerator else "cuda"

    def seed_all(seed: int) -> None:
        torch.manual_seed(seed)
        for generator in generators:
            generator.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)

    try:
        with torch.random.fork_rng(devices, device_type=device_type):
            yield seed_all
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
        restore_position()
        random.setstate(python_state)
        np.random.set_state(numpy_state)


def _save_position(batches: Any, inner: Any) -> Callable[[], None]:
    """Return a function that restores the current position in `batches`.

    The function does nothing if `batches` has no position that can be saved.
    """
    if hasattr(inner, "save_position"):  # a Loader's batch sampler, maybe wrapped by accelerate
        restore, iteration = inner.save_position(), getattr(batches, "iteration", None)

        def restore_both() -> None:
            restore()
            if iteration is not None:  # accelerate's count of epochs
                batches.iteration = iteration

        return restore_both
    try:
        return partial(batches.load_state_dict, batches.state_dict())
    except AttributeError:  # accelerate's loader has both, even if the loader inside it has neither
        return lambda: None
