"""The CPU backend: one compiled loop over raw pointers steps all tensors of a bucket.

Parameters are float32, float64 or bfloat16. The states of bfloat16 parameters are float32.
`printer.py` turns a program into a Python function, `compiler.py` compiles this function, `work.py`
divides the work among threads, and `bucket.py` passes the tensors.
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
    """Whether the loop supports the parameter and its options.

    The loop does not support autograd through the step.
    """
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
    """Whether the loop can step the parameter in the order of its memory.

    The parameter must be a CPU tensor with dense memory, and not float16.
    """
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
    """Return the Python source of a step's loops: two if the program has reductions, else one.

    Returns None if only torch can run the program.
    """
    if program.matrix:
        return None
    passes = (True, False) if program.first else (False,)
    return "\n\n".join(printer.source(program, first=first) for first in passes)


CPU = Backend("cpu", takes, CpuBucket, source)
