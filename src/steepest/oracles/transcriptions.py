"""Optimizers transcribed line by line from their papers. They are oracles of our rules."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

Params = Sequence[Tensor]


class Transcription:
    """The interface that a comparison needs: groups, states and a step."""

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

    The parameter holds the look-ahead point, where the gradient is taken; theta is a state.
    """

    def update(self, p: Tensor, g: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        theta = state.get("theta", p.clone())
        v = state["v"] = group["momentum"] * state.get("v", torch.zeros_like(p)) - group["lr"] * g
        state["theta"] = theta + v
        p.copy_(state["theta"] + group["momentum"] * v)


class EAdam(Transcription):
    """Yuan and Gao 2020, Algorithm 1: Adam, but eps is added to v itself and nowhere else."""

    def update(self, p: Tensor, g: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        zero, (beta1, beta2) = torch.zeros_like(p), group["betas"]
        m = state["exp_avg"] = beta1 * state.get("exp_avg", zero) + (1 - beta1) * g
        v = beta2 * state.get("exp_avg_sq", zero) + (1 - beta2) * g * g
        v = state["exp_avg_sq"] = v + group["eps"]
        m_hat, v_hat = m / (1 - beta1**self.t), v / (1 - beta2**self.t)
        p.sub_(group["lr"] * m_hat / v_hat.sqrt())


class Swats(Transcription):
    """Algorithm 1 of Keskar and Socher 2017, over the vector of all parameters.

    Before the switch to SGD, `exp_avg2` is the average of the rates with which SGD would make the
    same steps. From the switch on, it is SGD's rate, which the schedule scales.
    `sgd` is 0 before the switch, and (lr at the switch) / (first lr) after it.
    """

    def __init__(self, params: Params, lr: float = 1e-3, **hyper: Any) -> None:
        super().__init__(params, **{"betas": (0.9, 0.999), "eps": 1e-8, "settled": 1e-9, **hyper})
        self.param_groups[0]["lr"] = lr
        self.rate, self.sgd, self.first_lr = 0.0, 0.0, lr

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
                self.sgd, self.rate = group["lr"] / self.first_lr, corrected
        for state in self.state.values():
            state |= {"exp_avg2": self.rate, "sgd": self.sgd}

    def update(self, p: Tensor, g: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        zero, (beta1, beta2) = torch.zeros_like(p), group["betas"]
        m = state["exp_avg"] = beta1 * state.get("exp_avg", zero) + (1 - beta1) * g
        a = state["exp_avg_sq"] = beta2 * state.get("exp_avg_sq", zero) + (1 - beta2) * g * g
        v = state.get("momentum_buffer", zero)
        if self.sgd:
            v = beta1 * v + g
            left = group["lr"] / self.first_lr
            p.sub_((1 - beta1) * self.rate * left / self.sgd * v)
        else:
            alpha = group["lr"] * math.sqrt(1 - beta2**self.t) / (1 - beta1**self.t)
            step = -alpha * m / (a.sqrt() + group["eps"])
            p.add_(step)
            self.along += float((step * g).sum())
            self.length += float((step * step).sum())
        state["momentum_buffer"] = v


class Soap(Transcription):
    """Algorithms 3 and 4 of Vyas et al. 2024, for all numbers of dimensions. Adam steps a vector.

    Where the paper says nothing, this class does what the authors' code does. The first gradient
    makes no step and enters neither moment. The moments are bias-corrected by the number of steps
    made. The old eigenvectors are sorted by their Rayleigh quotients before they are refined, and v
    is reordered in the same way. Weight decay comes after the step.

    If the numbers of rows and columns differ by more than one, the first gradient is zero in some
    directions. Rounding decides the first eigenvectors in these directions. Therefore two correct
    implementations diverge.
    """

    def __init__(self, params: Params, lr: float = 3e-3, **hyper: Any) -> None:
        usual = {"betas": (0.95, 0.95), "eps": 1e-8, "precondition_frequency": 10}
        super().__init__(params, **{**usual, **hyper, "weight_decay": 0.0})
        self.param_groups[0] |= {"lr": lr, "decay": hyper.get("weight_decay", 0.01)}

    def update(self, p: Tensor, g: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        (beta1, beta2), k, rotated = group["betas"], self.t - 1, p.dim() > 1
        if k == 0:
            state |= {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
            if rotated:
                first = [(1 - beta2) * c for c in _covariances(g)]
                bases = [torch.linalg.eigh(c).eigenvectors.flip(1) for c in first]
                state |= {"covariances": _flat(first), "bases": _flat(bases)}
            return
        m = state["exp_avg"] = beta1 * state["exp_avg"] + (1 - beta1) * g
        g_, m_ = g, m
        bases = _squares(state["bases"], p.shape) if rotated else []
        if rotated:
            g_, m_ = _along(g, bases), _along(m, bases)
        v = beta2 * state["exp_avg_sq"] + (1 - beta2) * g_ * g_
        n = m_ / (v.sqrt() + group["eps"])
        n = _along(n, [q.T for q in bases]) if rotated else n
        p.sub_(group["lr"] * math.sqrt(1 - beta2**k) / (1 - beta1**k) * n)
        p.mul_(1 - group["lr"] * group["decay"])
        if rotated:
            old = _squares(state["covariances"], p.shape)
            mixed = zip(old, _covariances(g), strict=True)
            new = [beta2 * c + (1 - beta2) * now for c, now in mixed]
            state["covariances"] = _flat(new)
            if k % group["precondition_frequency"] == 0:
                pairs = [_refined(c, q) for c, q in zip(new, bases, strict=True)]
                state["bases"] = _flat([q for q, _ in pairs])
                v = v[torch.meshgrid(*[order for _, order in pairs], indexing="ij")]
        state["exp_avg_sq"] = v


_LETTERS = "abcdefgh"


def _covariances(g: Tensor) -> list[Tensor]:
    """Returns the covariance matrix of each dimension.

    Its entries are products of entries of g, summed over all other dimensions.
    """
    letters = _LETTERS[: g.dim()]
    return [torch.einsum(f"{letters},{letters.replace(x, 'z')}->{x}z", g, g) for x in letters]


def _along(x: Tensor, bases: list[Tensor]) -> Tensor:
    """Returns x in the coordinates of the bases: each dimension is multiplied by its basis."""
    for letter, q in zip(_LETTERS[: x.dim()], bases, strict=True):
        letters = _LETTERS[: x.dim()]
        x = torch.einsum(f"{letters},{letter}z->{letters.replace(letter, 'z')}", x, q)
    return x


def _flat(squares: list[Tensor]) -> Tensor:
    return torch.cat([s.flatten() for s in squares])


def _squares(flat: Tensor, shape: Sequence[int]) -> list[Tensor]:
    return [s.reshape(n, n) for s, n in zip(flat.split([n * n for n in shape]), shape, strict=True)]


def _refined(covariance: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the new basis of Algorithm 4, and the order into which it sorts the old vectors."""
    order = torch.argsort((basis.T @ covariance @ basis).diagonal(), descending=True)
    return torch.linalg.qr(covariance @ basis[:, order]).Q, order


class YellowFin(Transcription):
    """Algorithms 1 to 4 of Zhang and Mitliagkas 2017, over all parameters together.

    Averages are debiased. They are averages of the values, not of the logarithms of the values.
    Gradients are not clipped. The learning rate rises over the first ten windows. The parameters do
    not move before the first nonzero gradient.
    """

    def __init__(self, params: Params, lr: float = 1.0, **hyper: Any) -> None:
        super().__init__(params, **{"beta": 0.999, **hyper})
        self.param_groups[0]["lr"] = lr
        self.norms: list[float] = []
        self.high = self.low = self.norm = self.square = self.distance = 0.0

    @torch.no_grad()
    def step(self) -> None:
        self.grads: list[tuple[Tensor, Tensor]] = []
        super().step()
        mu, alpha = self.tuned(self.param_groups[0]["beta"])
        for p, g in self.grads:
            state = self.state[p]
            b = state["momentum_buffer"] = mu * state["momentum_buffer"] + g
            p.sub_(self.param_groups[0]["lr"] * alpha * b)

    def update(self, p: Tensor, g: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        beta, zero = group["beta"], torch.zeros_like(p)
        state.setdefault("momentum_buffer", zero)
        state["grad_avg"] = beta * state.get("grad_avg", zero) + (1 - beta) * g
        self.grads.append((p, g))

    def tuned(self, beta: float, window: int = 20) -> tuple[float, float]:
        """Returns (mu, alpha) of this step, by Algorithm 1."""
        debias = 1 - beta**self.t
        self.norms.append(sum(float((g * g).sum()) for _, g in self.grads))
        self.high = beta * self.high + (1 - beta) * max(self.norms[-window:])
        self.low = beta * self.low + (1 - beta) * min(self.norms[-window:])
        self.square = beta * self.square + (1 - beta) * self.norms[-1]
        mean = sum(float(((self.state[p]["grad_avg"] / debias) ** 2).sum()) for p, _ in self.grads)
        variance = max(self.square / debias - mean, 0.0) if self.t > 1 else 0.0
        self.norm = beta * self.norm + (1 - beta) * math.sqrt(self.norms[-1])
        if self.square == 0:
            return 0.0, 0.0
        self.distance = beta * self.distance + (1 - beta) * self.norm / self.square
        low = self.low / debias
        pull = (self.distance / debias * low) ** 2
        # the minimum of x^2 D^2 + (1 - x)^4 C / h_min^2 in u = 1 - x, by bisection to the last bit
        u = _bisect(pull / (2 * variance)) if variance else 1.0
        u = min(u, 2 / (math.sqrt(self.high / self.low) + 1))
        return (1 - u) ** 2, u * u / low * min(1.0, self.t / (10 * window))


def _bisect(q: float) -> float:
    """Returns the u in (0, 1] that solves u^3 = q (1 - u)."""
    low, high = 0.0, 1.0
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if middle**3 < q * (1 - middle) else (low, middle)
    return high
