"""Rules that search a rate of their own, in NumPy: one for the parameters of all groups."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np

from .base import DECAY, UP, Array, Transcription

Item = tuple[int, int, Array, dict[str, Any], dict[str, Any]]


class _Joint(Transcription):
    """A rule that takes all parameters of all groups as one vector."""

    def _items(self, grads: list[list[Array | None]]) -> Iterator[Item]:
        """Every parameter that has a gradient: its place, gradient, state and options."""
        for i, group in enumerate(self.groups):
            for j, g in enumerate(grads[i]):
                if g is not None:
                    g = np.asarray(g, np.float64)
                    g = -g if group["maximize"] else g
                    yield i, j, g, self.state.setdefault((i, j), {}), group


def _dot(a: Array, b: Array) -> float:
    """The inner product over all elements."""
    return float(np.sum(a * b))


class SWATS(_Joint):
    """Keskar and Socher 2017, arXiv:1712.07628, algorithm 1, on all parameters as one vector."""

    defaults: ClassVar[dict[str, Any]] = {
        "lr": 0.001,
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "settled": 1e-9,
        "weight_decay": 0.0,
        "maximize": False,
    }

    def __init__(self, groups: list[dict[str, Any]], **options: Any) -> None:
        super().__init__(groups, **options)
        self.steps = 0
        self.average = 0.0
        self.rate: float | None = None  # Lambda, once there is one
        self.lr_then: list[float] = []

    def step(self, grads: list[list[Array | None]]) -> None:
        """Lines 3 to 25: beta2 and the tolerance of the one rate are those of the first group."""
        items = list(self._items(grads))
        if not items:
            return
        self.steps += 1
        pp = pg = 0.0
        for i, j, g, state, o in items:
            p = o["params"][j]
            g = g + o["weight_decay"] * p
            if self.rate is not None:
                o["params"][j] = p + self._sgd(g, state, o, self._scale(i))
            else:
                move = self._adam(g, state, o)
                o["params"][j] = p + move
                pp, pg = pp + _dot(move, move), pg + _dot(move, g)
        if self.rate is None and pg != 0:
            self._project(pp / -pg)

    def _project(self, gamma: float) -> None:
        """Lines 15 to 21: the rate of SGD that makes the same step, averaged until it settles."""
        beta2 = self.groups[0]["betas"][1]
        self.average = beta2 * self.average + (1 - beta2) * gamma
        corrected = self.average / (1 - beta2**self.steps)
        if self.steps > 1 and abs(corrected - gamma) < self.groups[0]["settled"]:
            self.rate = corrected
            self.lr_then = [group["lr"] for group in self.groups]

    def _scale(self, i: int) -> float:
        """How far a group's lr has gone from where it was at the switch."""
        lr, then = self.groups[i]["lr"], self.lr_then[i]
        return lr / then if then != 0 else float(lr != 0)

    def _sgd(self, g: Array, state: dict[str, Any], o: dict[str, Any], scale: float) -> Array:
        """Lines 6 and 7."""
        assert self.rate is not None
        beta1 = o["betas"][0]
        state["b"] = beta1 * state.get("b", 0.0) + g
        return -scale * self.rate * (1 - beta1) * state["b"]

    def _adam(self, g: Array, state: dict[str, Any], o: dict[str, Any]) -> Array:
        """Lines 10 to 12; eps stands beside the root that is not corrected."""
        beta1, beta2 = o["betas"]
        t = state["step"] = state.get("step", 0) + 1
        m = state["m"] = beta1 * state.get("m", 0.0) + (1 - beta1) * g
        v = state["v"] = beta2 * state.get("v", 0.0) + (1 - beta2) * g * g
        with np.errstate(divide="ignore", invalid="ignore"):  # eps may be 0
            direction = m / (np.sqrt(v) + o["eps"])
        return -o["lr"] * math.sqrt(1 - beta2**t) / (1 - beta1**t) * direction


class Prodigy(_Joint):
    """Mishchenko and Defazio 2023, arXiv:2306.06101, algorithm 4; prodigyopt 1.1.2."""

    defaults: ClassVar[dict[str, Any]] = {
        "lr": 1.0,
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "d0": 1e-6,
        "d_coef": 1.0,
        "growth_rate": math.inf,
        "weight_decay": 0.0,
        "maximize": False,
    }

    def __init__(self, groups: list[dict[str, Any]], **options: Any) -> None:
        super().__init__(groups, **options)
        for group in self.groups:
            group.update(d=group["d0"], d_max=group["d0"], d_numerator=0.0)

    def step(self, grads: list[list[Array | None]]) -> None:
        """The first group gives d, betas, d_coef and growth_rate; the largest lr is everyone's."""
        first, last = self.groups[0], self.groups[-1]
        d = first["d"]
        lr = max(group["lr"] for group in self.groups)
        if any(group["lr"] not in (lr, 0.0) for group in self.groups):
            raise RuntimeError("groups may differ in lr only by an lr of 0")
        rate = d * lr
        items = list(self._items(grads))
        above, below = self._measure(items, d, rate)
        if below == 0:
            return  # nothing was learnt: d and its numerator stay as they are too
        numerator = math.sqrt(first["betas"][1]) * first["d_numerator"] + above
        guess = first["d_coef"] * numerator / below
        if d == last["d0"]:
            d = max(d, guess)
        d_max = max(first["d_max"], guess)
        d = min(d_max, d * first["growth_rate"])
        for group in self.groups:
            group.update(d=d, d_max=d_max, d_numerator=numerator)
        for _, j, g, state, o in items:
            p = o["params"][j]
            p = p - o["weight_decay"] * rate * p
            m = state["m"] if first["betas"][0] > 0 else d * g
            o["params"][j] = p - rate * m / (np.sqrt(state["v"]) + d * o["eps"])

    def _measure(self, items: list[Item], d: float, rate: float) -> tuple[float, float]:
        """The averages move by d (not at lr 0); the sums of the estimate of d are returned."""
        beta1, beta2 = self.groups[0]["betas"]
        beta3 = math.sqrt(beta2)
        above = below = 0.0
        for _, j, g, state, o in items:
            p = o["params"][j]
            if not state:
                zero = np.zeros_like(p)
                state.update(m=zero, v=zero, s=zero, start=p.copy())
            if o["lr"] > 0:
                weight = d / o["d0"] * rate
                above += weight * _dot(g, state["start"] - p)
                state["m"] = beta1 * state["m"] + d * (1 - beta1) * g
                state["v"] = beta2 * state["v"] + d * d * (1 - beta2) * g * g
                state["s"] = beta3 * state["s"] + weight * g
                below += float(np.sum(np.abs(state["s"])))
        return above, below


