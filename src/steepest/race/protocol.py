"""What a race runs. Pure functions make the trials of a plan, the same on every machine.

Tuning is equal (Choi et al. 2019, arXiv:1910.05446; Schmidt et al. 2021, arXiv:2007.01547): every
entry gets the same number of trials of the same number of steps, however many knobs it has. A knob
is a hyperparameter that is tuned.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import import_module
from typing import Any
from warnings import warn

from steepest.errors import BadCall
from steepest.race import searching
from steepest.race.field import BASELINE
from steepest.race.schema import PlanRecord
from steepest.training.recipe import Recipe

TRIALS, SEEDS = 8, 10
LEAST_TRIALS, LEAST_SEEDS = 5, 5
"""The least trials and seeds that a verdict needs. If a budget is small, the number of seeds is
lowered to LEAST_SEEDS first, and only then the number of trials.

Five trials are the defaults and four quasi-random points, one in each decade of the usual range.
With fewer trials, a race mostly shows whose range or whose defaults happen to suit the task."""
REPEATS = 3
"""Fresh runs of a unit in a race with looks."""
RUNGS = ((0.25, 0.5), (0.5, 0.25))
"""(share of the steps, share of the trials of a tuning that go on after these steps), ..."""
LEAST_HALVED = 4
"""A tuning of fewer trials is not halved."""
TUNING, FRESH, PILOT = "tuning", "fresh", "pilot"
KNOBS = 8
"""Coordinates of a quasi-random point; an entry uses one coordinate for each of its knobs."""


@dataclass(frozen=True)
class Plan:
    """Everything that decides the trials of a race, and the request it was made from."""

    task: str
    entries: tuple[str, ...]
    trials: int
    """Tuning trials of an entry for each of its fresh seeds."""
    seeds: int
    """Number of units of an entry, each with its own fresh seeds and tuning; in a race with looks,
    the largest number."""
    steps: int
    """Optimizer steps of a run."""
    seed: int
    """The study seed; all other seeds are derived from it."""
    request: dict[str, Any] = field(default_factory=dict)
    """Option -> value, as the caller gave it."""
    over_budget: bool = False
    """Whether the budget is too small for the smallest race; that race is then run anyway."""
    data: str | None = None
    """Folder of the user's files that the task reads; None if no folder was given."""
    baseline: str = ""
    """The entry that the others are compared to. If the given name is no entry (it is empty, or
    `replace` changed the entries), the baseline becomes adamw, or the first entry if adamw is not
    in the race. `compared_to` raises an error instead."""
    search: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    """Entry -> knob -> [low, high], for the ranges that the caller gave."""
    enough: float | None = None
    """Budget in seconds that would be enough for a verdict; None without a budget, or if there was
    enough tuning."""
    looks: tuple[int, ...] = ()
    """Number of units of an entry at each look; empty in a race of a fixed number of seeds. A unit
    is one tuning of an entry and the fresh runs of its best trial."""
    repeats: int = 1
    """Fresh runs of a unit. The result of the unit is their mean."""
    halving: bool = False
    """Whether tuning trials are halted at `rungs`."""
    together: int = 0
    """Number of units of an entry whose tunings are trained at once; 0: one trial at a time."""
    margin: float | None = None
    """The smallest gain that would matter, in the metric's unit; None if none was given."""
    imported: bool = False
    """Whether the runs were made elsewhere and read from the file `task`. Nothing is known of
    tuning then: `trials` and `steps` are 0, and an entry may have any name."""
    spaces: str | None = None
    """Name of the search space that takes the place of the declared ranges."""
    device: str | None = None
    """Device of the task's model and data, as the caller gave it; None if none was given."""

    def __post_init__(self) -> None:
        for name in ("entries", "looks"):  # lists in JSON
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.baseline not in self.entries:
            usual = BASELINE if BASELINE in self.entries else self.entries[0]
            object.__setattr__(self, "baseline", usual)

    def compared_to(self, baseline: str | None) -> Plan:
        """The plan with this baseline; the same plan for None. BadCall unless it is an entry."""
        if baseline is None:
            return self
        if baseline not in self.entries:
            raise BadCall(
                f"--baseline {baseline} is not an entry of the race: expected one of "
                f"{', '.join(self.entries)}"
            )
        return replace(self, baseline=baseline)

    def record(self) -> PlanRecord:
        """The plan as JSON."""
        fields = asdict(self)
        fields["entries"], fields["looks"] = list(self.entries), list(self.looks)
        return PlanRecord(**fields)

    @property
    def rounds(self) -> tuple[int, ...]:
        """Number of units of an open entry at the end of each round; without looks, one round."""
        return self.looks or (self.seeds,)

    @property
    def rungs(self) -> tuple[tuple[int, int], ...]:
        """(steps, trials) of each rung: after so many steps, so many trials of a tuning go on."""
        if not self.halving or self.trials < LEAST_HALVED:
            return ()
        return tuple(
            (math.ceil(at * self.steps), math.ceil(share * self.trials)) for at, share in RUNGS
        )

    @property
    def stacked(self) -> tuple[str, ...]:
        """The entries whose tunings are trained at once; empty without halving or on a `device`."""
        if not self.together or not self.rungs or self.device:
            return ()
        return tuple(entry for entry in self.entries if Recipe.read(entry).stackable)

    @property
    def tunings(self) -> int:
        """Number of tuning trials of an entry; with looks, the largest number."""
        return self.seeds * self.trials

    @property
    def unit_runs(self) -> int:
        """Number of runs of a unit, including runs that are halted."""
        return self.trials + self.repeats

    @property
    def unit_cost(self) -> float:
        """Cost of a unit in full runs, if trials are halted at the rungs and none diverges."""
        return self.tuning_cost() + self.repeats

    def tuning_cost(self, reports: Sequence[int] = (), *, repeated: bool = False) -> float:
        """Cost of a tuning in full runs, if no trial diverges.

        reports: steps at which a run reports, since a trial is halted at a report; default: every
        step. repeated: whether a trial starts again from step 0 after each rung.
        """
        cost, going, before = 0.0, self.trials, 0
        for rung, left in (*self.rungs, (self.steps, 0)):
            at = next((step for step in reports if step >= rung), self.steps if reports else rung)
            cost += going * (at - (0 if repeated else before)) / self.steps
            going, before = left, at
        return cost

    @property
    def runs(self) -> int:
        """Number of runs of the race; with looks, the largest number."""
        return len(self.entries) * self.seeds * self.unit_runs

    def fresh_keys(self, entry: str, units: Iterable[int]) -> list[tuple[str, str, int]]:
        """Keys of the fresh runs of `units`."""
        return [(FRESH, entry, i * self.repeats + k) for i in units for k in range(self.repeats)]

    def space(self, entry: str) -> dict[str, tuple[float, float]]:
        """Hyperparameter -> (low, high) of its log-uniform search range in this race."""
        return searching.space(entry, self.spaces, self.search)

    def defaults(self, entry: str) -> dict[str, float]:
        """The optimizer's default of every hyperparameter that is searched in this race."""
        return searching.defaults(entry, self.space(entry))


