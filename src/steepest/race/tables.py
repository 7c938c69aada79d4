"""runs.csv and curves.csv: every run of a race, for spreadsheets and data frames (RFC 4180)."""

from __future__ import annotations

from collections.abc import Sequence

from steepest.race.protocol import FRESH, Plan, Result, Trial
from steepest.race.scores import final, tested
from steepest.race.summary import target_index
from steepest.report.tables import csv_text
from steepest.tasks import Task

Pairs = Sequence[tuple[Trial, Result]]
KEY = ("phase", "entry", "index", "seed")
RUN = (
    "unit",
    "final_validation",
    "best_validation",
    "test",
    "diverged",
    "steps_to_target",
    "seconds_to_target",
    "steps",
    "training_seconds",
    "step_seconds",
    "train_step_seconds",
    "wall_seconds",
    "state_bytes",
    "parameters",
    "backends",
)


def runs(task: Task, plan: Plan, pairs: Pairs) -> str:
    """One row for each run, as CSV; times are in seconds.

    The columns `hyper.NAME` have the hyperparameters, and the columns `measure.NAME` the other
    numbers that were reported. If a run diverged, `diverged` has the reason, and its final metrics
    are the worst metric, as in the verdict. `unit` is the index of a tuning of the entry; a fresh
    run has the index of the tuning that chose its hyperparameters. A cell is empty if its value was
    not measured, or if the target was not reached.
    """
    knobs = sorted({knob for trial, _ in pairs for knob in trial.hyper})
    measures = sorted({name for _, result in pairs for name in result.measures})
    better = max if task.maximize else min
    rows = []
    for trial, result in pairs:
        at = target_index(task, result)
        rows.append(
            [
                *_key(trial),
                *(trial.hyper.get(knob) for knob in knobs),
                trial.index // (plan.repeats if trial.phase == FRESH else plan.trials),
                final(task, result),
                better(result.validation, default=None),
                tested(task, trial, result) if task.test_data else None,
                result.diverged,
                None if at is None else result.steps[at],
                None if at is None else result.seconds[at],
                result.steps[-1] if result.steps else 0,
                result.seconds[-1] if result.seconds else None,
                result.step_seconds,
                result.train_seconds,
                result.wall_seconds,
                result.state_bytes,
                result.parameters,
                " ".join(result.backends),
                *(result.measures.get(name) for name in measures),
            ]
        )
    hyper = (f"hyper.{knob}" for knob in knobs)
    return csv_text((*KEY, *hyper, *RUN, *(f"measure.{name}" for name in measures)), rows)


def curves(pairs: Pairs) -> str:
    """One row for each evaluation of each run: step, seconds of training, validation metric."""
    rows = (
        [*_key(trial), *point]
        for trial, result in pairs
        for point in zip(result.steps, result.seconds, result.validation, strict=True)
    )
    return csv_text((*KEY, "step", "seconds", "validation"), rows)


def _key(trial: Trial) -> tuple[str, str, int, int]:
    return trial.phase, trial.entry, trial.index, trial.seed
