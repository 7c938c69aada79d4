"""Convex problems with known rates: Nesterov's acceleration, and least squares."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from results import Results
from torch import Tensor, nn

import steepest
from steepest.full_batch import Newton, least_squares

PENALTY = 1e-5
"""Strong convexity of the logistic regression: its penalty is PENALTY/2 |w|^2."""
METHODS = ("sgd", "nesterov", "classical_nesterov", "textbook")


def points(
    method: str, loss: Callable[[Tensor], Tensor], start: Tensor, lipschitz: float, steps: int
) -> Iterator[Tensor]:
    """The points x_1, x_2, ... of gradient descent with lr 1/L, or of Nesterov's method.

    The rules' parameter is Nesterov's y_k, where the gradient is taken. The bound applies to x_k,
    which is y_k minus the gradient step. In a step, the rules use the same momentum for the buffer
    and for the look-ahead; the textbook uses the previous step's momentum for the buffer.
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
    """Nesterov's method with two sequences, as a plain loop.

    x_k = y_k - grad f(y_k)/L, y_(k+1) = x_k + (k - 1)/(k + 2) (x_k - x_(k-1)).
    """
    last_x, y = start, start
    for k in range(1, steps + 1):
        y = y.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(y), y)
        x = y.detach() - gradient / lipschitz
        y = x + (k - 1) / (k + 2) * (x - last_x)
        last_x = x
        yield x


def bound(method: str, lipschitz: float, distance: float, k: Any) -> Any:
    """The upper bound on f(x_k) - f* for an L-smooth convex f.

    L |x_0 - x*|^2 / (2k) for gradient descent, 2 L |x_0 - x*|^2 / (k + 1)^2 for Nesterov's method:
    Nesterov, Lectures on Convex Optimization, 2018, section 2; Beck & Teboulle 2009,
    doi:10.1137/080716542, theorems 3.1 and 4.4. The proof holds for t_k = (k + 1)/2, which is
    momentum (k - 1)/(k + 2).
    """
    scale = lipschitz * distance**2
    return scale / (2 * k) if method == "sgd" else 2 * scale / (k + 1) ** 2


def worst(size: int) -> tuple[Callable[[Tensor], Tensor], Tensor, float]:
    """Nesterov's worst quadratic for (size - 1)/2 steps, with L = 4. Returns f, x* and f*.

    Lectures on Convex Optimization, 2018, section 2.1.2.
    """

    def f(x: Tensor) -> Tensor:
        return (x[0] ** 2 + x.diff().square().sum() + x[-1] ** 2) / 2 - x[0]

    best = 1 - torch.arange(1, size + 1, dtype=torch.float64) / (size + 1)
    return f, best, -(1 - 1 / (size + 1)) / 2


def slowest(steps: int) -> Callable[[Tensor], Tensor]:
    """Gradient descent's worst function for this many steps, with L = 1, x* = 0 and |x_0| = 1.

    Drori & Teboulle 2014, arXiv:1206.3209: Huber's loss with threshold 1/(2 steps + 1). After these
    steps f(x_k) - f* equals their bound, 1/(4 steps + 2).
    """
    return lambda x: nn.functional.huber_loss(
        x, torch.zeros_like(x), reduction="sum", delta=1 / (2 * steps + 1)
    )


def logistic() -> tuple[Callable[[Tensor], Tensor], Tensor, float]:
    """Logistic regression on the breast cancer data. Returns the loss, its minimiser and L."""
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
    """The slope of log gap against log k, by least squares."""
    return float(np.polyfit(np.log(k), np.log(gaps), 1)[0])


