"""The words of rules, said by torch: what each does with a tensor."""

import math
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from ... import ops
from ...definition import LARGEST

stored: ContextVar[torch.dtype | None] = ContextVar("stored", default=None)
"""The dtype that the parameter of the rule that runs is stored in, for `precision`."""
total_of: ContextVar[Callable[[Tensor], Tensor]] = ContextVar("totals", default=torch.sum)
"""What adds up the numbers of a tensor, for `total`."""


def _other(fn: Any, of: Callable[[Any, Any], Any]) -> Any:
    """torch's maximum and minimum of two tensors, where one may be a number."""

    def call(a: Any, b: Any) -> Any:
        if not any(isinstance(x, Tensor) and x.ndim for x in (a, b)):
            # of scalars by value: 0 * inf would come back through the other one
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
    maximum=_other(torch.maximum, ops.larger),
    minimum=_other(torch.minimum, ops.smaller),
    norm=torch.linalg.vector_norm,
    mean=torch.mean,
    where=ops.choose_side,
    total=lambda x: total_of.get()(x),
    row_mean=lambda x: x.sum(-1, keepdim=True) / max(1, x.shape[-1]),  # of nothing it is 0
    column_mean=lambda x: x.sum(-2, keepdim=True) / max(1, x.shape[-2]),
    orthogonal=lambda x, *about: _orthogonal(x.flatten(1), *about).reshape(x.shape).to(x.dtype),
    covariances=lambda x: _packed(x, (_covariance(x, k) for k in _squared(x))),
    turned=lambda x, bases: _turned(x, bases, False),
    turned_back=lambda x, bases: _turned(x, bases, True),
    eigenvectors=lambda c, x: _packed(x, map(_eigenvectors, _squares(c, x))),
    refined=lambda c, q, x: _packed(x, map(_refined, _squares(c, x), _squares(q, x))),
    ranked=lambda x, *about: _ranked(x, *about),
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


def _squared(x: Tensor) -> list[int]:
    """The dimensions of x that have a covariance."""
    return [k for k, n in enumerate(x.shape) if n <= LARGEST]


def _packed(x: Tensor, squares: Iterable[Tensor]) -> Tensor:
    return torch.cat([x.new_empty(0), *(s.reshape(-1) for s in squares)])


def _squares(packed: Tensor, x: Tensor) -> list[Tensor]:
    """What was packed, a square for each dimension of x that has one."""
    sizes = [x.shape[k] for k in _squared(x)]
    flat = packed.split([n * n for n in sizes])
    return [s.view(n, n) for s, n in zip(flat, sizes, strict=True)]


def _covariance(x: Tensor, k: int) -> Tensor:
    # where a gradient has no full rank rounding decides, and that by the layout too
    y = x.contiguous().movedim(k, 0).flatten(1)
    return y @ y.T


def _turned(x: Tensor, bases: Tensor, back: bool) -> Tensor:
    """Each dimension in turn goes to the end, and through its basis if it has one."""
    of = dict(zip(_squared(x), _squares(bases, x), strict=True))
    y = x.contiguous()
    for k in range(x.dim()):
        y = y.movedim(0, -1)
        y = y @ (of[k].T if back else of[k]) if k in of else y
    return y


def _eigenvectors(covariance: Tensor) -> Tensor:
    # of a nan it has none
    values, vectors = torch.linalg.eigh(covariance.nan_to_num(0, 0, 0).double())
    _decided(covariance, values.diff())
    return vectors.flip(1).to(covariance)


def _decided(covariance: Tensor, sizes: Tensor) -> None:
    """Raise where autograd would go through a basis of which rounding decides a part."""
    noise = 100 * len(covariance) * torch.finfo(covariance.dtype).eps
    if covariance.requires_grad and not (sizes.abs() > noise * covariance.trace()).all():
        raise RuntimeError(
            "differentiable=True was given and the covariance of the gradients, "
            f"{tuple(covariance.shape)}, has eigenvalues that are equal or zero, expected others, "
            "as its eigenvectors have no derivative there; detach the gradient of the first "
            "steps, p.grad = p.grad.detach(), or hand the parameter to another rule"
        )


def _order(covariance: Tensor, basis: Tensor) -> Tensor:
    """Of the basis, by its Rayleigh quotients."""
    return (basis * (covariance @ basis)).sum(0).argsort(descending=True)


def _refined(covariance: Tensor, basis: Tensor) -> Tensor:
    q, r = torch.linalg.qr((covariance @ basis)[:, _order(covariance, basis)])
    _decided(covariance, r.diagonal())
    return q


def _ranked(x: Tensor, covariances: Tensor, bases: Tensor) -> Tensor:
    each = map(_order, _squares(covariances, x), _squares(bases, x))
    for k, order in zip(_squared(x), each, strict=True):
        x = x.index_select(k, order)
    return x
