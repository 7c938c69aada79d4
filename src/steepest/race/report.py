"""report.html, the page of one race."""

from __future__ import annotations

import statistics as st
from collections.abc import Callable

from steepest.race.figures import figures, styles_of
from steepest.race.notes import beside, care, caveats, ranges
from steepest.race.phrases import UNKNOWN, counted, number, units
from steepest.race.results_table import columns, rows
from steepest.race.schema import Summary
from steepest.report.pages import render
from steepest.report.styles import Key, make_legend


def page(summary: Summary) -> str:
    """The whole report as HTML."""
    target = summary["target"]
    return render(
        "steepest.race",
        "report.html.jinja",
        names=list(summary["entries"]),
        keys=_make_legend(summary),
        s=summary,
        plan=summary["plan"],
        caveats=caveats(summary),
        columns=columns(summary),
        rows=rows(summary),
        tested=summary.get("test_data", True),
        bests={
            name: number(summary, entry["best"]["validation"]) + units(summary)[0]
            if entry["best"]
            else UNKNOWN
            for name, entry in summary["entries"].items()
        },
        target=target is not None and number(summary, target) + units(summary)[0],
        seeds=counted(summary, "test"),
        measures=_describe_measures(summary),
        beside=_describe_entries(beside, summary),
        care=_describe_entries(care, summary),
        ranges=_describe_entries(ranges, summary),
        figures=figures(summary),
    )


def _describe_measures(summary: Summary) -> dict[str, dict[str, str]]:
    """Measure -> entry -> mean and standard deviation over the fresh runs that reported it."""
    measures: dict[str, dict[str, str]] = {}
    for name, entry in summary["entries"].items():
        runs = entry.get("measures", [])
        # the gradients are in the main table
        for measure in sorted({measure for run in runs for measure in run} - {"gradients"}):
            values = [run[measure] for run in runs if measure in run]
            deviation = f" ± {st.stdev(values):.4g}" if len(values) > 1 else ""
            text = f"{st.fmean(values):.4g}{deviation} (n={len(values)})"
            measures.setdefault(measure, {})[name] = text
    return measures


def _describe_entries(
    describe: Callable[[Summary, str], str | None], summary: Summary
) -> dict[str, str]:
    """Entry -> what `describe` says of it, if it says anything."""
    texts = {name: describe(summary, name) for name in summary["entries"]}
    return {name: text for name, text in texts.items() if text}


def _make_legend(summary: Summary) -> list[Key]:
    """One line of the legend for each entry, in the order of the entries."""
    notes = []
    for name, entry in summary["entries"].items():
        failed, n = entry["failed"], len(entry["test"])
        words = ["baseline"] if name == summary["baseline"] else []
        if entry.get("untuned"):
            words.append("untuned")
        if failed:
            words.append(f"{failed} of {n} failed")
        notes.append(", ".join(words))
    return make_legend(list(summary["entries"]), styles_of(summary), notes)
