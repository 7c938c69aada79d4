"""HTML pages without scripts or requests: they open offline and print.

A template in another folder extends `page.html.jinja`, which has the head and the style sheet. It
imports the macros `figure`, `legend` and `table` from `parts.html.jinja`. The files that a page
offers to save are inside the page, so it is enough to mail the page.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from jinja2 import ChoiceLoader, Environment, PackageLoader

from steepest.report.drawing import Drawing
from steepest.report.styles import DARK, LIGHT, Key
from steepest.report.tables import csv_text


@dataclass(frozen=True)
class Panel:
    """One of several small SVGs of a figure, with a heading of its own.

    In the legend, the checkbox of line number i hides the panel with the id "e{i}-panel".
    """

    svg: str
    id: str
    heading: str


@dataclass(frozen=True)
class Figure:
    """A title, the drawings or the panels, and the text below them."""

    title: str
    text: str
    drawings: Sequence[Drawing] = ()
    panels: Sequence[Panel] = ()
    together: Drawing | None = None
    """All panels as one drawing, to save."""


@dataclass(frozen=True)
class Table:
    """A table whose first column has names, with the numbers to save."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    csv: str = ""
    """The CSV to save. Default: the texts of the cells."""
    marked: str = ""
    """The row with this name has another background."""

    @property
    def saved(self) -> str:
        """The CSV to save."""
        return self.csv or csv_text(self.columns, self.rows)


def render(
    package: str, template: str, names: Sequence[str], keys: Sequence[Key], **values: Any
) -> str:
    """Fill a template of `package` with `values`. Every text in `values` is escaped.

    names: the names in the first column of the tables. The longest name decides how wide this
    column is. keys: the lines of the legend.
    """
    loader = ChoiceLoader([PackageLoader(package, ""), PackageLoader("steepest.report", "")])
    environment = Environment(autoescape=True, loader=loader)
    environment.filters |= {"data_url": _data_url, "file_name": _file_name}
    page = environment.get_template(template)
    return page.render(light=LIGHT, dark=DARK, names=names, keys=keys, **values)


def _data_url(content: str | bytes, kind: str) -> str:
    """The content as a data URL. kind: its MIME type."""
    if isinstance(content, bytes):
        return f"data:{kind};base64,{b64encode(content).decode()}"
    # in a quoted attribute these characters need no escape, which keeps the page small
    text = quote(content, safe=" !$()*+,-./:;=?@[]^_|~")
    text = text.rstrip(" ") + "%20" * (len(text) - len(text.rstrip(" ")))  # an address ends before
    return f"data:{kind};charset=utf-8,{text}"


def _file_name(title: str) -> str:
    """A title as the name of a file, without its ending."""
    return re.sub(r"\W+", "-", title).strip("-").lower()[:80] or "figure"
