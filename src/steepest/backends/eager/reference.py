"""The reference: the rule itself, called on torch tensors."""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ... import ops
from ...tensors import carries
from ...trace import Program, scalars_of
from . import operations


@contextmanager
def totals(sums: dict[int, Tensor], add: bool) -> Iterator[None]:
    """Within this context, the i-th call of `total` returns sums[i], with i from 0.

    add: whether the i-th call first adds the sum of its tensor to sums[i].
    """
    calls = itertools.count()

    def total(x: Tensor) -> Tensor:
        i = next(calls)
        if add:
            sums[i] = x.sum() + sums.get(i, 0)
        return sums[i]

    token = operations.total_of.set(total)
    try:
        yield
    finally:
        operations.total_of.reset(token)


def _scalar(x: Any) -> Any:
    """Convert a scalar to a `Number`.

    A scalar with an autograd history becomes a float64 tensor without dimensions instead.
    """
    return x.reshape(()).to("cpu", torch.float64) if carries(x) else ops.Number(x)


def run(
    program: Program,
    choices: dict[str, Any],
    tensors: Sequence[Tensor],
    scalars: dict[str, Any],
    stored: torch.dtype,
) -> tuple[dict[str, Tensor], list[Any]]:
    """Compute the step of one parameter.

    Returns the new tensors by name, and the next carried scalars.

    tensors: the parameter, the gradient and the program's states. Their dtype may be wider than
        `stored`.
    stored: the dtype in which the parameter is stored.

    Autograd goes through the tensors. It also goes through scalars and carried scalars that are
    tensors with an autograd history.
    """
    rule, number = program.rule, {n: _scalar(v) for n, v in scalars.items()}
    p, g, *states = tensors
    for modifier in program.modifiers:
        p, g = modifier(p, g, **{n: number[n] for n in scalars_of(modifier)})
    by_name = dict(zip(program.states, states, strict=True))
    all_states = [by_name.get(n, torch.zeros_like(g)) for n in rule.states]
    # a scalar may be missing if the choices make the rule not read it
    arguments = {n: number.get(n, ops.Number(0)) for n in rule.scalars}
    token = operations.stored.set(stored)
    try:
        new = rule.function(p, g, *all_states, **arguments, **choices)
    finally:
        operations.stored.reset(token)
    new = new if isinstance(new, tuple) else (new,)
    names = (rule.tensors[0], *rule.states)
    values = {n: v for n, v in zip(names, new, strict=False) if n in program.outputs}
    in_use = [*tensors]
    for n, v in values.items():
        like = by_name.get(n, p)
        if not isinstance(v, Tensor):
            v = torch.full_like(like, v)
        elif any(v is x for x in in_use):
            v = v.clone()  # else it would be overwritten before it is read
        # a scalar has a wider dtype and no dimensions
        fits = v.dtype == like.dtype and v.ndim
        values[n] = v if fits else v.to(like).expand_as(like).clone()
        in_use.append(v)
    return values, [_scalar(v) for v in new[len(names) :]]
