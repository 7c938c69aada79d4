"""Newton's method: with the whole Hessian, and with products by it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor

from .closures import WholeLoss, backtrack

TRIES = 20
"""How often a step raises the damping before it leaves the parameters where they are."""


class Newton(WholeLoss):
    """theta -= (H + damping I)^-1 g, with the Hessian H of all parameters.

    Nocedal & Wright, Numerical Optimization, chapter 3; damping: Levenberg 1944, adapted by the
    ratio of the real to the predicted decrease. `saddle_free=True` takes (|H| + damping I)^-1 g,
    where |H| has the absolute eigenvalues of H: Dauphin et al. 2014, arXiv:1406.2572. Plain Newton
    is drawn to saddles, for it goes to the nearest point where the gradient is zero; that form is
    not. Neither leaves a point whose gradient is exactly zero.

    lr: the step's length, the first one tried if `line_search`. damping: its start; 0 means none
    and stays so. A larger one is divided by 3 after a step that lowers the loss by more than 3/4 of
    the prediction, multiplied by 4 after less than 1/4; a step that does not lower it is tried
    again with 4 times the damping. line_search: halve the length until the loss falls as Armijo
    asks; the plain form then shifts an H that is not positive definite until it is. Without line
    search and damping the step is taken as it is. Eigenvalues of H below 1e-14 of the largest count
    as 0 and are left out where there is no damping, so a singular H gives the shortest step.

    max_parameters: more of them raise ValueError: H and its eigenvectors are P x P float64 numbers,
    and one step costs 2 P evaluations and P^3 operations.

    `step(closure)` returns the loss before the step. A loss, gradient or Hessian that is not
    finite, or a loss that no length and damping lowers, leaves parameters and damping as they were.
    """

    _limits: ClassVar = {
        "lr": "(0, inf)", "damping": "[0, inf)", "saddle_free": (False, True),
        "line_search": (False, True), "max_parameters": "[1, inf)",
    }  # fmt: skip
    _whole: ClassVar = frozenset({"max_parameters"})
    _instead: ClassVar = "NewtonCG"
    _keeps: ClassVar = ("damping",)

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
            "lr": lr, "damping": damping, "saddle_free": saddle_free, "line_search": line_search,
            "max_parameters": max_parameters,
        }  # fmt: skip
        super().__init__(params, options)
        self._memory["damping"] = float(damping)

    @property
    def damping(self) -> float:
        """What is added to the eigenvalues now."""
        return self._memory["damping"]

    def _step(self, closure: Callable[[], Any]) -> float:
        start = self._flat()
        loss, gradient, hessian = self._derivatives(closure)
        if not math.isfinite(loss) or not gradient.isfinite().all() or not hessian.isfinite().all():
            return loss
        values, vectors = torch.linalg.eigh(hessian)
        values = values.abs() if self._option("saddle_free") else values
        along = gradient @ vectors  # the gradient in the Hessian's own coordinates
        damping = self.damping
        if self._option("damping"):  # from less, TRIES times 4 would not bring it back
            largest = max(self._option("damping"), float(values.abs().max()))
            damping = max(damping, 1e-10 * largest)
        for _ in range(TRIES):
            move, coefficients = self._direction(values, vectors, along, damping)
            found = self._length(closure, start, move, loss, float(gradient @ move))
            if found is not None:
                break
            damping *= 4
            if not damping:
                self._write(start)
                return loss
        else:
            self._write(start)
            return loss
        length, value = found
        if damping:
            curved = float((values * coefficients.square()).sum())
            predicted = -length * float(along @ coefficients) - length**2 / 2 * curved
            ratio = (loss - value) / predicted if predicted > 0 else 0.0
            self._memory["damping"] = damping * (
                4 if ratio < 1 / 4 else 1 / 3 if ratio > 3 / 4 else 1
            )
        self._write(start + length * move)
        return loss

    def _direction(
        self, values: Tensor, vectors: Tensor, along: Tensor, damping: float
    ) -> tuple[Tensor, Tensor]:
        largest = float(values.abs().max())
        tiny = 1e-14 * largest
        if self._option("line_search") and float(values.min()) + damping < -tiny:
            # as little as makes it positive definite, with room
            damping = 1e-3 * largest - float(values.min())
        shifted = values + damping
        kept = shifted.abs() > tiny
        coefficients = torch.where(kept, -along / torch.where(kept, shifted, 1), 0)
        return vectors @ coefficients, coefficients

    def _length(
        self, closure: Callable[[], Any], start: Tensor, move: Tensor, loss: float, slope: float
    ) -> tuple[float, float] | None:
        """The length to go and the loss there; None if the loss does not fall."""
        lr = self._option("lr")
        if not move.isfinite().all():
            return None
        if self._option("line_search"):
            return backtrack(lambda t: self._loss_at(closure, start + t * move), loss, slope, lr)
        if not self.damping:
            return lr, loss
        value = self._loss_at(closure, start + lr * move)
        return (lr, value) if value <= loss else None

    def _derivatives(self, closure: Callable[[], Any]) -> tuple[float, Tensor, Tensor]:
        """Loss, gradient (P) and Hessian (P, P) where the parameters are."""
        loss, gradient, flat = _with_graph(self, closure)
        size = gradient.numel()
        self._memory["thirds"] += 6 * size
        if not flat.requires_grad:  # a loss linear in the parameters
            return loss, gradient, gradient.new_zeros(size, size)
        hessian = torch.cat([*self._rows(flat)])
        return loss, gradient, (hessian + hessian.T) / 2


class NewtonCG(WholeLoss):
    """Newton's step solved by conjugate gradients from products with the Hessian, for many
    parameters. Nocedal & Wright, Numerical Optimization, algorithm 7.1 (line search Newton-CG).

    H d = -g is solved to |H d + g| <= min(1/2, sqrt(|g|)) |g|; at a direction of negative curvature
    the solution so far is taken (the negative gradient, if it is the first), so the step always
    descends. Then Armijo's line search from lr.

    lr: the first length tried. iterations: most products in a step. `step(closure)` returns the
    loss before the step. A loss or derivative that is not finite, or a loss that no length lowers,
    leaves the parameters as they were.
    """

    _limits: ClassVar = {"lr": "(0, inf)", "iterations": "[1, inf)"}
    _whole: ClassVar = frozenset({"iterations"})

    def __init__(self, params: Iterable[Any], lr: float = 1.0, iterations: int = 50) -> None:
        super().__init__(params, {"lr": lr, "iterations": iterations})

    def _step(self, closure: Callable[[], Any]) -> float:
        start = self._flat()
        loss, gradient, flat = _with_graph(self, closure)
        if not math.isfinite(loss) or not gradient.isfinite().all():
            return loss
        move = self._solve(gradient, flat)
        slope = float(gradient @ move)
        found = None
        if slope < 0 and move.isfinite().all():
            found = backtrack(
                lambda t: self._loss_at(closure, start + t * move), loss, slope, self._option("lr")
            )
        self._write(start if found is None else start + found[0] * move)
        return loss

    def _product(self, flat: Tensor, vector: Tensor) -> Tensor:
        self._memory["thirds"] += 6
        if not flat.requires_grad:
            return torch.zeros_like(vector)
        found = torch.autograd.grad(
            flat, self._params(), vector.to(flat.dtype), retain_graph=True, materialize_grads=True
        )
        return torch.cat([x.reshape(-1).double() for x in found])

    def _solve(self, gradient: Tensor, flat: Tensor) -> Tensor:
        norm = float(gradient.norm())
        enough = min(0.5, norm**0.5) * norm
        solution, residual, direction = torch.zeros_like(gradient), gradient, -gradient
        for k in range(self._option("iterations")):
            product = self._product(flat, direction)
            curvature = float(direction @ product)
            if not curvature > 0:
                return solution if k else -gradient
            square = residual @ residual
            length = square / curvature
            solution = solution + length * direction
            residual = residual + length * product
            if float(residual.norm()) <= enough:
                break
            direction = -residual + (residual @ residual) / square * direction
        return solution


def _with_graph(made: WholeLoss, closure: Callable[[], Any]) -> tuple[float, Tensor, Tensor]:
    """Loss, gradient (P) in float64, and the same gradient with its graph."""
    made._memory["thirds"] += 3
    loss = made._graph(closure)
    found = torch.autograd.grad(loss, made._params(), create_graph=True, materialize_grads=True)
    flat = torch.cat([g.reshape(-1) for g in found])
    return float(loss.detach()), flat.detach().double(), flat
