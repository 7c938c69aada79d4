"""`--search ENTRY.KNOB=LOW:HIGH`: knobs tuned beside the declared ones, and other ranges."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress

from steepest.errors import BadCall
from steepest.training.recipe import Recipe

Ranges = dict[str, dict[str, list[float]]]
"""entry -> knob -> [low, high]"""
INSIDE = 0.38
"""Where in a range a third value is tried: an option that takes whole numbers only may take both
ends."""
FORM = "expected ENTRY.KNOB=LOW:HIGH, as in adamw.weight_decay=1e-4:1"


def parse(text: str | None, field: Sequence[str]) -> Ranges:
    """The ranges in `text`, separated by commas, for the entries of `field`; BadCall names a fault.

    A knob is any number that the optimizer takes, or one of the entry's parts (`noise.eta`).
    """
    found: Ranges = {}
    for one in text.split(",") if text else ():
        target, equals, ends = one.strip().rpartition("=")
        low, colon, high = ends.partition(":")
        if not (equals and colon):
            raise BadCall(f"--search {one.strip()!r}: {FORM}")
        # names have dots too: torch.optim:SGD.lr, adam+noise.noise.eta
        mine = max((e for e in field if target.startswith(f"{e}.")), key=len, default=None)
        if mine is None:
            raise BadCall(
                f"--search {one.strip()!r}: {target} begins with no entry of the race: {FORM}, "
                f"with one of {', '.join(field)} as ENTRY"
            )
        knob = target[len(mine) + 1 :]
        if knob in found.get(mine, {}):
            raise BadCall(f"--search {one.strip()!r}: {target} is given twice: give one range")
        found.setdefault(mine, {})[knob] = _range(one.strip(), low, high)
        _check(one.strip(), mine, knob, found[mine][knob])
    return found


def written(ranges: Ranges) -> str | None:
    """The ranges as `parse` reads them; None where there are none."""
    said = [
        f"{entry}.{knob}={low!r}:{high!r}"
        for entry, knobs in ranges.items()
        for knob, (low, high) in knobs.items()
    ]
    return ",".join(said) or None


def default(entry: str, knob: str) -> float:
    """The optimizer's own value of `knob`; KeyError where it is no number that it takes."""
    return Recipe.read(entry).options[knob]


def _range(one: str, low: str, high: str) -> list[float]:
    ends = [math.nan, math.nan]
    with suppress(ValueError):
        ends = [float(low), float(high)]
    if not 0 < ends[0] < ends[1] < math.inf:
        raise BadCall(
            f"--search {one!r}: {low}:{high} is no range: expected two numbers above 0, the lower "
            f"first, as points are spread evenly over their logarithms"
        )
    return ends


def _check(one: str, entry: str, knob: str, ends: Sequence[float]) -> None:
    """BadCall for a knob that the entry does not have, or for a range that it cannot have."""
    recipe = Recipe.read(entry)
    if knob not in recipe.options:
        raise BadCall(
            f"--search {one!r}: {entry} has no number called {knob!r}: expected one of "
            f"{', '.join(recipe.options) or 'none, as it has no knobs'}"
        )
    low, high = ends
    for value in (low, high, low * (high / low) ** INSIDE):
        try:
            recipe.check_value(knob, value)
        except (ValueError, TypeError, RuntimeError) as error:
            raise BadCall(f"--search {one!r}: {entry} refuses {knob}={value:g} ({error})") from None
