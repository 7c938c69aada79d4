"""The notes below the verdict, and the texts beside each entry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from steepest.race.phrases import (
    capital,
    counted,
    differences,
    fresh,
    is_imported,
    listed,
    lost_metric,
    number,
    plural,
    spread,
    unit_of,
    units,
)
from steepest.race.protocol import LEAST_TRIALS, Plan
from steepest.race.schema import PlanRecord, Summary
from steepest.race.verdicts import failures, over_budget
from steepest.statistics.inference import Difference
from steepest.training.spaces import NAMES

OWN = "choose their own"
"""The reason why the batches of some entries are not compared; it is shown after "which"."""


def caveats(summary: Summary) -> list[str]:
    """The notes below the verdict: tuning, tests, pairing, failed runs and findings of lint."""
    plan = summary["plan"]
    findings = summary.get("lint", [])
    if plan["trials"] == 1:  # the first line already says this of all entries
        findings = [finding for finding in findings if finding["name"] != "untuned"]
    lines = _imported(summary) if is_imported(summary) else [_protocol(summary)]
    if plan["over_budget"]:
        lines.append(f"{over_budget(plan)}.")
    lines += _tests(summary)
    if "test_standard_error" in summary:
        lines.append(
            f"The test set has n={summary['test_size']} cases, so a measured {summary['metric']} "
            f"has a standard error of {number(summary, summary['test_standard_error'])} points. "
            f"The intervals cover other seeds and other tunings, not other test cases."
        )
    lines += _failed(summary)
    if summary["complete"]:
        rates = failures(summary, list(summary["entries"]))
        lines.append(f"{rates}. These are exact one-sided 95 % bounds.")
        lines += [] if is_imported(summary) else _tuned(summary)
    return lines + [f"{finding['text']}." for finding in findings]


def _imported(summary: Summary) -> list[str]:
    """What is not known of imported runs, and whether their numbers of steps differ."""
    lines = [
        f"The runs were imported from {summary['plan']['task']}. Tuning, batches and initial "
        f"weights could not be checked. It is not known whether every entry was tuned with the "
        f"same effort, or whether entries were tuned on the data of the metric. The runs are "
        f"compared as they are.",
        "Tests and intervals hold if the number of runs was fixed before the first result was "
        "seen, and if no run was added, repeated or left out because of its result.",
    ]
    steps = {
        entry: sorted({run["steps"] for run in record.get("measures", []) if "steps" in run})
        for entry, record in summary["entries"].items()
    }
    if len({count for counts in steps.values() for count in counts}) > 1:
        each = ", ".join(
            f"{entry} {counts[0]:,.0f}" + (f" to {counts[-1]:,.0f}" if len(counts) > 1 else "")
            for entry, counts in steps.items()
            if counts
        )
        lines.append(f"The runs did not all have the same number of steps: {each}.")
    return lines


def _protocol(summary: Summary) -> str:
    """How the entries were tuned and run."""
    plan, n = summary["plan"], summary["plan"]["seeds"]
    steps = f"{plan['steps']} {plural('step', plan['steps'])}"
    if plan.get("looks"):
        return _units(summary, steps)
    if not summary["complete"]:
        return (
            f"So far each entry had {counted(summary, 'tuning', 'tuning trial')} of {steps}, "
            f"{plan['trials']} for each fresh seed, and {counted(summary, 'test', 'fresh seed')}, "
            f"each with the best of its trials by validation {summary['metric']}."
        )
    if plan["trials"] == 1:
        return (
            f"Nothing was tuned: every entry, including {summary['baseline']}, ran with its "
            f"defaults for {steps} on {n} fresh {plural('seed', n)}; give --trials {LEAST_TRIALS} "
            f"or more."
        )
    seeds = f"each of {n} fresh seeds" if n > 1 else "the fresh seed"
    return (
        f"For {seeds}, every entry had {plan['trials']} tuning trials of {steps} with other seeds; "
        f"the best trial by validation {summary['metric']} was then run once with the fresh seed."
    )


def _units(summary: Summary, steps: str) -> str:
    """What a unit is, when the results are looked at, and how much was run."""
    plan = summary["plan"]
    trials, repeats = plan["trials"], plan["repeats"]
    if trials == 1:
        return (
            f"Nothing was tuned: every entry, including {summary['baseline']}, ran with its "
            f"defaults for {steps}, {repeats} fresh {plural('run', repeats)} for each unit; give "
            f"--trials {LEAST_TRIALS} or more."
        )
    tuned = f"{trials} trials of {steps}"
    made = _plan(plan)
    if rungs := made.rungs:
        on = " and ".join(f"the best {left} go on after step {at}" for at, left in rungs)
        tuned = f"{trials} trials start, {on}, up to {steps}"
    if stacked := made.stacked:
        whose = "" if len(stacked) == len(plan["entries"]) else f" of {', '.join(stacked)}"
        tuned += (
            f". The tuning trials{whose} were trained at once, up to "
            f"{made.together * trials} of an entry, which changes their gradients only "
            f"by rounding"
        )
    counts = [len(entry["units"]) for entry in summary["entries"].values()]
    so_far = "" if summary["complete"] else " so far"
    return (
        f"A unit begins with one tuning: {tuned}. The settings of the trial with the best "
        f"validation {summary['metric']} are then run {repeats} times with fresh seeds; the "
        f"result of the unit is the mean of these runs. The race looked at its results after "
        f"{listed(plan['looks'])} units. An entry stopped at a look if its result was clear, or "
        f"unlikely to become clear. Entries ran {spread(counts)} units{so_far}. Tuning and fresh "
        f"runs took as many steps as {summary['full_runs']:,.0f} runs of {steps}."
    )


def _plan(plan: PlanRecord) -> Plan:
    """The plan of a record."""
    fields: dict[str, Any] = {**plan}
    return Plan(**fields)


def _tests_in_looks(summary: Summary, compared: Mapping[str, Difference]) -> list[str]:
    """How differences of units are paired and tested."""
    exact = [name for name, d in compared.items() if d.exact]
    of_all, spent = (
        "all entries, all looks",
        "spent over the looks as in O'Brien and Fleming's test, and ",
    )
    if is_imported(summary):
        of_all, spent = "all entries", ""
    lines = [
        f"Differences are paired by unit: {_same(summary)}. If they are roughly normal, then all "
        f"intervals together ({of_all}) contain the true differences with a probability of 95 %. "
        f"So the chance of even one false claim in this race is at most 5 %. (The level is "
        f"{spent}shared by Bonferroni among {len(compared)} {plural('comparison', len(compared))}.)"
    ]
    last = summary["plan"]["looks"][-1]
    early = [name for name, d in compared.items() if d.claim and d.n < last]
    if early:
        lines.append(
            f"{', '.join(early)}: decided before the last look, so the mean difference probably "
            f"overstates the true one. The interval allows for this."
        )
    if exact:
        lines.append(
            f"A {fresh(summary, 'run')} failed, or one unit stands far from the others "
            f"({', '.join(exact)}), so the exact sign-flip test of the mean is used. The test "
            f"counts such a unit as one unit, however bad its result is."
        )
    return lines


def _tests(summary: Summary) -> list[str]:
    """How differences are paired and tested."""
    compared, n = differences(summary), summary["plan"]["seeds"]
    if not compared:
        return []
    if summary["plan"].get("looks"):
        return _tests_in_looks(summary, compared)
    exact = [name for name, d in compared.items() if d.exact]
    intervals = "Two-sided t intervals"
    if exact:
        intervals = "Two-sided exact intervals"
        if len(exact) < len(compared):
            intervals = f"Two-sided t intervals, exact intervals for {', '.join(exact)}"
    one = "unit" if summary["plan"].get("repeats", 1) > 1 else "seed"
    lines = [
        f"Differences are paired by {one} (n={n}): {_same(summary)}. {intervals}, each at the "
        f"confidence level from Holm's correction over {len(compared)} "
        f"{plural('comparison', len(compared))}. The chance of any false claim in this race is at "
        f"most 5 %."
    ]
    if exact:
        lines.append(_exact(summary, exact))
    if n > 1 and any(d.low is None and not d.exact for d in compared.values()):
        lines.append(
            "If the difference is the same on every seed, there is no interval, and the exact sign "
            "test replaces the t test."
        )
    return lines


def _exact(summary: Summary, exact: list[str]) -> str:
    """Why the exact test was used, and what it does."""
    entries, n = summary["entries"], summary["plan"]["seeds"]
    baseline_failed = entries[summary["baseline"]]["failed"]
    apart = [name for name in exact if not entries[name]["failed"] and not baseline_failed]
    reasons = []
    if len(apart) < len(exact):
        who = (
            f"{name} failed on {entry['failed']} of {len(entry['test'])}"
            for name, entry in entries.items()
            if entry["failed"]
        )
        reasons.append(f"a run failed ({', '.join(who)})")
    if apart:
        reasons.append(f"one seed stands far from the others ({', '.join(apart)})")
    because = " and ".join(reasons)
    return (
        f"{capital(because)}, so the exact sign-flip test of the mean is used. The "
        f"test counts such a seed as one seed, however bad its result is. With n={n} its smallest "
        f"possible p is {2.0 ** (1 - n):.2g}."
    )


def _failed(summary: Summary) -> list[str]:
    """How many fresh runs failed or diverged, and which metric they count as."""
    entries = summary["entries"].values()
    diverged = sum(entry["diverged"]["fresh"] for entry in entries)
    ended = sum(entry["failed"] for entry in entries) - diverged
    total = sum(len(entry["test"]) for entry in entries)
    worst = lost_metric(summary)
    if summary["worst"] is not None and is_imported(summary):
        given = summary["plan"]["request"].get("worst") is not None
        worst += " (--worst)" if given else " (the worst value in the file; --worst changes it)"
    lines = []
    if ended:
        lines.append(
            f"{ended} of {total} {fresh(summary, 'runs')} ended no better than a run that "
            f"diverges; each of them counts as failed, with {worst}."
        )
    if diverged:
        lines.append(
            f"{diverged} of {total} {fresh(summary, 'runs')} diverged; each of them counts as "
            f"{worst}, not as missing."
        )
    return lines


def _tuned(summary: Summary) -> list[str]:
    """Which knobs were tuned; empty if none was."""
    if summary["plan"]["trials"] == 1:
        return []
    by_knobs: dict[tuple[str, ...], list[str]] = {}
    for name, entry in summary["entries"].items():
        by_knobs.setdefault(tuple(entry["hyperparameters"] or ()), []).append(name)
    phrases = [
        f"{' and '.join(knobs) or 'nothing'} of {', '.join(names)}"
        for knobs, names in by_knobs.items()
    ]
    tuned = f"Tuned: {'; '.join(phrases)}. Everything else stayed at its default."
    return [f"{tuned} {_spaces(summary)}".rstrip()]


def _spaces(summary: Summary) -> str:
    """Whose search space it is; empty for the declared ranges."""
    name = summary["plan"].get("spaces")
    if name is None:
        return ""
    who = NAMES[name] if name == "lr-only" else f"the ranges of {NAMES[name]}"
    other = "; --search gave other ranges" if summary["plan"]["search"] else ""
    return f"The search space is {name}: {who}{other}."


def _same(summary: Summary) -> str:
    """What is the same in all runs of a seed, and which part of that was checked."""
    if is_imported(summary):
        return "by the numbers in the file; what paired runs have in common is not known"
    by_reason: dict[str, list[str]] = {}
    for name, why in summary.get("batches_unchecked", {}).items():
        by_reason.setdefault(why, []).append(name)
    phrases = [
        f"{', '.join(names)}, which {why}" if why == OWN else f"{', '.join(names)}: {why}"
        for why, names in by_reason.items()
    ]
    unchecked = "; ".join(phrases)
    checked = summary.get("batches_checked", [])
    if len(checked) > 1:
        text = "same initial weights and batches, checked"
        text += f" (unchecked for {unchecked})" if unchecked else ""
    elif len(by_reason) == 1 and not checked and OWN not in by_reason:
        text = f"same initial weights, checked; batches unchecked ({next(iter(by_reason))})"
    else:
        text = "same initial weights, checked"
        text += f"; batches unchecked for {unchecked}" if unchecked else ""
    for name, what in summary.get("batches_unpaired", {}).items():
        text += f"; {name} is not paired: its {what}"
    return text


def beside(summary: Summary, name: str) -> str | None:
    """More about an entry's difference: effect size, share of seeds; None without a difference."""
    record = summary["entries"][name]["difference"]
    if record is None:
        return None
    d = Difference(**record)
    phrases = []
    if d.effect is not None:
        phrases.append(
            f"effect size {d.effect:+.2f} standard deviations of the differences (Hedges)"
        )
    if d.improved is not None and d.improved_low is not None and d.improved_high is not None:
        phrases.append(
            f"better than {summary['baseline']} on {100 * d.improved:.0f} % of n={d.n} "
            f"{plural(unit_of(d), d.n)} "
            f"(95 % interval {100 * d.improved_low:.0f} to {100 * d.improved_high:.0f} %)"
        )
    if d.bootstrap_low is not None and d.bootstrap_high is not None:
        ends = (number(summary, x, signed=True) for x in (d.bootstrap_low, d.bootstrap_high))
        phrases.append(f"BCa bootstrap interval {' to '.join(ends)}{units(summary)[1]}")
    return "; ".join(phrases)


def care(summary: Summary, name: str) -> str | None:
    """How wide the range of good learning rates is; None if this is not known."""
    width = summary["entries"][name].get("lr_width")
    if not width or width["points"] < 2:
        return None
    tunings = width["tunings"]
    return (
        f"the metric is within 1 % of the best over {width['seen']:.1f} decades of learning rates "
        f"({'median of' if tunings > 1 else 'from'} n={tunings} {plural('tuning', tunings)} "
        f"with up to {width['points']} rates each: a rough estimate)"
    )


def ranges(summary: Summary, name: str) -> str | None:
    """The range over which each knob was tuned; None if no knob was, or if no range is known."""
    if summary["plan"]["trials"] == 1:
        return None
    asked = summary["plan"].get("search", {}).get(name, {})
    space = summary["entries"][name]["space"] or {}
    phrases = [
        f"{knob} {low:.3g} to {high:.3g}{' (--search)' if knob in asked else ''}"
        for knob, (low, high) in space.items()
    ]
    return ", ".join(phrases) or None
