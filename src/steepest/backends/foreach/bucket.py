"""The bucket that is stepped by calls on lists of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ... import codecs
from ...family import Selection
from ...printing import host_function
from ..bucket import Bucket, Given, Lists, Ready, Row, program_of
from . import printer


@cache
def _functions(selection: Selection, itemsize: int) -> tuple[Any, Any]:
    """What steps the lists, and what computes the host scalars."""
    program = program_of(selection)
    return printer.compiled(program), host_function(program, itemsize)


class ForeachBucket(Bucket):
    """torch._foreach calls: on whole tensors, or on the rows that sparse gradients have, for rules
    that leave a row without gradient alone.
    """

    def prepare(self, given: Given) -> Ready:
        advance = self.advance_rows if self.sparse else self.advance

        @torch.no_grad()
        def step(_: Any) -> None:
            for row in self.rows([*given.grads]):
                lists = self.columns(given.owners, given.state, row.at)
                carried = advance(lists, [given.grads[k] for k in row.at], row, given.scalars)
                self.count(given.owners, given.state, row, carried)

        return Ready(step, list)

    def advance(
        self, lists: Lists, grads: list[Tensor], row: Row, scalars: list[float]
    ) -> Sequence[float]:
        """Step tensors that are all of the same count; the next carried scalars."""
        run, host = _functions(self.selection, self.dtype.itemsize)
        # t stands first among the program's scalars, if it is there
        t = [row.t] if self.program.reads_t else []
        values = host(*t, *scalars, *row.carried)
        slots = len(self.program.slots)
        params, *states = loaded = self.load(lists)
        run(params, [codecs.load(g, self.dtype) for g in grads], *states, values[:slots])
        self.store(lists, loaded, row)
        return values[slots:]

    def advance_rows(
        self, lists: Lists, grads: list[Tensor], row: Row, scalars: list[float]
    ) -> Sequence[float]:
        """The same for the rows that sparse gradients have."""
        found = [g.coalesce() for g in grads]
        # the first step is of all rows: a state may have a start other than zero
        if row.t == 1 or self.selection.rule.sparse == "dense":
            return self.advance(lists, [g.to_dense() for g in found], row, scalars)
        chosen = [tuple(g.indices()) for g in found]
        some = [[x[rows] for x, rows in zip(c, chosen, strict=True)] for c in lists]
        about = row._replace(chosen=chosen, whole=lists[0])
        carried = self.advance(some, [g.values() for g in found], about, scalars)
        for column, tensors in zip(lists, some, strict=True):
            for x, rows, new in zip(column, chosen, tensors, strict=True):
                x[rows] = new
        return carried
