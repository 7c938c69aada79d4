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
from ..bucket import Bucket
from ..inputs import Lists, Ready, Row, StepInputs
from ..wanted import program_of
from . import printer


@cache
def _functions(selection: Selection, itemsize: int) -> tuple[Any, Any]:
    """Return the function that steps the lists, and the function that computes the host scalars."""
    program = program_of(selection)
    return printer.compiled(program), host_function(program, itemsize)


class ForeachBucket(Bucket):
    """Calls torch._foreach functions on whole tensors, or only on the rows in sparse gradients.

    Only the rows are stepped if the rule does not change a row that has no gradient.
    """

    def prepare(self, inputs: StepInputs) -> Ready:
        advance = self.advance_rows if self.sparse else self.advance

        @torch.no_grad()
        def step(_: Any) -> None:
            for row in self.rows([*inputs.grads]):
                lists = self.columns(inputs.owners, inputs.state, row.at)
                carried = advance(lists, [inputs.grads[k] for k in row.at], row, inputs.scalars)
                self.count(inputs.owners, inputs.state, row, carried)

        return Ready(step, list)

    def advance(
        self, lists: Lists, grads: list[Tensor], row: Row, scalars: list[float]
    ) -> Sequence[float]:
        """Step tensors that all have the same step count. Returns the next carried scalars."""
        run, host = _functions(self.selection, self.dtype.itemsize)
        # if the program reads t, it is the first of its scalars
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
        """Step only the rows that are in the sparse gradients. Returns the next carried scalars."""
        coalesced = [g.coalesce() for g in grads]
        # the first step is of all rows, because a state may have a start other than zero
        if row.t == 1 or self.selection.rule.sparse == "dense":
            return self.advance(lists, [g.to_dense() for g in coalesced], row, scalars)
        selected = [tuple(g.indices()) for g in coalesced]
        parts = [[x[rows] for x, rows in zip(c, selected, strict=True)] for c in lists]
        of_rows = row._replace(selected=selected, full_params=lists[0])
        carried = self.advance(parts, [g.values() for g in coalesced], of_rows, scalars)
        for column, tensors in zip(lists, parts, strict=True):
            for x, rows, new in zip(column, selected, tensors, strict=True):
                x[rows] = new
        return carried
