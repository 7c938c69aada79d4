"""The metric of a run as a race counts it, and which trial of a tuning is the best."""

from __future__ import annotations

from collections.abc import Iterable

from steepest.race.protocol import FRESH, Result, Trial
from steepest.tasks import Task


def final(task: Task, result: Result) -> float:
    """The last validation metric; the worst metric if the run diverged or ended even worse."""
    return _worst(task) if result.diverged else clamped(task, result.validation[-1])


def tested(task: Task, trial: Trial, result: Result) -> float | None:
    """The metric that the verdict is about; the worst metric if the run diverged; None in
    tuning.
    """
    if trial.phase != FRESH:
        return None
    if result.diverged or result.test is None:
        return _worst(task) if result.diverged else None
    return clamped(task, result.test)


def clamped(task: Task, metric: float) -> float:
    """`metric`, or the task's worst metric if `metric` is even worse."""
    if task.worst is None:
        return metric
    return max(metric, task.worst) if task.maximize else min(metric, task.worst)


def failed(task: Task, trial: Trial, result: Result) -> bool:
    """Whether a run diverged, or is a fresh run that ended no better than the worst metric.

    Only a worst metric that the task gives counts here. A measured worst metric is that of an
    untrained model, which may be good, so a run that ends no better has not failed.
    """
    if result.diverged or task.measured is not None:
        return result.diverged is not None
    metric, worst = tested(task, trial, result), task.worst
    return metric is not None and worst is not None and not task.better(metric, worst)


def _worst(task: Task) -> float:
    if task.worst is None:
        raise ValueError(f"task {task.name} has no worst metric: call planning.add_worst first")
    return task.worst


def best(task: Task, tuned: Iterable[tuple[Trial, Result]]) -> Trial:
    """The trial with the best last validation metric; of equal trials, the first.

    If all full runs diverged, the halted trial with the most steps; if all trials did, the first.
    """

    def rank(pair: tuple[Trial, Result]) -> tuple[bool, int, float, int]:
        trial, result = pair
        score = 0.0 if result.diverged else result.validation[-1]
        short = trial.steps - result.steps[-1] if result.halted else 0
        return result.diverged is not None, short, -score if task.maximize else score, trial.index

    return min(tuned, key=rank)[0]
