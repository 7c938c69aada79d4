"""Computes the difference of every entry to the baseline from the fresh runs of a race."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from steepest.race.protocol import Plan
from steepest.race.rounds import Round
from steepest.race.schema import EntrySummary
from steepest.statistics.inference import ALPHA, Difference, compare, hedges, improvement, paired
from steepest.tasks import Task


def judge(
    task: Task, plan: Plan, entries: Mapping[str, EntrySummary], now: Round
) -> dict[str, Difference]:
    """The difference of every entry to the baseline. `entries`: summaries with all fresh runs."""
    judged = _in_looks(task, now) if plan.looks else _at_once(task, plan, entries)
    return {name: _within(task, difference) for name, difference in judged.items()}


def _at_once(task: Task, plan: Plan, entries: Mapping[str, EntrySummary]) -> dict[str, Difference]:
    """The difference of every entry to the baseline, in a race of a fixed number of seeds."""
    baseline = entries[plan.baseline]
    return compare(
        {
            name: paired(entry["units"], baseline["units"])
            for name, entry in entries.items()
            if name != plan.baseline
        },
        maximize=task.maximize,
        failed=[name for name, e in entries.items() if baseline["failed"] or e["failed"]],
    )


def _in_looks(task: Task, now: Round) -> dict[str, Difference]:
    """The difference of every entry to the baseline, at the look that closed the entry."""
    sign = 1 if task.maximize else -1
    judged = {}
    for name, at in now.standings.items():
        ends = [sign * end for end in (at.low, at.high) if end is not None]
        gains = np.array(at.differences)
        improved, improved_low, improved_high = improvement(gains)
        varied = not at.exact and at.low is not None
        judged[name] = Difference(
            n=at.units,
            mean=sign * at.mean,
            low=min(ends, default=None),
            high=max(ends, default=None),
            level=1 - ALPHA / len(now.standings),
            p=None,
            p_holm=None,
            claim=at.state == "told apart",
            exact=at.exact,
            effect=hedges(sign * gains) if varied else None,
            improved=improved,
            improved_low=improved_low,
            improved_high=improved_high,
            look=at.look,
            state=at.state,
            pairs=[sign * gain for gain in at.differences],
        )
    return judged


def _within(task: Task, d: Difference) -> Difference:
    """The difference; the interval of a difference of two shares is cut off at -1 and 1."""
    if not task.proportion or d.low is None or d.high is None:
        return d
    return replace(d, low=max(-1.0, d.low), high=min(1.0, d.high))
