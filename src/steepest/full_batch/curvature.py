"""Newton's method: with the full Hessian, or with Hessian-vector products only."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor

from .closures import FullBatchOptimizer, backtrack

MAX_TRIES = 20
"""How many dampings a step tries before it gives up and leaves the parameters unchanged."""


class Newton(FullBatchOptimizer):
    """theta -= (H + damping I)^-1 g, with the gradient g and the Hessian H of all P parameters.

    Nocedal & Wright, Numerical Optimization, chapter 3. The damping is from Levenberg 1944. It is
    adapted by the ratio of the actual to the predicted decrease of the loss. `saddle_free=True`
    computes (|H| + damping I)^-1 g instead, where |H| is H with the absolute values of its
    eigenvalues: Dauphin et al. 2014, arXiv:1406.2572. The plain form is attracted to saddle points,
    because it moves to a nearby point with zero gradient even if this is a saddle point. The
    saddle-free form is not attracted. If the gradient is exactly zero, neither form moves.

    lr: the length of the step; with `line_search`, the first length that is tried.
    damping: the initial damping; 0 turns damping off. After a step that lowers the loss by more
    than 3/4 of the predicted decrease, the damping is divided by 3. After a step that lowers the
    loss by less than 1/4 of the predicted decrease, the damping is multiplied by 4. A step that
    does not lower the loss is tried again with 4 times the damping.
    line_search: halve the length until the loss falls enough (Armijo's condition). With
    `line_search`, the plain form also makes an indefinite H positive definite, by adding a multiple
    of I. With neither line search nor damping, every step is taken, even if the loss rises.
    max_parameters: a model with more parameters raises ValueError. H and its eigenvectors have
    P x P float64 numbers each. One step costs as much as 2 P gradients, and P^3 operations.

    An eigenvalue of H counts as 0 if its absolute value is below 1e-14 times the largest absolute
    value. Without damping, the step does not move along the eigenvectors of these eigenvalues, as
    with the pseudo-inverse.

    `step(closure)` returns the loss before the step. The parameters and the damping do not
    change if the loss, gradient or Hessian is not finite, or if none of the steps that were tried
    lowers the loss.
    """

    _limits: ClassVar = {
        "lr": "(0, inf)",
        "damping": "[0, inf)",
        "saddle_free": (False, True),
        "line_search": (False, True),
        "max_parameters": "[1, inf)",
    }
    _integers: ClassVar = frozenset({"max_parameters"})
    _alternative: ClassVar = "NewtonCG"
    _saved: ClassVar = ("damping",)

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1.0,
        damping: float = 0.0,
        saddle_free: bool = False,
        line_search: bool = True,
        max_parameters: int = 2000,
    ) -> None:
        options = {
            "lr": lr,
            "damping": damping,
            "saddle_free": saddle_free,
            "line_search": line_search,
            "max_parameters": max_parameters,
        }
        super().__init__(params, options)
        self._memory["damping"] = float(damping)

    @property
    def damping(self) -> float:
        """The current damping, which is added to the eigenvalues of H (or of |H|)."""
        return self._memory["damping"]

    def _step(self, closure: Callable[[], Any]) -> float:
        start = self._flatten()
        loss, gradient, hessian = self._compute_derivatives(closure)
        if not math.isfinite(loss) or not gradient.isfinite().all() or not hessian.isfinite().all():
            return loss
        values, vectors = torch.linalg.eigh(hessian)
        values = values.abs() if self._option("saddle_free") else values
        projected = gradient @ vectors  # the gradient in the eigenbasis of H
        damping = self.damping
        if self._option("damping"):  # a smaller damping times 4**MAX_TRIES is not enough
            largest = max(self._option("damping"), float(values.abs().max()))
            damping = max(damping, 1e-10 * largest)
        for _ in range(MAX_TRIES):
            move, coefficients = self._find_direction(values, vectors, projected, damping)
            accepted = self._find_length(closure, start, move, loss, float(gradient @ move))
            if accepted is not None:
                break
            damping *= 4
            if not damping:
                self._write(start)
                return loss
        else:
            self._write(start)
            return loss
        length, value = accepted
        if damping:
            curvature = float((values * coefficients.square()).sum())
            predicted = -length * float(projected @ coefficients) - length**2 / 2 * curvature
            ratio = (loss - value) / predicted if predicted > 0 else 0.0
            factor = 4 if ratio < 1 / 4 else 1 / 3 if ratio > 3 / 4 else 1
            self._memory["damping"] = damping * factor
        self._write(start + length * move)
        return loss

    def _find_direction(
        self, values: Tensor, vectors: Tensor, projected: Tensor, damping: float
    ) -> tuple[Tensor, Tensor]:
        """The step at length 1, and the coefficients of this step in the eigenbasis of H."""
        largest = float(values.abs().max())
        tiny = 1e-14 * largest
        if self._option("line_search") and float(values.min()) + damping < -tiny:
            # the smallest shift that makes H positive definite, plus a margin
            damping = 1e-3 * largest - float(values.min())
        shifted = values + damping
        kept = shifted.abs() > tiny
        coefficients = torch.where(kept, -projected / torch.where(kept, shifted, 1), 0)
        return vectors @ coefficients, coefficients

    def _find_length(
        self, closure: Callable[[], Any], start: Tensor, move: Tensor, loss: float, slope: float
    ) -> tuple[float, float] | None:
        """The accepted step length and the loss there; None if the loss does not fall."""

        def loss_at(t: float) -> float:
            return self._compute_loss_at(closure, start + t * move)

        lr = self._option("lr")
        if not move.isfinite().all():
            return None
        if self._option("line_search"):
            return backtrack(loss_at, loss, slope, lr)
        if not self.damping:
            return lr, loss
        value = loss_at(lr)
        return (lr, value) if value <= loss else None

    def _compute_derivatives(self, closure: Callable[[], Any]) -> tuple[float, Tensor, Tensor]:
        """Loss, gradient (P) and Hessian (P, P) at the current parameters."""
        loss, gradient, flat = _differentiate(self, closure)
        size = gradient.numel()
        self._memory["thirds"] += 6 * size
        if not flat.requires_grad:  # the loss is linear in the parameters
            return loss, gradient, gradient.new_zeros(size, size)
        hessian = torch.cat([*self._jacobian_rows(flat)])
        return loss, gradient, (hessian + hessian.T) / 2


class NewtonCG(FullBatchOptimizer):
    """Newton's method for many parameters: conjugate gradients on Hessian-vector products.

    Nocedal & Wright, Numerical Optimization, algorithm 7.1 (line search Newton-CG).

    Conjugate gradients solve H d = -g, with gradient g and Hessian H, until
    |H d + g| <= min(1/2, sqrt(|g|)) |g|. They stop early at a direction of negative curvature: d is
    then the solution so far, or -g if this direction is the first one. So d is always a descent
    direction. Armijo's line search along d starts from length lr.

    lr: the first length that the line search tries. iterations: the maximum number of
    Hessian-vector products per step.

    `step(closure)` returns the loss before the step. The parameters do not change if the loss or a
    derivative is not finite, or if no length lowers the loss.
    """

    _limits: ClassVar = {"lr": "(0, inf)", "iterations": "[1, inf)"}
    _integers: ClassVar = frozenset({"iterations"})

    def __init__(self, params: Iterable[Any], lr: float = 1.0, iterations: int = 50) -> None:
        super().__init__(params, {"lr": lr, "iterations": iterations})

    def _step(self, closure: Callable[[], Any]) -> float:
        start = self._flatten()
        loss, gradient, flat = _differentiate(self, closure)
        if not math.isfinite(loss) or not gradient.isfinite().all():
            return loss
        move = self._solve(gradient, flat)
        slope = float(gradient @ move)
        accepted = None
        if slope < 0 and move.isfinite().all():

            def loss_at(t: float) -> float:
                return self._compute_loss_at(closure, start + t * move)

            accepted = backtrack(loss_at, loss, slope, self._option("lr"))
        self._write(start if accepted is None else start + accepted[0] * move)
        return loss

    def _multiply_hessian(self, flat: Tensor, vector: Tensor) -> Tensor:
        self._memory["thirds"] += 6
        if not flat.requires_grad:
            return torch.zeros_like(vector)
        products = torch.autograd.grad(
            flat,
            self._trainable(),
            vector.to(flat.dtype),
            retain_graph=True,
            materialize_grads=True,
        )
        return torch.cat([x.reshape(-1).double() for x in products])

    def _solve(self, gradient: Tensor, flat: Tensor) -> Tensor:
        """An approximate solution d (P) of H d = -g."""
        norm = float(gradient.norm())
        tolerance = min(0.5, norm**0.5) * norm
        solution, residual, direction = torch.zeros_like(gradient), gradient, -gradient
        for k in range(self._option("iterations")):
            product = self._multiply_hessian(flat, direction)
            curvature = float(direction @ product)
            if not curvature > 0:
                return solution if k else -gradient
            square = residual @ residual
            length = square / curvature
            solution = solution + length * direction
            residual = residual + length * product
            if float(residual.norm()) <= tolerance:
                break
            direction = -residual + (residual @ residual) / square * direction
        return solution


def _differentiate(
    optimizer: FullBatchOptimizer, closure: Callable[[], Any]
) -> tuple[float, Tensor, Tensor]:
    """The loss, the gradient (P) in float64, and the same gradient with its autograd graph."""
    optimizer._memory["thirds"] += 3
    loss = optimizer._build_graph(closure)
    params = optimizer._trainable()
    grads = torch.autograd.grad(loss, params, create_graph=True, materialize_grads=True)
    flat = torch.cat([g.reshape(-1) for g in grads])
    return float(loss.detach()), flat.detach().double(), flat
