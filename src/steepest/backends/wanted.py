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
    """What a group asks of the backends. backend None: the fastest one for each tensor."""

    selection: Selection
    backend: str | None = None
    differentiable: bool = False
    rounding: str | None = None
    seed: int = 0


@cache
def program_of(selection: Selection) -> Program:
    """The traced program of a selection, made once."""
    return selection.rule.trace(selection.modifiers, **dict(selection.choices))


def takes_sparse(selection: Selection, g: Tensor | None) -> bool:
    """Whether the gradient is sparse and the rule can step only the rows in it."""
    supported = bool(selection.rule.sparse) and {*selection.modifiers} <= {modifiers.maximize}
    return supported and g is not None and g.layout is torch.sparse_coo


def wider(p: Tensor, g: Tensor | None) -> bool:
    """Whether a 16-bit parameter has a float32 gradient, as gradient accumulation may leave it."""
    return g is not None and p.dtype in codecs.HALVES and g.dtype is torch.float32
