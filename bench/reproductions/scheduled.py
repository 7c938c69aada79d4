"""Schedules on digits: decaying the rate against growing the batch, and restarts against steps."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any

import numpy as np
import torch
from results import Results, digits
from torch import nn

import steepest
from steepest.schedules import CosineAnnealingLR, CosineAnnealingWarmRestarts, MultiStepLR
from steepest.strategies import BatchGrowth, Loader

MOMENTUM, DECAY = 0.9, 5e-4
FACTOR = 0.2
"""Both papers multiply lr by this at each milestone."""
SHARES = (0.3, 0.6, 0.8)
"""The milestones, as fractions of the epochs: 60, 120, 160 of 200 in both papers."""
RATES = (0.03, 0.1, 0.3, 1.0, 3.0)

Data = dict[str, tuple[torch.Tensor, torch.Tensor]]


def train(
    data: Data,
    seed: int,
    order: int,
    batch: int,
    lr: float,
    epochs: int,
    make_schedule: Callable[[Any, Any], Any],
    per_batch: bool = False,
) -> dict[str, Any]:
    """Train an MLP (64-64-10) and return its curves, one number per epoch, losses in nats.

    seed: of the weights. order: the seed of the batches. per_batch: step the schedule after every
    batch instead of every epoch.
    """
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = steepest.SGD(model.parameters(), lr=lr, momentum=MOMENTUM, weight_decay=DECAY)
    loader = Loader(data["train"], batch, seed=order)
    schedule = make_schedule(optimizer, loader)
    curves: dict[str, Any] = {f"{s} {m}": [] for s in data for m in ("accuracy", "loss")}
    curves |= {"updates": 0, "seconds": 0.0}
    for _ in range(epochs):
        start = perf_counter()
        for x, y in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            curves["updates"] += 1
            if per_batch:
                schedule.step()
        if not per_batch:
            schedule.step()
        curves["seconds"] += perf_counter() - start
        with torch.no_grad():
            for split, (x, y) in data.items():
                scores = model(x)
                right = (scores.argmax(1) == y).double().mean().item()
                curves[f"{split} accuracy"].append(100 * right)
                curves[f"{split} loss"].append(nn.functional.cross_entropy(scores, y).item())
    return curves


def milestones(epochs: int) -> list[int]:
    return [round(share * epochs) for share in SHARES]


def growth(seeds: int = 10, epochs: int = 30) -> Results:
    """Decay of lr, growth of the batch and both at equal epochs, Smith et al. 2017.

    arXiv:1711.00489. "hybrid" grows the batch once, then decays lr. "another order" is the decay
    from the same weights with the batches in another order: it shows the effect of luck. "neither"
    is the control.
    """
    first, *_ = milestones(epochs)

    def decay(optimizer: Any, _: Any) -> Any:
        return MultiStepLR(optimizer, milestones(epochs), FACTOR)

    ways = {
        "decay": decay,
        "growth": lambda o, loader: BatchGrowth(decay(o, loader), loader),
        "hybrid": lambda o, loader: BatchGrowth(decay(o, loader), loader, largest=80),
        "another order": decay,
        "neither": lambda o, _: MultiStepLR(o, []),
    }
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in ways}
    for seed in range(seeds):
        data = digits(seed, 1200)  # whole batches of 16, 80, 400 and 1,200
        for name, way in ways.items():
            order = seeds + seed if name == "another order" else seed
            runs[name].append(train(data, seed, order, 16, 0.05, epochs, way))
    results, others = Results(), [name for name in ways if name != "decay"]
    for name, of_name in runs.items():
        for metric in ("updates", "seconds"):
            results.add(f"{metric}: {name}", [run[metric] for run in of_name])
    for metric in ("test accuracy", "train loss"):
        curves = {name: np.array([run[metric] for run in runs[name]]) for name in runs}
        for name, curve in curves.items():
            results.add(f"{metric}: {name}", curve[:, -1])
        results.compare(metric, "decay", others)
        gaps = {name: curves[name][:, first:] - curves["decay"][:, first:] for name in others}
        for name, gap in gaps.items():
            results.add(f"largest gap in {metric}: {name}", abs(gap).max(1))
        treated = [name for name in others if name != "another order"]
        results.compare(f"largest gap in {metric}", "another order", treated)
        for name in ("growth", "hybrid"):
            farthest = int(abs(gaps[name].mean(0)).argmax())
            epoch = first + farthest + 1
            label = f"{metric}, epoch {epoch} (the mean's farthest): {name} - decay"
            results.pairs[label] = gaps[name][:, farthest].tolist()
    return results


def sgdr(seeds: int = 10, first: int = 2, periods: int = 4) -> Results:
    """Warm restarts against steps and one cosine at equal epochs, Loshchilov & Hutter 2017.

    arXiv:1608.03983. For each seed, each schedule gets the lr of RATES that is best by validation.
    Accuracy in per cent on test data, at the end of every period.
    """
    ends = [first * (2 ** (k + 1) - 1) for k in range(periods)]
    epochs, batches = ends[-1], 15  # 900 images in batches of 60
    ways: dict[str, tuple[Callable[[Any, Any], Any], bool]] = {
        "steps": (lambda o, _: MultiStepLR(o, milestones(epochs), FACTOR), False),
        "cosine": (lambda o, _: CosineAnnealingLR(o, epochs * batches), True),
        "sgdr": (lambda o, _: CosineAnnealingWarmRestarts(o, first * batches, 2), True),
    }
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in ways}
    for seed in range(seeds):
        data = digits(seed, 900, 300)
        for name, (way, per_batch) in ways.items():
            trials = [
                train(data, seed, seed, 60, lr, epochs, way, per_batch) | {"lr": lr} for lr in RATES
            ]
            runs[name].append(max(trials, key=_quality))
    results = Results()
    for name, of_name in runs.items():
        results.add(f"lr: {name}", [run["lr"] for run in of_name])
    for end in ends:
        metric = f"test accuracy after epoch {end}"
        for name, of_name in runs.items():
            results.add(f"{metric}: {name}", [run["test accuracy"][end - 1] for run in of_name])
        results.compare(metric, "steps", ["cosine", "sgdr"])
    return results


def _quality(run: dict[str, Any]) -> tuple[float, float]:
    """Sort key: validation accuracy, then loss. A run whose loss is not finite comes last."""
    loss = run["validation loss"][-1]
    return (run["validation accuracy"][-1], -loss) if np.isfinite(loss) else (-1.0, 0.0)
