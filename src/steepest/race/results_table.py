"""The table of a race: a row for each entry."""

from __future__ import annotations

import math
import statistics as st
from collections.abc import Sequence

from steepest.race.phrases import (
    NO_INTERVAL,
    UNKNOWN,
    differences,
    is_imported,
    level,
    metric_name,
    number,
    unit_of,
    units,
)
from steepest.race.schema import EntrySummary, Summary
from steepest.statistics.inference import Difference


def columns(summary: Summary) -> tuple[str, ...]:
    """Heads of the table, with units."""
    unit, points = (f" ({text.strip()})" if text else "" for text in units(summary))
    levels = _levels(summary)
    interval = f", {levels.pop()} interval" if len(levels) == 1 else ""
    gradients = ("gradients",) if costs(summary) else ()
    judged = (
        "entry",
        "n (units)" if summary["plan"].get("looks") else "n",
        f"{metric_name(summary)}{unit}",
        f"difference to {summary['baseline']}{points}{interval}",
    )
    if is_imported(summary):
        return (*judged, "failed")
    return (
        *judged,
        "steps to target",
        "seconds to target",
        "optimizer ms/step",
        "training ms/step",
        *gradients,
        "state bytes/parameter",
        "failed",
    )


def costs(summary: Summary) -> bool:
    """Whether the number of gradients differs from the number of steps in any entry."""
    counts = (entry.get("gradients") for entry in summary["entries"].values())
    return any(count is not None and count != summary["plan"]["steps"] for count in counts)


def rows(summary: Summary) -> list[list[str]]:
    """The cells of the table, in the order of `columns`; the best mean test metric comes first."""

    def order(item: tuple[str, EntrySummary]) -> float:
        test = item[1]["test"]
        mean = st.fmean(test) if test else -math.inf if summary["maximize"] else math.inf
        return -mean if summary["maximize"] else mean

    return [_row(summary, *item) for item in sorted(summary["entries"].items(), key=order)]


def numbers(summary: Summary) -> tuple[Sequence[str], list[list[object]]]:
    """Heads and rows of the same table as plain numbers, for a CSV. A share is 0 to 1, not percent.

    A cell is None if its value is not known. Steps and seconds to the target are None if half or
    more of the fresh runs did not reach the target.
    """
    heads = (
        "entry",
        "fresh_runs",
        *("mean", "standard_deviation"),
        *("difference", "difference_low", "difference_high", "confidence_level"),
        *("steps_to_target", "seconds_to_target", "reached_target"),
        *("optimizer_ms_per_step", "training_ms_per_step", "gradients"),
        *("state_bytes", "parameters", "failed", "diverged_tuning_trials", "tuning_trials"),
    )
    found = []
    for name, *_ in rows(summary):
        entry = summary["entries"][name]
        test, timing, steps = entry["test"], entry["timing"], entry["steps_to_target"]
        d = entry["difference"]
        found.append(
            [
                name,
                len(test),
                st.fmean(test) if test else None,
                st.stdev(test) if len(test) > 1 else None,
                *((d["mean"], d["low"], d["high"], d["level"]) if d else [None] * 4),
                _median(steps),
                _median(timing["seconds_to_target"]),
                sum(step is not None for step in steps),
                timing["step_ms"],
                timing["train_step_ms"],
                entry.get("gradients"),
                entry["state_bytes"],
                entry["parameters"],
                entry["failed"],
                entry["diverged"]["tuning"],
                entry["trials"],
            ]
        )
    return heads, found


def _median(values: Sequence[float | None]) -> float | None:
    """The median, where None counts as infinite; None if it is infinite or there is no value."""
    middle = st.median(math.inf if v is None else v for v in values) if values else math.inf
    return None if math.isinf(middle) else middle


def _row(summary: Summary, name: str, entry: EntrySummary) -> list[str]:
    test, timing, n = entry["test"], entry["timing"], len(entry["test"])
    metric = bytes_each = UNKNOWN
    if test:
        spread = f" ± {number(summary, st.stdev(test))}" if n > 1 else ""
        metric = number(summary, st.fmean(test)) + spread
    if entry["parameters"] and entry["state_bytes"] is not None:
        bytes_each = f"{entry['state_bytes'] / entry['parameters']:.1f}"
    judged = [name, _count(summary, entry), metric, _difference(summary, name, entry)]
    if is_imported(summary):
        return [*judged, f"{entry['failed']}/{n}"]
    gradients = [f"{entry['gradients']:,.0f}" if entry.get("gradients") else UNKNOWN]
    return [
        *judged,
        _reached(entry["steps_to_target"], "{:.0f}", [summary["plan"]["steps"]]),
        _reached(timing["seconds_to_target"], "{:.2f}", timing["training_seconds"]),
        UNKNOWN if timing["step_ms"] is None else f"{timing['step_ms']:.3f}",
        UNKNOWN if timing["train_step_ms"] is None else f"{timing['train_step_ms']:.2f}",
        *(gradients if costs(summary) else ()),
        bytes_each,
        f"{entry['failed']}/{n} ({entry['diverged']['tuning']}/{entry['trials']})",
    ]


def _count(summary: Summary, entry: EntrySummary) -> str:
    """Number of fresh runs; with looks, the number of units in brackets: 15 (5)."""
    n = str(len(entry["test"]))
    return f"{n} ({len(entry['units'])})" if summary["plan"].get("looks") else n


def _difference(summary: Summary, name: str, entry: EntrySummary) -> str:
    if entry["difference"] is None:
        return "baseline" if name == summary["baseline"] else UNKNOWN
    d = Difference(**entry["difference"])
    text = number(summary, d.mean, signed=True)
    if d.low is not None and d.high is not None:
        low, high = (number(summary, x, signed=True) for x in (d.low, d.high))
        text += f" [{low}, {high}]"
        return f"{text} {level(d)}" if len(_levels(summary)) > 1 else text
    if d.n > 1:
        text += f" {NO_INTERVAL if d.exact else f'on every {unit_of(d)}'}"
    return text


def _reached(values: Sequence[float | None], form: str, ends: Sequence[float]) -> str:
    """Median over seeds, and how many of the seeds reached the target.

    `ends`: the steps or seconds at which the runs ended. If half of the runs did not reach the
    target, the median is unknown; the text then says that it is above the median of `ends`.
    """
    if not values:
        return UNKNOWN
    middle = st.median(math.inf if v is None else v for v in values)
    share = f" ({sum(v is not None for v in values)}/{len(values)})"
    if not math.isinf(middle):
        return form.format(middle) + share
    return (f"> {form.format(st.median(ends))}" if ends else "never") + share


def _levels(summary: Summary) -> set[str]:
    """The levels of the intervals that are shown."""
    return {level(d) for d in differences(summary).values() if d.low is not None}
