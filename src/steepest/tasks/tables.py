"""Regression on a table: scikit-learn's diabetes."""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn

from steepest.tasks.task import CPU, Samples, Setup, Task

TRAIN, VALIDATION, TEST = 222, 110, 110
"""How many patients each split has. All splits together have 442."""
BATCH = 32


@lru_cache(maxsize=1)
def diabetes() -> dict[str, tuple[Tensor, Tensor]]:
    """Split -> (features [n, 10], targets [n]), standardised by the mean and std of "train"."""
    from sklearn.datasets import load_diabetes  # slow to import

    features, targets = load_diabetes(return_X_y=True)
    order = np.random.default_rng(0).permutation(TRAIN + VALIDATION + TEST)
    table = np.column_stack([features, targets])[order]
    table = (table - table[:TRAIN].mean(0)) / table[:TRAIN].std(0)
    splits = torch.tensor(table, dtype=torch.float32).split([TRAIN, VALIDATION, TEST])
    names = ("train", "validation", "test")
    return {name: (rows[:, :-1], rows[:, -1]) for name, rows in zip(names, splits, strict=True)}


def _hash_data() -> str:
    digest = hashlib.sha256()
    for features, targets in diabetes().values():
        digest.update(features.contiguous().numpy().tobytes())
        digest.update(targets.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _setup(
    seed: int, batchnorm: bool = False, dropout: float = 0.0, device: torch.device = CPU
) -> Setup:
    torch.manual_seed(seed)
    data = {split: (x.to(device), y.to(device)) for split, (x, y) in diabetes().items()}
    layers: list[nn.Module] = []
    for width in (10, 32):
        layers.append(nn.Linear(width, 32))
        if batchnorm:
            layers.append(nn.BatchNorm1d(32))
        layers.append(nn.Tanh())
        if dropout > 0:
            layers.append(nn.Dropout(dropout))
    model = nn.Sequential(*layers, nn.Linear(32, 1), nn.Flatten(0)).to(device)

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.mse_loss(model(batch[0]), batch[1])

    @torch.no_grad()
    def evaluate(model: nn.Module, split: str) -> float:
        return loss(model, data[split]).item()

    def residuals(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return model(batch[0]) - batch[1]

    samples = Samples(data["train"], BATCH)
    return Setup(model, samples.batched(seed), loss, evaluate, residuals=residuals, samples=samples)


DIABETES = Task(
    name="diabetes",
    metric="mean squared error",  # 1 - R2, since the targets are standardised
    maximize=False,
    worst=1.0,  # a model that always predicts the mean of the training targets
    target=0.55,
    steps=100,
    every=7,  # an epoch
    test_size=TEST,
    proportion=False,
    build=_setup,
    data_hash=_hash_data,
    switches=("batchnorm", "dropout"),
)
