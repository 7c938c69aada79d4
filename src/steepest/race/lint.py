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
from steepest.race.phrases import plural
from steepest.race.protocol import LEAST_TRIALS
from steepest.race.schema import EntrySummary, Summary, TuningTrial
from steepest.race.schema import Finding as FindingRecord
from steepest.race.statistics import ALPHA, LEAST, compare, paired

Finding = tuple[str, str]
"""(entry, sentence)"""
TRIALS_TO_JUDGE = 3
"""Fewer tuning trials always have their best at one end."""
MUCH = 1.5
"""So many times the baseline's gradients are no equal cost."""
POINTS_PER_KNOB = 4
"""Quasi-random points that a knob needs: over the usual four decades, one in each."""


def lint(summary: Summary) -> list[FindingRecord]:
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


def untuned_because(tuning: list[TuningTrial]) -> str | None:
    """Why only the defaults could be chosen, and the cure; None where there was a choice."""
    defaults = tuning[0]["hyperparameters"]
    if not defaults:
        return (
            "no search space is declared for it (0 knobs); give one with --search, as in "
            "--search adamw.lr=1e-5:1e-1"
        )
    others = [trial for trial in tuning if trial["hyperparameters"] != defaults]
    if not others:
        return (
            f"nothing but the defaults was tried (1 configuration); give --trials {LEAST_TRIALS} "
            f"or more"
        )
    if all(trial["diverged"] for trial in others):
        return (
            f"all of its {len(others)} {plural('trial', len(others))} but the defaults diverged; "
            f"give a lower range of lr with --search"
        )
    return None


def diverged_best(summary: Summary) -> Iterator[Finding]:
    """The chosen configuration does not train."""
    for name, entry in summary["entries"].items():
        lost, n = entry["diverged"]["fresh"], len(entry["test"])
        hopeless = sum(bool(entry["tuning"][i]["diverged"]) for i in entry["chosen"] or ())
        if hopeless:
            text = (
                f"All tuning trials of {name} diverged for {hopeless} of {n} fresh "
                f"{plural('seed', n)}; give {_lower(entry, name)}"
            )
            yield name, text
        elif lost:
            text = (
                f"The chosen configuration of {name} diverged on {lost} of {n} fresh "
                f"{plural('seed', n)}; it lies too close to instability: give more --trials or "
                f"{_lower(entry, name)}"
            )
            yield name, text


def border(summary: Summary) -> Iterator[Finding]:
    """The best value of a knob is the lowest or the highest one tried in more tunings than chance.

    Were the knob without effect, either would be so in one of as many tunings as there are trials:
    a binomial test at 5 %, shared among all ends of all knobs (Bonferroni).
    """
    trials, n = summary["plan"]["trials"], summary["plan"]["seeds"]
    if trials < TRIALS_TO_JUDGE:
        return
    judged = {
        (name, knob): ends
        for name, entry in summary["entries"].items()
        if not entry["untuned"]
        for knob, ends in (entry["space"] or {}).items()
    }
    for (name, knob), (low, high) in judged.items():
        entry, at = summary["entries"][name], {"lowest": 0, "highest": 0}
        for i, chosen in enumerate(entry["chosen"] or ()):
            tried = entry["tuning"][i * trials : (i + 1) * trials]
            best = entry["tuning"][chosen]
            equal = [t for t in tried if t["validation"] == best["validation"]]
            ends = [t["hyperparameters"][knob] for t in equal if not t["diverged"]]
            values = [t["hyperparameters"][knob] for t in tried]
            if ends and min(values) < max(values):
                at["lowest"] += max(ends) == min(values)
                at["highest"] += min(ends) == max(values)
        for side, count in at.items():
            chance = float(stats.binom.sf(count - 1, n, 1 / trials))
            if chance < ALPHA / (2 * len(judged)):
                text = (
                    f"The best {knob} of {name} is the {side} one tried in {count} of {n} "
                    f"{plural('tuning', n)}, by chance it would be in {n / trials:.2g}; give "
                    f"--search {name}.{knob}={_widened(low, high, side)} (it was {low:g} to "
                    f"{high:g}), or more --trials if that range reaches far enough"
                )
                yield name, text


def few_trials(summary: Summary) -> Iterator[Finding]:
    """Fewer quasi-random points than four a knob."""
    for name, entry in summary["entries"].items():
        knobs, points = len(entry["hyperparameters"] or ()), summary["plan"]["trials"] - 1
        if 0 < points < POINTS_PER_KNOB * knobs:
            need = POINTS_PER_KNOB * knobs + 1
            text = (
                f"{name} has {knobs} {plural('knob', knobs)} and {points} "
                f"{plural('point', points)} beside its defaults; give --trials {need} or more"
            )
            yield name, text


