"""What a summary says in words: the verdict, what to know about it, and the rows of its table."""

from __future__ import annotations

import math
import statistics as st
from collections.abc import Sequence
from typing import Any

from steepest.race.statistics import LEAST, MOST_SEEDS, Difference

UNKNOWN = "\u2013"
"""In the table: not measured (yet)."""


def number(summary: dict[str, Any], value: float, *, signed: bool = False) -> str:
    """A metric or a difference as text, without its unit: 98.12, +0.34."""
    sign = "+" if signed else ""
    text = f"{100 * value:{sign}.2f}" if summary["proportion"] else f"{value:{sign}.4g}"
    return text if float(text) else text.replace("-", sign)


def units(summary: dict[str, Any]) -> tuple[str, str]:
    """Units of the metric and of a difference of metrics, each with the space before it."""
    return (" %", " points") if summary["proportion"] else ("", "")


def judged_on(summary: dict[str, Any]) -> str:
    """The data of the fresh runs' metric: test, or validation where a task has no test data."""
    return "test" if summary.get("test_data", True) else "validation"


def verdict(summary: dict[str, Any]) -> str:
    """What the race showed, in plain words, with n."""
    runs, base, n = summary["runs"], summary["baseline"], summary["plan"]["seeds"]
    metric = f"test {summary['metric']}"
    if not summary.get("test_data", True):
        metric = f"validation {summary['metric']} of fresh seeds (the task has no test data)"
    if not summary["complete"]:
        return f"No verdict: {runs['finished']} of {runs['planned']} runs are finished."
    judged = {e: Difference(**d["difference"]) for e, d in _compared(summary).items()}
    if not judged:
        seeds = _plural("seed", n)
        return f"{base} ran alone (n={n} fresh {seeds}): there is nothing to compare it to."
    if n < LEAST:
        return (
            f"Not enough seeds: n={n} fresh {_plural('seed', n)} per entry, a verdict needs at "
            f"least {LEAST}."
        )
    parts = []
    claims = {entry: d for entry, d in judged.items() if d.claim}
    for better, word in ((True, "better"), (False, "worse")):
        side = {e: d for e, d in claims.items() if ((d.mean > 0) == summary["maximize"]) is better}
        if side:
            each = ", ".join(f"{e} by {_size(summary, d)}" for e, d in side.items())
            parts.append(f"{word} than {base} in {metric}: {each}")
    rest = [entry for entry in judged if entry not in claims]
    trials = summary["plan"]["trials"]
    tuned = f", each tuned anew with {trials} trials" if trials > 1 else ", untuned"
    keep = "" if any(part.startswith("better") for part in parts) else f", so keep {base}"
    if not claims:
        what = "No entry can" if len(rest) > 1 else f"{rest[0]} cannot"
        text = f"{what} be told apart from {base} in {metric} at n={n} fresh seeds{tuned}"
        text += keep
    else:
        text = f"At n={n} fresh seeds{tuned}: " + "; ".join(parts) + keep
        if rest:
            text += f". Not told apart from {base}: {', '.join(rest)}"
    fixed = [e for e in rest if judged[e].low is None]  # without spread there is no interval
    equal = [e for e in fixed if judged[e].p == 1]
    if equal:
        text += f"; the same as {base} on every seed: {', '.join(equal)}"
    shifted = [e for e in fixed if e not in equal]
    if shifted:
        each = ", ".join(f"{e} by {number(summary, judged[e].mean, signed=True)}" for e in shifted)
        text += f"; the same difference on every seed: {each}{units(summary)[1]}"
    text += _more_seeds({entry: judged[entry] for entry in rest})
    edges = [abs(x) for e in rest for x in (judged[e].low, judged[e].high) if x is not None]
    if edges:
        text += (
            f"; differences up to {number(summary, max(edges))}{units(summary)[1]} remain possible"
        )
    return text + "."


def _more_seeds(rest: dict[str, Difference]) -> str:
    """How many seeds would tell the observed differences apart, were they the true ones."""
    open_ = {entry: d for entry, d in rest.items() if d.low is not None and d.effect}
    if not open_:
        return ""
    least = min(open_, key=lambda e: open_[e].seeds_needed or math.inf)
    needed = open_[least].seeds_needed
    if needed is None:
        return f"; not even {MOST_SEEDS:,} seeds would tell differences as small as these"
    which = least if len(rest) > 1 else "it"
    return f"; about {needed:,} seeds would tell {which} apart if the difference is what it seems"


