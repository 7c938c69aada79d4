"""The reference: the rule itself, called on torch tensors. Any device and dtype."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from ..definition import LARGEST
from ..formulas import words
from ..tensors import carries
from ..trace import Program, scalars_of


def _other(fn: Any, of: Callable[[Any, Any], Any]) -> Any:
    """torch's maximum and minimum of two tensors, where one may be a number."""

    def call(a: Any, b: Any) -> Any:
        if not any(isinstance(x, Tensor) and x.ndim for x in (a, b)):
            # of scalars by value: 0 * inf would come back through the other one
            return words.side(of(a, b))
        like = a if isinstance(a, Tensor) else b
        return fn(*(x if isinstance(x, Tensor) else torch.full_like(like, x) for x in (a, b)))

    return call


words.register(
    Tensor,
    sqrt=torch.sqrt,
    log=torch.log,
    abs=torch.abs,
    sign=torch.sign,
    maximum=_other(torch.maximum, words.larger),
    minimum=_other(torch.minimum, words.smaller),
    norm=torch.linalg.vector_norm,
    mean=torch.mean,
    where=words.chosen,
    total=lambda x: _totals.get()(x),
    row_mean=lambda x: x.sum(-1, keepdim=True) / max(1, x.shape[-1]),  # of nothing it is 0
    column_mean=lambda x: x.sum(-2, keepdim=True) / max(1, x.shape[-2]),
    orthogonal=lambda x, *about: _orthogonal(x.flatten(1), *about).reshape(x.shape).to(x.dtype),
    covariances=lambda x: _packed(x, (_covariance(x, k) for k in _squared(x))),
    turned=lambda x, bases: _turned(x, bases, False),
    turned_back=lambda x, bases: _turned(x, bases, True),
    eigenvectors=lambda c, x: _packed(x, map(_eigenvectors, _squares(c, x))),
    refined=lambda c, q, x: _packed(x, map(_refined, _squares(c, x), _squares(q, x))),
    ranked=lambda x, *about: _ranked(x, *about),
    rows=lambda x: words.Number(len(x)),
    columns=lambda x: words.Number(math.prod(x.shape[1:])),
    precision=lambda x: torch.finfo(_stored.get() or x.dtype).eps,
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


_stored: ContextVar[torch.dtype | None] = ContextVar("stored", default=None)
_totals: ContextVar[Callable[[Tensor], Tensor]] = ContextVar("totals", default=torch.sum)


@contextmanager
def totals(found: dict[int, Tensor], add: bool) -> Iterator[None]:
    """Meanwhile each `total` adds its sum to the one in `found`, in order, or (not add) is that."""
    at = itertools.count()

    def total(x: Tensor) -> Tensor:
        i = next(at)
        if add:
            found[i] = x.sum() + found.get(i, 0)
        return found[i]

    before = _totals.set(total)
    try:
        yield
    finally:
        _totals.reset(before)


def _scalar(x: Any) -> Any:
    """A number, or in its place a tensor of no dimensions, in the same precision."""
    return x.reshape(()).to("cpu", torch.float64) if carries(x) else words.Number(x)


def run(
    program: Program,
    choices: dict[str, Any],
    tensors: Sequence[Tensor],
    scalars: dict[str, Any],
    stored: torch.dtype,
) -> tuple[dict[str, Tensor], list[Any]]:
    """One parameter's step: the new tensors by name, and the next carried scalars.

    `tensors` are parameter, gradient and the program's states, in a dtype that may be wider than
    the one that the parameter is stored in; autograd goes through, and through those scalars,
    carried ones too, that are tensors with a history.
    """
    rule, number = program.rule, {n: _scalar(v) for n, v in scalars.items()}
    p, g, *states = tensors
    for modifier in program.modifiers:
        p, g = modifier(p, g, **{n: number[n] for n in scalars_of(modifier)})
    given = dict(zip(program.states, states, strict=True))
    rest = [given.get(n, torch.zeros_like(g)) for n in rule.states]
    # what the choices leave unread may be missing
    mine = {n: number.get(n, words.Number(0)) for n in rule.scalars}
    before = _stored.set(stored)
    try:
        new = rule.function(p, g, *rest, **mine, **choices)
    finally:
        _stored.reset(before)
    new = new if isinstance(new, tuple) else (new,)
    names = (rule.tensors[0], *rule.states)
    values = {n: v for n, v in zip(names, new, strict=False) if n in program.outputs}
    taken = [*tensors]
    for n, v in values.items():
        like = given.get(n, p)
        if not isinstance(v, Tensor):
            v = torch.full_like(like, v)
        elif any(v is x for x in taken):
            v = v.clone()  # it would be overwritten before it is read
        # a scalar is wider, and of no shape
        same = v.dtype == like.dtype and v.ndim
        values[n] = v if same else v.to(like).expand_as(like).clone()
        taken.append(v)
    return values, [_scalar(v) for v in new[len(names) :]]
