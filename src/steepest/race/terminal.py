"""The summary of a race on a terminal."""

from __future__ import annotations

import sys
from textwrap import fill
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from steepest.race.wording import caveats, columns, counted, number, rows, units

LEFT_OUT = ("training ms/step", "state bytes/parameter")
"""Columns that report.html has and a terminal has no room for."""
TIMES = ("seconds to target", "optimizer ms/step")
NARROW = 100
"""Columns below which a terminal has no room for the times either."""
WIDTH = 120
"""Columns when the output is no terminal."""
HEAD = 15
"""Columns at which a head is wrapped, so that the table fits 100."""


def show(summary: dict[str, Any]) -> None:
    """Print the table, the verdict and what to know about it to stdout."""
    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else WIDTH)
    console.print(_table(summary, console.width))
    console.print(Text(summary["verdict"], style="bold"), soft_wrap=True)
    for line in caveats(summary):
        console.print(Text(line), soft_wrap=True)


def _table(summary: dict[str, Any], width: int) -> Table:
    target = number(summary, summary["target"]) + units(summary)[0]
    table = Table(
        box=box.SIMPLE,
        title=Text(f"{summary['task']}, {counted(summary, 'test')} fresh seeds, target {target}"),
        caption="mean ± sd; median (seeds that reached it); diverged: fresh (tuning)",
    )
    left_out = LEFT_OUT if width >= NARROW else LEFT_OUT + TIMES
    heads = columns(summary)
    picked = [i for i, head in enumerate(heads) if head not in left_out]
    for i in picked:
        justify = "right" if i else "left"
        table.add_column(Text(fill(heads[i], HEAD)), justify=justify, no_wrap=i == 0)
    for row in rows(summary):
        table.add_row(*(Text(row[i]) for i in picked))
    return table
