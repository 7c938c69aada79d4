"""Makes the summary of a race, as in summary.json, from its finished trials."""

from __future__ import annotations

import shlex
import statistics as st
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

import numpy as np

from steepest.errors import BadCall
from steepest.race import advice, searching, statements, verdicts
from steepest.race.judging import judge
from steepest.race.lint import lint, untuned_because
from steepest.race.notes import OWN
from steepest.race.protocol import FRESH, TUNING, Plan, Result, Trial, by_seed
from steepest.race.rounds import Round, current, unit_means
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
from steepest.race.scores import best, clamped, failed, final, tested
from steepest.statistics.descriptive import (
    expected_best,
    interquartile_mean,
    lr_width,
    proportion_error,
)
from steepest.statistics.inference import failure_bound
from steepest.tasks import Task, folder_name
from steepest.training import pairing
from steepest.training.recipe import Recipe

Pairs = Sequence[tuple[Trial, Result]]


def summarise(
    task: Task,
    plan: Plan,
    pairs: Pairs,
    provenance: Provenance,
    spaces: Mapping[str, Mapping[str, tuple[float, float]]] | None = None,
    now: Round | None = None,
) -> Summary:
    """Everything that is known about a race. Only the fields under "timing" depend on wall time.

    spaces: search ranges from a store, for entries whose code may no longer exist. now: the current
    round of the race; default: the round that follows from `pairs`.
    """
    entries: dict[str, EntrySummary] = {}
    for name in plan.entries:
        tuned, fresh = (
            [pair for pair in pairs if pair[0].phase == phase and pair[0].entry == name]
            for phase in (TUNING, FRESH)
        )
        entries[name] = _entry(task, plan, name, tuned, fresh, _space(plan, name, spaces or {}))
    now = now or current(task, plan, pairs)
    complete = now.complete
    if complete:  # results may be the reason for an interruption: then no test is valid
        for name, difference in judge(task, plan, entries, now).items():
            entries[name]["difference"] = DifferenceRecord(**asdict(difference))
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
        "full_runs": _full_runs(plan, pairs),
        "test_size": task.test_size,
        "test_data": task.test_data,
        "plan": plan.record(),
        "reproduce": provenance["command"]
        if plan.imported
        else reproduce(plan, proportion=task.proportion),
        "entries": entries,
        "provenance": provenance,
        "lint": [],
        "batches_checked": checked,
        "batches_unchecked": unchecked,
        "batches_unpaired": unpaired,
    }
    if complete and task.proportion and task.test_size and task.test_data:
        share = st.fmean(entries[plan.baseline]["test"])
        summary["test_standard_error"] = proportion_error(share, task.test_size)
    summary["lint"] = lint(summary)
    if coming := advice.next_race(summary, plan):
        summary["next_purpose"], other = coming
        folder = shlex.quote(f"race-{folder_name(plan.task)}-seed{other.seed}")
        summary["next"] = f"{command(other, proportion=task.proportion)} --out {folder}"
        if not complete:
            data = f" --data {shlex.quote(plan.data)}" if plan.data else ""
            summary["next"] = f"steepest race {shlex.quote(plan.task)}{data} --out DIR --resume"
    summary["use"] = advice.to_use(summary)
    summary["verdict"] = (statements if plan.looks else verdicts).verdict(summary)
    return summary


def _full_runs(plan: Plan, pairs: Pairs) -> float:
    """Optimizer steps of all runs, divided by the steps of a full run."""
    made = sum(r.calls or (r.steps[-1] if r.steps else 0) for _, r in pairs)
    return made / plan.steps if plan.steps else 0.0  # imported runs


def _batches(plan: Plan, pairs: Pairs) -> tuple[dict[str, str], dict[str, str], list[str]]:
    """(unchecked entry -> reason, unpaired entry -> what differs, entries with the same batches).

    The batches of a run are compared with the baseline's, or with those of the first entry that
    trains on the task's own batches. An entry may be in none of the three if its runs were
    imported, or were stored by a version that did not hash batches.
    """
    unchecked: dict[str, str] = {}
    unpaired: dict[str, str] = {}
    if plan.imported:
        return unchecked, unpaired, []
    first: dict[int, tuple[Trial, Result]] = {}
    for entry in sorted(plan.entries, key=lambda e: e != plan.baseline):
        runs = [(t, r) for t, r in pairs if t.entry == entry]
        if not Recipe.read(entry).same_batches:
            unchecked[entry] = OWN
        elif why := next((r.unread for _, r in runs if r.unread), None):
            unchecked[entry] = why
        elif not any(r.batches for _, r in runs):
            if any(r.first for _, r in runs):
                unchecked[entry] = "ended before it could be checked"
        else:
            for trial, result in runs:
                other, before = first.setdefault(trial.seed, (trial, result))
                if differs := _differs(trial, result, other, before):
                    unpaired.setdefault(entry, differs)
    checked = {t.entry for t, r in pairs if r.batches} - {*unchecked, *unpaired}
    return unchecked, unpaired, sorted(checked)


def _differs(trial: Trial, result: Result, other: Trial, before: Result) -> str | None:
    """What differs between two runs of a seed, up to the end of the shorter run, or None."""
    at = pairing.parted(result.batches, before.batches)
    if at is not None:
        name = pairing.field(result.first, before.first)
        where = "" if name is None else f" (batch{name} already in the first batch)"
        return f"batches up to step {result.steps[at]} differ from those of {other.entry}{where}"
    alike = Recipe.read(trial.entry).model_of == Recipe.read(other.entry).model_of
    at = pairing.parted(result.draws, before.draws) if alike else None
    if at is None:
        return None
    return f"random draws up to step {result.steps[at]} differ from those of {other.entry}"


