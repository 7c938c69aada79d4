"""How often a race claims a difference that does not exist, and finds one that does.

The same optimizer enters twice. Each copy has its own tuning points and seeds; with shared ones
both would be the same run to the bit, and no claim could be false. Every race follows the protocol:
tuning trials, the choice by validation, fresh seeds, the statistics of the verdict.

--task synthetic replaces training by a fast function whose peak over the learning rate is like that
of a small network. --task digits trains logistic regression in the loop of a race. --task network
runs the race's own digits task, 50 steps of a CNN; --first splits the races over several calls.
--once tunes once and runs the choice on all fresh seeds. That is not the protocol; it shows the
effect of luck in tuning. --copies K races K copies against one baseline, with Holm's procedure.
--plant S adds S times the difference that the planner promises to find to the first copy's tests.
--failures prints a table of races without a true difference, in which runs of one entry or of all
diverge, with normal, heavy-tailed and discrete metrics and 2, 4 or 9 entries; it counts claims of
the wrong sign. With "collapse" the metric is normal, and a run that fails ends at chance, far above
WORST, so it is not reported as failed.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from time import perf_counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn

from steepest.race import planning, protocol, scores
from steepest.race.protocol import Plan, Result, Trial
from steepest.statistics import inference
from steepest.tasks import images
from steepest.tasks.task import Setup
from steepest.training import loop
from steepest.training.recipe import Recipe

ENTRY = "adam"
TASK: Any = SimpleNamespace(maximize=True, worst=0.0, measured=None, better=float.__gt__)
BOUND = 0.975
"""Probability of the binomial bounds."""
STEPS = 50
"""Steps of a run with `--task network`."""
UNTUNED = 1000
"""Runs with default hyperparameters, for the spread of differences without tuning."""

Train = Callable[[Trial], Result]


@dataclass(frozen=True)
class Noise:
    """The randomness of a run."""

    heavy: bool = False
    """Student's t with 2 degrees of freedom instead of a normal distribution."""
    diverge: float = 0.0
    """The fraction of runs that diverge, at any learning rate."""


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


