"""What a race in looks costs and finds, beside the design of a fixed number of seeds: simulated.

A unit is one tuning (8 trials of a synthetic task with a peak over the learning rate) and the mean
of 3 fresh runs of its choice. Entries are alike, but for one with a planted difference. Sizes are
shares of the difference that the fixed design (10 seeds, Holm's procedure) finds with power 0.8.

    python bench/looks.py --races 3000 --entries 9

Prints, per design and size: runs (a tuning by halving counts as 4 full runs), how often the planted
entry is found, and races with a false claim.
"""

from __future__ import annotations

import argparse
import json

import numpy as np
from scipy import stats

from steepest.race import planning, statistics
from steepest.race.looks import LOOKS, standing

TRIALS, HALVED, FRESH = 8, 4.0, 3
"""Trials of a tuning, what they cost in full runs by halving, and fresh runs of a unit."""
FIXED = 10
SD, FALL = 0.006, 0.03
"""Standard deviation of a run, and what a decade squared from the best rate costs."""
SIZES = (0.0, 0.6, 1.0)


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
        state = standing(statistics.paired(test[i], test[0]), len(test) - 1, looks)
        spent[i] = state.units
        if state.state == "told apart":
            found.add(i)
    spent[0] = max(spent)
    return sum(spent) * (HALVED + FRESH), found


def fixed(test: np.ndarray) -> tuple[float, set[int]]:
    d = {str(i): statistics.paired(test[i], test[0]) for i in range(1, len(test))}
    _, _, claims = statistics.decide(d)
    return len(test) * FIXED * (TRIALS + 1), {int(i) for i in claims}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--races", type=int, default=3000)
    parser.add_argument("--entries", type=int, default=9)
    options = parser.parse_args()
    field = options.entries
    spread = float(np.std(np.diff(units(np.random.default_rng(1), (20_000, 2), 1)), ddof=1))
    planned = planning.detectable(spread, FIXED, field - 1)
    designs = {
        "fixed": (FIXED, 1, fixed),
        "looks at 5, 8": (8, FRESH, lambda test: in_looks(test, (5, 8))),
        "looks at 5, 8, 12": (12, FRESH, lambda test: in_looks(test, LOOKS)),
    }
    report = {"most": int(stats.binom.ppf(0.975, options.races, statistics.ALPHA))}
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
