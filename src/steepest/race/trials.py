"""Makes the items that workers train, and trains an item: one run, or the runs of a tuning."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, overload

import torch
from torch import nn

from steepest import tasks
from steepest.errors import BadCall, TaskError
from steepest.race import halving, together
from steepest.race.measured import measure
from steepest.race.protocol import PILOT, Plan, Result, Trial, Tuning
from steepest.tasks import user_modules
from steepest.tasks.task import Samples, Setup, Task
from steepest.tasks.user_file import held, silenced
from steepest.training.loop import train
from steepest.training.recipe import Recipe

_warm: set[str] = set()
"""Entries that have made a step in this process."""


def tuning_items(plan: Plan, trials: Iterable[Trial]) -> list[Trial | Tuning]:
    """The items that workers train. Without halving, an item is one trial; with halving, it is the
    trials of one tuning, or of `plan.together` tunings if they are trained at once.
    """
    if not plan.rungs:
        return list(trials)
    trials = list(trials)
    first = min((trial.index // plan.trials for trial in trials), default=0)
    sizes = dict.fromkeys(plan.entries, 1) | dict.fromkeys(plan.stacked, plan.together)
    groups: dict[tuple[int, str], list[Trial]] = {}
    for trial in trials:
        number = (trial.index // plan.trials - first) // sizes[trial.entry]
        groups.setdefault((number, trial.entry), []).append(trial)
    return [
        Tuning(tuple(group), plan.rungs, plan.trials if entry in plan.stacked else 0)
        for (_, entry), group in groups.items()
    ]


def fresh_items(plan: Plan, trials: Iterable[Trial]) -> list[Trial | Tuning]:
    """The items that workers train for fresh runs. If tunings are halved, a fresh run has its own
    child process: training in the worker might start threads, which later children would lack.
    """
    return [Tuning((trial,), ()) for trial in trials] if plan.rungs else list(trials)


def runner(task: str, optimizers: str | None = None) -> Callable[[Trial | Tuning], Any]:
    """`run` for the workers of a race. A task from a file keeps its present source."""
    with tasks.held(task) as source:
        modules = user_modules.modules(task, optimizers, anew=True)
        work: Any = run
        return partial(work, source=source, imported=modules)


@overload
def run(
    item: Trial, source: bytes | None = None, imported: Mapping[str, str] | None = None
) -> Result: ...


@overload
def run(
    item: Tuning, source: bytes | None = None, imported: Mapping[str, str] | None = None
) -> list[Result]: ...


def run(
    item: Trial | Tuning, source: bytes | None = None, imported: Mapping[str, str] | None = None
) -> Result | list[Result]:
    """Train as the trial, or each trial of the tuning, says, on one thread.

    A run that diverges is a result, not an error.

    source: content of the task's file when the race began. imported: hashes of the user's modules
    when the race began; TaskError if a module has changed since then.
    """
    trial = item.trials[0] if isinstance(item, Tuning) else item
    with nullcontext() if source is None else held(Path(trial.task), source):
        task = tasks.get(trial.task, trial.data, trial.device)
        if imported:
            _ = Recipe.read(trial.entry).defaults  # imports its class
            user_modules.agree(imported)
        if isinstance(item, Trial):
            return _run(item)
        # warm up before the fork, so that all children are warm. This runs none of the user's code,
        # which might leave threads that a forked process lacks
        torch.set_num_threads(1)
        if halving.can_fork() and trial.entry not in _warm:
            with suppress(Exception):  # the trials fail again, and report the error
                task.data_hash()
                _warm_up(trial)
        if item.each:
            return halving.apart(_run_together, item)
        return halving.run(item, _run, task.better)


def _quiet(trial: Trial, task: Task) -> AbstractContextManager[None]:
    """Hide what the user's file prints, except in a pilot run."""
    return silenced() if task.file and trial.phase != PILOT else nullcontext()


@contextmanager
def _prepared(trial: Trial) -> Iterator[tuple[Task, float]]:
    """Use one thread and compile the entry. Yields the task, and the seconds of compilation."""
    torch.set_num_threads(1)
    task = tasks.get(trial.task, trial.data, trial.device)
    with _quiet(trial, task):
        start = perf_counter()
        _warm_up(trial)  # compilation is not the entry's step time
        try:
            yield task, perf_counter() - start
        except BadCall as error:
            if not task.file or isinstance(error, TaskError):
                raise
            raise TaskError(f"{Path(task.file).name}: {error}") from None


def _run(trial: Trial, on_report: halving.OnReport | None = None) -> Result:
    with _prepared(trial) as (task, warm):
        result = measure(trial, task, on_report)
    result.warm_seconds = warm
    return result


def _run_together(tuning: Tuning) -> list[Result]:
    with _prepared(tuning.trials[0]) as (task, _):
        return together.run(tuning, task)


def _warm_up(trial: Trial) -> None:
    """Once per entry, step a model of 16 numbers, so that runs need not compile and import."""
    if trial.entry in _warm:
        return
    _warm.add(trial.entry)

    def build(seed: int, **_: Any) -> Setup:
        square = lambda model, batch: model(batch[0]).square()  # noqa: E731
        samples = Samples((torch.ones(4, 4, device=trial.device),), 4)
        return Setup(
            model=nn.Linear(4, 4, bias=False, device=trial.device),
            batches=samples.batched(seed),
            loss=lambda *a: square(*a).mean(),
            evaluate=lambda *_: 0.0,
            residuals=square,
            samples=samples,
        )

    small = replace(tasks.TASKS["digits"], build=build, switches=())
    with suppress(Exception):  # the run itself will fail again and report the error
        train(small, Recipe.read(trial.entry), trial.hyper, trial.seed, 1, lambda *_, **__: None)
