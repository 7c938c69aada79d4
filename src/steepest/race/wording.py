"""What a summary says in words: the verdict, what to know about it, and the rows of its table."""

from __future__ import annotations

import math
import statistics as st
from collections.abc import Sequence
from typing import Literal

from steepest.race.protocol import LEAST_TRIALS
from steepest.race.schema import EntrySummary, PlanRecord, Share, Summary
from steepest.race.statistics import LEAST, Difference, failure_bound, least_pairs, spread_of

UNKNOWN = "\u2013"
"""In the table: not measured (yet)."""
NEGLIGIBLE = 0.25
"""Standard deviations of the baseline's runs that an entry may be better by and not be missed."""
NO_INTERVAL = "(no interval: n too small)"
HALF = 4
"""Times the seeds that make an interval about half as wide."""


def number(summary: Share, value: float, *, signed: bool = False) -> str:
    """A metric or a difference as text, without its unit: 98.12, +0.34."""
    sign = "+" if signed else ""
    text = f"{100 * value:{sign}.2f}" if summary["proportion"] else f"{value:{sign}.4g}"
    return text if float(text) else text.replace("-", sign)


def units(summary: Share) -> tuple[str, str]:
    """Units of the metric and of a difference of metrics, each with the space before it."""
    return (" %", " points") if summary["proportion"] else ("", "")


def judged_on(summary: Summary) -> str:
    """The data of the fresh runs' metric: test, or validation where a task has no test data."""
    return "test" if summary.get("test_data", True) else "validation"


def verdict(summary: Summary) -> str:
    """What the race showed, in plain words, with n."""
    runs, base, plan = summary["runs"], summary["baseline"], summary["plan"]
    n, trials = plan["seeds"], plan["trials"]
    metric = f"test {summary['metric']}"
    if not summary.get("test_data", True):
        metric = f"validation {summary['metric']} of fresh seeds (the task has no test data)"
    if not summary["complete"]:
        return f"No verdict: {runs['finished']} of {runs['planned']} runs are finished."
    judged = _compared(summary)
    if not judged:
        return (
            f"{base} ran alone (n={n} fresh {_plural('seed', n)}): there is nothing to compare it "
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
            f"Not enough seeds: n={n} fresh {_plural('seed', n)} per entry, a verdict needs at "
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
            parts += [_failures(summary, list(side[better]))] * better
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
        f"{_plural('interval', len(open_))}), less than a quarter of what {summary['baseline']} "
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
    plan, comparisons = summary["plan"], len(_compared(summary))
    n, needed = plan["seeds"], least_pairs(comparisons)
    exact = [e for e, d in rest.items() if d.exact]
    if exact and n < needed:
        return (
            f"; the exact test ({', '.join(exact)}) needs n={needed} or more for a claim over "
            f"{comparisons} {_plural('comparison', comparisons)}: give --seeds {needed} "
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
        f"Not enough tuning: {trials} {_plural('trial', trials)} of an entry for each fresh seed, "
        f"a verdict needs at least {LEAST_TRIALS}; give {cure}"
    )


def _budget(seconds: float) -> str:
    if seconds <= 300:
        return f"{math.ceil(seconds / 10) * 10}s"
    return f"{math.ceil(seconds / 60)}m" if seconds <= 7200 else f"{math.ceil(seconds / 360) / 10}h"


def level(d: Difference) -> str:
    """The level of an interval, as 95 % or 99.4 %."""
    return f"{100 * d.level:.1f}".removesuffix(".0") + " %"


def _failures(summary: Summary, names: Sequence[str]) -> str:
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
            f"{lost or 'none'} of n={n} fresh {_plural('run', n)} of {who} failed "
            f"(up to {100 * bound:.0f} % is not excluded)"
        )
    return ", ".join(said)


def _who_failed(summary: Summary) -> str:
    """The entries of which fresh runs failed, with how many of how many."""
    return ", ".join(
        f"{name} failed on {entry['failed']} of {len(entry['test'])}"
        for name, entry in summary["entries"].items()
        if entry["failed"]
    )


