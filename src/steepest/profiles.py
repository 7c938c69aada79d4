"""Several races together: how often an entry is fast, and how slow it is in the other races.

Performance profiles: Dolan and More 2002, Mathematical Programming 91, 201-213.
"""

from __future__ import annotations

import json
import math
import statistics as st
from collections.abc import Sequence
from pathlib import Path
from typing import NotRequired, TypedDict

from rich import box
from rich.table import Table
from rich.text import Text

from steepest.errors import BadCall
from steepest.race.phrases import UNKNOWN
from steepest.race.schema import EntrySummary, Summary
from steepest.report.drawing import Series, draw_lines
from steepest.report.pages import render
from steepest.report.styles import choose_styles, make_legend

FEW = 10
"""With fewer races, one more race can change the order of the entries."""
WITHIN = (1.0, 2.0, 4.0)
"""Multiples of the fewest steps. The profile is drawn up to the last multiple."""


class RaceRecord(TypedDict):
    """One race of a profile."""

    task: str
    task_sha256: str | None
    data_sha256: str | None
    seed: int
    """The study seed."""
    steps: int
    """Optimizer steps of a run."""
    target: float | None
    """The target of the validation metric, in its own unit."""
    metric: str
    seeds: int
    """Number of fresh seeds of an entry."""


class EntryProfile(TypedDict):
    """One entry of a profile: a value for each race in the lists."""

    steps: list[float | None]
    """Median number of steps to the target; None if half of the seeds or more did not reach it."""
    ratios: list[float | None]
    """`steps` divided by the fewest steps of the entries compared. None if `steps` is None, or if
    the fewest steps are 0 and `steps` is not."""
    within: dict[str, float]
    """Ratio -> share of races, 0 to 1, in which the entry's ratio is at most this ratio."""
    score: float
    """The share of races within a ratio, averaged over the ratios from 1 to 4."""


class Profile(TypedDict):
    """A performance profile, as `steepest profile --json` prints it."""

    races: list[RaceRecord]
    nobody: list[str]
    """Tasks whose target no entry reached."""
    left_out: list[str]
    """Entries that are not in every race."""
    entries: dict[str, EntryProfile]
    """Best score first."""
    reproduce: NotRequired[str]
    """The command line."""


