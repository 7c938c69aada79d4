"""Several races together: how often an entry is fast, and how far behind it is where it is not.

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

from steepest.race import BadCall
from steepest.race.drawing import lines
from steepest.race.phrases import UNKNOWN
from steepest.race.report import keys, rendered
from steepest.race.schema import EntrySummary, Summary

WITHIN = (1.0, 2.0, 4.0)
"""Times the fewest steps of the entries compared; the profile is drawn to the last of them."""


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
    """Validation metric, in its own unit."""
    metric: str
    seeds: int
    """Fresh seeds of an entry."""


class EntryProfile(TypedDict):
    """One entry of a profile: a value for each race in the lists."""

    steps: list[float | None]
    """Median number of steps to the target; None where it was not reached."""
    ratios: list[float | None]
    """`steps` over the fewest of the entries compared; None where there is no such ratio."""
    within: dict[str, float]
    """Ratio -> share of races, 0 to 1, in which the entry's ratio is at most that."""
    score: float
    """Mean share of races within a ratio of 1 to 4."""


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
    if not complete:
        raise BadCall(f"the race in '{folder}' is not finished: end it with --resume first")
    return summary


def profile(summaries: Sequence[Summary]) -> Profile:
    """The performance profile of the entries that all races have, as JSON.

    The cost of an entry in a race is its median number of steps to the target over fresh seeds,
    infinite where half of them or more do not reach it; its ratio is that over the lowest cost of
    these entries in the race, 1 where both are 0. "score" is the mean height of the profile between
    ratios 1 and 4, by which AlgoPerf ranks (Dahl et al. 2023, arXiv:2306.07179). A race in which
    nobody reaches the target counts against all. BadCall for fewer than two races, the same task
    twice, or no two common entries.
    """
    if len(summaries) < 2:
        raise BadCall(f"{len(summaries)} race given: a profile is over two or more")
    races = [_race(summary) for summary in summaries]
    seen = set()
    for one in races:
        task = one["task_sha256"] or one["task"], one["data_sha256"]
        if task in seen:
            raise BadCall(
                f"the task {one['task']} is given twice: expected another task in each race; "
                f"another seed or number of steps makes none"
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
    for name, mine in costs.items():
        ratios = [_ratio(c, b) for c, b in zip(mine, best, strict=True)]
        entries[name] = {
            "steps": [_finite(cost) for cost in mine],
            "ratios": [_finite(ratio) for ratio in ratios],
            "within": {f"{tau:g}": share(ratios, tau) for tau in WITHIN},
            "score": score(ratios),
        }
    return {
        "races": races,
        "nobody": [one["task"] for one, b in zip(races, best, strict=True) if math.isinf(b)],
        "left_out": sorted({e for s in summaries for e in s["entries"]} - set(names)),
        "entries": dict(sorted(entries.items(), key=lambda item: -item[1]["score"])),
    }


def share(ratios: Sequence[float], tau: float) -> float:
    """Share of races in which the ratio is at most `tau`."""
    return sum(ratio <= tau for ratio in ratios) / len(ratios)


def score(ratios: Sequence[float], most: float = WITHIN[-1]) -> float:
    """Mean over tau from 1 to `most` of `share(ratios, tau)`: 1 for the best of every race."""
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
    # half of the seeds may be infinite: the lower middle one would be a time nobody promised
    return st.median_high([math.inf if s is None else s for s in entry["steps_to_target"]])


def _ratio(cost: float, best: float) -> float:
    if cost == best < math.inf:
        return 1.0  # also where a target is reached before the first step
    return cost / best if best and cost < math.inf else math.inf


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def notes(found: Profile) -> list[str]:
    """What a reader must know to read the profile right."""
    n = len(found["races"])
    said = [
        f"n={n} races: {', '.join(_told(race) for race in found['races'])}. With so few, one more "
        f"can change the order." if n < 10 else f"n={n} races.",
        "Steps to the target: the median over the fresh seeds of a race; never, where half of them "
        "or more did not reach it. The fewest are those of the entries compared here.",
    ]  # fmt: skip
    if found["nobody"]:
        said.append(f"Nobody reached the target in {', '.join(found['nobody'])}.")
    if found["left_out"]:
        said.append(f"Not in every race, and left out: {', '.join(found['left_out'])}.")
    return said


def _told(race: RaceRecord) -> str:
    return f"{race['task']} ({race['metric']} {race['target']:.4g}, n={race['seeds']} seeds)"


COLUMNS = ("entry", "fewest steps", "within 2 times", "within 4 times", "score", "each race")


def rows(found: Profile) -> list[list[str]]:
    """The table, best score first, a text for each of `COLUMNS`."""
    return [
        [
            name,
            *(f"{100 * entry['within'][f'{tau:g}']:.0f} %" for tau in WITHIN),
            f"{entry['score']:.2f}",
            ", ".join(UNKNOWN if r is None else f"{r:.2f}" for r in entry["ratios"]),
        ]
        for name, entry in found["entries"].items()
    ]


def table(found: Profile) -> Table:
    """The table for a terminal."""
    shown = Table(box=box.SIMPLE, title=f"steps to target, n={len(found['races'])} races")
    for i, head in enumerate(COLUMNS):
        shown.add_column(head, justify="right" if 0 < i < len(COLUMNS) - 1 else "left")
    for row in rows(found):
        shown.add_row(*map(Text, row))
    return shown


def page(found: Profile) -> str:
    """The profile as a page without scripts or requests."""
    names = list(found["entries"])
    fields = {"failed": 0, "test": ()}
    drawn = {
        "entries": dict.fromkeys(names, fields),
        "baseline": "adamw" if "adamw" in names else names[0],
        "maximize": True,
    }
    curves = [(*_stairs(found["entries"][name]["ratios"]), None, None) for name in names]
    limits = (-5.0, 105.0)
    return rendered(
        "profile.html.jinja",
        s=drawn,
        keys=keys(drawn),
        found=found,
        notes=notes(found),
        columns=COLUMNS,
        rows=rows(found),
        figure=lines(
            drawn,
            curves,
            "times the fewest steps of the entries compared",
            "races (%)",
            limits,
            "p",
        ),
    )


def _stairs(ratios: Sequence[float | None]) -> tuple[list[float], list[float]]:
    """The profile as a line: it jumps where a ratio lies."""
    known = sorted(r for r in ratios if r is not None and r <= WITHIN[-1])
    x, y = [1.0], [0.0]
    for i, ratio in enumerate(known):
        x += [ratio, ratio]
        y += [100 * i / len(ratios), 100 * (i + 1) / len(ratios)]
    return [*x, WITHIN[-1]], [*y, y[-1]]
