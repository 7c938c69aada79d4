"""The reference: the rule itself, called on torch tensors. Any device and dtype."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from ..formulas import words
from ..trace import Program, scalars_of


def _other(fn: Any) -> Any:
    """torch's maximum and minimum of two tensors, where one may be a number."""

    def call(a: Any, b: Any) -> Tensor:
        like = a if isinstance(a, Tensor) else b
        return fn(*(x if isinstance(x, Tensor) else torch.full_like(like, x) for x in (a, b)))

    return call


words.register(
    Tensor,
    sqrt=torch.sqrt,
    abs=torch.abs,
    sign=torch.sign,
    maximum=_other(torch.maximum),
    minimum=_other(torch.minimum),
    norm=torch.linalg.vector_norm,
    mean=torch.mean,
    where=lambda condition, a, b: torch.where(condition, a, b),
    total=lambda x: _totals.get()(x),
    row_mean=lambda x: x.sum(-1, keepdim=True) / max(1, x.shape[-1]),  # of nothing it is 0
    column_mean=lambda x: x.sum(-2, keepdim=True) / max(1, x.shape[-2]),
    orthogonal=lambda x: _orthogonal(x.flatten(1)).reshape(x.shape).to(x.dtype),
    rows=lambda x: words.Number(len(x)),
    columns=lambda x: words.Number(math.prod(x.shape[1:])),
    precision=lambda x: torch.finfo(x.dtype).eps,
)


def _orthogonal(x: Tensor) -> Tensor:
    wide = x.bfloat16()
    tall = x.shape[0] > x.shape[1]
    y = wide.T if tall else wide
    y = y / y.norm().clamp(min=1e-7)
    for _ in range(5):
        gram = y @ y.T
        y = torch.addmm(y, torch.addmm(gram, gram, gram, beta=-4.775, alpha=2.0315), y, beta=3.4445)
    return y.T if tall else y


_totals: ContextVar[Callable[[Tensor], Tensor]] = ContextVar("totals", default=torch.sum)


@contextmanager
def totals(found: list[Tensor], add: bool) -> Iterator[None]:
    """Meanwhile each `total` adds its sum to the one in `found`, in order, or (not add) is that."""
    at = itertools.count()

    def total(x: Tensor) -> Tensor:
        i = next(at)
        if add and i == len(found):
            found.append(x.sum())
        elif add:
            found[i] = found[i] + x.sum()
        return found[i]

    before = _totals.set(total)
    try:
        yield
    finally:
        _totals.reset(before)


def run(
    program: Program, choices: dict[str, Any], tensors: Sequence[Tensor], scalars: dict[str, float]
) -> tuple[dict[str, Tensor], list[float]]:
    """One parameter's step: the new tensors by name, and the next carried scalars.

    `tensors` are parameter, gradient and the program's states; autograd goes through.
    """
    rule, number = program.rule, {n: words.Number(v) for n, v in scalars.items()}
    p, g, *states = tensors
    for modifier in program.modifiers:
        p, g = modifier(p, g, **{n: number[n] for n in scalars_of(modifier)})
    given = dict(zip(program.states, states, strict=True))
    rest = [given.get(n, torch.zeros_like(g)) for n in rule.states]
    # what the choices leave unread may be missing
    mine = {n: number.get(n, words.Number(0)) for n in rule.scalars}
    new = rule.function(p, g, *rest, **mine, **choices)
    new = new if isinstance(new, tuple) else (new,)
    names = (rule.tensors[0], *rule.states)
    values = {n: v for n, v in zip(names, new, strict=False) if n in program.outputs}
    for n, v in values.items():
        if not isinstance(v, Tensor):
            values[n] = torch.full_like(p, v)
        elif any(v is x for x in tensors):
            values[n] = v.clone()  # it would be overwritten before it is read
    return values, [float(v) for v in new[len(names) :]]
