"""Judges runs that were made elsewhere, from a CSV file with one row for each run.

The rows become the trials and results of a race with a fixed number of seeds, which is judged and
shown like any other race. If a unit has several runs, or if a margin is given, it is a race with a
single look, at its end.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import steepest
from steepest.errors import BadCall
from steepest.race import report, run_table
from steepest.race.field import BASELINE
from steepest.race.folder import locked, write
from steepest.race.protocol import FRESH, Plan, Result, Trial
from steepest.race.request import gain_of
from steepest.race.run_table import TEST, Row, Runs, Source, listed, plain
from steepest.race.schema import Summary
from steepest.race.summary import summarise
from steepest.statistics.inference import LEAST
from steepest.tasks import Task

FILES = ("summary.json", "report.html", ".lock")
MOST, ENTRIES = 1_000, 50
"""The largest number of runs of an entry, and the largest number of entries. With so many, the
exact test takes a minute and gigabytes of memory."""
FEW = 5
"""A message lists at most this many seeds of an entry, and this many entries."""
Key = tuple[str, str]
"""(unit, seed) of a run. Without a column of units, each seed is a unit."""


@dataclass(frozen=True)
class Import:
    """The options of `steepest race --import`."""

    source: Source
    worst: str | None = None
    """The metric that a diverged run counts as; None: the worst value in the file."""
    baseline: str | None = None
    margin: float | None = None
    """The smallest gain that would matter, in the metric's unit; for a share, in points."""

    def command(self) -> str:
        """The command line of this request."""
        source = self.source
        words = ["steepest", "race", "--import", str(source.file)]
        words += [] if source.metric == TEST else ["--metric", source.metric]
        words += ["--maximize" if source.maximize else "--minimize"]
        words += ["--proportion"] if source.proportion else []
        for name in ("worst", "baseline", "margin"):
            value = getattr(self, name)
            words += [] if value is None else [f"--{name}", str(value)]
        return shlex.join(words)


def judge(request: Import, folder: Path) -> Summary:
    """Judge the runs of a file; write summary.json and report.html into `folder`.

    The names of unread columns are printed on stderr. BadCall if the file cannot be judged, or if
    the folder has files that no import wrote.
    """
    runs = run_table.read(request.source)
    summary = summarise_runs(request, runs)
    with locked(folder):
        names = sorted(path.name for path in folder.iterdir())
        if others := [name for name in names if name.removesuffix(".new") not in FILES]:
            raise BadCall(
                f"'{folder}' has other files ({listed(others)}): choose a new folder with --out, "
                f"or the folder of an earlier --import"
            )
        write(folder / "summary.json", json.dumps(summary, indent=1, allow_nan=False) + "\n")
        write(folder / "report.html", report.page(summary))
    if runs.unread:
        print(f"steepest: columns that were not read: {listed(runs.unread)}", file=sys.stderr)
    return summary


def summarise_runs(request: Import, runs: Runs) -> Summary:
    """Make the summary of a race from the runs of a file."""
    source, worst = request.source, _worst(request, runs)
    by_entry, repeats = _paired(source, runs)
    n, margin = len(next(iter(by_entry.values()))) // repeats, None
    if request.margin is not None:
        margin = gain_of(request.margin, lambda: runs.proportion)
    plan = Plan(
        task=str(source.file),
        entries=tuple(by_entry),
        trials=0,
        seeds=n,
        steps=0,
        seed=0,
        request={"worst": request.worst},
        baseline=_baseline(request, list(by_entry)),
        looks=(n,) if n >= LEAST and (repeats > 1 or margin) else (),
        repeats=repeats,
        margin=margin,
        imported=True,
    )
    task = Task(
        name=plain(source.file.stem),
        metric="test metric" if source.metric == TEST else plain(source.metric),
        maximize=source.maximize,
        worst=worst,
        target=None,
        steps=0,
        every=0,
        test_size=0,
        proportion=runs.proportion,
        measured=None if request.worst else worst,
    )
    pairs = [
        (Trial(plan.task, FRESH, entry, i, seed, 0, {}), _result(row))
        for entry, rows in by_entry.items()
        for i, (row, seed) in enumerate(zip(rows, _seeds(rows), strict=True))
    ]
    versions = {name: importlib.metadata.version(name) for name in ("numpy", "scipy")}
    versions = {"steepest": steepest.__version__, "python": platform.python_version(), **versions}
    summary = summarise(
        task,
        plan,
        pairs,
        {
            "command": request.command(),
            "versions": versions,
            "machine": {},
            "task_sha256": None,
            "modules_sha256": {},
            "data_sha256": runs.sha256,
        },
    )
    for entry, rows in by_entry.items():
        _reduce(summary, entry)
        summary["entries"][entry]["measures"] = [dict(row.measures) for row in rows]
    return summary


def _seeds(rows: Sequence[Row]) -> Sequence[int]:
    """The seeds of the runs; 0, 1, 2, ... instead if any seed is not a whole number."""
    try:
        return [int(row.seed) for row in rows]
    except ValueError:
        return range(len(rows))


def _result(row: Row) -> Result:
    if row.diverged:
        return Result(diverged=row.diverged)
    return Result([0], [row.value], [0.0], test=row.value)


