"""Counts and carried scalars: single numbers that lie here and there, read and written as one.

A compiled loop moves their bits, as asking a tensor for its number in Python costs as much as a
small tensor's step.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..tensors import PLAIN, in_bounds
from . import machine

SINGLE, DOUBLE, INTEGER, SHORT, FULL = range(5)
"""Of a cell: its type; a float32 that has reached LIMIT."""
LIMIT = 2**24
"""The count that a float32 ends at: 1 more is the same number."""
_TYPES = {torch.float32: SINGLE, torch.float64: DOUBLE, torch.int64: INTEGER, torch.int32: SHORT}


class Cells:
    """Single numbers that lie here and there, one of each row for each parameter.

    A cell is a tensor of one element on the CPU, read and written where it lies, as others may
    count in it too; whatever has no such tensor lies in an array here. Addresses are good as long
    as `Seen` says so.
    """

    def __init__(self, rows: int, n: int) -> None:
        self.own, self.kinds = np.zeros((rows, n)), np.full((rows, n), DOUBLE, np.int64)
        start = self.own.ctypes.data
        self.addresses = start + 8 * np.arange(rows * n, dtype=np.int64).reshape(rows, n)

    @staticmethod
    def able(x: Any) -> bool:
        """Whether a cell can be this tensor."""
        plain = type(x) in PLAIN and x.dtype in _TYPES and x.numel() == 1
        return plain and x.device.type == "cpu" and x.layout is torch.strided and in_bounds(x)

    def put(self, row: int, k: int, x: Tensor) -> None:
        """The cell in this row for this parameter is the tensor x."""
        self.addresses[row, k], self.kinds[row, k] = x.data_ptr(), _TYPES[x.dtype]

    def full(self) -> np.ndarray:
        """Whose count a loop has left at the end of float32, and marked so."""
        at = np.flatnonzero(self.kinds[0] == FULL)
        self.kinds[0, at] = SINGLE
        return at

    def read(self) -> np.ndarray:
        """All numbers, as doubles of shape (rows, n)."""
        bits = _move(self.addresses, self.kinds)
        values = np.where(self.kinds == DOUBLE, bits.view(np.float64), bits)
        singles = bits.astype(np.int32).view(np.float32)
        return np.where(self.kinds == SINGLE, singles, values).reshape(self.own.shape)

    def write(self, values: np.ndarray, at: Sequence[int]) -> None:
        """Write columns: values of shape (rows, len(at))."""
        addresses, kinds = self.addresses[:, at], self.kinds[:, at]
        values = np.ascontiguousarray(values, np.float64)
        with np.errstate(all="ignore"):  # what a type has no room for is inf there
            singles = values.astype(np.float32).view(np.int32)
            whole = values.astype(np.int64)
        bits = np.where(kinds == DOUBLE, values.view(np.int64), whole)
        bits = np.where(kinds == SINGLE, singles, bits)
        _move(addresses, kinds, bits)


_SOURCE = f"""
def cells(job):
    cells = job[2]
    bits = job[4]
    for k in range(job[0]):
        cell = cells[k]
        narrow = job[3][k] == {SINGLE} or job[3][k] >= {SHORT}
        if job[1] == 0 and narrow:
            bits[k] = load4(cell)
        elif job[1] == 0:
            bits[k] = cell[0]
        elif narrow:
            store4(cell, bits[k])
        else:
            cell[0] = bits[k]
"""


@cache
def _loop() -> Callable[[int], Any]:
    return machine.load_integers("cells", _SOURCE)


def _move(addresses: np.ndarray, kinds: np.ndarray, bits: np.ndarray | None = None) -> np.ndarray:
    """The bits of cells; or, given these, write them there."""
    addresses, kinds = np.ascontiguousarray(addresses), np.ascontiguousarray(kinds)
    write, bits = bits is not None, np.zeros_like(kinds) if bits is None else bits
    bits = np.ascontiguousarray(bits, np.int64)
    try:
        loop = _loop()
    except machine.Stuck:  # in a forked child that cannot load one
        for i, (address, kind) in enumerate(zip(addresses.flat, kinds.flat, strict=True)):
            narrow = kind in (SINGLE, SHORT, FULL)
            cell = (ctypes.c_int32 if narrow else ctypes.c_int64).from_address(int(address))
            if write:
                cell.value = int(bits.flat[i])
            else:
                bits.flat[i] = cell.value
        return bits
    arrays = (addresses, kinds, bits)
    job = np.array([bits.size, write, *(x.ctypes.data for x in arrays)], np.int64)
    loop(job.ctypes.data)
    return bits
