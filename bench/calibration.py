"""How often a race claims a difference that is not there, and finds one that is.

The same optimizer enters twice; each copy has its own tuning points and its own seeds (with
shared ones the two are the same run to the bit, and nothing could fail). Every race goes through
the protocol: tuning trials, the choice by validation, fresh seeds, the verdict's statistics.

--task synthetic puts a fast function in place of training, with a peak over the learning rate
like that of a small network; --task digits trains logistic regression with the compiled loop.
--once tunes once and runs the choice on all fresh seeds, which is not the protocol: it shows what
luck in tuning does. --copies K races K copies with one baseline, Holm's procedure over them.
--plant S adds S times the difference that the planner promises to find to the first copy's tests.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from time import perf_counter
from types import SimpleNamespace
from typing import Any

import numpy as np
from scipy import stats

import steepest
from steepest.race import conduct, entries, planning, protocol, statistics
from steepest.race.protocol import Plan, Result, Trial

ENTRY = "adam"
TASK: Any = SimpleNamespace(maximize=True, worst=0.0)
BOUND = 0.975
"""Probability of the binomial bounds."""
UNTUNED = 1000
"""Runs with the defaults that the spread of differences without tuning is measured on."""

Train = Callable[[Trial], Result]


@dataclass(frozen=True)
class Noise:
    """What a run of the synthetic task suffers from."""

    heavy: bool = False
    """Student's t with 2 degrees of freedom instead of a normal distribution."""
    diverge: float = 0.0
    """Share of runs that diverge, at any learning rate."""


SHAPES = {
    # height, fall per decade squared, log10 of the best rate, standard deviation of a run
    "flat": (0.97, 0.005, -2.4, 0.006),
    "middling": (0.97, 0.03, -2.4, 0.006),
    "narrow": (0.97, 0.12, -2.4, 0.006),
    "still": (0.97, 0.03, -2.4, 0.0005),
}
EDGE = -0.9
"""log10 of the learning rate beyond which every run diverges."""


def synthetic(shape: str, noise: Noise) -> Train:
    height, fall, peak, sd = SHAPES[shape]

    def train(trial: Trial) -> Result:
        rng = np.random.default_rng(trial.seed)
        draws = rng.standard_t(2, 2) if noise.heavy else rng.standard_normal(2)
        rate = math.log10(trial.hyper["lr"])
        if rng.random() < noise.diverge or rate > EDGE:
            return Result([1], [], [], TASK.worst, "injected")
        mean = height - fall * (rate - peak) ** 2
        validation, test = (float(np.clip(mean + sd * x, 0.0, 1.0)) for x in draws)
        return Result([1], [validation], [0.0], test)

    return train


@lru_cache(maxsize=1)
def _digits() -> dict[str, tuple[Any, Any]]:
    import torch
    from sklearn.datasets import load_digits

    torch.set_num_threads(1)
    pixels, classes = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(classes))
    images = torch.tensor(pixels[order] / 16, dtype=torch.float32)
    labels = torch.tensor(classes[order])
    cuts = {"train": (0, 600), "validation": (600, 1200), "test": (1200, 1797)}
    return {name: (images[a:b], labels[a:b]) for name, (a, b) in cuts.items()}


def digits(noise: Noise) -> Train:
    """Logistic regression, 40 steps of 32 images, about 10 ms a run."""
    import torch
    from torch import nn

    data = _digits()

    def accuracy(weight: Any, bias: Any, split: str) -> float:
        images, labels = data[split]
        with torch.no_grad():
            scores = images @ weight + bias
            return (scores.argmax(1) == labels).double().mean().item()

    def train(trial: Trial) -> Result:
        generator = torch.Generator().manual_seed(trial.seed)
        rng = np.random.default_rng(trial.seed)
        weight = nn.Parameter(0.1 * torch.randn(64, 10, generator=generator))
        bias = nn.Parameter(torch.zeros(10))
        optimizer = steepest.optimizer(ENTRY, [weight, bias], **trial.hyper)
        images, labels = data["train"]
        for _ in range(40):
            rows = torch.randint(600, (32,), generator=generator)
            optimizer.zero_grad()
            nn.functional.cross_entropy(images[rows] @ weight + bias, labels[rows]).backward()
            optimizer.step()
        if rng.random() < noise.diverge:
            return Result([1], [], [], TASK.worst, "injected")
        luck = 0.01 * rng.standard_t(2, 2) if noise.heavy else np.zeros(2)
        validation, test = (
            accuracy(weight, bias, split) + float(x)
            for split, x in zip(("validation", "test"), luck, strict=True)
        )
        return Result([40], [validation], [0.0], test)

    return train


