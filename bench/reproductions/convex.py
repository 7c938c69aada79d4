"""Convex problems with known rates: Nesterov's acceleration, and least squares."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from found import Found
from torch import Tensor, nn

import steepest
from steepest.full_batch import Newton, least_squares

PENALTY = 1e-5
"""Strong convexity of the logistic regression."""
METHODS = ("sgd", "nesterov", "classical_nesterov", "textbook")


def points(
    method: str, loss: Callable[[Tensor], Tensor], start: Tensor, lipschitz: float, steps: int
) -> Iterator[Tensor]:
    """x_1, x_2, ...: the points of gradient descent with lr 1/L, or of Nesterov's method.

    The rules keep Nesterov's y_k, where the gradient is taken; x_k is y_k less the gradient's step,
    and that is what the bound is about. They use one momentum per step for the buffer and for the
    look-ahead; the textbook's buffer has the one of the step before.
    """
    if method == "textbook":
        yield from textbook(loss, start, lipschitz, steps)
        return
    y = nn.Parameter(start.clone())
    optimizer = steepest.optimizer(method, [y], lr=1 / lipschitz)
    for k in range(1, steps + 1):
        if method != "sgd":
            optimizer.param_groups[0]["momentum"] = (k - 1) / (k + 2)
        optimizer.zero_grad()
        loss(y).backward()
        assert y.grad is not None
        x = y.detach() - y.grad / lipschitz
        optimizer.step()
        yield x


def textbook(
    loss: Callable[[Tensor], Tensor], start: Tensor, lipschitz: float, steps: int
) -> Iterator[Tensor]:
    """Nesterov's method in two sequences, by a plain loop.

    x_k = y_k - grad f(y_k)/L, y_(k+1) = x_k + (k - 1)/(k + 2) (x_k - x_(k-1)).
    """
    before, y = start, start
    for k in range(1, steps + 1):
        y = y.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(y), y)
        x = y.detach() - gradient / lipschitz
        y = x + (k - 1) / (k + 2) * (x - before)
        before = x
        yield x


def bound(method: str, lipschitz: float, distance: float, k: Any) -> Any:
    """Largest f(x_k) - f* for gradient descent and for Nesterov's method, L-smooth convex f.

    L |x_0 - x*|^2 / (2k) and 2 L |x_0 - x*|^2 / (k + 1)^2: Nesterov, Lectures on Convex
    Optimization, 2018, section 2; Beck & Teboulle 2009, doi:10.1137/080716542, theorems 3.1 and
    4.4, whose proof holds for t_k = (k + 1)/2, that is for momentum (k - 1)/(k + 2).
    """
    scale = lipschitz * distance**2
    return scale / (2 * k) if method == "sgd" else 2 * scale / (k + 1) ** 2


def worst(size: int) -> tuple[Callable[[Tensor], Tensor], Tensor, float]:
    """Nesterov's hardest quadratic for (size - 1)/2 steps, with L = 4: f, x*, f*.

    Lectures on Convex Optimization, 2018, section 2.1.2.
    """

    def f(x: Tensor) -> Tensor:
        return (x[0] ** 2 + x.diff().square().sum() + x[-1] ** 2) / 2 - x[0]

    best = 1 - torch.arange(1, size + 1, dtype=torch.float64) / (size + 1)
    return f, best, -(1 - 1 / (size + 1)) / 2


def slowest(steps: int) -> Callable[[Tensor], Tensor]:
    """Gradient descent's worst quadratic for that many steps, with L = 1, x* = 0 and |x_0| = 1.

    Drori & Teboulle 2014, arXiv:1206.3209: Huber's loss with threshold 1/(2 steps + 1), on which
    f(x_k) - f* after these steps is 1/(4 steps + 2), their bound.
    """
    return lambda x: nn.functional.huber_loss(
        x, torch.zeros_like(x), reduction="sum", delta=1 / (2 * steps + 1)
    )


def logistic() -> tuple[Callable[[Tensor], Tensor], Tensor, float]:
    """Logistic regression on the breast cancer data: loss, its minimiser, L."""
    from sklearn.datasets import load_breast_cancer

    x, y = (torch.tensor(a).double() for a in load_breast_cancer(return_X_y=True))
    x = torch.cat([(x - x.mean(0)) / x.std(0), torch.ones(len(x), 1)], 1)

    def f(w: Tensor) -> Tensor:
        data = nn.functional.binary_cross_entropy_with_logits(x @ w, y)
        return data + PENALTY / 2 * w.square().sum()

    best = nn.Parameter(torch.zeros(x.shape[1], dtype=torch.float64))
    newton = Newton([best])
    for _ in range(60):
        newton.step(lambda: f(best))
    lipschitz = float(torch.linalg.eigvalsh(x.T @ x)[-1]) / (4 * len(x)) + PENALTY
    return f, best.detach(), lipschitz


def slope(k: Any, gaps: Any) -> float:
    """Of log gap against log k, by least squares."""
    return float(np.polyfit(np.log(k), np.log(gaps), 1)[0])


def nesterov(seeds: int = 5, steps: int = 1000, longest: int = 512) -> Found:
    """1/k of gradient descent against 1/k^2 of Nesterov's method on smooth convex functions.

    Slopes of log(f(x_k) - f*) against log k, and the largest share of the theory's bound. "slowest"
    and "worst quadratic": k steps on the function that is hardest for k steps, for gradient descent
    and for any method of first order, k = 32, 64, ..., in units of L |x_0 - x*|^2; nothing random
    (n=1). "logistic": breast cancer, one random start per seed, steps 10 to `steps`.
    """
    found = Found()
    ks = np.array([2**i for i in range(5, longest.bit_length())])
    for method in METHODS:
        gaps = []
        for k in ks:
            f = slowest(int(k))
            *_, x = points(method, f, torch.ones(1, dtype=torch.float64), 1.0, int(k))
            gaps.append(float(f(x)))
        if method == "sgd":  # the others arrive at the minimum
            found.add(f"slowest, slope: {method}", [slope(ks, gaps)])
        found.add(f"slowest, share of the bound: {method}", [
            max(gaps / bound(method, 1.0, 1.0, ks))
        ])  # fmt: skip
    for method in METHODS:
        gaps = []
        for k in ks:
            f, best, least = worst(2 * int(k) + 1)
            *_, x = points(method, f, torch.zeros_like(best), 4.0, int(k))
            gaps.append((float(f(x)) - least) / (4.0 * float(best.square().sum())))
        found.add(f"worst quadratic, slope: {method}", [slope(ks, gaps)])
        found.add(f"worst quadratic, share of the bound: {method}", [
            max(gaps / bound(method, 1.0, 1.0, ks))
        ])  # fmt: skip
    f, best, lipschitz = logistic()
    least = float(f(best))
    for method in METHODS:
        slopes, shares, last = [], [], []
        for seed in range(seeds):
            generator = torch.Generator().manual_seed(seed)
            start = torch.randn(len(best), generator=generator, dtype=torch.float64)
            k = np.arange(1, steps + 1)
            path = points(method, f, start, lipschitz, steps)
            gaps = np.array([float(f(x)) - least for x in path])
            distance = float((start - best).norm())
            slopes.append(slope(k[9:], gaps[9:]))
            shares.append(max(gaps / bound(method, lipschitz, distance, k)))
            last.append(gaps[-1])
        found.add(f"logistic, slope: {method}", slopes)
        found.add(f"logistic, share of the bound: {method}", shares)
        found.add(f"logistic, f - f* at the end: {method}", last)
    found.compare("logistic, slope", "sgd", METHODS[1:])
    return found


def fit(seeds: int = 5, steps: int = 8192) -> Found:
    """Least squares in closed form against the limit of gradient descent on the diabetes data.

    Reports |w_k - w| / |w| over features and intercept. w comes from
    steepest.full_batch.least_squares; w_0 is drawn from N(0, 100^2), or zero. "twice": every
    feature is given twice, so there are many solutions and the closed form gives the shortest.
    "twice, less the start": the distance without the part of w_0 that no gradient can change.
    """
    from sklearn.datasets import load_diabetes

    x, y = (torch.tensor(a) for a in load_diabetes(return_X_y=True))
    x = (x - x.mean(0)) / x.std(0)
    found = Found()
    for name, features in (("once", x), ("twice", torch.cat([x, x], 1))):
        exact = least_squares(features, y)
        goal = torch.cat([exact.coefficients, exact.intercept[None]])[:, None]
        inputs = torch.cat([features, torch.ones(len(x), 1, dtype=x.dtype)], 1)
        generator = torch.Generator().manual_seed(0)
        start = 100 * torch.randn(len(goal), seeds, generator=generator, dtype=x.dtype)
        start = torch.cat([start, torch.zeros_like(goal)], 1)  # a column per start, the last at 0
        # what lies in the null space of the inputs stays
        free = start - torch.linalg.pinv(inputs) @ (inputs @ start)
        values = torch.linalg.svdvals(inputs).square() / len(x)
        values = values[values > 1e-9]
        lr = float(2 / (values[0] + values[-1]))
        w = nn.Parameter(start.clone())
        optimizer = steepest.SGD([w], lr=lr)
        found.add(f"{name}, rank", [exact.rank])
        for k in range(1, steps + 1):
            optimizer.zero_grad()
            (inputs @ w - y[:, None]).square().sum().div(2 * len(x)).backward()
            optimizer.step()
            if k in {8, 64, 512, 4096, steps}:
                away = (w.detach() - goal) / goal.norm()
                left = ((w.detach() - goal - free) / goal.norm()).norm(dim=0)
                found.add(f"{name}, from random starts, step {k}", away[:, :-1].norm(dim=0))
                if name == "twice":
                    found.add(f"{name}, less the start, step {k}", left[:-1])
                found.add(f"{name}, from zero, step {k}", [float(away[:, -1].norm())])
    return found
