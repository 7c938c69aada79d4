"""Tuning by halving: which trials go on, and that a halted or forked run is a whole one, cut."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steepest.errors import BadCall
from steepest.processes import Failed, Pool
from steepest.race import halving, protocol, trials
from steepest.race.protocol import Plan, Result, Trial, Tuning

STEPS = 40
FORKS = pytest.mark.skipif(sys.platform != "linux", reason="forks on Linux only")


def higher(a, b):
    return a > b


def tuning(count=8, steps=STEPS, rungs=((10, 4), (20, 2))):
    trials = tuple(
        Trial("digits", protocol.TUNING, "adam", i, 100 + i, steps, {"lr": 0.1})
        for i in range(count)
    )
    return Tuning(trials, rungs)


class Train:
    """A run whose metric at step s is `curve(index, s)`; `every`: steps between two reports."""

    def __init__(self, curve, every=5, diverges=(), ends=None):
        self.curve, self.every, self.diverges, self.ends = curve, every, dict(diverges), ends or {}
        self.runs = []

    def __call__(self, trial, on_report=None):
        self.runs.append(trial.index)
        result, noise = Result(), np.random.default_rng(trial.seed)
        for step in range(self.every, trial.steps + 1, self.every):
            if step >= self.diverges.get(trial.index, 10**9):
                result.diverged = f"lost at step {step}"
                break
            if step > self.ends.get(trial.index, 10**9):
                break
            result.steps.append(step)
            result.validation.append(self.curve(trial.index, step) + 1e-9 * noise.random())
            if on_report and not on_report(result):
                result.halted = step < trial.steps
                break
        return result


def ways():
    return [pytest.param(True, marks=FORKS, id="forked"), pytest.param(False, id="repeated")]


@pytest.fixture(params=ways())
def way(request, monkeypatch):
    monkeypatch.setattr(halving, "can_fork", lambda: request.param)
    return request.param


def ended(results):
    return [r.steps[-1] if r.steps else 0 for r in results]


def test_half_go_on_at_each_rung(way):
    results = halving.run(tuning(), Train(lambda i, s: i * s / STEPS), higher)
    assert ended(results) == [10, 10, 10, 10, 20, 20, 40, 40]
    assert [r.halted for r in results] == [True] * 6 + [False] * 2


def test_where_less_is_better_the_lowest_go_on(way):
    results = halving.run(tuning(), Train(lambda i, s: float(i)), lambda a, b: a < b)
    assert ended(results) == [40, 40, 20, 20, 10, 10, 10, 10]


def test_curves_that_cross_are_judged_where_they_are(way):
    # trial 7 leads until the first rung, and falls behind between the rungs
    results = halving.run(tuning(), Train(lambda i, s: i if s <= 10 else 10 - i), higher)
    assert ended(results) == [10, 10, 10, 10, 40, 40, 20, 20]


def test_of_equal_trials_the_first_go_on(way):
    results = halving.run(tuning(), Plain(lambda i, s: 1.0), higher)
    assert ended(results) == [40, 40, 20, 20, 10, 10, 10, 10]


class Plain(Train):
    """Without noise."""

    def __call__(self, trial, on_report=None):
        result = Result()
        for step in range(self.every, trial.steps + 1, self.every):
            result.steps.append(step)
            result.validation.append(self.curve(trial.index, step))
            if on_report and not on_report(result):
                result.halted = step < trial.steps
                break
        return result


def test_a_diverged_trial_does_not_go_on_even_where_places_are_free(way):
    train = Train(lambda i, s: float(i), diverges=dict.fromkeys(range(1, 6), 5))
    results = halving.run(tuning(), train, higher)
    assert ended(results) == [20, 0, 0, 0, 0, 0, 40, 40]
    assert [bool(r.diverged) for r in results] == [False, *[True] * 5, False, False]


def test_all_may_diverge(way):
    results = halving.run(
        tuning(), Train(lambda i, s: 0.0, diverges=dict.fromkeys(range(8), 5)), higher
    )
    assert all(r.diverged and not r.halted for r in results)


def test_a_leader_that_diverges_after_the_last_rung_takes_no_other_with_it(way):
    results = halving.run(tuning(), Train(lambda i, s: float(i), diverges={7: 30}), higher)
    assert ended(results) == [10, 10, 10, 10, 20, 20, 40, 25]
    assert results[7].diverged


def test_reports_later_than_a_rung_are_judged_at_the_first_one_after_it(way):
    results = halving.run(tuning(), Train(lambda i, s: float(i), every=30), higher)
    assert ended(results) == [30] * 8  # both rungs at the only report; nothing comes after it
    results = halving.run(tuning(), Train(lambda i, s: float(i), every=20), higher)
    assert ended(results) == [20, 20, 20, 20, 20, 20, 40, 40]


def test_a_loop_that_ends_before_the_rung_keeps_its_place(way):
    results = halving.run(tuning(), Train(lambda i, s: float(i), ends={7: 5, 6: 15}), higher)
    assert ended(results) == [10, 10, 10, 10, 20, 20, 15, 5]
    assert not any(result.halted for result in results[6:])


@FORKS
@settings(max_examples=25, deadline=None)
@given(
    curves=st.lists(st.lists(st.integers(0, 5), min_size=8, max_size=8), min_size=1, max_size=9),
    lost=st.dictionaries(st.integers(0, 8), st.integers(1, 40)),
    every=st.integers(1, 40),
    rungs=st.lists(st.tuples(st.integers(1, STEPS), st.integers(1, 9)), max_size=3),
)
def test_forked_and_repeated_runs_give_the_same_results(curves, lost, every, rungs):
    train = Train(lambda i, s: float(curves[i][s % 8]), every, lost)
    asked = tuning(len(curves), rungs=tuple(sorted(rungs)))
    both = []
    for forks in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(halving, "can_fork", lambda forks=forks: forks)
            both.append(halving.run(asked, train, higher))
    assert both[0] == both[1]
    whole = [train(trial) for trial in asked.trials]
    for cut, full in zip(both[0], whole, strict=True):
        assert cut.validation == full.validation[: len(cut.validation)]
        assert cut.halted or cut == full


@FORKS
def test_a_trial_trains_no_step_twice_where_it_can_wait(monkeypatch, tmp_path):
    made = tmp_path / "steps"
    made.write_text("")

    def count(trial, on_report=None):
        result = Result()
        for step in range(1, trial.steps + 1):
            with made.open("a") as file:
                file.write("x")
            result.steps.append(step)
            result.validation.append(float(trial.index))
            if on_report and not on_report(result):
                result.halted = step < trial.steps
                break
        return result

    monkeypatch.setattr(halving, "can_fork", lambda: True)
    halving.run(tuning(), count, higher)
    assert len(made.read_text()) == 8 * 10 + 4 * 10 + 2 * 20


@FORKS
def test_where_memory_is_short_trials_are_repeated(monkeypatch):
    train = Train(lambda i, s: float(i))
    monkeypatch.setattr(halving, "_crowded", lambda each, count: each > 0 and count == 8)
    results = halving.run(tuning(), train, higher)
    assert ended(results) == [10, 10, 10, 10, 20, 20, 40, 40]
    assert set(train.runs) == set(range(1, 8))  # in this process; 0 in one of its own


@FORKS
def test_memory_is_measured():
    import torch

    def train(trial, on_report=None):
        kept = torch.ones(25_000_000)  # 100 MB
        result = Result(steps=[10], validation=[float(kept[0])])
        on_report(result)
        return result

    child = halving._Forked(tuning().trials[0], [10], train)
    try:
        child.advance()
        assert 90e6 < child.private_bytes() < 250e6
    finally:
        child.close()
    assert halving._crowded(10**15, 8)
    assert not halving._crowded(1, 8)


@pytest.mark.parametrize("error", [BadCall("the task is wrong"), ValueError("a bug")])
def test_an_error_in_a_trial_ends_the_tuning(way, error):
    def train(trial, on_report=None):
        if trial.index == 2:
            raise error
        return Plain(lambda i, s: 0.0)(trial, on_report)

    expected = Failed if way else type(error)
    with pytest.raises(expected) as caught:
        halving.run(tuning(), train, higher)
    reason = caught.value.args[0]
    assert str(error) in getattr(reason, "text", str(reason))


@FORKS
def test_no_process_is_left(monkeypatch):
    pids = []

    def train(trial, on_report=None):
        result = Plain(lambda i, s: float(os.getpid()))(trial, on_report)
        return result

    monkeypatch.setattr(halving, "can_fork", lambda: True)
    results = halving.run(tuning(), train, higher)
    pids = [int(r.validation[0]) for r in results]
    assert len({os.getpid(), *pids}) == 9
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@FORKS
def test_a_killed_child_ends_the_worker_and_the_other_children(monkeypatch, tmp_path):
    def train(trial, on_report=None):
        (tmp_path / str(os.getpid())).touch()
        if trial.index == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return Plain(lambda i, s: 0.0)(trial, on_report)

    monkeypatch.setattr(halving, "can_fork", lambda: True)
    with pytest.raises(SystemExit, match="tuning run 3 of adam"):
        halving.run(tuning(), train, higher)
    assert gone(tmp_path, 4)


@FORKS
def test_children_end_with_a_killed_worker(tmp_path):
    pid = os.fork()
    if not pid:

        def train(trial, on_report=None):
            (tmp_path / str(os.getpid())).touch()
            if trial.index == 5:
                os.kill(os.getppid(), signal.SIGKILL)
                time.sleep(60)
            return Plain(lambda i, s: 0.0)(trial, on_report)

        try:
            halving.can_fork = lambda: True
            halving.run(tuning(), train, higher)
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    assert gone(tmp_path, 6)


def gone(folder, count):
    """Whether all processes that left their id in the folder have ended, within ten seconds."""
    pids = [int(path.name) for path in folder.iterdir()]
    assert len(pids) == count
    for _ in range(100):
        if not any(os.path.exists(f"/proc/{pid}") and not zombie(pid) for pid in pids):
            return True
        time.sleep(0.1)
    return False


def zombie(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@FORKS
def test_a_child_that_is_killed_while_it_waits_ends_the_worker(monkeypatch, tmp_path):
    def train(trial, on_report=None):
        if trial.index == 1:
            (tmp_path / "pid").write_text(str(os.getpid()))
        if trial.index == 7:  # the last one before the rung: 1 waits
            pid = int((tmp_path / "pid").read_text())
            os.kill(pid, signal.SIGKILL)
            while not zombie(pid):
                time.sleep(0.01)
        return Plain(lambda i, s: 0.0)(trial, on_report)

    monkeypatch.setattr(halving, "can_fork", lambda: True)
    with pytest.raises(SystemExit, match="tuning run 1 of adam"):
        halving.run(tuning(), train, higher)


@FORKS
def test_memory_is_looked_at_once_before_others_wait(monkeypatch):
    asked = []
    monkeypatch.setattr(halving, "can_fork", lambda: True)
    monkeypatch.setattr(halving, "_crowded", lambda *_: asked.append(1) or len(asked) > 1)
    results = halving.run(tuning(), Train(lambda i, s: -float(i)), higher)
    assert ended(results) == [40, 40, 20, 20, 10, 10, 10, 10]
    assert len(asked) == 1


@FORKS
def test_a_thread_of_the_users_does_not_keep_a_child(monkeypatch):
    def train(trial, on_report=None):
        threading.Thread(target=time.sleep, args=(600,)).start()
        return Plain(lambda i, s: 0.0)(trial, on_report)

    monkeypatch.setattr(halving, "can_fork", lambda: True)
    assert len(halving.run(tuning(), train, higher)) == 8


def test_no_fork_where_a_child_could_not_train(monkeypatch):
    monkeypatch.setattr(halving.torch, "get_num_threads", lambda: 2)
    assert not halving.can_fork()
    monkeypatch.setattr(halving.torch, "get_num_threads", lambda: 1)
    assert halving.can_fork() == (sys.platform == "linux")
    monkeypatch.setattr(halving.torch.accelerator, "is_available", lambda: True)
    assert not halving.can_fork()


@FORKS
def test_threads_of_a_task_do_not_hang_its_next_runs(tmp_path):
    """A task that computes with several threads: each run has a process of its own."""
    file = tmp_path / "threads.py"
    file.write_text(
        "import torch\n"
        "STEPS, MINIMIZE = 8, 'loss'\n"
        "def train(make_optimizer, report, seed, steps=8):\n"
        "    torch.set_num_threads(2)\n"
        "    w = torch.nn.Parameter(torch.ones(300, 300))\n"
        "    optimizer = make_optimizer([w])\n"
        "    for step in range(1, steps + 1):\n"
        "        optimizer.zero_grad(); (w @ w).square().mean().backward(); optimizer.step()\n"
        "        report(step, validation=float(w.mean()))\n"
    )
    made = Plan(str(file), ("adam",), 4, 3, 8, 0, looks=(3,), repeats=1, halving=True)
    items = trials.tuning_items(made, protocol.tuning(made))
    runs = trials.fresh_items(made, protocol.fresh(made, {"adam": list(items[0].trials)}))
    with Pool(1, trials.runner(str(file))) as pool:
        found = [results for _, results in pool.map([items[0], runs[0], items[1]])]
    assert sorted(map(len, found)) == [1, 4, 4]
