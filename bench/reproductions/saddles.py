"""Newton's method near saddles, plain and saddle-free."""

from __future__ import annotations

import math
from typing import Any

import torch
from results import Results
from torch import Tensor, nn

from steepest.full_batch import Newton

ANGLE = 0.5
"""Radians between the parameters' axes and the axes along which `wells` is separable."""
HIDDEN, PENALTY = 4, 1e-2
FLAT = 1e-6
"""A gradient with a smaller norm counts as zero."""
FORMS: dict[str, dict[str, Any]] = {
    "plain": {"line_search": False},
    "saddle-free": {"line_search": False, "saddle_free": True},
    "plain, damped": {"line_search": False, "damping": 0.1},
    "saddle-free, damped": {"line_search": False, "damping": 0.1, "saddle_free": True},
    "plain, line search": {},
    "saddle-free, line search": {"saddle_free": True},
}


def wells(points: Tensor) -> Tensor:
    """Sum over points (n, 2) of (u^2 - 1)^2/4 + (v^2 - 1)^2/4; (u, v) is the rotated point.

    The function of one point has 4 minima (u and v are 1 or -1), 4 saddles (one of u and v is 0)
    and a maximum at 0.
    """
    return ((rotate(points).square() - 1).square() / 4).sum()


def rotate(points: Tensor) -> Tensor:
    """Points (n, 2) rotated by ANGLE."""
    c, s = math.cos(ANGLE), math.sin(ANGLE)
    return points @ torch.tensor([[c, s], [-s, c]], dtype=points.dtype)


def run_newton(start: Tensor, steps: int, **options: Any) -> Tensor:
    """The rotated points that Newton's steps reach from the starts (n, 2).

    One optimizer steps all points: the Hessian of the sum has a block for each point.
    """
    points = nn.Parameter(start.clone())
    optimizer = Newton([points], **options)
    for _ in range(steps):
        optimizer.step(lambda: wells(points))
    return rotate(points.detach())


def network(seed: int, deviation: float) -> tuple[nn.Module, Any, Any]:
    """A network (30-4-1, tanh) with parameters near zero, its loss and its accuracy.

    Data: breast cancer. The loss includes the penalty PENALTY/2 |theta|^2. With it, the point where
    all parameters except the last bias are zero is a saddle with a nonsingular Hessian.
    """
    from sklearn.datasets import load_breast_cancer

    x, y = (torch.tensor(a).double() for a in load_breast_cancer(return_X_y=True))
    x = (x - x.mean(0)) / x.std(0)
    model = nn.Sequential(nn.Linear(30, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, 1)).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0, deviation, generator=generator)

    def loss() -> Tensor:
        penalty = torch.stack([p.square().sum() for p in model.parameters()]).sum()
        data = nn.functional.binary_cross_entropy_with_logits(model(x)[:, 0], y)
        return data + PENALTY / 2 * penalty

    def accuracy() -> float:
        with torch.no_grad():
            return 100 * ((model(x)[:, 0] > 0) == (y > 0)).double().mean().item()

    return model, loss, accuracy


def slope_and_curvature(model: nn.Module, loss: Any) -> tuple[float, float]:
    """Norm of the gradient and smallest eigenvalue of the Hessian, by double backward."""
    params = [*model.parameters()]
    gradient = torch.cat(
        [g.flatten() for g in torch.autograd.grad(loss(), params, create_graph=True)]
    )
    rows = [torch.autograd.grad(g, params, retain_graph=True) for g in gradient]
    hessian = torch.stack([torch.cat([block.flatten() for block in row]) for row in rows])
    return float(gradient.detach().norm()), float(torch.linalg.eigvalsh(hessian)[0])


def saddle(seeds: int = 10, starts: int = 100, steps: int = 40, deviation: float = 0.05) -> Results:
    """Plain Newton is attracted to saddles, the saddle-free form is not, Dauphin et al. 2014.

    arXiv:1406.2572. "two variables": on a function with 4 minima, 4 saddles and a maximum, the
    per cent of random starts in [-2, 2]^2 that end within 1e-3 of each. "network": on the breast
    cancer data, started near a saddle, the per cent at a saddle and at a minimum (judged by the
    gradient and the Hessian's smallest eigenvalue), and the loss and accuracy in per cent on the
    training data.
    """
    results = Results()
    for name in ("plain", "saddle-free"):
        shares: dict[str, list[float]] = {"minimum": [], "saddle": [], "maximum": []}
        for seed in range(seeds):
            generator = torch.Generator().manual_seed(seed)
            start = 4 * torch.rand(starts, 2, generator=generator, dtype=torch.float64) - 2
            end = run_newton(start, steps, **FORMS[name]).abs()
            zero = end < 1e-3
            arrived = (zero | ((end - 1).abs() < 1e-3)).all(1)
            for zeros, point in enumerate(shares):  # a minimum has 0 zeros, a saddle 1
                share = (arrived & (zero.sum(1) == zeros)).double().mean()
                shares[point].append(100 * float(share))
        for point, values in shares.items():
            results.add(f"two variables, % at a {point}: {name}", values)
    results.compare("two variables, % at a saddle", "plain", ["saddle-free"])
    for name, options in FORMS.items():
        rows = []
        for seed in range(seeds):
            model, loss, accuracy = network(seed, deviation)
            optimizer = Newton(model.parameters(), **options)
            for _ in range(steps):
                optimizer.step(loss)
            slope, curvature = slope_and_curvature(model, loss)
            flat = slope < FLAT
            at_saddle = 100.0 if flat and curvature < 0 else 0.0
            at_minimum = 100.0 if flat and curvature > 0 else 0.0
            rows.append((at_saddle, at_minimum, float(loss().detach()), accuracy()))
        metrics = ("% at a saddle", "% at a minimum", "loss", "accuracy")
        for metric, values in zip(metrics, zip(*rows, strict=True), strict=True):
            results.add(f"network, {metric}: {name}", values)
    results.compare("network, % at a saddle", "plain", ["saddle-free", "plain, line search"])
    results.compare("network, % at a saddle", "plain, damped", ["saddle-free, damped"])
    results.compare("network, accuracy", "plain, damped", ["saddle-free, damped"])
    return results
