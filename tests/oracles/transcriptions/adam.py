"""Adam and its kin: two moments of the gradient, corrected for their start at zero."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from .base import DECAY, SHORT, UP, Array, Transcription


def _begin(
    p: Array, g: Array, state: dict[str, Any], o: dict[str, Any], decoupled: bool
) -> tuple[Array, Array, int]:
    """The decayed parameter, the gradient to use (sign and L2 term included), the step's number."""
    s = -g if o["maximize"] else g
    t = state["step"] = state.get("step", 0) + 1
    decay = o.get("weight_decay", 0)
    if decay == 0:
        return p, s, t
    if decoupled:
        return p * (1 - o["lr"] * decay), s, t
    return p, s + decay * p, t


def _average(state: dict[str, Any], name: str, new: Array, beta: float) -> Array:
    """The running average state[name], which starts at 0."""
    state[name] = beta * state.get(name, np.zeros_like(new)) + (1 - beta) * new
    return state[name]


def _ratio(a: Array, b: Array) -> Array:
    """a / b by IEEE: 0 / 0 is nan, as in torch, without a warning."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return a / b


def _adam(
    p: Array, g: Array, state: dict[str, Any], o: dict[str, Any], decoupled: bool, largest: bool
) -> Array:
    """p - lr m_hat / (sqrt(v_hat) + eps), v the largest so far if asked for."""
    p, s, t = _begin(p, g, state, o, decoupled)
    beta1, beta2 = o["betas"]
    m = _average(state, "exp_avg", s, beta1)
    v = _average(state, "exp_avg_sq", s**2, beta2)
    if largest:
        v = np.maximum(state.get("max_exp_avg_sq", np.zeros_like(v)), v)
        state["max_exp_avg_sq"] = v
    m_hat, v_hat = m / (1 - beta1**t), v / (1 - beta2**t)
    return p - o["lr"] * _ratio(m_hat, np.sqrt(v_hat) + o["eps"])


class Adam(Transcription):
    """Kingma and Ba 2015, arXiv:1412.6980, algorithm 1; torch 2.13 optim.Adam."""

    defaults: ClassVar[dict[str, Any]] = {
        "lr": 1e-3,
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "weight_decay": 0,
        "amsgrad": False,
        "maximize": False,
        "decoupled_weight_decay": False,
    }

    def update(self, p: Array, g: Array, state: dict[str, Any], o: dict[str, Any]) -> Array:
        """Adam, or by its options AMSGrad and decoupled decay."""
        return _adam(p, g, state, o, o["decoupled_weight_decay"], o["amsgrad"])


class AdamW(Transcription):
    """Loshchilov and Hutter 2019, arXiv:1711.05101, algorithm 2; torch 2.13 optim.AdamW."""

    defaults: ClassVar[dict[str, Any]] = {
        **Adam.defaults,
        "weight_decay": 0.01,
        "decoupled_weight_decay": True,
    }

    def update(self, p: Array, g: Array, state: dict[str, Any], o: dict[str, Any]) -> Array:
        """Adam on a parameter that was shrunk by lr * weight_decay."""
        return _adam(p, g, state, o, o["decoupled_weight_decay"], o["amsgrad"])


class AMSGrad(Transcription):
    """Reddi, Kale and Kumar 2018, arXiv:1904.09237, algorithm 2; torch 2.13 optim.Adam."""

    defaults: ClassVar[dict[str, Any]] = {
        "lr": 1e-3,
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "weight_decay": 0.0,
        "maximize": False,
    }

    def update(self, p: Array, g: Array, state: dict[str, Any], o: dict[str, Any]) -> Array:
        """The largest v is taken before the correction."""
        return _adam(p, g, state, o, False, True)


class SparseAdam(Transcription):
    """Kingma and Ba 2015, end of section 2; torch 2.13 optim.SparseAdam, every element given."""

    defaults: ClassVar[dict[str, Any]] = {
        "lr": 1e-3,
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "maximize": False,
    }

    def update(self, p: Array, g: Array, state: dict[str, Any], o: dict[str, Any]) -> Array:
        """Both corrections are in the rate, so that eps is beside the uncorrected root."""
        p, s, t = _begin(p, g, state, o, False)
        beta1, beta2 = o["betas"]
        m = _average(state, "exp_avg", s, beta1)
        v = _average(state, "exp_avg_sq", s**2, beta2)
        rate = o["lr"] * (1 - beta2**t) ** 0.5 / (1 - beta1**t)
        return p - rate * _ratio(m, np.sqrt(v) + o["eps"])


class EAdam(Transcription):
    """Yuan and Gao 2020, arXiv:2011.02150; the authors' EAdam.py (amsgrad off)."""

    defaults: ClassVar[dict[str, Any]] = AMSGrad.defaults

    def update(self, p: Array, g: Array, state: dict[str, Any], o: dict[str, Any]) -> Array:
        """eps goes into the stored second moment, every step, and nowhere else."""
        p, s, t = _begin(p, g, state, o, False)
        beta1, beta2 = o["betas"]
        m = _average(state, "exp_avg", s, beta1)
        v = state["exp_avg_sq"] = _average(state, "exp_avg_sq", s**2, beta2) + o["eps"]
        return p - o["lr"] * _ratio(m / (1 - beta1**t), np.sqrt(v / (1 - beta2**t)))


