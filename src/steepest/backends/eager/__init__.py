"""The reference: the rule itself, called on one parameter after the other. Any device and dtype."""

from __future__ import annotations

import inspect

from torch import Tensor

from ...trace import Program
from ..backend import Backend
from ..bucket import Wanted, takes_sparse
from .bucket import EagerBucket


def takes(wanted: Wanted, p: Tensor) -> bool:
    """All that is dense."""
    return not takes_sparse(wanted.selection, p.grad)


def source(program: Program) -> str:
    """The rule as it is written."""
    return inspect.getsource(program.rule.function)


EAGER = Backend("eager", takes, EagerBucket, source)
