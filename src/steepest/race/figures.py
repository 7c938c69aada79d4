"""The report's figures: what is drawn, and what is said below it."""

from __future__ import annotations

import math
import statistics as st
from collections.abc import Iterable
from typing import Any

import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes

from steepest.race.drawing import INK, SIZE, draw, lines, looks, short
from steepest.race.phrases import counted, judged_on, spread
from steepest.race.schema import EntrySummary, Summary

PANEL = (2.5, 1.9)
FAR = 4.0
"""Times the median distance to the best: what lies farther off is drawn at the edge."""


def figures(summary: Summary) -> list[dict[str, Any]]:
    """Each figure as title, text, and its drawings: (SVG, class in the page, head or None)."""
    entries = list(summary["entries"].values())
    if not any(entry["tuning"] for entry in entries):
        return []
    made = [_differences(summary), *_by_training(summary), _by_trials(summary)]
    return [figure for figure in (*made, _sensitivity(summary)) if figure]


def _scaled(summary: Summary, values: Iterable[float | None]) -> list[float]:
    """Metrics as they are shown; what is not finite is not drawn."""
    scale = 100.0 if summary["proportion"] else 1.0
    return [math.nan if v is None or not math.isfinite(v) else scale * v for v in values]


def _score(summary: Summary, split: str = "validation") -> str:
    return f"{split} {summary['metric']}{' (%)' if summary['proportion'] else ''}"


def _limits(summary: Summary, values: Iterable[float]) -> tuple[float, float]:
    """Ends of a metric's axis. One run that went astray does not flatten the others."""
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


def _differences(summary: Summary) -> dict[str, Any] | None:
    """Per-seed differences to the baseline: what the verdict is about."""
    base, scale = summary["baseline"], 100 if summary["proportion"] else 1
    baseline = summary["entries"][base]["test"]
    names = list(summary["entries"])
    judged = {n: d for n in names if (d := summary["entries"][n]["difference"])}
    if not judged:
        return None
    rivals = sorted(judged, key=lambda n: judged[n]["mean"], reverse=not summary["maximize"])

    ends = {}
    for name in rivals:
        entry = summary["entries"][name]
        each = [scale * (a - b) for a, b in zip(entry["test"], baseline, strict=True)]
        d = judged[name]
        points = d["low"], d["mean"], d["high"]
        ends[name] = each, *(None if v is None else scale * v for v in points)
    widest = [max(abs(v) for v in (*each, *rest) if v is not None) for each, *rest in ends.values()]
    edge = 1.08 * (min(max(widest), FAR * st.median(widest) or max(widest)) or 1.0)

    def paint(axes: Axes) -> None:
        axes.axvline(0, color=INK, lw=1.5)
        axes.set(xlim=(-edge, edge), ylim=(-0.6, len(rivals) - 0.4), yticks=[])
        for y, name in enumerate(rivals):
            i = names.index(name)
            each, low, mean, high = ends[name]
            style = looks(summary)[i]
            look = {"color": style["color"], "ls": "none"}
            for value, height in zip(each, y + np.linspace(-0.25, 0.25, len(each)), strict=True):
                beyond, sign = abs(value) > edge, ">" if value > 0 else "<"
                axes.plot(
                    np.clip(value, -0.98 * edge, 0.98 * edge), height, **look, alpha=0.5, mew=0,
                    marker=sign if beyond else style["marker"], ms=6 if beyond else 4,
                    gid=f"e{i}-d-seed",
                )  # fmt: skip
            if low is not None and high is not None:
                axes.plot((low, high), (y, y), color=style["color"], lw=2.4, gid=f"e{i}-d-interval")
            axes.plot(mean, y, **look, marker=style["marker"], ms=8, gid=f"e{i}-d-mean")
            axes.annotate(
                short(name), (0, y), (-6, 0), xycoords=("axes fraction", "data"),
                textcoords="offset points", ha="right", va="center", gid=f"e{i}-d-label",
            )  # fmt: skip
        side = "right" if summary["maximize"] else "left"
        unit = " (points)" if summary["proportion"] else ""
        axes.set_xlabel(
            f"difference in {judged_on(summary)} {summary['metric']}{unit}\nbetter is to the {side}"
        )

    return {
        "title": f"Difference to {base}, seed by seed",
        "text": f"Small marks: each of n={counted(summary, 'test', 'fresh seed')}, the entry less "
        f"{base} on the same seed. Large marks and bars: mean and "
        f"interval, as in the table. Arrowhead at the edge: beyond the scale.",
        "drawings": [(draw((SIZE[0], 1.1 + 0.36 * len(rivals)), paint, "d"), "", None)],
    }


