"""The eager backend, which is the reference. It calls the rule itself for each parameter in turn.

It works on any device and dtype.
"""

from __future__ import annotations

import inspect

from torch import Tensor

from ...trace import Program
from ..backend import Backend
from ..wanted import Wanted, takes_sparse
from .bucket import EagerBucket


def takes(wanted: Wanted, p: Tensor) -> bool:
    """Whether this backend can step the parameter.

    It can, unless only the rows in a sparse gradient have to be stepped.
    """
    return not takes_sparse(wanted.selection, p.grad)


def source(program: Program) -> str:
    """Return the source of the rule as it is written."""
    return inspect.getsource(program.rule.function)


EAGER = Backend("eager", takes, EagerBucket, source)
