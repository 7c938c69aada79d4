"""From finished trials to summary.json: everything that is known about a race."""

from __future__ import annotations

import shlex
import statistics as st
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

import numpy as np

from steepest.errors import BadCall
from steepest.race import pairing, searching
from steepest.race.descriptive import expected_best, interquartile_mean, lr_width, proportion_error
from steepest.race.lint import lint, untuned_because
from steepest.race.notes import OWN
from steepest.race.protocol import (
    FRESH,
    TUNING,
    Plan,
    Result,
    Trial,
    best,
    by_seed,
    clamped,
    failed,
    final,
    tested,
)  # fmt: skip
from steepest.race.schema import (
    BestTrial,
    Curve,
    DifferenceRecord,
    EntrySummary,
    Provenance,
    RateWidth,
    Summary,
    TuningTrial,
)
from steepest.race.statistics import compare, failure_bound, paired
from steepest.race.verdicts import verdict
from steepest.tasks import Task
from steepest.training.recipe import Recipe

Pairs = Sequence[tuple[Trial, Result]]


def summarise(
    task: Task,
    plan: Plan,
    pairs: Pairs,
    provenance: Provenance,
    spaces: Mapping[str, Mapping[str, tuple[float, float]]] | None = None,
) -> Summary:
    """Everything that is known about a race, as JSON. Wall times stand under "timing" only.

    spaces: the search ranges that a store has kept, for entries whose code may be gone.
    """
    by_entry = {
        (phase, entry): [p for p in pairs if p[0].phase == phase and p[0].entry == entry]
        for phase in (TUNING, FRESH)
        for entry in plan.entries
    }
    found: dict[str, EntrySummary] = {}
    for entry in plan.entries:
        tuned, fresh = by_entry[TUNING, entry], by_entry[FRESH, entry]
        space = _space(plan, entry, spaces or {})
        found[entry] = _entry(task, plan, tuned, fresh, space)
    complete = len(pairs) == plan.runs
    if complete:  # an interrupted race is not judged: whoever stops it has seen it
        base, lost = found[plan.baseline]["test"], found[plan.baseline]["failed"]
        differences = compare(
            {e: paired(found[e]["test"], base) for e in plan.entries if e != plan.baseline},
            maximize=task.maximize,
            failed=[e for e in plan.entries if lost or found[e]["failed"]],
        )
        for entry, difference in differences.items():
            if task.proportion and difference.low is not None and difference.high is not None:
                # a t interval does not know that shares cannot differ by more than all
                difference = replace(
                    difference, low=max(-1.0, difference.low), high=min(1.0, difference.high)
                )
            found[entry]["difference"] = DifferenceRecord(**asdict(difference))
    unchecked, unpaired, checked = _batches(plan, pairs)
    summary: Summary = {
        "verdict": "",
        "task": task.name,
        "metric": task.metric,
        "maximize": task.maximize,
        "proportion": task.proportion,
        "worst": task.worst,
        "target": task.target,
        "baseline": plan.baseline,
        "complete": complete,
        "runs": {"finished": len(pairs), "planned": plan.runs},
        "test_size": task.test_size,
        "test_data": task.test_data,
        "plan": plan.record(),
        "reproduce": reproduce(plan),
        "entries": found,
        "provenance": provenance,
        "lint": [],
        "batches_checked": checked,
        "batches_unchecked": unchecked,
        "batches_unpaired": unpaired,
    }
    if complete and task.proportion and task.test_size and task.test_data:
        share = st.fmean(found[plan.baseline]["test"])
        summary["test_standard_error"] = proportion_error(share, task.test_size)
    summary["lint"] = lint(summary)
    summary["verdict"] = verdict(summary)
    return summary


def _batches(plan: Plan, pairs: Pairs) -> tuple[dict[str, str], dict[str, str], list[str]]:
    """Entries whose batches were not compared, with why; that had others, with what differs; and
    that had the same ones.

    Batches are compared with the baseline's, or those of the first entry that has the task's own.
    In a race that was stored before batches were hashed, an entry may be in none of the three.
    """
    unchecked: dict[str, str] = {}
    unpaired: dict[str, str] = {}
    first: dict[int, tuple[Trial, Result]] = {}
    for entry in sorted(plan.entries, key=lambda e: e != plan.baseline):
        mine = [(t, r) for t, r in pairs if t.entry == entry]
        if not Recipe.read(entry).same_batches:
            unchecked[entry] = OWN
        elif why := next((r.unread for _, r in mine if r.unread), None):
            unchecked[entry] = why
        elif not any(r.batches for _, r in mine):
            if any(r.first for _, r in mine):
                unchecked[entry] = "ended before it could be checked"
        else:
            for trial, result in mine:
                other, before = first.setdefault(trial.seed, (trial, result))
                said = _parted(trial, result, other, before)
                if said:
                    unpaired.setdefault(entry, said)
    checked = {t.entry for t, r in pairs if r.batches} - {*unchecked, *unpaired}
    return unchecked, unpaired, sorted(checked)


def _parted(trial: Trial, result: Result, other: Trial, before: Result) -> str | None:
    """What two runs of a seed have not in common; None where all is the same as far as both go."""
    at = pairing.parted(result.batches, before.batches)
    if at is not None:
        name = pairing.field(result.first, before.first)
        where = "" if name is None else f", batch{name} from the first on"
        return f"batches are not those of {other.entry} up to step {result.steps[at]}{where}"
    alike = Recipe.read(trial.entry).model_of == Recipe.read(other.entry).model_of
    at = pairing.parted(result.draws, before.draws) if alike else None
    if at is None:
        return None
    return f"random draws are not those of {other.entry} up to step {result.steps[at]}"


