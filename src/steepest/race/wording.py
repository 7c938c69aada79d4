"""What a summary says in words: the verdict, what to know about it, and the rows of its table."""

from __future__ import annotations

import math
import statistics as st
from collections.abc import Sequence
from typing import Any

from steepest.race.statistics import LEAST, Difference

UNKNOWN = "\u2013"
"""In the table: not measured (yet)."""


def number(summary: dict[str, Any], value: float, *, signed: bool = False) -> str:
    """A metric or a difference as text, without its unit: 98.12, +0.34."""
    sign = "+" if signed else ""
    if summary["proportion"]:
        return f"{100 * value:{sign}.2f}"
    return f"{value:{sign}.4g}"


def units(summary: dict[str, Any]) -> tuple[str, str]:
    """Units of the metric and of a difference of metrics, each with the space before it."""
    return (" %", " points") if summary["proportion"] else ("", "")


def verdict(summary: dict[str, Any]) -> str:
    """What the race showed, in plain words, with n."""
    runs, base, n = summary["runs"], summary["baseline"], summary["plan"]["seeds"]
    metric = f"test {summary['metric']}"
    if not summary["complete"]:
        return f"No verdict: {runs['finished']} of {runs['planned']} runs are finished."
    judged = {e: Difference(**d["difference"]) for e, d in _compared(summary).items()}
    if not judged:
        return f"{base} ran alone (n={n} fresh seeds): there is nothing to compare it to."
    if n < LEAST:
        return f"Not enough seeds: n={n} fresh seeds per entry, a verdict needs at least {LEAST}."
    parts = []
    claims = {entry: d for entry, d in judged.items() if d.claim}
    for better, word in ((True, "better"), (False, "worse")):
        side = {e: d for e, d in claims.items() if ((d.mean > 0) == summary["maximize"]) is better}
        if side:
            each = ", ".join(f"{e} by {_size(summary, d)}" for e, d in side.items())
            parts.append(f"{word} than {base} in {metric}: {each}")
    rest = [entry for entry in judged if entry not in claims]
    if not claims:
        what = "No entry can" if len(rest) > 1 else f"{rest[0]} cannot"
        text = f"{what} be told apart from {base} in {metric}, as tuned here, at n={n} fresh seeds"
    else:
        text = f"As tuned here, at n={n} fresh seeds: " + "; ".join(parts)
        if rest:
            text += f". Not told apart from {base}: {', '.join(rest)}"
    edges = [abs(x) for e in rest for x in (judged[e].low, judged[e].high) if x is not None]
    if edges:
        text += (
            f"; differences up to {number(summary, max(edges))}{units(summary)[1]} remain possible"
        )
    return text + "."


def caveats(summary: dict[str, Any]) -> list[str]:
    """What a reader must know to read the verdict right."""
    plan, base = summary["plan"], summary["baseline"]
    n = plan["seeds"]
    lines = [
        f"Every entry had {plan['trials']} tuning {_plural('trial', plan['trials'])} of "
        f"{plan['steps']} steps; the best by validation {summary['metric']} was run again on "
        f"{n} fresh {_plural('seed', n)}."
    ]
    compared = _compared(summary)
    if compared:
        lines.append(
            f"Differences are paired by seed (n={n}): same initial weights and order of data. "
            f"Two-sided t intervals, Holm-corrected over {len(compared)} "
            f"{_plural('comparison', len(compared))} at 5 %: an interval leaves out zero only "
            f"where a difference is claimed."
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
            f"The intervals speak of other seeds, not of other cases or of another tuning."
        )
    entries = summary["entries"].values()
    lost = sum(entry["diverged"]["fresh"] for entry in entries)
    if lost:
        worst = number(summary, summary["worst"]) + units(summary)[0]
        lines.append(
            f"{lost} of {sum(len(e['test']) for e in entries)} fresh runs diverged; each counts as "
            f"{summary['metric']} {worst}, not as missing."
        )
    if plan["trials"] == 1:
        lines.append(f"Nothing was tuned: the one trial is the defaults, for {base} too.")
    return lines


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
        f"test {summary['metric']}{unit}",
        f"difference to {summary['baseline']}{points}",
        "steps to target",
        "seconds to target",
        "optimizer ms/step",
        "training ms/step",
        "state bytes/parameter",
        "diverged",
    )


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
        _reached(entry["steps_to_target"], "{:.0f}"),
        _reached(timing["seconds_to_target"], "{:.2f}"),
        UNKNOWN if timing["step_ms"] is None else f"{timing['step_ms']:.3f}",
        UNKNOWN if timing["train_step_ms"] is None else f"{timing['train_step_ms']:.2f}",
        bytes_each,
        f"{entry['diverged']['fresh']}/{n} ({entry['diverged']['tuning']}/{entry['trials']})",
    ]


def _reached(values: Sequence[float | None], form: str) -> str:
    """Median over seeds with the share of seeds that reached the target at all."""
    if not values:
        return UNKNOWN
    middle = st.median(math.inf if v is None else v for v in values)
    share = f" ({sum(v is not None for v in values)}/{len(values)})"
    return ("never" if math.isinf(middle) else form.format(middle)) + share
