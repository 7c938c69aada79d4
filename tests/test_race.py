"""The race: statistics against scipy and by hand, protocol laws, real races end to end."""

import io
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
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from scipy import stats

from steepest.race import (
    BadCall,
    conduct,
    entries,
    protocol,
    report,
    statistics,
    tasks,
    terminal,
    trials,
)
from steepest.race.protocol import FRESH, TUNING, Plan, Result, Trial
from steepest.race.store import Store
from steepest.race.summary import _curve, summarise
from steepest.race.tasks import images
from steepest.race.wording import caveats, rows, verdict
from steepest.race.workers import Pool, WorkerError

REQUEST = conduct.Request("digits", "adamw,momentum,eadam", trials=2, seeds=5, steps=20)
DIGITS = tasks.get("digits")
p_values = st.lists(st.floats(0, 1), min_size=1, max_size=9)


def timeless(value):
    """A summary without what a clock decides."""
    if isinstance(value, dict):
        return {key: timeless(v) for key, v in value.items() if key != "timing"}
    return [timeless(v) for v in value] if isinstance(value, list) else value


# --- statistics


def test_holm_by_hand():
    # sorted .005 .01 .03 .04, times 4 3 2 1, never falling
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([0.9, 0.8]) == [1.0, 1.0]
    assert statistics.holm([]) == []


@given(p_values, st.randoms(use_true_random=False))
def test_holm_laws(p, random):
    adjusted = statistics.holm(p)
    assert all(a <= b <= min(1, len(p) * a + 1e-15) for a, b in zip(p, adjusted, strict=True))
    order = np.argsort(p, kind="stable")
    assert all(np.diff(np.array(adjusted)[order]) >= 0)
    shuffled = random.sample(range(len(p)), len(p))
    assert statistics.holm([p[i] for i in shuffled]) == [adjusted[i] for i in shuffled]


def test_interval_and_p_are_those_of_a_paired_t_test():
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(2, 10))
    judged = statistics.compare({"one": (a - b).tolist()})["one"]
    oracle = stats.ttest_rel(a, b)
    interval = oracle.confidence_interval(0.95)
    assert (judged.n, judged.level) == (10, 0.95)
    assert judged.mean == pytest.approx(a.mean() - b.mean())
    assert (judged.low, judged.high) == pytest.approx((interval.low, interval.high))
    assert judged.p == judged.p_holm == pytest.approx(oracle.pvalue)


def test_an_interval_is_at_the_level_at_which_holm_tested_it():
    rng = np.random.default_rng(2)
    noise = {name: rng.normal(size=10).tolist() for name in ("far", "null", "none")}
    noise["far"] = [5 + 0.1 * x for x in noise["far"]]
    judged = statistics.compare(noise)
    assert judged["far"].level == pytest.approx(1 - 0.05 / 3)
    assert judged["null"].level == judged["none"].level == pytest.approx(1 - 0.05 / 2)
    assert [judged[name].claim for name in noise] == [True, False, False]


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(5, 12), st.integers(1, 6), st.floats(0, 3))
def test_an_interval_leaves_out_zero_exactly_where_a_difference_is_claimed(seed, n, field, shift):
    rng = np.random.default_rng(seed)
    shifts = shift * rng.normal(size=field)
    judged = statistics.compare(
        {str(i): rng.normal(shifts[i], 1, n).tolist() for i in range(field)}
    )
    for d in judged.values():
        assert d.low is not None
        assert d.high is not None
        assert d.p_holm is not None
        assert d.claim == (d.low > 0 or d.high < 0) == (d.p_holm <= 0.05)


def test_differences_without_spread_give_no_nan():
    judged = statistics.compare({"same": [0.0] * 10, "shifted": [1 / 597 - 1e-17] * 9 + [1 / 597]})
    same, shifted = judged["same"], judged["shifted"]
    assert (same.low, same.high, same.p, same.claim) == (None, None, 1, False)
    assert shifted.low is None
    assert shifted.p == pytest.approx(stats.binomtest(10, 10).pvalue)  # the exact sign test
    assert not statistics.compare({"five": [0.5] * 5})["five"].claim


@pytest.mark.parametrize("n", [1, 2, 4])
def test_no_claim_on_fewer_than_five_seeds(n):
    judged = statistics.compare({"huge": [100 + 0.001 * i for i in range(n)]})["huge"]
    assert not judged.claim
    assert (judged.p is None) == (n == 1)


