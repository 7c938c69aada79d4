"""What a task is made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn


class Reporter(Protocol):
    """`report(step, validation=..., test=..., anything=...)`, after `step` optimizer steps."""

    def __call__(self, step: int, **metrics: Any) -> None: ...


Make = Callable[[Any], torch.optim.Optimizer]
"""`make_optimizer(params_or_model)`: a new optimizer, the one that is raced."""


def two_points(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the weights for evaluation differ from those for training, as in Schedule-Free.

    Such an optimizer switches the parameters by eval() and train().
    """
    return all(callable(getattr(optimizer, name, None)) for name in ("eval", "train"))


def turn(optimizer: Any, to: Literal["eval", "train"]) -> None:
    """Switch the parameters to the weights for evaluation or for training."""
    if two_points(optimizer):
        getattr(optimizer, to)()


@contextmanager
def evaluating(*optimizers: torch.optim.Optimizer) -> Iterator[None]:
    """Switch to the weights for evaluation, and back at the end."""
    for optimizer in optimizers:
        turn(optimizer, "eval")
    yield
    for optimizer in optimizers:
        turn(optimizer, "train")


@dataclass(frozen=True)
class Samples:
    """Training data from which any samples can be taken, and the task's batch size."""

    data: Any
    """A tuple of tensors of the same length, or, with `collate`, a map-style dataset."""
    batch: int
    collate: Callable[[list[Any]], Any] | None = None
    """Makes a batch from a list of the dataset's samples."""
    drop_last: bool = False
    """Leave out the last batch of an epoch if it is smaller than the others."""
    order: Callable[[], Sequence[int]] | None = None
    """Draws the order of an epoch as the task's own batches do; None: drawn from the seed."""

    def __len__(self) -> int:
        return len(self.data[0] if self.collate is None else self.data)

    def rows(self, index: Tensor) -> Any:
        """The batch of the samples with these indices."""
        if self.collate is None:
            return tuple(t[index] for t in self.data)
        return self.collate([self.data[i] for i in index.tolist()])

    def orders(self, seed: int) -> Iterator[Sequence[int]]:
        """The order of the samples in each epoch, without end."""
        generator = torch.Generator().manual_seed(seed)
        while True:
            if self.order:
                yield self.order()
            else:
                yield torch.randperm(len(self), generator=generator).tolist()

    def batched(self, seed: int) -> Iterator[Any]:
        """Batches of the task's size, without end; each epoch is in a new order."""
        for order in self.orders(seed):
            for index in torch.tensor(order).split(self.batch):
                if len(index) == self.batch or not self.drop_last:
                    yield self.rows(index)


@dataclass(frozen=True)
class Setup:
    """A task for one seed, which decides the initial weights and the order of the data only."""

    model: nn.Module
    batches: Iterable[Any]
    """Training batches; iterated again after each epoch."""
    loss: Callable[[nn.Module, Any], Tensor]
    """(model, batch) -> scalar training loss."""
    evaluate: Callable[[nn.Module, str], float]
    """(model, "validation" or "test") -> the metric; nan if the model's output is not finite."""
    test_data: bool = True
    """Whether `evaluate` takes "test"."""
    residuals: Callable[[nn.Module, Any], Tensor] | None = None
    """(model, batch) -> the residuals: the loss is their sum of squares, up to a factor."""
    samples: Samples | None = None
    """The samples that the batches are made of, for entries that make their own batches."""


@dataclass(frozen=True)
class Task:
    """A training problem and its metric.

    It has either `build`, whose model `steepest.training` trains, or `train`, a training loop of
    its own.
    """

    name: str
    metric: str
    maximize: bool
    worst: float | None
    """The metric that a diverged run counts as, and any run that ends worse; None: a pilot run
    measures it."""
    target: float | None
    """A validation metric: the time until it is first reached is measured. None: what three
    quarters of the fresh runs that did not diverge end at or pass."""
    steps: int
    """Optimizer steps of a run."""
    every: int
    """Steps between two evaluations on validation data."""
    test_size: int
    """Test cases; 0 if unknown."""
    proportion: bool
    """Whether the metric is a share of the test cases: it is shown in %, with its binomial
    standard error."""
    build: Callable[..., Setup] | None = None
    """(seed, **those of `switches` that an entry has)."""
    train: Callable[[Make, Reporter, int, int], object] | None = None
    """(make_optimizer, report, seed, steps)."""
    data_hash: Callable[[], str | None] = lambda: None
    """() -> sha256 of the data; None if unknown."""
    test_data: bool = True
    """Whether there is test data; without, the verdict is about validation data."""
    source_hash: str | None = None
    """sha256 of the user's file."""
    file: str | None = None
    """Path of the user's file."""
    measured: float | None = None
    """`worst` as a pilot run measured it, if the task leaves it open; a fresh run may end worse."""
    switches: tuple[str, ...] = ()
    """Options of `build`: "batchnorm" (True), "dropout" (its probability)."""

    @property
    def lost(self) -> float:
        """The infinity that is worse than any metric."""
        return -math.inf if self.maximize else math.inf

    def better(self, a: float, b: float) -> bool:
        """Whether metric `a` is strictly better than `b`."""
        return a > b if self.maximize else a < b


_CODE = ("build", "train", "data_hash")


def facts(task: Task) -> dict[str, Any]:
    """The fields that a store keeps: all but the code, so that a report needs no user's file."""
    return {f.name: getattr(task, f.name) for f in fields(Task) if f.name not in _CODE}
