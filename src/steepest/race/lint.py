"""What is wrong with a race although it ran: pure functions of its summary.

A finding is {"name", "entry", "text"}; its sentence has the number that gave it away and a cure.
"""

from __future__ import annotations

import math
import statistics as st
from collections.abc import Callable, Iterator
from typing import Any

from scipy import stats

import steepest
from steepest.race.statistics import ALPHA, LEAST, compare

Summary = dict[str, Any]
Finding = tuple[str, str]
"""(entry, sentence)"""
EDGE = 0.1
"""Share of a search range, in decades, that counts as its border."""
TRIALS_TO_JUDGE = 3
"""Fewer tuning trials always have their best at one end."""
POINTS_PER_KNOB = 4
"""Quasi-random points that a knob needs: over the usual four decades, one in each."""

INCLUDES = {
    # (general, special): the knob that makes one the other, and how. Choi et al. 2019: the
    # general one, tuned over that knob too, can only win. An entry's rule with a large eps has a
    # constant denominator, and its averaged gradient is momentum at another rate.
    ("momentum", "sgd"): ("momentum", "momentum=0"),
    ("nesterov", "sgd"): ("momentum", "momentum=0"),
    ("classical_momentum", "sgd"): ("momentum", "momentum=0"),
    ("classical_nesterov", "sgd"): ("momentum", "momentum=0"),
    ("adamw", "adam"): ("weight_decay", "weight_decay=0"),
    ("adabound", "adam"): ("gamma", "gamma=0"),
    ("amsbound", "amsgrad"): ("gamma", "gamma=0"),
    ("rmsprop", "sgd"): ("eps", "a large eps"),
    ("adam", "momentum"): ("eps", "a large eps"),
    ("adamw", "momentum"): ("eps", "a large eps"),
    ("eadam", "momentum"): ("eps", "a large eps"),
    ("adabelief", "momentum"): ("eps", "a large eps"),
}

HORIZONS: dict[str, tuple[str, Callable[[float], float], str]] = {
    # rule: the knob that counts steps, the steps until it has acted, and what then has happened
    "asgd": ("t0", lambda t0: t0, "begins to average"),
    "adabound": ("gamma", lambda gamma: 1 / gamma if gamma else math.inf, "is halfway to SGD"),
    "amsbound": ("gamma", lambda gamma: 1 / gamma if gamma else math.inf, "is halfway to SGD"),
}


def lint(summary: Summary) -> list[dict[str, str]]:
    """All findings about a race, in the order of `RULES`. An interrupted race is not judged."""
    if not summary["complete"]:
        return []
    return [
        {"name": name, "entry": entry, "text": text}
        for name, rule in RULES.items()
        for entry, text in rule(summary)
    ]


def untuned(summary: Summary) -> Iterator[Finding]:
    """Nothing but the defaults could be chosen: drawn grey in every figure."""
    for name, entry in summary["entries"].items():
        if entry["untuned"]:
            yield name, f"{name} is untuned: {entry['untuned']}"


def untuned_because(tuning: list[dict[str, Any]]) -> str | None:
    """Why only the defaults could be chosen, and the cure; None where there was a choice."""
    defaults = tuning[0]["hyperparameters"]
    if not defaults:
        return "no search space is declared for it (0 knobs); declare one beside its rule"
    others = [trial for trial in tuning if trial["hyperparameters"] != defaults]
    if not others:
        return "nothing but the defaults was tried (1 configuration); give --trials 2 or more"
    if all(trial["diverged"] for trial in others):
        return (
            f"all of its {len(others)} trials but the defaults diverged; "
            f"lower its search range of lr"
        )
    return None


def diverged_best(summary: Summary) -> Iterator[Finding]:
    """The chosen configuration does not train."""
    for name, entry in summary["entries"].items():
        lost, n = entry["diverged"]["fresh"], len(entry["test"])
        if entry["tuning"][entry["best_trial"]]["diverged"]:
            text = (
                f"all {entry['trials']} tuning trials of {name} diverged, the one that was run "
                f"again too; lower its search range of lr"
            )
            yield name, text
        elif lost:
            text = (
                f"the best configuration of {name} diverged on {lost} of {n} fresh seeds; it lies "
                f"too close to instability: give it more trials or a lower range of lr"
            )
            yield name, text


def border(summary: Summary) -> Iterator[Finding]:
    """The best value of a knob is the last one tried, at the border of its range."""
    for name, entry in summary["entries"].items():
        best = entry["tuning"][entry["best_trial"]]
        if len(entry["tuning"]) < TRIALS_TO_JUDGE or best["diverged"] or entry["untuned"]:
            continue
        equal = [t for t in entry["tuning"] if t["validation"] == best["validation"]]
        for knob, (low, high) in (entry["space"] or {}).items():
            value = best["hyperparameters"][knob]
            tried = [t["hyperparameters"][knob] for t in entry["tuning"]]
            inside = (high / low) ** EDGE
            for side, last, near in (
                ("lower", min(tried), value <= low * inside),
                ("upper", max(tried), value >= high / inside),
            ):
                if near and all(t["hyperparameters"][knob] == last for t in equal):
                    text = (
                        f"the best {knob} of {name}, {value:.3g}, is the last of {len(tried)} "
                        f"tried at the {side} border of its range ({low:g} to {high:g}); "
                        f"widen the range there"
                    )
                    yield name, text