@dataclass(frozen=True)
class Trial:
    """One training run: run number `index` of an entry in a phase."""

    task: str
    phase: str
    entry: str
    index: int
    seed: int
    steps: int
    hyper: dict[str, float]
    data: str | None = None
    device: str | None = None

    @property
    def key(self) -> tuple[str, str, int]:
        return self.phase, self.entry, self.index

    @property
    def trials(self) -> tuple[Trial, ...]:
        """The trial in a tuple, so that workers can treat a trial like a `Tuning`."""
        return (self,)

    def __str__(self) -> str:
        return f"{self.phase} run {self.index} of {self.entry} on {self.task}, seed {self.seed}"


@dataclass(frozen=True)
class Tuning:
    """What a worker trains in one process: all trials of one tuning by halving, or one fresh run.

    With `each`: all trials of several tunings, whose gradients are computed together.
    """

    trials: tuple[Trial, ...]
    rungs: tuple[tuple[int, int], ...]
    """(steps, trials) of each rung, as in `Plan.rungs`."""
    each: int = 0
    """Number of trials of each tuning, if tunings are trained at once; 0: one trial at a time."""

    @property
    def steps(self) -> tuple[int, ...]:
        """Steps of each rung."""
        return tuple(at for at, _ in self.rungs)

    @property
    def key(self) -> tuple[str, str, int]:
        return self.trials[0].key

    def __str__(self) -> str:
        first, *others = self.trials
        return f"tuning of {len(self.trials)} trials: {first}, ..." if others else str(first)


@dataclass
class Result:
    """The outcome of one run. Times are in seconds; only `wall_seconds` includes evaluations."""

    steps: list[int] = field(default_factory=list)
    """Number of optimizer steps at each evaluation."""
    validation: list[float] = field(default_factory=list)
    """Validation metric at each evaluation."""
    seconds: list[float] = field(default_factory=list)
    """Training time up to each evaluation."""
    test: float | None = None
    """Metric on test data; None in tuning."""
    diverged: str | None = None
    """Why the run diverged; None if it did not."""
    step_seconds: float = 0.0
    """Median time of one call of `optimizer.step()`."""
    train_seconds: float = 0.0
    """Median time of one training step, including `optimizer.step()`."""
    state_bytes: int = 0
    parameters: int = 0
    """How many numbers the optimizer updates."""
    measures: dict[str, float] = field(default_factory=dict)
    """The other numbers of the last report: name -> value."""
    tested: bool = True
    """Whether `test` was measured on test data; if not, on validation data."""
    initial: str = ""
    """Hash of the parameters before the first step."""
    batches: list[str] = field(default_factory=list)
    """For each evaluation, the hash of all batches before it; empty if the entry or the task's own
    loop chooses the batches."""
    draws: list[str] = field(default_factory=list)
    """For each evaluation, the hash of the random states before it."""
    first: dict[str, str] = field(default_factory=dict)
    """Path in the first batch -> text that identifies the object at this path, with its hash."""
    unread: str = ""
    """Why the batches could not be hashed; empty if they could."""
    backends: list[str] = field(default_factory=list)
    """Names of the backends that made the steps."""
    wall_seconds: float = 0.0
    """Time of the whole run, including evaluations."""
    warm_seconds: float = 0.0
    """Time of the entry's first step in a worker (compilation), which is made before the run."""
    halted: bool = False
    """Whether the run was ended at a rung of its tuning, since other trials were better there."""
    calls: int = 0
    """Number of steps that the optimizer made; 0 if this is not known."""