def caveats(summary: Summary) -> list[str]:
    """What a reader must know to read the verdict right."""
    plan, base = summary["plan"], summary["baseline"]
    n, found = plan["seeds"], summary.get("lint", [])
    steps = f"{plan['steps']} {_plural('step', plan['steps'])}"
    if not summary["complete"]:
        lines = [
            f"So far each entry had {counted(summary, 'tuning', 'tuning trial')} of {steps}, "
            f"{plan['trials']} for each fresh seed, and {counted(summary, 'test', 'fresh seed')}, "
            f"each with the best of its trials by validation {summary['metric']}."
        ]
    elif plan["trials"] == 1:  # said once for all
        found = [finding for finding in found if finding["name"] != "untuned"]
        lines = [
            f"Nothing was tuned: every entry, {base} too, ran with its defaults for {steps} on "
            f"{n} fresh {_plural('seed', n)}; give --trials {LEAST_TRIALS} or more."
        ]
    else:
        lines = [
            f"Every entry had {n} fresh {_plural('seed', n)} and was tuned anew for each of them: "
            f"{plan['trials']} trials of {steps} on seeds of their own, of which the best by "
            f"validation {summary['metric']} was run on the fresh seed."
        ]
    if plan["over_budget"]:
        lines.append(over_budget(plan) + ".")
    compared = _compared(summary)
    entries = summary["entries"]
    if compared:
        exact = [e for e, d in compared.items() if d.exact]
        kinds = "Two-sided t intervals"
        if exact:
            kinds = "Two-sided exact intervals"
            if len(exact) < len(compared):
                kinds = f"Two-sided intervals, exact for {', '.join(exact)}, else of the t test"
        lines.append(
            f"Differences are paired by seed (n={n}): {_same(summary)}. "
            f"{kinds}, Holm-corrected over {len(compared)} "
            f"{_plural('comparison', len(compared))}: all claims together hold at 5 %; "
            f"each interval has the level of its own test."
        )
        if exact:
            lost = [e for e in exact if entries[e]["failed"] or entries[base]["failed"]]
            apart = [e for e in exact if e not in lost]
            why = [f"a run failed ({_who_failed(summary)})"] * bool(lost)
            why += [f"one seed stands far from the others ({', '.join(apart)})"] * bool(apart)
            because = " and ".join(why)
            lines.append(
                f"{because[0].upper()}{because[1:]}, so the exact sign-flip test of the mean "
                f"counts one such seed as one seed, however bad it was; with n={n} its smallest p "
                f"is {2.0 ** (1 - n):.2g}."
            )
        if any(d.low is None and not d.exact for d in compared.values()) and n > 1:
            lines.append(
                "Where every seed gave the same difference there is no interval; "
                "the exact sign test stands in for the t test."
            )
    if "test_standard_error" in summary:
        lines.append(
            f"The test set itself has n={summary['test_size']} cases: its standard error on one "
            f"{summary['metric']} is {number(summary, summary['test_standard_error'])} points. "
            f"The intervals speak of other seeds and other tunings, not of other cases."
        )
    lost = sum(entry["diverged"]["fresh"] for entry in entries.values())
    no_better = sum(entry["failed"] for entry in entries.values()) - lost
    worst = ""
    if summary["worst"] is not None:
        worst = number(summary, summary["worst"]) + units(summary)[0]
    if no_better:
        lines.append(
            f"{no_better} of {sum(len(e['test']) for e in entries.values())} fresh runs ended no "
            f"better than a run that diverges; each counts as failed, with {summary['metric']} "
            f"{worst}."
        )
    if lost:
        lines.append(
            f"{lost} of {sum(len(e['test']) for e in entries.values())} fresh runs diverged; each "
            f"counts as {summary['metric']} {worst}, not as missing."
        )
    if summary["complete"]:
        said = _failures(summary, list(entries))
        lines.append(said[0].upper() + said[1:] + ", by the exact one-sided 95 % bound.")
        lines.append(_tuned(summary))
    return [line for line in lines if line] + [f"{finding['text']}." for finding in found]


def _tuned(summary: Summary) -> str:
    """Which knobs were tuned; empty where none was."""
    if summary["plan"]["trials"] == 1:
        return ""
    found: dict[tuple[str, ...], list[str]] = {}
    for name, entry in summary["entries"].items():
        found.setdefault(tuple(entry["hyperparameters"] or ()), []).append(name)
    said = [
        f"{' and '.join(knobs) or 'nothing'} of {', '.join(mine)}" for knobs, mine in found.items()
    ]
    return f"Tuned: {'; '.join(said)}. All else stayed at its defaults."


OWN = "choose their own"