def test_proportion_error():
    assert statistics.proportion_error(0.5, 100) == pytest.approx(0.05)
    assert statistics.proportion_error(1.0, 7) == 0


# --- protocol

SPACE = {"lr": (1e-5, 1e-1), "eps": (1e-9, 1e-3)}


@settings(deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 40), st.integers(1, 40))
def test_a_point_depends_on_seed_and_index_alone(seed, few, many):
    few, many = sorted((few, many))
    points = protocol.points(seed, SPACE, many)
    assert points[:few] == protocol.points(seed, SPACE, few)
    assert points != protocol.points(seed + 1, SPACE, many)
    # an entry with fewer knobs tries the same learning rates
    assert [p["lr"] for p in points] == [
        p["lr"] for p in protocol.points(seed, {"lr": SPACE["lr"]}, many)
    ]


def test_points_are_log_uniform_in_their_range():
    points = protocol.points(3, SPACE, 64)
    for knob, (low, high) in SPACE.items():
        logs = [math.log(point[knob] / low) / math.log(high / low) for point in points]
        # a scrambled Sobol net has exactly one of 64 points in each 64th
        assert sorted(math.floor(64 * u) for u in logs) == list(range(64))


def test_tuning_points_lie_spread_over_the_range_that_the_rule_declares():
    plan = Plan("digits", ("adam", "momentum"), trials=9, seeds=1, steps=1, seed=4)
    for entry in plan.entries:
        space = entries.space(entry)
        tried = [t.hyper for t in protocol.tuning(plan) if t.entry == entry and t.index > 0]
        assert tried == protocol.points(plan.seed, space, 8)
        for knob, (low, high) in space.items():
            logs = [math.log(hyper[knob] / low) / math.log(high / low) for hyper in tried]
            assert sorted(math.floor(8 * u) for u in logs) == list(range(8))


def test_equal_tuning_and_paired_seeds():
    plan = Plan("digits", ("adamw", "momentum", "adam"), trials=4, seeds=3, steps=7, seed=5)
    tuned = protocol.tuning(plan)
    final = protocol.fresh(plan, {t.entry: t for t in tuned if t.index == 2})
    for run, count in ((tuned, 4), (final, 3)):
        seeds = {e: [t.seed for t in run if t.entry == e] for e in plan.entries}
        assert len(set(map(tuple, seeds.values()))) == 1
        assert [len(s) for s in seeds.values()] == [count] * 3
    assert not {t.seed for t in tuned} & {t.seed for t in final}
    assert {t.steps for t in (*tuned, *final)} == {7}
    assert all(t.hyper == entries.defaults(t.entry) for t in tuned if t.index == 0)
    for entry in plan.entries:
        hypers = [t.hyper for t in tuned if t.entry == entry]
        assert all(a != b for i, a in enumerate(hypers) for b in hypers[:i])
        assert all(t.hyper == hypers[2] for t in final if t.entry == entry)


def test_best_is_chosen_by_the_last_validation_metric():
    def pair(index, values, diverged=None):
        trial = Trial("digits", TUNING, "adam", index, 0, 9, {"lr": 1.0})
        return trial, Result(steps=[1, 2], validation=values, seconds=[0, 0], diverged=diverged)

    pairs = [pair(0, [0.99, 0.90]), pair(1, [0.1, 0.95]), pair(2, [0.5, 0.95])]
    assert protocol.best(DIGITS, pairs).index == 1
    assert protocol.best(DIGITS, pairs[::-1]).index == 1
    assert protocol.best(replace(DIGITS, maximize=False, worst=9.0), pairs).index == 0
    lost = [pair(0, [1.0], "nan"), pair(1, [0.0, 0.0])]
    assert protocol.best(DIGITS, lost).index == 1
    assert protocol.best(DIGITS, lost[:1]).index == 0


@given(
    st.floats(1, 3600), st.integers(1, 12), st.integers(1, 16), st.floats(0.01, 60),
    st.floats(0, 2), st.none() | st.integers(1, 20),
)  # fmt: skip
def test_a_plan_fits_its_budget_or_is_the_least(seconds, field, jobs, run, warm, given_seeds):
    count, seeds = protocol.affordable(seconds, field, jobs, run, warm, given_seeds)
    assert count >= 1
    assert seeds == given_seeds if given_seeds else 5 <= seeds <= 10
    least = count == 1 and (given_seeds or seeds == 5)
    assert least or field * ((count + seeds) * run / jobs + warm) <= seconds
    assert count == 1 or given_seeds or seeds == 10