def derive(seed: int, *labels: object) -> int:
    """A seed of 31 bits that depends only on `seed` and `labels`."""
    digest = hashlib.sha256(repr((seed, *labels)).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def points(seed: int, ranges: dict[str, tuple[float, float]], count: int) -> list:
    """The first `count` scrambled Sobol points, log-uniform over `ranges` (knob -> low, high).

    Point i depends only on the seed, i and the ranges; `count` and the other entries do not matter.
    Knob k of every entry takes coordinate k of the same point. So entries with the same range try
    the same learning rates, and luck in drawing the points is the same for all of them.
    """
    if not ranges or count < 1:
        return [{} for _ in range(count)]
    from scipy.stats import qmc  # here, since it takes 0.6 s and workers do not need it

    sobol = qmc.Sobol(max(KNOBS, len(ranges)), scramble=True, rng=derive(seed, "points"))
    unit = sobol.random_base2(math.ceil(math.log2(count)))[:count, : len(ranges)]
    return [
        {
            knob: float(low * (high / low) ** u)
            for (knob, (low, high)), u in zip(ranges.items(), row, strict=True)
        }
        for row in unit
    ]


def tuning(
    plan: Plan, entries: Sequence[str] | None = None, units: Iterable[int] | None = None
) -> list[Trial]:
    """The tuning trials of `entries` for `units`; default: all. One unit comes after another.

    The first trial of a tuning has the optimizer's defaults, the others quasi-random points that
    no other tuning has. So luck in tuning differs from unit to unit, and the intervals include it.
    Trial k of tuning i has the same seed in every entry. The entries take turns, so that a slow
    phase of the machine affects all of them.
    """
    entries = plan.entries if entries is None else entries
    units = range(plan.seeds) if units is None else units

    def hypers(entry: str, i: int) -> list[dict[str, float]]:
        drawn = points(derive(plan.seed, TUNING, i), plan.space(entry), plan.trials - 1)
        return [plan.defaults(entry), *drawn]

    return [
        Trial(
            plan.task,
            TUNING,
            entry,
            i * plan.trials + k,
            derive(plan.seed, TUNING, i, k),
            plan.steps,
            hyper,
            plan.data,
            plan.device,
        )
        for i in units
        for k, points_k in enumerate(zip(*(hypers(e, i) for e in entries), strict=True))
        for entry, hyper in zip(entries, points_k, strict=True)
    ]


def by_seed(plan: Plan, tuned: Iterable[tuple[Trial, Result]]) -> list[list[tuple[Trial, Result]]]:
    """The tuning trials of one entry, grouped by the unit that they are for."""
    groups: list[list[tuple[Trial, Result]]] = [[] for _ in range(plan.seeds)]
    for pair in tuned:
        groups[pair[0].index // plan.trials].append(pair)
    return groups


def fresh(
    plan: Plan,
    chosen: dict[str, list[Trial]],
    entries: Sequence[str] | None = None,
    units: Iterable[int] | None = None,
) -> list[Trial]:
    """The fresh runs, with the same seeds for every entry.

    chosen: entry -> the chosen trial of each unit, from unit 0 on, whose hyperparameters the fresh
    runs of this unit have. entries, units: default: all.
    """
    return [
        Trial(
            plan.task,
            FRESH,
            entry,
            i * plan.repeats + k,
            derive(plan.seed, FRESH, *((i,) if plan.repeats == 1 else (i, k))),
            plan.steps,
            chosen[entry][i].hyper,
            plan.data,
            plan.device,
        )
        for i in (range(plan.seeds) if units is None else units)
        for k in range(plan.repeats)
        for entry in (plan.entries if entries is None else entries)
    ]


def __getattr__(name: str) -> Any:
    """Old names, which the next release removes."""
    if name in ("best", "clamped", "failed", "final", "tested"):
        new = f"steepest.race.scores.{name}"
        warn(f"steepest.race.protocol.{name} is now {new}", DeprecationWarning, stacklevel=2)
        return getattr(import_module("steepest.race.scores"), name)
    raise AttributeError(f"module 'steepest.race.protocol' has no attribute {name!r}")