def few_trials(summary: Summary) -> Iterator[Finding]:
    """Fewer quasi-random points than four a knob."""
    for name, entry in summary["entries"].items():
        knobs, points = len(entry["hyperparameters"]), summary["plan"]["trials"] - 1
        if 0 < points < POINTS_PER_KNOB * knobs:
            need = POINTS_PER_KNOB * knobs + 1
            text = (
                f"{name} has {knobs} {'knob' if knobs == 1 else 'knobs'} and {points} points "
                f"beside its defaults; give --trials {need} or more"
            )
            yield name, text


def worse_than_default(summary: Summary) -> Iterator[Finding]:
    """The chosen baseline falls short, on fresh seeds, of what its defaults reached in tuning.

    By more than one new run could by chance: the 95 % prediction interval of the fresh runs.
    """
    name = summary["baseline"]
    entry = summary["entries"][name]
    fresh, default = entry["validation"], entry["tuning"][0]
    n, shown = len(fresh), _shown(summary)
    if entry["best_trial"] == 0 or default["diverged"] or n < LEAST:
        return
    mean = st.fmean(fresh)
    reach = stats.t.isf(ALPHA / 2, n - 1) * st.stdev(fresh) * math.sqrt(1 + 1 / n)
    short = (default["validation"] - mean) * (1 if summary["maximize"] else -1)
    if short > reach:
        text = (
            f"{name} as tuned reached {shown(mean)} in validation on {n} fresh seeds, its defaults "
            f"{shown(default['validation'])} in tuning: a lucky trial was chosen; give more trials "
            f"or longer runs"
        )
        yield name, text


def inclusion(summary: Summary) -> Iterator[Finding]:
    """An entry loses to its own special case, at 5 % on paired seeds."""
    shown, found = _shown(summary), summary["entries"]
    for (general, special), (knob, how) in INCLUDES.items():
        if general not in found or special not in found:
            continue
        a, b = (found[name]["test"] for name in (general, special))
        d = compare({general: [x - y for x, y in zip(a, b, strict=True)]})[general]
        if d.claim and (d.mean < 0) == summary["maximize"]:
            searched = knob in found[general]["hyperparameters"]
            cure = "give it more trials" if searched else f"search its {knob}"
            text = (
                f"{general} ({shown(st.fmean(a))}) loses to {special} ({shown(st.fmean(b))}) at "
                f"n={d.n} although with {how} it is {special}; {cure} before blaming the method"
            )
            yield general, text


def schedule(summary: Summary) -> Iterator[Finding]:
    """Something that is planned over steps ends, or begins, after the run."""
    steps = summary["plan"]["steps"]
    for name, entry in summary["entries"].items():
        planned = entry.get("schedule_steps")
        if planned and planned > steps:
            text = (
                f"the schedule of {name} is made for {planned:,} steps and the run has {steps:,}; "
                f"shorten it, or give --steps {planned}"
            )
            yield name, text
        rule = name.partition("+")[0]
        if rule not in HORIZONS or rule not in steepest.rules:
            continue
        knob, acts, event = HORIZONS[rule]
        value = {**steepest.rules[rule].defaults, **(entry["hyperparameters"] or {})}[knob]
        if acts(value) > steps:
            text = (
                f"{name} {event} at step {acts(value):,.0f} ({knob}={value:g}) and the run has "
                f"{steps:,}; change {knob}, or give more --steps"
            )
            yield name, text


def test_noise(summary: Summary) -> Iterator[Finding]:
    """A claimed difference is smaller than the standard error of the test set."""
    error, shown = summary.get("test_standard_error"), _shown(summary)
    for name, entry in summary["entries"].items():
        d = entry["difference"]
        if error and d and d["claim"] and abs(d["mean"]) < error:
            text = (
                f"{name} differs by {shown(abs(d['mean']))}, less than the standard error "
                f"{shown(error)} of the test set's {summary['test_size']} cases: the seeds agree, "
                f"other cases might not; take more test data"
            )
            yield name, text


RULES: dict[str, Callable[[Summary], Iterator[Finding]]] = {
    "untuned": untuned,
    "diverged": diverged_best,
    "border": border,
    "few-trials": few_trials,
    "worse-than-default": worse_than_default,
    "inclusion": inclusion,
    "schedule": schedule,
    "test-noise": test_noise,
}


def _shown(summary: Summary) -> Callable[[float], str]:
    return (lambda v: f"{100 * v:.2f}") if summary["proportion"] else (lambda v: f"{v:.4g}")
