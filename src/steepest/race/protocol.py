"""What is run in a race: pure functions from a request to trials, the same on every machine.

Equal tuning (Choi et al. 2019, arXiv:1910.05446; Schmidt et al. 2021, arXiv:2007.01547): every
entry gets the same number of trials of the same number of steps, however many knobs it has.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from steepest.errors import BadCall
from steepest.race import searching
from steepest.race.field import BASELINE
from steepest.race.schema import PlanRecord
from steepest.tasks import Task
from steepest.training.recipe import Recipe

TRIALS, SEEDS = 8, 10
LEAST_TRIALS, LEAST_SEEDS = 5, 5
"""What a verdict needs, and a budget keeps as long as it can: first the trials, then the seeds.

Four quasi-random points, one in each decade of the usual range, and the defaults: with fewer, what
is compared is whose range or whose defaults happen to suit the task."""
TUNING, FRESH, PILOT = "tuning", "fresh", "pilot"
KNOBS = 8
"""Coordinates of a quasi-random point; an entry uses as many as it has knobs."""
PLANNED_SHARE = 0.85
"""Share of a budget that is planned: the rest pays for the store, the report and slow moments."""
YEAR = 366 * 24 * 3600.0
"""Seconds that a budget can be meant to have."""


@dataclass(frozen=True)
class Plan:
    """Everything that decides the trials of a race, and how it was asked for."""

    task: str
    entries: tuple[str, ...]
    trials: int
    """Tuning trials of an entry for each of its fresh seeds."""
    seeds: int
    """Fresh seeds, each tuned anew."""
    steps: int
    seed: int
    request: dict[str, Any] = field(default_factory=dict)
    """The options that were given, as they were written."""
    over_budget: bool = False
    """The budget allows less than the least race, which is run all the same."""
    data: str | None = None
    """The folder that a task on the user's data reads."""
    baseline: str = ""
    """The entry that the others are compared to. Where it takes no part (empty, or left out by a
    `replace`) it is adamw, or the first entry if adamw takes no part; see `compared_to`."""
    search: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    """Entry -> knob -> [low, high], where the caller wants another range than the declared one."""
    enough: float | None = None
    """Seconds of a budget that would have bought the trials that a verdict needs."""

    def __post_init__(self) -> None:
        if self.baseline not in self.entries:
            usual = BASELINE if BASELINE in self.entries else self.entries[0]
            object.__setattr__(self, "baseline", usual)

    def compared_to(self, baseline: str | None) -> Plan:
        """This plan with another baseline, or as it is for None; BadCall if it takes no part."""
        if baseline is None:
            return self
        if baseline not in self.entries:
            raise BadCall(
                f"--baseline {baseline}: takes no part in the race: expected one of "
                f"{', '.join(self.entries)}"
            )
        return replace(self, baseline=baseline)

    def record(self) -> PlanRecord:
        """The plan as JSON."""
        fields = asdict(self)
        fields["entries"] = list(self.entries)
        return PlanRecord(**fields)

    @property
    def tunings(self) -> int:
        """Tuning trials of an entry in all."""
        return self.seeds * self.trials

    @property
    def runs(self) -> int:
        """Runs of the whole race."""
        return len(self.entries) * (self.tunings + self.seeds)

    def space(self, entry: str) -> dict[str, tuple[float, float]]:
        """Hyperparameter -> (low, high) of its log-uniform search range in this race."""
        mine = self.search.get(entry, {})
        return Recipe.read(entry).space | {knob: (low, high) for knob, (low, high) in mine.items()}

    def defaults(self, entry: str) -> dict[str, float]:
        """The optimizer's own value of every hyperparameter that is searched in this race."""
        known = Recipe.read(entry).defaults
        return known | {
            knob: searching.default(entry, knob)
            for knob in self.search.get(entry, {})
            if knob not in known
        }


