"""The classes that describe a task."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from types import new_class
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

CPU = torch.device("cpu")


class Reporter(Protocol):
    """A training loop calls `report(step, validation=..., test=..., anything=...)`.

    step: the number of optimizer steps made so far.
    """

    def __call__(self, step: int, **metrics: Any) -> None: ...


Make = Callable[[Any], torch.optim.Optimizer]
"""`make_optimizer(params_or_model)` returns a new optimizer of the entry that is trained."""


def two_points(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimizer has one set of weights for evaluation and another for training.

    Schedule-Free is an example. The optimizer's methods eval() and train() then switch the
    parameters between the two sets.
    """
    return all(callable(getattr(optimizer, name, None)) for name in ("eval", "train"))


def on_eval(optimizer: Any, call: Callable[[], None]) -> None:
    """Call a function after each eval() of the optimizer.

    The optimizer's class becomes a subclass, because Lightning's wrapper calls the class's methods.
    """
    cls = type(optimizer)

    def switch(self: Any) -> None:
        cls.eval(self)
        call()

    own = {"eval": switch, "__module__": cls.__module__, "__qualname__": cls.__qualname__}
    optimizer.__class__ = new_class(cls.__name__, (cls,), {}, lambda space: space.update(own))


def turn(optimizer: Any, to: Literal["eval", "train"]) -> None:
    """Switch the parameters to the weights for evaluation or for training (see `two_points`)."""
    if two_points(optimizer):
        getattr(optimizer, to)()


@contextmanager
def evaluating(*optimizers: torch.optim.Optimizer) -> Iterator[None]:
    """Use the weights for evaluation in the block, and the weights for training after it."""
    for optimizer in optimizers:
        turn(optimizer, "eval")
    yield
    for optimizer in optimizers:
        turn(optimizer, "train")


@dataclass(frozen=True)
class Samples:
    """The training data, from which samples can be chosen by index, and the task's batch size."""

    data: Any
    """A tuple of tensors of the same length, or, with `collate`, a map-style dataset."""
    batch: int
    collate: Callable[[list[Any]], Any] | None = None
    """Makes a batch from a list of the dataset's samples."""
    drop_last: bool = False
    """Leave out the last batch of an epoch if it is smaller than the others."""
    order: Callable[[], Sequence[int]] | None = None
    """Draws the order that an epoch of the task's own batches would have. If it is None, `orders`
    draws the order from its seed."""

    def __len__(self) -> int:
        return len(self.data[0] if self.collate is None else self.data)

    def rows(self, index: Tensor) -> Any:
        """The batch of the samples with these indices."""
        if self.collate is None:
            return tuple(t[index] for t in self.data)
        return self.collate([self.data[i] for i in index.tolist()])

    def orders(self, seed: int) -> Iterator[Sequence[int]]:
        """Yield the order of the samples for one epoch after another, without end."""
        generator = torch.Generator().manual_seed(seed)
        while True:
            if self.order:
                yield self.order()
            else:
                yield torch.randperm(len(self), generator=generator).tolist()

    def batched(self, seed: int) -> Iterator[Any]:
        """Yield batches of the task's size, without end. Each epoch is in a new order."""
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
    """(model, batch) -> the residuals. The loss is their sum of squares, times a constant."""
    samples: Samples | None = None
    """The samples that make up the batches. Some entries form other batches from them."""


@dataclass(frozen=True)
class Task:
    """A training problem and its metric.

    A task has either `build` or `train`. `build` makes a `Setup`, which `steepest.training` trains.
    `train` is the task's own training loop.
    """

    name: str
    metric: str
    maximize: bool
    worst: float | None
    """A run that diverges, or ends worse than this metric, gets this metric. If it is None, a pilot
    run before the race measures it."""
    target: float | None
    """A validation metric. The race measures the time until a run first reaches it. If it is None,
    the target is the value that three quarters of the fresh runs (those on new seeds, after tuning)
    reach or pass at their end. Diverged runs do not count."""
    steps: int
    """The number of optimizer steps of a run."""
    every: int
    """The number of steps between two evaluations on validation data."""
    test_size: int
    """The number of test cases; 0 if unknown."""
    proportion: bool
    """Whether the metric is a share of the test cases. Such a metric is shown in %, with its
    binomial standard error."""
    build: Callable[..., Setup] | None = None
    """(seed, **options) -> the setup. An entry may pass the options that `switches` names. If
    `build` has a parameter `device`, a torch.device, it puts the model and the batches on this
    device (see `devices`)."""
    train: Callable[[Make, Reporter, int, int], object] | None = None
    """(make_optimizer, report, seed, steps): runs the whole training. It may also take `device`."""
    data_hash: Callable[[], str | None] = lambda: None
    """() -> sha256 of the data; None if unknown."""
    test_data: bool = True
    """Whether there is test data. If not, the verdict is about validation data."""
    source_hash: str | None = None
    """sha256 of the user's file."""
    file: str | None = None
    """Path of the user's file."""
    measured: float | None = None
    """What a pilot run measured for `worst`, if the file has no WORST. Later runs may end worse."""
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
    """The fields that a race stores: all except code, so a report does not need the user's file."""
    return {f.name: getattr(task, f.name) for f in fields(Task) if f.name not in _CODE}
