"""What a group of parameters asks of the backends."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from .. import codecs
from ..family import Selection
from ..formulas import modifiers
from ..trace import Program


class Wanted(NamedTuple):
    """What a group asks of the backends.

    backend: the name of a backend. None means the fastest backend for each tensor.
    """

    selection: Selection
    backend: str | None = None
    differentiable: bool = False
    rounding: str | None = None
    seed: int = 0


@cache
def program_of(selection: Selection) -> Program:
    """Return the traced program of a selection. Each selection is traced only once."""
    return selection.rule.trace(selection.modifiers, **dict(selection.choices))


def takes_sparse(selection: Selection, g: Tensor | None) -> bool:
    """Whether the gradient `g` is sparse and the rule can step just the rows that are in `g`."""
    supported = bool(selection.rule.sparse) and {*selection.modifiers} <= {modifiers.maximize}
    return supported and g is not None and g.layout is torch.sparse_coo


def wider(p: Tensor, g: Tensor | None) -> bool:
    """Whether a 16-bit parameter has a float32 gradient.

    Gradient accumulation may leave such a gradient.
    """
    return g is not None and p.dtype in codecs.HALVES and g.dtype is torch.float32
