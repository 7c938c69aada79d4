"""Checked numbers, seeds and saved states, for what stands around the optimizers."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

import numpy as np

from .definition import inside


def whole(called: str, name: str, value: Any, least: int) -> int:
    """`value` as an int; ValueError if it is no whole number of at least `least`."""
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
        raise ValueError(
            f"{called}: {name}={value!r} was given, expected a whole number of {least} or more"
        )
    return int(value)


def number(called: str, name: str, value: Any, interval: str) -> float:
    """`value` as a float; ValueError if it is no number in an interval written as "[0, inf)"."""
    if not isinstance(value, Real) or isinstance(value, bool) or not inside(interval, float(value)):
        raise ValueError(f"{called}: {name}={value!r} was given, expected a number in {interval}")
    return float(value)


def choice(called: str, name: str, value: Any, known: tuple[str, ...]) -> str:
    """`value`; ValueError if it is none of `known`."""
    if value not in known:
        raise ValueError(
            f"{called}: {name}={value!r} was given, expected one of {', '.join(known)}"
        )
    return value


def saved(called: str, state: Any, keys: set[str]) -> dict[str, Any]:
    """A copy of a saved state; ValueError if it does not have exactly these keys."""
    if not isinstance(state, Mapping) or {*state} != keys:
        given = sorted(map(str, state)) if isinstance(state, Mapping) else type(state).__name__
        raise ValueError(
            f"{called}: a state of {given} was given, expected one of {sorted(keys)}; load what "
            f"{called}.state_dict() has returned"
        )
    return dict(state)


def mixed(*numbers: int) -> int:
    """A seed of 64 bits from several whole numbers: (1, 0) and (0, 1) have nothing in common."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])