def worse_than_default(summary: Summary) -> Iterator[Finding]:
    """The tuned baseline falls short, on fresh seeds, of what its defaults reached in tuning.

    By Welch's t test at 5 %: the seeds of tuning are other ones.
    """
    name, trials = summary["baseline"], summary["plan"]["trials"]
    entry = summary["entries"][name]
    fresh, defaults = entry["validation"], entry["tuning"][::trials]
    n, shown = len(fresh), _shown(summary)
    if n < LEAST or any(trial["diverged"] for trial in defaults):
        return
    if entry["diverged"]["fresh"]:  # which `diverged_best` says; a t test knows nothing then
        return
    if all(i % trials == 0 for i in entry["chosen"] or ()):  # what was run again are the defaults
        return
    before = [trial["validation"] for trial in defaults]
    short = (st.fmean(before) - st.fmean(fresh)) * (1 if summary["maximize"] else -1)
    known = [x for v in (before, fresh) for x in (st.fmean(v), st.stdev(v), n)]
    spread = known[1] + known[4]
    test: Any = stats.ttest_ind_from_stats(*known, equal_var=False) if spread else None
    if short > 0 and (test is None or test.pvalue < ALPHA):
        text = (
            f"{name} as tuned reached {shown(st.fmean(fresh))} in validation on {n} fresh seeds, "
            f"its defaults {shown(st.fmean(before))} in tuning: lucky trials were chosen; give "
            f"more --trials or --steps"
        )
        yield name, text


def inclusion(summary: Summary) -> Iterator[Finding]:
    """An entry loses to its own special case: at 5 % on paired seeds, over all such pairs."""
    shown, found = _shown(summary), summary["entries"]
    both = {
        f"{a} {b}": (a, b)
        for a in found
        if a in steepest.rules
        for b in steepest.rules[a].includes
        if b in found
    }
    judged = compare(
        {key: paired(found[a]["test"], found[b]["test"]) for key, (a, b) in both.items()},
        failed=[key for key, (a, b) in both.items() if found[a]["failed"] or found[b]["failed"]],
    )
    for key, d in judged.items():
        general, special = both[key]
        knob, how = steepest.rules[general].includes[special]
        a, b = (found[name]["test"] for name in (general, special))
        if d.claim and (d.mean < 0) == summary["maximize"]:
            searched = knob in (found[general]["hyperparameters"] or ())
            cure = "give more --trials" if searched else f"give --search {general}.{knob}=LOW:HIGH"
            text = (
                f"{general} ({shown(st.fmean(a))}) loses to {special} ({shown(st.fmean(b))}) at "
                f"n={d.n} although with {how} it is {special}; {cure} before blaming the method"
            )
            yield general, text


def schedule(summary: Summary) -> Iterator[Finding]:
    """Something that an optimizer counts steps for begins after the run."""
    steps = summary["plan"]["steps"]
    for name, entry in summary["entries"].items():
        rule = name.partition("+")[0]
        if rule not in steepest.rules:
            continue
        chosen = {name: middle for name, (_, middle, _) in (entry["hyperparameters"] or {}).items()}
        for knob, clock in steepest.rules[rule].clocks.items():
            value = {**steepest.rules[rule].defaults, **chosen}[knob]
            if clock.step(value) > steps:
                low, high = sorted(clock.value(share * steps) for share in (0.1, 0.5))
                text = (
                    f"{name} {clock.event} at step {clock.step(value):,.0f} ({knob}={value:g}) and "
                    f"the run has {steps:,}; give --search {name}.{knob}={low:.3g}:{high:.3g}, or "
                    f"more --steps"
                )
                yield name, text


def cost(summary: Summary) -> Iterator[Finding]:
    """An entry has computed many more gradients than the baseline in as many steps."""
    base = summary["entries"][summary["baseline"]].get("gradients")
    for name, entry in summary["entries"].items():
        spent = entry.get("gradients")
        if base and spent and spent > MUCH * base:
            text = (
                f"{name} computed {spent:,.0f} gradients of a batch for its "
                f"{summary['plan']['steps']:,} steps, {summary['baseline']} {base:,.0f}: at equal "
                f"steps it is dearer {spent / base:,.1f} times over; compare by seconds, or give "
                f"{summary['baseline']} more --steps in another race"
            )
            yield name, text


def test_noise(summary: Summary) -> Iterator[Finding]:
    """A claimed difference is smaller than what the choice of the test cases may make of it.

    A case's difference is -1, 0 or 1, and not 0 only where one of the two is wrong: its variance is
    at most the sum of both shares of errors, less the difference squared, also after a mean over
    seeds. Two that are wrong on the same cases differ by less; how much less is not known here.
    """
    shown, size = _shown(summary), summary["test_size"]
    base = summary["entries"][summary["baseline"]]["test"]
    for name, entry in summary["entries"].items():
        d = entry["difference"]
        if not (summary["proportion"] and size and d and d["claim"]):
            continue
        wrong = 2 - st.fmean(base) - st.fmean(entry["test"])
        if not summary["maximize"]:
            wrong = st.fmean(base) + st.fmean(entry["test"])
        error = math.sqrt(max(0.0, wrong - d["mean"] ** 2) / size)
        if abs(d["mean"]) < error:
            text = (
                f"{name} differs by {shown(abs(d['mean']))}, and the choice of n={size} test cases "
                f"may move that by up to {shown(error)} (one standard error): the seeds agree, "
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
    "cost": cost,
    "test-noise": test_noise,
}


def _lower(entry: EntrySummary, name: str) -> str:
    """The option that asks for a lower range of the learning rate."""
    ends = (entry["space"] or {}).get("lr")
    if ends is None:
        return "it another --search range"
    low, high = ends
    return f"--search {name}.lr={low / 10:.4g}:{high / 10:.4g}"


def _widened(low: float, high: float, side: str) -> str:
    return f"{low / 100:.4g}:{high:.4g}" if side == "lowest" else f"{low:.4g}:{high * 100:.4g}"


def _shown(summary: Summary) -> Callable[[float], str]:
    return (lambda v: f"{100 * v:.2f}") if summary["proportion"] else (lambda v: f"{v:.4g}")