def test_a_budget_by_hand():
    # 85 s less 5 s of first steps, on 2 workers of 0.5 s a run: 320 runs, 32 for each of 10
    assert protocol.affordable(100, 10, 2, 0.5, 0.5, None) == (22, 10)
    assert protocol.affordable(100, 10, 2, 2.0, 0.5, None) == (1, 7)
    assert protocol.affordable(1, 10, 2, 2.0, 0.5, None) == (1, 5)


@pytest.mark.parametrize(
    ("text", "seconds"), [("60s", 60), ("60", 60), ("1.5m", 90), ("2h", 7200), ("0.5s", 0.5)]
)
def test_budgets(text, seconds):
    assert protocol.parse_budget(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "-5s", "0", "nan", "inf", "5 days", "1e999"])
def test_bad_budgets(text):
    with pytest.raises(BadCall, match="expected a wall time"):
        protocol.parse_budget(text)


# --- one trial


def trial(**changes):
    base = Trial("digits", FRESH, "momentum", 0, 7, 30, {"lr": 0.05})
    return replace(base, **changes)


@pytest.fixture
def stock(monkeypatch):
    """Trials with torch's own SGD in place of every entry."""
    monkeypatch.setattr(
        entries, "make", lambda name, params, hyper: torch.optim.SGD(params, lr=hyper["lr"])
    )


def test_a_trial_is_the_loop_that_anybody_would_write(stock):
    torch.set_num_threads(2)
    got = trials.run(trial())
    assert torch.get_num_threads() == 1
    setup = DIGITS.build(7)
    optimizer = torch.optim.SGD(setup.model.parameters(), lr=0.05)
    oracle = []
    for step in range(1, 31):
        optimizer.zero_grad()
        setup.loss(setup.model, next(setup.batches)).backward()
        optimizer.step()
        if step in (25, 30):
            oracle.append(setup.evaluate(setup.model, "validation"))
    assert (got.steps, got.validation) == ([25, 30], oracle)
    assert got.test == setup.evaluate(setup.model, "test")
    assert got.diverged is None
    assert 0 < got.step_seconds < got.train_seconds
    assert got.seconds[0] < got.seconds[1] < got.wall_seconds


