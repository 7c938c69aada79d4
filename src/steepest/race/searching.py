"""`--search ENTRY.KNOB=LOW:HIGH`: further knobs to tune, and other ranges of the declared ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress

from steepest.errors import BadCall
from steepest.training.recipe import Recipe

Ranges = dict[str, dict[str, list[float]]]
"""Entry -> knob -> [low, high]."""
INSIDE = 0.38
"""Where in a range a third value is tried: an option that takes only whole numbers may take both
ends."""
FORM = "expected ENTRY.KNOB=LOW:HIGH, as in adamw.weight_decay=1e-4:1"


def parse(text: str | None, entries: Sequence[str]) -> Ranges:
    """The ranges in `text`, which are separated by commas; BadCall for one that is wrong.

    A knob is any number that the entry's optimizer takes, or one of the entry's parts
    (`noise.eta`).
    """
    ranges: Ranges = {}
    for item in map(str.strip, text.split(",") if text else ()):
        target, equals, ends = item.rpartition("=")
        low, colon, high = ends.partition(":")
        if not (equals and colon):
            raise BadCall(f"--search {item!r}: {FORM}")
        # names have dots too: torch.optim:SGD.lr, adam+noise.noise.eta
        entry = max((e for e in entries if target.startswith(f"{e}.")), key=len, default=None)
        if entry is None:
            raise BadCall(
                f"--search {item!r}: {target} begins with no entry of the race: {FORM}, with one "
                f"of {', '.join(entries)} as ENTRY"
            )
        knob = target[len(entry) + 1 :]
        if knob in ranges.get(entry, {}):
            raise BadCall(f"--search {item!r}: {target} is given twice: give one range")
        ranges.setdefault(entry, {})[knob] = _read_range(item, low, high)
        _check(item, entry, knob, ranges[entry][knob])
    return ranges


def as_option(ranges: Ranges) -> str | None:
    """The ranges as `parse` reads them; None if there are none."""
    items = [
        f"{entry}.{knob}={low!r}:{high!r}"
        for entry, knobs in ranges.items()
        for knob, (low, high) in knobs.items()
    ]
    return ",".join(items) or None


def default(entry: str, knob: str) -> float:
    """The optimizer's default of `knob`; KeyError if it takes no such number."""
    return Recipe.read(entry).options[knob]


def _read_range(item: str, low: str, high: str) -> list[float]:
    ends = [math.nan, math.nan]
    with suppress(ValueError):
        ends = [float(low), float(high)]
    if not 0 < ends[0] < ends[1] < math.inf:
        raise BadCall(
            f"--search {item!r}: {low}:{high} is no range: expected two numbers above 0, the lower "
            f"first, since points are spread evenly over their logarithms"
        )
    return ends


def _check(item: str, entry: str, knob: str, ends: Sequence[float]) -> None:
    """BadCall for a knob that the entry does not have, or a range that the knob cannot have."""
    recipe = Recipe.read(entry)
    if knob not in recipe.options:
        raise BadCall(
            f"--search {item!r}: {entry} has no number called {knob!r}: expected one of "
            f"{', '.join(recipe.options) or 'none, as it has no knobs'}"
        )
    low, high = ends
    for value in (low, high, low * (high / low) ** INSIDE):
        try:
            recipe.check_value(knob, value)
        except (ValueError, TypeError, RuntimeError) as error:
            raise BadCall(
                f"--search {item!r}: {entry} refuses {knob}={value:g} ({error})"
            ) from None
