"""A race in the terminal: a live table during the race, the table and the verdict at its end."""

from __future__ import annotations

import math
import re
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from textwrap import fill, indent

from rich import box
from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from steepest.race.notes import caveats
from steepest.race.phrases import UNKNOWN, counted, fresh, is_imported, number, units
from steepest.race.protocol import FRESH, TUNING, Plan, Result, Trial, Tuning
from steepest.race.results_table import columns, rows
from steepest.race.rounds import Round
from steepest.race.schema import Summary
from steepest.race.scores import failed
from steepest.tasks import Task

FIRST = (
    "state bytes/parameter",
    "training ms/step",
    "optimizer ms/step",
    "seconds to target",
    "gradients",
)
"""Columns that are removed first, in this order, until the table fits into the terminal."""
LAST = ("steps to target", "n (units)", "n", "failed")
"""Columns that are removed if the table is still too wide with intervals on separate lines."""
NAME = 16
"""A name with more characters is broken into lines, unless there is room for it."""
MARGIN, GAP = 4, 3
"""Characters beside a table and between two of its columns, with rich's box.SIMPLE."""
WIDTH = 120
"""Characters in a line if the output is not a terminal."""
HEAD = 15
"""Most characters in a line of a column's head, or of a difference with its interval."""
REFRESH = 4
"""How often per second the live table is drawn: more often might flicker."""
BAR = 12
"""Characters of a progress bar."""
LEAST_RAN = 0.5
"""The time left is estimated only after this many full runs."""
QUIET = 30.0
"""Least seconds between two lines if there is no terminal. So a short race prints no line."""


Key = tuple[str, str, int]
"""`Trial.key`."""


