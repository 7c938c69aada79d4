"""The work of a step: the loops and the arrays that the loops use. Both are kept from step to step.

Work is cut into pieces of at most CHUNK elements. Threads take one piece after the other, by an
atomic counter. The borders of the pieces depend only on the sizes of the tensors, so results do not
depend on the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ...codecs import Tensors
from ...trace import Program
from .. import compiler, threads
from ..cells import Cells
from .printer import ARRAYS, MARKED, NEXT, ONLY, source

CHUNK = 1 << 16  # elements; large enough to be worth taking, small enough to share


class Work:
    """The loops and what they need at each step: addresses, pieces and scratch memory.

    A `Work` holds no tensor.

    wide: whether the gradients of bfloat16 parameters are float32.
    columns: the parameters, then the tensors of each state.
    firsts: the index of each parameter's first element, for the noise of stochastic rounding.
    """

    def __init__(
        self,
        program: Program,
        storage: str,
        wide: bool,
        columns: Sequence[Tensors],
        cells: Cells,
        firsts: Sequence[int],
    ) -> None:
        params = columns[0]
        n, sizes = len(params), [p.numel() for p in params]
        name, size = program.rule.name, max(params[0].element_size(), 4)
        self.loops = [
            compiler.load(name, source(program, storage, first, wide), size, first)
            for first in ([True, False] if program.first else [False])
        ]
        slots = max(len(each.slots) for each in (program, program.first or program))
        addresses = [[x.data_ptr() for x in column] for column in columns]
        self.table = np.array([addresses[0], [0] * n, *addresses[1:]], np.int64)
        self.gradients = self.table[1]
        self.scalars, self.keys = np.zeros(len(program.scalars)), np.zeros(n, np.int64)
        self.chunks, borders = _cut(sizes)
        count, self.pieces, self.elements = self.chunks.shape[1], len(borders) - 1, sum(sizes)
        starts = np.searchsorted(self.chunks[0], np.arange(n + 1)).astype(np.int64)
        # the reductions over all parameters
        self.spanning = [i for i, x in enumerate(program.reductions) if x.op == "total"]
        reductions = len(program.reductions)
        rows, self.sums = np.zeros((n, max(slots, 1))), np.zeros((reductions, count))
        self.totals, row_of = np.zeros(reductions), np.zeros(n, np.int64)
        arrays = {
            "addresses": self.table,
            "row_of": row_of,
            "chunks": self.chunks,
            "borders": borders,
            "starts": starts,
            "firsts": np.array(firsts, np.int64),
            "keys": self.keys,
            "cells": cells.addresses,
            "types": cells.types,
            "scalar": self.scalars,
            "rows": rows,
            "sums": self.sums,
            "totals": self.totals,
        }
        self.arrays = [arrays[name] for name in ARRAYS]  # kept alive: the job has their addresses
        pointers = [array.ctypes.data for array in self.arrays]
        self.job = np.array([-1, 0, self.pieces, n, count, 0, *pointers], np.int64)
        self.address = self.job.ctypes.data

    def prepare(self, scalars: Sequence[float], keys: Any = 0) -> None:
        """Set the values of the scalars other than the step count t, and the keys of the noise."""
        self.scalars[: len(scalars)], self.keys[:] = scalars, keys

    def add(self) -> list[float]:
        """Run the first pass.

        Returns, for each `total` of the rule, its sum over these parameters.
        """
        self._run(self.loops[0])
        stepped = self.gradients[self.chunks[0]] != 0
        return [float(self.sums[i, stepped].sum()) for i in self.spanning]

    def run(self, totals: Sequence[float] | None = None) -> bool:
        """Run the step. Returns whether a step count has become too large for its dtype.

        totals: for each `total` of the rule, its sum over all buckets that share it. If `totals` is
            None, the sums are taken over this bucket only.
        """
        if totals is None and len(self.loops) > 1:
            totals = self.add()
        if totals is not None:
            self.totals[self.spanning] = totals
        self.job[MARKED] = 0
        self._run(self.loops[-1])
        return bool(self.job[MARKED])

    def _run(self, loop: Callable[[int], None]) -> None:
        count = threads.wanted(self.elements, self.pieces)
        self.job[NEXT], self.job[ONLY] = -1, count > 1
        loop(self.address)
        if count > 1:
            threads.run(loop, self.address, count)


def _cut(sizes: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return chunks (tensor, start, stop) of at most CHUNK elements, and the borders of the pieces.

    A piece consists of successive chunks that have at most CHUNK elements together.
    """
    chunks, borders, filled = [], [0], 0
    for k, size in enumerate(sizes):
        for start in range(0, size, CHUNK):
            stop = min(size, start + CHUNK)
            if filled and filled + stop - start > CHUNK:
                borders.append(len(chunks))
                filled = 0
            chunks.append((k, start, stop))
            filled += stop - start
    borders.append(len(chunks))
    table = np.array(chunks, np.int64).reshape(-1, 3).T
    return np.ascontiguousarray(table), np.array(borders, np.int64)
