"""Random states of an optimizer's own."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from steepest.shell import RuleOptimizer
from steepest.tasks.randomness import STATES


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
        self._kinds = STATES[:1] if simple else STATES
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
