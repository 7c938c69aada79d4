"""The race on a terminal: what is drawn, what is printed where there is none."""

import io
import json
import math
import os
import pty
import re
import select
import subprocess
import sys
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from steepest.race import protocol, terminal
from steepest.race.phrases import UNKNOWN
from steepest.race.protocol import Plan, Result, Trial, Tuning
from steepest.race.results_table import columns, rows
from steepest.race.summary import summarise
from tests.race.invented import DIGITS, LOSS, PROVENANCE, pairs, race

PLAN = Plan("digits", ("adamw", "momentum", "adam+warmup+cosine"), 4, 5, 100, 0)


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


def watched(*, plan=PLAN, task=DIGITS, done=(), width=80, live=True, clock=None):
    console = Console(file=io.StringIO(), width=width, force_terminal=live)
    clock = clock or Clock()
    return terminal.Progress(task, plan, done, console=console, clock=clock), console, clock


def drawn(progress, width=80):
    console = Console(file=io.StringIO(), width=width)
    console.print(progress._render(width))
    return console.file.getvalue()


def test_the_table_has_every_entry_with_its_best_its_runs_and_what_diverged():
    runs = pairs(PLAN, lost=[("tuning", "momentum", 1), ("fresh", "momentum", 0)])
    progress, *_ = watched()
    assert UNKNOWN in drawn(progress)
    for trial, result in runs:
        progress.advance(trial, result)
    text = drawn(progress)
    assert "fresh seeds: 75 of 75 runs, 2 failed, about 0:00:00 left" in text
    for entry in PLAN.entries:
        tuned = [r.validation[-1] for t, r in runs
                 if (t.phase, t.entry) == ("tuning", entry) and not r.diverged]  # fmt: skip
        (line,) = [line for line in text.splitlines() if f" {entry} " in f" {line}"]
        words = line.split()
        assert words[1] == "25/25"  # 5 x (4 + 1)
        assert words[-2:] == [f"{100 * max(tuned):.2f}", "2" if entry == "momentum" else "0"]


def test_a_loss_is_best_at_its_lowest_and_test_metrics_are_not_shown():
    progress, *_ = watched(task=LOSS)
    for phase, last in (("tuning", 3.5), ("tuning", 2.5), ("tuning", 4.5), ("fresh", 1.25)):
        trial = Trial("digits", phase, "adamw", 0, 0, 1, {})
        progress.advance(trial, Result([1], [last], [0.1], test=last))
    assert "2.5" in drawn(progress)
    assert "1.25" not in drawn(progress)


@pytest.mark.parametrize("width", [40, 80, 120])
def test_the_table_fits_its_terminal(width):
    plan = replace(PLAN, entries=(*PLAN.entries, "my_package.optimizers.deep:AVeryLongClassName"))
    task = replace(DIGITS, metric="[bold]mean_squared_error_of_the_whole[/bold]", name="[x]" * 30)
    progress, *_ = watched(plan=plan, task=task)
    text = drawn(progress, width)
    assert max(map(len, text.splitlines())) <= width
    if width >= 80:
        assert "my_package.optimizers" in text
        assert "adam+warmup+cosine" in text
        assert "[bold]" in text  # a name is no markup


def test_the_remaining_time_counts_the_runs_of_this_start_alone():
    runs = pairs(PLAN)
    progress, _, clock = watched(done=runs[:57])
    assert "tuning: 57 of 75 runs, time left not known yet" in drawn(progress)
    clock.now += 50
    for run in runs[57:59]:
        progress.advance(*run)
    assert "tuning: 59 of 75 runs, about 0:06:40 left" in drawn(progress)
    for run in runs[59:62]:  # 3 entries x 5 seeds x 4 trials are over
        progress.advance(*run)
    assert "fresh seeds: 62 of 75 runs, about 0:02:10 left" in drawn(progress)


def test_a_run_that_is_under_way_shows_its_steps_and_counts_in_part():
    progress, _, clock = watched()
    first, second, third = (pair[0] for pair in pairs(PLAN)[:3])
    clock.now += 10
    progress.note(first, (first.key, 25))
    progress.note(second, (second.key, 75))
    text = drawn(progress, 100)
    assert f"step 25{'' if first.entry != second.entry else ', 75'} of 100" in text
    assert "about 0:12:20 left" in text  # 10 s for one run of 75
    progress.ended(first)
    progress.ended(second)
    assert "of 100" not in drawn(progress, 100)
    progress.note(third, (third.key, 1))
    assert "step 1 of 100" in drawn(progress, 100)


