"""The part that the CPU's compiled loop steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import codecs
from .part import Part, Stale, local

_nbytes, _shape, _dtype = attrgetter("nbytes"), attrgetter("shape"), attrgetter("dtype")


class CompiledPart(Part):
    """The CPU's compiled loop, for dense parameters of float32, float64 or bfloat16."""

    def __init__(self, *planned: Any) -> None:
        from ..backends import cpu

        super().__init__(*planned)
        params = self.params
        self.n = len(params)
        self.strides = [p.stride() for p in params]
        self.contiguous = all(map(Tensor.is_contiguous, params))
        # what can be transposed in its own memory
        self.matrices = [p for p in params if p.dim() > 1 and p.is_contiguous()]
        self.nbytes, self.shapes = list(map(_nbytes, params)), list(map(_shape, params))
        self.addresses = list(map(Tensor.data_ptr, params))
        self.held = [p.detach() for p in params]  # no other tensor takes an address from them
        for key, column in zip(self.dtypes, self.columns, strict=True):
            for k, state in enumerate(self.states):
                if state is not None and column[k].stride() != self.strides[k]:
                    # a state loaded in another layout: one that the loop can walk along p
                    like = torch.empty_like(self.owners[k], dtype=state[key].dtype)
                    state[key] = like.copy_(state[key])
                    column[k] = local(state[key].detach())
        storage = (self.wanted.rounding or "nearest") if self.half else ""
        kept = [self.steps, self.carried, torch.tensor(self.firsts, device="cpu")]
        self.work = cpu.Work(self.program, storage, [params, *self.columns], kept)
        self.scratch: dict[int, Tensor] = {}
        self.seen = False

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
            if sized and (self.half or self.loose):
                sized = {*map(_dtype, grads)} == {params[0].dtype}
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
        own = self.strides
        odd = {k: g for k, g in zip(at, grads, strict=True) if g.stride() != own[k] or g.is_neg()}
        for k in odd.keys() - self.scratch.keys():
            self.scratch[k] = torch.empty_like(self.params[k], requires_grad=False)
        if odd:
            copies = [self.scratch[k] for k in odd]
            with torch.no_grad():
                torch._foreach_copy_(copies, [*odd.values()])
            given[[*odd]] = list(map(Tensor.data_ptr, copies))
