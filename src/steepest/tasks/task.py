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
    """A training loop calls `report(step, validation=..., test=..., anything=...)`.

    step: the optimizer steps so far.
    """

    def __call__(self, step: int, **metrics: Any) -> None: ...


Make = Callable[[Any], torch.optim.Optimizer]
"""`make_optimizer(params_or_model)` returns a new optimizer, of the kind that is raced."""


def two_points(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the weights for evaluation differ from those for training, as in Schedule-Free.

    The eval() and train() of such an optimizer switch the parameters from one to the other.
    """
    return all(callable(getattr(optimizer, name, None)) for name in ("eval", "train"))


def turn(optimizer: Any, to: Literal["eval", "train"]) -> None:
    """Switch to the weights for evaluation or for training, if the optimizer has both."""
    if two_points(optimizer):
        getattr(optimizer, to)()


@contextmanager
def evaluating(*optimizers: torch.optim.Optimizer) -> Iterator[None]:
    """Switch to the weights for evaluation, and back to those for training at the end."""
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
    """Draws the order of an epoch in the way of the task's own batches. None: the seed draws it."""

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
    """A task for one seed. The seed decides only the initial weights and the order of the data."""

    model: nn.Module
    batches: Iterable[Any]
    """Training batches. Each epoch iterates over them again."""
    loss: Callable[[nn.Module, Any], Tensor]
    """(model, batch) -> scalar training loss."""
    evaluate: Callable[[nn.Module, str], float]
    """(model, "validation" or "test") -> the metric; nan if the model's output is not finite."""
    test_data: bool = True
    """Whether `evaluate` takes "test"."""
    residuals: Callable[[nn.Module, Any], Tensor] | None = None
    """(model, batch) -> the residuals. The loss is the sum of their squares, times a constant."""
    samples: Samples | None = None
    """The samples that the batches are made of, for entries that make their own batches."""


@dataclass(frozen=True)
class Task:
    """A training problem and its metric.

    It has either `build` or `train`. `build` makes a `Setup`, which `steepest.training` trains.
    `train` is a whole training loop.
    """

    name: str
    metric: str
    maximize: bool
    worst: float | None
    """A diverged run counts as this metric, and so does a run that ends worse. None: a pilot run,
    before the race, measures it."""
    target: float | None
    """A validation metric. The race measures the time until a run first reaches it. None: the
    value that three quarters of the fresh runs end at or pass. Diverged runs do not count."""
    steps: int
    """Optimizer steps of a run."""
    every: int
    """Steps between two evaluations on validation data."""
    test_size: int
    """Test cases; 0 if unknown."""
    proportion: bool
    """Whether the metric is a share of the test cases. Such a metric is shown in %, with its
    binomial standard error."""
    build: Callable[..., Setup] | None = None
    """(seed, **options) -> the setup. The options are those of `switches` that an entry uses."""
    train: Callable[[Make, Reporter, int, int], object] | None = None
    """(make_optimizer, report, seed, steps): runs the whole training."""
    data_hash: Callable[[], str | None] = lambda: None
    """() -> sha256 of the data; None if unknown."""
    test_data: bool = True
    """Whether there is test data. If not, the verdict is about validation data."""
    source_hash: str | None = None
    """sha256 of the user's file."""
    file: str | None = None
    """Path of the user's file."""
    measured: float | None = None
    """If `worst` is None: what a pilot run measured instead. A fresh run may end worse."""
    switches: tuple[str, ...] = ()
    """The options that `build` takes: "batchnorm" (True), "dropout" (its probability)."""

    @property
    def lost(self) -> float:
        """The infinity that is worse than any metric."""
        return -math.inf if self.maximize else math.inf

    def better(self, a: float, b: float) -> bool:
        """Whether metric `a` is strictly better than `b`."""
        return a > b if self.maximize else a < b


_CODE = ("build", "train", "data_hash")


def facts(task: Task) -> dict[str, Any]:
    """The fields that a race stores: all except code. So a report does not need the user's file."""
    return {f.name: getattr(task, f.name) for f in fields(Task) if f.name not in _CODE}
