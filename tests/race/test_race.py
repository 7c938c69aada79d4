"""Real races end to end: what they leave, what a kill or another one at the same time does."""

import json
import math
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from steepest import tasks
from steepest.errors import BadCall, WorkerError
from steepest.processes import Pool, tell
from steepest.race import driver, measured, planning, protocol, terminal
from steepest.race.notes import caveats
from steepest.race.protocol import FRESH, TUNING, Plan, Result, Trial
from steepest.race.store import Store
from steepest.race.trials import runner
from tests.report.page import Page

REQUEST = driver.Request("digits", "adamw,momentum,eadam", trials=2, seeds=5, steps=20)
DIGITS = tasks.get("digits")
PLAN = Plan("digits", ("adamw", "adam", "momentum"), trials=1, seeds=6, steps=2, seed=0)
PROVENANCE = {"command": "c", "versions": {"python": "3"}, "machine": {}, "data_sha256": "0"}


def timeless(value):
    """A summary without what a clock decides."""
    if isinstance(value, dict):
        return {key: timeless(v) for key, v in value.items() if key != "timing"}
    return [timeless(v) for v in value] if isinstance(value, list) else value


def trial(**changes):
    base = Trial("digits", FRESH, "momentum", 0, 7, 30, {"lr": 0.05})
    return replace(base, **changes)


# --- workers (the work is `eval`: spawned workers can import it from anywhere)


def told_often(run, item):
    """Runs the item; its runs tell every step."""
    measured.NOTES = 0.0
    return run(item)


def test_work_can_tell_how_far_it_is():
    item = "[__import__('steepest.processes').processes.tell(i) for i in range(3)] and 'done'"
    told = []
    with Pool(1, eval) as pool:
        answers = list(pool.map([item, "7"], lambda *note: told.append(note)))
        assert list(pool.map([item])) == [(item, "done")]  # nobody listens
    assert answers == [(item, "done"), ("7", 7)]
    assert told == [(item, 0), (item, 1), (item, 2)]
    tell("outside of a worker")


def test_a_race_hears_of_its_runs_while_they_last(monkeypatch, tmp_path):
    told = []
    monkeypatch.setattr(
        terminal.Progress, "note", lambda _, item, value: told.append((item, value))
    )
    work = partial(told_often, runner("digits"))
    with Pool(1, work) as pool:
        request = driver.Request("digits", optimizers="adamw", trials=4, steps=8, looks="5")
        driver.race(request, tmp_path / "race", jobs=1, pool=pool)
    for item, (key, step) in told:
        assert key in {trial.key for trial in item.trials}
        assert 1 <= step <= 8
    assert {len(item.trials) for item, _ in told} == {1, 4}


def test_a_killed_worker_costs_its_item_time_and_nothing_else(tmp_path):
    flag = str(tmp_path / "flag")
    dies_once = f"__import__('os').mkdir({flag!r}) or __import__('os')._exit(9)"
    item = f"7 if __import__('os').path.exists({flag!r}) else ({dies_once})"
    with Pool(2, eval) as pool:
        answers = dict(pool.map([item, "1", "2", "3"]))
        again = dict(pool.map(["4"]))
    assert answers == {item: 7, "1": 1, "2": 2, "3": 3}
    assert again == {"4": 4}


def test_a_worker_has_its_next_item_before_the_caller_has_the_answer():
    drawn = []

    def items():
        for item in ("1 + 1", "2 + 2", "3 + 3"):
            drawn.append(item)
            yield item

    with Pool(1, eval) as pool:
        pool.hire()
        answers = pool.map(items())
        assert next(answers) == ("1 + 1", 2)
        assert drawn == ["1 + 1", "2 + 2"]
        assert [answer for _, answer in answers] == [4, 6]


def test_an_item_that_always_kills_its_worker_is_given_up():
    with Pool(1, eval) as pool, pytest.raises(WorkerError, match="3 workers died"):
        list(pool.map(["__import__('os')._exit(9)"]))


def test_an_item_that_raises_is_named():
    with Pool(1, eval) as pool, pytest.raises(WorkerError, match=r"NameError.*nonsense"):
        list(pool.map(["nonsense"]))


# --- whole races


@pytest.fixture(scope="module")
def raced(tmp_path_factory):
    """A finished race, to be read only: all processes of a test run share one."""
    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    folder, ready = root / "two workers", root / "two workers are done"
    try:
        folder.mkdir()
    except FileExistsError:
        wait_until(ready.exists)
        return folder, json.loads((folder / "summary.json").read_text())
    summary, interrupted = driver.race(REQUEST, folder, jobs=2)
    assert not interrupted
    ready.touch()
    return folder, summary


