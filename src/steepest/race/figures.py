"""The report's figures and their captions."""

from __future__ import annotations

import math
import statistics as st
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import zip_longest
from typing import Any

import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from steepest.race.phrases import counted, fresh, is_imported, metric_name, spread
from steepest.race.schema import EntrySummary, Summary
from steepest.report.drawing import SIZE, Drawing, Series, draw, draw_lines, draw_svg, shorten, wrap
from steepest.report.pages import Figure, Panel
from steepest.report.styles import INK, Style, choose_styles

PANEL = (2.5, 2.1)
"""Width and height of a panel in inches."""
PANEL_TITLE = 22
"""A line of an axis title of a panel has at most this many characters."""
PANELS = 4
"""Most panels in a row of the drawing that has all panels."""
RATE = "learning rate"
FAR = 4.0
"""If a value is farther from the best than this many median distances, it is drawn at the edge."""


def figures(summary: Summary) -> list[Figure]:
    """All figures for which there are enough finished runs."""
    entries = list(summary["entries"].values())
    if is_imported(summary):
        return [figure for figure in [_draw_differences(summary)] if figure]
    if not any(entry["tuning"] for entry in entries):
        return []
    candidates = [
        _draw_differences(summary),
        *_draw_training(summary),
        _draw_expected_best(summary),
        _draw_sensitivity(summary),
    ]
    return [figure for figure in candidates if figure]


def styles_of(summary: Summary) -> list[Style]:
    """The style of each entry; entries that were not tuned are grey."""
    entries = summary["entries"]
    untuned = [name for name, entry in entries.items() if entry.get("untuned")]
    return choose_styles(list(entries), summary["baseline"], untuned)


def _shown(summary: Summary, values: Iterable[float | None]) -> list[float]:
    """Metrics as they are drawn: shares in %; nan, which is not drawn, for what is not finite."""
    scale = 100.0 if summary["proportion"] else 1.0
    return [math.nan if v is None or not math.isfinite(v) else scale * v for v in values]


def _name_score(summary: Summary) -> str:
    return f"validation {summary['metric']}{' (%)' if summary['proportion'] else ''}"


def _choose_limits(summary: Summary, values: Iterable[float]) -> tuple[float, float]:
    """Ends of a metric's axis, such that one very bad run does not flatten all other curves."""
    known = sorted((v for v in values if math.isfinite(v)), reverse=summary["maximize"])
    if not known:
        return 0.0, 1.0
    best, worst = known[0], known[-1]
    far = FAR * abs(st.median(known) - best)
    if not summary["proportion"] and 0 < far < abs(worst - best):
        worst = best + math.copysign(far, worst - best)
    low, high = sorted((best, worst))
    margin = 0.05 * (high - low) or 0.02 * abs(high) or 0.5
    return low - margin, high + margin


# --- one figure each


