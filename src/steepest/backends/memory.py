"""Checks in each step where tensors are in memory: their addresses, shapes and strides.

A pointer may be used only if everything about its tensor was checked in the same step. Nothing here
holds a tensor between two steps: a snapshot consists of numbers. If there is a compiled loop
(`native.py`), the loop makes the check; else Python does.
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
"""Codes of gradients. NONE: the gradient is missing. FINE: it is like its parameter. STRIDES: only
its strides differ. MISFIT: anything else differs.
"""


def facts(x: Any) -> Any:
    """Return the properties of a tensor that `Snapshot` compares; None if `x` is not a tensor."""
    if not isinstance(x, Tensor):
        return None
    x = x.to_local() if hasattr(x, "to_local") else x  # type: ignore[attr-defined]
    memory = strides = None
    if x.layout is torch.strided:
        strides = x.stride()
        with contextlib.suppress(RuntimeError, NotImplementedError):  # it has no memory
            memory = x.data_ptr(), x.untyped_storage().nbytes()
    return type(x), x.dtype, x.device, x.layout, x.shape, strides, memory, x.is_neg()


class Snapshot:
    """Records where an optimizer's parameters and states are in memory, to notice later changes.

    It records addresses, sizes, strides, dtypes, storages and keys. Between steps it holds no
    tensor, so it keeps no memory alive.
    """

    def __init__(self, lists: list[list[Tensor]], state: Any) -> None:
        self.native = native.available() if _walkable(lists, state) else None
        self.walk = None if self.native is None else native.Walk(self.native, lists, state)
        states = [x for x in state.values() if isinstance(x, Mapping)]
        values = [*chain.from_iterable(lists), *chain.from_iterable(x.values() for x in states)]
        # only Python can ask for the local shard of a DTensor, and the compiled walk knows no
        # mapping but dict
        subclass = any(isinstance(x, Tensor) and type(x) not in PLAIN for x in values)
        self.python = subclass or self.walk is None or any(type(x) is not dict for x in states)
        self.held: Any = None
        self.facts = self._ask(lists, state) if self.python else []

    def matches(self, lists: list[list[Tensor]], state: Any) -> bool:
        """Whether the parameters and states are as they were when the snapshot was made.

        If so, their tensors are kept alive until `release`, because another thread may replace a
        tensor while a step runs.
        """
        self.release()
        if self.walk and not (_walkable(lists, state) and self.walk.matches(lists, state)):
            return False
        if self.python:
            self.held = [[*own.values()] for own in state.values() if isinstance(own, Mapping)]
            return self._ask(lists, state) == self.facts
        return True

    def release(self) -> None:
        """Release the tensors that `matches` keeps alive."""
        self.held = None
        if self.walk is not None:
            self.walk.release()

    __del__ = release

    @staticmethod
    @torch.no_grad()
    def _ask(lists: list[list[Tensor]], state: Any) -> list[Any]:
        answers: list[Any] = [[(id(p), facts(p)) for p in params] for params in lists]
        for key, own in state.items():
            items = own.items() if isinstance(own, Mapping) else ()
            answers.append((id(key), [(name, facts(x)) for name, x in items]))
        return answers


def _walkable(lists: Sequence[Any], state: Any) -> bool:
    return isinstance(state, dict) and all(type(params) is list for params in lists)


class Gradients:
    """Checks which gradients of some parameters can be used through their addresses.

    params: the parameters, whose shapes and strides the gradients should have.
    like: a tensor of the dtype that the gradients should have.
    row: array for the addresses. It gets 0 for a gradient that is missing or cannot be used.
    codes: array for the codes. It gets NONE, FINE, STRIDES or MISFIT for each gradient.
    """

    def __init__(self, params: Sequence[Tensor], like: Tensor, row: np.ndarray) -> None:
        self.row, self.codes = row, np.zeros(len(params), np.int64)
        loop = native.available()
        self.native = loop and native.Classifier(loop, params, like, row, self.codes)
        self.expected: list[Any] = []
        if self.native is None:
            self.expected = [(like.dtype, p.device, p.layout, p.shape, p.stride()) for p in params]

    def classify(self, grads: list[Any]) -> int:
        """Write `row` and `codes`. Returns the codes that occur, as bits.

        Bit k of the result is set if code k occurs.
        """
        if self.native is not None:
            return self.native.classify(grads)
        codes = list(map(self._classify, grads, self.expected))
        self.codes[:] = codes
        self.row[:] = [
            g.data_ptr() if code == FINE else 0 for g, code in zip(grads, codes, strict=True)
        ]
        return sum(1 << code for code in {*codes})

    @staticmethod
    def _classify(g: Any, expected: Any) -> int:
        if g is None:
            return NONE
        dtype, device, layout, shape, strides = expected
        traits = g.dtype, g.device, g.layout, g.shape
        if type(g) not in PLAIN or g.is_neg() or traits != (dtype, device, layout, shape):
            return MISFIT
        steps = zip(g.stride(), strides, shape, strict=True)
        if any(a != b and size != 1 for a, b, size in steps):
            return STRIDES
        return FINE if in_bounds(g) and g.data_ptr() else MISFIT
