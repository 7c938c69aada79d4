"""The functions of rules, implemented with torch."""

import math
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from ... import ops
from ...definition import LARGEST

stored: ContextVar[torch.dtype | None] = ContextVar("stored", default=None)
"""The dtype in which the parameter of the running rule is stored. `precision` reads it."""
total_of: ContextVar[Callable[[Tensor], Tensor]] = ContextVar("totals", default=torch.sum)
"""The function with which `total` sums a tensor."""


def _allow_numbers(fn: Any, of: Callable[[Any, Any], Any]) -> Any:
    """Make torch's maximum or minimum accept a number as one of its two arguments."""

    def call(a: Any, b: Any) -> Any:
        if not any(isinstance(x, Tensor) and x.ndim for x in (a, b)):
            # scalars are compared as numbers: otherwise the gradient of the value not taken may be
            # 0 * inf
            return ops.evaluate_side(of(a, b))
        like = a if isinstance(a, Tensor) else b
        return fn(*(x if isinstance(x, Tensor) else torch.full_like(like, x) for x in (a, b)))

    return call


ops.register(
    Tensor,
    sqrt=torch.sqrt,
    log=torch.log,
    abs=torch.abs,
    sign=torch.sign,
    maximum=_allow_numbers(torch.maximum, ops.larger),
    minimum=_allow_numbers(torch.minimum, ops.smaller),
    norm=torch.linalg.vector_norm,
    mean=torch.mean,
    where=ops.choose_side,
    total=lambda x: total_of.get()(x),
    row_mean=lambda x: x.sum(-1, keepdim=True) / max(1, x.shape[-1]),  # 0 for an empty tensor
    column_mean=lambda x: x.sum(-2, keepdim=True) / max(1, x.shape[-2]),
    orthogonal=lambda x, *about: _orthogonal(x.flatten(1), *about).reshape(x.shape).to(x.dtype),
    covariances=lambda x: _pack(x, (_covariance(x, k) for k in _square_dims(x))),
    turned=lambda x, bases: _change_basis(x, bases, False),
    turned_back=lambda x, bases: _change_basis(x, bases, True),
    eigenvectors=lambda c, x: _pack(x, map(_decompose, _unpack(c, x))),
    refined=lambda c, q, x: _pack(x, map(_refine, _unpack(c, x), _unpack(q, x))),
    ranked=lambda x, *about: _rank(x, *about),
    rows=lambda x: ops.Number(len(x)),
    columns=lambda x: ops.Number(math.prod(x.shape[1:])),
    precision=lambda x: torch.finfo(stored.get() or x.dtype).eps,
)


def _orthogonal(x: Tensor, a: float, b: float, c: float, eps: float, steps: float) -> Tensor:
    tall = x.shape[0] > x.shape[1]
    y = (x.T if tall else x).bfloat16()
    y = y / y.norm().clamp(min=eps)
    for _ in range(int(steps)):
        gram = y @ y.T
        y = torch.addmm(y, torch.addmm(gram, gram, gram, beta=b, alpha=c), y, beta=a)
    return y.T if tall else y


def _square_dims(x: Tensor) -> list[int]:
    """Return the dimensions of `x` that are small enough to have a covariance matrix."""
    return [k for k, n in enumerate(x.shape) if n <= LARGEST]


def _pack(x: Tensor, squares: Iterable[Tensor]) -> Tensor:
    return torch.cat([x.new_empty(0), *(s.reshape(-1) for s in squares)])


def _unpack(packed: Tensor, x: Tensor) -> list[Tensor]:
    """Return the square matrices in `packed`: one for each dimension in `_square_dims(x)`."""
    sizes = [x.shape[k] for k in _square_dims(x)]
    flat = packed.split([n * n for n in sizes])
    return [s.view(n, n) for s, n in zip(flat, sizes, strict=True)]


def _covariance(x: Tensor, k: int) -> Tensor:
    # the order of summation must not depend on the layout: rounding matters below full rank
    y = x.contiguous().movedim(k, 0).flatten(1)
    return y @ y.T


def _change_basis(x: Tensor, bases: Tensor, back: bool) -> Tensor:
    """Multiply each dimension of `x` that has a basis by this basis.

    back: whether to multiply by the transposed basis instead.
    """
    basis = dict(zip(_square_dims(x), _unpack(bases, x), strict=True))
    y = x.contiguous()
    for k in range(x.dim()):
        y = y.movedim(0, -1)
        if k in basis:
            y = y @ (basis[k].T if back else basis[k])
    return y


def _decompose(covariance: Tensor) -> Tensor:
    # eigh fails on nan
    values, vectors = torch.linalg.eigh(covariance.nan_to_num(0, 0, 0).double())
    _check_derivative(covariance, values.diff())
    return vectors.flip(1).to(covariance)


def _check_derivative(covariance: Tensor, sizes: Tensor) -> None:
    """Raise RuntimeError if autograd would differentiate basis vectors that are not unique.

    If eigenvalues are equal or zero, only rounding decides which eigenvectors are found.
    """
    noise = 100 * len(covariance) * torch.finfo(covariance.dtype).eps
    if covariance.requires_grad and not (sizes.abs() > noise * covariance.trace()).all():
        raise RuntimeError(
            "differentiable=True was given, but the eigenvectors have no derivative, because the "
            f"covariance of the gradients, {tuple(covariance.shape)}, has eigenvalues that are "
            "equal or zero; detach the gradient of the first steps, p.grad = p.grad.detach(), or "
            "give the parameter another rule"
        )


def _order(covariance: Tensor, basis: Tensor) -> Tensor:
    """Return the indices that sort the basis vectors by their Rayleigh quotients, largest first."""
    return (basis * (covariance @ basis)).sum(0).argsort(descending=True)


def _refine(covariance: Tensor, basis: Tensor) -> Tensor:
    q, r = torch.linalg.qr((covariance @ basis)[:, _order(covariance, basis)])
    _check_derivative(covariance, r.diagonal())
    return q


def _rank(x: Tensor, covariances: Tensor, bases: Tensor) -> Tensor:
    each = map(_order, _unpack(covariances, x), _unpack(bases, x))
    for k, order in zip(_square_dims(x), each, strict=True):
        x = x.index_select(k, order)
    return x
