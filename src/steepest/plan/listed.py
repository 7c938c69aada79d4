"""The parts that are stepped by torch's own operations: lists of tensors, rows, one by one."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from .. import codecs
from ..backends import eager, foreach
from ..families import Selection
from ..printing import host_function
from ..tensors import carries, describe, local, number
from .part import Part, Ready, Row, States, program_of

Lists = list[list[Tensor]]  # parameters, and then each state's tensors


@cache
def _foreach_of(selection: Selection, itemsize: int) -> tuple[Any, Any]:
    program = program_of(selection)
    return foreach.compiled(program), host_function(program, itemsize)


class ForeachPart(Part):
    """torch._foreach calls, for whatever has no kernel."""

    def ready(self, owners: list[Tensor], state: States, scalars: list[float]) -> Ready | None:
        at, grads = self.gradients(owners)
        order = dict(zip(at, grads, strict=True))

        @torch.no_grad()
        def step(_: Any) -> None:
            for row in self.rows(at):
                lists = self.columns(owners, state, row.at)
                new = self.advance(lists, [order[k] for k in row.at], row, scalars)
                self.count(owners, state, row, new)

        return Ready(step, list) if at else None

    def advance(
        self, lists: Lists, grads: list[Tensor], row: Row, scalars: list[float]
    ) -> Sequence[float]:
        """Step tensors that are all of the same count; the next carried scalars."""
        run, host = _foreach_of(self.selection, self.kind.itemsize)
        # t stands first among the program's scalars, if it is there
        values = host(*([row.t] if self.program.counts else []), *scalars, *row.carried)
        slots = len(self.program.slots)
        loaded = self.load(lists)
        run(loaded[0], [codecs.load(g, self.kind) for g in grads], *loaded[1:], values[:slots])
        self.store(lists, loaded, row)
        return values[slots:]

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
            of = zip(params, row.at, row.chosen or [()] * len(row.at), strict=True)
            # of some rows, the numbers are those in the whole parameter
            whole = row.whole or params
            every = [
                codecs.numbers(p, self.firsts[k], rows)
                for p, (_, k, rows) in zip(whole, of, strict=True)
            ]
            codecs.store_stochastic(params, loaded[0], every, self.wanted.seed, row.t)
        else:
            codecs.store(params, loaded[0], self.kind)
        for old, new in zip(states, loaded[1:], strict=True):
            codecs.store(old, new, self.kind)


class SparsePart(ForeachPart):
    """The rows that a sparse gradient has, for rules that leave a row without gradient alone."""

    sparse = True

    def ready(self, owners: list[Tensor], state: States, scalars: list[float]) -> Ready | None:
        at, grads = self.gradients(owners)
        order = dict(zip(at, grads, strict=True))

        @torch.no_grad()
        def step(_: Any) -> None:
            for row in self.rows(at):
                found = [order[k].coalesce() for k in row.at]
                # the first step is of all rows: a state may have a start other than zero
                every = row.t == 1 or self.selection.rule.sparse == "dense"
                chosen = [() if every else tuple(g.indices()) for g in found]
                values = [g.to_dense() if every else g.values() for g in found]
                whole = self.columns(owners, state, row.at)
                lists = [[x[rows] for x, rows in zip(c, chosen, strict=True)] for c in whole]
                about = row._replace(chosen=chosen, whole=whole[0])
                new = self.advance(lists, values, about, scalars)
                if not every:  # else they were views
                    for column, tensors in zip(whole, lists, strict=True):
                        for x, rows, y in zip(column, chosen, tensors, strict=True):
                            x[rows] = y
                self.count(owners, state, row, new)

        return Ready(step, list) if at else None


class ReferencePart(ForeachPart):
    """The rule itself, one parameter after the other; autograd goes through when asked to."""

    def build(self, owners: list[Tensor], params: list[Tensor]) -> None:
        super().build(owners, params)
        # squares and sums of float32 may be beyond it; MPS has nothing wider
        if self.program.reductions and params[0].device.type != "mps":
            self.kind = torch.float64

    def ready(self, owners: list[Tensor], state: States, scalars: list[float]) -> Ready | None:
        at, grads = self.gradients(owners)
        rule, program, choices = self.selection.rule, self.program, dict(self.selection.choices)
        values: dict[str, Any] = dict(
            zip((n for n in program.scalars if n != "t"), scalars, strict=True)
        )
        differentiable = self.wanted.differentiable
        for p in (local(owners[k]) for k in at):
            if differentiable and p.is_leaf and p.requires_grad:
                raise RuntimeError(
                    f"{self.rule}: differentiable=True was given for a leaf that requires grad, "
                    f"{describe(p)}, expected what autograd can change in place; pass clones, "
                    "[p.clone() for p in model.parameters()]"
                )

        def one(row: Row, g: Tensor, found: dict[int, Tensor], add: bool) -> None:
            (k,) = row.at
            values.update(zip(rule.carried, row.carried, strict=True), t=row.t)
            lists = self.columns(owners, state, row.at)
            own = state.get(owners[k], {})
            if differentiable:  # as the last step left them, with their history
                lists[0] = [lists[0][0].clone()]
                kept = {c: own.get(rule.keys[c]) for c in rule.carried}
                values.update((c, x) for c, x in kept.items() if carries(x))
            loaded = self.load(lists)
            p, *states = (x for (x,) in loaded)
            tensors = [p, codecs.load(g, self.kind), *states]
            stored = lists[0][0].dtype.to_real()
            with eager.totals(found, add):
                new, carried = eager.run(program, choices, tensors, values, stored)
            if add:
                return
            if not differentiable:
                old = dict(zip((rule.tensors[0], *program.states), (p, *states), strict=True))
                for name, x in new.items():
                    old[name].copy_(x)
                self.store(lists, loaded, row)
            else:
                codecs.view(owners[k]).copy_(new.pop(rule.tensors[0]))
                whole = torch.view_as_complex if owners[k].is_complex() else Tensor.contiguous
                for key, x in ((rule.keys[name], x) for name, x in new.items()):
                    own[key] = whole(x).to(own[key].dtype)
            self.count(owners, state, row, [*map(number, carried)])
            if differentiable:
                self.remember(own, carried)

        def every(found: dict[int, Tensor], add: bool) -> None:
            with torch.set_grad_enabled(differentiable):
                numbers = self.cells.read().T.tolist()
                for k, g in zip(at, grads, strict=True):
                    t, *carried = numbers[k]
                    one(Row([k], t + 1, carried), g, found, add)

        def add() -> list[Any]:
            found: dict[int, Tensor] = {}
            every(found, True)
            return [found[i] for i in range(len(found))]

        def step(totals: Sequence[Any] | None) -> None:
            found: dict[int, Tensor] = {}
            if totals is not None:
                # a plain number would become a float32
                as_tensor = partial(torch.as_tensor, dtype=torch.float64)
                found.update(enumerate(t if carries(t) else as_tensor(t) for t in totals))
            elif program.spans:
                every(found, True)
            every(found, False)

        return Ready(step, add) if at else None

    def remember(self, own: dict[str, Any], carried: Sequence[Any], every: bool = False) -> None:
        """Put carried scalars with a history into the state, and numbers where one was."""
        keys = (self.selection.rule.keys[c] for c in self.selection.rule.carried)
        for key, x in zip(keys, carried, strict=True):
            if carries(x):
                own[key] = x
            elif every or carries(own.get(key)):
                own[key] = torch.tensor(number(x), dtype=torch.float64, device="cpu")

    def carried_of(self, owners: list[Tensor], state: States, k: int) -> list[Any]:
        keys = self.selection.rule.keys
        own = [state[owners[k]][keys[c]] for c in self.selection.rule.carried]
        return own if any(map(carries, own)) else super().carried_of(owners, state, k)

    def carry(self, owners: list[Tensor], state: States, values: Sequence[Any]) -> None:
        if not self.wanted.differentiable:
            return super().carry(owners, state, values)
        for p in owners:
            if p in state:
                self.remember(state[p], values, every=True)  # the cells of some are gone
        return None
