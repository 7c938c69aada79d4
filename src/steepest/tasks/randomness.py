"""The random states of the process: seed them, and restore them after a block of code."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

# (read, write) of torch, numpy and `random`
STATES: tuple[tuple[Any, Any], ...] = (
    (torch.get_rng_state, torch.set_rng_state),
    (np.random.get_state, np.random.set_state),
    (random.getstate, random.setstate),
)


def begin(seed: int) -> None:
    """Seed torch, numpy and `random`, so that a run does not depend on the runs before it."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


_numpy: Any = np.random  # its stubs lack the functions that exchange the generator


class OwnStates:
    """Random states of one of several runs that take turns in a process."""

    def __init__(self) -> None:
        # numpy's generator is exchanged as a whole: copying its state would take 0.1 ms
        self._states = torch.get_rng_state(), np.random.MT19937(), random.getstate()

    @contextmanager
    def active(self) -> Iterator[None]:
        """Use these states in the block; after it, the process has its own states again."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        now = torch.get_rng_state(), _numpy.get_bit_generator(), random.getstate()
        state, generator, python = self._states
        torch.set_rng_state(state)
        _numpy.set_bit_generator(generator)
        random.setstate(python)
        self._states = now


@contextmanager
def put_back() -> Iterator[None]:
    """Restore the random states when the block ends, so that its draws change no later draws."""
    before = [get() for get, _ in STATES]
    try:
        yield
    finally:
        for (_, put), state in zip(STATES, before, strict=True):
            put(state)