class YellowFin(_Joint):
    """Zhang and Mitliagkas 2017, arXiv:1706.03471, algorithms 1 to 4; no eps anywhere."""

    defaults: ClassVar[dict[str, Any]] = {
        "lr": 1.0,
        "beta": 0.999,
        "weight_decay": 0.0,
        "maximize": False,
    }
    window = 20

    def __init__(self, groups: list[dict[str, Any]], **options: Any) -> None:
        super().__init__(groups, **options)
        self.steps = 0
        self.recent: list[float] = []
        self.averages: dict[str, float] = {}

    def step(self, grads: list[list[Array | None]]) -> None:
        """Algorithm 1, then momentum with the rate outside; beta is that of the first group."""
        items = [
            (i, j, g + o["weight_decay"] * o["params"][j], state, o)
            for i, j, g, state, o in self._items(grads)
        ]
        if not items:
            return
        self.steps += 1
        momentum, rate = self._tune(items)
        for _, j, g, state, o in items:
            b = state["b"] = momentum * state.get("b", 0.0) + g
            o["params"][j] = o["params"][j] - o["lr"] * rate * b

    def _smooth(self, name: str, value: float) -> float:
        """An exponential average without the bias of its start at zero."""
        beta = self.groups[0]["beta"]
        self.averages[name] = beta * self.averages.get(name, 0.0) + (1 - beta) * value
        return self.averages[name] / (1 - beta**self.steps)

    def _tune(self, items: list[Item]) -> tuple[float, float]:
        """Algorithms 2 to 4 and the single step; the rate rises over ten windows."""
        square = sum(_dot(g, g) for _, _, g, _, _ in items)
        self.recent = [*self.recent, square][-self.window :]
        high = self._smooth("high", max(self.recent))
        low = self._smooth("low", min(self.recent))
        squares = self._smooth("squares", square)
        size = self._smooth("size", math.sqrt(square))
        distance = self._smooth("distance", size / squares if squares > 0 else 0.0)
        mean = sum(self._squared_mean(g, state) for _, _, g, state, _ in items)
        variance = max(squares - mean, 0.0)
        short = self._shortfall(variance, distance, high, low)
        rate = short**2 / low if low > 0 else 0.0  # its limit
        return (1 - short) ** 2, rate * min(1.0, self.steps / (10 * self.window))

    def _squared_mean(self, g: Array, state: dict[str, Any]) -> float:
        """The squared norm of a parameter's average gradient, corrected by its own steps."""
        beta = self.groups[0]["beta"]
        t = state["step"] = state.get("step", 0) + 1
        m = state["m"] = beta * state.get("m", 0.0) + (1 - beta) * g
        return _dot(m, m) / (1 - beta**t) ** 2

    @staticmethod
    def _shortfall(variance: float, distance: float, high: float, low: float) -> float:
        """1 - sqrt(momentum): the lesser of what the noise and the curvatures leave."""
        if low <= 0:
            return 0.0
        robust = 2 * math.sqrt(low) / (math.sqrt(high) + math.sqrt(low))
        if variance <= 0:
            return robust
        # y^3 + k y = k has one real root: where x^2 D^2 + (1 - x)^4 C / h^2 is least, y = 1 - x.
        k = (distance * low) ** 2 / (2 * variance)
        if k <= 0:
            return 0.0
        noisy = 2 * math.sqrt(k / 3) * math.sinh(math.asinh(1.5 * math.sqrt(3 / k)) / 3)
        return min(noisy, robust)


CASES = {
    "SWATS": (
        SWATS,
        [({"lr": 0.01}, {**DECAY, **UP}), ({"lr": 0.01, "settled": 1e3}, {"lr": 0.02, **DECAY})],
    ),
    "Prodigy": (
        Prodigy,
        [
            ({}, {**DECAY, **UP}),
            ({"d0": 1e-4, "growth_rate": 1.02}, {"d0": 1e-4, "growth_rate": 1.02, "eps": 1e-6}),
        ],
    ),
    "YellowFin": (YellowFin, [({}, {**DECAY, **UP}), ({"beta": 0.9, "lr": 0.5}, {"beta": 0.9})]),
}