def differences(
    train: Train, race: int, trials: int, seeds: int, once: bool, copies: int = 1
) -> list[list[float]]:
    """Per-seed test metric of every copy minus the baseline's, through the whole protocol."""
    tests: list[list[float]] = []
    for copy in range(1, copies + 2):
        seed = protocol.derive(race, "copy", copy)
        plan = Plan("calibration", (ENTRY,), trials, seeds, 1, seed)
        planned = protocol.tuning(plan)[: trials if once else None]
        tuned = protocol.by_seed(plan, ((trial, train(trial)) for trial in planned))
        chosen = [protocol.best(TASK, mine or tuned[0]) for mine in tuned]
        results = [train(trial) for trial in protocol.fresh(plan, {ENTRY: chosen})]
        tests.append([result.test for result in results if result.test is not None])
    base, *others = tests
    return [statistics.paired(other, base).tolist() for other in others]


def untuned(train: Train) -> float:
    """Standard deviation of the difference of two runs with the defaults, as `--plan` sees it."""
    hyper = entries.defaults(ENTRY)
    runs = [
        train(Trial("calibration", "pilot", ENTRY, i, protocol.derive(i, "untuned"), 1, hyper))
        for i in range(UNTUNED)
    ]
    ends = [run.validation[-1] for run in runs if not run.diverged]
    return math.sqrt(2) * float(np.std(ends, ddof=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--task", choices=("synthetic", "digits"), default="synthetic")
    parser.add_argument("--shape", choices=SHAPES, default="middling")
    parser.add_argument("--races", type=int, default=200)
    parser.add_argument("--trials", type=int, default=protocol.TRIALS)
    parser.add_argument("--seeds", type=int, default=protocol.SEEDS)
    parser.add_argument("--once", action="store_true", help="tune once, not for every fresh seed")
    parser.add_argument("--heavy", action="store_true", help="noise with heavy tails")
    parser.add_argument("--diverge", type=float, default=0.0, help="share of runs that diverge")
    parser.add_argument("--plant", type=float, nargs="*", default=[], help="differences, in the "
                        "smallest one that the planner promises to find")  # fmt: skip
    parser.add_argument("--first", type=int, default=0, help="number of the first race")
    parser.add_argument("--copies", type=int, default=1, help="copies raced against the first")
    options = parser.parse_args()
    noise = Noise(options.heavy, options.diverge)
    train = digits(noise) if options.task == "digits" else synthetic(options.shape, noise)
    start = perf_counter()
    found = [
        differences(
            train, options.first + race, options.trials, options.seeds, options.once, options.copies
        )
        for race in range(options.races)
    ]
    report = {
        "races with a false claim": _claims(found),
        "most": int(stats.binom.ppf(BOUND, options.races, statistics.ALPHA)),
        "of": options.races,
        "runs per entry": options.seeds + options.trials * (1 if options.once else options.seeds),
        "seconds": round(perf_counter() - start, 1),
    }
    sd, without = float(np.std(found, axis=None, ddof=1)), untuned(train)
    level = statistics.ALPHA / options.copies
    report["sd of a difference"] = round(sd, 6)
    report["sd without tuning"] = round(without, 6)
    least = planning.detectable(sd, options.seeds, options.copies)
    report["planned detectable"] = round(least, 6)
    # the power of what --plan promises: if it knew the spread without tuning, and as it knows it,
    # from a few pairs, over whose standard deviations (chi distributed) the power is averaged
    effect = planning.detectable(without / sd, options.seeds, options.copies)
    df = conduct.PILOT_PAIRS - 1
    seen = stats.chi.ppf((np.arange(200) + 0.5) / 200, df) / math.sqrt(df)
    power = [statistics.power(effect * s, options.seeds, level) for s in (1.0, *seen)]
    report["power of --plan, spread known"] = round(power[0], 2)
    report["power of --plan"] = round(float(np.mean(power[1:])), 2)
    for size in options.plant:
        shift = size * least
        promise = statistics.power(shift / sd, options.seeds, level)
        low, high = stats.binom.ppf([1 - BOUND, BOUND], options.races, promise)
        claims = _claims([[[d + shift for d in race[0]], *race[1:]] for race in found], first=True)
        report[f"planted {size:g}"] = {
            "found": claims, "promised": round(promise, 3), "low": int(low), "high": int(high),
        }  # fmt: skip
    print(json.dumps(report, indent=1))


def _claims(found: list[list[list[float]]], first: bool = False) -> int:
    """Races with a claim about any copy, or about the first, Holm's procedure over all of them."""
    judged = [statistics.compare({str(i): d for i, d in enumerate(race)}) for race in found]
    return sum(any(d.claim for d in list(race.values())[: 1 if first else None]) for race in judged)


if __name__ == "__main__":
    main()
