"""The foreach backend, which calls the functions torch._foreach_*.

It is the default for devices and dtypes that the CPU's compiled loop does not support.
"""

from __future__ import annotations

from torch import Tensor

from ...printing import host_notes
from ...trace import Program
from ..backend import Backend
from ..wanted import Wanted, program_of, takes_sparse
from . import printer
from .bucket import ForeachBucket


def runs(program: Program) -> bool:
    """Whether this backend can run a program.

    The program must have no reductions and no matrix functions.
    """
    return not (program.matrix or program.reductions)


def takes(wanted: Wanted, p: Tensor) -> bool:
    """Whether this backend can step the parameter.

    It can if it runs the program and autograd does not go through the step, or if the rule can step
    just the rows in a sparse gradient.
    """
    dense = runs(program_of(wanted.selection)) and not wanted.differentiable
    return dense or takes_sparse(wanted.selection, p.grad)


def source(program: Program) -> str | None:
    """Return the calls on lists, with comments on how the scalars in these calls are computed.

    Returns None if this backend cannot run the program.
    """
    if not runs(program):
        return None
    return printer.source(program) + "".join(f"    # {line}\n" for line in host_notes(program))


FOREACH = Backend("foreach", takes, ForeachBucket, source)
