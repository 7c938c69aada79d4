"""`--search ENTRY.KNOB=LOW:HIGH`: more knobs to tune, and other ranges for the declared knobs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress

from steepest.errors import BadCall
from steepest.training.recipe import Recipe

Ranges = dict[str, dict[str, list[float]]]
"""Entry -> knob -> [low, high]."""
INSIDE = 0.38
"""A range is checked at both ends and at this share of its length, by logarithm: an option that
takes only whole numbers may accept both ends."""
FORM = "expected ENTRY.KNOB=LOW:HIGH, as in adamw.weight_decay=1e-4:1"


def parse(text: str | None, entries: Sequence[str]) -> Ranges:
    """The ranges in `text`, which commas separate; BadCall for a wrong range.

    A knob is any number that the entry's optimizer takes, or that a part of the entry takes
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
                f"--search {item!r}: {target} does not begin with an entry of the race: {FORM}; "
                f"ENTRY is one of {', '.join(entries)}"
            )
        knob = target[len(entry) + 1 :]
        if knob in ranges.get(entry, {}):
            raise BadCall(f"--search {item!r}: {target} is given twice: give one range for it")
        ranges.setdefault(entry, {})[knob] = _read_range(item, low, high)
        _check(item, entry, knob, ranges[entry][knob])
    return ranges


def as_option(ranges: Ranges) -> str | None:
    """The ranges as a text that `parse` reads; None if there are none."""
    items = [
        f"{entry}.{knob}={low!r}:{high!r}"
        for entry, knobs in ranges.items()
        for knob, (low, high) in knobs.items()
    ]
    return ",".join(items) or None


def default(entry: str, knob: str) -> float:
    """The optimizer's default of `knob`; KeyError if there is no such option with a number."""
    return Recipe.read(entry).options[knob]


def _read_range(item: str, low: str, high: str) -> list[float]:
    ends = [math.nan, math.nan]
    with suppress(ValueError):
        ends = [float(low), float(high)]
    if not 0 < ends[0] < ends[1] < math.inf:
        raise BadCall(
            f"--search {item!r}: {low}:{high} is no range: expected two numbers above 0, the lower "
            f"one first; the range is searched on a logarithmic scale"
        )
    return ends


def _check(item: str, entry: str, knob: str, ends: Sequence[float]) -> None:
    """BadCall if the entry has no such knob, or if the knob does not accept the range."""
    recipe = Recipe.read(entry)
    if knob not in recipe.options:
        raise BadCall(
            f"--search {item!r}: {entry} has no knob called {knob!r}: expected one of "
            f"{', '.join(recipe.options) or 'none, as it has no knobs'}"
        )
    low, high = ends
    for value in (low, high, low * (high / low) ** INSIDE):
        try:
            recipe.check_value(knob, value)
        except (ValueError, TypeError, RuntimeError) as error:
            raise BadCall(
                f"--search {item!r}: {entry} refuses {knob}={value:g} ({error}); give another range"
            ) from None
