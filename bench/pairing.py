"""The cost of checking a race's pairing, compared with a training step: python bench/pairing.py

Prints median microseconds on one thread: hashing a batch, switching to an optimizer's own random
states and back, and a training step without either.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from statistics import median
from time import perf_counter
from typing import Any

import torch

from steepest import tasks
from steepest.race import trials
from steepest.race.protocol import FRESH, Trial
from steepest.training.pairing import Seen
from steepest.training.randomness import OwnRandomness
from steepest.training.recipe import Recipe

TASKS, COUNT = ("diabetes", "digits", "text"), 300
IMAGES = (64, 3, 224, 224)
"""A batch that is large for a CPU."""


class Stranger(torch.optim.SGD):
    """Neither ours nor torch's, so numpy's and Python's random states are switched too."""


def measure(call: Callable[[], Any], count: int = COUNT) -> float:
    """Median microseconds of a call."""
    times = []
    for _ in range(count):
        start = perf_counter()
        call()
        times.append(perf_counter() - start)
    return 1e6 * median(times)


def measure_switch(cls: type[torch.optim.Optimizer]) -> float:
    """Microseconds to switch the random states before a step and back after it."""
    apart = OwnRandomness(cls([torch.nn.Parameter(torch.ones(1))], lr=0.1), 0)  # type: ignore[call-arg]

    def switch() -> None:
        with apart.active():
            pass

    return measure(switch)


def main() -> int:
    torch.set_num_threads(1)
    print("| task | bytes of a batch | hash | turn | training step |\n|---|---|---|---|---|")
    ours, strange = measure_switch(torch.optim.SGD), measure_switch(Stranger)
    for name in TASKS:
        task, seen = tasks.get(name), Seen()
        assert task.build
        batches = iter(task.build(0).batches)
        first = next(batches)
        tensors = first if isinstance(first, (tuple, list)) else (first,)
        size = sum(t.numel() * t.element_size() for t in tensors)
        load_and_hash = measure(lambda: seen.add(next(batches)))  # noqa: B023
        load = measure(lambda: next(batches))  # noqa: B023
        run = trials.run(Trial(name, FRESH, "adamw", 0, 0, COUNT, Recipe.read("adamw").defaults))
        step = 1e6 * run.train_seconds
        print(f"| {name} | {size:,} | {load_and_hash - load:.0f} | {ours:.0f} | {step:.0f} |")
    image, seen = torch.randn(IMAGES), Seen()
    print(f"| {IMAGES} | {image.numel() * 4:,} | {measure(lambda: seen.add(image), 30):.0f} | | |")
    print(f"\nThe turn around a class that is neither ours nor torch's: {strange:.0f}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
