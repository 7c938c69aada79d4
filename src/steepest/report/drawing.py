"""Figures, drawn by matplotlib: as SVG for a page, and as SVG and PNG to save."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from textwrap import fill
from typing import Any

import matplotlib
import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.axis import XAxis, YAxis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from PIL import Image

from steepest.report.styles import INK, PAGE, Style

SIZE = (5.0, 3.4)
"""Width and height of a figure in inches. The width is 360 points, about the width of a phone, so
the text keeps its size of 10 points on a phone."""
GAP = 0.065
"""The least distance between two labels, as a share of the figure's height."""
PIXELS = 2
"""Pixels per point of a PNG: sharp on a screen with two pixels per CSS pixel."""
SHADES = 128
"""Colours of a PNG. The drawings need no more, and this makes the file four times as small."""
POINTS = 200
"""A curve has at most this many points. More points could not be seen, but make the page large."""
LONGEST = 22
"""A name in a figure has at most this many characters."""
TITLE = 30
"""A line of an axis title has at most this many characters."""
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
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


@dataclass(frozen=True)
class Drawing:
    """A drawing for a page and as files."""

    svg: str
    """SVG for a page, whose style sheet decides the colours."""
    file: str
    """SVG to save as a file, in the colours for light paper."""
    png: bytes
    """PNG on white, with PIXELS pixels per point."""
    axes: str = ""
    """"linear" or "log": the page's switch chooses which of the two is shown. "": always shown."""


@dataclass(frozen=True)
class Series:
    """One curve, with a band around it if `low` and `high` are given."""

    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


def draw_lines(
    names: Sequence[str],
    series: Sequence[Series],
    styles: Sequence[Style],
    *,
    xlabel: str,
    ylabel: str,
    limits: tuple[float, float],
    key: str,
    log_x: bool = False,
    log_y: bool = False,
) -> Drawing:
    """Draw curves, each with its name at its end.

    limits: lowest and highest value of the y axis. key: a short text that no other figure of the
    page has. The curve of `names[i]` is the SVG group "e{i}-{key}". log_x, log_y: make that axis
    logarithmic. The y axis stays linear if any y is 0 or less.
    """
    finite = [v for curve in series for v in curve.y if math.isfinite(v)]
    log_y = log_y and min(finite, default=0) > 0

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        axes.set(xlabel=wrap(xlabel), ylabel=wrap(ylabel))
        axes.xaxis.set_major_locator(ticker.MaxNLocator(6))
        axes.set_ylim(*limits)
        if log_x:
            _make_logarithmic(axes.xaxis)
        if log_y:
            _make_logarithmic(axes.yaxis)
            axes.set_ylim(min(finite) / 1.1, max(limits[1], min(finite)) * 1.1)
        ends = []
        for i, (curve, style) in enumerate(zip(series, styles, strict=True)):
            if not curve.x:
                continue
            count = len(curve.x)
            drawn = np.unique(np.linspace(0, count - 1, min(count, POINTS)).round().astype(int))
            x, y = np.asarray(curve.x)[drawn], np.asarray(curve.y, float)[drawn]
            first = i % 3 * len(drawn) // 24  # so that markers of neighbours do not overlap
            every = max(1, len(drawn) // 8)
            axes.plot(x, y, **style.keywords(), markevery=(first, every), gid=f"e{i}-{key}")
            if curve.low is not None:
                low, high = (np.asarray(v, float)[drawn] for v in (curve.low, curve.high))
                axes.fill_between(
                    x, low, high, color=style.color, alpha=0.1, lw=0, gid=f"e{i}-{key}-quartiles"
                )
            known = np.flatnonzero(np.isfinite(y))
            if len(known):
                ends.append((i, x[known[-1]], y[known[-1]], style.color))
        _label_ends(axes, ends, names, key)

    return draw(SIZE, paint, key)


def draw(size: tuple[float, float], paint: Callable[[Figure], None], key: str) -> Drawing:
    """Return what `paint` draws on an empty figure.

    size: width and height in inches. key: a text that no other figure of the page has. `key` is the
    salt from which the SVG's ids are made. So the same figure always has the same bytes, and no two
    figures of a page share an id.
    """
    with _painted(size, paint, key) as figure:
        file = _write_svg(figure)
        figure.set(dpi=72 * PIXELS, facecolor="white")
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        pixels = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
        buffer = io.BytesIO()
        # of Pillow's methods, the one that keeps the colours of thin lines
        pixels = pixels.quantize(SHADES, Image.Quantize.FASTOCTREE)
        pixels.save(buffer, "png", optimize=True)
    return Drawing(_color_by_page(file), file, buffer.getvalue())


def draw_svg(size: tuple[float, float], paint: Callable[[Figure], None], key: str) -> str:
    """Return only the SVG for a page. The arguments are those of `draw`."""
    with _painted(size, paint, key) as figure:
        return _color_by_page(_write_svg(figure))


@contextmanager
def _painted(
    size: tuple[float, float], paint: Callable[[Figure], None], key: str
) -> Iterator[Figure]:
    """Yield a painted figure. Inside the context, matplotlib has the settings of `STYLE`."""
    with (
        matplotlib.rc_context({**STYLE, "svg.hashsalt": f"steepest-{key}"}),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # the browser has them
        figure = Figure(size, dpi=72, layout="constrained")
        paint(figure)
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # the layout takes longer than the drawing: once is enough
        yield figure


def _write_svg(figure: Figure) -> str:
    buffer = io.StringIO()
    FigureCanvasSVG(figure).print_svg(buffer, metadata=NO_METADATA)
    svg = buffer.getvalue()
    return svg[svg.index("<svg") :]


def _color_by_page(svg: str) -> str:
    for drawn, shown in PAGE.items():
        svg = svg.replace(drawn, shown)
    return svg


def wrap(label: str, longest: int = TITLE) -> str:
    """Break the title of an axis into lines of at most `longest` characters."""
    return fill(" ".join(label.split()), longest)


def _make_logarithmic(axis: XAxis | YAxis) -> None:
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5), numticks=8))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(ticker.NullLocator())


