"""The ranges over which knobs are tuned: the declared ranges, or those of `--spaces NAME`.

In both cases, `--search ENTRY.KNOB=LOW:HIGH` adds a knob, or gives a knob another range.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from difflib import get_close_matches

from steepest.errors import BadCall
from steepest.training import spaces
from steepest.training.recipe import Recipe

Ranges = dict[str, dict[str, list[float]]]
"""Entry -> knob -> [low, high]."""
INSIDE = 0.38
"""A range is checked at both ends and at this share of its logarithmic length, since an option that
takes only whole numbers may accept both ends."""
FORM = "expected ENTRY.KNOB=LOW:HIGH, as in adamw.weight_decay=1e-4:1"


def parse(text: str | None, entries: Sequence[str]) -> Ranges:
    """The ranges in `text`, which commas separate; BadCall for a wrong range.

    A knob is any number that the entry's optimizer takes (`beta1`), one minus such a number
    (`1-beta1`), or any number that a part of the entry takes (`noise.eta`).
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
                f"--search {item!r}: {target} does not begin with an entry of the race; {FORM}, "
                f"where ENTRY is one of {', '.join(entries)}"
            )
        knob = target[len(entry) + 1 :]
        if ranges.get(entry, {}).keys() & {knob, spaces.twin(knob)}:
            raise BadCall(f"--search {item!r}: {target} is given twice; give one range for it")
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


def check_spaces(name: str | None, entries: Iterable[str], asked: Ranges) -> None:
    """BadCall if there is no space called `name`, or if it does not cover an entry.

    asked: the ranges that `--search` gives; entries with such a range need not be covered.
    """
    if name is None:
        return
    if name not in spaces.NAMES:
        near = get_close_matches(name, spaces.NAMES, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise BadCall(f"--spaces {name}: expected one of {', '.join(spaces.NAMES)}{hint}")
    for entry in entries:
        if _named(name, Recipe.read(entry)) is None and entry not in asked:
            raise BadCall(
                f"--spaces {name} has no space for {entry}: leave {entry} out, or give "
                f"--search {entry}.KNOB=LOW:HIGH"
            )


def space(entry: str, name: str | None, asked: Ranges) -> dict[str, tuple[float, float]]:
    """Knob -> (low, high) of the log-uniform range over which it is tuned.

    name: the space of `--spaces`; None: the declared ranges. asked: the ranges of `--search`, which
    take precedence.
    """
    recipe, own = Recipe.read(entry), asked.get(entry, {})
    start = recipe.space if name is None else _named(name, recipe) or {}
    kept = {knob: ends for knob, ends in start.items() if spaces.twin(knob) not in own}
    return kept | {knob: (low, high) for knob, (low, high) in own.items()}


def defaults(entry: str, knobs: Iterable[str]) -> dict[str, float]:
    """The default of each of these knobs; KeyError for a knob that is no option with a number."""
    recipe = Recipe.read(entry)
    declared, found = recipe.defaults, {}
    for knob in knobs:
        option = spaces.option_of(knob)
        value = declared[option] if option in declared else recipe.options[option]
        found[knob] = value if option == knob else 1 - value
    return found


def _named(name: str, recipe: Recipe) -> Mapping[str, tuple[float, float]] | None:
    return spaces.named(name, recipe.base, recipe.space)


def _read_range(item: str, low: str, high: str) -> list[float]:
    ends = [math.nan, math.nan]
    with suppress(ValueError):
        ends = [float(low), float(high)]
    if not 0 < ends[0] < ends[1] < math.inf:
        raise BadCall(
            f"--search {item!r}: {low}:{high} is no range; expected two numbers above 0, the lower "
            f"one first, since the scale is logarithmic"
        )
    return ends


def _check(item: str, entry: str, knob: str, ends: Sequence[float]) -> None:
    """BadCall if the entry has no such knob, or if the knob does not accept the range."""
    recipe = Recipe.read(entry)
    option = spaces.option_of(knob)
    if option not in recipe.options or (option in recipe.knobs and option != knob):
        raise BadCall(
            f"--search {item!r}: {entry} has no knob called {knob!r}; expected one of "
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
