"""The verdict of a race, in sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from steepest.race.phrases import (
    capital,
    differences,
    fresh,
    is_imported,
    judged_metric,
    level,
    number,
    plural,
    shown_size,
    spread,
    units,
)
from steepest.race.protocol import LEAST_TRIALS
from steepest.race.schema import PlanRecord, Summary
from steepest.statistics.inference import LEAST, Difference, failure_bound, least_pairs, spread_of

Differences = Mapping[str, Difference]
NEGLIGIBLE = 0.25
"""A smaller improvement does not matter; in standard deviations of the baseline's fresh runs."""
HALF = 4
"""Four times the seeds, or units, make an interval about half as wide."""


def verdict(summary: Summary) -> str:
    """What the race showed, in plain words, with the number of fresh seeds n."""
    plan, base = summary["plan"], summary["baseline"]
    if reason := no_verdict(summary):
        return reason
    judged = differences(summary)
    claimed = {name: d for name, d in judged.items() if d.claim}
    unclaimed = _unclaimed(summary)
    better = {name: d for name, d in claimed.items() if (d.mean > 0) == summary["maximize"]}
    worse = {name: d for name, d in claimed.items() if name not in better}
    few = too_little(plan)
    keep = "" if few or better else _keep(summary, unclaimed)

    sentences = _claims(summary, better, worse)
    if not claimed:
        subject = "no entry can" if len(unclaimed) > 1 else f"{next(iter(unclaimed))} cannot"
        where = f"in {judged_metric(summary)} at {_size(summary)}"
        text = f"{subject} be told apart from {base} {where}."
        if not keep:
            text = f"Undecided: {text}"
        elif len(unclaimed) > 1:  # the name of an entry stays as it is
            text = capital(text)
        sentences.append(text)
    elif unclaimed:
        names, be = ", ".join(unclaimed), "is" if len(unclaimed) == 1 else "are"
        text = f"not told apart from {base}"
        sentences.append(
            f"{capital(text)}: {names}." if keep else f"Undecided: {names} {be} {text}."
        )
    if few:
        first = sentences[0][0].lower() + sentences[0][1:]
        undecided = first.startswith("undecided")
        so = (
            "With so little tuning the race is"
            if undecided
            else "With so little tuning the race showed:"
        )
        sentences[0] = f"{so} {first}"
        sentences.insert(0, f"{few}.")
    sentences += [keep, *_without_spread(summary, unclaimed)]
    if not keep:
        sentences += [_still_possible(summary, unclaimed), _what_would_help(summary, unclaimed)]
    return " ".join(filter(None, sentences))


def no_verdict(summary: Summary) -> str | None:
    """Why there is no verdict; None if there is one."""
    runs, base, plan = summary["runs"], summary["baseline"], summary["plan"]
    n, looks = plan["seeds"], plan.get("looks")
    if not summary["complete"]:
        most = "at most " if looks else ""
        return f"No verdict: {runs['finished']} of {most}{runs['planned']} runs are finished."
    if not differences(summary):
        ran = len(summary["entries"][base]["test"])
        seeds = f"n={ran} {fresh(summary, plural('seed', ran))}"
        if is_imported(summary):
            return f"{base} is the only entry in the file ({seeds}): there is nothing to compare."
        return (
            f"{base} was the only entry ({seeds}): there is nothing to compare it with; name more "
            f"entries in --optimizers, or another entry as --baseline."
        )
    if nothing_compared(summary):
        ran = spread([len(entry["test"]) for entry in summary["entries"].values()])
        text = (
            f"Nothing was compared: every {fresh(summary, 'run')} (n={ran} per entry) diverged or "
            f"ended no better than a run that diverges"
        )
        cure = "give lower ranges with --search, or more --steps"
        return f"{text}." if is_imported(summary) else f"{text}; {cure}."
    if n < LEAST and is_imported(summary):
        one = "unit" if plan["repeats"] > 1 else "seed"
        return (
            f"Not enough {one}s: n={n} {plural(one, n)} per entry, but a verdict needs at least "
            f"{LEAST}; run more of them."
        )
    if less_seeds(summary):
        seeds = (
            f"Not enough seeds: n={n} fresh {plural('seed', n)} per entry, but a verdict needs at "
            f"least {LEAST}; give --seeds {LEAST} or more."
        )
        few = too_little(plan)
        return f"{seeds} {few}." if few else seeds
    return None


def nothing_compared(summary: Summary) -> bool:
    """Whether every fresh run of the race failed."""
    return all(entry["failed"] == len(entry["test"]) for entry in summary["entries"].values())


