"""Schedules on digits: learning rate against batch size, and restarts against steps."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any

import numpy as np
import torch
from found import Found, digits
from torch import nn

import steepest
from steepest.schedules import CosineAnnealingLR, CosineAnnealingWarmRestarts, MultiStepLR
from steepest.strategies import BatchGrowth, Loader

MOMENTUM, DECAY = 0.9, 5e-4
FACTOR = 0.2
"""Of both papers' steps."""
SHARES = (0.3, 0.6, 0.8)
"""Of the epochs, after which lr is multiplied by FACTOR: 60, 120, 160 of 200 in both papers."""
RATES = (0.03, 0.1, 0.3, 1.0, 3.0)

Data = dict[str, tuple[torch.Tensor, torch.Tensor]]


def train(
    data: Data, seed: int, order: int, batch: int, lr: float, epochs: int,
    scheduled: Callable[[Any, Any], Any], per_batch: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Train an MLP (64-64-10) and return its curves, one number per epoch, losses in nats."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = steepest.SGD(model.parameters(), lr=lr, momentum=MOMENTUM, weight_decay=DECAY)
    loader = Loader(data["train"], batch, seed=order)
    schedule = scheduled(optimizer, loader)
    curves: dict[str, Any] = {f"{s} {m}": [] for s in data for m in ("accuracy", "loss")}
    curves |= {"updates": 0, "seconds": 0.0}
    for _ in range(epochs):
        began = perf_counter()
        for x, y in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            curves["updates"] += 1
            if per_batch:
                schedule.step()
        if not per_batch:
            schedule.step()
        curves["seconds"] += perf_counter() - began
        with torch.no_grad():
            for split, (x, y) in data.items():
                scores = model(x)
                right = (scores.argmax(1) == y).double().mean().item()
                curves[f"{split} accuracy"].append(100 * right)
                curves[f"{split} loss"].append(nn.functional.cross_entropy(scores, y).item())
    return curves


def steps(epochs: int) -> list[int]:
    return [round(share * epochs) for share in SHARES]


def growth(seeds: int = 10, epochs: int = 30) -> Found:
    """Decay of lr, growth of the batch and both at equal epochs, Smith et al. 2017.

    arXiv:1711.00489. "hybrid" grows once, then decays. "another order" is the decay from the same
    weights with other batches: what luck makes of the same method. "neither" is the control.
    """
    first, *_ = steps(epochs)

    def decay(optimizer: Any, _: Any) -> Any:
        return MultiStepLR(optimizer, steps(epochs), FACTOR)

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
    found, others = Found(), [name for name in ways if name != "decay"]
    for name, mine in runs.items():
        for what in ("updates", "seconds"):
            found.add(f"{what}: {name}", [run[what] for run in mine])
    for what in ("test accuracy", "train loss"):
        curves = {name: np.array([run[what] for run in mine]) for name, mine in runs.items()}
        for name, curve in curves.items():
            found.add(f"{what}: {name}", curve[:, -1])
        found.compare(what, "decay", others)
        gaps = {name: curves[name][:, first:] - curves["decay"][:, first:] for name in others}
        for name, gap in gaps.items():
            found.add(f"largest gap in {what}: {name}", abs(gap).max(1))
        chances = [name for name in others if name != "another order"]
        found.compare(f"largest gap in {what}", "another order", chances)
        for name in ("growth", "hybrid"):
            at = int(abs(gaps[name].mean(0)).argmax())
            label = f"{what}, epoch {first + at + 1} (the mean's farthest): {name} - decay"
            found.pairs[label] = gaps[name][:, at].tolist()
    return found


def sgdr(seeds: int = 10, first: int = 2, periods: int = 4) -> Found:
    """Warm restarts against steps and one cosine at equal epochs, Loshchilov & Hutter 2017.

    arXiv:1608.03983. lr of each is the best of RATES by validation, anew for each seed; accuracy
    in per cent on test data, also at the ends of the periods before the last.
    """
    ends = [first * (2 ** (k + 1) - 1) for k in range(periods)]
    epochs, batches = ends[-1], 15  # 900 images in batches of 60
    ways: dict[str, tuple[Callable[[Any, Any], Any], bool]] = {
        "steps": (lambda o, _: MultiStepLR(o, steps(epochs), FACTOR), False),
        "cosine": (lambda o, _: CosineAnnealingLR(o, epochs * batches), True),
        "sgdr": (lambda o, _: CosineAnnealingWarmRestarts(o, first * batches, 2), True),
    }
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in ways}
    for seed in range(seeds):
        data = digits(seed, 900, 300)
        for name, (way, per_batch) in ways.items():
            tried = [
                train(data, seed, seed, 60, lr, epochs, way, per_batch) | {"lr": lr} for lr in RATES
            ]
            runs[name].append(max(tried, key=_quality))
    found = Found()
    for name, mine in runs.items():
        found.add(f"lr: {name}", [run["lr"] for run in mine])
    for end in ends:
        what = f"test accuracy after epoch {end}"
        for name, mine in runs.items():
            found.add(f"{what}: {name}", [run["test accuracy"][end - 1] for run in mine])
        found.compare(what, "steps", ["cosine", "sgdr"])
    return found


def _quality(run: dict[str, Any]) -> tuple[float, float]:
    """Validation accuracy, and among equal ones the loss; what is not finite is the worst."""
    loss = run["validation loss"][-1]
    return (run["validation accuracy"][-1], -loss) if np.isfinite(loss) else (-1.0, 0.0)