def test_the_seed_decides_weights_and_order():
    one, same, other = DIGITS.build(1), DIGITS.build(1), DIGITS.build(2)
    first = [next(setup.batches)[0] for setup in (one, same, other)]
    assert torch.equal(first[0], first[1])
    assert not torch.equal(first[0], first[2])
    weights = [next(setup.model.parameters()) for setup in (one, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_splits_are_the_whole_data_set_without_overlap():
    from sklearn.datasets import load_digits

    def sorted_rows(images):
        rows = images.reshape(len(images), 64)
        return rows[np.lexsort(rows.T)]

    parts = [x.numpy()[:, 0] * 16 for x, _ in images.digits().values()]
    assert [len(part) for part in parts] == [800, 400, 597]
    assert np.array_equal(
        sorted_rows(np.concatenate(parts)),
        sorted_rows(load_digits(return_X_y=True)[0].astype("f4")),
    )


def test_an_epoch_sees_every_training_image_once():
    setup = DIGITS.build(3)
    seen = torch.cat([next(setup.batches)[0] for _ in range(DIGITS.every)])
    train = images.digits()["train"][0]
    assert torch.equal(seen.sum(dim=(1, 2, 3)).sort()[0], train.sum(dim=(1, 2, 3)).sort()[0])


def test_a_tuning_trial_never_sees_test_data(stock, monkeypatch):
    asked = []
    setup = DIGITS.build(0)
    spy = replace(setup, evaluate=lambda model, split: asked.append(split) or 0.5)
    monkeypatch.setitem(tasks.TASKS, "digits", replace(DIGITS, build=lambda seed: spy))
    assert trials.run(trial(phase=TUNING)).test is None
    assert set(asked) == {"validation"}


def test_a_diverged_run_is_a_result():
    result = trials.run(trial(entry="momentum", hyper={"lr": 1e30}))
    assert result.diverged
    assert result.test == 0.0
    assert protocol.final(DIGITS, result) == 0.0


@pytest.mark.parametrize("error", [FloatingPointError, ZeroDivisionError, OverflowError])
def test_an_arithmetic_error_of_an_optimizer_is_divergence(error, monkeypatch):
    class Failing(torch.optim.SGD):
        def step(self, closure=None):
            raise error

    monkeypatch.setattr(entries, "make", lambda name, params, hyper: Failing(params, lr=1.0))
    assert trials.run(trial()).diverged == error.__name__


def test_the_first_step_that_compiles_is_not_training_time(monkeypatch):
    class Compiled(torch.optim.SGD):
        def step(self, closure=None):
            time.sleep(slow.pop() if slow else 0)
            return super().step(closure)

    slow = [0.5]
    monkeypatch.setattr(trials, "_warm", set())
    monkeypatch.setattr(entries, "make", lambda name, params, hyper: Compiled(params, lr=0.1))
    result = trials.run(trial(steps=2))
    assert result.warm_seconds >= 0.5
    assert result.seconds[-1] < 0.5
    assert result.step_seconds < 0.25


def test_a_bug_is_not_divergence(monkeypatch):
    monkeypatch.setattr(entries, "make", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        trials.run(trial())


def test_a_metric_that_is_not_finite_is_divergence(stock, monkeypatch):
    spy = replace(DIGITS.build(0), evaluate=lambda model, split: math.nan)
    monkeypatch.setitem(tasks.TASKS, "digits", replace(DIGITS, build=lambda seed: spy))
    assert trials.run(trial()).diverged == "model output is not finite at step 25"


# --- workers (the work is `eval`: spawned workers can import it from anywhere)


def test_a_killed_worker_costs_its_item_time_and_nothing_else(tmp_path):
    flag = str(tmp_path / "flag")
    dies_once = f"__import__('os').mkdir({flag!r}) or __import__('os')._exit(9)"
    item = f"7 if __import__('os').path.exists({flag!r}) else ({dies_once})"
    with Pool(2, eval) as pool:
        answers = dict(pool.map([item, "1", "2", "3"]))
        again = dict(pool.map(["4"]))
    assert answers == {item: 7, "1": 1, "2": 2, "3": 3}
    assert again == {"4": 4}


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
    summary, interrupted = conduct.race(REQUEST, folder, jobs=2)
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
    assert summary["runs"] == {"finished": 21, "planned": 21}
    assert summary["baseline"] == "adamw"
    assert summary["provenance"]["versions"]["torch"] == torch.__version__
    for entry in summary["entries"].values():
        assert len(entry["test"]) == len(entry["validation"]) == len(entry["seeds"]) == 5
        assert len(entry["tuning"]) == entry["trials"] == 2
        assert entry["hyperparameters"] == entry["tuning"][entry["best_trial"]]["hyperparameters"]
        assert all(0 <= value <= 1 for value in entry["test"])
        assert entry["parameters"] == 16 * 10 + 32 * 145 + 1290
        assert entry["state_bytes"] >= 4 * entry["parameters"]
    oracle = stats.ttest_rel(*(summary["entries"][e]["test"] for e in ("momentum", "adamw")))
    assert summary["entries"]["momentum"]["difference"]["p"] == pytest.approx(oracle.pvalue)
    share = np.mean(summary["entries"]["adamw"]["test"])
    assert summary["test_standard_error"] == pytest.approx(math.sqrt(share * (1 - share) / 597))


def test_the_store_is_an_optuna_study(raced):
    import optuna

    study = optuna.load_study(study_name="race", storage=f"sqlite:///{raced[0]}/study.db")
    assert len(study.trials) == 21
    best = max(t.value or 0 for t in study.trials if t.user_attrs["trial"]["phase"] == "tuning")
    entry = raced[1]["entries"].values()
    assert best == max(t["validation"] for e in entry for t in e["tuning"])


def test_rebuilding_changes_nothing(raced, tmp_path):
    folder = shutil.copytree(raced[0], tmp_path / "copy")
    before = {path.name: path.read_bytes() for path in folder.glob("*.*") if path.suffix != ".db"}
    conduct.rebuild(folder)
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
    with pytest.raises(OSError, match=r"\(disk I/O error\): mend that, then .*--resume"):
        store.add(trial(phase=TUNING), Result([1], [0.5], [0.1]))


def test_a_folder_is_for_one_race_at_a_time(tmp_path):
    pytest.importorskip("fcntl")
    (tmp_path / "old").mkdir()
    Store.create(tmp_path / "old", PLAN, PROVENANCE)
    for folder, resume in ((tmp_path / "old", True), (tmp_path / "new", False)):
        with conduct._locked(folder):
            before = sorted(folder.iterdir())
            with pytest.raises(BadCall, match="another race is running in"):
                conduct.race(REQUEST, folder, jobs=1, resume=resume)
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
        lambda: conduct.rebuild(tmp_path),
        lambda: conduct.race(REQUEST, tmp_path, jobs=1, resume=True),
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
    with pytest.raises(BadCall, match=f"is of {shown}.*expected format 2"):
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
    plan = conduct._plan(REQUEST, 1, None, 0.0)
    Store.create(folder, plan, conduct.provenance(REQUEST))
    monkeypatch.setattr(conduct, "_run", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    return folder


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"seed": 1}, "with --seed 1: .* started with 0;"),
        ({"trials": 3}, "with --trials 3: .* started with 2;"),
        (
            {"optimizers": "adam"},
            "with --optimizers adam,adamw,momentum,eadam: .* started with adamw,momentum,eadam;",
        ),
        ({"budget": "9s", "trials": None}, "with --budget 9s: .* started without --budget;"),
    ],
)
def test_resume_refuses_another_race_and_names_the_option(given, said, tmp_path, monkeypatch):
    folder = stored(tmp_path / "race", monkeypatch)
    with pytest.raises(BadCall, match=said):
        conduct.race(replace(REQUEST, **given), folder, jobs=1, resume=True)
    same = replace(REQUEST, seed=0, optimizers="adamw, momentum, eadam")  # as it was, put otherwise
    assert conduct.race(same, folder, jobs=1, resume=True)[1]


