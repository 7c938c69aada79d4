"""The random states of the process: seed them, and restore them after a block of code."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

Accessors = tuple[tuple[Any, Any], ...]
"""(read, write) of each random state."""
NUMPY = (np.random.get_state, np.random.set_state)


def states_of_torch(device: str | None = None) -> Accessors:
    """Torch's random state on the CPU, and also on the device if it is an accelerator."""
    cpu = ((torch.get_rng_state, torch.set_rng_state),)
    if device is None or torch.device(device).type == "cpu":
        return cpu
    module: Any = torch.get_device_module(device)
    return (*cpu, (module.get_rng_state, module.set_rng_state))


def states_of_process(device: str | None = None) -> Accessors:
    """The random states of torch, numpy and `random`."""
    return (*states_of_torch(device), NUMPY, (random.getstate, random.setstate))


def begin(seed: int) -> None:
    """Seed torch, numpy and `random`, so that a run does not depend on the runs before it."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def remember(generators: Iterable[Any] = (), device: str | None = None) -> Callable[[], None]:
    """Save the random states, and return a function that restores them.

    generators: further generators of torch, numpy and `random` to save. device: the model's device,
    if it is an accelerator.
    """
    accessors = (*states_of_process(device), *map(_accessor, generators))
    kept = [(put, get()) for get, put in accessors]

    def restore() -> None:
        for put, state in kept:
            put(state)

    return restore


_numpy: Any = np.random  # its stubs lack the functions that exchange the generator


class Exchange:
    """Random states that take the place of the process's own for a time."""

    @contextmanager
    def active(self) -> Iterator[None]:
        """Use these states in the block; after it, the process has its own states again.

        A block inside another block uses the states of the process again.
        """
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        """Exchange these states and those of the process."""
        raise NotImplementedError


class OwnStates(Exchange):
    """Random states of one of several runs that take turns in a process."""

    def __init__(self) -> None:
        # numpy's generator object is exchanged, because copying its state would take 0.1 ms
        self._states = torch.get_rng_state(), np.random.MT19937(), random.getstate()

    def _swap(self) -> None:
        now = torch.get_rng_state(), _numpy.get_bit_generator(), random.getstate()
        state, generator, python = self._states
        torch.set_rng_state(state)
        _numpy.set_bit_generator(generator)
        random.setstate(python)
        self._states = now


@contextmanager
def put_back(device: str | None = None) -> Iterator[None]:
    """Restore the random states when the block ends, so that its draws change no later draws."""
    restore = remember(device=device)
    try:
        yield
    finally:
        restore()


def _accessor(generator: Any) -> tuple[Any, Any]:
    """(read, write) of the generator's state."""
    if isinstance(generator, np.random.Generator):
        bits: Any = generator.bit_generator
        return lambda: bits.state, lambda state: setattr(bits, "state", state)
    if isinstance(generator, random.Random):
        return generator.getstate, generator.setstate
    return generator.get_state, generator.set_state
