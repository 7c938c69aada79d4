"""BFGS with the full inverse Hessian, and its line search."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from .closures import FullBatchOptimizer


class BFGS(FullBatchOptimizer):
    """theta += t d, d = -B g, where g is the gradient and B estimates the inverse Hessian.

    Broyden, Fletcher, Goldfarb, Shanno 1970, as in Nocedal & Wright, Numerical Optimization,
    algorithm 6.1 with the update 6.17 and the initial scale 6.20. B is computed from differences of
    gradients. The length t satisfies the strong Wolfe conditions with c1 = 1e-4, c2 = 0.9.
    `torch.optim.LBFGS(line_search_fn="strong_wolfe")` stores the last differences of gradients
    instead of the matrix B.

    lr: the first length that a line search tries; 1 suits a second-order method. While B is not
    known yet, the first length is lr * min(1, 1 / |g|_1), as in torch's LBFGS.
    max_parameters: a model with more parameters raises ValueError. With P parameters, B has P x P
    float64 numbers.

    `step(closure)` makes one iteration and returns the loss before it. It reuses the loss and
    gradient of the previous line search, so the closure must not change between steps. The
    parameters do not change if the loss or gradient is not finite, or if no length lowers the loss.
    If no length lowers the loss, B is reset. B is not updated if s^T y <= 0, where s is the step
    and y the change of the gradient.
    """

    _limits: ClassVar = {"lr": "(0, inf)", "max_parameters": "[1, inf)"}
    _integers: ClassVar = frozenset({"max_parameters"})
    _alternative: ClassVar = "LBFGS"
    _saved: ClassVar = ("inverse", "point", "loss", "gradient")

    def __init__(self, params: Iterable[Any], lr: float = 1.0, max_parameters: int = 5000) -> None:
        super().__init__(params, {"lr": lr, "max_parameters": max_parameters})

    def _step(self, closure: Callable[[], Any]) -> float:
        start, inverse = self._flatten(), self._memory["inverse"]
        state = self._memory
        if state["point"] is not None and torch.equal(state["point"], start):
            loss, gradient = state["loss"], state["gradient"]  # known from the last search
        else:
            loss, gradient = self._compute_gradient(closure)
        if not math.isfinite(loss) or not gradient.isfinite().all() or not gradient.any():
            return loss
        move = -gradient if inverse is None else -(inverse @ gradient)
        length = self._option("lr")
        if inverse is None:
            length *= min(1.0, 1 / float(gradient.abs().sum()))
        # no search if the predicted decrease is below the rounding error of the loss
        rounding = max(torch.finfo(p.dtype).eps for p in self._trainable()) / 10
        if -length * float(gradient @ move) <= rounding * abs(loss):
            return loss

        def evaluate(t: float) -> _Point:
            self._write(start + t * move)
            new_loss, new_gradient = self._compute_gradient(closure)
            return _Point(t, new_loss, float(new_gradient @ move), new_gradient)

        best = wolfe(evaluate, _Point(0.0, loss, float(gradient @ move), gradient), length)
        if best is None:
            self._write(start)
            state["inverse"] = None
            return loss
        self._write(start + best.t * move)
        state["inverse"] = _update_inverse(inverse, best.t * move, best.gradient - gradient)
        state |= {"point": self._flatten(), "loss": best.loss, "gradient": best.gradient}
        return loss


def _update_inverse(inverse: Tensor | None, s: Tensor, y: Tensor) -> Tensor | None:
    """The new estimate of the inverse Hessian, after a step s that changed the gradient by y."""
    product = float(s @ y)
    if not product > 1e-14 * float(s.norm() * y.norm()):
        return inverse
    if inverse is None:
        inverse = torch.eye(len(s), dtype=s.dtype, device=s.device) * (product / float(y @ y))
    inverse_y = inverse @ y
    cross = torch.outer(s, inverse_y)
    scale = (1 + float(y @ inverse_y) / product) / product
    return inverse + scale * torch.outer(s, s) - (cross + cross.T) / product


class _Point(NamedTuple):
    """A point on the search line: length t, loss, directional derivative, gradient (P)."""

    t: float
    loss: float
    slope: float
    gradient: Tensor


def wolfe(
    evaluate: Callable[[float], _Point], start: _Point, t: float, most: int = 25
) -> _Point | None:
    """Search along the line, first at length t, for a point with the strong Wolfe conditions.

    If `most` trials find no such point, returns the best point that satisfies Armijo's condition.
    Returns None if no trial satisfies that condition either.

    Nocedal & Wright, algorithms 3.5 and 3.6 in one loop. `low` is the best point so far. Once
    `high` is set, an acceptable point lies between `low` and `high`. torch's own search is not used
    because it is private and accepts nan.
    """
    if not start.slope < 0:
        return None
    low, high = start, None
    for _ in range(most):
        point = evaluate(t)
        if not math.isfinite(point.loss) or not math.isfinite(point.slope):
            point = point._replace(loss=math.inf)
        if point.loss > start.loss + 1e-4 * t * start.slope or point.loss >= low.loss:
            high = point
        elif abs(point.slope) <= -0.9 * start.slope:
            return point
        else:
            if point.slope * ((high.t if high else math.inf) - low.t) >= 0:
                high = low
            low = point
        t = 2 * t if high is None else _interpolate(low, high)
    return low if low.t else None


def _interpolate(a: _Point, b: _Point) -> float:
    """The minimizer of the cubic that has the losses and slopes of both points (equation 3.59).

    The result is at least a tenth of the interval away from both ends.
    """
    width = b.t - a.t
    t = a.t + width / 2
    if width and math.isfinite(b.loss):
        d = a.slope + b.slope - 3 * (a.loss - b.loss) / (a.t - b.t)
        square = d * d - a.slope * b.slope
        root = math.copysign(math.sqrt(max(square, 0.0)), width)
        denominator = b.slope - a.slope + 2 * root
        if square >= 0 and denominator:
            t = b.t - width * (b.slope + root - d) / denominator
    first, last = sorted((a.t + width / 10, b.t - width / 10))
    return min(max(t, first), last)
