"""The reference: the rule itself, called on torch tensors. Any device, any dtype, differentiable."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..formulas import words
from ..trace import Program


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
)


def run(
    program: Program,
    choices: dict[str, Any],
    tensors: Sequence[Tensor],
    scalars: dict[str, float],
) -> tuple[dict[str, Tensor], list[float]]:
    """One parameter's step: the new tensors by name, and the next carried scalars.

    `tensors` are parameter, gradient and the program's states; autograd goes through.
    """
    rule = program.rule
    p, g, *states = tensors
    given = dict(zip(program.states, states, strict=True))
    number = {n: words.Number(v) for n, v in scalars.items()}
    for modifier in program.modifiers:
        wanted = modifier.__code__.co_varnames[2 : 2 + modifier.__code__.co_kwonlyargcount]
        p, g = modifier(p, g, **{n: number[n] for n in wanted})
    rest = [given.get(n, torch.zeros_like(g)) for n in rule.states]
    mine = {*rule.defaults, *rule.carried, *rule.captured, *(["t"] if rule.counted else ())}
    new = rule.function(p, g, *rest, **{n: number[n] for n in mine}, **choices)
    new = new if isinstance(new, tuple) else (new,)
    names = (rule.tensors[0], *rule.states)
    values = {
        n: v if isinstance(v, Tensor) else torch.full_like(p, v)
        for n, v in zip(names, new, strict=False)
        if n in program.outputs
    }
    return values, [float(v) for v in new[len(names) :]]
