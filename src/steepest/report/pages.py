"""HTML pages without scripts or requests: they open offline and print.

A template in another folder extends `page.html.jinja`, which has the head and the style sheet. It
imports the macros `figure` and `legend` from `parts.html.jinja`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader

from steepest.report.styles import DARK, LIGHT, Key


@dataclass(frozen=True)
class Drawing:
    """One SVG of a figure."""

    svg: str
    axes: str = ""
    """"linear" or "log": the page's switch chooses which of the two is shown. "": always shown."""


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


def render(
    package: str, template: str, names: Sequence[str], keys: Sequence[Key], **values: Any
) -> str:
    """Fill a template of `package` with `values`. Every text in `values` is escaped.

    names: the names in the first column of the tables. The longest name decides how wide this
    column is. keys: the lines of the legend.
    """
    loader = ChoiceLoader([PackageLoader(package, ""), PackageLoader("steepest.report", "")])
    page = Environment(autoescape=True, loader=loader).get_template(template)
    return page.render(light=LIGHT, dark=DARK, names=names, keys=keys, **values)
