"""torch._foreach_*: the default for devices and dtypes that the compiled loop does not support."""

from __future__ import annotations

from torch import Tensor

from ...printing import host_notes
from ...trace import Program
from ..backend import Backend
from ..wanted import Wanted, program_of, takes_sparse
from . import printer
from .bucket import ForeachBucket


def runs(program: Program) -> bool:
    """Whether this backend can run a program: one without reductions and matrix functions."""
    return not (program.matrix or program.reductions)


def takes(wanted: Wanted, p: Tensor) -> bool:
    """Whether the backend runs this program, or the gradient is sparse and its rows are stepped."""
    dense = runs(program_of(wanted.selection)) and not wanted.differentiable
    return dense or takes_sparse(wanted.selection, p.grad)


def source(program: Program) -> str | None:
    """The calls on lists, and in comments how their scalars are computed."""
    if not runs(program):
        return None
    return printer.source(program) + "".join(f"    # {line}\n" for line in host_notes(program))


FOREACH = Backend("foreach", takes, ForeachBucket, source)
