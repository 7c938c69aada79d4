"""Adam's relatives that see more than a mean square: NumPy transcriptions in float64."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from .base import DECAY, SHORT, UP, Array, Transcription

Options = dict[str, Any]


def count(state: Options) -> int:
    """This parameter's own number of steps, the present one included."""
    state["t"] = state.get("t", 0) + 1
    return state["t"]


def mean(state: Options, name: str, new: Array, beta: float) -> Array:
    """The exponential average `name`, which starts at 0, with `new` taken in."""
    state[name] = beta * state.get(name, 0.0) + (1 - beta) * new
    return state[name]


def quotient(a: Array, b: Array) -> Array:
    """a / b as IEEE has it: 0/0 is nan, in silence."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(a / b)


def signed(g: Array, o: Options) -> Array:
    """The gradient of what is minimized."""
    return -g if o["maximize"] else g


def coupled(p: Array, g: Array, o: Options) -> Array:
    """The gradient of the loss plus weight_decay / 2 * |p|^2."""
    g = signed(g, o)
    return g + o["weight_decay"] * p if o["weight_decay"] else g


def shrunk(p: Array, o: Options) -> Array:
    """The parameter after AdamW's decay."""
    return p * (1 - o["lr"] * o["weight_decay"])


class AdaBelief(Transcription):
    """Zhuang et al. 2020, algorithm 2, as adabelief-pytorch 0.2.1 has it."""

    defaults: ClassVar[Options] = {
        "lr": 1e-3,
        "betas": (0.9, 0.999),
        "eps": 1e-16,
        "weight_decay": 0.0,
        "amsgrad": False,
        "weight_decouple": True,
        "fixed_decay": False,
        "rectify": True,
        "degenerated_to_sgd": True,
        "maximize": False,
    }

    def update(self, p: Array, g: Array, state: Options, o: Options) -> Array:
        """Decay, both averages, then the plain or the rectified move."""
        lr, (beta1, beta2), eps = o["lr"], o["betas"], o["eps"]
        t = count(state)
        if not o["weight_decouple"]:
            g = coupled(p, g, o)
        else:
            g = signed(g, o)
            p = p * (1 - o["weight_decay"]) if o["fixed_decay"] else shrunk(p, o)

        m = mean(state, "m", g, beta1)
        state["s"] = mean(state, "s", (g - m) ** 2, beta2) + eps
        m_hat = m / (1 - beta1**t)

        if not o["rectify"]:
            s = state["s"]
            if o["amsgrad"]:
                s = state["s_max"] = np.maximum(state.get("s_max", 0.0), s)
            return p - lr * quotient(m_hat, np.sqrt(s) / np.sqrt(1 - beta2**t) + eps)

        rho_inf = 2 / (1 - beta2) - 1
        rho = rho_inf - 2 * t * beta2**t / (1 - beta2**t)
        if rho < 5:
            return p - lr * m_hat if o["degenerated_to_sgd"] else p
        certainty = (rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho)
        scale = np.sqrt((1 - beta2**t) * certainty)
        return p - lr * scale * quotient(m_hat, np.sqrt(state["s"]) + eps)


class AdaBound(Transcription):
    """Luo et al. 2019, algorithms 2 and 3, as the package adabound 0.0.5 has them."""

    defaults: ClassVar[Options] = {
        "lr": 1e-3,
        "betas": (0.9, 0.999),
        "final_lr": 0.1,
        "gamma": 1e-3,
        "eps": 1e-8,
        "weight_decay": 0.0,
        "amsbound": False,
        "maximize": False,
    }

    def __init__(self, groups: list[Options], **options: Any) -> None:
        """Each group keeps the lr that it was made with."""
        super().__init__(groups, **options)
        for group in self.groups:
            group.setdefault("base_lr", group["lr"])

    def update(self, p: Array, g: Array, state: Options, o: Options) -> Array:
        """Adam's rate per element, clipped between two bounds that meet at final_lr."""
        beta1, beta2 = o["betas"]
        t = count(state)
        g = coupled(p, g, o)
        m = mean(state, "m", g, beta1)
        v = mean(state, "v", g * g, beta2)
        if o["amsbound"]:
            v = state["v_max"] = np.maximum(state.get("v_max", 0.0), v)

        final = o["final_lr"]
        if o["base_lr"] != 0:
            final *= o["lr"] / o["base_lr"]
        age = o["gamma"] * t
        low = final * (1 - 1 / (1 + age))
        high = final * (1 + 1 / age) if age else np.inf

        rate = o["lr"] * np.sqrt(1 - beta2**t) / (1 - beta1**t)
        bounded = np.clip(quotient(rate, np.sqrt(v) + o["eps"]), low, high)
        with np.errstate(invalid="ignore"):
            return p - bounded * m


