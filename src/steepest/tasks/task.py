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
    """`report(step, validation=..., test=..., anything=...)`."""

    def __call__(self, step: int, **metrics: Any) -> None: ...


Make = Callable[[Any], torch.optim.Optimizer]
"""`make_optimizer(params_or_model)`: the candidate."""


def two_points(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the weights are used at another point than they are trained at: Schedule-Free's are.

    Then eval() goes to the one and train() to the other.
    """
    return all(callable(getattr(optimizer, name, None)) for name in ("eval", "train"))


def turn(optimizer: Any, to: Literal["eval", "train"]) -> None:
    """To the point of use, or back to that of training."""
    if two_points(optimizer):
        getattr(optimizer, to)()


@contextmanager
def evaluating(*optimizers: torch.optim.Optimizer) -> Iterator[None]:
    """The weights at the points that they are used at."""
    for optimizer in optimizers:
        turn(optimizer, "eval")
    yield
    for optimizer in optimizers:
        turn(optimizer, "train")


@dataclass(frozen=True)
class Samples:
    """Training data that hand out any samples, and the size of the task's usual batch."""

    data: Any
    """A tuple of tensors of one length, or a map-style dataset."""
    batch: int
    collate: Callable[[list[Any]], Any] | None = None
    """Makes a batch of a dataset's samples."""
    drop_last: bool = False
    """Leave out what remains of an epoch and is no whole batch."""
    order: Callable[[], Sequence[int]] | None = None
    """Draws an epoch's order as the task's own batches do; None: from the seed."""

    def __len__(self) -> int:
        return len(self.data[0] if self.collate is None else self.data)

    def rows(self, index: Tensor) -> Any:
        """The batch of these samples."""
        if self.collate is None:
            return tuple(t[index] for t in self.data)
        return self.collate([self.data[i] for i in index.tolist()])

    def orders(self, seed: int) -> Iterator[Sequence[int]]:
        """The order of each epoch, without end."""
        generator = torch.Generator().manual_seed(seed)
        while True:
            yield (
                self.order()
                if self.order
                else torch.randperm(len(self), generator=generator).tolist()
            )

    def batched(self, seed: int) -> Iterator[Any]:
        """Batches of the usual size, epoch after epoch in a new order, without end."""
        for order in self.orders(seed):
            for index in torch.tensor(order).split(self.batch):
                if len(index) == self.batch or not self.drop_last:
                    yield self.rows(index)


@dataclass(frozen=True)
class Setup:
    """One seed of a task. The seed decides initial weights and order of data, nothing else."""

    model: nn.Module
    batches: Iterable[Any]
    """Training batches; gone through again and again."""
    loss: Callable[[nn.Module, Any], Tensor]
    """(model, batch) -> scalar training loss."""
    evaluate: Callable[[nn.Module, str], float]
    """(model, "validation" or "test") -> the metric; nan if the model's output is not finite."""
    test_data: bool = True
    """Whether `evaluate` knows "test"."""
    residuals: Callable[[nn.Module, Any], Tensor] | None = None
    """(model, batch) -> what the loss is the sum of squares of, up to a factor."""
    samples: Samples | None = None
    """What the batches are made of, for entries that choose batches of their own."""


@dataclass(frozen=True)
class Task:
    """A training problem and the metric that the verdict is about.

    It has `build`, and the race trains; or `train`, which is a whole training loop of its own.
    """

    name: str
    metric: str
    maximize: bool
    worst: float | None
    """The metric that a diverged run counts as, and a run that ends worse than it; None: to be
    measured by a pilot run."""
    target: float | None
    """Validation metric whose first reaching is timed; None: what three quarters of all fresh runs
    end at or pass."""
    steps: int
    every: int
    """Steps between two evaluations on validation data."""
    test_size: int
    """Cases of the test set; 0 where they are not known."""
    proportion: bool
    """The metric is a share of test cases: shown in %, with a binomial standard error."""
    build: Callable[..., Setup] | None = None
    """(seed, and those of `switches` that an entry has)."""
    train: Callable[[Make, Reporter, int, int], object] | None = None
    """(make_optimizer, report, seed, steps)."""
    data_hash: Callable[[], str | None] = lambda: None
    test_data: bool = True
    """Whether there is test data; else the verdict is on validation data of fresh seeds."""
    source_hash: str | None = None
    """sha256 of the user's file."""
    file: str | None = None
    measured: float | None = None
    """`worst` as a pilot run has measured it where nobody says it: a fresh run may be worse."""
    switches: tuple[str, ...] = ()
    """What the model can be built with: "batchnorm" (True), "dropout" (its probability)."""

    @property
    def lost(self) -> float:
        """Infinity to the bad side."""
        return -math.inf if self.maximize else math.inf

    def better(self, a: float, b: float) -> bool:
        """Whether metric `a` is strictly better than `b`."""
        return a > b if self.maximize else a < b


_CODE = ("build", "train", "data_hash")


def facts(task: Task) -> dict[str, Any]:
    """What a store keeps of a task: all but its code, so that a report needs no user's file."""
    return {f.name: getattr(task, f.name) for f in fields(Task) if f.name not in _CODE}
