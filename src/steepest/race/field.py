"""Who takes part in a race: the entries that are named, or the default field."""

from __future__ import annotations

from steepest.errors import BadCall
from steepest.training.recipe import Recipe

DEFAULT = (
    "adamw",
    "momentum",
    "eadam",
    "adam",
    "adabelief",
    "adabound",
    "rmsprop",
    "nadam",
    "radam",
)
"""The field if nobody names one: the two that everybody tunes, `eadam`, which shows what eps alone
does, and the usual adaptive ones."""
BASELINE = "adamw"


def parse(text: str | None) -> tuple[str, ...]:
    """The entries named in `text` ("adam,adamw+cosine"); None is the default field.

    BadCall for a name that is empty, given twice or no recipe.
    """
    if text is None:
        return DEFAULT
    names = tuple(part.strip() for part in text.split(","))
    for name in names:
        if not name:
            raise BadCall(
                f"--optimizers {text!r}: a name is empty: expected names separated by commas"
            )
        _ = Recipe.read(name).defaults  # imports a class, and looks for an lr to tune
        if names.count(name) > 1:
            raise BadCall(f"optimizer {name!r} is given more than once: name each entry once")
    return names
