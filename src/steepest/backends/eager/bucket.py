"""The bucket whose parameters are stepped by the rule itself, one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ... import codecs
from ...tensors import carries, describe, local, number
from ..bucket import Bucket
from ..inputs import Ready, Row, States, StepInputs
from . import reference


class EagerBucket(Bucket):
    """Calls the rule for one parameter after the other.

    With `differentiable`, autograd goes through the step.
    """

    def build(self, owners: list[Tensor], params: list[Tensor]) -> None:
        super().build(owners, params)
        # squares and sums of float32 may overflow it; MPS has nothing wider
        if self.program.reductions and params[0].device.type != "mps":
            self.dtype = torch.float64

    def prepare(self, inputs: StepInputs) -> Ready:
        if self.wanted.differentiable:
            for p in (local(inputs.owners[k]) for k in inputs.grads):
                self.check_differentiable(p)

        def add() -> list[Any]:
            sums: dict[int, Tensor] = {}
            self.pass_over(inputs, sums, add=True)
            return [sums[i] for i in range(len(sums))]

        def step(totals: Sequence[Any] | None) -> None:
            sums: dict[int, Tensor] = {}
            if totals is not None:
                # a plain number would become float32
                as_tensor = partial(torch.as_tensor, dtype=torch.float64)
                sums.update(enumerate(t if carries(t) else as_tensor(t) for t in totals))
            elif self.program.spans:
                self.pass_over(inputs, sums, add=True)
            self.pass_over(inputs, sums, add=False)

        return Ready(step, add)

    def check_differentiable(self, p: Tensor) -> None:
        """Raise RuntimeError if autograd cannot change the parameter in place."""
        if p.is_leaf and p.requires_grad:
            raise RuntimeError(
                f"{self.rule}: differentiable=True was given for a leaf that requires grad, "
                f"{describe(p)}, expected a tensor that autograd can change in place; pass clones, "
                "[p.clone() for p in model.parameters()]"
            )

    def pass_over(self, inputs: StepInputs, sums: dict[int, Tensor], add: bool) -> None:
        """Go over all parameters that have a gradient.

        If `add` is True, add up the totals of the rule in `sums`. Otherwise step with the totals in
        `sums`.
        """
        with torch.set_grad_enabled(self.wanted.differentiable):
            numbers = self.cells.read().T.tolist()
            for k in inputs.grads:
                t, *carried = numbers[k]
                row = Row([k], t + 1, carried)
                lists = self.columns(inputs.owners, inputs.state, row.at)
                if self.wanted.differentiable:  # a clone keeps the history of the last step
                    lists[0] = [lists[0][0].clone()]
                loaded = self.load(lists)
                with reference.totals(sums, add):
                    new, carried = self.call(inputs, row, lists, loaded)
                if not add:
                    self.write(inputs, row, lists, loaded, new)
                    self.count(inputs.owners, inputs.state, row, [*map(number, carried)])
                    if self.wanted.differentiable:
                        self.remember(inputs.state.get(inputs.owners[k], {}), carried)

    def call(
        self, inputs: StepInputs, row: Row, lists: Any, loaded: Any
    ) -> tuple[dict[str, Tensor], list[Any]]:
        """Call the rule for one parameter.

        Returns the new tensors by name, and the next carried scalars.
        """
        (k,) = row.at
        rule, program = self.selection.rule, self.program
        names = [n for n in program.scalars if n != "t"]
        values: dict[str, Any] = dict(zip(names, inputs.scalars, strict=True))
        values.update(zip(rule.carried, row.carried, strict=True), t=row.t)
        if self.wanted.differentiable:
            own = inputs.state.get(inputs.owners[k], {})
            saved = {c: own.get(rule.keys[c]) for c in rule.carried}
            values.update((c, x) for c, x in saved.items() if carries(x))
        p, *states = (x for (x,) in loaded)
        tensors = [p, codecs.load(inputs.grads[k], self.dtype), *states]
        stored = lists[0][0].dtype.to_real()
        return reference.run(program, dict(self.selection.choices), tensors, values, stored)

    def write(
        self, inputs: StepInputs, row: Row, lists: Any, loaded: Any, new: dict[str, Tensor]
    ) -> None:
        """Store the new tensors of one parameter.

        Without `differentiable`, the new values are copied into the existing tensors. With
        `differentiable`, the new states replace the old states and keep their autograd history.
        """
        rule, (k,) = self.selection.rule, row.at
        if not self.wanted.differentiable:
            for name, (old,) in zip((rule.tensors[0], *self.program.states), loaded, strict=True):
                if name in new:
                    old.copy_(new[name])
            return self.store(lists, loaded, row)
        p = inputs.owners[k]
        own = inputs.state.get(p, {})
        codecs.view(p).copy_(new.pop(rule.tensors[0]))
        restore = torch.view_as_complex if p.is_complex() else Tensor.contiguous
        for key, x in ((rule.keys[name], x) for name, x in new.items()):
            own[key] = restore(x).to(own[key].dtype)
        return None

    def remember(self, own: dict[str, Any], carried: Sequence[Any], every: bool = False) -> None:
        """Store carried scalars in `own`, the state of one parameter.

        By default a scalar is stored only if it has an autograd history, or if the scalar that it
        replaces has one.

        every: whether to store all carried scalars.
        """
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
                self.remember(state[p], values, every=True)  # some no longer have a cell
        return None
