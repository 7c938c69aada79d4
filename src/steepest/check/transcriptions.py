"""Papers written out, line by line: the oracles of what no other package has."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

Params = Sequence[Tensor]


class Transcription:
    """What the harness needs of an optimizer: groups, states and a step."""

    def __init__(self, params: Params, **hyper: Any) -> None:
        self.param_groups = [{"params": list(params), **hyper}]
        self.state: dict[Tensor, dict[str, Any]] = {p: {} for p in params}
        self.t = 0

    @torch.no_grad()
    def step(self) -> None:
        self.t += 1
        group = self.param_groups[0]
        for p in group["params"]:
            g = -p.grad if group.get("maximize") else p.grad
            if decay := group.get("weight_decay", 0.0):
                g = g + decay * p
            self.update(p, g, self.state[p], group)

    def update(self, p: Tensor, g: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        raise NotImplementedError


class ClassicalMomentum(Transcription):
    """v <- gamma v + lr g;  p <- p - v (Ruder 2016, section 4.1; Qian 1999)."""

    def update(self, p: Tensor, g: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        v = state["v"] = group["momentum"] * state.get("v", torch.zeros_like(p)) + group["lr"] * g
        p.sub_(v)


class ClassicalNesterov(Transcription):
    """v <- mu v - lr grad(theta + mu v);  theta <- theta + v (Sutskever et al. 2013, eq. 3 and 4).

    The gradient is taken at the look-ahead point, so that is what stands in the parameter: theta
    lives here alone.
    """

    def update(self, p: Tensor, g: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        theta = state.get("theta", p.clone())
        v = state["v"] = group["momentum"] * state.get("v", torch.zeros_like(p)) - group["lr"] * g
        state["theta"] = theta + v
        p.copy_(state["theta"] + group["momentum"] * v)


class EAdam(Transcription):
    """Yuan and Gao 2020, Algorithm 1: Adam whose eps is added to v itself, and nowhere else."""

    def update(self, p: Tensor, g: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        zero, (beta1, beta2) = torch.zeros_like(p), group["betas"]
        m = state["exp_avg"] = beta1 * state.get("exp_avg", zero) + (1 - beta1) * g
        v = beta2 * state.get("exp_avg_sq", zero) + (1 - beta2) * g * g
        v = state["exp_avg_sq"] = v + group["eps"]
        m_hat, v_hat = m / (1 - beta1**self.t), v / (1 - beta2**self.t)
        p.sub_(group["lr"] * m_hat / v_hat.sqrt())


class Swats(Transcription):
    """Algorithm 1 of Keskar and Socher 2017, over the vector of all parameters together.

    `exp_avg2` is the average rate, and from the switch on the rate of SGD; `sgd` tells which.
    """

    def __init__(self, params: Params, lr: float = 1e-3, **hyper: Any) -> None:
        super().__init__(params, **{"betas": (0.9, 0.999), "eps": 1e-8, "settled": 1e-9, **hyper})
        self.param_groups[0]["lr"] = lr
        self.rate, self.sgd = 0.0, False

    def step(self) -> None:
        was_sgd, self.along, self.length = self.sgd, 0.0, 0.0
        super().step()
        group = self.param_groups[0]
        beta2 = group["betas"][1]
        if not was_sgd and self.along != 0:
            gamma = self.length / -self.along
            self.rate = beta2 * self.rate + (1 - beta2) * gamma
            corrected = self.rate / (1 - beta2**self.t)
            if self.t > 1 and abs(corrected - gamma) < group["settled"]:
                self.sgd, self.rate = True, corrected
        for state in self.state.values():
            state |= {"exp_avg2": self.rate, "sgd": float(self.sgd)}

    def update(self, p: Tensor, g: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        zero, (beta1, beta2) = torch.zeros_like(p), group["betas"]
        m = state["exp_avg"] = beta1 * state.get("exp_avg", zero) + (1 - beta1) * g
        a = state["exp_avg_sq"] = beta2 * state.get("exp_avg_sq", zero) + (1 - beta2) * g * g
        v = state.get("momentum_buffer", zero)
        if self.sgd:
            v = beta1 * v + g
            p.sub_((1 - beta1) * self.rate * v)
        else:
            alpha = group["lr"] * math.sqrt(1 - beta2**self.t) / (1 - beta1**self.t)
            step = -alpha * m / (a.sqrt() + group["eps"])
            p.add_(step)
            self.along += float((step * g).sum())
            self.length += float((step * step).sum())
        state["momentum_buffer"] = v
