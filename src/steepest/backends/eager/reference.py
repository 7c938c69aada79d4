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
    """Meanwhile each `total` adds its sum to the one in `sums`, in order, or (not add) is that."""
    at = itertools.count()

    def total(x: Tensor) -> Tensor:
        i = next(at)
        if add:
            sums[i] = x.sum() + sums.get(i, 0)
        return sums[i]

    before = operations.total_of.set(total)
    try:
        yield
    finally:
        operations.total_of.reset(before)


def _scalar(x: Any) -> Any:
    """A number, or in its place a tensor of no dimensions, in the same precision."""
    return x.reshape(()).to("cpu", torch.float64) if carries(x) else ops.Number(x)


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
    mine = {n: number.get(n, ops.Number(0)) for n in rule.scalars}
    before = operations.stored.set(stored)
    try:
        new = rule.function(p, g, *rest, **mine, **choices)
    finally:
        operations.stored.reset(before)
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