class AMSBound(AdaBound):
    """Luo et al. 2019, algorithm 3; the package adabound 0.0.5 with amsbound=True."""

    defaults: ClassVar[Options] = {**AdaBound.defaults, "amsbound": True}


class Yogi(Transcription):
    """Zaheer et al. 2018, algorithm 2, with optax 0.2.8's corrections and first v."""

    defaults: ClassVar[Options] = {
        "lr": 1e-2,
        "betas": (0.9, 0.999),
        "eps": 1e-3,
        "initial_accumulator_value": 1e-6,
        "weight_decay": 0.0,
        "maximize": False,
    }

    def update(self, p: Array, g: Array, state: Options, o: Options) -> Array:
        """The second moment goes toward g^2 by (1 - beta2) g^2, whatever the distance."""
        beta1, beta2 = o["betas"]
        t = count(state)
        g = signed(g, o)
        m = mean(state, "m", g, beta1)
        square = g * g
        v = state.get("v", o["initial_accumulator_value"])
        state["v"] = v + (1 - beta2) * square * np.sign(square - v)
        root = np.sqrt(state["v"] / (1 - beta2**t))
        return shrunk(p, o) - o["lr"] * quotient(m / (1 - beta1**t), root + o["eps"])


class MSVAG(Transcription):
    """Balles and Hennig 2018, M-SVAG; rho is capped as in pytorch_optimizer 4.1.0."""

    defaults: ClassVar[Options] = {"lr": 1e-2, "beta": 0.9, "weight_decay": 0.0, "maximize": False}

    def update(self, p: Array, g: Array, state: Options, o: Options) -> Array:
        """The averaged gradient, times m^2 / (m^2 + variance of m)."""
        beta = o["beta"]
        t = count(state)
        g = signed(g, o)
        seen = 1 - beta**t
        m = mean(state, "m", g, beta) / seen
        v = mean(state, "v", g * g, beta) / seen
        rho = (1 - beta) / (1 + beta) * (1 + beta**t) / seen
        rho = min(rho, 0.9999)
        noise = rho * (v - m * m) / (1 - rho)
        factor = quotient(m * m, m * m + noise)
        factor = np.where(np.isnan(factor), 0.0, np.clip(factor, 0.0, 1.0))
        return shrunk(p, o) - o["lr"] * factor * m


class ADOPT(Transcription):
    """Taniguchi et al. 2024, algorithm 2; torch-adopt 0.1.0, but decay at the first step."""

    defaults: ClassVar[Options] = {
        "lr": 1e-3,
        "betas": (0.9, 0.9999),
        "eps": 1e-6,
        "clip": True,
        "weight_decay": 0.0,
        "decouple": False,
        "maximize": False,
    }

    def update(self, p: Array, g: Array, state: Options, o: Options) -> Array:
        """Each gradient is divided by the second moment of those before it, then averaged."""
        beta1, beta2 = o["betas"]
        t = count(state)
        if o["decouple"]:
            g, p = signed(g, o), shrunk(p, o)
        else:
            g = coupled(p, g, o)
        if t == 1:
            state["v"] = g * g
            return p
        whitened = quotient(g, np.maximum(np.sqrt(state["v"]), o["eps"]))
        if o["clip"]:
            limit = (t - 1) ** 0.25
            whitened = np.clip(whitened, -limit, limit)
        m = mean(state, "m", whitened, beta1)
        mean(state, "v", g * g, beta2)
        return p - o["lr"] * m


