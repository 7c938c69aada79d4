"""Numbers, units and counts as text: what the verdict, the notes and the table share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from steepest.race.schema import Share, Summary
from steepest.statistics.inference import Difference

UNKNOWN = "\u2013"
"""Text of a table cell whose value is not known, or not known yet."""
NO_INTERVAL = "(no interval: n too small)"


def number(summary: Share, value: float, *, signed: bool = False) -> str:
    """A metric or a difference as text, without its unit: 98.12, +0.34."""
    sign = "+" if signed else ""
    text = f"{100 * value:{sign}.2f}" if summary["proportion"] else f"{value:{sign}.4g}"
    return text if float(text) else text.replace("-", sign)


def units(summary: Share) -> tuple[str, str]:
    """The unit of the metric, and the unit of a difference of metrics; each begins with a space."""
    return (" %", " points") if summary["proportion"] else ("", "")


def is_imported(summary: Summary) -> bool:
    """Whether the runs were made elsewhere and read from a file."""
    return summary["plan"].get("imported", False)


def fresh(summary: Summary, noun: str) -> str:
    """ "fresh run" for the noun "run"; only "run" for imported runs, whose seeds may be any."""
    return noun if is_imported(summary) else f"fresh {noun}"


def judged_on(summary: Summary) -> str:
    """The split that the verdict is about: "test", or "validation" without test data."""
    return "test" if summary.get("test_data", True) else "validation"


def level(d: Difference) -> str:
    """The confidence level of an interval: 95 % or 99.4 %."""
    return f"{100 * d.level:.1f}".removesuffix(".0") + " %"


def spread(counts: Sequence[int]) -> str:
    """Counts as text: 10, or 3 to 5."""
    low, high = min(counts), max(counts)
    return str(low) if low == high else f"{low} to {high}"


def counted(summary: Summary, what: Literal["tuning", "test"], noun: str = "") -> str:
    """How many runs an entry has finished, and how many are planned if some are missing.

    `what`: "tuning" counts tuning trials, "test" fresh runs. `noun`: their name in the singular.
    """
    plan = summary["plan"]
    finished = spread([len(entry[what]) for entry in summary["entries"].values()])
    if plan.get("looks"):  # the number of runs is not planned
        return f"{finished} {noun if finished == '1' else noun + 's'}" if noun else finished
    each = plan["trials"] if what == "tuning" else plan.get("repeats", 1)
    planned = str(plan["seeds"] * each)
    text = finished if finished == planned else f"{finished} of {planned} planned"
    return f"{text} {noun if text == '1' else noun + 's'}" if noun else text


def plural(word: str, count: int) -> str:
    """The noun as singular if `count` is 1, else as plural."""
    if count == 1:
        return word
    return f"{word[:-1]}ies" if word.endswith("try") else f"{word}s"


def differences(summary: Summary) -> dict[str, Difference]:
    """Entry -> its difference to the baseline, for each entry that has been compared."""
    return {
        name: Difference(**entry["difference"])
        for name, entry in summary["entries"].items()
        if entry["difference"] is not None
    }


def metric_name(summary: Summary) -> str:
    """The metric with its split: "test accuracy". An imported metric may be of any split."""
    metric = summary["metric"]
    return metric if is_imported(summary) else f"{judged_on(summary)} {metric}"


def judged_metric(summary: Summary) -> str:
    """The metric that the verdict is about."""
    if is_imported(summary) or summary.get("test_data", True):
        return metric_name(summary)
    return f"validation {summary['metric']} of fresh seeds (the task has no test data)"


def lost_metric(summary: Summary) -> str:
    """The metric that a failed run counts as, with its name, such as "accuracy 0.00 %"."""
    worst = summary["worst"]
    shown = "" if worst is None else number(summary, worst) + units(summary)[0]
    return f"{summary['metric']} {shown}"


def shown_size(summary: Summary, d: Difference) -> str:
    """The size of a claimed difference and its interval, without signs."""
    text = number(summary, abs(d.mean)) + units(summary)[1]
    if d.low is None or d.high is None:
        return f"{text} {NO_INTERVAL if d.exact else f'on every {unit_of(d)}'}"
    near, far = sorted((abs(d.low), abs(d.high)))
    return f"{text} ({level(d)} interval {number(summary, near)} to {number(summary, far)})"


def capital(text: str) -> str:
    """The text with a capital as its first letter."""
    return text[:1].upper() + text[1:]


def listed(numbers: Sequence[int]) -> str:
    """Numbers for a sentence: 5, 8 and 12."""
    *first, last = map(str, numbers)
    return f"{', '.join(first)} and {last}" if first else last


def unit_of(d: Difference) -> str:
    """What the pairs of a difference are: "unit" or "seed"."""
    return "unit" if d.look else "seed"