class Logistic(nn.Module):
    """Logistic regression on images of 64 pixels."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.1 * torch.randn(64, 10, generator=generator))
        self.bias = nn.Parameter(torch.zeros(10))

    def forward(self, images: Tensor) -> Tensor:
        return images @ self.weight + self.bias


def logistic(seed: int) -> Setup:
    """600 images to train on, drawn with replacement, 600 for validation and 597 for test."""
    generator = torch.Generator().manual_seed(seed)
    splits = images.digits(600, 600)
    data = {name: (pixels.flatten(1), classes) for name, (pixels, classes) in splits.items()}

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        pixels, classes = data["train"]
        while True:
            rows = torch.randint(600, (32,), generator=generator)
            yield pixels[rows], classes[rows]

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    @torch.no_grad()
    def accuracy(model: nn.Module, split: str) -> float:
        pixels, classes = data[split]
        return (model(pixels).argmax(1) == classes).double().mean().item()

    return Setup(Logistic(generator), batches(), loss, accuracy)


def digits(noise: Noise) -> Train:
    """Logistic regression, 40 steps of 32 images, about 10 ms a run."""
    torch.set_num_threads(1)
    task = replace(images.DIGITS, name="logistic", build=logistic, switches=(), every=40)

    def train(trial: Trial) -> Result:
        ends: dict[str, float] = {}
        recipe = Recipe.read(ENTRY)
        loop.train(
            task, recipe, trial.hyper, trial.seed, 40, lambda _, **m: ends.update(m), test=True
        )
        rng = np.random.default_rng(trial.seed)
        if rng.random() < noise.diverge:
            return Result([1], [], [], TASK.worst, "injected")
        luck = 0.01 * rng.standard_t(2, 2) if noise.heavy else np.zeros(2)
        validation, test = (
            ends[split] + float(x) for split, x in zip(("validation", "test"), luck, strict=True)
        )
        return Result([40], [validation], [0.0], test)

    return train


RaceResult = dict[str, tuple[list[float], bool]]
"""Copy -> its paired differences, and whether a run of the copy or the baseline has failed."""


def network(noise: Noise) -> Train:
    """The bundled digits task as a race runs it: 50 steps of 32 images."""
    from steepest.race import trials

    def train(trial: Trial) -> Result:
        result = trials.run(replace(trial, task="digits", steps=STEPS))
        if np.random.default_rng(trial.seed).random() < noise.diverge:
            return Result([STEPS], [], [], TASK.worst, "injected")
        return result

    return train


def differences(
    train: Train, race: int, trials: int, seeds: int, once: bool, copies: int = 1
) -> RaceResult:
    """Per-seed test metric of every copy minus the baseline's, after the full protocol."""
    tests: list[list[float]] = []
    failed: list[bool] = []
    for copy in range(1, copies + 2):
        seed = protocol.derive(race, "copy", copy)
        plan = Plan("calibration", (ENTRY,), trials, seeds, 1, seed)
        planned = protocol.tuning(plan)[: trials if once else None]
        tuned = protocol.by_seed(plan, ((trial, train(trial)) for trial in planned))
        chosen = [scores.best(TASK, of_seed or tuned[0]) for of_seed in tuned]
        pairs = [(trial, train(trial)) for trial in protocol.fresh(plan, {ENTRY: chosen})]
        tests.append([test for p in pairs if (test := scores.tested(TASK, *p)) is not None])
        failed.append(any(scores.failed(TASK, *pair) for pair in pairs))
    base, *others = tests
    return {
        str(i): (inference.paired(other, base).tolist(), failed[0] or failed[i + 1])
        for i, other in enumerate(others)
    }


# --- races in which runs diverge

RATES, NOISES, FIELDS = (
    (0.0, 0.05, 0.1, 0.2),
    ("normal", "heavy", "discrete", "collapse"),
    (2, 4, 9),
)
SIDES = {"baseline": slice(0, 1), "one rival": slice(1, 2), "all": slice(None)}
CASES = 150
"""Size of the test set of a discrete metric."""
CHANCE = 0.1
"""The metric of a run that collapses."""
GAIN = 4.0
"""Advantage, in standard deviations, of an entry that fails at times, in the runs that succeed."""