@dataclass(frozen=True)
class Trial:
    """One training: `index` of `phase` of `entry`."""

    task: str
    phase: str
    entry: str
    index: int
    seed: int
    steps: int
    hyper: dict[str, float]
    data: str | None = None

    @property
    def key(self) -> tuple[str, str, int]:
        return self.phase, self.entry, self.index

    def __str__(self) -> str:
        return f"{self.phase} run {self.index} of {self.entry} on {self.task}, seed {self.seed}"


@dataclass
class Result:
    """What one training gave. Times in seconds of `time.perf_counter`, evaluation left out."""

    steps: list[int] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    """Training time until each evaluation."""
    test: float | None = None
    """Metric on test data; never computed while tuning."""
    diverged: str | None = None
    step_seconds: float = 0.0
    """Median of one call of `optimizer.step()`."""
    train_seconds: float = 0.0
    """Median of one whole training step."""
    state_bytes: int = 0
    parameters: int = 0
    measures: dict[str, float] = field(default_factory=dict)
    """What else the last report said."""
    tested: bool = True
    """`test` is of test data; else of validation data."""
    initial: str = ""
    """Hash of the parameters before the first step."""
    batches: list[str] = field(default_factory=list)
    """Hash of all batches so far at each evaluation; none of an entry or loop with its own."""
    draws: list[str] = field(default_factory=list)
    """Hash of the random states at each evaluation."""
    first: dict[str, str] = field(default_factory=dict)
    """What the first batch had where."""
    unread: str = ""
    """Why batches are unchecked though the entry trains on the task's own."""
    backends: list[str] = field(default_factory=list)
    """What made the steps."""
    wall_seconds: float = 0.0
    warm_seconds: float = 0.0
    """Untimed first step of an entry in a worker (compilation), before the training."""


def derive(seed: int, *words: object) -> int:
    """A seed of 31 bits that depends on `seed` and `words` alone."""
    digest = hashlib.sha256(repr((seed, *words)).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def points(seed: int, ranges: dict[str, tuple[float, float]], count: int) -> list:
    """The first `count` scrambled Sobol points, log-uniform over `ranges` (knob -> low, high).

    Point i depends on (seed, i) and the ranges alone, not on `count`. Knob k of every entry takes
    coordinate k of the same point: entries with the same range try the same learning rates, so
    that luck in drawing them is no difference between entries. So the point of trial i of an entry
    is a function of the study seed, the entry (its ranges) and i, whoever else takes part.
    """
    if not ranges or count < 1:
        return [{} for _ in range(count)]
    from scipy.stats import qmc  # 0.6 s that workers do not need

    sobol = qmc.Sobol(max(KNOBS, len(ranges)), scramble=True, rng=derive(seed, "points"))
    unit = sobol.random_base2(math.ceil(math.log2(count)))[:count, : len(ranges)]
    return [
        {
            knob: float(low * (high / low) ** u)
            for (knob, (low, high)), u in zip(ranges.items(), row, strict=True)
        }
        for row in unit
    ]


def tuning(plan: Plan) -> list[Trial]:
    """The tuning trials: `plan.trials` of every entry for every fresh seed, one seed after another.

    Of each tuning the first is the rule's own defaults, the others are quasi-random points of its
    own: luck in tuning then differs from seed to seed, and the intervals contain it. Trial k of
    tuning i has the same seed in every entry. Ordered by index, so that a machine that slows down
    slows every entry.
    """

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
        )
        for i in range(plan.seeds)
        for k, each in enumerate(zip(*(hypers(e, i) for e in plan.entries), strict=True))
        for entry, hyper in zip(plan.entries, each, strict=True)
    ]


