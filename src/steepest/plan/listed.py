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
from .part import Part, Stale, check_gradient, describe, program_of, takes_sparse


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
            for indices, t, carried in self.rows(at):
                lists = [[column[k] for k in indices] for column in (self.params, *self.columns)]
                self.advance(lists, [order[k] for k in indices], indices, t, carried, scalars)

        return step

    def advance(
        self,
        lists: list[list[Tensor]],
        grads: list[Tensor],
        indices: list[int],
        t: float,
        carried: list[float],
        scalars: list[float],
    ) -> None:
        """Step the tensors, parameters first and then states, all of the same count t."""
        run, host = _foreach_of(self.selection, self.kind.itemsize)
        # t stands first among the program's scalars, if it is there
        values = host(*([t] if self.program.counts else []), *scalars, *carried)
        slots = len(self.program.slots)
        loaded = self.load(lists)
        run(loaded[0], [codecs.load(g, self.kind) for g in grads], *loaded[1:], values[:slots])
        self.store(lists, loaded, indices, t)
        self.count(indices, t, values[slots:])

    def load(self, lists: list[list[Tensor]]) -> list[list[Tensor]]:
        """What the rule reads: without the compensation, which is part of the parameter."""
        loaded = [[codecs.load(x, self.kind) for x in tensors] for tensors in lists]
        if self.compensated:
            compensation = loaded.pop()
            torch._foreach_add_(loaded[0], compensation)
        return loaded

    def store(
        self, lists: list[list[Tensor]], loaded: list[list[Tensor]], indices: list[int], t: float
    ) -> None:
        """Write back what was stepped in copies."""
        params, *states = lists
        if self.compensated:
            codecs.store_compensated(params, loaded[0], states.pop())
        elif self.stochastic:
            elements = [self.elements(k) for k in indices]
            codecs.store_stochastic(params, loaded[0], elements, self.wanted.seed, t)
        else:
            codecs.store(params, loaded[0], self.kind)
        for old, new in zip(states, loaded[1:], strict=True):
            codecs.store(old, new, self.kind)

    def elements(self, k: int) -> Tensor:
        """The numbers of a parameter's elements, for their noise."""
        return codecs.numbers(self.params[k], self.firsts[k])


class SparsePart(ForeachPart):
    """The rows that a sparse gradient has, for rules that leave a row without gradient alone."""

    chosen: dict[int, Any]

    def elements(self, k: int) -> Tensor:
        """The numbers of the elements in the rows of this step."""
        rows = self.chosen[k]
        return codecs.numbers(self.params[k], self.firsts[k], () if rows is ... else rows)

    def ready(self, scalars: list[float]) -> Callable[[], None]:
        self.check_params()
        grads = self.given()
        at = [k for k, g in enumerate(grads) if g is not None]
        if not all(takes_sparse(self.selection, grads[k]) for k in at):
            raise Stale
        if not self.unborn.isdisjoint(at):
            raise Stale
        for k in at:
            check_gradient(self.selection, self.params[k], grads[k], sparse=True)

        @torch.no_grad()
        def step() -> None:
            for indices, t, carried in self.rows(at):
                pieces, self.chosen = [], {}
                for k in indices:
                    g = grads[k].coalesce()
                    # the first step is of all rows: a state may have a start other than zero
                    every = t == 1 or self.selection.rule.sparse == "dense"
                    rows = ... if every else tuple(g.indices())
                    self.chosen[k] = rows
                    pieces.append((rows, g.to_dense() if every else g.values()))
                columns = [[c[k] for k in indices] for c in (self.params, *self.columns)]
                lists = [[x[rows] for x, (rows, _) in zip(c, pieces, strict=True)] for c in columns]
                self.advance(lists, [g for _, g in pieces], indices, t, carried, scalars)
                for column, tensors in zip(columns, lists, strict=True):
                    for x, (rows, _), new in zip(column, pieces, tensors, strict=True):
                        if rows is not ...:  # else it was a view
                            x[rows] = new

        return step


class ReferencePart(ForeachPart):
    """The rule itself, one parameter after the other; autograd goes through when asked to."""

    def ready(self, scalars: list[float]) -> Callable[[], None]:
        at, grads = self.gradients()
        rule, program, choices = self.selection.rule, self.program, dict(self.selection.choices)
        values = dict(zip((n for n in program.scalars if n != "t"), scalars, strict=True))
        differentiable = self.wanted.differentiable
        if differentiable and torch.is_grad_enabled():
            for k in at:
                if self.params[k].is_leaf and self.params[k].requires_grad:
                    raise RuntimeError(
                        f"{self.rule}: differentiable=True was given for a leaf that requires "
                        f"grad, {describe(self.params[k])}, expected what autograd can change in "
                        "place; pass clones, [p.clone() for p in model.parameters()]"
                    )

        def one(k: int, g: Tensor, add: bool) -> None:
            t, state = float(self.steps[k]) + 1, self.states[k] or {}
            values.update(zip(rule.carried, self.carried[:, k].tolist(), strict=True), t=t)
            lists = [[column[k]] for column in (self.params, *self.columns)]
            if differentiable:  # as the last step left them, with their history
                lists[1:] = [[state[rule.keys[s]]] for s in program.states]
            loaded = self.load(lists)
            tensors = [x for (x,) in loaded]
            tensors.insert(1, codecs.load(g, self.kind))
            new, carried = eager.run(program, choices, tensors, values)
            if add:
                return
            if not differentiable:
                for old, name in zip(loaded, (rule.tensors[0], *program.states), strict=True):
                    if name in new:
                        old[0].copy_(new[name])
                self.store(lists, loaded, [k], t)
            else:
                codecs.view(self.params[k]).copy_(new.pop(rule.tensors[0]))
                state.update((rule.keys[name], x) for name, x in new.items())
            self.count([k], t, carried)

        def step() -> None:
            found: list[Tensor] = []
            # what is summed over all parameters is summed before the first of them moves
            for add in (True, False) if program.spans else (False,):
                for k, g in zip(at, grads, strict=True):
                    with torch.set_grad_enabled(differentiable), eager.totals(found, add):
                        one(k, g, add)

        return step
