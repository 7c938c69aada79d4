"""What a race in looks costs and finds, beside the design of a fixed number of seeds: simulated.

A unit is one tuning (8 trials of a synthetic task with a peak over the learning rate) and the mean
of 3 fresh runs of its choice. Entries are alike, but for one with a planted difference. Sizes are
shares of the difference that the fixed design (10 seeds, Holm's procedure) finds with power 0.8.

    python bench/looks.py --races 3000 --entries 9
    python bench/looks.py --races 2000 --null
    python bench/looks.py --races 200 --real

Prints, per design and size: runs (a tuning by halving counts as 4 full runs), how often the planted
entry is found, and races with a false claim. --null: races with a false claim where no entry
differs, by number of entries and kind of noise: normal; heavy (t with 2 degrees of freedom); a
share of all fresh runs diverges; discrete (rounded to a standard deviation of a run); two modes.
--real: races of two copies of adam on digits, trained as a race trains them, 50 steps a run. Each
copy has seeds and tuning points of its own. --first splits these races over several calls.
"""

from __future__ import annotations

import argparse
import json

import numpy as np
from scipy import stats

from steepest import tasks
from steepest.race import planning, protocol, scores, trials
from steepest.race.protocol import Plan, Tuning
from steepest.statistics import inference
from steepest.statistics.looks import LOOKS, standing

TRIALS, HALVED, FRESH = 8, 4.0, 3
"""Trials of a tuning, what they cost in full runs by halving, and fresh runs of a unit."""
FIXED = 10
SD, FALL = 0.006, 0.03
"""Standard deviation of a run, and what a decade squared from the best rate costs."""
SIZES = (0.0, 0.6, 1.0, 1.4)


def units(rng: np.random.Generator, shape: tuple[int, ...], fresh: int) -> np.ndarray:
    """Mean test metric of `fresh` runs of what each of the tunings has chosen."""
    rate = rng.uniform(-2.0, 2.0, (*shape, TRIALS))
    rate[..., 0] = 0.4
    tried = -FALL * rate**2 + SD * rng.normal(size=rate.shape)
    best = np.take_along_axis(rate, tried.argmax(-1)[..., None], -1)[..., 0]
    return -FALL * best**2 + SD * rng.normal(size=shape) / np.sqrt(fresh)


def in_looks(test: np.ndarray, looks: tuple[int, ...]) -> tuple[float, set[int]]:
    """Full runs of a race, and the rivals told apart; the first row is the baseline."""
    found, spent = set(), [0] * len(test)
    for i in range(1, len(test)):
        state = standing(inference.paired(test[i], test[0]), len(test) - 1, looks)
        spent[i] = state.units
        if state.state == "told apart":
            found.add(i)
    spent[0] = max(spent)
    return sum(spent) * (HALVED + FRESH), found


def fixed(test: np.ndarray) -> tuple[float, set[int]]:
    d = {str(i): inference.paired(test[i], test[0]) for i in range(1, len(test))}
    _, _, claims = inference.decide(d)
    return len(test) * FIXED * (TRIALS + 1), {int(i) for i in claims}


KINDS = ("normal", "heavy", "diverge 5 %", "diverge 10 %", "diverge 20 %", "discrete", "two modes")


