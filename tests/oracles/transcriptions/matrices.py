"""Rules that look at a parameter as a matrix, in NumPy: orthogonal steps and eigenvectors."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
import torch

from .base import DECAY, SHORT, UP, Array, Transcription


def _over(a: Array, b: Array) -> Array:
    """The quotient as IEEE 754 has it: with eps=0, 0/0 is nan and says nothing."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return a / b


class Muon(Transcription):
    """Jordan et al. 2024, kellerjordan.github.io/posts/muon; torch.optim.Muon and AdamW."""

    defaults: ClassVar[dict[str, Any]] = {
        "lr": 0.001,
        "weight_decay": 0.1,
        "momentum": 0.95,
        "nesterov": True,
        "ns_coefficients": (3.4445, -4.775, 2.0315),
        "eps": 1e-7,
        "ns_steps": 5,
        "adjust_lr_fn": None,
        "adamw_lr": 0.0003,
        "betas": (0.9, 0.95),
        "adamw_eps": 1e-10,
    }

    def __init__(self, groups: list[dict[str, Any]], **options: Any) -> None:
        super().__init__(groups, **options)
        for group in self.groups:
            group["first_lr"] = group["lr"]

    def update(self, p: Array, g: Array, state: dict[str, Any], o: dict[str, Any]) -> Array:
        """The post's algorithm for matrices, with an average as momentum; AdamW for the rest."""
        if p.ndim < 2:
            return self._adamw(p, g, state, o)
        mu, lr = o["momentum"], o["lr"]
        b = state["b"] = mu * state.get("b", 0.0) + (1 - mu) * g
        ahead = mu * b + (1 - mu) * g if o["nesterov"] else b
        matrix = ahead.reshape(p.shape[0], -1)
        step = _orthogonal(matrix, o["ns_coefficients"], o["ns_steps"], o["eps"])
        size = _size_factor(matrix.shape, o["adjust_lr_fn"])
        return p * (1 - lr * o["weight_decay"]) - lr * size * step.reshape(p.shape)

    @staticmethod
    def _adamw(p: Array, g: Array, state: dict[str, Any], o: dict[str, Any]) -> Array:
        """Loshchilov and Hutter 2019, algorithm 2, as torch.optim.AdamW, at a scaled adamw_lr."""
        first = o["first_lr"]
        lr = o["adamw_lr"] * (o["lr"] / first if first != 0 else float(o["lr"] != 0))
        beta1, beta2 = o["betas"]
        t = state["step"] = state.get("step", 0) + 1
        m = state["m"] = beta1 * state.get("m", 0.0) + (1 - beta1) * g
        v = state["v"] = beta2 * state.get("v", 0.0) + (1 - beta2) * g * g
        step = _over(m / (1 - beta1**t), np.sqrt(v / (1 - beta2**t)) + o["adamw_eps"])
        return p * (1 - lr * o["weight_decay"]) - lr * step


def _size_factor(shape: tuple[int, ...], kind: str | None) -> float:
    """What the rate of a matrix of this shape is multiplied by: torch.optim.Muon, adjust_lr_fn."""
    rows, columns = shape
    if kind == "match_rms_adamw":
        return 0.2 * math.sqrt(max(rows, columns))
    if kind in (None, "original"):
        return math.sqrt(max(1.0, rows / columns))
    raise ValueError(f"adjust_lr_fn is None, 'original' or 'match_rms_adamw', not {kind!r}")


def _orthogonal(x: Array, weights: tuple[float, float, float], steps: int, eps: float) -> Array:
    """Newton-Schulz in bfloat16, by torch's products: the order of their sums is torch's own."""
    a, b, c = weights
    y = torch.from_numpy(np.ascontiguousarray(x)).bfloat16()
    tall = x.shape[0] > x.shape[1]
    if tall:
        y = y.T
    y = y / y.norm().clamp(min=eps)
    for _ in range(steps):
        gram = y @ y.T
        y = torch.addmm(y, torch.addmm(gram, gram, gram, beta=b, alpha=c), y, beta=a)
    return (y.T if tall else y).double().numpy()


