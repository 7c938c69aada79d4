"""The reference: the rule itself, called for each parameter in turn, on any device and dtype."""

from __future__ import annotations

import inspect

from torch import Tensor

from ...trace import Program
from ..backend import Backend
from ..wanted import Wanted, takes_sparse
from .bucket import EagerBucket


def takes(wanted: Wanted, p: Tensor) -> bool:
    """Everything but the rows of sparse gradients."""
    return not takes_sparse(wanted.selection, p.grad)


def source(program: Program) -> str:
    """The rule as it is written."""
    return inspect.getsource(program.rule.function)


EAGER = Backend("eager", takes, EagerBucket, source)
