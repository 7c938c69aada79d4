"""What is trained in a race: a task builds model, batches, loss and evaluation for a seed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from steepest.race import BadCall


@dataclass(frozen=True)
class Setup:
    """One seed of a task. The seed decides initial weights and order of data, nothing else."""

    model: nn.Module
    batches: Iterator[Any]
    """Endless training batches."""
    loss: Callable[[nn.Module, Any], Tensor]
    """(model, batch) -> scalar training loss."""
    evaluate: Callable[[nn.Module, str], float]
    """(model, "validation" or "test") -> the metric; nan if the model's output is not finite."""


@dataclass(frozen=True)
class Task:
    """A training problem and the metric that the verdict is about."""

    name: str
    metric: str
    maximize: bool
    worst: float
    """The metric that a diverged run counts as."""
    target: float
    """Validation metric whose first reaching is timed."""
    steps: int
    every: int
    """Steps between two evaluations on validation data."""
    test_size: int
    proportion: bool
    """The metric is a share of test cases: shown in %, with a binomial standard error."""
    build: Callable[[int], Setup]
    data_hash: Callable[[], str]

    def better(self, a: float, b: float) -> bool:
        """Whether metric `a` is strictly better than `b`."""
        return a > b if self.maximize else a < b


TRAIN, VALIDATION, TEST = 800, 400, 597
"""Images of the digits task; few for training, so that the race does not end at 100 %."""
BATCH = 32


@lru_cache(maxsize=1)
def _digits() -> dict[str, tuple[Tensor, Tensor]]:
    from sklearn.datasets import load_digits  # heavy: only when raced

    pixels, classes = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(TRAIN + VALIDATION + TEST)
    images = torch.tensor(pixels[order] / 16, dtype=torch.float32).reshape(-1, 1, 8, 8)
    labels = torch.tensor(classes[order])
    ends = {
        "train": (0, TRAIN),
        "validation": (TRAIN, TRAIN + VALIDATION),
        "test": (TRAIN + VALIDATION, len(order)),
    }
    return {name: (images[a:b], labels[a:b]) for name, (a, b) in ends.items()}


def _digits_hash() -> str:
    digest = hashlib.sha256()
    for images, labels in _digits().values():
        digest.update(images.numpy().tobytes())
        digest.update(labels.to(torch.int64).numpy().tobytes())
    return digest.hexdigest()


def _digits_setup(seed: int) -> Setup:
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(128, 10),
    )  # fmt: skip
    images, labels = _digits()["train"]
    generator = torch.Generator().manual_seed(seed)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            for rows in torch.randperm(TRAIN, generator=generator).split(BATCH):
                yield images[rows], labels[rows]

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    @torch.no_grad()
    def evaluate(model: nn.Module, split: str) -> float:
        images, labels = _digits()[split]
        scores = model(images)
        if not scores.isfinite().all():
            return float("nan")
        return (scores.argmax(1) == labels).double().mean().item()

    return Setup(model, batches(), loss, evaluate)


TASKS = {
    "digits": Task(
        name="digits",
        metric="accuracy",
        maximize=True,
        worst=0.0,
        target=0.95,
        steps=300,
        every=TRAIN // BATCH,
        test_size=TEST,
        proportion=True,
        build=_digits_setup,
        data_hash=_digits_hash,
    )
}


def get(name: str) -> Task:
    """The task called `name`; BadCall lists the known ones."""
    if name not in TASKS:
        near = get_close_matches(name, list(TASKS), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise BadCall(f"unknown task {name!r}: expected one of {', '.join(TASKS)}{hint}")
    return TASKS[name]
