"""Step counts and carried scalars: single numbers in scattered memory, read and written together.

A compiled loop reads and writes these numbers. In Python, reading the number in one tensor would
take as long as the step of a small tensor.
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
from . import compiler

SINGLE, DOUBLE, INTEGER, SHORT, FULL = range(5)
"""The types of cells: float32, float64, int64 and int32. FULL marks a float32 count that has
reached LIMIT.
"""
LIMIT = 2**24
"""The largest count that float32 can hold: in float32, LIMIT + 1 rounds to LIMIT."""
_TYPES = {torch.float32: SINGLE, torch.float64: DOUBLE, torch.int64: INTEGER, torch.int32: SHORT}


class Cells:
    """Single numbers in scattered memory, one for each row and parameter.

    Row 0 has the step counts, and each other row has one carried scalar. A cell is a tensor of one
    element on the CPU. Its number is read and written in place, because other code may change this
    number too. A number without such a tensor is kept in the array `own`. The addresses of cells
    are valid as long as the executor's `Snapshot` matches.
    """

    def __init__(self, rows: int, n: int) -> None:
        self.own, self.types = np.zeros((rows, n)), np.full((rows, n), DOUBLE, np.int64)
        start = self.own.ctypes.data
        self.addresses = start + 8 * np.arange(rows * n, dtype=np.int64).reshape(rows, n)

    @staticmethod
    def can_use(x: Any) -> bool:
        """Whether the tensor `x` can be a cell."""
        plain = type(x) in PLAIN and x.dtype in _TYPES and x.numel() == 1
        return plain and x.device.type == "cpu" and x.layout is torch.strided and in_bounds(x)

    def put(self, row: int, k: int, x: Tensor) -> None:
        """Use the tensor `x` as the cell of parameter `k` in row `row`."""
        self.addresses[row, k], self.types[row, k] = x.data_ptr(), _TYPES[x.dtype]

    def take_full(self) -> np.ndarray:
        """Return the indices of the parameters whose float32 count has reached LIMIT.

        Clears the marks of these parameters.
        """
        at = np.flatnonzero(self.types[0] == FULL)
        self.types[0, at] = SINGLE
        return at

    def read(self) -> np.ndarray:
        """Return all numbers as doubles, in an array of shape (rows, n)."""
        bits = _move(self.addresses, self.types)
        values = np.where(self.types == DOUBLE, bits.view(np.float64), bits)
        singles = bits.astype(np.int32).view(np.float32)
        return np.where(self.types == SINGLE, singles, values).reshape(self.own.shape)

    def write(self, values: np.ndarray, at: Sequence[int]) -> None:
        """Write all numbers of the parameters with the indices `at`.

        values: the numbers, in an array of shape (rows, len(at)).
        """
        addresses, types = self.addresses[:, at], self.types[:, at]
        values = np.ascontiguousarray(values, np.float64)
        with np.errstate(all="ignore"):  # a value beyond a type's range becomes inf
            singles = values.astype(np.float32).view(np.int32)
            integers = values.astype(np.int64)
        bits = np.where(types == DOUBLE, values.view(np.int64), integers)
        bits = np.where(types == SINGLE, singles, bits)
        _move(addresses, types, bits)


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
    return compiler.load_integers("cells", _SOURCE)


def _move(addresses: np.ndarray, types: np.ndarray, bits: np.ndarray | None = None) -> np.ndarray:
    """Read the bits of the cells at `addresses`, or write `bits` to these cells if it is given.

    Returns the bits.
    """
    addresses, types = np.ascontiguousarray(addresses), np.ascontiguousarray(types)
    write, bits = bits is not None, np.zeros_like(types) if bits is None else bits
    bits = np.ascontiguousarray(bits, np.int64)
    try:
        loop = _loop()
    except compiler.Stuck:  # a forked child that cannot load the loop
        for i, (address, code) in enumerate(zip(addresses.flat, types.flat, strict=True)):
            narrow = code in (SINGLE, SHORT, FULL)
            cell = (ctypes.c_int32 if narrow else ctypes.c_int64).from_address(int(address))
            if write:
                cell.value = int(bits.flat[i])
            else:
                bits.flat[i] = cell.value
        return bits
    arrays = (addresses, types, bits)
    job = np.array([bits.size, write, *(x.ctypes.data for x in arrays)], np.int64)
    loop(job.ctypes.data)
    return bits