class Progress:
    """The progress of a race, on stderr; a context manager. Call `advance` after every trial.

    `done`: trials that are already stored. `now`: the current round; default: the only one. A
    terminal shows a table, which disappears at the end. Any other output (a file, a pipe,
    TERM=dumb) gets a plain line at most every 30 s. Test metrics are not shown, so that nobody
    stops a race because of them.
    """

    def __init__(
        self,
        task: Task,
        plan: Plan,
        done: Iterable[tuple[Trial, Result]] = (),
        *,
        now: Round | None = None,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._task, self._plan, self._clock = task, plan, clock
        self._console = console or Console(stderr=True)
        self._counts = {entry: {"tuning": 0, "runs": 0, "failed": 0} for entry in plan.entries}
        self._best: dict[str, float] = {}
        self._now = now or Round(plan.entries, range(plan.seeds))
        left = len(self._now.entries) * (plan.seeds - self._now.units.start)
        # a run that may be halted counts as a part of a full run
        share = (plan.unit_cost - plan.repeats) / plan.trials
        self._weight = {TUNING: share, FRESH: 1.0}
        self._left, self._total = left * plan.unit_cost, left * plan.unit_runs
        for trial, result in done:
            self._count(trial, result)
            if self._unit(trial) < self._now.units.start or trial.entry not in self._now.entries:
                self._total += 1
            else:
                self._left -= self._weight[trial.phase]
        self._ran = 0.0
        self._under_way: dict[Key, dict[Key, int]] = {}
        """Item of a worker -> trial -> the steps that the trial has made."""
        self._shown = math.inf
        self._began = self._last_line = clock()
        self._live = None
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            self._live = Live(
                get_renderable=lambda: self._render(self._console.width),
                console=self._console,
                refresh_per_second=REFRESH,
                transient=True,
            )

    def __enter__(self) -> Progress:
        if self._live:
            self._live.start(refresh=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def advance(self, trial: Trial, result: Result) -> None:
        """Count a finished trial and show it."""
        self._count(trial, result)
        self._ran += self._weight[trial.phase]
        self._print()

    def note(self, item: Trial | Tuning, value: tuple[Key, int]) -> None:
        """Show how far a run is. value: (key of its trial, number of steps made)."""
        steps = self._under_way.setdefault(item.key, {})
        trial, made = value
        steps.pop(trial, None)  # the trial that is under way comes last
        steps[trial] = made
        self._print()

    def ended(self, item: Trial | Tuning) -> None:
        """Note that a worker has finished an item; `advance` follows for each of its trials."""
        self._under_way.pop(item.key, None)

    def _print(self) -> None:
        now = self._clock()
        if self._live is None and now - self._last_line >= QUIET:
            self._last_line = now
            text = self._line()
            if running := [f"{e} {steps}" for e in self._counts if (steps := self._running(e))]:
                text += f"; under way: {', '.join(running)}"
            print(f"steepest: {text}", file=self._console.file, flush=True)

    def _running(self, entry: str) -> str:
        """The steps of the entry's runs that are under way."""
        made = [str([*steps.values()][-1]) for k, steps in self._under_way.items() if k[1] == entry]
        return f"step {', '.join(made)} of {self._plan.steps}" if made else ""

    def _part(self, entry: str | None = None) -> float:
        """The finished work of items under way, in full runs."""
        return sum(
            min(sum(steps.values()) / self._plan.steps, self._cost(key[0]))
            for key, steps in self._under_way.items()
            if entry in (None, key[1])
        )

    def _cost(self, phase: str) -> float:
        """The work of an item of a worker, in full runs."""
        count = self._plan.trials if phase == TUNING and self._plan.rungs else 1
        return count * self._weight[phase]

    def _time_left(self) -> float | None:
        """Estimated seconds left; None if not enough has run.

        The estimate never grows, so that nobody counts on time that then grows again.
        """
        ran = self._ran + self._part()
        if ran < LEAST_RAN:
            return None
        left = (self._clock() - self._began) / ran * (self._left - ran)
        self._shown = min(self._shown, max(0.0, left))
        return self._shown

    def _count(self, trial: Trial, result: Result) -> None:
        count = self._counts[trial.entry]
        count["runs"] += 1
        count["tuning"] += trial.phase == TUNING
        count["failed"] += failed(self._task, trial, result)
        if trial.phase == TUNING and not result.diverged and result.validation:
            last, best = result.validation[-1], self._best.get(trial.entry)
            if best is None or self._task.better(last, best):
                self._best[trial.entry] = last

    def _finished(self) -> int:
        return sum(count["runs"] for count in self._counts.values())

    def _unit(self, trial: Trial) -> int:
        each = self._plan.trials if trial.phase == TUNING else self._plan.repeats
        return trial.index // each

    def _line(self) -> str:
        finished, plan, now = self._finished(), self._plan, self._now
        failures = sum(count["failed"] for count in self._counts.values())
        tuned = sum(self._counts[entry]["tuning"] for entry in now.entries)
        phase = "fresh seeds"
        if tuned < len(now.entries) * now.units.stop * plan.trials:
            phase = "tuning"
        most, about = "", "about"
        if plan.looks:
            phase += f" for look {plan.looks.index(now.units.stop) + 1} of {len(plan.looks)}"
            most, about = "at most ", "at most about"
        left = "time left not known yet"
        if (seconds := self._time_left()) is not None:
            left = f"{about} {timedelta(seconds=round(seconds))} left"
        return (
            f"{self._task.name}, {phase}: {finished} of {most}{self._total} runs"
            f"{f', {failures} failed' if failures else ''}, {left}"
        )

    def _render(self, width: int) -> Group:
        unit = " (%)" if self._task.proportion else ""
        best_of = f"best validation {self._task.metric}{unit}"
        heads = ["entry", "runs", "under way", best_of, "failed"]
        cells, bars = [], []
        for entry, count in self._counts.items():
            closed = entry not in self._now.entries
            runs = count["runs"] if closed else self._plan.seeds * self._plan.unit_runs
            best = self._best.get(entry)
            shown = UNKNOWN
            if best is not None:
                shown = number({"proportion": self._task.proportion}, best)
            cells.append(
                [
                    entry,
                    f"{count['runs']}/{runs}",
                    self._running(entry),
                    shown,
                    str(count["failed"]),
                ]
            )
            bars.append(ProgressBar(runs, count["runs"] + self._part(entry), BAR))
        _leave_out(heads, cells, ("failed", "under way"), width)  # the line has the sum of failed
        table = _make_table(heads, cells, width, bars)
        # the line comes first, since a window with few rows cuts off the end
        return Group(Text(self._line(), no_wrap=True, overflow="ellipsis"), table)


def show(summary: Summary) -> None:
    """Print the table, the verdict and the notes to stdout."""
    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else WIDTH)
    console.print(_table(summary, console.width))
    console.print(Text(summary["verdict"], style="bold"), soft_wrap=True)
    if summary["complete"] and "next" in summary:  # after Ctrl-C, the command line names the folder
        purpose = summary.get("next_purpose", "decide what is still open")
        console.print(Text(f"To {purpose}: {summary['next']}"), soft_wrap=True)
    for name in summary.get("use", [])[:1]:
        console.print(Text(f"\n{summary['entries'][name].get('code')}"), soft_wrap=True)
    for line in caveats(summary):
        console.print(Text(line), soft_wrap=True)


def _table(summary: Summary, width: int) -> Table | Group:
    """The table, or a list if the terminal is too narrow for a table with unbroken numbers."""
    title = f"{summary['task']}, {counted(summary, 'test', fresh(summary, 'seed'))}"
    if summary["target"] is not None:
        title += f", target {number(summary, summary['target'])}{units(summary)[0]}"
    heads, cells = list(columns(summary)), rows(summary)
    dropped = _leave_out(heads, cells, FIRST, width)
    if not _fits(heads, cells, width):
        (at,) = (i for i, head in enumerate(heads) if head.startswith("difference to"))
        for row in cells:
            row[at] = _fold(row[at], HEAD)
    dropped += _leave_out(heads, cells, LAST, width)
    notes = ["mean ± sd"]
    if any("to target" in head for head in heads):
        notes.append("to target: median (seeds that reached it)")
    if "failed" in heads and not is_imported(summary):
        notes.append("failed: fresh runs that failed (tuning trials that diverged)")
    if "gradients" in heads:
        notes.append("gradients: each of one batch of the usual size")
    if dropped:
        notes.append(f"in report.html: {', '.join(reversed(dropped))}")
    caption = "; ".join(notes)
    if not _fits(heads, cells, width):
        lines = [title]
        for name, *texts in cells:
            lines.append(name)
            for head, text in zip(heads[1:], texts, strict=True):
                lines += [indent(_fold(f"{head}:", width - 2), "  ")]
                lines += [indent(_fold(text, width - 4), "    ")]
        return Group(*(Text(line, overflow="fold") for line in [*lines, caption, ""]))
    table = _make_table(heads, cells, width)
    table.title, table.caption = Text(title), Text(caption)
    return table


def _make_table(
    heads: Sequence[str],
    cells: Sequence[Sequence[str]],
    width: int,
    bars: Sequence[ProgressBar] = (),
) -> Table:
    """A table of at most `width` characters, in which only names and heads are broken.

    bars: a bar for each row, for the third column; left out if there is no room.
    """
    names, *others = _measure(heads, cells)
    free = width - MARGIN - sum(GAP + other for other in others)
    columns: list[tuple[str, int]] = [
        *zip((fill(head, HEAD) for head in heads), (max(1, min(names, free)), *others), strict=True)
    ]
    shown: list[list[RenderableType]] = [
        [Text(name, overflow="fold"), *map(Text, texts)] for name, *texts in cells
    ]
    if bars and free >= names + GAP + BAR:
        columns.insert(2, ("", BAR))
        for row, bar in zip(shown, bars, strict=True):
            row.insert(2, bar)
    table = Table(box=box.SIMPLE)
    for i, (head, each) in enumerate(columns):
        # a head may have the user's words, so it must not be read as markup
        table.add_column(Text(head), justify="right" if i else "left", width=each)
    for row in shown:
        table.add_row(*row)
    return table


def _leave_out(
    heads: list[str], cells: Sequence[list[str]], leaving: Sequence[str], width: int
) -> list[str]:
    """Take columns out, in the order of `leaving`, until the table fits; returns their heads."""
    out = []
    for head in leaving:
        if head in heads and not _fits(heads, cells, width):
            i = heads.index(head)
            out.append(heads.pop(i))
            for row in cells:
                del row[i]
    return out


def _fits(heads: Sequence[str], cells: Sequence[Sequence[str]], width: int) -> bool:
    names, *others = _measure(heads, cells)
    return MARGIN + min(names, NAME) + sum(GAP + other for other in others) <= width


def _measure(heads: Sequence[str], cells: Sequence[Sequence[str]]) -> list[int]:
    """The width of each column."""
    texts = zip((fill(head, HEAD) for head in heads), *cells, strict=True)
    return [max(cell_len(line) for text in column for line in text.split("\n")) for column in texts]


def _fold(text: str, width: int) -> str:
    """Break a text into lines of `width` characters, but break no number and no interval."""
    held = re.sub(r"\[.*?\]", lambda interval: interval[0].replace(" ", "\xa0"), text)
    lines = fill(held, width, break_long_words=False, break_on_hyphens=False)
    return lines.replace("\xa0", " ")
