"""Rules that measure a whole layer, in NumPy: norms of the parameter, the gradient, the step."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from .base import DECAY, SHORT, UP, Array, Transcription


def _norm(x: Array) -> float:
    """The Euclidean norm of all elements, whatever the shape."""
    return float(np.linalg.norm(np.ravel(x)))


def _rms(x: Array) -> float:
    """The root of the mean square of all elements."""
    return _norm(x) / x.size**0.5


def _descent(g: Array, o: dict[str, Any]) -> Array:
    """The gradient to descend along."""
    return -g if o["maximize"] else g


def _count(state: dict[str, Any]) -> int:
    """The number of this step, from 1, of the parameter's own steps."""
    state["step"] = state.get("step", 0) + 1
    return state["step"]


def _average(old: Array | float, new: Array | float, beta: float) -> Any:
    """One step of an exponential moving average."""
    return beta * old + (1 - beta) * new


def _over(a: Array, b: Array) -> Array:
    """The quotient as IEEE 754 has it: with eps=0, 0/0 is nan and says nothing."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return a / b


class Fromage(Transcription):
    """Bernstein et al. 2020, arXiv:2002.03432, algorithm 1; zero norms as in the authors' code."""

    defaults: ClassVar[dict[str, Any]] = {"lr": 0.01, "weight_decay": 0.0, "maximize": False}

    def update(self, p: Array, g: Array, state: dict[str, Any], o: dict[str, Any]) -> Array:
        """Algorithm 1: a step as long as lr * norm(p), then the shrinking by the hypotenuse."""
        g, lr = _descent(g, o), o["lr"]
        p = p * (1 - lr * o["weight_decay"])
        size, slope = _norm(p), _norm(g)
        ratio = size / slope if size > 0 and slope > 0 else 1.0
        return (p - lr * ratio * g) / (1 + lr**2) ** 0.5


class LARS(Transcription):
    """You, Gitman and Ginsburg 2017, arXiv:1708.03888, algorithm 1; a ratio without norms is 1."""

    defaults: ClassVar[dict[str, Any]] = {
        "lr": 1.0,
        "momentum": 0.9,
        "trust_coefficient": 0.001,
        "weight_decay": 0.0,
        "maximize": False,
    }

    def update(self, p: Array, g: Array, state: dict[str, Any], o: dict[str, Any]) -> Array:
        """Algorithm 1: the rate stands inside the momentum."""
        g, decay = _descent(g, o), o["weight_decay"]
        size = _norm(p)
        below = _norm(g) + decay * size
        local = o["trust_coefficient"] * size / below if size > 0 and below > 0 else 1.0
        state["v"] = o["momentum"] * state.get("v", 0.0) + o["lr"] * local * (g + decay * p)
        return p - state["v"]


class LAMB(Transcription):
    """You et al. 2020, arXiv:1904.00962, algorithm 2 with phi the identity; optax.lamb."""

    defaults: ClassVar[dict[str, Any]] = {
        "lr": 0.001,
        "betas": (0.9, 0.999),
        "eps": 1e-6,
        "weight_decay": 0.0,
        "maximize": False,
    }

    def update(self, p: Array, g: Array, state: dict[str, Any], o: dict[str, Any]) -> Array:
        """Algorithm 2; where a norm is zero the ratio is 1, as in optax."""
        g, t = _descent(g, o), _count(state)
        beta1, beta2 = o["betas"]
        m = state["m"] = _average(state.get("m", 0.0), g, beta1)
        v = state["v"] = _average(state.get("v", 0.0), g * g, beta2)
        r = _over(m / (1 - beta1**t), np.sqrt(v / (1 - beta2**t)) + o["eps"])
        r = r + o["weight_decay"] * p
        size, step = _norm(p), _norm(r)
        ratio = 1.0 if size == 0 or step == 0 else size / step
        return p - o["lr"] * ratio * r