def test_resume_on_other_data_is_refused(tmp_path, monkeypatch):
    folder = stored(tmp_path / "race", monkeypatch)
    monkeypatch.setitem(tasks.TASKS, "digits", replace(DIGITS, data_hash=lambda: "other"))
    with pytest.raises(BadCall, match=r"other data_sha256 \(other\)"):
        conduct.race(REQUEST, folder, jobs=1, resume=True)


def test_nothing_is_stored_of_a_plan_that_fails(tmp_path, monkeypatch):
    def fails(plan):
        raise MemoryError

    monkeypatch.setattr(protocol, "tuning", fails)
    with pytest.raises(MemoryError):
        conduct.race(REQUEST, tmp_path, jobs=1)
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
    assert 3 <= finished(folder) < 21
    assert children
    wait_until(lambda: not any(alive(child) for child in children))
    with pytest.raises(BadCall, match="not empty"):
        conduct.race(REQUEST, folder, jobs=1)
    with pytest.raises(BadCall, match="was started with 2;"):
        conduct.race(replace(REQUEST, trials=3), folder, jobs=1, resume=True)
    summary, _ = conduct.race(conduct.Request("digits"), folder, jobs=1, resume=True)
    assert timeless(summary) == timeless(raced[1])


def test_ctrl_c_leaves_a_partial_report_and_says_how_to_resume(tmp_path):
    folder = tmp_path / "stopped"
    process = subprocess.Popen(
        command(folder), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
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
    request = conduct.Request("digits", "adamw,momentum", steps=5, budget="0.1s", seed=3)
    summary, _ = conduct.race(request, folder, jobs=1)
    assert (summary["plan"]["trials"], summary["plan"]["seeds"]) == (1, 5)  # the least
    assert "--trials 1 --seeds 5 --steps 5 --seed 3" in summary["reproduce"]
    assert "--budget 0.1s" in summary["provenance"]["command"]
    assert any("Nothing was tuned" in line for line in caveats(summary))
    warning = (
        "The budget of 0.1s allows less than the least race (1 trial, 5 seeds per entry); "
        "the race exceeds it"
    )
    assert f"{warning}." in caveats(summary)
    assert f"{warning}." in Page((folder / "report.html").read_text()).text
    assert capsys.readouterr().err == f"steepest: {warning}\n"


# --- what is said


PLAN = Plan("digits", ("adamw", "adam", "momentum"), trials=1, seeds=6, steps=2, seed=0)


def test_no_budget_no_warning(raced):
    assert not any("budget" in line for line in caveats(raced[1]))


def made_up(tests, plan=PLAN, diverged=None):
    """A summary of invented runs: entry -> test metric per seed."""
    pairs = [
        (
            Trial(plan.task, phase, entry, i, i, plan.steps, {"lr": 0.1}),
            Result(
                [1, 2], [0.9, v], [0.5, 1.0], v if phase == FRESH else None, diverged, 1, 2, 8, 4
            ),
        )
        for entry, values in tests.items()
        for phase, run in ((TUNING, values[:1]), (FRESH, values))
        for i, v in enumerate(run)
    ]
    return summarise(DIGITS, plan, pairs, PROVENANCE)


PROVENANCE = {"command": "c", "versions": {"python": "3"}, "machine": {}, "data_sha256": "0"}
EVEN = [0.90, 0.91, 0.92, 0.93, 0.94, 0.96]
UNEVEN = [0.96, 0.90, 0.93, 0.91, 0.92, 0.94]


def test_the_verdict_names_what_is_better_and_what_is_not_told_apart():
    summary = made_up({"adamw": EVEN, "adam": UNEVEN, "momentum": [v + 0.03 for v in UNEVEN]})
    better = made_up(
        {"adamw": EVEN, "adam": UNEVEN, "momentum": [v + 0.03 + 1e-4 * v for v in EVEN]}
    )
    assert summary["verdict"].startswith("No entry can be told apart from adamw")
    assert "n=6" in summary["verdict"]
    assert "better than adamw in test accuracy: momentum by 3.01 points" in better["verdict"]
    assert "Not told apart from adamw: adam;" in better["verdict"]
    worse = made_up({"adamw": EVEN, "adam": UNEVEN, "momentum": [0.5 * v for v in EVEN]})
    assert "worse than adamw in test accuracy: momentum by 46.33 points" in worse["verdict"]


def test_direction_of_the_metric():
    summary = made_up({"adamw": EVEN, "adam": UNEVEN, "momentum": [0.5 * v for v in EVEN]})
    assert [row[0] for row in rows(summary)][-1] == "momentum"
    down = {**summary, "maximize": False}
    assert "better than adamw in test accuracy: momentum" in verdict(down)
    assert rows(down)[0][0] == "momentum"


def test_too_few_seeds_and_no_rival_give_no_verdict():
    few = {"adamw": EVEN[:4], "adam": UNEVEN[:4], "momentum": [0.1] * 4}
    assert made_up(few, replace(PLAN, seeds=4))["verdict"].startswith("Not enough seeds: n=4")
    alone = made_up({"adamw": EVEN}, replace(PLAN, entries=("adamw",)))
    assert "nothing to compare" in alone["verdict"]
    partial = made_up({"adamw": EVEN, "adam": UNEVEN[:2]})
    assert partial["verdict"] == "No verdict: 10 of 21 runs are finished."
    assert partial["entries"]["momentum"]["test"] == []
    nothing = made_up({})
    assert nothing["verdict"] == "No verdict: 0 of 21 runs are finished."
    for summary in (alone, partial, nothing):
        assert summary["verdict"] in Page(report.page(summary)).text
        assert len(rows(summary)) == len(summary["entries"])


def test_equal_runs_are_no_nan():
    summary = made_up({"adamw": EVEN, "adam": EVEN, "momentum": [v + 0.01 for v in EVEN]})
    text = json.dumps(summary, allow_nan=False)
    assert "NaN" not in text
    assert any("sign test" in line for line in caveats(summary))


def test_what_is_the_same_on_every_seed_has_no_interval():
    summary = made_up({"adamw": EVEN, "adam": EVEN, "momentum": EVEN})
    assert summary["verdict"].endswith("; the same as adamw on every seed: adam, momentum.")
    assert "remain possible" not in summary["verdict"]
    assert summary["entries"]["adam"]["difference"]["low"] is None
    assert {row[0]: row[3] for row in rows(summary)}["adam"] == "+0.00 on every seed"
    five = [v[:5] for v in (EVEN, [v + 0.25 for v in EVEN])]
    shifted = made_up(
        dict(zip(("adamw", "adam"), five, strict=True)),
        replace(PLAN, entries=("adamw", "adam"), seeds=5),
    )
    assert "the same difference on every seed: adam by +25.00 points." in shifted["verdict"]


def test_an_interval_of_shares_ends_at_all():
    tests = {"adamw": [0.0, 1.0] * 3, "adam": [1.0, 0.0] * 3, "momentum": EVEN}
    d = made_up(tests)["entries"]["adam"]["difference"]
    assert (d["low"], d["high"]) == (-1, 1)


def test_a_partial_report_says_what_was_run():
    tests = {"adamw": EVEN[:2], "adam": UNEVEN[:1]}
    summary = made_up(tests, replace(PLAN, entries=("adamw", "adam"), trials=4, seeds=6))
    said = caveats(summary)[0]
    assert "So far each entry had 1 of 4 planned tuning trials" in said
    assert "1 to 2 of 6 planned fresh seeds" in said
    text = Page(report.page(summary)).text
    assert "Median and quartiles of n=1 to 2 of 6 planned fresh seeds" in text
    assert "n=1 of 4 planned per entry" in text
    assert "planned: 2 entries, each with 4 tuning trials" in text
    assert "1 to 2 of 6 planned fresh seeds" in str(terminal._table(summary, 120).title)


def test_a_curve_by_hand():
    def run(*values, diverged=None):
        return Result(list(range(1, len(values) + 1)), list(values), diverged=diverged)

    results = [run(0.1, 0.5), run(0.2, 0.6), run(0.3, 0.9), run(0.4, diverged="nan")]
    curve = _curve(DIGITS, results)  # the diverged one counts as 0 from then on
    assert curve["steps"] == [1, 2]
    assert curve["median"] == pytest.approx([0.25, 0.55])
    assert curve["low"] == pytest.approx([0.175, 0.375])
    assert curve["high"] == pytest.approx([0.325, 0.675])


@pytest.mark.parametrize("width", [80, 99, 100, 120])
def test_a_narrow_terminal_keeps_names_whole_and_leaves_out_the_times(width):
    tests = {"adamw": EVEN, "adam": UNEVEN, "momentum": [v + 0.03 for v in UNEVEN]}
    console = Console(file=io.StringIO(), width=width)
    console.print(terminal._table(made_up(tests), width))
    text = console.file.getvalue()
    assert all(f" {name} " in text for name in tests)
    assert ("seconds to" in text) == ("ms/step" in text) == (width >= 100)
    assert max(map(len, text.splitlines())) <= width


def test_a_trial_is_named_without_doubt(raced):
    chosen = raced[1]["entries"]["adamw"]["best_trial"]
    assert f"trial {chosen} (of 0\u20131)" in Page((raced[0] / "report.html").read_text()).text


def test_claims_hold_together_and_intervals_alone(raced):
    said = " ".join(caveats(raced[1]))
    assert "the claims hold at 5 % together; each interval stands alone" in said


def test_target_is_reached_at_the_first_evaluation_that_meets_it():
    summary = made_up({"adamw": EVEN, "adam": UNEVEN, "momentum": [0.95] * 6})
    assert summary["entries"]["adamw"]["steps_to_target"] == [None] * 5 + [2]
    assert summary["entries"]["momentum"]["steps_to_target"] == [2] * 6
    assert summary["entries"]["momentum"]["timing"]["seconds_to_target"] == [1.0] * 6
    assert {row[0]: row[4] for row in rows(summary)} == {
        "adamw": "> 2 (1/6)", "adam": "> 2 (1/6)", "momentum": "2 (6/6)",
    }  # fmt: skip


def test_diverged_runs_are_counted_and_said():
    summary = made_up({"adamw": EVEN, "adam": EVEN, "momentum": [0.0] * 6}, diverged="nan")
    assert any("18 of 18 fresh runs diverged" in line for line in caveats(summary))
    assert summary["entries"]["adam"]["steps_to_target"] == [None] * 6
    assert summary["entries"]["adam"]["validation"] == [0.0] * 6
    report.page(summary)  # curves without a single run to draw


class Page(HTMLParser):
    """What a browser would see: tags, text, and whatever it would load."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.loads, self.text = [], [], ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        loading = ("src", "href", "xlink:href", "data", "srcset", "action", "poster")
        self.loads += [v for k, v in attrs if k in loading and not (v or "").startswith("#")]

    def handle_data(self, data):
        self.text += data


def test_a_hostile_name_does_no_harm(raced):
    evil = "<script>alert(1)</script>$x$"
    summary = {
        **raced[1],
        "task": evil,
        "metric": evil,
        "entries": {evil: raced[1]["entries"]["momentum"], "adamw": raced[1]["entries"]["adamw"]},
    }
    page = Page(report.page({**summary, "verdict": verdict(summary)}))
    assert "script" not in page.tags
    assert page.text.count("<script>alert(1)</script>") >= 5
