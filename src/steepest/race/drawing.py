"""How the report's figures are drawn: SVG by matplotlib, coloured by the page's style sheet."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.axis import XAxis, YAxis
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

LIGHT = ("#0075af", "#ef6b03", "#305863", "#d34bfe", "#726008", "#541679")
DARK = ("#70bee1", "#d06a0b", "#5ef199", "#ae20bf", "#ffcc33", "#c568ff")
"""Searched for: told apart with every common colour blindness, and from ink, grey and paper."""
DASHES = ("-", (0, (6, 2)), (0, (2, 1.5)), (0, (7, 2, 1.5, 2)))
MARKERS = "os^DvPX"
# Drawn in these colours, which `draw` replaces: light, dark and print are up to the page.
INK, UNTUNED = "#010203", "#010204"
COLORS = tuple(f"#01030{i}" for i in range(len(LIGHT)))
PAGE = {INK: "currentColor", UNTUNED: "var(--untuned)"} | {
    color: f"var(--c{i})" for i, color in enumerate(COLORS)
}
SIZE = (5.0, 3.4)
"""Inches; at 72 points an inch a phone shows the 10 point text at about its own size."""
GAP = 0.065
"""Least distance of two labels, as a share of the height."""
POINTS = 200
"""Of a curve: more cannot be seen, and the page stays small."""
LONGEST = 22
"""Signs of a name in a figure."""
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 10,
    "font.family": "sans-serif",
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.grid": True,
    "grid.color": INK,
    "grid.alpha": 0.12,
}
NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))


def untuned(summary: Mapping[str, Any]) -> set[str]:
    """The entries that are not to be judged by their curves: grey in every figure."""
    return {name for name, entry in summary["entries"].items() if entry.get("untuned")}


def looks(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """How each entry is drawn, as matplotlib's keywords: colour, dashes and marker all differ."""
    grey, found, rival = untuned(summary), [], 0
    for name in summary["entries"]:
        color, dashes, marker = INK, "-", "o"
        if name != summary["baseline"]:
            color, dashes = COLORS[rival % len(COLORS)], DASHES[rival % len(DASHES)]
            marker = MARKERS[(rival + 1) % len(MARKERS)]  # the first is the baseline's
            rival += 1
        color = UNTUNED if name in grey else color
        width = 2.4 if name == summary["baseline"] else 1.6
        found.append({"color": color, "ls": dashes, "marker": marker, "lw": width, "ms": 4.5})
    return found


def lines(
    summary: Mapping[str, Any],
    lines: Sequence[tuple[Sequence[float], Sequence[float], Any, Any]],
    xlabel: str,
    ylabel: str,
    limits: tuple[float, float],
    key: str,
    log: bool = False,
) -> str:
    """One line for each entry with its name at the end; (x, y, low, high) each."""
    values = [v for _, y, *_ in lines for v in y if math.isfinite(v)]
    steep = log and not summary["maximize"] and min(values, default=0) > 0

    def paint(axes: Axes) -> None:
        axes.set(xlabel=xlabel, ylabel=ylabel)
        axes.xaxis.set_major_locator(ticker.MaxNLocator(6, integer=key == "k"))
        axes.set_ylim(*limits)
        if log:
            _logarithmic(axes.xaxis)
        if steep:
            _logarithmic(axes.yaxis)
            axes.set_ylim(min(values) / 1.1, max(limits[1], min(values)) * 1.1)
        ends = []
        for i, ((x, y, low, high), style) in enumerate(zip(lines, looks(summary), strict=True)):
            if not x:
                continue
            few = np.unique(np.linspace(0, len(x) - 1, min(len(x), POINTS)).round().astype(int))
            x, y = np.asarray(x)[few], np.asarray(y, float)[few]
            marks = (i % 3 * len(few) // 24, max(1, len(few) // 8))  # apart from its neighbour's
            axes.plot(x, y, **style, markevery=marks, gid=f"e{i}-{key}")
            if low is not None:
                band = np.asarray(low, float)[few], np.asarray(high, float)[few]
                axes.fill_between(
                    x, *band, color=style["color"], alpha=0.1, lw=0, gid=f"e{i}-{key}-quartiles"
                )
            known = np.flatnonzero(np.isfinite(y))
            if len(known):
                ends.append((i, x[known[-1]], y[known[-1]], style["color"]))
        _label(axes, ends, list(summary["entries"]), key)

    return draw(SIZE, paint, key)


def _logarithmic(axis: XAxis | YAxis) -> None:
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5), numticks=8))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(ticker.NullLocator())


def _label(
    axes: Axes, ends: list[tuple[int, float, float, str]], names: list[str], key: str
) -> None:
    """Names at the right edge, at the height of their lines but never on one another."""
    if not ends:
        return
    to_share = axes.transAxes.inverted().transform
    heights = [
        min(1.0, max(0.0, float(to_share(axes.transData.transform((x, y)))[1])))
        for _, x, y, _ in ends
    ]
    for (i, x, y, color), height in zip(ends, apart(heights), strict=True):
        label = axes.annotate(
            short(names[i]), (x, np.clip(y, *axes.get_ylim())), (1.03, height),
            textcoords="axes fraction", color=color, va="center", annotation_clip=False,
            gid=f"e{i}-{key}-label",
            arrowprops={"arrowstyle": "-", "color": color, "lw": 0.6, "relpos": (0, 0.5),
                        "shrinkA": 1, "shrinkB": 2},
        )  # fmt: skip
        assert label.arrow_patch is not None
        label.arrow_patch.set_gid(f"e{i}-{key}-leader")
        label.arrow_patch.set_clip_on(False)


def apart(heights: Sequence[float]) -> list[float]:
    """`heights` in [0, 1], moved as little as keeps them in order and GAP apart where that fits."""
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    gap = min(GAP, 1 / max(1, len(heights) - 1))
    placed = list(heights)
    floor = 0.0
    for i in order:
        placed[i] = floor = max(floor, placed[i])
        floor += gap
    ceiling = 1.0
    for i in reversed(order):
        placed[i] = ceiling = min(ceiling, placed[i])
        ceiling -= gap
    return placed


def short(name: str) -> str:
    name = " ".join(name.split())
    return name if len(name) <= LONGEST else name[: LONGEST - 1] + "…"


def draw(size: tuple[float, float], paint: Callable[[Axes], None], salt: str) -> str:
    # the salt: the same race gives the same bytes, and no two figures of a page share an id
    with (
        matplotlib.rc_context({**STYLE, "svg.hashsalt": f"steepest-{salt}"}),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # the browser has it
        figure = Figure(size, layout="constrained")
        FigureCanvasSVG(figure)
        paint(figure.add_subplot())
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata=NO_METADATA)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    for drawn, shown in PAGE.items():
        text = text.replace(drawn, shown)
    return text