def test_the_steps_of_a_tuning_are_those_of_all_its_trials():
    halved = replace(PLAN, looks=(5,), repeats=3, halving=True)
    progress, _, clock = watched(plan=halved)
    trials = [t for t in protocol.tuning(halved) if t.entry == "adamw"][:4]
    tuning = Tuning(tuple(trials), halved.rungs)
    clock.now += 10
    for trial, step in ((trials[0], 25), (trials[1], 25), (trials[0], 50)):
        progress.note(tuning, (trial.key, step))
    assert "step 50 of 100" in drawn(progress, 100)
    cost = 3 * 5 * halved.unit_cost
    left = timedelta(seconds=round(10 / 0.75 * (cost - 0.75)))
    assert f"at most about {left} left" in drawn(progress, 100)
    for trial in trials:  # more than it can cost, where trials start again at each rung
        progress.note(tuning, (trial.key, 100))
    assert progress._part() == pytest.approx(halved.tuning_cost())


@given(st.lists(st.tuples(st.floats(0, 100), st.integers(0, 3), st.integers(0, 100)), max_size=60))
def test_the_time_left_never_grows(events):
    progress, _, clock = watched()
    runs, shown = iter(pairs(PLAN)), math.inf
    for seconds, kind, steps in events:
        clock.now += seconds
        trial, result = next(runs)
        if kind:
            progress.note(trial, (trial.key, steps))
        if kind < 2:
            progress.ended(trial)
            progress.advance(trial, result)
        left = progress._time_left()
        if left is not None:
            assert 0 <= left <= shown
            shown = left


def test_without_a_terminal_a_long_run_is_not_silent():
    progress, console, clock = watched(live=False)
    trial, _ = pairs(PLAN)[0]
    with progress:
        for step in range(10, 100, 10):
            clock.now += 9
            progress.note(trial, (trial.key, step))
    lines = console.file.getvalue().splitlines()
    assert len(lines) == 2
    assert lines[0].endswith(f"; under way: {trial.entry} step 40 of 100")


def test_without_a_terminal_there_is_a_plain_line_now_and_then():
    progress, console, clock = watched(live=False)
    with progress:
        for i, run in enumerate(pairs(PLAN)):
            clock.now += 9
            progress.advance(*run)
            if i == 2:
                assert console.file.getvalue() == ""
    lines = console.file.getvalue().splitlines()
    assert lines[0] == "steepest: digits, tuning: 4 of 75 runs, about 0:10:39 left"
    assert len(lines) == 75 // 4
    assert "\x1b" not in console.file.getvalue()


def test_a_dumb_terminal_is_none(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    progress, console, clock = watched()
    with progress:
        clock.now += 31
        progress.advance(*pairs(PLAN)[0])
    assert console.file.getvalue().startswith("steepest: digits, tuning: 1 of 75 runs")
    assert "\x1b" not in console.file.getvalue()


def test_the_table_goes_at_the_end_also_of_a_race_that_fails():
    progress, console, _ = watched()
    with pytest.raises(KeyboardInterrupt), progress:
        raise KeyboardInterrupt
    text = console.file.getvalue()
    assert "\x1b[?25l" in text  # the cursor was hidden,
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")  # and is back
    assert text.rstrip("\n").endswith("\x1b[2K")  # on lines that are empty again


SCRIPT = """
from tests.race.invented import DIGITS, pairs
from tests.race.test_terminal import PLAN
from steepest.race.terminal import Progress
with Progress(DIGITS, PLAN) as progress:
    for run in pairs(PLAN):
        progress.advance(*run)
print("end")
"""


def test_in_a_real_terminal_it_never_writes_past_the_edge():
    ours, theirs = pty.openpty()
    environment = {**os.environ, "COLUMNS": "60", "LINES": "24", "TERM": "xterm-256color"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT], stdout=theirs, stderr=theirs, stdin=theirs, env=environment
    ) as process:
        os.close(theirs)
        text, end = b"", time.monotonic() + 60
        while b"end" not in text and select.select([ours], [], [], end - time.monotonic())[0]:
            try:
                text += os.read(ours, 1 << 16)
            except OSError:  # the other end is closed
                break
        process.kill()
    os.close(ours)
    assert b"Traceback" not in text
    assert b"of 75 runs" in text
    assert b"end" in text
    plain = re.sub(rb"\x1b\[[0-9;?]*[A-Za-z]", b"", text).decode()
    assert max(len(line) for line in plain.replace("\r", "\n").splitlines()) <= 60


