"""Gauss-Newton with Levenberg-Marquardt damping, for a loss that is a sum of squares."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor

from .closures import FullBatchOptimizer
from .curvature import MAX_TRIES
from .linear import stack


class LevenbergMarquardt(FullBatchOptimizer):
    """theta -= (J^T J + damping I)^-1 J^T r for the loss |r|^2 / 2, where J is the Jacobian of r.

    Levenberg 1944, Marquardt 1963. The damping follows Nielsen 1999 (IMM-REP-1999-05), as in
    Madsen, Nielsen & Tingleff 2004, Methods for non-linear least squares problems, algorithm 3.16.
    It starts at `damping` times the largest diagonal element of J^T J. If a step lowers the loss,
    the damping is multiplied by max(1/3, 1 - (2 rho - 1)^3), where rho is the actual decrease of
    the loss divided by the predicted decrease. If a step does not lower the loss, the damping is
    multiplied by 2, then 4, 8, ..., and the step is tried again. With damping=0 this is
    Gauss-Newton: every step is taken, even if the loss rises.

    The closure returns the residuals r, a tensor of any shape such as `model(x) - y`, and does not
    call backward(). J^T J is never formed. Instead, a QR decomposition, one block of rows at a
    time, reduces J to a triangular factor, and the step is computed from the singular value
    decomposition of this factor. If J is rank-deficient and damping=0, the step is the minimum-norm
    solution.

    max_parameters: a model with more parameters raises ValueError. With P parameters, the factor
    has P x P numbers.

    `step(closure)` returns |r|^2 / 2 before the step. The parameters and the damping do not
    change if the residuals or J are not finite, or if no damping lowers the loss.
    """

    _limits: ClassVar = {"damping": "[0, inf)", "max_parameters": "[1, inf)"}
    _integers: ClassVar = frozenset({"max_parameters"})
    _alternative: ClassVar = "LBFGS"
    _saved: ClassVar = ("damping", "factor")

    def __init__(
        self, params: Iterable[Any], damping: float = 1e-3, max_parameters: int = 2000
    ) -> None:
        super().__init__(params, {"damping": damping, "max_parameters": max_parameters})
        self._memory["factor"] = 2.0

    def _check_loss(self, loss: Any) -> float:
        if not isinstance(loss, Tensor) or not loss.numel():
            self._refuse(
                "the closure returned no residuals, expected a tensor such as model(x) - y",
                TypeError,
            )
        return float(loss.detach().double().square().sum() / 2)

    def _build_graph(self, closure: Callable[[], Any]) -> Tensor:
        residuals = self._call(closure, True)
        self._check_loss(residuals)
        if not residuals.requires_grad:
            self._refuse(
                "the closure's residuals do not depend on the parameters, expected a tensor "
                "computed from them",
                RuntimeError,
            )
        return residuals.reshape(-1)

    def _step(self, closure: Callable[[], Any]) -> float:
        start = self._flatten()
        residuals = self._build_graph(closure)
        self._memory["thirds"] += 1
        loss = self._check_loss(residuals)
        if not math.isfinite(loss):
            return loss
        triangle = self._factorize(residuals)
        if not triangle.isfinite().all():
            return loss
        size = start.numel()
        u, s, vh = torch.linalg.svd(triangle[:, :size], full_matrices=False)
        # the residuals in the basis of J's left singular vectors
        projected = triangle[:, size] @ u
        damping, factor = self._memory["damping"], self._memory["factor"]
        if damping is None:
            damping = self._option("damping") * float(triangle[:, :size].square().sum(0).max())
        if self._option("damping"):  # MAX_TRIES increases of a smaller damping are not enough
            least = torch.finfo(s.dtype).eps * float(s.max()) ** 2
            damping = max(damping, least, torch.finfo(s.dtype).eps * self._option("damping"))
        for _ in range(MAX_TRIES):
            if damping:
                move = -(s / (s.square() + damping) * projected) @ vh
            else:
                move = _solve_shortest(s, projected, vh)
            if not self._option("damping"):
                self._write(start + move)
                break
            value = self._compute_loss_at(closure, start + move)
            coefficients = vh @ move
            predicted = -float((s * projected + s.square() / 2 * coefficients) @ coefficients)
            ratio = (loss - value) / predicted if predicted > 0 else 0.0
            if ratio > 0:
                damping *= max(1 / 3, 1 - (2 * min(ratio, 2.0) - 1) ** 3)
                self._memory |= {"damping": damping, "factor": 2.0}
                break
            damping, factor = damping * factor, factor * 2
        else:
            self._write(start)
        return loss

    def _factorize(self, residuals: Tensor) -> Tensor:
        """The triangular QR factor of [J r], which is J with r as one more column.

        Rows are merged into the factor in blocks of P rows or more, for P parameters.
        """
        values = residuals.detach().double()
        self._memory["thirds"] += 3 * len(values)
        size = sum(p.numel() for p in self._trainable())
        factor, block, done = None, [], 0
        for rows in self._jacobian_rows(residuals):
            block.append(torch.cat([rows, values[done : done + len(rows), None]], 1))
            done += len(rows)
            if sum(map(len, block)) >= size or done == len(values):
                factor, block = stack(factor, torch.cat(block)), []
        assert factor is not None
        return factor


def _solve_shortest(s: Tensor, projected: Tensor, vh: Tensor) -> Tensor:
    """The minimum-norm solution of the linear least-squares problem without damping."""
    kept = s > s.max() * max(vh.shape) * torch.finfo(s.dtype).eps
    return -torch.where(kept, projected / torch.where(kept, s, 1), 0) @ vh
