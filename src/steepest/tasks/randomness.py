"""The random states of the process: seed them, and restore them after a block of code."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

Accessors = tuple[tuple[Any, Any], ...]
"""(read, write) of each random state."""
NUMPY = (np.random.get_state, np.random.set_state)


def states_of_torch(device: str | None = None) -> Accessors:
    """The state of torch on the CPU, and that of the device, if it is an accelerator."""
    cpu = ((torch.get_rng_state, torch.set_rng_state),)
    if device is None or torch.device(device).type == "cpu":
        return cpu
    module: Any = torch.get_device_module(device)
    return (*cpu, (module.get_rng_state, module.set_rng_state))


def states_of_process(device: str | None = None) -> Accessors:
    """The states of torch, numpy and `random`."""
    return (*states_of_torch(device), NUMPY, (random.getstate, random.setstate))


def begin(seed: int) -> None:
    """Seed torch, numpy and `random`, so that a run does not depend on the runs before it."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


@contextmanager
def put_back(device: str | None = None) -> Iterator[None]:
    """Restore the random states when the block ends, so that its draws change no later draws."""
    states = states_of_process(device)
    before = [get() for get, _ in states]
    try:
        yield
    finally:
        for (_, put), state in zip(states, before, strict=True):
            put(state)
