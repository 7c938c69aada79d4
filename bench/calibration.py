"""How often a race claims a difference that is not there, and finds one that is.

The same optimizer enters twice; each copy has its own tuning points and its own seeds (with
shared ones the two are the same run to the bit, and nothing could fail). Every race goes through
the protocol: tuning trials, the choice by validation, fresh seeds, the verdict's statistics.

--task synthetic puts a fast function in place of training, with a peak over the learning rate
like that of a small network; --task digits trains logistic regression with the compiled loop.
--once tunes once and runs the choice on all fresh seeds, which is not the protocol: it shows what
luck in tuning does. --plant S adds S standard deviations to every test metric of the second copy.
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
from steepest.race import planning, protocol, statistics
from steepest.race.protocol import Plan, Result, Trial

ENTRY = "adam"
TASK: Any = SimpleNamespace(maximize=True, worst=0.0)
BOUND = 0.975
"""Probability of the binomial bounds."""
PILOT = 400
"""Per-seed differences that a planted race's standard deviation is measured on, synthetic."""

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


def differences(train: Train, race: int, trials: int, seeds: int, once: bool) -> list[float]:
    """Per-seed test metric of copy two minus copy one, through the whole protocol."""
    tests: list[list[float]] = []
    for copy in (1, 2):
        seed = protocol.derive(race, "copy", copy)
        plan = Plan("calibration", (ENTRY,), trials, seeds, 1, seed)
        planned = protocol.tuning(plan)[: trials if once else None]
        tuned = protocol.by_seed(plan, ((trial, train(trial)) for trial in planned))
        chosen = [protocol.best(TASK, mine or tuned[0]) for mine in tuned]
        results = [train(trial) for trial in protocol.fresh(plan, {ENTRY: chosen})]
        tests.append([result.test for result in results if result.test is not None])
    return [b - a for a, b in zip(*tests, strict=True)]


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
    options = parser.parse_args()
    noise = Noise(options.heavy, options.diverge)
    train = digits(noise) if options.task == "digits" else synthetic(options.shape, noise)
    start = perf_counter()
    found = [
        differences(train, options.first + race, options.trials, options.seeds, options.once)
        for race in range(options.races)
    ]
    report = {
        "same": _claims(found),
        "most": int(stats.binom.ppf(BOUND, options.races, statistics.ALPHA)),
        "of": options.races,
        "runs per entry": options.seeds + options.trials * (1 if options.once else options.seeds),
        "seconds": round(perf_counter() - start, 1),
    }
    sd = float(np.std(np.concatenate(found), ddof=1))
    report["sd of a difference"] = round(sd, 6)
    least = planning.detectable(sd, options.seeds)
    report["planned detectable"] = round(least, 6)
    for size in options.plant:
        shift = size * least
        promise = statistics.power(shift / sd, options.seeds)
        low, high = stats.binom.ppf([1 - BOUND, BOUND], options.races, promise)
        claims = _claims([[d + shift for d in race] for race in found])
        report[f"planted {size:g}"] = {
            "found": claims, "promised": round(promise, 3), "low": int(low), "high": int(high),
        }  # fmt: skip
    print(json.dumps(report, indent=1))


def _claims(found: list[list[float]]) -> int:
    return sum(statistics.compare({"copy": d})["copy"].claim for d in found)


if __name__ == "__main__":
    main()