def _label_ends(
    axes: Axes, ends: Sequence[tuple[int, float, float, str]], names: Sequence[str], key: str
) -> None:
    """Write each name at the right edge, near the end of its line, without overlaps.

    A name has the colour of text, since not every line's colour has enough contrast for small text.
    ends: (index of the name, x, y, colour) of the last point of each line.
    """
    if not ends:
        return
    to_share = axes.transAxes.inverted().transform
    heights = [
        min(1.0, max(0.0, float(to_share(axes.transData.transform((x, y)))[1])))
        for _, x, y, _ in ends
    ]
    for (i, x, y, color), height in zip(ends, spread_labels(heights), strict=True):
        leader = {
            "arrowstyle": "-",
            "color": color,
            "lw": 0.6,
            "relpos": (0, 0.5),
            "shrinkA": 1,
            "shrinkB": 2,
        }
        label = axes.annotate(
            shorten(names[i]),
            (x, np.clip(y, *axes.get_ylim())),
            (1.03, height),
            textcoords="axes fraction",
            va="center",
            annotation_clip=False,
            gid=f"e{i}-{key}-label",
            arrowprops=leader,
        )
        assert label.arrow_patch is not None
        label.arrow_patch.set_gid(f"e{i}-{key}-leader")
        label.arrow_patch.set_clip_on(False)


def spread_labels(heights: Sequence[float]) -> list[float]:
    """Move heights in [0, 1] so that any two are at least GAP apart. Their order stays the same.

    If there are too many heights for GAP, they are spread evenly over [0, 1].
    """
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


def shorten(name: str, longest: int = LONGEST) -> str:
    """Cut the middle out of a `name` of more than `longest` characters, and make it one line."""
    name = " ".join(name.split())
    if len(name) <= longest:
        return name
    return f"{name[: (longest - 1) // 2]}…{name[-(longest // 2) :]}"
