"""What a part of a recipe is: its facts, and the three places where it can act."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar

import torch
from torch.optim.lr_scheduler import LRScheduler

from steepest.definition import inside
from steepest.errors import BadCall
from steepest.tasks.user_file import silenced

if TYPE_CHECKING:
    from steepest.tasks.task import Setup, Task
    from steepest.training.steps import Training

NOTHING = "nothing"
Advance = Callable[[int], float]
"""Makes step number i (from 1); returns the gradients computed so far, in usual batches."""
Stop = Callable[[float, bool], bool]
"""(metric, whether the run ends here) -> whether training stops."""


@dataclass(frozen=True)
class Knob:
    """A number to be tuned, log-uniform from `low` to `high`; `domain`: all values it can have."""

    low: float
    default: float
    high: float
    domain: str = "(0, inf)"

    def allows(self, value: float) -> bool:
        return inside(self.domain, value)


Knobs = Mapping[str, Knob]


@dataclass
class Fitting:
    """One optimizer while the parts that act on it are attached."""

    entry: str
    optimizer: torch.optim.Optimizer
    steps: int
    """The optimizer will make so many."""
    hyper: Mapping[str, float]
    seed: int
    warmup: int = 0
    """Steps before the schedule of the learning rate begins."""
    schedule: LRScheduler | None = None


class Part:
    """A part of a recipe. A subclass states its facts and overrides the hooks that it needs."""

    name: ClassVar[str]
    kind: ClassVar[str]
    """An entry has at most one part of each kind."""
    about: ClassVar[str]
    source: ClassVar[str]
    knobs: ClassVar[Knobs] = {}
    """What is tuned in addition to the optimizer's own hyperparameters."""
    needs: ClassVar[str] = "the race's loop"
    """What a task has to offer, as the listing says it."""
    needs_rate: ClassVar[bool] = False
    """Reads or sets the optimizer's learning rate."""
    conflicts: ClassVar[tuple[str, ...]] = ()
    """Parts and kinds that cannot stand beside it, because it ..."""
    why: ClassVar[str] = ""
    lead: ClassVar[float] = 0.0
    """Share of the steps before the schedule of the learning rate begins."""
    switches: ClassVar[bool] = False
    """Changes the model."""
    own_batches: ClassVar[bool] = False
    """Chooses the size or the order of the batches."""

    @property
    def any_loop(self) -> bool:
        """Whether it acts at the optimizer's step only, and so in a task's own loop too."""
        return self.needs == NOTHING

    def value(self, hyper: Mapping[str, float], knob: str) -> float:
        return hyper[f"{self.name}.{knob}"]

    def check(self, entry: str, task: Task) -> None:
        """BadCall if the task does not offer what the part needs."""

    def model_options(self, hyper: Mapping[str, float]) -> dict[str, float]:
        """What `task.build` is given in addition to the seed."""
        return {}

    def on_optimizer(self, fitting: Fitting) -> None:
        """Attach to the optimizer. The last part of an entry comes first."""

    def on_batches(self, training: Training) -> Advance | None:
        """Take the place of the task's own batches."""

    def on_evaluation(self, training: Training) -> Stop | None:
        """Act on each evaluation."""


@lru_cache(maxsize=1)
def first_setup(task: Task) -> Setup:
    """The task for one seed; what it offers is the same for all."""
    assert task.build
    with silenced() if task.file else nullcontext():  # the pilot run shows what it prints
        return task.build(0)


def check_samples(entry: str, who: str, task: Task) -> Setup:
    """The task's setup; BadCall if it has batches only."""
    setup = first_setup(task)
    if setup.samples is None:
        raise BadCall(
            f"entry {entry!r}: {task.name} gives batches, and {who} needs samples: expected a task "
            f"whose batches are a DataLoader that goes through all of its dataset"
        )
    return setup
