"""The bucket whose parameters are stepped by the CPU's compiled loop."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from ... import codecs
from ...tensors import local
from ..bucket import Bucket
from ..inputs import Ready, Stale, States
from ..memory import MISFIT, NONE, STRIDES
from .work import Work

_grad = attrgetter("grad")


class CpuBucket(Bucket):
    """Steps dense parameters of float32, float64 or bfloat16 with the CPU's compiled loop."""

    def build(self, owners: list[Tensor], params: list[Tensor]) -> None:
        columns = [
            [self.align_state(k, p, key) for k, p in enumerate(params)] for key in self.specs
        ]
        storage = self.codec.name if self.half else ""
        columns = [params, *columns]
        self.work = Work(self.program, storage, self.wide, columns, self.cells, self.firsts)
        self.expect(owners, params, self.work.gradients)

    def align_state(self, k: int, p: Tensor, key: str) -> Tensor:
        """Return the state `key` of parameter `k`, copied if its strides differ from those of `p`.

        The loop steps through the memory of `p` and of its states together, so their strides must
        be equal.
        """
        if (state := self.pending[k]) is None:
            return p  # a placeholder: nothing reads it
        x = state[key]
        if local(x).stride() != p.stride():
            state[key] = x = torch.empty_like(p, dtype=x.dtype, requires_grad=False).copy_(x)
        return local(x)

    def ready(self, owners: list[Tensor], state: States, scalars: list[float]) -> Ready | None:
        grads = self.read_shards(owners) if self.sharded else list(map(_grad, owners))
        codes_met = self.expected.classify(grads)
        codes = self.expected.codes
        if self.stateless and codes[self.stateless].any():
            raise Stale
        if codes_met == 1 << NONE:
            return None
        copies = self.straighten(owners, grads) if codes_met & (1 << STRIDES | 1 << MISFIT) else []
        stepped = owners
        if codes_met & 1 << NONE:
            stepped = [p for p, g in zip(owners, grads, strict=True) if g is not None]
        self.leading = int((codes != NONE).argmax())
        self.work.prepare(scalars, self.noise_keys() if self.codec.noisy else 0)

        def step(totals: Sequence[float] | None) -> None:
            full = self.work.run(totals)
            torch.autograd.graph.increment_version(stepped)
            if full:
                self.widen(owners, state, self.cells.take_full().tolist())
            grads.clear()  # kept alive until here, because the loop reads their memory
            copies.clear()

        return Ready(step, self.work.add)

    def noise_keys(self) -> list[int]:
        """Return the key of each parameter's noise. It depends on the seed and the step count."""
        steps = self.cells.read()[0].tolist()
        key = {t: codecs.noise_key(self.wanted.seed, t + 1) for t in {*steps}}
        return [key[t] for t in steps]

    @torch.no_grad()
    def straighten(self, owners: list[Tensor], grads: list[Any]) -> list[Tensor]:
        """Copy each gradient whose strides differ from its parameter's. Returns the copies.

        A copy has the strides of its parameter. Raises an error for a gradient that does not fit.
        """
        misfits = [k for k, code in enumerate(self.expected.codes) if code in (STRIDES, MISFIT)]
        copies = []
        for k in misfits:
            p = local(owners[k])
            self.check_gradient(p, grads[k])
            copies.append(torch.empty_like(p, dtype=grads[k].dtype, requires_grad=False))
        torch._foreach_copy_(copies, [grads[k] for k in misfits])
        self.work.gradients[misfits] = list(map(Tensor.data_ptr, copies))
        return copies
