"""Where tensors lie: their memory, shapes and strides, looked at in each step.

A pointer may be used only if everything about its tensor was seen in this step. Nothing here holds
a tensor between two steps: what was seen stays as numbers. The looking is done by a compiled loop
(`native.py`) where there is one, else by Python.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..tensors import PLAIN, in_bounds
from . import native

NONE, FINE, STRIDES, MISFIT = range(4)
"""Of a gradient: there is none; as its parameter; of other strides; anything else."""


def facts(x: Any) -> Any:
    """What `Seen` compares of a tensor, asked in Python; of anything else nothing."""
    if not isinstance(x, Tensor):
        return None
    x = x.to_local() if hasattr(x, "to_local") else x  # type: ignore[attr-defined]
    memory = strides = None
    if x.layout is torch.strided:
        strides = x.stride()
        with contextlib.suppress(RuntimeError, NotImplementedError):  # it has none
            memory = x.data_ptr(), x.untyped_storage().nbytes()
    return type(x), x.dtype, x.device, x.layout, x.shape, strides, memory, x.is_neg()


class Seen:
    """All that was seen of an optimizer's parameters and states: addresses, sizes, strides, dtypes,
    storages, and which keys there are. It holds numbers alone, so what is freed is freed.
    """

    def __init__(self, lists: list[list[Tensor]], state: Any) -> None:
        self.native = native.available() if _walkable(lists, state) else None
        self.walk = None if self.native is None else native.Walk(self.native, lists, state)
        own = [x for x in state.values() if isinstance(x, Mapping)]
        every = [*chain.from_iterable(lists), *chain.from_iterable(x.values() for x in own)]
        # a DTensor's memory is that of its local share, which only Python can ask for; and the walk
        # knows no other mapping than a dict
        odd = any(isinstance(x, Tensor) and type(x) not in PLAIN for x in every)
        self.python = odd or self.walk is None or any(type(x) is not dict for x in own)
        self.held: Any = None
        self.facts = self._ask(lists, state) if self.python else []

    def same(self, lists: list[list[Tensor]], state: Any) -> bool:
        """Whether all is as it was seen. Then it is held until `release`: another thread may put
        other tensors in their places while a step runs.
        """
        self.release()
        if self.walk and not (_walkable(lists, state) and self.walk.same(lists, state)):
            return False
        if self.python:
            self.held = [[*own.values()] for own in state.values() if isinstance(own, Mapping)]
            return self._ask(lists, state) == self.facts
        return True

    def release(self) -> None:
        """Let go of what `same` has held."""
        self.held = None
        if self.walk is not None:
            self.walk.release()

    __del__ = release

    @staticmethod
    @torch.no_grad()
    def _ask(lists: list[list[Tensor]], state: Any) -> list[Any]:
        asked: list[Any] = [[(id(p), facts(p)) for p in many] for many in lists]
        for key, own in state.items():
            items = own.items() if isinstance(own, Mapping) else ()
            asked.append((id(key), [(name, facts(x)) for name, x in items]))
        return asked


def _walkable(lists: Sequence[Any], state: Any) -> bool:
    return isinstance(state, dict) and all(type(many) is list for many in lists)


class Gradients:
    """What the gradients of some parameters have to be for their addresses to be used.

    like: a tensor of their dtype; row: where the addresses are written, 0 for one that is missing
    or not to be used; codes: of each, what it is.
    """

    def __init__(self, params: Sequence[Tensor], like: Tensor, row: np.ndarray) -> None:
        self.row, self.codes = row, np.zeros(len(params), np.int64)
        loop = native.available()
        self.judge = loop and native.Judge(loop, params, like, row, self.codes)
        self.expected: list[Any] = []
        if self.judge is None:
            self.expected = [(like.dtype, p.device, p.layout, p.shape, p.stride()) for p in params]

    def look(self, grads: list[Any]) -> int:
        """Write `row` and `codes`; returns the codes that were met, as bits."""
        if self.judge is not None:
            return self.judge.look(grads)
        judged = list(map(self._judge, grads, self.expected))
        self.codes[:] = judged
        self.row[:] = [
            g.data_ptr() if code == FINE else 0 for g, code in zip(grads, judged, strict=True)
        ]
        return sum(1 << code for code in {*judged})

    @staticmethod
    def _judge(g: Any, expected: Any) -> int:
        if g is None:
            return NONE
        dtype, device, layout, shape, strides = expected
        about = g.dtype, g.device, g.layout, g.shape
        if type(g) not in PLAIN or g.is_neg() or about != (dtype, device, layout, shape):
            return MISFIT
        steps = zip(g.stride(), strides, shape, strict=True)
        if any(a != b and size != 1 for a, b, size in steps):
            return STRIDES
        return FINE if in_bounds(g) and g.data_ptr() else MISFIT
