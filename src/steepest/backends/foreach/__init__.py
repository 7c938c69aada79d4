"""torch._foreach_*: the default on every device and dtype without a kernel of its own."""

from __future__ import annotations

from torch import Tensor

from ...printing import host_notes
from ...trace import Program
from ..backend import Backend
from ..wanted import Wanted, program_of, takes_sparse
from . import printer
from .bucket import ForeachBucket


def runs(program: Program) -> bool:
    """Whether it can run a program: lists have no sum over one tensor, and no matrix functions."""
    return not (program.matrix or program.reductions)


def takes(wanted: Wanted, p: Tensor) -> bool:
    """Parameters of all programs that it runs, and the rows of sparse gradients."""
    dense = runs(program_of(wanted.selection)) and not wanted.differentiable
    return dense or takes_sparse(wanted.selection, p.grad)


def source(program: Program) -> str | None:
    """The calls, and how their scalars are computed."""
    if not runs(program):
        return None
    return printer.source(program) + "".join(f"    # {line}\n" for line in host_notes(program))


FOREACH = Backend("foreach", takes, ForeachBucket, source)
