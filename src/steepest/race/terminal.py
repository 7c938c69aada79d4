"""A race in the terminal: a live table during the race, the table and the verdict at its end."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterable
from datetime import timedelta
from textwrap import fill

from rich import box
from rich.console import Console, Group
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

LEFT_OUT = ("training ms/step", "state bytes/parameter")
"""Columns that only report.html shows: a terminal has no room for them."""
TIMES = ("seconds to target", "optimizer ms/step")
NARROW = 100
"""A terminal with fewer characters in a line shows neither TIMES nor bars."""
WIDTH = 120
"""Characters in a line of output that is not a terminal."""
HEAD = 15
"""Characters at which a column's head is wrapped, so that the table fits into 100."""
REFRESH = 4
"""How often per second the live table is drawn: more often might flicker."""
BAR = 12
"""Characters of a progress bar."""
LEAST_RAN = 0.1
"""Full runs after which the time left is estimated."""
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
        """Item of a worker -> trial -> the steps that it has made."""
        self._shown = math.inf
        self._began = self._last_line = clock()
        self._live = None
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            self._live = Live(
                get_renderable=self._render,
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
        """Show how far a run is. value: the trial's key, and the steps that it has made."""
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
        """What has been made of items under way, in full runs."""
        return sum(
            min(sum(steps.values()) / self._plan.steps, self._cost(key[0]))
            for key, steps in self._under_way.items()
            if entry in (None, key[1])
        )

    def _cost(self, phase: str) -> float:
        """The full runs of an item of a worker."""
        count = self._plan.trials if phase == TUNING and self._plan.rungs else 1
        return count * self._weight[phase]

    def _time_left(self) -> float | None:
        """Seconds left; None if not enough has run. It never grows: an estimate may be wrong for a
        while, but time that comes back is worth nothing.
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

    def _render(self) -> Group:
        table = Table(box=box.SIMPLE, pad_edge=False)
        unit = " (%)" if self._task.proportion else ""
        table.add_column("entry", no_wrap=True, max_width=28)
        table.add_column("runs", justify="right", no_wrap=True)
        wide = self._console.width >= NARROW
        if wide:
            table.add_column("", width=BAR)
        table.add_column("under way", no_wrap=True, max_width=22)
        # the name of a metric is the user's, so it must not be read as markup
        table.add_column(Text(f"best validation {self._task.metric}{unit}"), justify="right")
        table.add_column("failed", justify="right")
        for entry, count in self._counts.items():
            closed = entry not in self._now.entries
            runs = count["runs"] if closed else self._plan.seeds * self._plan.unit_runs
            best = self._best.get(entry)
            shown = UNKNOWN
            if best is not None:
                shown = number({"proportion": self._task.proportion}, best)
            table.add_row(
                Text(entry),
                f"{count['runs']}/{runs}",
                *([ProgressBar(runs, count["runs"] + self._part(entry), BAR)] if wide else []),
                Text(self._running(entry)),
                shown,
                str(count["failed"]),
            )
        # the line comes first, since a window with few rows cuts off the end
        return Group(Text(self._line(), no_wrap=True, overflow="ellipsis"), table)


def show(summary: Summary) -> None:
    """Print the table, the verdict and its notes to stdout."""
    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else WIDTH)
    console.print(_table(summary, console.width))
    console.print(Text(summary["verdict"], style="bold"), soft_wrap=True)
    if "next" in summary:
        purpose = summary.get("next_purpose", "decide more")
        console.print(Text(f"To {purpose}: {summary['next']}"), soft_wrap=True)
    for name in summary.get("use", [])[:1]:
        console.print(Text(f"\n{summary['entries'][name].get('code')}"), soft_wrap=True)
    for line in caveats(summary):
        console.print(Text(line), soft_wrap=True)


def _table(summary: Summary, width: int) -> Table:
    title = f"{summary['task']}, {counted(summary, 'test', fresh(summary, 'seed'))}"
    if summary["target"] is not None:
        title += f", target {number(summary, summary['target'])}{units(summary)[0]}"
    heads = columns(summary)
    caption = (
        "mean ± sd; to target: median (seeds that reached it); "
        "failed: fresh runs that failed (tuning trials that diverged)"
    )
    if is_imported(summary):
        caption = "mean ± sd"
    if "gradients" in heads:
        caption += "; gradients: of one usual batch"
    table = Table(box=box.SIMPLE, title=Text(title), caption=caption)
    left_out = LEFT_OUT if width >= NARROW else LEFT_OUT + TIMES
    shown = [i for i, head in enumerate(heads) if head not in left_out]
    for i in shown:
        justify = "right" if i else "left"
        table.add_column(Text(fill(heads[i], HEAD)), justify=justify, no_wrap=i == 0)
    for row in rows(summary):
        table.add_row(*(Text(row[i]) for i in shown))
    return table
