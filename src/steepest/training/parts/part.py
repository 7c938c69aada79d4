"""The base class of a recipe's parts: the facts of a part, and the hooks by which it acts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch.optim.lr_scheduler import LRScheduler

from steepest.definition import inside
from steepest.errors import BadCall
from steepest.tasks.user_file import silenced

if TYPE_CHECKING:
    from steepest.tasks.task import Setup, Task
    from steepest.training.steps import Training

NOTHING = "nothing"
CLOSURE = "step(closure)"
"""The part works in a loop of the task's own only if the loop calls step(closure)."""
Advance = Callable[[int], float]
"""Makes step number i, counted from 1. Returns the cost so far; its unit is one gradient of the
task's usual batch."""
Stop = Callable[[float, bool], bool]
"""(metric, whether the run ends here) -> whether training stops."""


@dataclass(frozen=True)
class Knob:
    """A number that is tuned. Its search range is log-uniform from `low` to `high`.

    domain: the interval of all values that the number may have.
    """

    low: float
    default: float
    high: float
    domain: str = "(0, inf)"

    def allows(self, value: float) -> bool:
        return inside(self.domain, value)


Knobs = Mapping[str, Knob]


@dataclass
class Fitting:
    """An optimizer to which the parts of an entry are being attached."""

    entry: str
    optimizer: torch.optim.Optimizer
    steps: int
    """How many steps the optimizer will make."""
    hyper: Mapping[str, float]
    seed: int
    warmup: int = 0
    """The number of warm-up steps, before the schedule of the learning rate begins."""
    schedule: LRScheduler | None = None


@dataclass(frozen=True)
class Script:
    """What `Part.code` has to know to write a part as code."""

    steps: int
    """How many steps the run has."""
    hyper: Mapping[str, float]
    mode: Literal["max", "min"]
    """Whether the metric is better when it is larger ("max") or smaller ("min")."""
    warmup: int = 0
    """The number of warm-up steps."""
    scheduled: bool = False
    """Whether a schedule of the learning rate follows the warm-up."""


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
    """What a task must offer, as `steepest list --parts --json` shows it."""
    needs_rate: ClassVar[bool] = False
    """Whether the part reads or sets the optimizer's learning rate."""
    conflicts: ClassVar[tuple[str, ...]] = ()
    """Names and kinds of other parts that cannot be in the same entry as this part."""
    why: ClassVar[str] = ""
    """The reason for `conflicts`, a verb phrase such as "has a warm-up"."""
    lead: ClassVar[float] = 0.0
    """The share of the steps that the part takes before the learning rate schedule begins."""
    switches: ClassVar[bool] = False
    """Whether the part changes the model."""
    own_batches: ClassVar[bool] = False
    """Whether the part chooses the size or the order of the batches."""
    own_gradients: ClassVar[bool] = False
    """Whether the part computes the gradients of a step itself, without a closure or a graph."""
    closure: ClassVar[bool] = False
    """Whether the part needs a closure in each step, which it calls more than once."""

    @property
    def any_loop(self) -> bool:
        """Whether the part acts only in the optimizer's step, and so works in any training loop."""
        return self.needs in (NOTHING, CLOSURE)

    @property
    def wraps(self) -> bool:
        """Whether the part is an optimizer around the entry's optimizer."""
        return type(self).around is not Part.around

    def value(self, hyper: Mapping[str, float], knob: str) -> float:
        """The value of a knob; its default if the race does not tune the knob."""
        return hyper.get(f"{self.name}.{knob}", self.knobs[knob].default)

    def check(self, entry: str, task: Task) -> None:
        """Raise BadCall if the task does not offer what the part needs."""

    def model_options(self, hyper: Mapping[str, float]) -> dict[str, float]:
        """The options that `task.build` gets in addition to the seed."""
        return {}

    def around(
        self, optimizer: torch.optim.Optimizer, hyper: Mapping[str, float], entry: str
    ) -> torch.optim.Optimizer:
        """Return the optimizer, or another optimizer around it.

        The first part of an entry is the innermost. entry: the entry's name, for errors.
        """
        return optimizer

    def on_optimizer(self, fitting: Fitting) -> None:
        """Attach the part to the optimizer. The last part of an entry is attached first."""

    def on_batches(self, training: Training) -> Advance | None:
        """Return a function that replaces the usual step on the task's own batches, or None."""

    def on_evaluation(self, training: Training) -> Stop | None:
        """Return a function that is called at each evaluation, or None."""

    def code(self, script: Script) -> list[str]:
        """The part as lines of Python to paste after `optimizer = ...`.

        The lines may use the names `model`, `optimizer`, `dataset`, `batch_size` and `loss`, a
        function of a model and a batch. A schedule of the learning rate is called `scheduler`.
        A comment says what does not fit into lines of code.
        """
        return [f"# +{self.name}: {self.about} ({self.source})"]


@lru_cache(maxsize=1)
def first_setup(task: Task) -> Setup:
    """The task's setup for seed 0. It shows what the task offers, for any seed."""
    assert task.build
    with silenced() if task.file else nullcontext():  # the pilot run shows what the task prints
        return task.build(0)


def check_samples(entry: str, who: str, task: Task) -> Setup:
    """Return the task's setup. Raises BadCall if the setup has batches but no samples."""
    setup = first_setup(task)
    if setup.samples is None:
        raise BadCall(
            f"entry {entry!r}: {task.name} gives only batches, but {who} needs samples: expected a "
            f"task whose batches are a DataLoader that goes through all of its dataset"
        )
    return setup