class Adan(Transcription):
    """Xie et al. 2022, algorithm 1, with the bias correction of the authors' code."""

    defaults: ClassVar[Options] = {
        "lr": 1e-3,
        "betas": (0.98, 0.92, 0.99),
        "eps": 1e-8,
        "weight_decay": 0.0,
        "no_prox": False,
        "maximize": False,
    }

    def update(self, p: Array, g: Array, state: Options, o: Options) -> Array:
        """Averages of gradients, of their differences, and of the square of g moved on."""
        beta1, beta2, beta3 = o["betas"]
        t = count(state)
        g = signed(g, o)
        change = g - state.get("last", g)
        state["last"] = g.copy()
        m = mean(state, "m", g, beta1) / (1 - beta1**t)
        v = mean(state, "v", change, beta2) / (1 - beta2**t)
        n = mean(state, "n", (g + beta2 * change) ** 2, beta3) / (1 - beta3**t)
        move = o["lr"] * quotient(m + beta2 * v, np.sqrt(n) + o["eps"])
        if o["no_prox"]:
            return shrunk(p, o) - move
        return (p - move) / (1 + o["lr"] * o["weight_decay"])


def half_life(beta: float) -> float:
    """The number of steps after which an average has forgotten one half."""
    return float(np.log(0.5) / np.log(beta)) if beta else 0.0


class AdEMAMix(Transcription):
    """Pagliardini, Ablin and Grangier 2024, algorithm 1."""

    defaults: ClassVar[Options] = {
        "lr": 1e-3,
        "betas": (0.9, 0.999, 0.9999),
        "alpha": 2.0,
        "beta3_warmup": 0.0,
        "alpha_warmup": 0.0,
        "eps": 1e-8,
        "weight_decay": 0.0,
        "maximize": False,
    }

    def update(self, p: Array, g: Array, state: Options, o: Options) -> Array:
        """AdamW on a corrected fast average plus alpha times a slow one."""
        beta1, beta2, beta3 = o["betas"]
        t = count(state)
        g = signed(g, o)
        alpha = o["alpha"]
        if t < o["alpha_warmup"]:
            alpha *= t / o["alpha_warmup"]
        if t < o["beta3_warmup"]:
            done = t / o["beta3_warmup"]
            life = (1 - done) * half_life(beta1) + done * half_life(beta3)
            beta3 = 0.5 ** (1 / life) if life else 0.0
        fast = mean(state, "fast", g, beta1) / (1 - beta1**t)
        slow = mean(state, "slow", g, beta3)
        v = mean(state, "v", g * g, beta2) / (1 - beta2**t)
        move = quotient(fast + alpha * slow, np.sqrt(v) + o["eps"])
        return shrunk(p, o) - o["lr"] * move


CASES = {
    "AdaBelief": (
        AdaBelief,
        [
            ({}, {**SHORT, "eps": 1e-8, **DECAY, **UP}),
            (
                {"rectify": False},
                {"rectify": False, "amsgrad": True, "weight_decouple": False, **DECAY},
            ),
            ({"degenerated_to_sgd": False}, {"fixed_decay": True, "weight_decay": 1e-3}),
        ],
    ),
    "AdaBound": (
        AdaBound,
        [
            ({}, {"final_lr": 1e-3, "gamma": 0.05, **SHORT, **DECAY, **UP}),
            ({"amsbound": True, "gamma": 0.05}, DECAY),
        ],
    ),
    "AMSBound": (AMSBound, [({}, {"final_lr": 1e-3, "gamma": 0.05, **SHORT, **DECAY, **UP})]),
    "Yogi": (Yogi, [({}, {**SHORT, "eps": 1e-2, **DECAY, **UP})]),
    "MSVAG": (MSVAG, [({}, {"beta": 0.5, **DECAY, **UP})]),
    "ADOPT": (
        ADOPT,
        [({}, {**SHORT, "clip": False, **DECAY, **UP}), ({"decouple": True, **DECAY}, {})],
    ),
    "Adan": (
        Adan,
        [
            ({}, {"betas": (0.9, 0.5, 0.95), "eps": 1e-3, **DECAY, **UP}),
            ({"no_prox": True, **DECAY}, {}),
        ],
    ),
    "AdEMAMix": (
        AdEMAMix,
        [
            ({}, {"betas": (0.8, 0.95, 0.99), "alpha": 5.0, **DECAY, **UP}),
            ({"alpha_warmup": 50.0, "beta3_warmup": 120.0}, {"alpha_warmup": 400.0}),
        ],
    ),
}
