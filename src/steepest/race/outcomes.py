"""What is known only after the runs: which runs blew up, the worst metric, the target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from steepest.race import scores
from steepest.race.protocol import FRESH, Plan, Result, Trial
from steepest.statistics.inference import NO_SPREAD
from steepest.tasks import Task

Pairs = Sequence[tuple[Trial, Result]]
BLOWN_UP = 1 / NO_SPREAD
"""A fresh run has blown up if it ends this many times as far from the best metric as an ordinary
run. In a sum with such a number, every other difference is lost to rounding."""


def settle(task: Task, plan: Plan, pairs: Pairs) -> tuple[Task, list[tuple[Trial, Result]]]:
    """The task with its worst metric and target, and the runs; those that blew up are marked as
    diverged.
    """
    pairs = mark_blown_up(task, pairs)
    ended = [(trial, result) for trial, result in pairs if not result.diverged]
    fresh = [result for trial, result in ended if trial.phase == FRESH]
    if task.measured is not None:  # the file gives no WORST
        worst = (min if task.maximize else max)([task.measured, *_ends(fresh)])
        task = replace(task, worst=worst)
    target = task.target
    if target is None:
        # the metric that three quarters of the fresh runs reach, without the diverged runs;
        # before the first fresh run, the last metric of the baseline's first run
        first = [result for trial, result in ended if trial.entry == plan.baseline][:1]
        last = [scores.clamped(task, result.validation[-1]) for result in fresh or first]
        quantile, method = (0.25, "lower") if task.maximize else (0.75, "higher")
        target = float(np.quantile(last, quantile, method=method)) if last else task.worst
    return replace(task, test_data=all(r.tested for r in fresh), target=target), pairs


def mark_blown_up(task: Task, pairs: Pairs) -> list[tuple[Trial, Result]]:
    """`pairs`, with every fresh run that blew up marked as diverged.

    A run blew up if it ended absurdly far from the others, and is finite by luck (4e33, while the
    others end at 0.3). Such a run must not set the worst metric of all entries, nor move a mean. If
    a task gives WORST, nothing is marked: WORST already bounds every run. The ordinary distance
    from the best metric is that of the untrained model or of the middle run: the larger of the two.
    The rule is the same for all entries, so the tests keep their level.
    """
    fresh = [result for trial, result in pairs if trial.phase == FRESH and not result.diverged]
    ends = sorted(_ends(fresh), reverse=task.maximize)
    if task.measured is None or not ends:
        return list(pairs)
    best = (max if task.maximize else min)(task.measured, ends[0])
    ordinary = max(abs(task.measured - best), abs(ends[(len(ends) - 1) // 2] - best))

    def marked(trial: Trial, result: Result) -> Result:
        if trial.phase != FRESH or result.diverged:
            return result
        far = [end for end in _ends([result]) if abs(end - best) > BLOWN_UP * ordinary > 0]
        if not far:
            return result
        return replace(result, diverged=f"ended at {far[0]:.4g}, absurdly far from other runs")

    return [(trial, marked(trial, result)) for trial, result in pairs]


def _ends(results: Sequence[Result]) -> list[float]:
    """The last validation metric of each run, and its test metric if it is known."""
    return [v for r in results for v in (r.validation[-1], r.test) if v is not None]
