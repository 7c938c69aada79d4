"""How each line of a figure looks: its colour, dashes and marker, on the page and in the legend."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

INK, MUTED = "#1b1f24", "#8a8f94"
LIGHT = (
    "#764a07", "#9e0bef", "#086658", "#0f9300", "#2814b1", "#bc0a56",
    "#dd58fc", "#6c668e", "#5e0158", "#3c3821", "#ff5762",
)  # fmt: skip
DARK = (
    "#ffbb00", "#cc0000", "#01734d", "#f16312", "#7333ff", "#99b5aa",
    "#dfbefc", "#b37cff", "#3caa66", "#73fe9a", "#ba0798",
)  # fmt: skip
"""The colours of lines: LIGHT on light paper, DARK on dark paper. `scripts/colors.py` searched for
colours that differ from each other, from ink and from grey, with normal sight and with every common
colour blindness. The colours that differ most come first."""
DASHES = ("-", (0, (6, 2)), (0, (2, 1.5)), (0, (7, 2, 1.5, 2)))
MARKERS = "os^DvPX"
PAGE = {INK: "currentColor", MUTED: "var(--untuned)"} | {
    color: f"var(--c{i})" for i, color in enumerate(LIGHT)
}
"""Figures are drawn in ink, grey and LIGHT, so that a saved figure can be shown anywhere. On the
page, each colour is replaced by its value here, so that the style sheet decides the colours for
light, dark and print."""


@dataclass(frozen=True)
class Style:
    """How one line is drawn, in matplotlib's terms."""

    color: str
    dashes: Any
    """matplotlib's line style: "-" or (offset, (points on, points off, ...))."""
    marker: str
    width: float
    """The width of the line, in points."""

    def keywords(self) -> dict[str, Any]:
        """The keyword arguments of `Axes.plot`."""
        return {
            "color": self.color,
            "ls": self.dashes,
            "marker": self.marker,
            "lw": self.width,
            "ms": 4.5,
        }


@dataclass(frozen=True)
class Key:
    """One line of a page's legend, in CSS's terms."""

    name: str
    note: str
    color: str
    dashes: str
    width: float


def choose_styles(names: Sequence[str], baseline: str, muted: Collection[str] = ()) -> list[Style]:
    """A different style for each name.

    baseline: the name to which all others are compared. It gets a thick line in the colour of ink.
    muted: names whose lines are grey.
    """
    styles, rivals = [], 0
    for name in names:
        color, dashes, marker, width = INK, DASHES[0], MARKERS[0], 2.4
        if name != baseline:
            color, dashes = LIGHT[rivals % len(LIGHT)], DASHES[rivals % len(DASHES)]
            marker, width = MARKERS[(rivals + 1) % len(MARKERS)], 1.6
            rivals += 1
        styles.append(Style(MUTED if name in muted else color, dashes, marker, width))
    return styles


def make_legend(names: Sequence[str], styles: Sequence[Style], notes: Sequence[str]) -> list[Key]:
    """Make a line of the legend for each name. notes: the text in brackets after a name, or ""."""
    return [
        Key(
            name,
            note,
            PAGE[style.color],
            "none" if style.dashes == "-" else " ".join(map(str, style.dashes[1])),
            style.width,
        )
        for name, style, note in zip(names, styles, notes, strict=True)
    ]
