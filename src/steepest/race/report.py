"""report.html, the page of one race."""

from __future__ import annotations

import statistics as st
from collections.abc import Callable

from steepest.race.figures import figures, styles_of
from steepest.race.notes import beside, care, caveats, ranges
from steepest.race.phrases import UNKNOWN, counted, number, units
from steepest.race.results_table import columns, numbers, rows
from steepest.race.schema import EntrySummary, Summary
from steepest.report.pages import Table, render
from steepest.report.styles import Key, make_legend
from steepest.report.tables import csv_text


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
        field=Table(
            "field",
            columns(summary),
            rows(summary),
            csv=csv_text(*numbers(summary)),
            marked=summary["baseline"],
        ),
        tested=summary.get("test_data", True),
        target=target is not None and number(summary, target) + units(summary)[0],
        seeds=counted(summary, "test"),
        measures=_tabulate_measures(summary),
        beside=_describe_entries(beside, summary),
        configurations=_tabulate_configurations(summary),
        figures=figures(summary),
    )


def _tabulate_measures(summary: Summary) -> Table | None:
    """Mean and standard deviation of each measure over the fresh runs that reported it."""
    entries = summary["entries"]
    # the gradients are in the main table
    names = {m for entry in entries.values() for run in entry.get("measures", []) for m in run}
    measures = sorted(names - {"gradients"})
    if not measures:
        return None

    def describe(entry: EntrySummary, measure: str) -> str:
        values = [run[measure] for run in entry.get("measures", []) if measure in run]
        if not values:
            return UNKNOWN
        deviation = f" ± {st.stdev(values):.4g}" if len(values) > 1 else ""
        return f"{st.fmean(values):.4g}{deviation} (n={len(values)})"

    cells = [[name, *(describe(e, m) for m in measures)] for name, e in entries.items()]
    return Table("measures", ("entry", *measures), cells)


def _tabulate_configurations(summary: Summary) -> Table:
    """The best tuning trial of each entry, and what was chosen for the fresh seeds."""
    tuned, cared = _describe_entries(ranges, summary), _describe_entries(care, summary)
    columns = [
        "entry",
        "best tuning trial",
        f"its validation {summary['metric']}",
        f"chosen for the n={counted(summary, 'test')} fresh seeds",
        "tuned over",
        *(["sensitivity to the learning rate"] if cared else ()),
    ]
    cells = []
    for name, entry in summary["entries"].items():
        best, validation = "", UNKNOWN
        if entry["best"]:
            best = ", ".join(f"{k}={v:.3g}" for k, v in entry["best"]["hyperparameters"].items())
            validation = number(summary, entry["best"]["validation"]) + units(summary)[0]
        chosen = ", ".join(
            f"{knob} {low:.3g}" + (f" to {high:.3g}" if low != high else "")
            for knob, (low, _, high) in (entry["hyperparameters"] or {}).items()
        )
        row = [name, best, validation, chosen, tuned.get(name, UNKNOWN)]
        cells.append([*row, *([cared.get(name, UNKNOWN)] if cared else ())])
    return Table("configurations", columns, cells)


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