def noise(
    rng: np.random.Generator, kind: str, shape: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Test metrics of fresh runs without any difference, and which of them failed."""
    x, failed = rng.normal(size=shape), np.zeros(shape, dtype=bool)
    if kind == "heavy":
        x = rng.standard_t(2, shape)
    elif kind.startswith("diverge"):
        failed = rng.random(shape) < float(kind.split()[1]) / 100
        x[failed] = -150.0
    elif kind == "discrete":
        x = np.round(x)
    elif kind == "two modes":
        x = 0.1 * x + 3.0 * (rng.random(shape) < 0.5)
    return x, failed


def null_cell(kind: str, entries: int, races: int, margin: float | None) -> int:
    """Races of `entries` alike entries with a false claim: an interval that leaves out zero."""
    rng, false = np.random.default_rng([KINDS.index(kind), entries]), 0
    for _ in range(races):
        x, failed = noise(rng, kind, (entries, LOOKS[-1], FRESH))
        test, lost = x.mean(-1), failed.any(-1)
        false += any(
            standing(
                inference.paired(test[i], test[0]),
                entries - 1,
                failed=set(np.flatnonzero(lost[i] | lost[0]).tolist()),
                margin=margin,
            ).state
            == "told apart"
            for i in range(1, entries)
        )
    return false


def calibrate(races: int) -> None:
    """Print the cells, and what a correct race may claim in the largest of them."""
    cells = {
        (kind, entries, margin): null_cell(kind, entries, races, margin)
        for kind in KINDS
        for entries in (2, 4, 9)
        for margin in (None, 1.0)
    }
    level = inference.ALPHA
    most = int(stats.binom.ppf(1 - 0.025 / len(cells), races, level))
    for (kind, entries, margin), false in cells.items():
        print(f"{kind:14} {entries} entries, margin {margin}: {false} of {races}")
    print(json.dumps({"largest": max(cells.values()), "most": most, "cells": len(cells)}))


STEPS = 50
"""Steps of a real run."""


def unit(plan: Plan, i: int) -> tuple[float, bool]:
    """Mean test metric of the fresh runs of unit `i`, and whether one of them failed."""
    task, (entry,) = tasks.get(plan.task), plan.entries
    (tuning,) = trials.tuning_items(plan, protocol.tuning(plan, units=[i]))
    assert isinstance(tuning, Tuning)
    chosen = scores.best(task, zip(tuning.trials, trials.run(tuning), strict=True))
    fresh = protocol.fresh(plan, {entry: [chosen] * (i + 1)}, units=[i])
    pairs = [(trial, trials.run(trial)) for trial in fresh]
    tests = [test for pair in pairs if (test := scores.tested(task, *pair)) is not None]
    return float(np.mean(tests)), any(scores.failed(task, *pair) for pair in pairs)


def real(first: int, races: int) -> None:
    """Print how many races claim a difference between two copies, and how many units they took."""
    false, units = 0, []
    for race in range(first, first + races):
        copies = [
            Plan(
                "digits",
                ("adam",),
                trials=TRIALS,
                seeds=LOOKS[-1],
                steps=STEPS,
                seed=protocol.derive(race, "copy", copy),
                looks=LOOKS,
                repeats=FRESH,
                halving=True,
            )
            for copy in range(2)
        ]
        tests: list[list[float]] = [[], []]
        failed: set[int] = set()
        state = standing([], 1)
        while state.state == "open":
            for test, plan in zip(tests, copies, strict=True):
                mean, lost = unit(plan, len(test))
                failed |= {len(test)} if lost else set()
                test.append(mean)
            state = standing(inference.paired(tests[1], tests[0]), 1, failed=failed)
        false += state.state == "told apart"
        units.append(state.units)
        print(f"race {race}: {state.state} after {state.units} units", flush=True)
    most = int(stats.binom.ppf(0.975, races, inference.ALPHA))
    print(json.dumps({"false": false, "most": most, "of": races, "units": float(np.mean(units))}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--races", type=int, default=3000)
    parser.add_argument("--entries", type=int, default=9)
    parser.add_argument("--null", action="store_true")
    parser.add_argument("--real", action="store_true")
    parser.add_argument("--first", type=int, default=0, help="number of the first real race")
    options = parser.parse_args()
    if options.real:
        real(options.first, options.races)
        return
    if options.null:
        calibrate(options.races)
        return
    field = options.entries
    spread = float(np.std(np.diff(units(np.random.default_rng(1), (20_000, 2), 1)), ddof=1))
    planned = planning.detectable(spread, FIXED, field - 1)
    designs = {
        "fixed": (FIXED, 1, fixed),
        "looks at 5, 8": (8, FRESH, lambda test: in_looks(test, (5, 8))),
        "looks at 5, 8, 12": (12, FRESH, lambda test: in_looks(test, LOOKS)),
    }
    report = {"most": int(stats.binom.ppf(0.975, options.races, inference.ALPHA))}
    for name, (most, fresh, judge) in designs.items():
        for size in SIZES:
            rng, runs, hits, wrong = np.random.default_rng(7), 0.0, 0, 0
            for _ in range(options.races):
                test = units(rng, (field, most), fresh)
                test[1] += size * planned
                cost, found = judge(test)
                runs += cost
                hits += 1 in found
                wrong += bool(found - ({1} if size else set()))
            report[f"{name}, {size:g} of the planned size"] = {
                "runs": round(runs / options.races),
                "found": round(hits / options.races, 3),
                "false": wrong,
            }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
