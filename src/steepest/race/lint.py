"""Findings: what is wrong with a race that ran to its end. Pure functions of its summary.

The text of a finding has the number that shows the fault, and a cure.
"""

from __future__ import annotations

import math
import statistics as st
from collections.abc import Callable, Iterator
from typing import Any

from scipy import stats

import steepest
from steepest.race.phrases import is_imported, plural
from steepest.race.protocol import LEAST_TRIALS
from steepest.race.schema import EntrySummary, Finding, Summary, TuningTrial
from steepest.statistics.inference import ALPHA, LEAST, compare, paired
from steepest.training.recipe import Recipe
from steepest.training.spaces import COMPLEMENT, options, twin

Found = tuple[str, str]
"""(entry, sentence)"""
TRIALS_TO_JUDGE = 3
"""With fewer tuning trials, the best value of a knob is always the lowest or the highest."""
LOWER = 10
"""After a divergence, both ends of the range of lr are divided by this."""
COSTLY = 1.5
"""`cost` reports an entry that computes more than this many times the baseline's gradients."""
POINTS_PER_KNOB = 4
"""Quasi-random points that a knob needs: one in each of the four decades of a usual range."""


def lint(summary: Summary) -> list[Finding]:
    """All findings about a race, in the order of `RULES`.

    Empty for an interrupted race, and for imported runs, whose tuning is unknown.
    """
    if not summary["complete"] or is_imported(summary):
        return []
    return [
        {"name": name, "entry": entry, "text": text}
        for name, rule in RULES.items()
        for entry, text in rule(summary)
    ]


def untuned(summary: Summary) -> Iterator[Found]:
    """Warn of an entry for which only the defaults could be chosen. Figures show it in grey."""
    for name, entry in summary["entries"].items():
        if entry["untuned"]:
            yield name, f"{name} is untuned: {entry['untuned']}"


def untuned_because(tuning: list[TuningTrial]) -> str | None:
    """Why only the defaults could be chosen, and the cure; None if there was a choice."""
    defaults = tuning[0]["hyperparameters"]
    if not defaults:
        return (
            "no search space is declared for it (0 knobs); give one with --search, as in "
            "--search adamw.lr=1e-5:1e-1"
        )
    others = [trial for trial in tuning if trial["hyperparameters"] != defaults]
    if not others:
        return (
            f"only the defaults were tried (1 configuration); give --trials {LEAST_TRIALS} or more"
        )
    if all(trial["diverged"] for trial in others):
        return (
            f"all of its {len(others)} {plural('trial', len(others))} except the defaults "
            f"diverged; give a lower range of lr with --search"
        )
    return None


def diverged_best(summary: Summary) -> Iterator[Found]:
    """Warn if the chosen configuration of an entry diverges."""
    each = "unit" if summary["plan"].get("looks") else "fresh seed"
    for name, entry in summary["entries"].items():
        diverged, n = entry["diverged"]["fresh"], len(entry["test"])
        if summary["plan"].get("looks"):
            n = len(entry["chosen"] or ())
            diverged = entry["failed_units"]
        hopeless = sum(bool(entry["tuning"][i]["diverged"]) for i in entry["chosen"] or ())
        if hopeless:
            text = (
                f"All tuning trials of {name} diverged for {hopeless} of {n} "
                f"{plural(each, n)}; give {_lower(entry, name)}"
            )
            yield name, text
        elif diverged:
            text = (
                f"The chosen configuration of {name} diverged on {diverged} of {n} "
                f"{plural(each, n)}, so training is close to instability; give more --trials or "
                f"{_lower(entry, name)}"
            )
            yield name, text


def border(summary: Summary) -> Iterator[Found]:
    """Warn if the best value of a knob is too often the lowest value tried, or the highest.

    If the knob had no effect, its lowest value would be the best in 1 / (number of trials) of the
    tunings, and so would its highest. A binomial test compares this share with the observed share.
    The level of the test is 5 % over both ends of all knobs together (Bonferroni).
    """
    trials = summary["plan"]["trials"]
    if trials < TRIALS_TO_JUDGE:
        return
    spaces = {
        (name, knob): ends
        for name, entry in summary["entries"].items()
        if not entry["untuned"]
        for knob, ends in (entry["space"] or {}).items()
    }
    for (name, knob), (low, high) in spaces.items():
        n = len(summary["entries"][name]["chosen"] or ())
        for side, count in _at_the_ends(summary["entries"][name], knob, trials).items():
            chance = float(stats.binom.sf(count - 1, n, 1 / trials))
            if chance < ALPHA / (2 * len(spaces)):
                text = (
                    f"The best {knob} of {name} was the {side} value in {count} of {n} "
                    f"{plural('tuning', n)}, but chance would give {n / trials:.2g}; give "
                    f"--search {name}.{knob}={_widened(knob, low, high, side)} (the range was "
                    f"{low:g} to {high:g}), or more --trials if the range was wide enough"
                )
                yield name, text


