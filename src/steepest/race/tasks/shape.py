"""What a task is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from steepest.race import BadCall


class TaskError(BadCall):
    """The user's task cannot be run; `trace` is the traceback in the user's own lines, or empty."""

    def __init__(self, line: str, trace: str = "") -> None:
        super().__init__(line)
        self.trace = trace


class Reporter(Protocol):
    """`report(step, validation=..., test=..., anything=...)`."""

    def __call__(self, step: int, **metrics: Any) -> None: ...


Make = Callable[[Any], torch.optim.Optimizer]
"""`make_optimizer(params_or_model)`: the candidate."""


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


@dataclass(frozen=True)
class Task:
    """A training problem and the metric that the verdict is about.

    It has `build`, and the race trains; or `train`, which is a whole training loop of its own.
    """

    name: str
    metric: str
    maximize: bool
    worst: float | None
    """The metric that a diverged run counts as, unless another run of the race was worse; None: to
    be measured by a pilot run."""
    target: float | None
    """Validation metric whose first reaching is timed; None: what three quarters of the baseline's
    fresh runs end at or pass."""
    steps: int
    every: int
    """Steps between two evaluations on validation data."""
    test_size: int
    """Cases of the test set; 0 where they are not known."""
    proportion: bool
    """The metric is a share of test cases: shown in %, with a binomial standard error."""
    build: Callable[[int], Setup] | None = None
    train: Callable[[Make, Reporter, int, int], object] | None = None
    """(make_optimizer, report, seed, steps)."""
    data_hash: Callable[[], str | None] = lambda: None
    test_data: bool = True
    """Whether there is test data; else the verdict is on validation data of fresh seeds."""
    source_hash: str | None = None
    """sha256 of the user's file."""
    file: str | None = None

    def better(self, a: float, b: float) -> bool:
        """Whether metric `a` is strictly better than `b`."""
        return a > b if self.maximize else a < b


_CODE = ("build", "train", "data_hash")


def facts(task: Task) -> dict[str, Any]:
    """What a store keeps of a task: all but its code, so that a report needs no user's file."""
    return {f.name: getattr(task, f.name) for f in fields(Task) if f.name not in _CODE}