def _reduce(summary: Summary, name: str) -> None:
    """Empty the fields of an entry that a race measures but a file does not have."""
    entry = summary["entries"][name]
    entry["validation"], entry["best_validation"], entry["steps_to_target"] = [], [], []
    entry["state_bytes"] = entry["parameters"] = None
    entry["curve"] = {"steps": [], "median": [], "low": [], "high": []}
    entry["timing"] = {
        "seconds_to_target": [],
        "training_seconds": [],
        "step_ms": None,
        "train_step_ms": None,
        "curve_seconds": [],
    }


def _worst(request: Import, runs: Runs) -> float:
    """The metric that a diverged run counts as: the given one, or the worst value in the file."""
    source = request.source
    if request.worst is not None:
        try:
            worst, percent = run_table.parse(request.worst.strip(), decimal_comma=True)
        except ValueError:
            worst, percent = math.nan, False
        share = 0 <= worst <= 1 if runs.proportion else not percent
        if not (abs(worst) <= run_table.MOST_WORST and share):
            kind = "a share of 0 to 1, or 0% to 100%" if runs.proportion else "a number"
            raise BadCall(
                f"--worst {request.worst}: expected the metric that a diverged run counts as, "
                f"{kind}"
            )
        return worst
    known = [row.value for row in runs.rows if not math.isnan(row.value)]
    if not known:
        raise source.wrong(
            f"no number in the column {source.metric!r}, since every run diverged: there is "
            f"nothing to compare"
        )
    return min(known) if source.maximize else max(known)


def _paired(source: Source, runs: Runs) -> tuple[dict[str, list[Row]], int]:
    """(entry -> its runs, unit by unit and in the same order for all; number of runs in a unit).

    BadCall if a run appears twice, or is missing in some entry.
    """
    by_entry: dict[str, dict[Key, Row]] = {}
    for row in runs.rows:
        key = (row.unit if runs.units else row.seed), row.seed
        before = by_entry.setdefault(row.entry, {}).setdefault(key, row)
        if before is not row:
            unit = f"unit {row.unit}, " if runs.units else ""
            cure = "" if runs.units else "; if an entry has several tunings, add a column 'unit'"
            raise source.wrong(
                f"two runs of {listed([row.entry])} with {unit}seed {row.seed}: give one row for "
                f"each run, with the last {source.metric} of the run{cure}",
                before.line,
                row.line,
            )
    if len(by_entry) > ENTRIES:
        raise source.wrong(
            f"{len(by_entry):,} names in the column 'entry': expected at most {ENTRIES}; give all "
            f"runs of an optimizer the same name"
        )
    units: dict[str, dict[Key, None]] = {}
    for mine in by_entry.values():
        for key in mine:
            units.setdefault(key[0], {})[key] = None
    keys = [key for unit in units.values() for key in unit]
    if any(len(mine) < len(keys) for mine in by_entry.values()):
        raise source.wrong(_unpaired(by_entry, keys, runs.units))
    if len(keys) > MOST:
        raise source.wrong(
            f"{len(keys):,} runs of an entry: expected at most {MOST:,}; remove the same seeds "
            f"from every entry"
        )
    sizes = {len(unit): name for name, unit in units.items()}
    if len(sizes) > 1:
        few, most = min(sizes), max(sizes)
        raise source.wrong(
            f"unit {sizes[few]} has {few} and unit {sizes[most]} has {most} runs of an entry: "
            f"expected the same number in every unit"
        )
    (repeats,) = sizes
    if runs.own and repeats > 1:
        raise source.wrong(
            "the runs.csv of a race in looks, whose results decided how many runs were made, but "
            "--import needs a number of runs that was fixed in advance; for the verdict of this "
            "race, run steepest report"
        )
    return {entry: [mine[key] for key in keys] for entry, mine in by_entry.items()}, repeats


def _unpaired(by_entry: Mapping[str, Mapping[Key, Row]], keys: Sequence[Key], units: bool) -> str:
    """Which runs are missing in which entries, and what to do."""
    what = "unit and seed" if units else "seed"
    names = {key: f"{key[0]}/{key[1]}" if units else key[1] for key in keys}
    missing = {
        entry: listed([names[key] for key in keys if key not in mine], FEW)
        for entry, mine in by_entry.items()
    }
    lacks = [f"{listed([entry])} lacks {what} {texts}" for entry, texts in missing.items() if texts]
    more = f"; {len(lacks) - FEW} more entries lack some" if len(lacks) > FEW else ""
    cure = (
        "add these runs, with true in a column 'diverged' if they failed, or take out the seed "
        "from every entry, but not because of its results"
    )
    if not any(all(key in mine for mine in by_entry.values()) for key in keys):
        cure = (
            "if runs of different entries share nothing, number the runs of each entry from 1 in "
            "the order in which they started"
        )
    return (
        f"runs are compared seed by seed, but {'; '.join(lacks[:FEW])}{more}: give every entry the "
        f"same seeds; {cure}"
    )


def _baseline(request: Import, entries: Sequence[str]) -> str:
    """The given baseline; by default AdamW, in any capitals; without AdamW, the first entry."""
    if request.baseline is None:
        return next((entry for entry in entries if entry.casefold() == BASELINE), entries[0])
    name = plain(request.baseline)
    if name not in entries:
        near = get_close_matches(name, entries, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise BadCall(
            f"--baseline {request.baseline} is not an entry in '{request.source.file}': expected "
            f"one of {listed(entries)}{hint}"
        )
    return name
