"""Descent, momentum, averaging, and rates per coordinate from signs or sums of squares."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from .base import DECAY, UP, Array, Transcription


def _slope(p: Array, g: Array, o: dict[str, Any]) -> Array:
    """The direction of ascent: sign turned for maximize, then the L2 term (torch's order)."""
    s = -g if o["maximize"] else g
    decay = o.get("weight_decay", 0)
    return s + decay * p if decay != 0 else s


def _ratio(a: Array, b: Array) -> Array:
    """a / b by IEEE: 0 / 0 is nan, as in torch, without a warning."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return a / b


def _heavy_ball(p: Array, s: Array, state: dict[str, Any], o: dict[str, Any], look: bool) -> Array:
    """b = mu b + (1 - dampening) s, first s itself; look: s + mu b; undampened s where mu is 0."""
    mu = o["momentum"]
    if mu == 0:
        return p - o["lr"] * s
    if "momentum_buffer" in state:
        b = mu * state["momentum_buffer"] + (1 - o["dampening"]) * s
    else:
        b = s
    state["momentum_buffer"] = b
    return p - o["lr"] * (s + mu * b if look else b)


class SGD(Transcription):
    """Robbins and Monro 1951; Polyak 1964; Sutskever et al. 2013; torch 2.13 optim.SGD."""

    defaults: ClassVar[dict[str, Any]] = {
        "lr": 1e-3,
        "momentum": 0,
        "dampening": 0,
        "weight_decay": 0,
        "nesterov": False,
        "maximize": False,
    }

    def update(self, p: Array, g: Array, state: dict[str, Any], o: dict[str, Any]) -> Array:
        """Plain descent without momentum, else torch's buffer."""
        return _heavy_ball(p, _slope(p, g, o), state, o, o["nesterov"])


class Momentum(Transcription):
    """Polyak 1964, doi:10.1016/0041-5553(64)90137-5; torch 2.13 optim.SGD with momentum."""

    defaults: ClassVar[dict[str, Any]] = {
        "lr": 1e-3,
        "momentum": 0.9,
        "dampening": 0.0,
        "weight_decay": 0.0,
        "maximize": False,
    }

    def update(self, p: Array, g: Array, state: dict[str, Any], o: dict[str, Any]) -> Array:
        """p - lr b."""
        return _heavy_ball(p, _slope(p, g, o), state, o, False)


class Nesterov(Transcription):
    """Nesterov 1983; Sutskever et al. 2013; torch 2.13 optim.SGD with nesterov=True."""

    defaults: ClassVar[dict[str, Any]] = Momentum.defaults

    def update(self, p: Array, g: Array, state: dict[str, Any], o: dict[str, Any]) -> Array:
        """p - lr (s + mu b)."""
        return _heavy_ball(p, _slope(p, g, o), state, o, True)


class ClassicalMomentum(Transcription):
    """Polyak 1964; Ruder 2016, arXiv:1609.04747, section 4.1; v is the move (its sign included)."""

    defaults: ClassVar[dict[str, Any]] = {
        "lr": 1e-3,
        "momentum": 0.9,
        "weight_decay": 0.0,
        "maximize": False,
    }

    def update(self, p: Array, g: Array, state: dict[str, Any], o: dict[str, Any]) -> Array:
        """v = mu v - lr s; p + v."""
        v = o["momentum"] * state.get("v", np.zeros_like(p)) - o["lr"] * _slope(p, g, o)
        state["v"] = v
        return p + v


class ClassicalNesterov(Transcription):
    """Sutskever et al. 2013, PMLR 28(3), equations 3 and 4; p is theta + mu v."""

    defaults: ClassVar[dict[str, Any]] = ClassicalMomentum.defaults

    def update(self, p: Array, g: Array, state: dict[str, Any], o: dict[str, Any]) -> Array:
        """theta and v make a step, and the look-ahead from there is stored."""
        mu = o["momentum"]
        old = state.get("v", np.zeros_like(p))
        theta = p - mu * old
        v = mu * old - o["lr"] * _slope(p, g, o)
        state["v"] = v
        return theta + v + mu * v


class ASGD(Transcription):
    """Polyak and Juditsky 1992, doi:10.1137/0330046; torch 2.13 optim.ASGD."""

    defaults: ClassVar[dict[str, Any]] = {
        "lr": 0.01,
        "lambd": 1e-4,
        "alpha": 0.75,
        "t0": 1e6,
        "weight_decay": 0,
        "maximize": False,
    }

    def update(self, p: Array, g: Array, state: dict[str, Any], o: dict[str, Any]) -> Array:
        """eta and mu are those of the step before; the first are lr and 1."""
        if not state:
            state.update(step=0, eta=o["lr"], mu=1.0, ax=np.zeros_like(p))
        t = state["step"] = state["step"] + 1
        eta, mu = state["eta"], state["mu"]
        new = (1 - o["lambd"] * eta) * p - eta * _slope(p, g, o)
        state["ax"] = new if mu == 1 else state["ax"] + mu * (new - state["ax"])
        state["eta"] = o["lr"] / (1 + o["lambd"] * o["lr"] * t) ** o["alpha"]
        state["mu"] = 1 / max(1, t - o["t0"])
        return new


class Rprop(Transcription):
    """Riedmiller and Braun 1993, doi:10.1109/ICNN.1993.298623; torch 2.13 optim.Rprop."""

    defaults: ClassVar[dict[str, Any]] = {
        "lr": 0.01,
        "etas": (0.5, 1.2),
        "step_sizes": (1e-6, 50),
        "maximize": False,
    }

    def update(self, p: Array, g: Array, state: dict[str, Any], o: dict[str, Any]) -> Array:
        """After a turn the coordinate rests and forgets its sign; lr is the first size alone."""
        s = _slope(p, g, o)
        if not state:
            state.update(prev=np.zeros_like(p), step_size=np.full_like(p, o["lr"]))
        shrink, grow = o["etas"]
        same = np.sign(s) * np.sign(state["prev"])
        factor = np.where(same > 0, grow, np.where(same < 0, shrink, 1.0))
        size = np.clip(state["step_size"] * factor, *o["step_sizes"])
        s = np.where(same < 0, 0.0, s)
        state.update(prev=s, step_size=size)
        return p - size * np.sign(s)


class Adagrad(Transcription):
    """Duchi, Hazan and Singer 2011, JMLR 12; torch 2.13 optim.Adagrad."""

    defaults: ClassVar[dict[str, Any]] = {
        "lr": 0.01,
        "lr_decay": 0,
        "weight_decay": 0,
        "initial_accumulator_value": 0,
        "eps": 1e-10,
        "maximize": False,
    }

    def update(self, p: Array, g: Array, state: dict[str, Any], o: dict[str, Any]) -> Array:
        """lr falls as 1 / (1 + (t - 1) lr_decay); eps is beside the root."""
        s = _slope(p, g, o)
        before = state.get("step", 0)
        total = state.get("sum", np.full_like(p, o["initial_accumulator_value"])) + s**2
        state.update(step=before + 1, sum=total)
        rate = o["lr"] / (1 + before * o["lr_decay"])
        return p - rate * _ratio(s, np.sqrt(total) + o["eps"])


class Adadelta(Transcription):
    """Zeiler 2012, arXiv:1212.5701, algorithm 1; lr from torch 2.13 optim.Adadelta."""

    defaults: ClassVar[dict[str, Any]] = {
        "lr": 1.0,
        "rho": 0.9,
        "eps": 1e-6,
        "weight_decay": 0,
        "maximize": False,
    }

    def update(self, p: Array, g: Array, state: dict[str, Any], o: dict[str, Any]) -> Array:
        """The averaged move has no lr in it."""
        s, rho, eps = _slope(p, g, o), o["rho"], o["eps"]
        moves = state.get("acc_delta", np.zeros_like(p))
        squares = rho * state.get("square_avg", np.zeros_like(p)) + (1 - rho) * s**2
        move = s * _ratio(np.sqrt(moves + eps), np.sqrt(squares + eps))
        state.update(square_avg=squares, acc_delta=rho * moves + (1 - rho) * move**2)
        return p - o["lr"] * move


class RMSprop(Transcription):
    """Tieleman and Hinton 2012; Graves 2013, arXiv:1308.0850; torch 2.13 optim.RMSprop."""

    defaults: ClassVar[dict[str, Any]] = {
        "lr": 0.01,
        "alpha": 0.99,
        "eps": 1e-8,
        "weight_decay": 0,
        "momentum": 0,
        "centered": False,
        "maximize": False,
    }

    def update(self, p: Array, g: Array, state: dict[str, Any], o: dict[str, Any]) -> Array:
        """eps beside the root, lr outside the momentum; a variance below 0 by rounding is nan."""
        s, alpha = _slope(p, g, o), o["alpha"]
        v = alpha * state.get("square_avg", np.zeros_like(p)) + (1 - alpha) * s**2
        state["square_avg"] = v
        if o["centered"]:
            mean = alpha * state.get("grad_avg", np.zeros_like(p)) + (1 - alpha) * s
            state["grad_avg"] = mean
            v = v - mean**2
        with np.errstate(invalid="ignore"):
            move = _ratio(s, np.sqrt(v) + o["eps"])
        if o["momentum"] > 0:
            move = o["momentum"] * state.get("momentum_buffer", np.zeros_like(p)) + move
            state["momentum_buffer"] = move
        return p - o["lr"] * move


CASES = {
    "SGD": (
        SGD,
        [
            ({}, {"lr": 0.1, **DECAY}),
            ({"momentum": 0.9}, {"momentum": 0.5, "dampening": 0.3, **DECAY, **UP}),
            ({"momentum": 0.9, "nesterov": True}, DECAY),
        ],
    ),
    "Momentum": (Momentum, [({}, {"momentum": 0.5, "dampening": 0.3, **DECAY, **UP})]),
    "Nesterov": (Nesterov, [({}, {"momentum": 0.5, **DECAY, **UP})]),
    "ClassicalMomentum": (ClassicalMomentum, [({}, {"momentum": 0.5, **DECAY, **UP})]),
    "ClassicalNesterov": (ClassicalNesterov, [({}, {"momentum": 0.5, **DECAY, **UP})]),
    "ASGD": (ASGD, [({"t0": 20.0}, {"t0": 3.0, "lambd": 0.01, "alpha": 0.6, **DECAY, **UP})]),
    "Rprop": (Rprop, [({}, {"etas": (0.3, 1.5), "step_sizes": (1e-3, 0.1), **UP})]),
    "Adagrad": (
        Adagrad,
        [({}, {"lr_decay": 0.1, "initial_accumulator_value": 0.7, **DECAY, **UP})],
    ),
    "Adadelta": (Adadelta, [({}, {"rho": 0.95, "eps": 1e-3, **DECAY, **UP})]),
    "RMSprop": (
        RMSprop,
        [({}, {"alpha": 0.9, **DECAY}), ({"centered": True}, {"momentum": 0.9, **UP})],
    ),
}