def read(folder: Path) -> Summary:
    """The summary of the finished race in `folder`; BadCall for anything else."""
    path = folder / "summary.json"
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        complete, _ = summary["complete"], summary["entries"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        why = getattr(error, "strerror", None) or "it is no summary of a race"
        raise BadCall(
            f"cannot read '{path}' ({why}): expected the folder of a finished race"
        ) from None
    if summary.get("plan", {}).get("imported"):
        raise BadCall(
            f"the runs in '{folder}' were imported, so it is not known when they reached a target: "
            f"give the folder of a race that ran here"
        )
    if not complete:
        raise BadCall(f"the race in '{folder}' is not finished: finish it with --resume first")
    return summary


def profile(summaries: Sequence[Summary]) -> Profile:
    """The performance profile of the entries that all races have.

    The cost of an entry in a race is its median number of steps to the target over the fresh seeds.
    The cost is infinite if half of the seeds or more do not reach the target. The ratio is the cost
    divided by the lowest cost of these entries in the race, or 1 if both are 0. The score is the
    mean height of the profile between ratios 1 and 4; AlgoPerf ranks by it (Dahl et al. 2023,
    arXiv:2306.07179). If no entry reaches the target of a race, the race counts against all of
    them. BadCall for fewer than two races, the same task twice, or fewer than two common entries.
    """
    if len(summaries) < 2:
        raise BadCall(
            f"{len(summaries)} race given: expected two or more; give more folders of races"
        )
    races = [_race(summary) for summary in summaries]
    seen = set()
    for race in races:
        task = race["task_sha256"] or race["task"], race["data_sha256"]
        if task in seen:
            raise BadCall(
                f"the task {race['task']} is given twice: expected another task in each race; "
                f"a different seed or number of steps does not make a different task"
            )
        seen.add(task)
    names = [e for e in summaries[0]["entries"] if all(e in s["entries"] for s in summaries)]
    if len(names) < 2:
        raise BadCall(
            f"the races have {len(names)} entries in common: expected two or more; race the same "
            f"--optimizers on each task"
        )
    costs = {name: [_cost(summary["entries"][name]) for summary in summaries] for name in names}
    best = [min(column) for column in zip(*costs.values(), strict=True)]
    entries: dict[str, EntryProfile] = {}
    for name, steps in costs.items():
        ratios = [_ratio(c, b) for c, b in zip(steps, best, strict=True)]
        entries[name] = {
            "steps": [_finite(cost) for cost in steps],
            "ratios": [_finite(ratio) for ratio in ratios],
            "within": {f"{tau:g}": share(ratios, tau) for tau in WITHIN},
            "score": score(ratios),
        }
    return {
        "races": races,
        "nobody": [race["task"] for race, b in zip(races, best, strict=True) if math.isinf(b)],
        "left_out": sorted({e for s in summaries for e in s["entries"]} - set(names)),
        "entries": dict(sorted(entries.items(), key=lambda item: -item[1]["score"])),
    }


def share(ratios: Sequence[float], tau: float) -> float:
    """Share of races in which the ratio is at most `tau`."""
    return sum(ratio <= tau for ratio in ratios) / len(ratios)


def score(ratios: Sequence[float], most: float = WITHIN[-1]) -> float:
    """Mean over tau from 1 to `most` of `share(ratios, tau)`; 1 if every ratio is 1."""
    return st.fmean(max(0.0, most - ratio) / (most - 1) for ratio in ratios)


def _race(summary: Summary) -> RaceRecord:
    plan, provenance = summary["plan"], summary["provenance"]
    return {
        "task": summary["task"],
        "task_sha256": provenance.get("task_sha256"),
        "data_sha256": provenance.get("data_sha256"),
        "seed": plan["seed"],
        "steps": plan["steps"],
        "target": summary["target"],
        "metric": summary["metric"],
        "seeds": plan["seeds"],
    }


def _cost(entry: EntrySummary) -> float:
    # infinite if half of the seeds are infinite: the lower median would be too good
    return st.median_high([math.inf if s is None else s for s in entry["steps_to_target"]])


def _ratio(cost: float, best: float) -> float:
    if cost == best < math.inf:
        return 1.0  # also if the target is reached before the first step
    return cost / best if best and cost < math.inf else math.inf


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def notes(record: Profile) -> list[str]:
    """Notes that explain how to read the profile."""
    n = len(record["races"])
    races = f"n={n} races."
    if n < FEW:
        races = (
            f"n={n} races: {', '.join(_describe(race) for race in record['races'])}. With so few "
            f"races, one more can change the order of the entries."
        )
    lines = [
        races,
        "Steps to the target are the median over the fresh seeds of a race. If half of the seeds "
        "or more did not reach the target, the target counts as never reached. The fewest steps "
        "are the fewest among the entries compared here.",
    ]
    if record["nobody"]:
        lines.append(f"No entry reached the target in {', '.join(record['nobody'])}.")
    if record["left_out"]:
        lines.append(f"Left out, because not in every race: {', '.join(record['left_out'])}.")
    return lines


def _describe(race: RaceRecord) -> str:
    return f"{race['task']} ({race['metric']} {race['target']:.4g}, n={race['seeds']} seeds)"


COLUMNS = ("entry", "fewest steps", "within 2 times", "within 4 times", "score", "each race")


def rows(record: Profile) -> list[list[str]]:
    """The cells of the table, in the order of `COLUMNS`; the best score comes first."""
    return [
        [
            name,
            *(f"{100 * entry['within'][f'{tau:g}']:.0f} %" for tau in WITHIN),
            f"{entry['score']:.2f}",
            ", ".join(UNKNOWN if r is None else f"{r:.2f}" for r in entry["ratios"]),
        ]
        for name, entry in record["entries"].items()
    ]


def table(record: Profile) -> Table:
    """The table for a terminal."""
    made = Table(box=box.SIMPLE, title=f"steps to target, n={len(record['races'])} races")
    for i, head in enumerate(COLUMNS):
        made.add_column(head, justify="right" if 0 < i < len(COLUMNS) - 1 else "left")
    for row in rows(record):
        made.add_row(*map(Text, row))
    return made


def page(record: Profile) -> str:
    """The profile as an HTML page that runs no scripts and loads nothing."""
    names = list(record["entries"])
    baseline = "adamw" if "adamw" in names else names[0]
    styles = choose_styles(names, baseline)
    figure = draw_lines(
        names,
        [Series(*_stairs(record["entries"][name]["ratios"])) for name in names],
        styles,
        xlabel="times the fewest steps of the entries compared",
        ylabel="races (%)",
        limits=(-5.0, 105.0),
        key="p",
    )
    notes_of_keys = ["baseline" if name == baseline else "" for name in names]
    return render(
        "steepest.report",
        "profile.html.jinja",
        names=names,
        keys=make_legend(names, styles, notes_of_keys),
        profile=record,
        notes=notes(record),
        columns=COLUMNS,
        rows=rows(record),
        figure=figure,
    )


def _stairs(ratios: Sequence[float | None]) -> tuple[list[float], list[float]]:
    """Points (x, y) of the profile as a line that jumps at each ratio."""
    inside = sorted(r for r in ratios if r is not None and r <= WITHIN[-1])
    x, y = [1.0], [0.0]
    for i, ratio in enumerate(inside):
        x += [ratio, ratio]
        y += [100 * i / len(ratios), 100 * (i + 1) / len(ratios)]
    return [*x, WITHIN[-1]], [*y, y[-1]]
