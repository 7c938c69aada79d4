"""Sign methods and Schedule-Free: NumPy transcriptions in float64."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from .base import DECAY, SHORT, UP, Array, Transcription

Options = dict[str, Any]


def blend(old: Array, new: Array, kept: float) -> Array:
    """The weighted average of two arrays, `kept` of it the old one."""
    return kept * old + (1 - kept) * new


def ascent_or_descent(g: Array, o: Options) -> Array:
    """The gradient of what is minimized."""
    return -g if o["maximize"] else g


class Signum(Transcription):
    """Bernstein et al. 2018, algorithm 2; optax.signum 0.2.8 where momentum > 0."""

    defaults: ClassVar[Options] = {
        "lr": 1e-4,
        "momentum": 0.9,
        "weight_decay": 0.0,
        "maximize": False,
    }

    def update(self, p: Array, g: Array, state: Options, o: Options) -> Array:
        """A step of lr against the sign of the averaged gradient."""
        g = ascent_or_descent(g, o)
        state["m"] = blend(state.get("m", np.zeros_like(g)), g, o["momentum"])
        return p * (1 - o["lr"] * o["weight_decay"]) - o["lr"] * np.sign(state["m"])


class Lion(Transcription):
    """Chen et al. 2023, algorithm 2."""

    defaults: ClassVar[Options] = {
        "lr": 1e-4,
        "betas": (0.9, 0.99),
        "weight_decay": 0.0,
        "maximize": False,
    }

    def update(self, p: Array, g: Array, state: Options, o: Options) -> Array:
        """The sign of one blend is the move; another blend is remembered."""
        beta1, beta2 = o["betas"]
        g = ascent_or_descent(g, o)
        m = state.get("m", np.zeros_like(g))
        state["m"] = blend(m, g, beta2)
        direction = np.sign(blend(m, g, beta1))
        return p - o["lr"] * (direction + o["weight_decay"] * p)


class Grams(Transcription):
    """Cao, Li and Song 2024, as grams-pytorch 0.0.2 has it."""

    defaults: ClassVar[Options] = {
        "lr": 1e-3,
        "betas": (0.9, 0.999),
        "eps": 1e-6,
        "weight_decay": 0.0,
        "maximize": False,
    }

    def update(self, p: Array, g: Array, state: Options, o: Options) -> Array:
        """The length of Adam's step in the direction of the gradient's sign."""
        beta1, beta2 = o["betas"]
        g = ascent_or_descent(g, o)
        t = state["t"] = state.get("t", 0) + 1
        zero = np.zeros_like(g)
        m = state["m"] = blend(state.get("m", zero), g, beta1)
        v = state["v"] = blend(state.get("v", zero), g * g, beta2)
        rate = o["lr"] * np.sqrt(1 - beta2**t) / (1 - beta1**t)
        with np.errstate(divide="ignore", invalid="ignore"):
            length = np.abs(m) / (np.sqrt(v) + o["eps"])
            return p * (1 - o["lr"] * o["weight_decay"]) - rate * length * np.sign(g)


def free_step(p: Array, move: Array, beta: float, state: Options, o: Options) -> Array:
    """z makes the move, x takes z into its weighted average; returned is y, between them."""
    t = state["t"]
    lr = o["lr"] * (min(1.0, t / o["warmup_steps"]) if o["warmup_steps"] else 1.0)
    peak = state["peak"] = max(state.get("peak", 0.0), lr)
    weight = t ** o["r"] * peak ** o["weight_lr_power"]
    total = state["total"] = state.get("total", 0.0) + weight
    share = weight / total if total else 0.0
    z = state["z"] = state.get("z", p) - lr * move
    x = state["x"] = blend(state.get("x", p), z, 1 - share)
    return blend(x, z, beta)


class SGDScheduleFree(Transcription):
    """Defazio et al. 2024, equations 3 to 5; warm-up and weights of schedulefree 1.4.1."""

    defaults: ClassVar[Options] = {
        "lr": 1.0,
        "momentum": 0.9,
        "warmup_steps": 0.0,
        "r": 0.0,
        "weight_lr_power": 2.0,
        "weight_decay": 0.0,
        "maximize": False,
    }

    def update(self, p: Array, g: Array, state: Options, o: Options) -> Array:
        """Gradient descent of z, by gradients and decay at y."""
        g = ascent_or_descent(g, o)
        if o["weight_decay"]:
            g = g + o["weight_decay"] * p
        state["t"] = state.get("t", 0) + 1
        return free_step(p, g, o["momentum"], state, o)


class AdamWScheduleFree(Transcription):
    """Defazio et al. 2024, algorithm 1; correction and weights of schedulefree 1.4.1."""

    defaults: ClassVar[Options] = {
        "lr": 0.0025,
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "weight_decay": 0.0,
        "warmup_steps": 0.0,
        "r": 0.0,
        "weight_lr_power": 2.0,
        "maximize": False,
    }

    def update(self, p: Array, g: Array, state: Options, o: Options) -> Array:
        """RMSprop's step of z, corrected for v's start, with the decay at y."""
        beta1, beta2 = o["betas"]
        g = ascent_or_descent(g, o)
        t = state["t"] = state.get("t", 0) + 1
        v = state["v"] = blend(state.get("v", np.zeros_like(g)), g * g, beta2)
        with np.errstate(divide="ignore", invalid="ignore"):
            move = g / (np.sqrt(v / (1 - beta2**t)) + o["eps"])
        if o["weight_decay"]:
            move = move + o["weight_decay"] * p
        return free_step(p, move, beta1, state, o)


CASES = {
    "Signum": (Signum, [({}, {"momentum": 0.5, **DECAY, **UP})]),
    "Lion": (Lion, [({}, {**SHORT, **DECAY, **UP})]),
    "Grams": (Grams, [({}, {**SHORT, "eps": 1e-3, **DECAY, **UP})]),
    "SGDScheduleFree": (
        SGDScheduleFree,
        [
            ({"lr": 0.01}, {"lr": 0.1, "momentum": 0.5, **DECAY, **UP}),
            ({"lr": 0.01, "warmup_steps": 20.0, "r": 1.0}, {"weight_lr_power": 1.0}),
        ],
    ),
    "AdamWScheduleFree": (
        AdamWScheduleFree,
        [
            ({}, {**SHORT, **DECAY, **UP}),
            ({"warmup_steps": 20.0, "r": 1.0}, {"weight_lr_power": 1.0}),
        ],
    ),
}
