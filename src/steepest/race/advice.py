"""What to do after a race: the optimizer to use, as code to paste, and the race to run next."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from steepest.race.field import BASELINE
from steepest.race.lint import LOWER
from steepest.race.protocol import LEAST_SEEDS, LEAST_TRIALS, Plan
from steepest.race.schema import BestTrial, Summary
from steepest.race.statements import statements
from steepest.race.verdicts import HALF, is_kept, less_seeds, more_seeds, nothing_compared
from steepest.tasks import Task
from steepest.training.recipe import Recipe

LONGER = 4
"""If every fresh run failed, the next race may have this many times the steps."""
DECIDE, FINISH = "decide what is still open", "finish this race"
"""Purposes of the race to run next."""


def code(task: Task, plan: Plan, name: str, best: BestTrial, tunings: int) -> str:
    """The optimizer of an entry with the values of its best trial, as Python to paste.

    tunings: how many tunings the entry had. Each chose a trial; `best` is the best chosen trial.
    """
    chosen = f"best of n={tunings} tunings by validation {task.metric}"
    if tunings == 1:
        chosen = f"best trial of its tuning (n=1) by validation {task.metric}"
    if plan.trials == 1:
        chosen = "its defaults, nothing was tuned"
    comment = f"# {name}: {chosen}; for runs of {plan.steps} steps"
    mode = "max" if task.maximize else "min"
    body = Recipe.read(name).code(best["hyperparameters"], plan.steps, mode)
    return f"{' '.join(comment.split())}\n{body}"


def to_use(summary: Summary) -> list[str]:
    """The entries that the race recommends: those better than the baseline, the largest gain first.

    If none is better, the baseline, unless runs of it failed. Empty if the race shows too little.
    """
    base, plan = summary["baseline"], summary["plan"]
    rivals = len(summary["entries"]) > 1
    few = plan["trials"] < LEAST_TRIALS or less_seeds(summary) or nothing_compared(summary)
    if not summary["complete"] or plan.get("imported") or (rivals and few):
        return []
    better = list(statements(summary).better)
    return better or ([] if summary["entries"][base]["failed"] else [base])


def next_race(summary: Summary, plan: Plan) -> tuple[str, Plan] | None:
    """(purpose, plan) of the race that would help most to run next; None if nothing is open.

    A new race has another study seed; with the same seed, it would repeat runs of this race.
    """
    if plan.imported:
        return None
    if not summary["complete"]:
        return FINISH, plan
    fresh, base = replace(plan, seed=plan.seed + 1), summary["baseline"]
    diverged = [name for name, e in summary["entries"].items() if e["diverged"]["fresh"]]
    if nothing_compared(summary):
        if lower := _lowered(summary, fresh, diverged):
            return "try lower learning rates", lower
        return "train for longer", replace(fresh, steps=LONGER * plan.steps)
    seeds, trials = max(plan.seeds, LEAST_SEEDS), max(plan.trials, LEAST_TRIALS)
    if len(plan.entries) == 1:
        other = BASELINE if base != BASELINE else "momentum"
        both = replace(fresh, entries=(base, other), seeds=seeds, trials=trials)
        return f"compare {base} with another optimizer", both
    if less_seeds(summary):
        return "get a verdict", replace(fresh, seeds=seeds, trials=trials)
    if trials > plan.trials:
        return "tune enough for a verdict", replace(fresh, trials=trials)
    if base in diverged and (lower := _lowered(summary, fresh, [base])):
        return (f"see how {base} does at lower learning rates, where it may not diverge", lower)
    made = statements(summary)
    if not made.undecided or not (plan.looks or made.better or not is_kept(summary)):
        return None
    names = tuple(e for e in plan.entries if e in made.undecided or e == base)
    search = {entry: knobs for entry, knobs in plan.search.items() if entry in names}
    fewer = replace(fresh, entries=names, search=search)
    if plan.looks:
        return DECIDE, replace(fewer, looks=tuple(HALF * units for units in plan.looks))
    needed = more_seeds(summary, made.undecided)
    return (DECIDE, replace(fewer, seeds=needed)) if needed else None


def _lowered(summary: Summary, plan: Plan, names: Iterable[str]) -> Plan | None:
    """The plan with a lower range of the learning rate for the named entries; None if none of them
    has a learning rate.
    """
    search = {entry: dict(knobs) for entry, knobs in plan.search.items()}
    for name in names:
        ends = (summary["entries"][name]["space"] or {}).get("lr")
        if ends:
            lower = [float(f"{end / LOWER:.4g}") for end in ends]
            search.setdefault(name, {})["lr"] = lower
    return replace(plan, search=search) if search != plan.search else None
