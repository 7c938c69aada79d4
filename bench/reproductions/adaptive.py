"""BA-SGD, which chooses the batch size of each update, against a constant size on digits."""

from __future__ import annotations

from time import process_time
from typing import Any

import torch
from results import Results, digits
from torch import Tensor, nn

import steepest
from steepest.strategies import AdaptiveBatch, Loader

SETTINGS = {"lr 0.1": (0.1, 0.0, 30), "lr 1": (1.0, 0.0, 30), "authors'": (0.02, 0.9, 32)}
"""lr, momentum and the first draw m_0. The last row is from the authors' program for Fashion-MNIST
(github.com/thomasyao3096/Batch_Adaptive_Framework, cnn_fashion_mnist.py); 30 is the default of
their optimizer.
"""
WAYS = ("constant", "adaptive", "as large")
""""as large" is a constant batch with the average size of the adaptive one: it separates the effect
of the size from that of the choice.
"""


def loss(model: nn.Module, batch: Any) -> Tensor:
    """The mean loss over a batch, in nats."""
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def train(
    data: dict[str, tuple[Tensor, Tensor]],
    seed: int,
    setting: str,
    epochs: int,
    size: int | None = None,
) -> dict[str, float]:
    """Train an MLP (64-64-10) for a number of epochs, so all ways compute equally many gradients.

    size: the batch size; None chooses it for each update.
    """
    lr, momentum, first = SETTINGS[setting]
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = steepest.SGD(model.parameters(), lr=lr, momentum=momentum)
    loader = Loader(data["train"], size or first, seed=seed)
    sizes: list[int] = []
    start = process_time()
    if size is None:
        adaptive = AdaptiveBatch(model, loss, optimizer, loader)
        while loader.epoch < epochs:
            adaptive.step()
            sizes.append(adaptive.batch_size)
    else:
        for _ in range(epochs):
            for batch in loader:
                optimizer.zero_grad()
                loss(model, batch).backward()
                optimizer.step()
                sizes.append(len(batch[0]))
    seconds = process_time() - start
    with torch.no_grad():
        right = (model(data["test"][0]).argmax(1) == data["test"][1]).double().mean().item()
        return {
            "test accuracy": 100 * right,
            "train loss": loss(model, data["train"]).item(),
            "updates": len(sizes),
            "batch": sum(sizes) / len(sizes),
            "one draw, % of updates": 100 * sum(s <= first for s in sizes) / len(sizes),
            "CPU seconds": seconds,
        }


def adaptive(seeds: int = 6, epochs: int = 30) -> Results:
    """A batch size chosen from the gradients' variance against a constant one, Yin et al. 2017.

    KDD 2017, "Small batch or large batch?". All runs see every sample `epochs` times.
    """
    results = Results()
    for setting in SETTINGS:
        runs: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
        for seed in range(seeds):
            data = digits(seed, 1200)
            adaptive_run = train(data, seed, setting, epochs)
            runs["adaptive"].append(adaptive_run)
            sizes = {"constant": SETTINGS[setting][2], "as large": round(adaptive_run["batch"])}
            for way, size in sizes.items():
                runs[way].append(train(data, seed, setting, epochs, size))
        for metric in runs["constant"][0]:
            for way in WAYS:
                results.add(f"{metric}, {setting}: {way}", [run[metric] for run in runs[way]])
        for metric in ("test accuracy", "train loss"):
            for other in ("constant", "as large"):
                results.compare(f"{metric}, {setting}", other, ["adaptive"])
        pairs = zip(runs["adaptive"], runs["constant"], strict=True)
        times = [a["CPU seconds"] / b["CPU seconds"] for a, b in pairs]
        results.add(f"times as long, {setting}", times)
    return results
