"""report.html: one page without scripts or requests, which opens offline and prints."""

from __future__ import annotations

import statistics as st
from collections.abc import Callable, Mapping
from typing import Any

from jinja2 import Environment, PackageLoader

from steepest.race.drawing import DARK, LIGHT, PAGE, looks, untuned
from steepest.race.figures import figures
from steepest.race.notes import beside, care, caveats, ranges
from steepest.race.phrases import UNKNOWN, counted, number, units
from steepest.race.results_table import columns, rows
from steepest.race.schema import Summary


def rendered(template: str, **known: Any) -> str:
    """A page of this room as HTML. Every text from a race is escaped."""
    pages = Environment(autoescape=True, loader=PackageLoader("steepest.race", ""))
    return pages.get_template(template).render(light=LIGHT, dark=DARK, **known)


def page(summary: Summary) -> str:
    """The whole report as HTML."""
    target = summary["target"]
    return rendered(
        "report.html.jinja",
        s=summary,
        plan=summary["plan"],
        caveats=caveats(summary),
        columns=columns(summary),
        rows=rows(summary),
        keys=keys(summary),
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


def keys(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One line of the legend for each entry, in the order of the entries."""
    grey, found = untuned(summary), []
    for (name, entry), look in zip(summary["entries"].items(), looks(summary), strict=True):
        lost, n = entry["failed"], len(entry["test"])
        notes = ["baseline"] if name == summary["baseline"] else []
        notes += ["untuned"] if name in grey else []
        notes += [f"{lost} of {n} failed"] if lost else []
        dashes = "none" if look["ls"] == "-" else " ".join(map(str, look["ls"][1]))
        found.append(
            {
                "name": name,
                "note": ", ".join(notes),
                "color": PAGE[look["color"]],
                "dashes": dashes,
                "width": look["lw"],
            }
        )
    return found