def _draw_differences(summary: Summary) -> Figure | None:
    """The differences to the baseline on each seed. The verdict is about these differences."""
    base, scale = summary["baseline"], 100 if summary["proportion"] else 1
    baseline = summary["entries"][base]["units"]
    names = list(summary["entries"])
    judged = {n: d for n in names if (d := summary["entries"][n]["difference"])}
    if not judged:
        return None
    rivals = sorted(judged, key=lambda n: judged[n]["mean"], reverse=not summary["maximize"])

    spans = {}
    for name in rivals:
        pairs = judged[name].get("pairs")
        if pairs is None:
            units = zip(summary["entries"][name]["units"], baseline, strict=True)
            pairs = [a - b for a, b in units]
        seeds = [scale * pair for pair in pairs]
        difference = judged[name]
        ends = difference["low"], difference["mean"], difference["high"]
        spans[name] = seeds, *(None if v is None else scale * v for v in ends)
    widest = [
        max(abs(v) for v in (*each, *rest) if v is not None) for each, *rest in spans.values()
    ]
    edge = 1.08 * (min(max(widest), FAR * st.median(widest) or max(widest)) or 1.0)
    styles = styles_of(summary)

    def paint(figure: Canvas) -> None:
        axes = figure.add_subplot()
        axes.axvline(0, color=INK, lw=1.5)
        axes.set(xlim=(-edge, edge), ylim=(-0.6, len(rivals) - 0.4), yticks=[])
        for y, name in enumerate(rivals):
            i = names.index(name)
            seeds, low, mean, high = spans[name]
            color, marker = styles[i].color, styles[i].marker
            heights = y + np.linspace(-0.25, 0.25, len(seeds))
            for value, height in zip(seeds, heights, strict=True):
                beyond, arrowhead = abs(value) > edge, ">" if value > 0 else "<"
                axes.plot(
                    np.clip(value, -0.98 * edge, 0.98 * edge),
                    height,
                    color=color,
                    ls="none",
                    alpha=0.5,
                    mew=0,
                    marker=arrowhead if beyond else marker,
                    ms=6 if beyond else 4,
                    gid=f"e{i}-d-seed",
                )
            if low is not None and high is not None:
                axes.plot((low, high), (y, y), color=color, lw=2.4, gid=f"e{i}-d-interval")
            axes.plot(mean, y, color=color, ls="none", marker=marker, ms=8, gid=f"e{i}-d-mean")
            axes.annotate(
                shorten(name),
                (0, y),
                (-6, 0),
                xycoords=("axes fraction", "data"),
                textcoords="offset points",
                ha="right",
                va="center",
                gid=f"e{i}-d-label",
            )
        side = "right" if summary["maximize"] else "left"
        unit = " (points)" if summary["proportion"] else ""
        title = wrap(f"difference in {metric_name(summary)}{unit}", 45)
        axes.set_xlabel(f"{title}\nbetter is to the {side}")

    looks = summary["plan"].get("looks")
    each, n = "seed", counted(summary, "test", fresh(summary, "seed"))
    if looks:
        each, n = "unit", f"{spread([d['n'] for d in judged.values()])} units"
    return Figure(
        title=f"Difference to {base}, {each} by {each}",
        text=f"Small marks: the entry's result minus that of {base} on the same {each}, "
        f"n={n}. Large marks and bars: mean and interval of "
        f"these differences, as in the table. Arrowheads at the edge: values beyond the scale.",
        drawings=[draw((SIZE[0], 1.1 + 0.36 * len(rivals)), paint, "d")],
    )


