"""The verdict of a race, in words."""

from __future__ import annotations

import math
from collections.abc import Sequence

from steepest.race.phrases import NO_INTERVAL, differences, level, number, plural, units
from steepest.race.protocol import LEAST_TRIALS
from steepest.race.schema import PlanRecord, Summary
from steepest.race.statistics import LEAST, Difference, failure_bound, least_pairs, spread_of

NEGLIGIBLE = 0.25
"""Standard deviations of the baseline's runs that an entry may be better by and not be missed."""


HALF = 4
"""Times the seeds that make an interval about half as wide."""


def verdict(summary: Summary) -> str:
    """What the race showed, in plain words, with n."""
    runs, base, plan = summary["runs"], summary["baseline"], summary["plan"]
    n, trials = plan["seeds"], plan["trials"]
    metric = f"test {summary['metric']}"
    if not summary.get("test_data", True):
        metric = f"validation {summary['metric']} of fresh seeds (the task has no test data)"
    if not summary["complete"]:
        return f"No verdict: {runs['finished']} of {runs['planned']} runs are finished."
    judged = differences(summary)
    if not judged:
        return (
            f"{base} ran alone (n={n} fresh {plural('seed', n)}): there is nothing to compare it "
            f"to; name more in --optimizers, or another as --baseline."
        )
    if all(e["failed"] == len(e["test"]) for e in summary["entries"].values()):
        return (
            f"Nothing was compared: every fresh run (n={n} per entry) diverged or ended no better "
            f"than a run that did; give lower ranges with --search, or more --steps."
        )
    few = too_little(plan)
    if n < LEAST:
        seeds = (
            f"Not enough seeds: n={n} fresh {plural('seed', n)} per entry, a verdict needs at "
            f"least {LEAST}; give --seeds {LEAST} or more."
        )
        return f"{seeds} {few}." if few else seeds
    claims = {entry: d for entry, d in judged.items() if d.claim}
    rest = {entry: d for entry, d in judged.items() if not d.claim}
    side = {
        better: {e: d for e, d in claims.items() if ((d.mean > 0) == summary["maximize"]) is better}
        for better in (True, False)
    }
    parts = []
    for better, word in ((True, "better"), (False, "worse")):
        if side[better]:
            each = ", ".join(f"{e} by {_size(summary, d)}" for e, d in side[better].items())
            parts.append(f"{word} than {base} in {metric}: {each}")
            parts += [failures(summary, list(side[better]))] * better
    small = None if few else _small(summary, rest)
    keep = "" if side[True] or small is None else f"{small}, so keep {base}"
    tuned = f"each tuned anew with {trials} trials" if trials > 1 else "untuned"
    at = f"n={n} fresh seeds, {tuned}"
    if claims:
        text = f"At {at}: " + "; ".join(parts)
        if rest:
            word = "Not told apart from" if keep else "Undecided, as not told apart from"
            text += f". {word} {base}: {', '.join(rest)}"
    else:
        what = "no entry can" if len(rest) > 1 else f"{next(iter(rest))} cannot"
        text = f"{what} be told apart from {base} in {metric} at {at}"
        text = text[0].upper() + text[1:] if keep and len(rest) > 1 else text
        text = text if keep else f"Undecided: {text}"
    if few:
        text = f"{few}. What so little tuning showed: {text[0].lower()}{text[1:]}"
    text += keep + _unspread(summary, rest)
    if keep:
        return text + "."
    text += _possible(summary, rest)
    return text + _more(summary, rest) + "."


def _small(summary: Summary, rest: dict[str, Difference]) -> str | None:
    """Why nobody of `rest` can be better than the baseline by more than luck; None if one can."""
    base = summary["entries"][summary["baseline"]]
    if base["failed"] or len(base["test"]) < 2:
        return None
    open_ = [d for d in rest.values() if d.low is not None or d.mean]
    if not open_:
        return ""
    own, sign = spread_of(base["test"]), 1 if summary["maximize"] else -1
    ends = [None if d.high is None or d.low is None else max(sign * d.low, sign * d.high)
            for d in open_]  # fmt: skip
    known = [end for end in ends if end is not None]
    if len(known) < len(ends) or max(known) > max(0.0, NEGLIGIBLE * own):
        return None
    levels = {level(d) for d in open_}
    most, own = (number(summary, x) for x in (max(0.0, *known), own))
    return (
        f", and better by {most}{units(summary)[1]} at most ({' and '.join(sorted(levels))} "
        f"{plural('interval', len(open_))}), less than a quarter of what {summary['baseline']} "
        f"varies by from seed to seed (sd {own}, from the median absolute deviation)"
    )


