"""The verdict of a race in looks: what to do, and the statements that it rests on.

All statements follow from the intervals that are shown. All intervals of all looks together contain
the true differences with a probability of 95 %, so the chance that any statement is wrong is at
most 5 %. Statements about a margin follow Goeman, Solari and Stijnen (2010), Statistics in Medicine
29, 2117-2125.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from steepest.race.phrases import (
    differences,
    is_imported,
    judged_metric,
    level,
    lost_metric,
    number,
    plural,
    shown_size,
    spread,
    units,
)
from steepest.race.schema import Summary
from steepest.race.verdicts import failures, no_verdict, too_little
from steepest.statistics.inference import Difference


@dataclass
class Statements:
    """What the race says of each entry. A field maps entries to differences to the baseline."""

    better: dict[str, Difference] = field(default_factory=dict)
    slightly: dict[str, Difference] = field(default_factory=dict)
    """Better, but by less than the margin."""
    worse: dict[str, Difference] = field(default_factory=dict)
    same: dict[str, Difference] = field(default_factory=dict)
    """Neither better nor worse by the margin or more."""
    equal: dict[str, Difference] = field(default_factory=dict)
    """The same as the baseline on every unit."""
    less: dict[str, Difference] = field(default_factory=dict)
    """Better by less than the margin, if at all; possibly much worse."""
    undecided: dict[str, Difference] = field(default_factory=dict)


def statements(summary: Summary) -> Statements:
    """What the race says of each entry; the largest gain comes first."""
    made, margin = Statements(), summary["plan"].get("margin")
    sign = 1 if summary["maximize"] else -1
    judged = differences(summary)
    for name, d in sorted(judged.items(), key=lambda item: -sign * item[1].mean):
        ends = gains(summary, d)
        small = margin is not None and ends is not None and ends[1] < margin
        if d.claim and sign * d.mean > 0:
            group = made.slightly if small else made.better
        elif d.claim:
            group = made.worse
        elif d.state == "equal":
            group = made.equal
        elif not (small and margin and ends):
            group = made.undecided
        else:
            group = made.same if ends[0] > -margin else made.less
        group[name] = d
    return made


def gains(summary: Summary, d: Difference) -> tuple[float, float] | None:
    """The interval of a difference as gains: (lowest, highest); None without an interval."""
    if d.low is None or d.high is None:
        return None
    return (d.low, d.high) if summary["maximize"] else (-d.high, -d.low)


def verdict(summary: Summary) -> str:
    """What to do, what the race showed, and how much was run."""
    if reason := no_verdict(summary):
        return reason
    made, few = statements(summary), too_little(summary["plan"])
    sentences = [f"{few}."] if few else []
    if made.better:
        sentences += _better(summary, made, bool(few))
    else:
        sentences += _keep(summary, made, bool(few))
    sentences += _rest(summary, made)
    return " ".join(filter(None, [*sentences, _size(summary)]))


def _better(summary: Summary, made: Statements, few: bool) -> list[str]:
    """The first sentences of a verdict, if an entry is better than the baseline."""
    base, metric = summary["baseline"], judged_metric(summary)
    each = [f"{name} by {shown_size(summary, d)}" for name, d in made.better.items()]
    if few:
        who = "is" if len(each) == 1 else "are"
        first = (
            f"With so little tuning, {', '.join(made.better)} {who} better than {base} in {metric}"
        )
        first += f": {', '.join(each)}."
    elif len(each) == 1:
        (name,) = made.better
        first = f"Use {name}: it is better than {base} in {metric}{each[0].removeprefix(name)}."
    else:
        first = (
            f"Use {_any_of(made.better)}: each is better than {base} in {metric}, "
            f"{', '.join(each)}. Pick one; they are not compared with each other."
        )
    return [first, _failing(summary), f"{failures(summary, list(made.better))}."]


def _any_of(names: Iterable[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} or {last}"


def _keep(summary: Summary, made: Statements, few: bool) -> list[str]:
    """The first sentences of a verdict, if no entry is shown to be better than the baseline."""
    base, metric, unit = summary["baseline"], judged_metric(summary), units(summary)[1]
    margin = summary["plan"].get("margin")
    if not made.undecided and not few:
        if margin is None:
            others = "is the same or worse" if made.equal else "is worse"
            return [f"Keep {base}: every other entry {others} in {metric}."]
        size = number(summary, margin) + unit
        return [f"Keep {base}: no other entry gains {size} or more over it in {metric}."]
    failed = summary["entries"][base]["failed"]
    keep = "Undecided" if few or failed else f"Keep {base} for now"
    if margin is not None and made.undecided:
        names, size = ", ".join(made.undecided), number(summary, margin) + unit
        first = f"{keep}: {names} may gain {size} or more over {base} in {metric}, but this is not "
        return [f"{first}shown.", _failing(summary)]
    than = f" than {base}" if few or failed else ""
    sentences = [f"{keep}: no entry is shown to be better{than} in {metric}."]
    sentences.append(_failing(summary))
    known = {name: e[1] for name, d in made.undecided.items() if (e := gains(summary, d))}
    if known:
        most = max(known, key=lambda name: known[name])
        gain = number(summary, max(0.0, known[most])) + unit
        who = f"{_any_of(known)} may gain" if len(known) > 1 else f"{most} may gain"
        interval = f"{level(made.undecided[most])} {plural('interval', len(known))}"
        sentences.append(f"{who} up to {gain} ({interval}).")
        if not few:
            sentences.append(
                "If a gain of this size does not matter to you, stop here; if it does, compare "
                "again with more units."
            )
    unknown = {name: d for name, d in made.undecided.items() if name not in known}
    if few_units := [name for name, d in unknown.items() if d.exact]:
        sentences.append(f"Too few units to judge: {', '.join(few_units)}.")
    if same := [name for name, d in unknown.items() if not d.exact]:
        sentences.append(f"No interval, since all differences are equal: {', '.join(same)}.")
    return sentences


def _failing(summary: Summary) -> str:
    """A sentence on the failed runs of the baseline; empty if none failed."""
    base = summary["entries"][summary["baseline"]]
    if not base["failed"] or summary["worst"] is None:
        return ""
    count = f"{base['failed_units']} of n={len(base['units'])} units of {summary['baseline']}"
    return (
        f"In {count} a run failed; each failed run counts as {lost_metric(summary)}, which "
        f"makes differences and intervals large."
    )


def _rest(summary: Summary, made: Statements) -> list[str]:
    """The statements that the first sentences have not made."""
    base, unit = summary["baseline"], units(summary)[1]
    margin = summary["plan"].get("margin")
    size = "" if margin is None else f" of {number(summary, margin)}{unit}"
    sentences = []
    if made.slightly:
        each = ", ".join(f"{n} by {shown_size(summary, d)}" for n, d in made.slightly.items())
        sentences.append(f"Better, but by less than the margin{size}: {each}.")
    if made.worse:
        each = ", ".join(f"{name} by {shown_size(summary, d)}" for name, d in made.worse.items())
        sentences.append(f"Worse than {base}: {each}.")
    if made.equal:
        sentences.append(f"The same as {base} on every unit: {', '.join(made.equal)}.")
    if made.same:
        names = ", ".join(made.same)
        sentences.append(f"Better or worse than {base} by less than the margin{size}: {names}.")
    if made.less:
        sentences.append(f"Gains less than the margin{size}: {', '.join(made.less)}.")
    others = len(made.undecided) < len(differences(summary))
    if made.undecided and others and (made.better or margin is None):
        sentences.append(f"Not shown to differ from {base}: {', '.join(made.undecided)}.")
    return sentences


def _size(summary: Summary) -> str:
    """How many units each entry had, and what a unit is."""
    plan, entries = summary["plan"], summary["entries"].values()
    n, trials = spread([len(entry["units"]) for entry in entries]), plan["trials"]
    if is_imported(summary):
        what = f"the mean of {plan['repeats']} runs" if plan["repeats"] > 1 else "one run"
        return f"Each entry had n={n} units; a unit is {what}."
    runs = f"{plan['repeats']} fresh {plural('run', plan['repeats'])}"
    what = f"one tuning of {trials} trials, then {runs} of the best"
    if trials == 1:
        what = f"{runs} with the defaults"
    return f"Each entry had n={n} units; a unit is {what}."
