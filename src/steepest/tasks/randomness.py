"""The random states of a process: seeding them, and keeping draws from shifting others."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

STATES: tuple[tuple[Any, Any], ...] = (
    (torch.get_rng_state, torch.set_rng_state),
    (np.random.get_state, np.random.set_state),
    (random.getstate, random.setstate),
)


def begin(seed: int) -> None:
    """torch, numpy and `random` from the seed: a run depends on it alone, not on those before."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


@contextmanager
def put_back() -> Iterator[None]:
    """What is drawn inside shifts nothing behind."""
    before = [get() for get, _ in STATES]
    try:
        yield
    finally:
        for (_, put), state in zip(STATES, before, strict=True):
            put(state)
