"""Tables as aligned text and as CSV (RFC 4180)."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence

FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
"""If a text begins with one of these, a spreadsheet may run it as a formula."""


def align(rows: Sequence[Sequence[str]]) -> list[str]:
    """One line of text for each row, with columns aligned left. All rows have the same length."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        " ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def csv_text(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return the heads and the rows as CSV. None becomes an empty cell."""
    out = io.StringIO()
    csv.writer(out).writerows([_defuse(cell) for cell in row] for row in (heads, *rows))
    return out.getvalue()


def _defuse(cell: object) -> object:
    """Put an apostrophe in front of a text that a spreadsheet may run as a formula."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULA) else cell
