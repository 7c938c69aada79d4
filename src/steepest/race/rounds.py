"""What a race runs next. Its units come in rounds, and a round ends with a look at the results.

A unit is one tuning of an entry and the fresh runs of the trial that it chose. An entry that is
decided at a look runs no further units; the baseline runs on while another entry does.
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
    """The round in which a race is."""

    entries: tuple[str, ...]
    """Entries of the current round; none once the race is complete."""
    units: range
    """Units of the current round."""
    standings: dict[str, Standing] = field(default_factory=dict)
    """Rival -> where it stands after its latest look; empty before the first, or without looks."""

    @property
    def complete(self) -> bool:
        """Whether nothing is left to run."""
        return not self.entries


def current(task: Task, plan: Plan, pairs: Pairs) -> Round:
    """The round in which the race of `plan` is with the finished runs `pairs`.

    task: with its worst metric, as it was stored. A look uses only the runs of its own and earlier
    rounds, so that it has the same result when later ones are known.
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
    """Where each of the entries stands at look `number`; means and ends are gains."""
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
    """The mean test metric of each unit whose fresh runs are all there; units with a failed run."""
    runs: dict[int, list[tuple[Trial, Result]]] = {}
    for trial, result in pairs:
        if trial.phase == FRESH and trial.entry == entry:
            runs.setdefault(trial.index // plan.repeats, []).append((trial, result))
    units = [runs[i] for i in sorted(runs) if len(runs[i]) == plan.repeats]
    means = [fmean(v for pair in unit if (v := tested(task, *pair)) is not None) for unit in units]
    return means, {i for i, unit in enumerate(units) if any(failed(task, *p) for p in unit)}