def caveats(summary: dict[str, Any]) -> list[str]:
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
            f"{n} fresh {_plural('seed', n)}; give --trials 2 or more."
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
    if compared:
        lines.append(
            f"Differences are paired by seed (n={n}): {_same(summary)}. "
            f"Two-sided t intervals, Holm-corrected over {len(compared)} "
            f"{_plural('comparison', len(compared))}: the claims hold at 5 % together; "
            f"each interval stands alone."
        )
        if any(d["difference"]["low"] is None for d in compared.values()) and n > 1:
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
    entries = summary["entries"].values()
    lost = sum(entry["diverged"]["fresh"] for entry in entries)
    if lost:
        worst = number(summary, summary["worst"]) + units(summary)[0]
        lines.append(
            f"{lost} of {sum(len(e['test']) for e in entries)} fresh runs diverged; each counts as "
            f"{summary['metric']} {worst}, not as missing."
        )
    return lines + [f"{finding['text']}." for finding in found]


def _same(summary: dict[str, Any]) -> str:
    """What the runs of a seed have in common, and which of it was checked."""
    checked = summary.get("batches_checked", [])
    if not checked:
        return (
            "same initial weights, checked; the order of data is that of a loop of the task's own, "
            "unchecked"
        )
    others = [name for name in summary["entries"] if name not in checked]
    own = f" (unchecked for {', '.join(others)}, which choose their own)" if others else ""
    return f"same initial weights and batches, checked{own}"


def beside(summary: dict[str, Any], name: str) -> str | None:
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


def care(summary: dict[str, Any], name: str) -> str | None:
    """How careful one must be with an entry's learning rate; None where that is not known."""
    width = summary["entries"][name].get("lr_width")
    if not width or width["points"] < 2:
        return None
    least = f"{width['at_least']:.1f}"
    spans = [] if least == "0.0" else [f"{least} decades or more"]
    if width["at_most"] is None:
        spans.append("up to the border of what was tried")
    else:
        spans.append(f"{width['at_most']:.1f} decades at most")
    tunings = width["tunings"]
    return (
        f"learning rates within 1 % of the best: {', '.join(spans)} "
        f"({'medians of' if tunings > 1 else 'from'} n={tunings} {_plural('tuning', tunings)} "
        f"with up to {width['points']} rates each)"
    )


def over_budget(plan: dict[str, Any]) -> str:
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


def counted(summary: dict[str, Any], what: str, noun: str = "") -> str:
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


def _compared(summary: dict[str, Any]) -> dict[str, Any]:
    return {name: e for name, e in summary["entries"].items() if e["difference"] is not None}


def _size(summary: dict[str, Any], d: Difference) -> str:
    text = number(summary, abs(d.mean)) + units(summary)[1]
    if d.low is None or d.high is None:
        return f"{text} on every seed"
    near, far = sorted((abs(d.low), abs(d.high)))
    return f"{text} ({number(summary, near)} to {number(summary, far)})"


def columns(summary: dict[str, Any]) -> tuple[str, ...]:
    """Heads of the table, with units."""
    unit, points = (f" ({text.strip()})" if text else "" for text in units(summary))
    return (
        "entry",
        "n",
        f"{judged_on(summary)} {summary['metric']}{unit}",
        f"difference to {summary['baseline']}{points}",
        "steps to target",
        "seconds to target",
        "optimizer ms/step",
        "training ms/step",
        *["gradients"] * costs(summary),
        "state bytes/parameter",
        "diverged",
    )


def costs(summary: dict[str, Any]) -> bool:
    """Whether an entry has computed more or fewer gradients of a batch than it made steps."""
    found = [entry.get("gradients") for entry in summary["entries"].values()]
    return any(g is not None and g != summary["plan"]["steps"] for g in found)


def rows(summary: dict[str, Any]) -> list[list[str]]:
    """The table, best mean test metric first, a text for each of `columns`."""

    def order(item: tuple[str, Any]) -> float:
        test = item[1]["test"]
        mean = st.fmean(test) if test else -math.inf if summary["maximize"] else math.inf
        return -mean if summary["maximize"] else mean

    return [_row(summary, *item) for item in sorted(summary["entries"].items(), key=order)]


def _row(summary: dict[str, Any], name: str, entry: dict[str, Any]) -> list[str]:
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
        elif n > 1:
            difference += " on every seed"
    elif name == summary["baseline"]:
        difference = "baseline"
    bytes_each = UNKNOWN
    if entry["parameters"]:
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
        f"{entry['diverged']['fresh']}/{n} ({entry['diverged']['tuning']}/{entry['trials']})",
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