def test_a_race_leaves_what_was_promised(raced):
    folder, summary = raced
    assert json.loads((folder / "summary.json").read_text()) == summary
    assert {path.name for path in folder.iterdir()} == {
        "study.db", "summary.json", "report.html", "runs.csv", "curves.csv",
    }  # fmt: skip
    assert summary["complete"]
    assert summary["runs"] == {"finished": 45, "planned": 45}  # 3 x 5 x (2 + 1)
    assert summary["baseline"] == "adamw"
    assert summary["provenance"]["versions"]["torch"] == torch.__version__
    for entry in summary["entries"].values():
        assert len(entry["test"]) == len(entry["validation"]) == len(entry["seeds"]) == 5
        assert len(entry["tuning"]) == entry["trials"] == 10
        assert all(0 <= value <= 1 for value in entry["test"])
        assert entry["parameters"] == 16 * 10 + 32 * 145 + 1290
        assert entry["state_bytes"] >= 4 * entry["parameters"]
    a, b = (np.array(summary["entries"][e]["test"]) for e in ("momentum", "adamw"))
    oracle = stats.ttest_rel(a, b)
    difference = summary["entries"]["momentum"]["difference"]
    if difference["exact"]:  # a run failed, or one seed stands apart
        mean = lambda x, y, axis: (x - y).mean(axis)  # noqa: E731
        oracle = stats.permutation_test((a, b), mean, permutation_type="samples")
    assert difference["p"] == pytest.approx(oracle.pvalue)
    share = np.mean(summary["entries"]["adamw"]["test"])
    assert summary["test_standard_error"] == pytest.approx(math.sqrt(share * (1 - share) / 597))


def test_every_fresh_run_has_the_best_of_its_own_trials(raced):
    folder, summary = raced
    runs = {trial.key: (trial, result) for trial, result in Store(folder).results()}
    assert len(runs) == 45
    for name, entry in summary["entries"].items():
        for i in range(5):
            tried = [runs[TUNING, name, 2 * i + k] for k in range(2)]
            best = max(tried, key=lambda pair: pair[1].validation[-1])[0]  # the first of equals
            assert runs[FRESH, name, i][0].hyper == best.hyper
            assert entry["chosen"][i] == best.index
        assert len({trial.seed for (_, e, _), (trial, _) in runs.items() if e == name}) == 15
    assert any(index % 2 for e in summary["entries"].values() for index in e["chosen"])


def test_the_store_is_an_optuna_study(raced):
    import optuna

    study = optuna.load_study(study_name="race", storage=f"sqlite:///{raced[0]}/study.db")
    assert len(study.trials) == 45
    best = max(t.value or 0 for t in study.trials if t.user_attrs["trial"]["phase"] == "tuning")
    entry = raced[1]["entries"].values()
    assert best == max(t["validation"] for e in entry for t in e["tuning"])


def test_rebuilding_changes_nothing(raced, tmp_path):
    folder = shutil.copytree(raced[0], tmp_path / "copy")
    before = {path.name: path.read_bytes() for path in folder.glob("*.*") if path.suffix != ".db"}
    driver.rebuild(folder)
    assert before == {name: (folder / name).read_bytes() for name in before}


def command(folder, *more):
    words = "race digits --optimizers adamw,momentum,eadam --trials 2 --seeds 5 --steps 20 --jobs 1"
    return [sys.executable, "-m", "steepest", *words.split(), "--out", str(folder), *more]


def test_a_full_disk_is_one_clear_error(tmp_path, monkeypatch):
    import optuna

    def full(*_):
        raise optuna.exceptions.StorageInternalError("commit") from OSError("disk is full")

    store = Store.create(tmp_path, PLAN, PROVENANCE)
    monkeypatch.setattr(optuna.Study, "add_trial", full)
    with pytest.raises(OSError, match=r"study\.db' \(disk is full\): make room.*--resume"):
        store.add(trial(phase=TUNING), Result([1], [0.5], [0.1]))


def test_an_error_of_the_disk_that_is_not_its_size_asks_for_no_room(tmp_path, monkeypatch):
    import optuna

    def locked(*_):
        raise optuna.exceptions.StorageInternalError("commit") from OSError("disk I/O error")

    store = Store.create(tmp_path, PLAN, PROVENANCE)
    monkeypatch.setattr(optuna.Study, "add_trial", locked)
    with pytest.raises(OSError, match=r"\(disk I/O error\): solve this problem, then .*--resume"):
        store.add(trial(phase=TUNING), Result([1], [0.5], [0.1]))


