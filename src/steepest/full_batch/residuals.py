"""Gauss-Newton with Levenberg's and Marquardt's damping, for a loss that is a sum of squares."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor

from .closures import WholeLoss
from .curvature import TRIES
from .linear import stack


class LevenbergMarquardt(WholeLoss):
    """theta -= (J^T J + damping I)^-1 J^T r for the loss |r|^2 / 2, with the Jacobian J of r.

    Levenberg 1944, Marquardt 1963; damping after Nielsen 1999 (IMM-REP-1999-05), as in Madsen,
    Nielsen & Tingleff 2004, Methods for non-linear least squares problems, algorithm 3.16: it
    starts at `damping` times the largest element of J^T J's diagonal; after a step it is multiplied
    by max(1/3, 1 - (2 rho - 1)^3), where rho is the real over the predicted decrease; a step that
    does not lower the loss is tried again with it times 2, then 4, 8, ... With damping=0 it is
    Gauss-Newton, whose steps are taken without a look at the loss.

    The closure returns the residuals r, a tensor of any shape, for instance `model(x) - y`, and
    does not call backward(). J^T J is never formed: J is reduced, some rows at a time, to its
    triangular factor, and the step comes from that factor's singular values, so columns that depend
    on each other give the shortest step.

    max_parameters: more of them raise ValueError (P x P numbers). `step(closure)` returns |r|^2 / 2
    before the step. Residuals or a Jacobian that are not finite, or a loss that no damping lowers,
    leave parameters and damping as they were.
    """

    _limits: ClassVar = {"damping": "[0, inf)", "max_parameters": "[1, inf)"}
    _whole: ClassVar = frozenset({"max_parameters"})
    _instead: ClassVar = "LBFGS"
    _keeps: ClassVar = ("damping", "factor")

    def __init__(
        self, params: Iterable[Any], damping: float = 1e-3, max_parameters: int = 2000
    ) -> None:
        super().__init__(params, {"damping": damping, "max_parameters": max_parameters})
        self._memory["factor"] = 2.0

    def _scalar(self, loss: Any) -> float:
        if not isinstance(loss, Tensor) or not loss.numel():
            self._refuse("the closure returned no residuals, expected a tensor of them", TypeError)
        return float(loss.detach().double().square().sum() / 2)

    def _graph(self, closure: Callable[[], Any]) -> Tensor:
        residuals = self._called(closure, True)
        self._scalar(residuals)
        if not residuals.requires_grad:
            self._refuse(
                "the closure's residuals do not depend on the parameters, expected a tensor "
                "computed from them", RuntimeError,
            )  # fmt: skip
        return residuals.reshape(-1)

    def _step(self, closure: Callable[[], Any]) -> float:
        start = self._flat()
        residuals = self._graph(closure)
        self._memory["thirds"] += 1
        loss = self._scalar(residuals)
        if not math.isfinite(loss):
            return loss
        triangle = self._triangle(residuals)
        if not triangle.isfinite().all():
            return loss
        size = start.numel()
        u, s, vh = torch.linalg.svd(triangle[:, :size], full_matrices=False)
        # the residuals in the coordinates of J's singular vectors
        along = triangle[:, size] @ u
        damping, factor = self._memory["damping"], self._memory["factor"]
        if damping is None:
            damping = self._option("damping") * float(triangle[:, :size].square().sum(0).max())
        if self._option("damping"):  # from less, TRIES doublings would not bring it back
            least = torch.finfo(s.dtype).eps * float(s.max()) ** 2
            damping = max(damping, least, torch.finfo(s.dtype).eps * self._option("damping"))
        for _ in range(TRIES):
            move = (
                -(s / (s.square() + damping) * along) @ vh if damping else _shortest(s, along, vh)
            )
            if not self._option("damping"):
                self._write(start + move)
                break
            value = self._loss_at(closure, start + move)
            coefficients = vh @ move
            predicted = -float((s * along + s.square() / 2 * coefficients) @ coefficients)
            ratio = (loss - value) / predicted if predicted > 0 else 0.0
            if ratio > 0:
                damping *= max(1 / 3, 1 - (2 * min(ratio, 2.0) - 1) ** 3)
                self._memory |= {"damping": damping, "factor": 2.0}
                break
            damping, factor = damping * factor, factor * 2
        else:
            self._write(start)
        return loss

    def _triangle(self, residuals: Tensor) -> Tensor:
        """The triangular factor of [J r], from pieces of as many rows as there are parameters."""
        right = residuals.detach().double()
        self._memory["thirds"] += 3 * len(right)
        found, waiting, size, done = None, [], sum(p.numel() for p in self._params()), 0
        for rows in self._rows(residuals):
            waiting.append(torch.cat([rows, right[done : done + len(rows), None]], 1))
            done += len(rows)
            if sum(map(len, waiting)) >= size or done == len(right):
                found, waiting = stack(found, torch.cat(waiting)), []
        assert found is not None
        return found


def _shortest(s: Tensor, along: Tensor, vh: Tensor) -> Tensor:
    """The shortest of the vectors that solve the linear least-squares problem best."""
    kept = s > s.max() * max(vh.shape) * torch.finfo(s.dtype).eps
    return -torch.where(kept, along / torch.where(kept, s, 1), 0) @ vh