def _entry(
    task: Task,
    plan: Plan,
    name: str,
    tuned: Pairs,
    fresh: Pairs,
    space: dict[str, list[float]] | None,
) -> EntrySummary:
    """What is known of an entry, except its difference to the baseline."""
    groups = [group for group in by_seed(plan, tuned) if group]
    chosen = None
    if len(tuned) == plan.tunings or (plan.looks and len(tuned) == len(groups) * plan.trials > 0):
        chosen = [best(task, group) for group in groups]
    reached = [target_index(task, result) for _, result in fresh]
    results = [result for _, result in fresh]
    any_run = next((result for _, result in (*fresh, *tuned)), None)
    tests = [value for pair in fresh if (value := tested(task, *pair)) is not None]
    failures = sum(failed(task, *pair) for pair in fresh)
    tuning: list[TuningTrial] = [
        {
            "hyperparameters": trial.hyper,
            "validation": final(task, result),
            "diverged": result.diverged,
            "halted": result.halted,
        }
        for trial, result in tuned
    ]
    halted = any(trial["halted"] for trial in tuning)
    units, failed_units = unit_means(task, plan, fresh, name)
    best_trial = _best(task, tuned, chosen) if chosen else None
    return {
        "space": space,
        "untuned": untuned_because(tuning) if chosen else None,
        "chosen": [trial.index for trial in chosen] if chosen else None,
        "hyperparameters": _spread([trial.hyper for trial in chosen]) if chosen else None,
        "best": best_trial,
        "code": advice.code(task, plan, name, best_trial, len(chosen))
        if chosen and best_trial
        else None,
        "trials": len(tuned),
        "tuning": tuning,
        "expected_best": []
        if halted
        else expected_best([trial["validation"] for trial in tuning], maximize=task.maximize),
        "lr_width": None if halted else _width(task, groups),
        "units": units,
        "failed_units": len(failed_units),
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
            "fresh": sum(result.diverged is not None for result in results),
            "fresh_rate_up_to": failure_bound(failures, len(results)) if results else None,
        },
        "failed": failures,
        "state_bytes": any_run.state_bytes if any_run else None,
        "parameters": any_run.parameters if any_run else None,
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


def _spread(chosen: Sequence[dict[str, float]]) -> dict[str, list[float]]:
    """The lowest, median and highest value of each knob among the chosen trials."""
    columns = {knob: [hyper[knob] for hyper in chosen] for knob in chosen[0]}
    return {knob: [min(v), st.median_low(v), max(v)] for knob, v in columns.items()}


def _best(task: Task, tuned: Pairs, chosen: Sequence[Trial]) -> BestTrial:
    """The best of the chosen tuning trials."""
    keys = {trial.key for trial in chosen}
    trial = best(task, [pair for pair in tuned if pair[0].key in keys])
    score = next(final(task, result) for other, result in tuned if other.key == trial.key)
    return {"index": trial.index, "hyperparameters": trial.hyper, "validation": score}


def _width(task: Task, groups: Sequence[Pairs]) -> RateWidth | None:
    """The median of `lr_width` over all tunings, since one tuning has few points."""
    widths = []
    for group in groups:
        rates = [
            (trial.hyper["lr"], final(task, result))
            for trial, result in group
            if "lr" in trial.hyper and not result.diverged
        ]
        if width := lr_width(rates, maximize=task.maximize):
            widths.append(width)
    if not widths:
        return None
    return {
        "seen": st.median(width["seen"] for width in widths),
        "tunings": len(widths),
        "points": max(width["points"] for width in widths),
    }


def _space(
    plan: Plan, name: str, stored: Mapping[str, Mapping[str, tuple[float, float]]]
) -> dict[str, list[float]] | None:
    """The search ranges; None if the code that defines the entry no longer exists or is unknown."""
    if plan.imported:  # the name may be that of one of our rules, or of a module
        return None
    try:
        space = stored[name] if name in stored else plan.space(name)
        return {knob: list(ends) for knob, ends in space.items()}
    except (BadCall, KeyError):
        return None


def target_index(task: Task, result: Result) -> int | None:
    """Index of the first evaluation at or beyond the target; None if the run did not reach it."""
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
    """Median and quartiles of the validation metric over seeds.

    After a run has diverged, it counts as the worst metric.
    """
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


def reproduce(plan: Plan, *, proportion: bool = False) -> str:
    """The command line that runs the same trials again. It states what a budget or a measurement
    chose.
    """
    line = command(plan, proportion=proportion)
    return f"{line} --together {plan.together}" if plan.looks else line


def command(plan: Plan, *, proportion: bool = False) -> str:
    """The command line of a race with this plan, without --together and --out."""
    size = f"--seeds {plan.seeds}"
    if plan.looks:
        size = f"--looks {','.join(map(str, plan.looks))}"
        if plan.margin is not None:
            size += f" --margin {plan.margin * (100 if proportion else 1):g}"
    numbers = f"--trials {plan.trials} {size} --steps {plan.steps} --seed {plan.seed}"
    names = ",".join(plan.entries)
    data = f" --data {shlex.quote(plan.data)}" if plan.data else ""
    data += f" --device {plan.device}" if plan.device else ""
    where = f"{shlex.quote(plan.task)}{data} --optimizers {shlex.quote(names)}"
    if plan.baseline != replace(plan, baseline="").baseline:
        where += f" --baseline {shlex.quote(plan.baseline)}"
    if plan.spaces:
        where += f" --spaces {plan.spaces}"
    if ranges := searching.as_option(plan.search):
        where += f" --search {shlex.quote(ranges)}"
    return f"steepest race {where} {numbers}"
