"""How many runs fit into a budget of wall time."""

from __future__ import annotations

import math

from steepest.errors import BadCall
from steepest.race.protocol import LEAST_SEEDS, LEAST_TRIALS, SEEDS

PLANNED_SHARE = 0.85
"""Share of a budget that runs may take; the rest is for the store, the report and slow moments."""
YEAR = 366 * 24 * 3600.0
"""The largest budget, in seconds."""


def runs_within(seconds: float, entries: int, jobs: int, run: float, warm: float) -> int:
    """Number of runs of each entry in `seconds` of wall time; arguments: see `affordable`."""
    return int(jobs * (seconds - entries * warm) / run / entries)


def affordable(
    seconds: float, entries: int, jobs: int, run: float, warm: float, seeds: int | None
) -> tuple[int, int]:
    """(trials for each seed, seeds) of an entry that fit into `seconds` of wall time.

    `entries`: number of entries. `jobs`: number of workers. `run`: seconds of a run. `warm`:
    seconds of the first step of an entry in a worker. If `seeds` is None, the result has 10 seeds;
    if the time is too short for 5 trials each, it has fewer seeds, but at least 5.
    """
    runs = runs_within(seconds * PLANNED_SHARE, entries, jobs, run, warm)
    if seeds is None:
        seeds = min(SEEDS, max(LEAST_SEEDS, runs // (LEAST_TRIALS + 1)))
    return max(1, runs // seeds - 1), seeds


def enough(entries: int, jobs: int, run: float, warm: float, seeds: int | None) -> float:
    """Seconds of wall time for which `affordable` gives enough trials and seeds for a verdict."""
    runs = (LEAST_TRIALS + 1) * max(LEAST_SEEDS, seeds or 0)
    return ((runs + 1) * entries * run / jobs + entries * warm) / PLANNED_SHARE


def parse_budget(text: str) -> float:
    """Seconds in "60s", "5m", "1.5h" or "60"."""
    units = {"s": 1.0, "m": 60.0, "h": 3600.0}
    number, unit = (text[:-1], text[-1]) if text[-1:] in units else (text, "s")
    try:
        seconds = float(number) * units[unit]
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= YEAR:
        raise BadCall(
            f"--budget {text!r}: expected a wall time such as 60s, 5m or 1h, at most a year"
        )
    return seconds
