"""BFGS with the whole inverse Hessian, and the line search that it needs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from .closures import WholeLoss


class BFGS(WholeLoss):
    """theta += t d, d = -B g, where B approaches the inverse Hessian from changes of the gradient.

    Broyden, Fletcher, Goldfarb, Shanno 1970, as in Nocedal & Wright, Numerical Optimization,
    algorithm 6.1 with the update 6.17 and the first scale 6.20; the length t fulfils the strong
    Wolfe conditions with c1 = 1e-4, c2 = 0.9. `torch.optim.LBFGS(line_search_fn="strong_wolfe")`
    keeps some differences of gradients instead of B.

    lr: the first length tried, 1 for a method of second order; in the first step 1 / |g|_1 of it,
    as in torch's LBFGS. max_parameters: more of them raise ValueError (B is P x P float64 numbers).
    A pair of differences whose product is not positive is not taken into B.

    `step(closure)` makes one iteration and returns the loss before it. What the last search has
    computed here is not computed again, so the closure has to be the same. A loss or gradient that
    is not finite, or a loss that no length lowers, leaves the parameters as they were; in the
    latter case B starts anew.
    """

    _limits: ClassVar = {"lr": "(0, inf)", "max_parameters": "[1, inf)"}
    _whole: ClassVar = frozenset({"max_parameters"})
    _instead: ClassVar = "LBFGS"
    _keeps: ClassVar = ("inverse", "point", "loss", "gradient")

    def __init__(self, params: Iterable[Any], lr: float = 1.0, max_parameters: int = 5000) -> None:
        super().__init__(params, {"lr": lr, "max_parameters": max_parameters})

    def _step(self, closure: Callable[[], Any]) -> float:
        start, inverse = self._flat(), self._memory["inverse"]
        now = self._memory
        if now["point"] is not None and torch.equal(now["point"], start):
            loss, gradient = now["loss"], now["gradient"]  # as the last search ended
        else:
            loss, gradient = self._gradient(closure)
        if not math.isfinite(loss) or not gradient.isfinite().all() or not gradient.any():
            return loss
        move = -gradient if inverse is None else -(inverse @ gradient)
        length = self._option("lr")
        if inverse is None:
            length *= min(1.0, 1 / float(gradient.abs().sum()))
        # what the step promises is below the rounding of the loss: it would be searched for in vain
        rounding = max(torch.finfo(p.dtype).eps for p in self._params()) / 10
        if -length * float(gradient @ move) <= rounding * abs(loss):
            return loss

        def at(t: float) -> _Point:
            self._write(start + t * move)
            value, slope = self._gradient(closure)
            return _Point(t, value, float(slope @ move), slope)

        best = wolfe(at, _Point(0.0, loss, float(gradient @ move), gradient), length)
        if best is None:
            self._write(start)
            self._memory["inverse"] = None
            return loss
        self._write(start + best.t * move)
        self._memory["inverse"] = _updated(inverse, best.t * move, best.gradient - gradient)
        now |= {"point": self._flat(), "loss": best.loss, "gradient": best.gradient}
        return loss


def _updated(inverse: Tensor | None, s: Tensor, y: Tensor) -> Tensor | None:
    """The inverse Hessian that also takes the change y of the gradient to the step s."""
    product = float(s @ y)
    if not product > 1e-14 * float(s.norm() * y.norm()):
        return inverse
    if inverse is None:
        inverse = torch.eye(len(s), dtype=s.dtype, device=s.device) * (product / float(y @ y))
    through = inverse @ y
    along = torch.outer(s, through)
    bent = (1 + float(y @ through) / product) / product
    return inverse + bent * torch.outer(s, s) - (along + along.T) / product


class _Point(NamedTuple):
    t: float
    loss: float
    slope: float
    gradient: Tensor


def wolfe(at: Callable[[float], _Point], start: _Point, t: float, most: int = 25) -> _Point | None:
    """A point that fulfils the strong Wolfe conditions; the best with Armijo's alone after `most`
    trials; None if the loss falls nowhere.

    Nocedal & Wright, algorithms 3.5 and 3.6 in one loop: `low` is the best point so far, and once
    `high` is known, a good one lies between. torch has one, private, that takes a nan for a
    success.
    """
    if not start.slope < 0:
        return None
    low, high = start, None
    for _ in range(most):
        here = at(t)
        if not math.isfinite(here.loss) or not math.isfinite(here.slope):
            here = here._replace(loss=math.inf)
        if here.loss > start.loss + 1e-4 * t * start.slope or here.loss >= low.loss:
            high = here
        elif abs(here.slope) <= -0.9 * start.slope:
            return here
        else:
            if here.slope * ((high.t if high else math.inf) - low.t) >= 0:
                high = low
            low = here
        t = 2 * t if high is None else _between(low, high)
    return low if low.t else None


def _between(a: _Point, b: _Point) -> float:
    """Where the cubic through two points and slopes is lowest (3.59), a tenth inside of both."""
    width = b.t - a.t
    t = a.t + width / 2
    if width and math.isfinite(b.loss):
        d = a.slope + b.slope - 3 * (a.loss - b.loss) / (a.t - b.t)
        square = d * d - a.slope * b.slope
        root = math.copysign(math.sqrt(max(square, 0.0)), width)
        below = b.slope - a.slope + 2 * root
        if square >= 0 and below:
            t = b.t - width * (b.slope + root - d) / below
    first, last = sorted((a.t + width / 10, b.t - width / 10))
    return min(max(t, first), last)