class SOAP(Transcription):
    """Vyas et al. 2024, arXiv:2409.11321, algorithms 3 and 4; the authors' nikhilvyas/SOAP."""

    defaults: ClassVar[dict[str, Any]] = {
        "lr": 0.003,
        "betas": (0.95, 0.95),
        "eps": 1e-8,
        "precondition_frequency": 10,
        "weight_decay": 0.01,
        "maximize": False,
    }
    largest = 10_000  # a longer dimension keeps its own axes

    def update(self, p: Array, g: Array, state: dict[str, Any], o: dict[str, Any]) -> Array:
        """The first gradient only begins the covariances; the decay comes after the move."""
        g = -g if o["maximize"] else g
        beta1, beta2 = o["betas"]
        if not state:
            self._begin(g, state, beta2)
            return p
        t = state["moves"] = state["moves"] + 1
        turned = _turn(g, state["bases"])
        state["m"] = beta1 * state["m"] + (1 - beta1) * g
        state["v"] = beta2 * state["v"] + (1 - beta2) * turned * turned
        step = _over(_turn(state["m"], state["bases"]), np.sqrt(state["v"]) + o["eps"])
        rate = o["lr"] * math.sqrt(1 - beta2**t) / (1 - beta1**t)
        p = (p - rate * _turn(step, state["bases"], back=True)) * (1 - o["lr"] * o["weight_decay"])
        for axis, old in state["covariances"].items():
            state["covariances"][axis] = beta2 * old + (1 - beta2) * _covariance(g, axis)
        if t % o["precondition_frequency"] == 0:
            self._refine(state)
        return p

    def _begin(self, g: Array, state: dict[str, Any], beta2: float) -> None:
        """The covariances of the first gradient and their eigenvectors, the largest first."""
        axes = [k for k, n in enumerate(g.shape) if n <= self.largest] if g.ndim > 1 else []
        covariances = {k: (1 - beta2) * _covariance(g, k) for k in axes}
        bases = {
            k: np.linalg.eigh(c + 1e-30 * np.eye(len(c)))[1][:, ::-1]
            for k, c in covariances.items()
        }
        zero = np.zeros_like(g)
        state.update(m=zero, v=zero, moves=0, covariances=covariances, bases=bases)

    @staticmethod
    def _refine(state: dict[str, Any]) -> None:
        """Algorithm 4: one power iteration and QR, sorted by the estimated eigenvalues, as is v."""
        for axis, covariance in state["covariances"].items():
            basis = state["bases"][axis]
            product = covariance @ basis
            order = np.argsort(-np.sum(basis * product, axis=0), kind="stable")
            state["v"] = np.take(state["v"], order, axis=axis)
            state["bases"][axis] = np.linalg.qr(product[:, order])[0]


def _covariance(g: Array, axis: int) -> Array:
    """Along one axis, the inner products of the slices."""
    rows = np.moveaxis(g, axis, 0).reshape(g.shape[axis], -1)
    return rows @ rows.T


def _turn(x: Array, bases: dict[int, Array], back: bool = False) -> Array:
    """Into the bases of the axes, or back out of them."""
    for axis, basis in bases.items():
        x = np.moveaxis(np.tensordot(x, basis, axes=(axis, 1 if back else 0)), -1, axis)
    return x


CASES = {
    "Muon": (
        Muon,
        [
            ({}, {"lr": 0.01, "adamw_lr": 0.01, **SHORT}),
            ({"nesterov": False, "adjust_lr_fn": "match_rms_adamw"}, {"ns_steps": 3, **DECAY}),
        ],
    ),
    "SOAP": (SOAP, [({}, {**SHORT, "precondition_frequency": 3, **DECAY, **UP})]),
}
