"""What `steepest list --parts` says about parts and about methods on the full batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from steepest.training.full_batch import METHODS
from steepest.training.parts import PARTS


def listing() -> list[dict[str, Any]]:
    """The facts of all parts, in the order of an entry's name, then the facts of all methods."""
    rows = {**{f"+{name}": part for name, part in PARTS.items()}, **METHODS}
    return [
        {
            "name": name,
            "about": row.about,
            "tuned": {n: [knob.low, knob.default, knob.high] for n, knob in row.knobs.items()},
            "needs": row.needs,
            "source": row.source,
        }
        for name, row in rows.items()
    ]


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """`listing()` as a table of at most 100 columns. Search ranges are only in the JSON."""
    heads = ("name", "about", "tuned", "source")
    cells = [heads, *((r["name"], r["about"], ", ".join(r["tuned"]), r["source"]) for r in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        " ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]
