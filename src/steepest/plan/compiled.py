"""The part that the CPU's compiled loop steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import codecs
from ..definition import COMPENSATION
from .part import Part, Stale, Wanted, local

_nbytes, _shape, _dtype = attrgetter("nbytes"), attrgetter("shape"), attrgetter("dtype")


class CompiledPart(Part):
    """The CPU's compiled loop, for dense parameters of float32, float64 or bfloat16."""

    def __init__(
        self,
        wanted: Wanted,
        owners: list[Tensor],
        old: list[dict[str, Any]],
        firsts: Sequence[int] = (),
    ) -> None:
        from ..backends import cpu

        super().__init__(wanted, owners, old, firsts)
        params = self.params
        self.n = len(params)
        self.strides = [p.stride() for p in params]
        self.contiguous = all(map(Tensor.is_contiguous, params))
        # what can be transposed in its own memory
        self.matrices = [p for p in params if p.dim() > 1 and p.is_contiguous()]
        self.nbytes, self.shapes = list(map(_nbytes, params)), list(map(_shape, params))
        self.addresses = list(map(Tensor.data_ptr, params))
        self.held = [p.detach() for p in params]  # no other tensor takes an address from them
        names = [self.selection.rule.keys[s] for s in self.program.states]
        names += [COMPENSATION] * self.compensated
        for name, column in zip(names, self.columns, strict=True):
            for k, s in enumerate(column):
                if k not in self.unborn and s.stride() != self.strides[k]:
                    # a state loaded in another layout: one that the loop can walk along p
                    state = self.states[k]
                    state[name] = torch.empty_like(owners[k], dtype=s.dtype).copy_(state[name])  # type: ignore[index]
                    column[k] = local(state[name].detach())  # type: ignore[index]
        storage = wanted.rounding or "nearest" if params[0].dtype in codecs.HALVES else ""
        self.work = cpu.Work(
            self.program,
            params,
            self.columns,
            self.steps,
            self.carried,
            storage,
            firsts or [0] * self.n,
        )
        self.scratch: dict[int, Tensor] = {}
        self.seen, self.half = False, params[0].dtype in codecs.HALVES

    def ready(self, scalars: list[float]) -> Callable[[], None]:
        params, grads = self.params, self.given()
        if list(map(Tensor.data_ptr, params)) != self.addresses or not all(
            map(Tensor.is_contiguous, self.matrices)
        ):
            raise Stale
        stepped, given, sized = self.owners, None, False
        try:
            given = np.fromiter(map(Tensor.data_ptr, grads), np.int64, self.n)  # type: ignore[arg-type]
            # the first gradients are looked at closely; torch itself refuses a later one of another
            # shape or dtype, but for those that were put in place by p.grad.data
            sized = self.seen and not self.unborn and list(map(_nbytes, grads)) == self.nbytes
            near = self.half or self.loose
            sized = sized and not (near and {*map(_dtype, grads)} != {params[0].dtype})
        except (TypeError, RuntimeError, NotImplementedError):  # None, sparse or no storage
            pass
        if not sized:
            at, grads = self.gradients()
            if list(map(_nbytes, params)) != self.nbytes:
                raise Stale
            given, stepped = np.zeros(self.n, np.int64), [self.owners[k] for k in at]
            given[at] = list(map(Tensor.data_ptr, grads))
            self.straighten(at, grads, given)
            self.seen = True
        elif not (self.contiguous and all(map(Tensor.is_contiguous, grads))):  # type: ignore[arg-type]
            if list(map(_shape, grads)) != self.shapes:
                self.gradients()
            self.straighten(range(self.n), grads, given)

        def step() -> None:
            self.work.run(given, scalars, self.keys() if self.stochastic else 0)
            torch.autograd.graph.increment_version(stepped)
            del grads[:]  # held until here: the loop has read their memory

        return step

    def keys(self) -> list[int]:
        """The key of each parameter's noise, by seed and count."""
        steps = self.steps.tolist()
        key = {t: codecs.key(self.wanted.seed, t + 1) for t in {*steps}}
        return [key[t] for t in steps]

    def straighten(self, at: Sequence[int], grads: list[Any], given: Any) -> None:
        """Copy gradients of other strides than their parameter's, and put the copies' addresses."""
        odd = [
            (k, g)
            for k, g, strides in zip(at, grads, map(Tensor.stride, grads), strict=True)
            if strides != self.strides[k] or g.is_neg()
        ]
        if odd:
            for k, _ in odd:
                if k not in self.scratch:
                    self.scratch[k] = torch.empty_like(self.params[k], requires_grad=False)
            copies = [self.scratch[k] for k, _ in odd]
            with torch.no_grad():
                torch._foreach_copy_(copies, [g for _, g in odd])
            given[[k for k, _ in odd]] = list(map(Tensor.data_ptr, copies))