def test_a_folder_is_for_one_race_at_a_time(tmp_path):
    pytest.importorskip("fcntl")
    (tmp_path / "old").mkdir()
    Store.create(tmp_path / "old", PLAN, PROVENANCE)
    for folder, resume in ((tmp_path / "old", True), (tmp_path / "new", False)):
        with driver.locked(folder):
            before = sorted(folder.iterdir())
            with pytest.raises(BadCall, match="another race is running in"):
                driver.race(REQUEST, folder, jobs=1, resume=resume)
            assert sorted(folder.iterdir()) == before
        kept = [path.name for path in folder.iterdir()] if folder.exists() else []
        assert kept == (["study.db"] if resume else [])


def test_a_run_that_is_stored_twice_counts_once(tmp_path):
    store = Store.create(tmp_path, PLAN, PROVENANCE)
    run = trial(phase=TUNING, entry="adam", hyper={"lr": 0.1})
    for metric in (0.5, 0.6):
        store.add(run, Result([1], [metric], [0.1]))
    ((_, kept),) = store.results()
    assert kept.validation == [0.5]


@pytest.mark.parametrize("name", ["a?b", "50%20", "x?mode=memory#y", "{SCHEMA}", "file:z"])
def test_a_store_stays_in_its_folder_whatever_its_name(name, tmp_path):
    folder = tmp_path / name
    folder.mkdir()
    store = Store.create(folder, PLAN, PROVENANCE)
    store.add(trial(phase=TUNING, entry="adam", hyper={"lr": 0.1}), Result([1], [0.5], [0.1]))
    assert len(Store(folder).results()) == 1
    assert list(tmp_path.iterdir()) == [folder]
    assert [path.name for path in folder.iterdir()] == ["study.db"]


def test_a_foreign_database_is_not_written_to(tmp_path):
    path = tmp_path / "study.db"
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("create table mine (x)")
    before = path.read_bytes()
    for call in (
        lambda: driver.rebuild(tmp_path),
        lambda: driver.race(REQUEST, tmp_path, jobs=1, resume=True),
    ):
        with pytest.raises(BadCall, match="not the store of a race"):
            call()
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("change", "shown"), [("value_json = '99'", "format 99"), ("key = 'other'", "format None")]
)
def test_a_store_of_another_version_gets_one_line(change, shown, tmp_path):
    Store.create(tmp_path, PLAN, PROVENANCE)
    with closing(sqlite3.connect(tmp_path / "study.db")) as database, database:
        database.execute(f"update study_user_attributes set {change} where key = 'format'")
    with pytest.raises(BadCall, match=f"has {shown}, but this version .* format 3"):
        Store(tmp_path)


def test_a_store_with_an_unfinished_write_is_read(tmp_path):
    Store.create(tmp_path, PLAN, PROVENANCE)
    path = tmp_path / "study.db"
    code = (
        "import os, sqlite3, sys; d = sqlite3.connect(sys.argv[1]); "
        "d.execute('pragma cache_size = 1'); d.execute('begin'); "
        "d.execute('create table half as with recursive n(i) as "
        "(select 1 union all select i + 1 from n where i < 9999) select i from n'); os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", code, str(path)])
    assert path.with_name("study.db-journal").exists()
    assert Store(tmp_path).plan == PLAN


def stored(folder, monkeypatch):
    """A store of REQUEST in which nothing was run yet, and races that run nothing."""
    folder.mkdir()
    plan = planning.make_plan(REQUEST, 1, None, 0.0)
    Store.create(folder, plan, driver.provenance(REQUEST))
    monkeypatch.setattr(driver, "_run", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    return folder


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"seed": 1}, "with --seed 1: .* started with 0;"),
        ({"trials": 3}, "with --trials 3: .* started with 2;"),
        ({"optimizers": "adam"}, "with --optimizers adam: .* started with adamw,momentum,eadam;"),
        ({"baseline": "momentum"}, "with --baseline momentum: .* started with adamw;"),
        ({"search": "adamw.lr=1e-4:1"}, "with --search adamw.lr=0.0001:1.0: .* without --search;"),
        ({"budget": "9s", "trials": None}, "with --budget 9s: .* started without --budget;"),
    ],
)
def test_resume_refuses_another_race_and_names_the_option(given, said, tmp_path, monkeypatch):
    folder = stored(tmp_path / "race", monkeypatch)
    with pytest.raises(BadCall, match=said):
        driver.race(replace(REQUEST, **given), folder, jobs=1, resume=True)
    same = replace(REQUEST, seed=0, optimizers="adamw, momentum, eadam", baseline="adamw")
    assert driver.race(same, folder, jobs=1, resume=True)[1]


