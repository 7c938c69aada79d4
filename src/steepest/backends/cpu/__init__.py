"""The CPU: one compiled loop over raw pointers for all tensors of a bucket.

Parameters are float32, float64 or bfloat16 (with states of float32). `printer.py` turns a program
into a Python function, `compiler.py` compiles it, `work.py` divides the work among threads, and
`bucket.py` passes the tensors.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ... import codecs
from ...tensors import local
from ...trace import Program
from ..backend import Backend
from ..wanted import Wanted, program_of, takes_sparse
from . import printer
from .bucket import CpuBucket


def takes(wanted: Wanted, p: Tensor) -> bool:
    """Whether the loop supports the parameter and its options; it does not support autograd."""
    selection = wanted.selection
    program = program_of(selection)
    plain = all(codecs.of_state(selection.rule.keys[s]) is codecs.NEAREST for s in program.states)
    return (
        plain
        and not program.matrix
        and not wanted.differentiable
        and not takes_sparse(selection, p.grad)
        and is_walkable(local(p))
    )


def is_walkable(p: Tensor) -> bool:
    """Whether the loop can walk along the parameter: dense memory, and not float16."""
    return (
        p.device.type == "cpu"
        and p.dtype in (torch.float32, torch.float64, torch.bfloat16)
        and type(p) in (Tensor, torch.nn.Parameter)
        and p.layout is torch.strided
        and p.numel() > 0
        and not p.is_neg()
        # a copy that preserves the format has the same strides only if the memory is dense
        and (p.is_contiguous() or torch.empty_like(p, device="meta").stride() == p.stride())
    )


def source(program: Program) -> str | None:
    """The loops of a step, as Python: one, or two if the program has reductions."""
    if program.matrix:
        return None
    passes = (True, False) if program.first else (False,)
    return "\n\n".join(printer.source(program, first=first) for first in passes)


CPU = Backend("cpu", takes, CpuBucket, source)