LONG = (
    "adamw", "momentum", "eadam", "adam", "adabelief", "nadam+warmup+cosine+clip",
    "torch.optim.rmsprop:RMSprop", "radam+warmup+cosine", "rmsprop+cosine",
)  # fmt: skip


def big(number):
    """A race of long names in which every kind of number has many digits."""
    summary = race(LONG)
    for i, entry in enumerate(summary["entries"].values()):
        entry["gradients"] = number + i
        entry["steps_to_target"] = [number + i] * len(entry["test"])
        entry["timing"]["train_step_ms"] = number + i
        if entry["difference"]:
            entry["difference"] |= {"mean": -number, "low": -number - i, "high": number + i}
    return summary


def printed(summary, width):
    console = Console(file=io.StringIO(), width=width)
    console.print(terminal._table(summary, width))
    return console.file.getvalue()


@pytest.mark.parametrize("what", ["usual", "loss", "12 digits", "stored"])
def test_at_every_width_each_number_that_is_shown_is_whole(what):
    if what == "stored":
        summary = json.loads((Path(__file__).parent / "summary.json").read_text())
    else:
        summary = {
            "usual": race,
            "loss": lambda: race(LONG, LOSS),
            "12 digits": lambda: big(123456789012),
        }[what]()
    heads, cells = columns(summary), rows(summary)
    for width in range(40, 201):
        text = printed(summary, width)
        assert max(map(cell_len, text.splitlines())) <= width, width
        left_out = " ".join(text.split()).partition("in report.html: ")[2].split(", ")
        for row in cells:
            for head, cell in zip(heads[1:], row[1:], strict=True):
                if head in left_out:
                    continue
                for number in cell.split():
                    assert number in text.split(), (width, head, number)
        if "─" in text:  # a table
            broken = max(map(len, heads[:1] + tuple(row[0] for row in cells))) > terminal.NAME
            assert broken or all(row[0] in text.split() for row in cells), width


def test_columns_leave_in_the_stated_order_and_are_named():
    summary = race()
    heads, order = columns(summary), [*terminal.FIRST, *terminal.LAST]
    left_before = len(heads)
    for width in range(40, 201):
        said = " ".join(printed(summary, width).split()).partition("in report.html: ")[2]
        left_out = said.split(", ") if said else []
        assert left_out == [h for h in reversed(order) if h in left_out]
        assert left_out == [h for h in reversed(order) if h in heads][-len(left_out) or 99 :]
        assert len(left_out) <= left_before  # more room, no fewer columns
        left_before = len(left_out)
    assert left_before == 0
    assert set(order) >= set(heads) - {heads[0], *(h for h in heads if " accuracy" in h)} - {
        h for h in heads if h.startswith("difference")
    }


def test_a_name_in_another_script_keeps_the_columns_aligned():
    summary = race()
    summary["entries"] = {
        {"adam": "最適化[bold]", "eadam": "e\u0301"}.get(name, name): entry
        for name, entry in summary["entries"].items()
    }
    lines = printed(summary, 120).splitlines()
    assert any("最適化[bold]" in line for line in lines)
    assert len({cell_len(line) for line in lines if "/6 (0/36)" in line}) == 1


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_the_live_table_cuts_no_number(width):
    plan = replace(PLAN, entries=(*PLAN.entries, "torch.optim.rmsprop:RMSprop"))
    progress, *_ = watched(plan=plan, task=LOSS)
    for trial, result in pairs(plan, LOSS):
        progress.advance(trial, result)
    text = drawn(progress, width)
    for entry, best in progress._best.items():
        assert f"{best:.4g}" in text.split(), entry
    assert text.split().count("25/25") == 4
    assert len(text.splitlines()) < 20  # names keep some width
    assert ("━" in text) == (width >= 100)


def test_a_summary_without_a_target_and_an_unfinished_one_are_shown(capsys):
    terminal.show({**race(), "target": None})
    assert "target" not in capsys.readouterr().out.splitlines()[0]
    summary = summarise(DIGITS, PLAN, pairs(PLAN)[:5], PROVENANCE)
    terminal.show(summary)
    assert summary["verdict"] in capsys.readouterr().out
