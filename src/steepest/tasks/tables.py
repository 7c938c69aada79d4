"""Regression on a table: scikit-learn's diabetes."""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn

from steepest.tasks.task import Samples, Setup, Task

TRAIN, VALIDATION, TEST = 222, 110, 110
"""Patients of 442."""
BATCH = 32


@lru_cache(maxsize=1)
def diabetes() -> dict[str, tuple[Tensor, Tensor]]:
    """Split -> (features [n, 10], targets [n]), both standardised by the training part."""
    from sklearn.datasets import load_diabetes  # heavy: only when raced

    features, targets = load_diabetes(return_X_y=True)
    order = np.random.default_rng(0).permutation(TRAIN + VALIDATION + TEST)
    table = np.column_stack([features, targets])[order]
    table = (table - table[:TRAIN].mean(0)) / table[:TRAIN].std(0)
    found = torch.tensor(table, dtype=torch.float32)
    parts = found.split([TRAIN, VALIDATION, TEST])
    names = ("train", "validation", "test")
    return {name: (part[:, :-1], part[:, -1]) for name, part in zip(names, parts, strict=True)}


def _hash() -> str:
    digest = hashlib.sha256()
    for features, targets in diabetes().values():
        digest.update(features.contiguous().numpy().tobytes())
        digest.update(targets.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _setup(seed: int, batchnorm: bool = False, dropout: float = 0.0) -> Setup:
    torch.manual_seed(seed)
    more = lambda: [  # noqa: E731
        *[nn.BatchNorm1d(32)] * batchnorm, nn.Tanh(), *[nn.Dropout(dropout)] * (dropout > 0)
    ]  # fmt: skip
    model = nn.Sequential(nn.Linear(10, 32), *more(), nn.Linear(32, 32), *more(),
                          nn.Linear(32, 1), nn.Flatten(0))  # fmt: skip

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.mse_loss(model(batch[0]), batch[1])

    @torch.no_grad()
    def evaluate(model: nn.Module, split: str) -> float:
        features, targets = diabetes()[split]
        return loss(model, (features, targets)).item()

    samples = Samples(diabetes()["train"], BATCH)
    residuals = lambda model, batch: model(batch[0]) - batch[1]  # noqa: E731
    return Setup(model, samples.batched(seed), loss, evaluate, residuals=residuals, samples=samples)


DIABETES = Task(
    name="diabetes",
    metric="mean squared error",  # of standardised targets: 1 - R2 on the training part's scale
    maximize=False,
    worst=1.0,  # as good as the mean of the training targets
    target=0.55,
    steps=100,
    every=7,  # an epoch
    test_size=TEST,
    proportion=False,
    build=_setup,
    data_hash=_hash,
    switches=("batchnorm", "dropout"),
)
