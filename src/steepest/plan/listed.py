"""The parts that are stepped by torch's own operations: lists of tensors, rows, one by one."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from .. import codecs
from ..backends import eager, foreach
from ..families import Selection
from ..trace import host_function
from .part import Part, Row, Wanted, describe, program_of

Lists = list[list[Tensor]]  # parameters, and then each state's tensors


@cache
def _foreach_of(selection: Selection, itemsize: int) -> tuple[Any, Any]:
    program = program_of(selection)
    return foreach.compiled(program), host_function(program, itemsize)


class ForeachPart(Part):
    """torch._foreach calls, for whatever has no kernel."""

    def ready(self, scalars: list[float]) -> Callable[[], None]:
        at, grads = self.gradients()
        order = dict(zip(at, grads, strict=True))

        @torch.no_grad()
        def step() -> None:
            for row in self.rows(at):
                self.advance(self.lists(row.at), [order[k] for k in row.at], row, scalars)

        return step

    def lists(self, at: list[int]) -> Lists:
        """What is stepped of the parameters with these indices."""
        return [[column[k] for k in at] for column in (self.params, *self.columns)]

    def advance(self, lists: Lists, grads: list[Tensor], row: Row, scalars: list[float]) -> None:
        """Step tensors that are all of the same count."""
        run, host = _foreach_of(self.selection, self.kind.itemsize)
        # t stands first among the program's scalars, if it is there
        values = host(*([row.t] if self.program.counts else []), *scalars, *row.carried)
        slots = len(self.program.slots)
        loaded = self.load(lists)
        run(loaded[0], [codecs.load(g, self.kind) for g in grads], *loaded[1:], values[:slots])
        self.store(lists, loaded, row)
        self.count(row, values[slots:])

    def load(self, lists: Lists) -> Lists:
        """What the rule reads: without the compensation, which is part of the parameter."""
        loaded = [[codecs.load(x, self.kind) for x in tensors] for tensors in lists]
        if self.compensated:
            compensation = loaded.pop()
            torch._foreach_add_(loaded[0], compensation)
        return loaded

    def store(self, lists: Lists, loaded: Lists, row: Row) -> None:
        """Write back what was stepped in copies."""
        params, *states = lists
        if self.compensated:
            codecs.store_compensated(params, loaded[0], states.pop())
        elif self.stochastic:
            of = zip(row.at, row.chosen or [()] * len(row.at), strict=True)
            every = [codecs.numbers(self.params[k], self.firsts[k], rows) for k, rows in of]
            codecs.store_stochastic(params, loaded[0], every, self.wanted.seed, row.t)
        else:
            codecs.store(params, loaded[0], self.kind)
        for old, new in zip(states, loaded[1:], strict=True):
            codecs.store(old, new, self.kind)


class SparsePart(ForeachPart):
    """The rows that a sparse gradient has, for rules that leave a row without gradient alone."""

    sparse = True

    def ready(self, scalars: list[float]) -> Callable[[], None]:
        at, grads = self.gradients()
        order = dict(zip(at, grads, strict=True))

        @torch.no_grad()
        def step() -> None:
            for row in self.rows(at):
                found = [order[k].coalesce() for k in row.at]
                # the first step is of all rows: a state may have a start other than zero
                every = row.t == 1 or self.selection.rule.sparse == "dense"
                chosen = [() if every else tuple(g.indices()) for g in found]
                values = [g.to_dense() if every else g.values() for g in found]
                whole = self.lists(row.at)
                lists = [[x[rows] for x, rows in zip(c, chosen, strict=True)] for c in whole]
                self.advance(lists, values, row._replace(chosen=chosen), scalars)
                if not every:  # else they were views
                    for column, tensors in zip(whole, lists, strict=True):
                        for x, rows, new in zip(column, chosen, tensors, strict=True):
                            x[rows] = new

        return step


class ReferencePart(ForeachPart):
    """The rule itself, one parameter after the other; autograd goes through when asked to."""

    def __init__(self, wanted: Wanted, *about: Any) -> None:
        super().__init__(wanted, *about)
        # squares and sums of float32 may be beyond it; MPS has nothing wider
        if self.program.reductions and self.params[0].device.type != "mps":
            self.kind = torch.float64

    def ready(self, scalars: list[float]) -> Callable[[], None]:
        at, grads = self.gradients()
        rule, program, choices = self.selection.rule, self.program, dict(self.selection.choices)
        values = dict(zip((n for n in program.scalars if n != "t"), scalars, strict=True))
        differentiable = self.wanted.differentiable
        for p in map(self.params.__getitem__, at):
            if differentiable and torch.is_grad_enabled() and p.is_leaf and p.requires_grad:
                raise RuntimeError(
                    f"{self.rule}: differentiable=True was given for a leaf that requires grad, "
                    f"{describe(p)}, expected what autograd can change in place; pass clones, "
                    "[p.clone() for p in model.parameters()]"
                )

        def one(k: int, g: Tensor, add: bool) -> None:
            state = self.states[k] or {}
            row = Row([k], float(self.steps[k]) + 1, self.carried[:, k].tolist())
            values.update(zip(rule.carried, row.carried, strict=True), t=row.t)
            lists = self.lists(row.at)
            if differentiable:  # as the last step left them, with their history
                lists[1:] = [[state[rule.keys[s]]] for s in program.states]
            loaded = self.load(lists)
            p, *states = (x for (x,) in loaded)
            tensors = [p, codecs.load(g, self.kind), *states]
            stored = self.params[k].dtype.to_real()
            new, carried = eager.run(program, choices, tensors, values, stored)
            if add:
                return
            if not differentiable:
                old = dict(zip((rule.tensors[0], *program.states), (p, *states), strict=True))
                for name, x in new.items():
                    old[name].copy_(x)
                self.store(lists, loaded, row)
            else:
                codecs.view(self.params[k]).copy_(new.pop(rule.tensors[0]))
                for key, x in ((rule.keys[name], x) for name, x in new.items()):
                    state[key] = x.to(state[key].dtype)
            self.count(row, carried)

        def step() -> None:
            found: dict[int, Tensor] = {}
            # what is summed over all parameters is summed before the first of them moves
            for add in (True, False) if program.spans else (False,):
                for k, g in zip(at, grads, strict=True):
                    with torch.set_grad_enabled(differentiable), eager.totals(found, add):
                        one(k, g, add)

        return step
