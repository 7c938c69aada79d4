"""What a reader must know to read the verdict right, and what stands beside it."""

from __future__ import annotations

from steepest.race.phrases import counted, differences, number, plural, units
from steepest.race.protocol import LEAST_TRIALS
from steepest.race.schema import Summary
from steepest.race.statistics import Difference
from steepest.race.verdicts import failures, over_budget

OWN = "choose their own"


def caveats(summary: Summary) -> list[str]:
    """What a reader must know to read the verdict right."""
    plan, base = summary["plan"], summary["baseline"]
    n, found = plan["seeds"], summary.get("lint", [])
    steps = f"{plan['steps']} {plural('step', plan['steps'])}"
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
            f"{n} fresh {plural('seed', n)}; give --trials {LEAST_TRIALS} or more."
        ]
    else:
        lines = [
            f"Every entry had {n} fresh {plural('seed', n)} and was tuned anew for each of them: "
            f"{plan['trials']} trials of {steps} on seeds of their own, of which the best by "
            f"validation {summary['metric']} was run on the fresh seed."
        ]
    if plan["over_budget"]:
        lines.append(over_budget(plan) + ".")
    compared = differences(summary)
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
            f"{plural('comparison', len(compared))}: all claims together hold at 5 %; "
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
        said = failures(summary, list(entries))
        lines.append(said[0].upper() + said[1:] + ", by the exact one-sided 95 % bound.")
        lines.append(_tuned(summary))
    return [line for line in lines if line] + [f"{finding['text']}." for finding in found]


def _who_failed(summary: Summary) -> str:
    """The entries of which fresh runs failed, with how many of how many."""
    return ", ".join(
        f"{name} failed on {entry['failed']} of {len(entry['test'])}"
        for name, entry in summary["entries"].items()
        if entry["failed"]
    )


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
            f"{plural('seed', d.n)} "
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
        f"({'median of' if tunings > 1 else 'from'} n={tunings} {plural('tuning', tunings)} "
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