def _at_the_ends(entry: EntrySummary, knob: str, trials: int) -> dict[str, int]:
    """Number of tunings in which the best value of a knob was the lowest tried, or the highest."""
    counts = {"lowest": 0, "highest": 0}
    for i, chosen in enumerate(entry["chosen"] or ()):
        tried = entry["tuning"][i * trials : (i + 1) * trials]
        best = entry["tuning"][chosen]["validation"]
        # of several equally good values, the least extreme counts
        bests = [
            trial["hyperparameters"][knob]
            for trial in tried
            if trial["validation"] == best and not (trial["diverged"] or trial.get("halted"))
        ]
        values = [trial["hyperparameters"][knob] for trial in tried]
        if bests and min(values) < max(values):
            counts["lowest"] += max(bests) == min(values)
            counts["highest"] += min(bests) == max(values)
    return counts


def few_trials(summary: Summary) -> Iterator[Found]:
    """Warn if an entry has fewer than four quasi-random points for each of its knobs."""
    for name, entry in summary["entries"].items():
        knobs, points = len(entry["hyperparameters"] or ()), summary["plan"]["trials"] - 1
        if 0 < points < POINTS_PER_KNOB * knobs:
            needed = POINTS_PER_KNOB * knobs + 1
            text = (
                f"{name} has {knobs} {plural('knob', knobs)}, but only {points} "
                f"{plural('trial', points)} besides its defaults; give --trials {needed} or more"
            )
            yield name, text


def worse_than_default(summary: Summary) -> Iterator[Found]:
    """Warn if the tuned baseline is worse on fresh seeds than its defaults were in tuning.

    The test is Welch's t test at 5 %, since tuning and fresh runs have different seeds and are not
    pairs.
    """
    name, trials = summary["baseline"], summary["plan"]["trials"]
    entry = summary["entries"][name]
    fresh, defaults = entry["validation"], entry["tuning"][::trials]
    n, shown = len(fresh), _shown(summary)
    if n < LEAST or n != len(defaults):  # several runs of a unit are not independent
        return
    if any(trial["diverged"] or trial.get("halted") for trial in defaults):
        return
    if entry["diverged"]["fresh"]:  # `diverged_best` reports this; a t test would mean nothing
        return
    if all(i % trials == 0 for i in entry["chosen"] or ()):  # the defaults were chosen
        return
    before = [trial["validation"] for trial in defaults]
    loss = (st.fmean(before) - st.fmean(fresh)) * (1 if summary["maximize"] else -1)
    moments = [x for v in (before, fresh) for x in (st.fmean(v), st.stdev(v), n)]
    spread = moments[1] + moments[4]
    test: Any = stats.ttest_ind_from_stats(*moments, equal_var=False) if spread else None
    if loss > 0 and (test is None or test.pvalue < ALPHA):
        text = (
            f"{name} as tuned reached {shown(st.fmean(fresh))} in validation on {n} fresh seeds, "
            f"but its defaults reached {shown(st.fmean(before))} in tuning, so lucky trials were "
            f"chosen; give more --trials or --steps"
        )
        yield name, text


def inclusion(summary: Summary) -> Iterator[Found]:
    """Warn if an entry is worse than another entry that is a special case of it.

    The test is paired by seed or by unit. Its level is 5 % over all such pairs of entries.
    """
    shown, entries = _shown(summary), summary["entries"]
    pairs = {
        f"{general} {special}": (general, special)
        for general in entries
        if general in steepest.rules
        for special in steepest.rules[general].includes
        if special in entries
    }
    # how many units an entry has depends on its results, except at the first look
    units = next(iter(summary["plan"].get("looks", ())), None)
    unit = "unit" if units else "seed"
    values = {name: entry.get("units", entry["test"])[:units] for name, entry in entries.items()}
    judged = compare(
        {key: paired(values[a], values[b]) for key, (a, b) in pairs.items()},
        failed=[k for k, (a, b) in pairs.items() if entries[a]["failed"] or entries[b]["failed"]],
    )
    for key, d in judged.items():
        general, special = pairs[key]
        knob, how = steepest.rules[general].includes[special]
        a, b = (st.fmean(values[name]) for name in (general, special))
        if d.claim and (d.mean < 0) == summary["maximize"]:
            searched = {knob, twin(knob)} & (entries[general]["hyperparameters"] or {}).keys()
            cure = "give more --trials" if searched else f"give --search {general}.{knob}=LOW:HIGH"
            text = (
                f"{general} ({shown(a)}) loses to {special} ({shown(b)}) over n={d.n} "
                f"{plural(unit, d.n)}, although it equals {special} with {how}; {cure} before you "
                f"conclude that {general} is worse"
            )
            yield general, text