def less_seeds(summary: Summary) -> bool:
    """Whether a race without looks has too few fresh seeds for a verdict."""
    return summary["plan"]["seeds"] < LEAST and not summary["plan"].get("looks")


def is_kept(summary: Summary) -> bool:
    """Whether the verdict of a race without looks is to keep the baseline."""
    return bool(_keep(summary, _unclaimed(summary)))


def _unclaimed(summary: Summary) -> Differences:
    return {name: d for name, d in differences(summary).items() if not d.claim}


def _claims(summary: Summary, better: Differences, worse: Differences) -> list[str]:
    """Which entries are better than the baseline and how often they may fail; which are worse."""
    sentences = []
    for word, claimed in (("better", better), ("worse", worse)):
        if not claimed:
            continue
        who = "one entry is" if len(claimed) == 1 else f"{len(claimed)} entries are"
        each = ", ".join(f"{name} by {shown_size(summary, d)}" for name, d in claimed.items())
        text = f"{who} {word} than {summary['baseline']} in {judged_metric(summary)}: {each}."
        sentences.append(capital(text) if sentences else f"At {_size(summary)}, {text}")
        if claimed is better:
            sentences.append(f"{failures(summary, list(better))}.")
    return sentences


def _size(summary: Summary) -> str:
    """The number of fresh seeds and of tuning trials, as text."""
    n, trials = summary["plan"]["seeds"], summary["plan"]["trials"]
    if is_imported(summary):
        return f"n={n} seeds"
    tuned = ", untuned" if trials == 1 else f" with {trials} tuning trials each"
    return f"n={n} fresh seeds{tuned}"


def _keep(summary: Summary, unclaimed: Differences) -> str:
    """Why to keep the baseline: no entry is better by an amount that matters.

    Empty if some entry may be better by such an amount.
    """
    baseline = summary["entries"][summary["baseline"]]
    if baseline["failed"] or len(baseline["test"]) < 2:
        return ""
    differ = {name: d for name, d in unclaimed.items() if d.low is not None or d.mean}
    keep = f"so keep {summary['baseline']}."
    if not differ:
        return f"No entry is better, {keep}"
    gains = [_gain(summary, d) for d in differ.values()]
    most = max((gain for gain in gains if gain is not None), default=0.0)
    sd = spread_of(baseline["test"])
    if None in gains or most > max(0.0, NEGLIGIBLE * sd):
        return ""
    unit = units(summary)[1]
    gain = f"{number(summary, max(0.0, most))}{unit}"
    who = f"{next(iter(differ))} is better by at most {gain}"
    if len(differ) > 1:
        who = f"None of these entries is better by more than {gain}"
    levels = " and ".join(sorted({level(d) for d in differ.values()}))
    return (
        f"{who} ({levels} {plural('interval', len(differ))}). That is less than a quarter of the "
        f"standard deviation of {summary['baseline']} between seeds ({number(summary, sd)}{unit}, "
        f"from the median absolute deviation), {keep}"
    )


def _gain(summary: Summary, d: Difference, sign: int = 1) -> float | None:
    """The largest improvement in the interval (for sign=-1: the largest loss); None without one."""
    if d.low is None or d.high is None:
        return None
    sign *= 1 if summary["maximize"] else -1
    return max(sign * d.low, sign * d.high)


def _still_possible(summary: Summary, unclaimed: Differences) -> str:
    """How much better, and how much worse, an undecided entry may be according to its interval."""
    phrases = []
    for word, sign in (("better", 1), ("worse", -1)):
        ends = ((_gain(summary, d, sign), name) for name, d in unclaimed.items())
        end, name = max(((end, name) for end, name in ends if end is not None), default=(0.0, ""))
        if end > 0:
            by = number(summary, end) + units(summary)[1]
            phrases.append(f"up to {by} {word} ({name}, {level(unclaimed[name])} interval)")
    what = " or ".join(phrases)
    return f"It remains possible that an entry is {what}." if phrases else ""


def _without_spread(summary: Summary, unclaimed: Differences) -> list[str]:
    """Sentences on the entries whose differences are equal on all seeds, so there is no
    interval.
    """
    base, sentences = summary["baseline"], []
    fixed = {name: d for name, d in unclaimed.items() if d.low is None and not d.exact}
    equal = [name for name, d in fixed.items() if d.p == 1]
    if equal:
        sentences.append(f"The same as {base} on every seed: {', '.join(equal)}.")
    shifted = ", ".join(
        f"{name} by {number(summary, d.mean, signed=True)}{units(summary)[1]}"
        for name, d in fixed.items()
        if name not in equal
    )
    if shifted:
        sentences.append(f"The same difference to {base} on every seed: {shifted}.")
    return sentences


