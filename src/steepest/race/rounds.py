"""What a race runs next. Its units come in rounds, and a round ends with a look at the results.

A unit is one tuning of an entry and the fresh runs of its best trial. An entry that is decided at a
look runs no further units; the baseline runs further units while another entry does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean

from steepest.race.outcomes import settle
from steepest.race.protocol import FRESH, Plan, Result, Trial
from steepest.race.scores import failed, tested
from steepest.statistics.inference import paired
from steepest.statistics.looks import Standing, at_look
from steepest.tasks import Task

Pairs = Sequence[tuple[Trial, Result]]


@dataclass(frozen=True)
class Round:
    """The current round of a race."""

    entries: tuple[str, ...]
    """Entries of the current round; empty once the race is complete."""
    units: range
    """Indices of the units of the current round."""
    standings: dict[str, Standing] = field(default_factory=dict)
    """Entry -> its standing after its latest look; empty before the first look or without looks."""

    @property
    def complete(self) -> bool:
        """Whether nothing is left to run."""
        return not self.entries


def current(task: Task, plan: Plan, pairs: Pairs) -> Round:
    """The current round of the race of `plan`; `pairs`: its finished runs.

    task: the stored task, which has a worst metric. A look uses only the runs of its own and
    earlier rounds, so that runs of later rounds do not change its result.
    """
    finished = {trial.key for trial, _ in pairs}
    entries, begin, standings = plan.entries, 0, {}
    for number, units in enumerate(plan.rounds, 1):
        now = Round(entries, range(begin, units), standings)
        if any(key not in finished for e in entries for key in plan.fresh_keys(e, now.units)):
            return now
        if plan.looks:
            standings = standings | _look(task, plan, pairs, entries, number)
            rivals = [e for e in entries if e in standings and standings[e].state == "open"]
            entries = tuple(e for e in plan.entries if e in rivals or e == plan.baseline)
            if not rivals:
                break
        begin = units
    return Round((), range(0), standings)


def _look(
    task: Task, plan: Plan, pairs: Pairs, entries: Sequence[str], number: int
) -> dict[str, Standing]:
    """The standing of each entry at look `number`; its mean and interval are gains."""
    end = plan.looks[number - 1] * plan.repeats
    known = [p for p in pairs if p[0].phase == FRESH and p[0].index < end]
    task, known = settle(task, plan, known)
    baseline, baseline_failed = unit_means(task, plan, known, plan.baseline)
    standings = {}
    for entry in entries:
        if entry != plan.baseline:
            means, failures = unit_means(task, plan, known, entry)
            gains = paired(means, baseline) if task.maximize else paired(baseline, means)
            standings[entry] = at_look(
                gains,
                number,
                len(plan.entries) - 1,
                plan.looks,
                failures | baseline_failed,
                plan.margin,
            )
    return standings


def unit_means(task: Task, plan: Plan, pairs: Pairs, entry: str) -> tuple[list[float], set[int]]:
    """(mean test metric of each unit with all fresh runs, indices of units with a failed run)."""
    runs: dict[int, list[tuple[Trial, Result]]] = {}
    for trial, result in pairs:
        if trial.phase == FRESH and trial.entry == entry:
            runs.setdefault(trial.index // plan.repeats, []).append((trial, result))
    units = [runs[i] for i in sorted(runs) if len(runs[i]) == plan.repeats]
    means = [fmean(v for pair in unit if (v := tested(task, *pair)) is not None) for unit in units]
    return means, {i for i, unit in enumerate(units) if any(failed(task, *p) for p in unit)}
