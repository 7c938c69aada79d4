"""A plan: one group's parameters and states laid out for the backends, kept from step to step.

A part is a share of the group that one backend steps in one go. `ready` checks everything and
writes nothing; the function that it returns writes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .compiled import CompiledPart
from .listed import ForeachPart, ReferencePart, SparsePart
from .part import Part, Stale, Wanted, describe, local, program_of, takes_sparse

__all__ = ["BACKENDS", "Part", "Stale", "Wanted", "describe", "parts", "program_of"]
BACKENDS = ("cpu", "foreach", "eager")


def compiled_for(p: Tensor) -> bool:
    """Whether the CPU's loop can step the parameter: dense memory, and not float16."""
    return (
        p.device.type == "cpu"
        and p.dtype in (torch.float32, torch.float64, torch.bfloat16)
        and type(p) in (Tensor, torch.nn.Parameter)
        and p.layout is torch.strided
        and p.numel() > 0
        and not p.is_neg()
        # a copy that preserves the format has the strides of dense memory alone
        and (p.is_contiguous() or torch.empty_like(p, device="meta").stride() == p.stride())
    )


def parts(
    wanted: Wanted,
    params: Sequence[Tensor],
    state: Callable[[Tensor], dict[str, Any] | None],
    firsts: Callable[[Tensor], int],
) -> list[Part]:
    """The group's parameters shared out among the backends."""
    found: dict[Any, dict[Tensor, dict[str, Any]]] = {}
    rule, backend = wanted.selection.rule.name, wanted.backend
    # what is summed over all parameters is summed in one part
    loops = not program_of(wanted.selection).spans or all(map(compiled_for, map(local, params)))
    for p in params:
        sharded = hasattr(p, "to_local")
        selected = wanted._replace(selection=wanted.selection.of(p))
        program = program_of(selected.selection)
        if any(step == 0 and size > 1 for step, size in zip(p.stride(), p.shape, strict=True)):
            raise RuntimeError(
                f"{rule}: a parameter {describe(p)} with strides {p.stride()} was given, expected "
                "one whose elements have memory of their own; expand it in the model instead"
            )
        if wanted.rounding == "stochastic" and p.dtype == torch.float16:
            raise RuntimeError(
                f"{rule}: rounding='stochastic' was given for {describe(p)}, expected "
                "torch.bfloat16 (or 32 bits and more, which need none); take rounding='kahan'"
            )
        if sharded and (program.reductions or program.matrix):
            raise RuntimeError(
                f"{rule}: a sharded parameter of shape {tuple(p.shape)} was given, expected whole "
                "ones, as it looks at each as a whole; use DDP or replicate it"
            )
        if program.matrix and p.is_complex():
            raise RuntimeError(
                f"{rule}: {describe(p)} was given, expected real numbers, as torch.optim does; "
                "hand it to another rule, in a group with rule=..."
            )
        if wanted.differentiable and p.grad is not None and p.grad.layout is not torch.strided:
            raise RuntimeError(
                f"{rule}: a gradient of layout {p.grad.layout} was given with differentiable=True, "
                "expected a dense one; call p.grad = p.grad.to_dense() before the step"
            )
        kind: type[Part] = ForeachPart
        if takes_sparse(wanted.selection, p.grad):
            kind = SparsePart
        elif wanted.differentiable or backend == "eager" or program.matrix:
            kind = ReferencePart
        elif backend != "foreach" and loops and compiled_for(local(p)):
            kind = CompiledPart
        elif program.reductions:
            kind = ReferencePart
        found.setdefault((kind, selected, p.device, p.dtype, sharded), {})[p] = state(p) or {}
    return [kind(selected, old, firsts) for (kind, selected, *_), old in found.items()]
