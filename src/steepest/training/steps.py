"""How a training step is made, and which data it uses."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch.utils.data import Sampler

from steepest.errors import BadCall, Diverged
from steepest.tasks.task import Samples, Setup, Task

if TYPE_CHECKING:
    from steepest.strategies import Loader
    from steepest.training.recipe import Recipe


@dataclass
class Training:
    """What the parts of a recipe know about one run of the training loop."""

    task: Task
    recipe: Recipe
    setup: Setup
    optimizer: torch.optim.Optimizer
    hyper: Mapping[str, float]
    seed: int
    steps: int
    on_batch: Callable[[Any], None]
    """A function that is called with every batch."""

    @property
    def samples(self) -> Samples:
        """The training data. If a task has none, `Recipe.check` refuses entries that need it."""
        assert self.setup.samples
        return self.setup.samples

    @property
    def mode(self) -> Literal["max", "min"]:
        """Whether the metric is better when it is larger ("max") or smaller ("min")."""
        return "max" if self.task.maximize else "min"

    def loader(self, size: int | Literal["all"] | None = None, sampler: Any = None) -> Loader:
        """Return a Loader of the task's samples, in the order of `sampler`.

        Without a sampler, the order is that of the task's own batches. size: the number of samples
        in a batch; None: as many as in the task's own batches.
        """
        from steepest.strategies import Loader

        samples = self.samples
        options: Any = {"collate_fn": samples.collate} if samples.collate else {}
        return Loader(
            samples.data,
            min(samples.batch, len(samples)) if size is None else size,
            sampler=sampler or _TaskOrder(samples, self.seed),
            seed=self.seed,
            drop_last=samples.drop_last,
            **options,
        )


class _TaskOrder(Sampler[int]):
    """The order of the task's own batches, epoch by epoch."""

    def __init__(self, samples: Samples, seed: int) -> None:
        self._orders, self._size, self._epoch = samples.orders(seed), len(samples), -1

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration. Going back to an earlier epoch is not possible."""
        while self._epoch < epoch:
            self._order, self._epoch = next(self._orders), self._epoch + 1

    def __iter__(self) -> Iterator[int]:
        return iter(self._order)

    def __len__(self) -> int:
        return self._size


def over_batches(
    training: Training, batches: Iterator[tuple[Any, float]], spent: float = 0.0
) -> Callable[[int], float]:
    """Return a function that makes one training step on the next batch and returns the cost so far.

    The unit of the cost is one gradient of the task's usual batch. batches: pairs of a batch and
    its cost in this unit, which is its size / the usual size. spent: the cost before the first
    step.
    """
    setup, optimizer = training.setup, training.optimizer

    def advance(step: int) -> float:
        nonlocal spent
        batch, cost = next(batches)
        training.on_batch(batch)
        spent += cost
        optimizer.zero_grad()
        loss = setup.loss(setup.model, batch)
        check_finite(loss.item(), step)
        loss.backward()
        optimizer.step()
        return spent

    return advance


def counted(loader: Loader, usual: int) -> Iterator[tuple[Any, float]]:
    """Yield (batch, its size / `usual`) for the batches of the loader, repeated without end."""
    while True:
        for batch in loader:
            yield batch, loader.handed / usual


def check_finite(loss: float, step: int) -> None:
    """Raise Diverged if the training loss is not finite."""
    if not math.isfinite(loss):
        raise Diverged(f"training loss is {loss} at step {step}")


def endless(batches: Iterable[Any]) -> Iterator[Any]:
    """Yield the batches, repeated without end. Raises BadCall if a pass gives no batch."""
    total = 0
    while True:
        before = total
        for batch in batches:
            total += 1
            yield batch
        if total == before:
            ended = (
                f"they ended after {total}, and a second pass gave none" if total else "none given"
            )
            raise BadCall(
                f"training batches: {ended}; return a list or a DataLoader with batches in "
                f"it, or a generator without end"
            )