def nesterov(seeds: int = 5, steps: int = 1000, longest: int = 512) -> Results:
    """1/k of gradient descent against 1/k^2 of Nesterov's method on smooth convex functions.

    Reports the slope of log(f(x_k) - f*) against log k, and the largest ratio to the theory's bound
    ("share of the bound"). "slowest": k = 32, 64, ... steps on gradient descent's worst function
    for k steps. "worst quadratic": the same on the worst function for any first-order method. Both
    are in units of L |x_0 - x*|^2 and deterministic (n=1). "logistic": breast cancer, one random
    start per seed, steps 10 to `steps`.
    """
    results = Results()
    ks = np.array([2**i for i in range(5, longest.bit_length())])
    for method in METHODS:
        gaps = []
        for k in ks:
            f = slowest(int(k))
            *_, x = points(method, f, torch.ones(1, dtype=torch.float64), 1.0, int(k))
            gaps.append(float(f(x)))
        if method == "sgd":  # the others reach the minimum exactly: no slope
            results.add(f"slowest, slope: {method}", [slope(ks, gaps)])
        share = max(gaps / bound(method, 1.0, 1.0, ks))
        results.add(f"slowest, share of the bound: {method}", [share])
    for method in METHODS:
        gaps = []
        for k in ks:
            f, best, least = worst(2 * int(k) + 1)
            *_, x = points(method, f, torch.zeros_like(best), 4.0, int(k))
            gaps.append((float(f(x)) - least) / (4.0 * float(best.square().sum())))
        results.add(f"worst quadratic, slope: {method}", [slope(ks, gaps)])
        share = max(gaps / bound(method, 1.0, 1.0, ks))
        results.add(f"worst quadratic, share of the bound: {method}", [share])
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
        results.add(f"logistic, slope: {method}", slopes)
        results.add(f"logistic, share of the bound: {method}", shares)
        results.add(f"logistic, f - f* at the end: {method}", last)
    results.compare("logistic, slope", "sgd", METHODS[1:])
    return results


def fit(seeds: int = 5, steps: int = 8192) -> Results:
    """Least squares in closed form against the limit of gradient descent on the diabetes data.

    Reports |w_k - w| / |w| over features and intercept. w comes from
    steepest.full_batch.least_squares; w_0 is drawn from N(0, 100^2), or zero. "twice": every
    feature is given twice, so there are many solutions and the closed form gives the shortest.
    "twice, less the start": the distance without the part of w_0 that no gradient can change.
    """
    from sklearn.datasets import load_diabetes

    x, y = (torch.tensor(a) for a in load_diabetes(return_X_y=True))
    x = (x - x.mean(0)) / x.std(0)
    results = Results()
    for name, features in (("once", x), ("twice", torch.cat([x, x], 1))):
        exact = least_squares(features, y)
        goal = torch.cat([exact.coefficients, exact.intercept[None]])[:, None]
        inputs = torch.cat([features, torch.ones(len(x), 1, dtype=x.dtype)], 1)
        generator = torch.Generator().manual_seed(0)
        start = 100 * torch.randn(len(goal), seeds, generator=generator, dtype=x.dtype)
        start = torch.cat([start, torch.zeros_like(goal)], 1)  # a column per start, the last is 0
        # the part of the start in the null space of the inputs, which no gradient changes
        free = start - torch.linalg.pinv(inputs) @ (inputs @ start)
        values = torch.linalg.svdvals(inputs).square() / len(x)
        values = values[values > 1e-9]
        lr = float(2 / (values[0] + values[-1]))
        w = nn.Parameter(start.clone())
        optimizer = steepest.SGD([w], lr=lr)
        results.add(f"{name}, rank", [exact.rank])
        for k in range(1, steps + 1):
            optimizer.zero_grad()
            (inputs @ w - y[:, None]).square().sum().div(2 * len(x)).backward()
            optimizer.step()
            if k in {8, 64, 512, 4096, steps}:
                error = (w.detach() - goal) / goal.norm()
                reducible = ((w.detach() - goal - free) / goal.norm()).norm(dim=0)
                results.add(f"{name}, from random starts, step {k}", error[:, :-1].norm(dim=0))
                if name == "twice":
                    results.add(f"{name}, less the start, step {k}", reducible[:-1])
                results.add(f"{name}, from zero, step {k}", [float(error[:, -1].norm())])
    return results
