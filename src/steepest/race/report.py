"""report.html: one page without scripts or requests, which opens offline and prints."""

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
        measures=_measures(summary),
        beside=_known(beside, summary),
        care=_known(care, summary),
        ranges=_known(ranges, summary),
        figures=figures(summary),
    )


def _measures(summary: Summary) -> dict[str, dict[str, str]]:
    """Measure -> entry -> mean and standard deviation over the fresh runs that reported it."""
    found: dict[str, dict[str, str]] = {}
    for entry, known in summary["entries"].items():
        for name in sorted(
            {name for run in known.get("measures", ()) for name in run} - {"gradients"}
        ):  # which stand in the table
            values = [run[name] for run in known.get("measures", ()) if name in run]
            spread = f" ± {st.stdev(values):.4g}" if len(values) > 1 else ""
            found.setdefault(name, {})[entry] = f"{st.fmean(values):.4g}{spread} (n={len(values)})"
    return found


def _known(say: Callable[[Summary, str], str | None], summary: Summary) -> dict[str, str]:
    said = {name: say(summary, name) for name in summary["entries"]}
    return {name: text for name, text in said.items() if text}


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