def _draw_training(summary: Summary) -> list[Figure]:
    """The validation metric by step and by second, both on linear and on logarithmic axes."""
    entries, n = list(summary["entries"].values()), counted(summary, "test", "fresh seed")
    curves = [
        {
            "median": _shown(summary, e["curve"]["median"]),
            "low": _shown(summary, e["curve"]["low"]),
            "high": _shown(summary, e["curve"]["high"]),
        }
        for e in entries
    ]
    late = [v for c in curves for v in c["median"][len(c["median"]) // 4 :]]
    if not late:
        return []
    limits = _choose_limits(summary, late)
    seconds = [e["timing"]["curve_seconds"] for e in entries]
    by_step = [
        Series(e["curve"]["steps"], c["median"], c["low"], c["high"])
        for e, c in zip(entries, curves, strict=True)
    ]
    by_second = [Series(x, c["median"][: len(x)]) for x, c in zip(seconds, curves, strict=True)]

    def draw_both(series: Sequence[Series], xlabel: str, key: str) -> list[Drawing]:
        drawings = []
        for axes in ("linear", "log"):
            drawing = _draw_entries(
                summary, series, xlabel=xlabel, limits=limits, key=key + axes[:3], log=axes == "log"
            )
            drawings.append(replace(drawing, axes=axes))
        return drawings

    return [
        Figure(
            title="By step",
            text=f"Median and quartiles of n={n}.",
            drawings=draw_both(by_step, "step", "s"),
        ),
        Figure(
            title="By second",
            text=f"Median of n={n} against {_describe_seconds(entries)} on one thread, "
            f"without the time of evaluations.",
            drawings=draw_both(by_second, "training time (s)", "t"),
        ),
    ]


def _draw_entries(
    summary: Summary,
    series: Sequence[Series],
    *,
    xlabel: str,
    limits: tuple[float, float],
    key: str,
    log: bool,
) -> Drawing:
    """A curve of the validation metric for each entry.

    log: whether the x axis is logarithmic; if less of the metric is better, the y axis too.
    """
    return draw_lines(
        list(summary["entries"]),
        series,
        styles_of(summary),
        xlabel=xlabel,
        ylabel=_name_score(summary),
        limits=limits,
        key=key,
        log_x=log,
        log_y=log and not summary["maximize"],
    )


def _draw_expected_best(summary: Summary) -> Figure | None:
    """Expected best validation metric against the number of tuning trials."""
    expected = [e.get("expected_best") or [] for e in summary["entries"].values()]
    if max(map(len, expected)) < 2:
        return None
    curves = [_shown(summary, values) for values in expected]
    series = [Series(list(range(1, len(c) + 1)), c) for c in curves]
    limits = _choose_limits(summary, (v for c in curves for v in c))
    drawing = _draw_entries(
        summary, series, xlabel="number of tuning trials", limits=limits, key="k", log=True
    )
    return Figure(
        title="By trials",
        text=f"The expected best {_name_score(summary)} of k tuning trials (x axis: k), chosen at "
        f"random from the n={counted(summary, 'tuning')} trials of the entry "
        f"(Dodge et al. 2019, arXiv:1909.03004).",
        drawings=[drawing],
    )


def _draw_sensitivity(summary: Summary) -> Figure | None:
    """The metric of every tuning trial against its learning rate, with a panel for each entry."""
    points = []  # for each entry: (learning rate, metric, diverged, chosen, halted) of each trial
    for entry in summary["entries"].values():
        trials = [t for t in entry["tuning"] if t["hyperparameters"].get("lr", 0) > 0]
        scores = _shown(summary, (t["validation"] for t in trials))
        lost = [bool(t["diverged"]) or math.isnan(v) for t, v in zip(trials, scores, strict=True)]
        best = [id(entry["tuning"][i]) for i in entry["chosen"] or ()]
        chosen = [id(t) in best for t in trials]
        halted = [t.get("halted", False) for t in trials]
        rates = [t["hyperparameters"]["lr"] for t in trials]
        points.append(list(zip(rates, scores, lost, chosen, halted, strict=True)))
    rates = [rate for trials in points for rate, *_ in trials]
    if not rates:
        return None
    ylabel = _name_score(summary)
    limits = _choose_limits(
        summary, (v for trials in points for _, v, lost, *_ in trials if not lost)
    )
    halted = ""
    if any(stopped for trials in points for *_, stopped in trials):
        halted = "Hollow marks: trials that were halted early, with their last metric. "
    panels, paints = [], {}
    for i, (name, style) in enumerate(zip(summary["entries"], styles_of(summary), strict=True)):
        paint = partial(
            _paint_panel,
            points=points[i],
            style=style,
            limits=limits,
            rates=(min(rates) / 1.6, max(rates) * 1.6),
            maximize=summary["maximize"],
            gid=f"e{i}-l",
        )
        diverged = sum(lost for _, _, lost, *_ in points[i])
        note = f", {diverged} diverged" if diverged else ""
        heading = f"{name} (n={len(points[i])}{note})"
        svg = draw_svg(PANEL, partial(_paint_alone, paint=paint, ylabel=ylabel), f"l{i}")
        panels.append(Panel(svg, f"e{i}-panel", heading))
        paints[name] = paint
    return Figure(
        title="Sensitivity",
        text=f"{_name_score(summary).capitalize()} of every tuning trial against its learning "
        f"rate (n={counted(summary, 'tuning')} per entry, one seed each). All hyperparameters of a "
        f"trial vary at once. All panels have the same scales. Rings: trials chosen for fresh "
        f"runs. {halted}Crosses at the edge: trials that diverged. Arrowheads at the edge: values "
        f"beyond the scale.",
        panels=panels,
        together=_draw_together(paints, ylabel),
    )


def _paint_alone(figure: Canvas, *, paint: Callable[[Axes], None], ylabel: str) -> None:
    axes = figure.add_subplot()
    paint(axes)
    axes.set(xlabel=RATE, ylabel=wrap(ylabel, PANEL_TITLE))


def _draw_together(paints: Mapping[str, Callable[[Axes], None]], ylabel: str) -> Drawing:
    """All panels as one drawing, with one title for each axis."""
    wide = min(len(paints), PANELS)
    high = math.ceil(len(paints) / wide)

    def paint(figure: Canvas) -> None:
        grid = figure.subplots(high, wide, sharex=True, sharey=True, squeeze=False).flat
        for axes, name in zip_longest(grid, paints):
            if name is None:
                axes.remove()
                continue
            paints[name](axes)
            axes.set_title(shorten(name), fontsize="medium")
        figure.supxlabel(RATE, fontsize="medium")
        figure.supylabel(wrap(ylabel), fontsize="medium")

    return draw((PANEL[0] * wide, 0.4 + 1.7 * high), paint, "l")


def _paint_panel(
    axes: Axes,
    *,
    points: Sequence[tuple[float, float, bool, bool, bool]],
    style: Style,
    limits: tuple[float, float],
    rates: tuple[float, float],
    maximize: bool,
    gid: str,
) -> None:
    """Paint one entry's tuning trials. `limits`, `rates`: ends of the y and of the x axis."""
    edge, arrowhead = (0.05, "v") if maximize else (0.95, "^")

    def mark(where: Sequence[tuple[float, float]], marker: str, **options: Any) -> None:
        if where:
            axes.plot(*zip(*where, strict=True), marker, **options)

    lost = [(rate, edge) for rate, _, lost, *_ in points if lost]
    rest = [(rate, score, *of) for rate, score, lost, *of in points if not lost]
    beyond = [(rate, edge) for rate, score, *_ in rest if not limits[0] <= score <= limits[1]]
    shown = [point for point in rest if limits[0] <= point[1] <= limits[1]]
    at_edge = {"ms": 6, "transform": axes.get_xaxis_transform()}
    mine = {"color": style.color, "gid": gid}
    mark(lost, "x", **mine, **at_edge)
    mark(beyond, arrowhead, **mine, **at_edge)
    mark([p[:2] for p in shown if not p[3]], style.marker, **mine, ms=4.5)
    mark([p[:2] for p in shown if p[3]], style.marker, **mine, ms=4.5, mfc="none")
    mark([p[:2] for p in shown if p[2]], "o", ms=11, mfc="none", mec=INK, mew=1.2)
    axes.set_xscale("log")
    axes.set_xlim(*rates)
    axes.xaxis.set_major_locator(ticker.LogLocator(numticks=5))
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    axes.xaxis.set_major_formatter(lambda x, _: f"1e{math.log10(x):.0f}")
    axes.set_ylim(*limits)


def _describe_seconds(entries: list[EntrySummary]) -> str:
    """What the axis of seconds shows. Diverged runs have no end, so their times are left out."""
    if not any(entry["diverged"]["fresh"] for entry in entries):
        return "training time"
    finished = spread([len(e["test"]) - e["diverged"]["fresh"] for e in entries])
    return (
        f"the median training time of the n={finished} runs per entry that did not diverge "
        "(in the median metric, a diverged run counts as the worst metric)"
    )