def schedule(summary: Summary) -> Iterator[Found]:
    """Warn if an optimizer is set to change at a step that the run does not reach."""
    steps = summary["plan"]["steps"]
    for name, entry in summary["entries"].items():
        rule = steepest.rules.get(Recipe.read(name).base)
        if rule is None:
            continue
        chosen = {k: middle for k, (_, middle, _) in (entry["hyperparameters"] or {}).items()}
        for knob, clock in rule.clocks.items():
            value = {**rule.defaults, **options(chosen)}[knob]
            if clock.step(value) > steps:
                low, high = sorted(clock.value(share * steps) for share in (0.1, 0.5))
                text = (
                    f"{name} {clock.event} at step {clock.step(value):,.0f} ({knob}={value:g}), "
                    f"but a run ends at step {steps:,}; give --search "
                    f"{name}.{knob}={low:.3g}:{high:.3g}, or more --steps"
                )
                yield name, text


def cost(summary: Summary) -> Iterator[Found]:
    """Warn if an entry computed many more gradients than the baseline in equally many steps."""
    name_of_base, steps = summary["baseline"], summary["plan"]["steps"]
    base = summary["entries"][name_of_base].get("gradients")
    for name, entry in summary["entries"].items():
        spent = entry.get("gradients")
        if base and spent and spent > COSTLY * base:
            text = (
                f"{name} computed {spent:,.0f} gradients of a batch for its {steps:,} steps, but "
                f"{name_of_base} computed {base:,.0f}, so a step of {name} costs "
                f"{spent / base:,.1f} times as much; compare by seconds, or give {name_of_base} "
                f"more --steps in another race"
            )
            yield name, text


def test_noise(summary: Summary) -> Iterator[Found]:
    """Warn if a claimed difference is below the error that the choice of test cases may cause.

    A test case contributes a difference of -1, 0 or 1. It is 0 if both entries are right or both
    are wrong. So the variance per case is at most a + b - (a - b)^2, where a and b are the error
    rates. This holds for means over seeds as well. If both entries are wrong on the same cases, the
    variance is smaller, but the summary does not show how much smaller.
    """
    shown, size = _shown(summary), summary["test_size"]
    base = summary["entries"][summary["baseline"]]["test"]
    for name, entry in summary["entries"].items():
        d = entry["difference"]
        if not (summary["proportion"] and size and d and d["claim"]):
            continue
        errors = 2 - st.fmean(base) - st.fmean(entry["test"])
        if not summary["maximize"]:
            errors = st.fmean(base) + st.fmean(entry["test"])
        noise = math.sqrt(max(0.0, errors - d["mean"] ** 2) / size)
        if abs(d["mean"]) < noise:
            text = (
                f"{name} differs by {shown(abs(d['mean']))}, but with only n={size} test cases the "
                f"standard error of this difference may be as large as {shown(noise)}, so another "
                f"test set might not show the difference; use more test data"
            )
            yield name, text


RULES: dict[str, Callable[[Summary], Iterator[Found]]] = {
    "untuned": untuned,
    "diverged": diverged_best,
    "border": border,
    "few-trials": few_trials,
    "worse-than-default": worse_than_default,
    "inclusion": inclusion,
    "schedule": schedule,
    "cost": cost,
    "test-noise": test_noise,
}


def _lower(entry: EntrySummary, name: str) -> str:
    """The option that gives a lower range of the learning rate, for the end of a sentence."""
    ends = (entry["space"] or {}).get("lr")
    if ends is None:
        return "it another --search range"
    low, high = ends
    return f"--search {name}.lr={low / LOWER:.4g}:{high / LOWER:.4g}"


def _widened(knob: str, low: float, high: float, side: str) -> str:
    if side == "lowest":
        return f"{low / 100:.4g}:{high:.4g}"
    most = 1.0 if knob.startswith(COMPLEMENT) else math.inf  # one minus an option of at least 0
    return f"{low:.4g}:{min(100 * high, most):.4g}"


def _shown(summary: Summary) -> Callable[[float], str]:
    return (lambda v: f"{100 * v:.2f}") if summary["proportion"] else (lambda v: f"{v:.4g}")
