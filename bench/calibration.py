"""How often a race claims a difference that is not there, and finds one that is.

The same optimizer enters twice; each copy has its own tuning points and its own seeds (with
shared ones the two are the same run to the bit, and nothing could fail). Every race goes through
the protocol: tuning trials, the choice by validation, fresh seeds, the verdict's statistics.

--task synthetic puts a fast function in place of training, with a peak over the learning rate
like that of a small network; --task digits trains logistic regression in the loop of a race;
--task network runs the race's own digits task, 50 steps of a CNN (--first shares races out).
--once tunes once and runs the choice on all fresh seeds, which is not the protocol: it shows what
luck in tuning does. --copies K races K copies with one baseline, Holm's procedure over them.
--plant S adds S times the difference that the planner promises to find to the first copy's tests.
--failures prints a table of null races in which runs of one side or of all diverge, with normal,
heavy-tailed and discrete metrics, of 2, 4 and 9 entries: claims of the wrong sign. "collapse" is
normal too, and who fails ends at chance, far above WORST: no run says that it has failed.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from time import perf_counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn

from steepest.race import conduct, planning, protocol, statistics
from steepest.race.protocol import Plan, Result, Trial
from steepest.tasks import images
from steepest.tasks.task import Setup
from steepest.training import loop
from steepest.training.recipe import Recipe

ENTRY = "adam"
TASK: Any = SimpleNamespace(maximize=True, worst=0.0, measured=None, better=float.__gt__)
BOUND = 0.975
"""Probability of the binomial bounds."""
STEPS = 50
"""Of a run of `--task network`."""
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


Found = dict[str, tuple[list[float], bool]]
"""Copy -> its paired differences, and whether a run of it or of the baseline has failed."""


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
) -> Found:
    """Per-seed test metric of every copy minus the baseline's, through the whole protocol."""
    tests: list[list[float]] = []
    failed: list[bool] = []
    for copy in range(1, copies + 2):
        seed = protocol.derive(race, "copy", copy)
        plan = Plan("calibration", (ENTRY,), trials, seeds, 1, seed)
        planned = protocol.tuning(plan)[: trials if once else None]
        tuned = protocol.by_seed(plan, ((trial, train(trial)) for trial in planned))
        chosen = [protocol.best(TASK, mine or tuned[0]) for mine in tuned]
        pairs = [(trial, train(trial)) for trial in protocol.fresh(plan, {ENTRY: chosen})]
        tests.append([test for p in pairs if (test := protocol.tested(TASK, *p)) is not None])
        failed.append(any(protocol.failed(TASK, *pair) for pair in pairs))
    base, *others = tests
    return {
        str(i): (statistics.paired(other, base).tolist(), failed[0] or failed[i + 1])
        for i, other in enumerate(others)
    }


# --- where runs diverge

RATES, NOISES, FIELDS = (
    (0.0, 0.05, 0.1, 0.2),
    ("normal", "heavy", "discrete", "collapse"),
    (2, 4, 9),
)
SIDES = {"baseline": slice(0, 1), "one rival": slice(1, 2), "all": slice(None)}
CASES = 150
"""Of the test set of a discrete metric."""
CHANCE = 0.1
"""What a run ends at that collapses."""
GAIN = 4.0
"""Standard deviations by which an entry that fails rarely is better where it does not."""


