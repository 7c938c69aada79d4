"""Pacing functions for a curriculum: the fraction of the data, easiest first, that a step uses.

Each function here returns another function, which maps the step t (counted from 0) to a fraction in
(0, 1]. The fraction never falls. `start` is the fraction at step 0. All functions here raise
ValueError if `start` is outside (0, 1] or `steps` is below 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

from ..checks import number, whole

Pace = Callable[[int], float]


def root(start: float, steps: int, power: float = 2.0) -> Pace:
    """min(1, (start**power + t / steps * (1 - start**power)) ** (1 / power)).

    From step t = `steps` on, all data is in use. Platanios et al. 2019, arXiv:1903.09848, use power
    2 in equation 7 and power 1 in equation 6. With power 2, later steps add fewer samples than
    earlier steps.
    """
    start, steps = _checked(start, steps)
    power = number("root", "power", power, "(0, inf)")
    least = start**power
    return partial(_root, steps, power, least)


def linear(start: float, steps: int) -> Pace:
    """min(1, start + t / steps * (1 - start)), which is `root` with power 1."""
    return root(start, steps, 1.0)


def exponential(start: float, increase: float, steps: int) -> Pace:
    """min(1, start * increase ** floor(t / steps)): "fixed exponential pacing".

    Hacohen and Weinshall 2019, arXiv:1904.03626, equation 2. increase: a number above 1.
    """
    start, steps = _checked(start, steps)
    increase = number("exponential", "increase", increase, "(1, inf)")

    # from this power on the result is 1; a larger power may overflow
    last = math.ceil(-math.log(start) / math.log(increase))
    return partial(_exponential, start, increase, steps, last)


def single_step(start: float, steps: int) -> Pace:
    """`start` while t < steps, then 1, which is all data: "single step pacing".

    Hacohen and Weinshall 2019, arXiv:1904.03626, equation 4; also Bengio et al. 2009.
    """
    start, steps = _checked(start, steps)
    return partial(_single_step, start, steps)


# not lambdas: a sampler is pickled when it goes to another process
def _root(steps: int, power: float, least: float, step: int) -> float:
    return min(1.0, (least + step / steps * (1 - least)) ** (1 / power))


def _exponential(start: float, increase: float, steps: int, last: int, step: int) -> float:
    return min(1.0, start * increase ** min(step // steps, last))


def _single_step(start: float, steps: int, step: int) -> float:
    return start if step < steps else 1.0


def _checked(start: float, steps: int) -> tuple[float, int]:
    return number("pacing", "start", start, "(0, 1]"), whole("pacing", "steps", steps, 1)