def _same(summary: Summary) -> str:
    """What the runs of a seed have in common, and which of it was checked."""
    whys: dict[str, list[str]] = {}
    for name, why in summary.get("batches_unchecked", {}).items():
        whys.setdefault(why, []).append(name)
    said = [
        f"{', '.join(names)}, which {why}" if why == OWN else f"{', '.join(names)}: {why}"
        for why, names in whys.items()
    ]
    checked = summary.get("batches_checked", [])
    text = "same initial weights"
    if len(checked) > 1:
        text += " and batches, checked"
        text += f" (unchecked for {'; '.join(said)})" if said else ""
    elif len(whys) == 1 and not checked and OWN not in whys:
        text += f", checked; batches unchecked ({next(iter(whys))})"
    else:
        text += ", checked"
        text += f"; batches unchecked for {'; '.join(said)}" if said else ""
    for name, what in summary.get("batches_unpaired", {}).items():
        text += f"; {name} is not paired: its {what}"
    return text


def beside(summary: Summary, name: str) -> str | None:
    """What stands beside an entry's difference: effect size, share of seeds; None without any."""
    entry = summary["entries"][name]
    if entry["difference"] is None:
        return None
    d = Difference(**entry["difference"])
    parts = []
    if d.effect is not None:
        parts.append(f"effect {d.effect:+.2f} standard deviations of the differences (Hedges)")
    if d.improved is not None and d.improved_low is not None and d.improved_high is not None:
        parts.append(
            f"better than {summary['baseline']} on {100 * d.improved:.0f} % of n={d.n} "
            f"{_plural('seed', d.n)} "
            f"({100 * d.improved_low:.0f} to {100 * d.improved_high:.0f} %)"
        )
    if d.bootstrap_low is not None and d.bootstrap_high is not None:
        ends = (number(summary, x, signed=True) for x in (d.bootstrap_low, d.bootstrap_high))
        parts.append(f"BCa bootstrap interval {' to '.join(ends)}{units(summary)[1]}")
    return "; ".join(parts)


def care(summary: Summary, name: str) -> str | None:
    """How careful one must be with an entry's learning rate; None where that is not known."""
    width = summary["entries"][name].get("lr_width")
    if not width or width["points"] < 2:
        return None
    tunings = width["tunings"]
    return (
        f"rates tried in a row that came within 1 % of the best: over {width['seen']:.1f} decades "
        f"({'median of' if tunings > 1 else 'from'} n={tunings} {_plural('tuning', tunings)} "
        f"with up to {width['points']} rates each; the true range may be wider or narrower)"
    )


def ranges(summary: Summary, name: str) -> str | None:
    """Over what each knob of an entry was tuned; None where none was, or nobody knows it."""
    asked = summary["plan"].get("search", {}).get(name, {})
    space = summary["entries"][name]["space"] or {}
    if summary["plan"]["trials"] == 1:
        return None
    said = [
        f"{knob} {low:.3g} to {high:.3g}{' (--search)' * (knob in asked)}"
        for knob, (low, high) in space.items()
    ]
    return ", ".join(said) or None


def over_budget(plan: PlanRecord) -> str:
    """What to know about a budget that cannot be met, before the race and after it."""
    trials, seeds = plan["trials"], plan["seeds"]
    return (
        f"The budget of {plan['request']['budget']} allows less than the least race "
        f"({seeds} {_plural('seed', seeds)} per entry, {trials} {_plural('trial', trials)} for "
        f"each); "
        f"the race exceeds it"
    )


def spread(counts: Sequence[int]) -> str:
    """The counts of all entries as text: 10, or 3 to 5."""
    low, high = min(counts), max(counts)
    return str(low) if low == high else f"{low} to {high}"


def counted(summary: Summary, what: Literal["tuning", "test"], noun: str = "") -> str:
    """How many "tuning" trials or "test" runs each entry had, and was to have if that is more.

    `noun`: what they are called, one of them.
    """
    found = spread([len(entry[what]) for entry in summary["entries"].values()])
    plan = summary["plan"]
    planned = plan["seeds"] * (plan["trials"] if what == "tuning" else 1)
    text = found if found == str(planned) else f"{found} of {planned} planned"
    return f"{text} {noun if text == '1' else noun + 's'}" if noun else text


def _plural(word: str, count: int) -> str:
    return word if count == 1 else word + "s"


