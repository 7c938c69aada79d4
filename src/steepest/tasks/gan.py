"""A small GAN on scikit-learn's digits. Its metric uses the features of a classifier."""

from __future__ import annotations

from functools import lru_cache, partial

import numpy as np
import torch
from torch import Tensor, nn

from steepest.tasks.images import BATCH, digits, hash_of
from steepest.tasks.task import CPU, Make, Reporter, Samples, Task, evaluating

NOISE = 16
"""How many inputs the generator has."""
SAMPLES, STEPS, EVERY = 1000, 1000, 100
PRESENT = 0.02
"""A digit counts as drawn if at least this share of the samples shows it. The mean share is 0.1."""


def _classifier() -> nn.Sequential:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)
    )


@lru_cache(maxsize=1)
def judge() -> nn.Sequential:
    """Train a classifier on the digits. Its last hidden layer gives the features.

    The classifier is trained by plain torch, for 400 steps and from a fixed seed, so every entry is
    judged by the same classifier.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = _classifier()
    batches = Samples(digits()["train"], BATCH).batched(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    with torch.enable_grad():
        for _ in range(400):
            images, labels = next(batches)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
    return model.requires_grad_(False).eval()


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """Squared Frechet distance between Gaussians fitted to the rows of `a` and of `b`.

    |mean_a - mean_b|^2 + trace(A + B - 2 (A B)^(1/2)), with covariances A and B (Heusel et al.
    2017, arXiv:1706.08500). The trace of (A B)^(1/2) is the sum of the square roots of the
    eigenvalues of A B, which are not negative.
    """
    difference = a.mean(0) - b.mean(0)
    first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    roots = np.sqrt(np.linalg.eigvals(first @ second).real.clip(0)).sum()
    return float(difference @ difference + np.trace(first) + np.trace(second) - 2 * roots)


@lru_cache(maxsize=2)
def _real_features(split: str) -> np.ndarray:
    return judge()[:-1](digits()[split][0]).double().numpy()


@torch.no_grad()
def judged(images: Tensor, split: str) -> tuple[float, float]:
    """Judge generated images. Returns two numbers, which are nan if a feature is not finite.

    The first is the Frechet distance to the real images of `split`. The second is the share of the
    ten digits that `images` show.
    """
    features = judge()[:-1](images)
    if not features.isfinite().all():
        return float("nan"), float("nan")
    drawn = judge()[-1](features).argmax(1).bincount(minlength=10) >= PRESENT * len(images)
    return frechet(features.double().numpy(), _real_features(split)), drawn.double().mean().item()


def _make_generator() -> nn.Module:
    return nn.Sequential(
        nn.Linear(NOISE, 64),
        nn.BatchNorm1d(64),
        nn.ReLU(),
        nn.Linear(64, 64),
        nn.BatchNorm1d(64),
        nn.ReLU(),
        nn.Linear(64, 64),
        nn.Sigmoid(),
    )


def _make_critic() -> nn.Module:
    return nn.Sequential(
        nn.Linear(64, 64),
        nn.LeakyReLU(0.2),
        nn.Dropout(0.3),
        nn.Linear(64, 64),
        nn.LeakyReLU(0.2),
        nn.Dropout(0.3),
        nn.Linear(64, 1),
    )


def _train(
    make_optimizer: Make, report: Reporter, seed: int, steps: int, device: torch.device = CPU
) -> None:
    torch.manual_seed(seed)
    generator, critic = _make_generator().to(device), _make_critic().to(device)
    generator_optimizer, critic_optimizer = make_optimizer(generator), make_optimizer(critic)
    images = digits()["train"][0].flatten(1).to(device)
    batches = Samples((images,), BATCH).batched(seed)
    noise = torch.Generator().manual_seed(seed)
    fixed = torch.randn(SAMPLES, NOISE, generator=noise).to(device)

    def cost(pixels: Tensor, real: bool) -> Tensor:
        scores = critic(2 * pixels - 1)
        goal = torch.full_like(scores, float(real))
        return nn.functional.binary_cross_entropy_with_logits(scores, goal)

    for step in range(1, steps + 1):
        (real,) = next(batches)
        fake = generator(torch.randn(len(real), NOISE, generator=noise).to(device))
        critic_optimizer.zero_grad()
        (cost(real, True) + cost(fake.detach(), False)).backward()
        critic_optimizer.step()
        generator_optimizer.zero_grad()
        cost(fake, True).backward()
        generator_optimizer.step()
        if step % EVERY == 0 or step == steps:
            with torch.no_grad(), evaluating(generator_optimizer, critic_optimizer):
                drawn = generator.eval()(fixed).cpu()  # the judge is on the CPU
            generator.train()
            validation, modes = judged(drawn, "validation")
            report(step, validation=validation, test=judged(drawn, "test")[0], modes=modes)


DIGITS_GAN = Task(
    name="digits-gan",
    metric="Frechet distance",
    maximize=False,
    worst=200.0,  # the distance of a generator that draws only one digit; noise has about 65
    target=60.0,
    steps=STEPS,
    every=EVERY,
    test_size=597,
    proportion=False,
    train=_train,
    data_hash=partial(hash_of, digits),
)