def _what_would_help(summary: Summary, unclaimed: Differences) -> str:
    """Which larger race would decide more.

    The text promises no number of seeds that would tell an entry apart: the observed difference is
    too uncertain for that, and may have the wrong sign.
    """
    plan, comparisons = summary["plan"], len(differences(summary))
    seeds, seed = more_seeds(summary, unclaimed), plan["seed"] + 1
    exact = [name for name, d in unclaimed.items() if d.exact]
    if exact and plan["seeds"] < least_pairs(comparisons):
        cure = f"give --seeds {seeds} --seed {seed}"
        if is_imported(summary):
            cure = "run so many new seeds, and judge them without the old ones"
        return (
            f"The exact test ({', '.join(exact)}) needs n={seeds} {fresh(summary, 'seeds')} or "
            f"more for a claim over {comparisons} {plural('comparison', comparisons)}: {cure}."
        )
    if not seeds or too_little(plan):
        return ""  # with too little tuning, more seeds would not help
    if is_imported(summary):
        return (
            f"With n={seeds} new seeds, judged without the old ones, the intervals would be about "
            f"half as wide."
        )
    return f"A new race with --seeds {seeds} --seed {seed} would have intervals about half as wide."


def more_seeds(summary: Summary, unclaimed: Differences) -> int | None:
    """How many fresh seeds a race needs to decide more; None if more seeds would not help."""
    n, needed = summary["plan"]["seeds"], least_pairs(len(differences(summary)))
    if n < needed and any(d.exact for d in unclaimed.values()):
        return needed
    return None if all(d.low is None for d in unclaimed.values()) else HALF * n


def too_little(plan: PlanRecord) -> str:
    """The text that there is too little tuning for a verdict, and the cure; else empty."""
    trials = plan["trials"]
    if trials >= LEAST_TRIALS or plan.get("imported"):
        return ""
    cure = f"--trials {LEAST_TRIALS} or more"
    enough = plan.get("enough")
    if enough:
        fewer = ", or fewer --optimizers" if len(plan["entries"]) > 2 else ""
        cure = f"--budget {_budget(enough)} or more{fewer}"
    each = "unit" if plan.get("looks") else "fresh seed"
    return (
        f"Not enough tuning: {trials} {plural('trial', trials)} of an entry for each {each}, "
        f"but a verdict needs at least {LEAST_TRIALS}; give {cure}"
    )


def _budget(seconds: float) -> str:
    """Seconds as a value of --budget ("90s", "7m", "2.1h"), rounded up."""
    if seconds <= 300:
        return f"{math.ceil(seconds / 10) * 10}s"
    return f"{math.ceil(seconds / 60)}m" if seconds <= 7200 else f"{math.ceil(seconds / 360) / 10}h"


def over_budget(plan: PlanRecord) -> str:
    """The warning that a budget is too small; shown before the race and after it."""
    trials, seeds = plan["trials"], plan["seeds"]
    return (
        f"The budget of {plan['request']['budget']} is too small for the smallest race "
        f"({seeds} fresh {plural('seed', seeds)} per entry, {trials} tuning "
        f"{plural('trial', trials)} for each), so the race takes longer"
    )


def failures(summary: Summary, names: Sequence[str]) -> str:
    """How many fresh runs of the entries failed, and the largest failure rate that is possible."""
    looks = summary["plan"].get("looks")
    by_count: dict[tuple[int, int], list[str]] = {}
    for name in names:
        entry = summary["entries"][name]
        # the runs of a unit share its tuning, so they do not count one by one
        count = (entry["failed_units"], len(entry["units"])) if looks else None
        by_count.setdefault(count or (entry["failed"], len(entry["test"])), []).append(name)
    phrases = []
    for (count, n), group in sorted(by_count.items()):
        every = len(group) == len(summary["entries"]) > 1
        who, each = "Every entry" if every else ", ".join(group), " each" if len(group) > 1 else ""
        bound = f"the true rate may be up to {100 * failure_bound(count, n):.0f} %"
        if looks:
            phrases.append(f"{who}: {count} of n={n} units{each} had a failed run ({bound})")
        else:
            runs = fresh(summary, plural("run", n))
            phrases.append(f"{who}: {count} of n={n} {runs}{each} failed ({bound})")
    return "; ".join(phrases)