class Adamax(Transcription):
    """Kingma and Ba 2015, arXiv:1412.6980, algorithm 2; eps as in torch 2.13 optim.Adamax."""

    defaults: ClassVar[dict[str, Any]] = {
        "lr": 2e-3,
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "weight_decay": 0,
        "maximize": False,
    }

    def update(self, p: Array, g: Array, state: dict[str, Any], o: dict[str, Any]) -> Array:
        """u = max(beta2 u, |s| + eps), without a correction."""
        p, s, t = _begin(p, g, state, o, False)
        beta1, beta2 = o["betas"]
        m = _average(state, "exp_avg", s, beta1)
        u = np.maximum(beta2 * state.get("exp_inf", np.zeros_like(p)), np.abs(s) + o["eps"])
        state["exp_inf"] = u
        return p - o["lr"] * _ratio(m / (1 - beta1**t), u)


class NAdam(Transcription):
    """Dozat 2016, ICLR workshop, algorithm 2; the warm-up of torch 2.13 optim.NAdam."""

    defaults: ClassVar[dict[str, Any]] = {
        "lr": 2e-3,
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "weight_decay": 0,
        "momentum_decay": 4e-3,
        "decoupled_weight_decay": False,
        "maximize": False,
    }

    def update(self, p: Array, g: Array, state: dict[str, Any], o: dict[str, Any]) -> Array:
        """m itself is averaged by beta1; the warm-up weighs it and the gradient alone."""
        p, s, t = _begin(p, g, state, o, o["decoupled_weight_decay"])
        beta1, beta2 = o["betas"]
        now, after = (beta1 * (1 - 0.5 * 0.96 ** (k * o["momentum_decay"])) for k in (t, t + 1))
        product = state["mu_product"] = state.get("mu_product", 1.0) * now
        m = _average(state, "exp_avg", s, beta1)
        v = _average(state, "exp_avg_sq", s**2, beta2)
        ahead = s * (1 - now) / (1 - product) + m * after / (1 - product * after)
        return p - o["lr"] * _ratio(ahead, np.sqrt(v / (1 - beta2**t)) + o["eps"])


class RAdam(Transcription):
    """Liu et al. 2020, arXiv:1908.03265, algorithm 2; torch 2.13 optim.RAdam."""

    defaults: ClassVar[dict[str, Any]] = {
        "lr": 1e-3,
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "weight_decay": 0,
        "decoupled_weight_decay": False,
        "maximize": False,
    }

    def update(self, p: Array, g: Array, state: dict[str, Any], o: dict[str, Any]) -> Array:
        """Corrected momentum while rho <= 5; then rectified, eps beside the uncorrected root."""
        p, s, t = _begin(p, g, state, o, o["decoupled_weight_decay"])
        beta1, beta2 = o["betas"]
        m_hat = _average(state, "exp_avg", s, beta1) / (1 - beta1**t)
        v = _average(state, "exp_avg_sq", s**2, beta2)
        seen = 1 - beta2**t
        limit = 2 / (1 - beta2) - 1
        rho = limit - 2 * t * beta2**t / seen
        if rho <= 5:
            return p - o["lr"] * m_hat
        share = (rho - 4) * (rho - 2) * limit / ((limit - 4) * (limit - 2) * rho)
        return p - o["lr"] * (share * seen) ** 0.5 * _ratio(m_hat, np.sqrt(v) + o["eps"])


CASES = {
    "Adamax": (Adamax, [({}, {**SHORT, "eps": 1e-3, **DECAY, **UP})]),
    "Adam": (
        Adam,
        [
            ({}, {**SHORT, "eps": 1e-3, **DECAY, **UP}),
            ({"amsgrad": True}, {"decoupled_weight_decay": True, **DECAY}),
        ],
    ),
    "AdamW": (
        AdamW,
        [({}, {**SHORT, "weight_decay": 0.1, **UP}), ({"amsgrad": True}, {"amsgrad": False})],
    ),
    "AMSGrad": (AMSGrad, [({}, {**SHORT, "eps": 1e-3, **DECAY, **UP})]),
    "SparseAdam": (SparseAdam, [({}, {**SHORT, "eps": 1e-3, **UP})]),
    "EAdam": (EAdam, [({}, {**SHORT, "eps": 1e-3, **DECAY, **UP})]),
    "NAdam": (
        NAdam,
        [
            ({}, {**SHORT, "momentum_decay": 0.1, **DECAY, **UP}),
            ({"decoupled_weight_decay": True, **DECAY}, {}),
        ],
    ),
    "RAdam": (
        RAdam,
        [
            ({}, {"betas": (0.9, 0.5), **DECAY, **UP}),
            ({"decoupled_weight_decay": True, **DECAY}, {}),
        ],
    ),
}