def _by_training(summary: Summary) -> list[dict[str, Any]]:
    """The validation metric by step and by second, each on linear and on logarithmic axes."""
    entries, n = list(summary["entries"].values()), counted(summary, "test", "fresh seed")
    curves = [
        {
            "median": _scaled(summary, e["curve"]["median"]),
            "low": _scaled(summary, e["curve"]["low"]),
            "high": _scaled(summary, e["curve"]["high"]),
        }
        for e in entries
    ]
    late = [v for c in curves for v in c["median"][len(c["median"]) // 4 :]]
    if not late:
        return []
    limits = _limits(summary, late)
    seconds = [e["timing"]["curve_seconds"] for e in entries]
    bands = [
        (e["curve"]["steps"], c["median"], c["low"], c["high"])
        for e, c in zip(entries, curves, strict=True)
    ]
    plain = [(x, c["median"][: len(x)], None, None) for x, c in zip(seconds, curves, strict=True)]
    score = _score(summary)

    def both(curves: list[Any], xlabel: str, key: str) -> list[tuple[str, str, None]]:
        return [
            (
                lines(summary, curves, xlabel, score, limits, key + kind[:3], kind == "log"),
                kind,
                None,
            )
            for kind in ("linear", "log")
        ]

    return [
        {
            "title": "By step",
            "text": f"Median and quartiles of n={n}.",
            "drawings": both(bands, "step", "s"),
        },
        {
            "title": "By second",
            "text": f"Median of n={n} against {_training_time(entries)} on one thread, "
            f"evaluation left out.",
            "drawings": both(plain, "seconds of training", "t"),
        },
    ]


def _by_trials(summary: Summary) -> dict[str, Any] | None:
    """Expected best validation metric against the number of tuning trials."""
    found = [e.get("expected_best") or [] for e in summary["entries"].values()]
    if max(map(len, found)) < 2:
        return None
    curves = [_scaled(summary, values) for values in found]
    counted_up = [(list(range(1, len(c) + 1)), c, None, None) for c in curves]
    limits = _limits(summary, (v for c in curves for v in c))
    return {
        "title": "By trials",
        "text": f"The best {_score(summary)} to expect of so many tuning trials, were they drawn "
        f"from the n={counted(summary, 'tuning')} that each entry had "
        f"(Dodge et al. 2019, arXiv:1909.03004).",
        "drawings": [
            (
                lines(summary, counted_up, "tuning trials", _score(summary), limits, "k", True),
                "",
                None,
            )
        ],
    }


def _sensitivity(summary: Summary) -> dict[str, Any] | None:
    """The metric of every tuning trial over its learning rate: a panel for each entry."""
    found = []
    for entry in summary["entries"].values():
        tried = [t for t in entry["tuning"] if t["hyperparameters"].get("lr", 0) > 0]
        scores = _scaled(summary, (t["validation"] for t in tried))
        lost = [bool(t["diverged"]) or math.isnan(v) for t, v in zip(tried, scores, strict=True)]
        best = [id(entry["tuning"][i]) for i in entry["chosen"] or ()]
        chosen = [id(t) in best for t in tried]
        rates = [t["hyperparameters"]["lr"] for t in tried]
        found.append(list(zip(rates, scores, lost, chosen, strict=True)))
    rates = [rate for tried in found for rate, *_ in tried]
    if not rates:
        return None
    low, high = _limits(summary, (v for tried in found for _, v, lost, _ in tried if not lost))
    edge = 0.05 if summary["maximize"] else 0.95

    def panel(i: int, style: dict[str, Any]) -> str:
        def paint(axes: Axes) -> None:
            color, marker = style["color"], style["marker"]
            for rate, score, lost, chosen in found[i]:
                if lost or not low <= score <= high:
                    sign = "x" if lost else "v" if summary["maximize"] else "^"
                    axes.plot(
                        rate, edge, sign, color=color, ms=6, gid=f"e{i}-l",
                        transform=axes.get_xaxis_transform(),
                    )  # fmt: skip
                    continue
                axes.plot(rate, score, marker, color=color, ms=4.5, gid=f"e{i}-l")
                if chosen:
                    axes.plot(rate, score, "o", ms=11, mfc="none", mec=INK, mew=1.2)
            axes.set_xscale("log")
            axes.set_xlim(min(rates) / 1.6, max(rates) * 1.6)
            axes.xaxis.set_major_locator(ticker.LogLocator(numticks=5))
            axes.xaxis.set_minor_locator(ticker.NullLocator())
            axes.xaxis.set_major_formatter(lambda x, _: f"1e{math.log10(x):.0f}")
            axes.set_ylim(low, high)

        return draw(PANEL, paint, f"l{i}")

    drawings = []
    for i, (name, style) in enumerate(zip(summary["entries"], looks(summary), strict=True)):
        gone = sum(lost for _, _, lost, _ in found[i])
        head = f"{name} (n={len(found[i])}{f', {gone} diverged' if gone else ''})"
        drawings.append((panel(i, style), f"e{i}-panel", head))
    return {
        "title": "Sensitivity",
        "text": f"{_score(summary).capitalize()} of every tuning trial "
        f"(n={counted(summary, 'tuning')} per entry, one seed each) against its learning rate, all "
        f"of its hyperparameters varied at once; one scale for all. Ringed: chosen for a fresh "
        f"seed. Crosses at the edge: diverged; arrowhead at the edge: beyond the scale.",
        "drawings": drawings,
    }


def _training_time(entries: list[EntrySummary]) -> str:
    """What stands on the axis of seconds: without the runs that diverged, which have no end."""
    if not any(entry["diverged"]["fresh"] for entry in entries):
        return "training time"
    finished = spread([len(e["test"]) - e["diverged"]["fresh"] for e in entries])
    return (
        f"the median training time of the n={finished} of them per entry that did not diverge "
        "(in the metric the others count as the worst)"
    )