class NovoGrad(Transcription):
    """Ginsburg et al. 2019, arXiv:1905.11286, algorithm 1; optax.novograd."""

    defaults: ClassVar[dict[str, Any]] = {
        "lr": 0.01,
        "betas": (0.95, 0.98),
        "eps": 1e-8,
        "weight_decay": 0.0,
        "maximize": False,
    }

    def update(self, p: Array, g: Array, state: dict[str, Any], o: dict[str, Any]) -> Array:
        """Algorithm 1: the decay joins the scaled gradient; both states start at the first one."""
        g, t = _descent(g, o), _count(state)
        beta1, beta2 = o["betas"]
        energy = np.sum(g * g)
        v = state["v"] = energy if t == 1 else _average(state["v"], energy, beta2)
        scaled = _over(g, np.sqrt(v) + o["eps"]) + o["weight_decay"] * p
        m = state["m"] = scaled if t == 1 else beta1 * state["m"] + scaled
        return p - o["lr"] * m


class MARS(Transcription):
    """Yuan et al. 2024, arXiv:2411.10438, algorithm 1; AGI-Arena/MARS, MARS-AdamW approximate."""

    defaults: ClassVar[dict[str, Any]] = {
        "lr": 0.003,
        "betas": (0.95, 0.99),
        "eps": 1e-8,
        "gamma": 0.025,
        "weight_decay": 0.0,
        "maximize": False,
    }

    def update(self, p: Array, g: Array, state: dict[str, Any], o: dict[str, Any]) -> Array:
        """The gradient before the first one is zero, as in the authors' code."""
        g, t = _descent(g, o), _count(state)
        beta1, beta2 = o["betas"]
        last, state["last"] = state.get("last", np.zeros_like(g)), g.copy()
        c = g + o["gamma"] * beta1 / (1 - beta1) * (g - last)
        c = c / max(1.0, _norm(c))
        m = state["m"] = _average(state.get("m", 0.0), c, beta1)
        v = state["v"] = _average(state.get("v", 0.0), c * c, beta2)
        step = _over(m / (1 - beta1**t), np.sqrt(v / (1 - beta2**t)) + o["eps"])
        return p * (1 - o["lr"] * o["weight_decay"]) - o["lr"] * step


class Adafactor(Transcription):
    """Shazeer and Stern 2018, arXiv:1804.04235, algorithms 4 and 5; torch.optim.Adafactor."""

    defaults: ClassVar[dict[str, Any]] = {
        "lr": 0.01,
        "beta2_decay": -0.8,
        "eps": (None, 0.001),
        "d": 1.0,
        "weight_decay": 0.0,
        "maximize": False,
        "dtype_eps": float(np.finfo(np.float64).eps),
    }

    def update(self, p: Array, g: Array, state: dict[str, Any], o: dict[str, Any]) -> Array:
        """The last two dimensions are the rows and columns; the share is of p before its decay."""
        g, t = _descent(g, o), _count(state)
        floor, least = o["eps"]
        if floor is None or floor < 0:
            floor = o["dtype_eps"]
        beta2 = 1 - float(t) ** o["beta2_decay"]
        share = max(least, _rms(p)) * min(o["lr"], t**-0.5)
        squares = g * g
        if g.ndim < 2:
            estimate = state["v"] = _average(state.get("v", 0.0), squares, beta2)
        else:
            rows = squares.mean(axis=-1, keepdims=True)
            columns = squares.mean(axis=-2, keepdims=True)
            rows = state["row"] = _average(state.get("row", 0.0), rows, beta2)
            columns = state["column"] = _average(state.get("column", 0.0), columns, beta2)
            total = np.maximum(rows.mean(axis=-2, keepdims=True), floor)
            estimate = _over(rows * columns, total)
        u = _over(g, np.sqrt(np.maximum(estimate, floor**2)))
        p = p * (1 - o["lr"] * o["weight_decay"])
        return p - share / max(1.0, _rms(u) / o["d"]) * u


CASES = {
    "Fromage": (Fromage, [({}, {"lr": 0.1, **DECAY, **UP})]),
    "LARS": (LARS, [({"lr": 0.1}, {"momentum": 0.5, "trust_coefficient": 0.02, **DECAY, **UP})]),
    "LAMB": (LAMB, [({}, {**SHORT, "eps": 1e-3, **DECAY, **UP})]),
    "NovoGrad": (NovoGrad, [({}, {**SHORT, "eps": 1e-3, **DECAY, **UP})]),
    "MARS": (MARS, [({}, {**SHORT, "gamma": 0.1, **DECAY, **UP})]),
    "Adafactor": (
        Adafactor,
        [({}, {"eps": (1e-5, 1e-2), "d": 1.5, "beta2_decay": -0.6, **DECAY, **UP})],
    ),
}