def _compared(summary: Summary) -> dict[str, Difference]:
    return {
        name: Difference(**entry["difference"])
        for name, entry in summary["entries"].items()
        if entry["difference"] is not None
    }


def _size(summary: Summary, d: Difference) -> str:
    text = number(summary, abs(d.mean)) + units(summary)[1]
    if d.low is None or d.high is None:
        return f"{text} {NO_INTERVAL if d.exact else 'on every seed'}"
    near, far = sorted((abs(d.low), abs(d.high)))
    return f"{text} ({level(d)} interval {number(summary, near)} to {number(summary, far)})"


def _levels(summary: Summary) -> set[str]:
    """The levels of the intervals that are shown."""
    return {level(d) for d in _compared(summary).values() if d.low is not None}


def columns(summary: Summary) -> tuple[str, ...]:
    """Heads of the table, with units."""
    unit, points = (f" ({text.strip()})" if text else "" for text in units(summary))
    levels = _levels(summary)
    one = f", {levels.pop()} interval" if len(levels) == 1 else ""
    return (
        "entry",
        "n",
        f"{judged_on(summary)} {summary['metric']}{unit}",
        f"difference to {summary['baseline']}{points}{one}",
        "steps to target",
        "seconds to target",
        "optimizer ms/step",
        "training ms/step",
        *["gradients"] * costs(summary),
        "state bytes/parameter",
        "failed",
    )


def costs(summary: Summary) -> bool:
    """Whether an entry has computed more or fewer gradients of a batch than it made steps."""
    found = [entry.get("gradients") for entry in summary["entries"].values()]
    return any(g is not None and g != summary["plan"]["steps"] for g in found)


def rows(summary: Summary) -> list[list[str]]:
    """The table, best mean test metric first, a text for each of `columns`."""

    def order(item: tuple[str, EntrySummary]) -> float:
        test = item[1]["test"]
        mean = st.fmean(test) if test else -math.inf if summary["maximize"] else math.inf
        return -mean if summary["maximize"] else mean

    return [_row(summary, *item) for item in sorted(summary["entries"].items(), key=order)]


def _row(summary: Summary, name: str, entry: EntrySummary) -> list[str]:
    test, timing, n = entry["test"], entry["timing"], len(entry["test"])
    metric = difference = UNKNOWN
    if test:
        spread = f" ± {number(summary, st.stdev(test))}" if n > 1 else ""
        metric = number(summary, st.fmean(test)) + spread
    if entry["difference"]:
        d = Difference(**entry["difference"])
        difference = number(summary, d.mean, signed=True)
        if d.low is not None and d.high is not None:
            low, high = (number(summary, x, signed=True) for x in (d.low, d.high))
            difference += f" [{low}, {high}]"
            if len(_levels(summary)) > 1:
                difference += f" {level(d)}"
        elif n > 1:
            difference += f" {NO_INTERVAL if d.exact else 'on every seed'}"
    elif name == summary["baseline"]:
        difference = "baseline"
    bytes_each = UNKNOWN
    if entry["parameters"] and entry["state_bytes"] is not None:
        bytes_each = f"{entry['state_bytes'] / entry['parameters']:.1f}"
    return [
        name,
        str(n),
        metric,
        difference,
        _reached(entry["steps_to_target"], "{:.0f}", [summary["plan"]["steps"]]),
        _reached(timing["seconds_to_target"], "{:.2f}", timing["training_seconds"]),
        UNKNOWN if timing["step_ms"] is None else f"{timing['step_ms']:.3f}",
        UNKNOWN if timing["train_step_ms"] is None else f"{timing['train_step_ms']:.2f}",
        *[f"{entry['gradients']:,.0f}" if entry["gradients"] else UNKNOWN] * costs(summary),
        bytes_each,
        f"{entry['failed']}/{n} ({entry['diverged']['tuning']}/{entry['trials']})",
    ]


def _reached(values: Sequence[float | None], form: str, ends: Sequence[float]) -> str:
    """Median over seeds with the share of seeds that reached the target at all.

    Where half of them did not, the median lies beyond the end of a run.
    """
    if not values:
        return UNKNOWN
    middle = st.median(math.inf if v is None else v for v in values)
    share = f" ({sum(v is not None for v in values)}/{len(values)})"
    if not math.isinf(middle):
        return form.format(middle) + share
    return (f"> {form.format(st.median(ends))}" if ends else "never") + share
