"""The field of a race is all its entries: those that the caller names, or the default field."""

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
"""The default field: the two optimizers that everybody tunes, the usual adaptive ones, and `eadam`,
which differs from `adam` only in where eps is added."""
BASELINE = "adamw"


def parse(text: str | None) -> tuple[str, ...]:
    """The entries named in `text` ("adam,adamw+cosine"); None is the default field.

    BadCall for a name that is empty, given twice, or not the name of an entry.
    """
    if text is None:
        return DEFAULT
    names = tuple(part.strip() for part in text.split(","))
    for name in names:
        if not name:
            raise BadCall(
                f"--optimizers {text!r} has an empty name: give names separated by commas"
            )
        _ = Recipe.read(name).defaults  # imports a class, and looks for an lr to tune
        if names.count(name) > 1:
            raise BadCall(f"optimizer {name!r} is given more than once: name each entry once")
    return names
