"""Tables as aligned text and as CSV (RFC 4180)."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence

FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
"""A spreadsheet may take a text that begins with one of these for a formula."""


def align(rows: Sequence[Sequence[str]]) -> list[str]:
    """One line of text for each row, its columns aligned left. All rows are of one length."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        " ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def csv_text(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """The heads and the rows as CSV. None is an empty cell."""
    out = io.StringIO()
    csv.writer(out).writerows([_defuse(cell) for cell in row] for row in (heads, *rows))
    return out.getvalue()


def _defuse(cell: object) -> object:
    """An apostrophe keeps a spreadsheet from running a text as a formula."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULA) else cell
