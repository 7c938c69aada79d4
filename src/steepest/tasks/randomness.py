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


@contextmanager
def put_back() -> Iterator[None]:
    """Restore the random states when the block ends, so that its draws change no later draws."""
    before = [get() for get, _ in STATES]
    try:
        yield
    finally:
        for (_, put), state in zip(STATES, before, strict=True):
            put(state)