def _entry(
    task: Task, plan: Plan, tuned: Pairs, fresh: Pairs, space: dict[str, list[float]] | None
) -> EntrySummary:
    turns = by_seed(plan, tuned)
    chosen = None
    if len(tuned) == plan.tunings:
        chosen = [best(task, mine) for mine in turns]
    reached = [_target_index(task, result) for _, result in fresh]
    results = [result for _, result in fresh]
    one = next((result for _, result in (*fresh, *tuned)), None)
    tests = [value for pair in fresh if (value := tested(task, *pair)) is not None]
    lost = sum(r.diverged is not None for r in results)
    bad = sum(failed(task, *pair) for pair in fresh)
    tuning: list[TuningTrial] = [
        {
            "hyperparameters": trial.hyper,
            "validation": final(task, result),
            "diverged": result.diverged,
        }
        for trial, result in tuned
    ]
    return {
        "space": space,
        "untuned": untuned_because(tuning) if chosen else None,
        "chosen": [trial.index for trial in chosen] if chosen else None,
        "hyperparameters": _middle([trial.hyper for trial in chosen]) if chosen else None,
        "best": _best(task, tuned, chosen) if chosen else None,
        "trials": len(tuned),
        "tuning": tuning,
        "expected_best": expected_best(
            [trial["validation"] for trial in tuning], maximize=task.maximize
        ),
        "lr_width": _width(task, turns),
        "seeds": [trial.seed for trial, _ in fresh],
        "validation": [final(task, result) for result in results],
        "best_validation": [
            (max if task.maximize else min)(result.validation, default=task.worst)
            for result in results
        ],
        "test": tests,
        "interquartile_mean": interquartile_mean(tests) if tests else None,
        "steps_to_target": [
            None if i is None else result.steps[i]
            for i, result in zip(reached, results, strict=True)
        ],
        "diverged": {
            "tuning": sum(result.diverged is not None for _, result in tuned),
            "fresh": lost,
            "fresh_rate_up_to": failure_bound(bad, len(results)) if results else None,
        },
        "failed": bad,
        "state_bytes": one.state_bytes if one else None,
        "parameters": one.parameters if one else None,
        "gradients": _median(
            [
                r.measures["gradients"]
                for r in results
                if "gradients" in r.measures and not r.diverged
            ]
        ),
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


def _middle(chosen: Sequence[dict[str, float]]) -> dict[str, list[float]]:
    """Each knob's lowest, median and highest value of the choices for the fresh seeds."""
    columns = {knob: [hyper[knob] for hyper in chosen] for knob in chosen[0]}
    return {knob: [min(v), st.median_low(v), max(v)] for knob, v in columns.items()}


def _best(task: Task, tuned: Pairs, chosen: Sequence[Trial]) -> BestTrial:
    """The tuning trial with the best metric of those that were chosen: a point that was run."""
    keys = {trial.key for trial in chosen}
    trial = best(task, [pair for pair in tuned if pair[0].key in keys])
    score = next(final(task, result) for other, result in tuned if other.key == trial.key)
    return {"index": trial.index, "hyperparameters": trial.hyper, "validation": score}


def _width(task: Task, turns: Sequence[Pairs]) -> RateWidth | None:
    """The median over all tunings of `lr_width`: one alone has as few points as it has trials."""
    found = []
    for mine in turns:
        rates = [
            (trial.hyper["lr"], final(task, result))
            for trial, result in mine
            if "lr" in trial.hyper and not result.diverged
        ]
        found.append(lr_width(rates, maximize=task.maximize))
    known = [width for width in found if width]
    if not known:
        return None
    return {
        "seen": st.median(w["seen"] for w in known),
        "tunings": len(known),
        "points": max(w["points"] for w in known),
    }


def _space(
    plan: Plan, name: str, stored: Mapping[str, Mapping[str, tuple[float, float]]]
) -> dict[str, list[float]] | None:
    """The search ranges; None where a report is rebuilt without the file that defines the entry."""
    try:
        space = stored[name] if name in stored else plan.space(name)
        return {knob: list(ends) for knob, ends in space.items()}
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


def _curve(task: Task, results: Sequence[Result]) -> Curve:
    """Median and quartiles of the validation metric over seeds; diverged runs count as worst."""
    if not results:
        return {"steps": [], "median": [], "low": [], "high": []}
    longest = max((result.steps for result in results), key=len)
    rows = [
        [clamped(task, v) for v in r.validation] + [task.worst] * (len(longest) - len(r.validation))
        for r in results
    ]
    low, median, high = np.quantile(
        np.array(rows).reshape(len(rows), -1), (0.25, 0.5, 0.75), axis=0
    ).tolist()
    return {"steps": list(longest), "median": median, "low": low, "high": high}


def reproduce(plan: Plan) -> str:
    """The command line that runs the same trials again, even if a budget chose their number."""
    numbers = f"--trials {plan.trials} --seeds {plan.seeds} --steps {plan.steps} --seed {plan.seed}"
    field = ",".join(plan.entries)
    data = f" --data {shlex.quote(plan.data)}" if plan.data else ""
    where = f"{shlex.quote(plan.task)}{data} --optimizers {shlex.quote(field)}"
    if plan.baseline != replace(plan, baseline="").baseline:
        where += f" --baseline {shlex.quote(plan.baseline)}"
    if ranges := searching.written(plan.search):
        where += f" --search {shlex.quote(ranges)}"
    return f"steepest race {where} {numbers}"
