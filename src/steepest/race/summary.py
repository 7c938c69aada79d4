"""From finished trials to summary.json: everything that is known about a race."""

from __future__ import annotations

import shlex
import statistics as st
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from steepest.race import BadCall
from steepest.race import entries as field
from steepest.race.lint import lint, untuned_because
from steepest.race.protocol import FRESH, TUNING, Plan, Result, Trial, best, final
from steepest.race.statistics import (
    compare,
    expected_best,
    interquartile_mean,
    lr_width,
    proportion_error,
)
from steepest.race.tasks import Task
from steepest.race.wording import verdict

Pairs = Sequence[tuple[Trial, Result]]


def summarise(task: Task, plan: Plan, pairs: Pairs, provenance: dict[str, Any]) -> dict[str, Any]:
    """Everything that is known about a race, as JSON. Wall times stand under "timing" only."""
    by_entry = {
        (phase, entry): [p for p in pairs if p[0].phase == phase and p[0].entry == entry]
        for phase in (TUNING, FRESH)
        for entry in plan.entries
    }
    expected = len(plan.entries) * (plan.trials + plan.seeds)
    found = {}
    for entry in plan.entries:
        tuned, fresh = by_entry[TUNING, entry], by_entry[FRESH, entry]
        found[entry] = _entry(task, plan, entry, tuned, fresh)
    complete = len(pairs) == expected
    if complete:  # an interrupted race is not judged: whoever stops it has seen it
        differences = compare(
            {
                entry: [
                    a - b
                    for a, b in zip(found[entry]["test"], found[plan.baseline]["test"], strict=True)
                ]
                for entry in plan.entries
                if entry != plan.baseline
            },
            maximize=task.maximize,
        )
        for entry, difference in differences.items():
            judged = asdict(difference)
            if task.proportion and difference.low is not None and difference.high is not None:
                # a t interval does not know that shares cannot differ by more than all
                judged |= {"low": max(-1.0, difference.low), "high": min(1.0, difference.high)}
            found[entry]["difference"] = judged
    summary = {
        "task": task.name,
        "metric": task.metric,
        "maximize": task.maximize,
        "proportion": task.proportion,
        "worst": task.worst,
        "target": task.target,
        "baseline": plan.baseline,
        "complete": complete,
        "runs": {"finished": len(pairs), "planned": expected},
        "test_size": task.test_size,
        "test_data": task.test_data,
        "plan": {**asdict(plan), "entries": list(plan.entries)},
        "reproduce": reproduce(plan),
        "entries": found,
        "provenance": provenance,
    }
    if complete and task.proportion and task.test_size:
        share = st.fmean(found[plan.baseline]["test"])
        summary["test_standard_error"] = proportion_error(share, task.test_size)
    summary["lint"] = lint(summary)
    return {"verdict": verdict(summary), **summary}


def _entry(task: Task, plan: Plan, name: str, tuned: Pairs, fresh: Pairs) -> dict[str, Any]:
    chosen = best(task, tuned) if len(tuned) == plan.trials else None
    reached = [_target_index(task, result) for _, result in fresh]
    results = [result for _, result in fresh]
    one = next((result for _, result in (*fresh, *tuned)), None)
    tests = [result.test for result in results if result.test is not None]
    space = _space(name)
    tuning = [
        {
            "hyperparameters": trial.hyper,
            "validation": final(task, result),
            "diverged": result.diverged,
        }
        for trial, result in tuned
    ]
    rates = [
        (trial["hyperparameters"]["lr"], trial["validation"])
        for trial in tuning
        if "lr" in trial["hyperparameters"] and not trial["diverged"]
    ]
    return {
        "space": space,
        "untuned": untuned_because(tuning) if chosen else None,
        "hyperparameters": chosen.hyper if chosen else None,
        "best_trial": chosen.index if chosen else None,
        "trials": len(tuned),
        "tuning": tuning,
        "expected_best": expected_best(
            [trial["validation"] for trial in tuning], maximize=task.maximize
        ),
        "lr_width": lr_width(rates, maximize=task.maximize),
        "seeds": [trial.seed for trial, _ in fresh],
        "validation": [final(task, result) for result in results],
        "best_validation": [
            (max if task.maximize else min)(result.validation, default=task.worst)
            for result in results
        ],
        "test": [result.test for result in results],
        "interquartile_mean": interquartile_mean(tests) if tests else None,
        "steps_to_target": [
            None if i is None else result.steps[i]
            for i, result in zip(reached, results, strict=True)
        ],
        "diverged": {
            "tuning": sum(result.diverged is not None for _, result in tuned),
            "fresh": sum(result.diverged is not None for result in results),
        },
        "state_bytes": one.state_bytes if one else None,
        "parameters": one.parameters if one else None,
        "curve": _curve(task, results),
        "difference": None,
        "timing": {
            "seconds_to_target": [
                None if i is None else result.seconds[i]
                for i, result in zip(reached, results, strict=True)
            ],
            "training_seconds": [result.seconds[-1] for result in results if result.seconds],
            "step_ms": _median([1e3 * result.step_seconds for result in results]),
            "train_step_ms": _median([1e3 * result.train_seconds for result in results]),
            "curve_seconds": _columns(
                [result.seconds for result in results if not result.diverged]
            ),
        },
    }


def _space(name: str) -> dict[str, list[float]] | None:
    """The search ranges; None where a report is rebuilt without the file that defines the entry."""
    try:
        return {knob: list(ends) for knob, ends in field.space(name).items()}
    except (BadCall, KeyError):
        return None


def _target_index(task: Task, result: Result) -> int | None:
    if result.diverged or task.target is None:
        return None
    target = task.target
    reached = (i for i, v in enumerate(result.validation) if not task.better(target, v))
    return next(reached, None)


def _median(values: Sequence[float]) -> float | None:
    return st.median(values) if values else None


def _columns(rows: Sequence[Sequence[float]]) -> list[float]:
    return [st.median(column) for column in zip(*rows, strict=True)] if rows else []


def _curve(task: Task, results: Sequence[Result]) -> dict[str, list[float]]:
    """Median and quartiles of the validation metric over seeds; diverged runs count as worst."""
    if not results:
        return {"steps": [], "median": [], "low": [], "high": []}
    longest = max((result.steps for result in results), key=len)
    rows = [r.validation + [task.worst] * (len(longest) - len(r.validation)) for r in results]
    low, median, high = np.quantile(
        np.array(rows).reshape(len(rows), -1), (0.25, 0.5, 0.75), axis=0
    ).tolist()
    return {"steps": list(longest), "median": median, "low": low, "high": high}


def reproduce(plan: Plan) -> str:
    """The command line that runs the same trials again, also where a budget had chosen them."""
    numbers = f"--trials {plan.trials} --seeds {plan.seeds} --steps {plan.steps} --seed {plan.seed}"
    field = ",".join(plan.entries)
    data = f" --data {shlex.quote(plan.data)}" if plan.data else ""
    where = f"{shlex.quote(plan.task)}{data} --optimizers {shlex.quote(field)}"
    return f"steepest race {where} {numbers}"
