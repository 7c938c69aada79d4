"""An optimizer draws from random states of its own."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from steepest.shell import RuleOptimizer
from steepest.tasks.randomness import STATES


class OwnRandomness:
    """Random states that replace the process's while an optimizer steps.

    Otherwise its draws would shift those of the data and the model. To replace the states of numpy
    and of `random` costs 0.2 ms a step; it is not done for our classes and torch's, which draw from
    torch alone.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, seed: int) -> None:
        torch_alone = isinstance(optimizer, RuleOptimizer) or type(optimizer).__module__.startswith(
            "torch."
        )
        self._accessors = STATES[:1] if torch_alone else STATES
        self._other: list[Any] = [
            torch.Generator().manual_seed(seed).get_state(),
            np.random.RandomState(seed % 2**32).get_state(),
            random.Random(seed).getstate(),
        ]

    @contextmanager
    def active(self) -> Iterator[None]:
        """The optimizer's states; nested, as around a closure, the process's again."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for i, (get, put) in enumerate(self._accessors):
            self._other[i], state = get(), self._other[i]
            put(state)