def simulate(
    rng: np.random.Generator, shape: tuple[int, int], trials: int, noise: str, rates: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Test metrics of tuned entries, and which runs diverged, both of shape (entries, seeds).

    The synthetic task as above, for all runs at once. rates: each entry's rate of divergence, in
    tuning and on fresh seeds.
    """
    height, fall, peak, sd = SHAPES["middling"]
    low, high = np.log10(Recipe.read(ENTRY).space["lr"])
    tried = rng.uniform(low, high, (*shape, trials))
    tried[..., 0] = math.log10(Recipe.read(ENTRY).defaults["lr"])

    def run(rate: np.ndarray) -> np.ndarray:
        luck = rng.standard_t(2, rate.shape) if noise == "heavy" else rng.normal(size=rate.shape)
        metric = height - fall * (rate - peak) ** 2 + sd * luck
        metric = np.round(metric * CASES) / CASES if noise == "discrete" else metric
        lost = (rng.random(rate.shape) < rates.reshape(-1, *[1] * (rate.ndim - 1))) | (rate > EDGE)
        return np.where(lost, np.nan, metric.clip(0, 1))

    validation = np.where(np.isnan(tuning := run(tried)), -1.0, tuning)
    best = validation.argmax(axis=-1)
    test = run(np.take_along_axis(tried, best[..., None], -1)[..., 0])
    if noise == "collapse":
        luck = 0.01 * rng.normal(size=test.shape)
        return np.where(np.isnan(test), CHANCE + luck, test), np.zeros(test.shape, dtype=bool)
    return np.nan_to_num(test, nan=TASK.worst), np.isnan(test)


def claimed_signs(test: np.ndarray, lost: np.ndarray) -> dict[int, float]:
    """Rival -> the sign of the difference that a race claims. The first row is the baseline."""
    failed = [str(i) for i in range(1, len(test)) if lost[0].any() or lost[i].any()]
    d = {str(i): inference.paired(test[i], test[0]) for i in range(1, len(test))}
    _, _, claims = inference.decide(d, failed)
    return {int(i): float(np.sign(d[i].mean())) for i in claims}


def failures(races: int, seeds: int, trials: int) -> dict[str, Any]:
    """Count the races with a claim of the wrong sign, for every cell of the table.

    All entries are equal except for their rate of divergence: the baseline's, one rival's, or that
    of all. An entry that diverges more often is worse on average, so a claim with that sign is
    right and any other claim is false.
    """
    cells = [
        (side, rate, noise, field)
        for side, rate, noise, field in product(SIDES, RATES, NOISES, FIELDS)
        if rate or side == "all"
    ]
    table, most = {}, int(stats.binom.ppf(1 - 0.025 / len(cells), races, inference.ALPHA))
    for number, (side, rate, noise, field) in enumerate(cells):
        rng = np.random.default_rng([number, seeds])
        rates, true = np.zeros(field), np.zeros(field)
        rates[SIDES[side]] = rate
        true[1:] = {"baseline": 1.0, "one rival": 0.0, "all": 0.0}[side]
        true[1] -= side == "one rival"
        wrong = right = 0
        for _ in range(races):
            claims = claimed_signs(*simulate(rng, (field, seeds), trials, noise, rates))
            wrong += any(sign != true[i] for i, sign in claims.items())
            right += any(sign == true[i] for i, sign in claims.items())
        key = f"{side} {100 * rate:g} % {noise} {field}"
        table[key] = {"false": wrong, "right": right}
        print(key, table[key], flush=True)
    report: dict[str, Any] = {"races a cell": races, "cells": len(cells), "most": most}
    report["largest"] = max(row["false"] for row in table.values())
    report["above"] = [key for key, row in table.items() if row["false"] > most]
    for rate in RATES[1:]:  # no test can detect an entry that fails but has not failed yet
        rng, better = np.random.default_rng(1), 0
        for _ in range(races):
            test, lost = simulate(rng, (2, seeds), trials, "normal", np.array([0.0, rate]))
            test[1] = np.where(lost[1], test[1], test[1] + GAIN * SHAPES["middling"][3])
            better += claimed_signs(test, lost).get(1, 0.0) > 0
        report[f"fails at {100 * rate:g} % and is called better"] = better / races
    for noise, verb in (("normal", "fails"), ("collapse", "collapses")):
        rng, beaten = np.random.default_rng(2), 0
        for _ in range(races):
            test, lost = simulate(rng, (2, seeds), trials, noise, np.array([0.1, 0.0]))
            test[1] += GAIN * SHAPES["middling"][3]
            beaten += claimed_signs(test, lost).get(1, 0.0) > 0
        report[f"a baseline that {verb} at 10 % is beaten"] = beaten / races
    return report


def untuned_deviation(train: Train, count: int = UNTUNED) -> float:
    """Standard deviation of the difference of two untuned runs, as `--plan` estimates it."""
    hyper = Recipe.read(ENTRY).defaults
    runs = [
        train(Trial("calibration", "pilot", ENTRY, i, protocol.derive(i, "untuned"), 1, hyper))
        for i in range(count)
    ]
    ends = [run.validation[-1] for run in runs if not run.diverged]
    return math.sqrt(2) * float(np.std(ends, ddof=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--task", choices=("synthetic", "digits", "network"), default="synthetic")
    parser.add_argument("--shape", choices=SHAPES, default="middling")
    parser.add_argument("--races", type=int, default=200)
    parser.add_argument("--trials", type=int, default=protocol.TRIALS)
    parser.add_argument("--seeds", type=int, default=protocol.SEEDS)
    parser.add_argument("--once", action="store_true", help="tune once, not for every fresh seed")
    parser.add_argument("--heavy", action="store_true", help="noise with heavy tails")
    parser.add_argument("--diverge", type=float, default=0.0, help="fraction of runs that diverge")
    parser.add_argument(
        "--plant",
        type=float,
        nargs="*",
        default=[],
        help="differences to plant, as multiples of the smallest one the planner promises to find",
    )
    parser.add_argument("--first", type=int, default=0, help="number of the first race")
    parser.add_argument("--copies", type=int, default=1, help="copies raced against the baseline")
    parser.add_argument(
        "--failures",
        action="store_true",
        help="print a table of races with runs that diverge, --races per cell",
    )
    options = parser.parse_args()
    if options.failures:
        print(json.dumps(failures(options.races, options.seeds, options.trials), indent=1))
        return
    noise = Noise(options.heavy, options.diverge)
    make_train = {"digits": digits, "network": network}.get(options.task)
    train = make_train(noise) if make_train else synthetic(options.shape, noise)
    start = perf_counter()
    results = [
        differences(
            train, options.first + race, options.trials, options.seeds, options.once, options.copies
        )
        for race in range(options.races)
    ]
    report = {
        "races with a false claim": _count_claims(results),
        "most": int(stats.binom.ppf(BOUND, options.races, inference.ALPHA)),
        "of": options.races,
        "runs per entry": options.seeds + options.trials * (1 if options.once else options.seeds),
        "seconds": round(perf_counter() - start, 1),
    }
    all_differences = [d for race in results for d, _ in race.values()]
    sd = float(np.std(all_differences, ddof=1))
    untuned_sd = untuned_deviation(train, min(UNTUNED, 20 * options.races))
    level = inference.ALPHA / options.copies
    report["sd of a difference"] = round(sd, 6)
    report["sd without tuning"] = round(untuned_sd, 6)
    least = planning.detectable(sd, options.seeds, options.copies)
    report["planned detectable"] = round(least, 6)
    # the power of the effect that --plan promises to find: first if it knew untuned_sd exactly,
    # then as it estimates it from a few pairs, averaged over the (chi distributed) estimates
    effect = planning.detectable(untuned_sd / sd, options.seeds, options.copies)
    df = planning.PILOT_PAIRS - 1
    estimates = stats.chi.ppf((np.arange(200) + 0.5) / 200, df) / math.sqrt(df)
    power = [inference.power(effect * s, options.seeds, level) for s in (1.0, *estimates)]
    report["power of --plan, spread known"] = round(power[0], 2)
    report["power of --plan"] = round(float(np.mean(power[1:])), 2)
    for size in options.plant:
        shift = size * least
        promise = inference.power(shift / sd, options.seeds, level)
        low, high = stats.binom.ppf([1 - BOUND, BOUND], options.races, promise)
        planted = [{**r, "0": ([d + shift for d in r["0"][0]], r["0"][1])} for r in results]
        report[f"planted {size:g}"] = {
            "found": _count_claims(planted, first=True),
            "promised": round(promise, 3),
            "low": int(low),
            "high": int(high),
        }
    print(json.dumps(report, indent=1))


def _count_claims(results: list[RaceResult], first: bool = False) -> int:
    """Count the races with a claim about any copy, or about the first.

    Holm's procedure covers all copies of a race.
    """
    count = 0
    for race in results:
        d = {name: np.array(values) for name, (values, _) in race.items()}
        _, _, claims = inference.decide(d, [name for name, (_, lost) in race.items() if lost])
        count += "0" in claims if first else bool(claims)
    return count


if __name__ == "__main__":
    main()
