"""Random states that belong to one optimizer."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

from steepest.shell import RuleOptimizer
from steepest.tasks.randomness import Exchange, states_of_process, states_of_torch
from steepest.wrapper import innermost


class OwnRandomness(Exchange):
    """Random states that replace the states of the process while an optimizer steps.

    Without this, the optimizer's draws would change what the data and the model draw. Replacing the
    states of numpy and `random` costs 0.2 ms per step. The classes of this package and of torch
    draw only from torch, so for them only torch's state is replaced. A closure that the optimizer
    calls runs in an inner block, with the states of the process.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, seed: int, device: str | None = None
    ) -> None:
        base = innermost(optimizer)  # wrappers around it draw nothing
        torch_alone = isinstance(base, RuleOptimizer) or type(base).__module__.startswith("torch.")
        of_torch = states_of_torch(device)
        at_each = ("cpu", device)[: len(of_torch)]
        self._accessors = of_torch if torch_alone else states_of_process(device)
        self._other: list[Any] = [
            *(torch.Generator(at).manual_seed(seed).get_state() for at in at_each),
            np.random.RandomState(seed % 2**32).get_state(),
            random.Random(seed).getstate(),
        ]

    def _swap(self) -> None:
        for i, (get, put) in enumerate(self._accessors):
            self._other[i], state = get(), self._other[i]
            put(state)
