"""report.html: one page without scripts or requests; the figures are SVG drawn by matplotlib."""

from __future__ import annotations

import io
from collections.abc import Callable
from importlib.resources import files
from typing import Any

import matplotlib
import matplotlib.colors
from jinja2 import Environment
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from steepest.race.wording import caveats, columns, counted, number, rows, spread, units

INK = "#010203"
"""Drawn in this colour, shown as `currentColor`: axes and text follow light, dark and print."""
SIZE = (5.0, 3.4)
"""Inches; at 72 points an inch a phone shows the 10 point text at about its own size."""
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "steepest",  # the same race gives the same bytes
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


def page(summary: dict[str, Any]) -> str:
    """The whole report as HTML. Every text from the race is escaped."""
    template = files("steepest.race").joinpath("report.html.jinja").read_text(encoding="utf-8")
    names = list(summary["entries"])
    colors = [matplotlib.colormaps["tab10"](i % 10) for i in range(len(names))]
    table = rows(summary)
    return (
        Environment(autoescape=True)
        .from_string(template)
        .render(
            s=summary,
            plan=summary["plan"],
            caveats=caveats(summary),
            columns=columns(summary),
            rows=table,
            names=names,
            colors=[matplotlib.colors.to_hex(color) for color in colors],
            target=number(summary, summary["target"]) + units(summary)[0],
            figures=_figures(summary, colors),
        )
    )


def _figures(summary: dict[str, Any], colors: list[Any]) -> list[dict[str, Any]]:
    n, trials = counted(summary, "test"), counted(summary, "tuning")
    entries = list(summary["entries"].values())
    if not any(entry["tuning"] for entry in entries):
        return []
    score = f"validation {summary['metric']}{' (%)' if summary['proportion'] else ''}"
    scale = 100 if summary["proportion"] else 1

    def by_step(axes: Axes, entry: dict[str, Any], style: dict[str, Any]) -> None:
        curve = entry["curve"]
        low, middle, high = ([scale * v for v in curve[k]] for k in ("low", "median", "high"))
        axes.plot(curve["steps"], middle, **style)
        axes.fill_between(
            curve["steps"],
            low,
            high,
            color=style["color"],
            alpha=0.12,
            lw=0,
            gid=style["gid"] + "-quartiles",
        )

    def by_second(axes: Axes, entry: dict[str, Any], style: dict[str, Any]) -> None:
        seconds = entry["timing"]["curve_seconds"]
        axes.plot(seconds, [scale * v for v in entry["curve"]["median"][: len(seconds)]], **style)

    def by_lr(axes: Axes, entry: dict[str, Any], style: dict[str, Any]) -> None:
        tried = [t for t in entry["tuning"] if "lr" in t["hyperparameters"]]
        pairs = sorted((t["hyperparameters"]["lr"], scale * t["validation"]) for t in tried)
        if pairs:
            axes.plot(*zip(*pairs, strict=True), marker="o", ms=4, **{**style, "ls": "none"})
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter("{x:g}")

    curves = [
        scale * v for e in entries for v in e["curve"]["median"][len(e["curve"]["steps"]) // 4 :]
    ]
    wide = (min(curves), max(curves)) if curves else None
    return [
        {"title": title, "text": text, "svg": _draw(entries, colors, plot, label, score, limits, i)}
        for i, (title, text, plot, label, limits) in enumerate(
            (
                ("By step", f"Median and quartiles of n={n} fresh seeds.", by_step, "step", wide),
                (
                    "By second",
                    f"Median of n={n} fresh seeds against {_training_time(entries)} on one thread, "
                    f"evaluation left out.",
                    by_second,
                    "seconds of training",
                    wide,
                ),
                (
                    "Sensitivity",
                    f"Every tuning trial (n={trials} per entry, one seed each), all of its "
                    f"hyperparameters varied at once, against its learning rate.",
                    by_lr,
                    "learning rate",
                    None,
                ),
            )
        )
    ]


def _training_time(entries: list[dict[str, Any]]) -> str:
    """What stands on the axis of seconds: without the runs that diverged, which have no end."""
    if not any(entry["diverged"]["fresh"] for entry in entries):
        return "training time"
    finished = spread([len(e["test"]) - e["diverged"]["fresh"] for e in entries])
    return (
        f"the median training time of the n={finished} of them per entry that did not diverge "
        "(in the metric the others count as the worst)"
    )


def _draw(
    entries: list[dict[str, Any]],
    colors: list[Any],
    plot: Callable[[Axes, dict[str, Any], dict[str, Any]], None],
    xlabel: str,
    ylabel: str,
    limits: tuple[float, float] | None,
    index: int,
) -> str:
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": f"steepest-{index}"}):
        figure = Figure(SIZE, layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        for i, (entry, color) in enumerate(zip(entries, colors, strict=True)):
            dashed = "-" if i < 10 else "--"  # the palette has ten colours
            plot(axes, entry, {"color": color, "lw": 1.6, "ls": dashed, "gid": f"e{i}-{index}"})
        if limits:
            margin = 0.05 * (limits[1] - limits[0]) or 0.5
            axes.set_ylim(limits[0] - margin, limits[1] + margin)
        axes.set(xlabel=xlabel, ylabel=ylabel)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata=NO_METADATA)
    text = buffer.getvalue()
    return text[text.index("<svg") :].replace(INK, "currentColor")