def simulated(
    rng: np.random.Generator, shape: tuple[int, int], trials: int, noise: str, rates: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Test metrics of tuned entries (entries, seeds), and which runs diverged, at once.

    The synthetic task as above; `rates` of divergence of the entries, in tuning as on fresh seeds.
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
    at = validation.argmax(axis=-1)
    test = run(np.take_along_axis(tried, at[..., None], -1)[..., 0])
    if noise == "collapse":
        luck = 0.01 * rng.normal(size=test.shape)
        return np.where(np.isnan(test), CHANCE + luck, test), np.zeros(test.shape, dtype=bool)
    return np.nan_to_num(test, nan=TASK.worst), np.isnan(test)


def decided(test: np.ndarray, lost: np.ndarray) -> dict[int, float]:
    """Rival -> sign of the difference that a race claims of it; the first row is the baseline."""
    failed = [str(i) for i in range(1, len(test)) if lost[0].any() or lost[i].any()]
    d = {str(i): statistics.paired(test[i], test[0]) for i in range(1, len(test))}
    _, _, claims = statistics.decide(d, failed)
    return {int(i): float(np.sign(d[i].mean())) for i in claims}


def failures(races: int, seeds: int, trials: int) -> dict[str, Any]:
    """Races with a claim of the wrong sign, in every cell.

    Entries are the same but for who diverges: the baseline, one rival, or all alike. Who diverges
    is worse in the mean, so that a claim of that sign is right, and every other one is false.
    """
    cells = [
        (side, rate, noise, field)
        for side in SIDES for rate in RATES for noise in NOISES for field in FIELDS
        if rate or side == "all"
    ]  # fmt: skip
    table, most = {}, int(stats.binom.ppf(1 - 0.025 / len(cells), races, statistics.ALPHA))
    for number, (side, rate, noise, field) in enumerate(cells):
        rng = np.random.default_rng([number, seeds])
        rates, true = np.zeros(field), np.zeros(field)
        rates[SIDES[side]] = rate
        true[1:] = {"baseline": 1.0, "one rival": 0.0, "all": 0.0}[side]
        true[1] -= side == "one rival"
        wrong = found = 0
        for _ in range(races):
            claims = decided(*simulated(rng, (field, seeds), trials, noise, rates))
            wrong += any(sign != true[i] for i, sign in claims.items())
            found += any(sign == true[i] for i, sign in claims.items())
        key = f"{side} {100 * rate:g} % {noise} {field}"
        table[key] = {"false": wrong, "right": found}
        print(key, table[key], flush=True)
    report: dict[str, Any] = {"races a cell": races, "cells": len(cells), "most": most}
    report["largest"] = max(row["false"] for row in table.values())
    report["above"] = [key for key, row in table.items() if row["false"] > most]
    for rate in RATES[1:]:  # what no test can see: it has not failed yet
        rng, better = np.random.default_rng(1), 0
        for _ in range(races):
            test, lost = simulated(rng, (2, seeds), trials, "normal", np.array([0.0, rate]))
            test[1] = np.where(lost[1], test[1], test[1] + GAIN * SHAPES["middling"][3])
            better += decided(test, lost).get(1, 0.0) > 0
        report[f"fails at {100 * rate:g} % and is called better"] = better / races
    for noise, how in (("normal", "fails"), ("collapse", "collapses")):
        rng, beaten = np.random.default_rng(2), 0
        for _ in range(races):
            test, lost = simulated(rng, (2, seeds), trials, noise, np.array([0.1, 0.0]))
            test[1] += GAIN * SHAPES["middling"][3]
            beaten += decided(test, lost).get(1, 0.0) > 0
        report[f"a baseline that {how} at 10 % is beaten"] = beaten / races
    return report


def untuned(train: Train, count: int = UNTUNED) -> float:
    """Standard deviation of the difference of two runs with the defaults, as `--plan` sees it."""
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
    parser.add_argument("--diverge", type=float, default=0.0, help="share of runs that diverge")
    parser.add_argument("--plant", type=float, nargs="*", default=[], help="differences, in the "
                        "smallest one that the planner promises to find")  # fmt: skip
    parser.add_argument("--first", type=int, default=0, help="number of the first race")
    parser.add_argument("--copies", type=int, default=1, help="copies raced against the first")
    parser.add_argument("--failures", action="store_true", help="a table of null races with runs "
                        "that diverge, --races for each cell")  # fmt: skip
    options = parser.parse_args()
    if options.failures:
        print(json.dumps(failures(options.races, options.seeds, options.trials), indent=1))
        return
    noise = Noise(options.heavy, options.diverge)
    real = {"digits": digits, "network": network}.get(options.task)
    train = real(noise) if real else synthetic(options.shape, noise)
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
    every = [d for race in found for d, _ in race.values()]
    sd, without = float(np.std(every, ddof=1)), untuned(train, min(UNTUNED, 20 * options.races))
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
        planted = [{**r, "0": ([d + shift for d in r["0"][0]], r["0"][1])} for r in found]
        claims = _claims(planted, first=True)
        report[f"planted {size:g}"] = {
            "found": claims, "promised": round(promise, 3), "low": int(low), "high": int(high),
        }  # fmt: skip
    print(json.dumps(report, indent=1))


def _claims(found: list[Found], first: bool = False) -> int:
    """Races with a claim about any copy, or about the first, Holm's procedure over all of them."""
    count = 0
    for race in found:
        d = {name: np.array(each) for name, (each, _) in race.items()}
        _, _, claims = statistics.decide(d, [name for name, (_, lost) in race.items() if lost])
        count += "0" in claims if first else bool(claims)
    return count


if __name__ == "__main__":
    main()