def _possible(summary: Summary, rest: dict[str, Difference]) -> str:
    """How much better, and how much worse, an undecided entry may be by its interval."""
    said = []
    for word, sign in (("better", 1), ("worse", -1)):
        sign *= 1 if summary["maximize"] else -1
        ends = [
            (max(sign * d.low, sign * d.high), name)
            for name, d in rest.items()
            if d.low is not None and d.high is not None
        ]
        end, name = max(ends, default=(0.0, ""))
        if end > 0:
            by = number(summary, end) + units(summary)[1]
            said.append(f"up to {by} {word} ({name}, {level(rest[name])} interval)")
    return f"; {' and '.join(said)} remain possible" if said else ""


def _unspread(summary: Summary, rest: dict[str, Difference]) -> str:
    """What is said of entries whose differences have no spread, and so no interval."""
    base, text = summary["baseline"], ""
    fixed = [e for e, d in rest.items() if d.low is None and not d.exact]
    equal = [e for e in fixed if rest[e].p == 1]
    if equal:
        text += f"; the same as {base} on every seed: {', '.join(equal)}"
    shifted = [e for e in fixed if e not in equal]
    if shifted:
        each = ", ".join(f"{e} by {number(summary, rest[e].mean, signed=True)}" for e in shifted)
        text += f"; the same difference on every seed: {each}{units(summary)[1]}"
    return text


def _more(summary: Summary, rest: dict[str, Difference]) -> str:
    """What would decide more. No number of seeds is named that would tell an entry apart: the
    difference that was seen knows it too little, and may be of the other sign.
    """
    plan, comparisons = summary["plan"], len(differences(summary))
    n, needed = plan["seeds"], least_pairs(comparisons)
    exact = [e for e, d in rest.items() if d.exact]
    if exact and n < needed:
        return (
            f"; the exact test ({', '.join(exact)}) needs n={needed} or more for a claim over "
            f"{comparisons} {plural('comparison', comparisons)}: give --seeds {needed} "
            f"--seed {plan['seed'] + 1}"
        )
    if all(d.low is None for d in rest.values()) or plan["trials"] < LEAST_TRIALS:
        return ""  # more seeds would not narrow what little tuning leaves open
    return (
        f"; a new race with --seeds {HALF * n} --seed {plan['seed'] + 1} would have intervals "
        f"about half as wide"
    )


def too_little(plan: PlanRecord) -> str:
    """That the tuning is too little for a verdict, and what would be enough; empty if it is."""
    trials = plan["trials"]
    if trials >= LEAST_TRIALS:
        return ""
    cure = f"--trials {LEAST_TRIALS} or more"
    enough = plan.get("enough")
    if enough:
        fewer = ", or fewer --optimizers" if len(plan["entries"]) > 2 else ""
        cure = f"--budget {_budget(enough)} or more{fewer}"
    return (
        f"Not enough tuning: {trials} {plural('trial', trials)} of an entry for each fresh seed, "
        f"a verdict needs at least {LEAST_TRIALS}; give {cure}"
    )


def _budget(seconds: float) -> str:
    if seconds <= 300:
        return f"{math.ceil(seconds / 10) * 10}s"
    return f"{math.ceil(seconds / 60)}m" if seconds <= 7200 else f"{math.ceil(seconds / 360) / 10}h"


def failures(summary: Summary, names: Sequence[str]) -> str:
    """How many fresh runs of the entries failed, and what share of them is not excluded."""
    found: dict[int, list[str]] = {}
    for name in names:
        found.setdefault(summary["entries"][name]["failed"], []).append(name)
    n, said = summary["plan"]["seeds"], []
    for lost, mine in sorted(found.items()):
        bound = failure_bound(lost, n)
        who = ", ".join(mine)
        if len(mine) > 1:
            every = len(mine) == len(summary["entries"]) and not lost
            who = "any entry" if every else f"each of {who}"
        said.append(
            f"{lost or 'none'} of n={n} fresh {plural('run', n)} of {who} failed "
            f"(up to {100 * bound:.0f} % is not excluded)"
        )
    return ", ".join(said)


def over_budget(plan: PlanRecord) -> str:
    """What to know about a budget that cannot be met, before the race and after it."""
    trials, seeds = plan["trials"], plan["seeds"]
    return (
        f"The budget of {plan['request']['budget']} allows less than the least race "
        f"({seeds} {plural('seed', seeds)} per entry, {trials} {plural('trial', trials)} for "
        f"each); "
        f"the race exceeds it"
    )


def _size(summary: Summary, d: Difference) -> str:
    text = number(summary, abs(d.mean)) + units(summary)[1]
    if d.low is None or d.high is None:
        return f"{text} {NO_INTERVAL if d.exact else 'on every seed'}"
    near, far = sorted((abs(d.low), abs(d.high)))
    return f"{text} ({level(d)} interval {number(summary, near)} to {number(summary, far)})"
