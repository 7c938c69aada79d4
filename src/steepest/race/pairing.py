"""What makes the runs of one seed comparable: the same batches, and no draw that shifts another's.

The entries of a seed train on the same batches unless it is the batches that they change. That is
promised by the task and checked here: a hash that runs on over every batch is compared.
"""

from __future__ import annotations

import hashlib
import random
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from steepest.shell import RuleOptimizer

DEPTH = 6
"""So deep a batch is looked into: dicts of lists of tensors and the like."""
DIGITS = 12
"""Of a hash that is kept, in hexadecimals: 48 bits."""


class Seen:
    """A hash of all batches so far."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, batch: Any) -> None:
        """Take in a batch: its tensors and arrays bit by bit, numbers and texts as they are."""
        self._take(batch, DEPTH)

    def so_far(self) -> str:
        return self._hash.hexdigest()[:DIGITS]

    def _take(self, value: Any, depth: int) -> None:
        if isinstance(value, torch.Tensor):
            if value.layout != torch.strided:
                value = value.to_dense()
            value = value.detach().cpu().resolve_conj().resolve_neg()
            self._array(value.dtype, value.shape, value.contiguous().reshape(-1).view(torch.uint8))
        elif isinstance(value, np.ndarray) and value.dtype != object:
            self._array(value.dtype, value.shape, np.ascontiguousarray(value).view(np.uint8))
        elif isinstance(value, Mapping) and depth:
            for key, each in value.items():
                self._hash.update(f"{key}:".encode())
                self._take(each, depth - 1)
        elif isinstance(value, (list, tuple, np.ndarray)) and depth:
            self._hash.update(f"[{len(value)}".encode())
            for each in value:
                self._take(each, depth - 1)
        elif isinstance(value, (str, bytes, int, float, complex, np.generic, type(None))):
            self._hash.update(repr(value).encode())
        elif depth and (inside := getattr(value, "__dict__", None)):
            self._take(inside, depth - 1)
        else:  # its text may have an address in it
            self._hash.update(type(value).__qualname__.encode())

    def _array(self, dtype: Any, shape: Any, values: Any) -> None:
        # a checksum first: it is four times as fast as a hash, and nobody forges batches here
        raw: Any = values.numpy() if isinstance(values, torch.Tensor) else values
        self._hash.update(f"{dtype}{tuple(shape)}{zlib.crc32(raw)}".encode())


class Apart:
    """Random states of an optimizer's own, in place of the process's while it steps.

    What it draws would otherwise shift what the data and the model draw afterwards. States of
    numpy and of `random` cost 0.2 ms a step to change: they are, for classes that are neither
    ours nor torch's, which draw from torch alone.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, seed: int) -> None:
        simple = isinstance(optimizer, RuleOptimizer) or type(optimizer).__module__.startswith(
            "torch."
        )
        self._kinds = _KINDS[:1] if simple else _KINDS
        self._mine: list[Any] = [
            torch.Generator().manual_seed(seed).get_state(),
            np.random.RandomState(seed % 2**32).get_state(),
            random.Random(seed).getstate(),
        ]

    @contextmanager
    def turned(self) -> Iterator[None]:
        """In the optimizer's states; inside of that, for a closure, in those of all others."""
        self._turn()
        try:
            yield
        finally:
            self._turn()

    def _turn(self) -> None:
        for i, (get, put) in enumerate(self._kinds):
            self._mine[i], theirs = get(), self._mine[i]
            put(theirs)


@contextmanager
def put_back() -> Iterator[None]:
    """What is drawn inside shifts nothing behind."""
    before = [get() for get, _ in _KINDS]
    try:
        yield
    finally:
        for (_, put), state in zip(_KINDS, before, strict=True):
            put(state)


_KINDS: tuple[tuple[Any, Any], ...] = (
    (torch.get_rng_state, torch.set_rng_state),
    (np.random.get_state, np.random.set_state),
    (random.getstate, random.setstate),
)