def by_seed(plan: Plan, tuned: Iterable[tuple[Trial, Result]]) -> list[list[tuple[Trial, Result]]]:
    """The tuning trials of one entry, those for each fresh seed together."""
    found: list[list[tuple[Trial, Result]]] = [[] for _ in range(plan.seeds)]
    for pair in tuned:
        found[pair[0].index // plan.trials].append(pair)
    return found


def final(task: Task, result: Result) -> float:
    """The last validation metric, or the worst one if the run diverged; never worse than that."""
    return _worst(task) if result.diverged else clamped(task, result.validation[-1])


def tested(task: Task, trial: Trial, result: Result) -> float | None:
    """The metric that the verdict is about, the worst one if the run diverged; None in tuning."""
    if trial.phase != FRESH:
        return None
    if result.diverged or result.test is None:
        return _worst(task) if result.diverged else None
    return clamped(task, result.test)


def clamped(task: Task, metric: float) -> float:
    """`metric`, or the task's worst one where it is worse: no run counts for less than that."""
    if task.worst is None:
        return metric
    return max(metric, task.worst) if task.maximize else min(metric, task.worst)


def failed(task: Task, trial: Trial, result: Result) -> bool:
    """Whether a fresh run diverged, or ended no better than WORST.

    A worst that was measured is that of an untrained model, which may be a good one: who ends no
    better than it has not failed.
    """
    if result.diverged or task.measured is not None:
        return result.diverged is not None
    metric, bad = tested(task, trial, result), task.worst
    return metric is not None and bad is not None and not task.better(metric, bad)


def _worst(task: Task) -> float:
    if task.worst is None:
        raise ValueError(f"task {task.name} has no worst metric yet: a pilot run measures it")
    return task.worst


def best(task: Task, tuned: Iterable[tuple[Trial, Result]]) -> Trial:
    """The trial with the best last validation metric; diverged last, ties to the lower index."""

    def rank(pair: tuple[Trial, Result]) -> tuple[bool, float, int]:
        score = 0.0 if pair[1].diverged else pair[1].validation[-1]
        return pair[1].diverged is not None, -score if task.maximize else score, pair[0].index

    return min(tuned, key=rank)[0]


def fresh(plan: Plan, chosen: dict[str, list[Trial]]) -> list[Trial]:
    """The runs that are reported: on the same new seeds for every entry, each by its own choice."""
    return [
        Trial(
            plan.task,
            FRESH,
            e,
            i,
            derive(plan.seed, FRESH, i),
            plan.steps,
            chosen[e][i].hyper,
            plan.data,
        )
        for i in range(plan.seeds)
        for e in plan.entries
    ]


def runs_within(seconds: float, field: int, jobs: int, run: float, warm: float) -> int:
    """Runs of each of `field` entries that `seconds` of wall time allow; see `affordable`."""
    return int(jobs * (seconds - field * warm) / run / field)


def affordable(
    seconds: float, field: int, jobs: int, run: float, warm: float, seeds: int | None
) -> tuple[int, int]:
    """(trials for each seed, seeds) of an entry that fit into `seconds` of wall time.

    `field` entries on `jobs` workers, `run` seconds a training, `warm` seconds for the first
    step of an entry in a worker. Seeds stay at 10 where 5 trials for each then fit, never fall
    below 5, and are not touched if given.
    """
    runs = runs_within(seconds * PLANNED_SHARE, field, jobs, run, warm)
    if seeds is None:
        seeds = min(SEEDS, max(LEAST_SEEDS, runs // (LEAST_TRIALS + 1)))
    return max(1, runs // seeds - 1), seeds


def enough(field: int, jobs: int, run: float, warm: float, seeds: int | None) -> float:
    """Seconds of wall time that `affordable` turns into the least trials and seeds of a verdict."""
    runs = (LEAST_TRIALS + 1) * max(LEAST_SEEDS, seeds or 0)
    return ((runs + 1) * field * run / jobs + field * warm) / PLANNED_SHARE


def parse_budget(text: str) -> float:
    """Seconds in "60s", "5m", "1.5h" or "60"."""
    units = {"s": 1.0, "m": 60.0, "h": 3600.0}
    number, unit = (text[:-1], text[-1]) if text[-1:] in units else (text, "s")
    try:
        seconds = float(number) * units[unit]
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= YEAR:
        raise BadCall(
            f"--budget {text!r}: expected a wall time such as 60s, 5m or 1h, of a year at most"
        )
    return seconds