def test_resume_on_other_data_is_refused(tmp_path, monkeypatch):
    folder = stored(tmp_path / "race", monkeypatch)
    monkeypatch.setitem(tasks.TASKS, "digits", replace(DIGITS, data_hash=lambda: "other"))
    with pytest.raises(BadCall, match=r"began with data_sha256 \w+, not other"):
        driver.race(REQUEST, folder, jobs=1, resume=True)


def test_nothing_is_stored_of_a_plan_that_fails(tmp_path, monkeypatch):
    def fails(plan):
        raise MemoryError

    monkeypatch.setattr(protocol, "tuning", fails)
    with pytest.raises(MemoryError):
        driver.race(REQUEST, tmp_path, jobs=1)
    assert list(tmp_path.iterdir()) == []


def finished(folder):
    path = folder / "study.db"
    if not path.exists():
        return 0
    with closing(sqlite3.connect(path)) as database:
        return database.execute("select count(*) from trials").fetchone()[0]


def wait_until(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def alive(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads children from /proc")
def test_kill_and_resume_gives_the_same_summary_with_any_number_of_jobs(raced, tmp_path):
    folder = tmp_path / "killed"
    # as it stands after the kill of a race that had just begun to make its store
    folder.mkdir()
    (folder / "study.db.new").write_bytes(b"half a database")
    (folder / "study.db.new-journal").write_bytes(b"its journal")
    with subprocess.Popen(command(folder), stderr=subprocess.DEVNULL) as process:
        wait_until(lambda: finished(folder) >= 3)
        pid = process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        process.kill()
    assert 3 <= finished(folder) < 45
    assert children
    wait_until(lambda: not any(alive(child) for child in children))
    with pytest.raises(BadCall, match="not empty"):
        driver.race(REQUEST, folder, jobs=1)
    with pytest.raises(BadCall, match="was started with 2;"):
        driver.race(replace(REQUEST, trials=3), folder, jobs=1, resume=True)
    summary, _ = driver.race(driver.Request("digits"), folder, jobs=1, resume=True)
    assert timeless(summary) == timeless(raced[1])


def test_ctrl_c_leaves_a_partial_report_and_says_how_to_resume(tmp_path):
    folder = tmp_path / "stopped"
    process = subprocess.Popen(
        command(folder, "--steps", "400"), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, start_new_session=True,
    )  # fmt: skip
    with process:
        wait_until(lambda: finished(folder) >= 3)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the workers get it too
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert "tuning trials" in out
    assert "planned" in out
    assert f"--out {folder} --resume" in err.strip().splitlines()[-1]
    summary = json.loads((folder / "summary.json").read_text())
    assert not summary["complete"]
    assert summary["verdict"].startswith("No verdict")
    assert summary["verdict"] in out
    assert "No verdict" in (folder / "report.html").read_text()


def test_a_budget_is_planned_and_stored(tmp_path, capsys):
    folder = tmp_path / "budget"
    request = driver.Request("digits", "adamw,momentum", steps=5, budget="0.1s", seed=3)
    summary, _ = driver.race(request, folder, jobs=1)
    assert (summary["plan"]["trials"], summary["plan"]["seeds"]) == (1, 5)  # the least
    assert "--trials 1 --seeds 5 --steps 5 --seed 3" in summary["reproduce"]
    assert "--budget 0.1s" in summary["provenance"]["command"]
    assert any("Nothing was tuned" in line for line in caveats(summary))
    warning = (
        "The budget of 0.1s is too small for the smallest race (5 fresh seeds per entry, 1 tuning "
        "trial for each), so the race takes longer"
    )
    assert f"{warning}." in caveats(summary)
    assert f"{warning}." in Page((folder / "report.html").read_text()).text
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == f"steepest: {warning}"
    assert lines[1].startswith("steepest: Not enough tuning: 1 trial of an entry for each fresh")
    assert summary["verdict"].startswith(lines[1].removeprefix("steepest: "))
    assert len(lines) == 2


def test_no_budget_no_warning(raced):
    assert not any("budget" in line for line in caveats(raced[1]))
