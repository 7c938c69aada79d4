"""Tasks in the user's file: a function `task` or a loop of its own, and what is wrong with it."""

import csv
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import steepest
from steepest import cli, tasks
from steepest.errors import BadCall, WorkerError
from steepest.processes import Pool
from steepest.race import driver, trials
from steepest.race.protocol import FRESH, PILOT, TUNING, Trial
from steepest.race.store import Store
from steepest.tasks import user_file
from tests.blocks import ROOT
from tests.race.invented import InProcess

EXAMPLES = ROOT / "examples"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(driver, "Pool", InProcess)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    sys.modules.pop(user_file.MODULE, None)


DECLARED = """
import torch
from torch import nn
MAXIMIZE = "accuracy"
STEPS = 8
DATA = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))

def error(model, x):
    return (model(x) - x.sum(1, keepdim=True)).square().mean()

def loss(model, batch):
    return error(model, batch)

def evaluate(model, split):
    return -error(model, DATA[-32:] if split == "test" else DATA[:32]).item()

def task(seed):
    return nn.Linear(4, 1), loss, DATA.split(16), evaluate
"""
OWN = """
import torch
from torch import nn
MINIMIZE = "error"
STEPS = 8
DATA = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))

def train(make_optimizer, report, seed):
    model = nn.Linear(4, 1)
    optimizer = make_optimizer(model)
    for step in range(1, STEPS + 1):
        optimizer.zero_grad()
        loss = (model(DATA) - DATA.sum(1, keepdim=True)).square().mean()
        loss.backward()
        optimizer.step()
        if step % 2 == 0:
            report(step, validation=loss.item(), test=2 * loss.item())
"""


def changed(source, old, new):
    assert old in source
    return source.replace(old, new)


def declared(old, new):
    return changed(DECLARED, old, new)


def own(old, new):
    return changed(OWN, old, new)


RETURNED = "return nn.Linear(4, 1), loss, DATA.split(16), evaluate"
REPORTED = "report(step, validation=loss.item(), test=2 * loss.item())"

# name -> (source, words that the one line must have, whether the user's lines are shown)
BAD = {
    "a syntax error": (declared("def loss(", "def loss((("), ("SyntaxError", "line 11"), True),
    "a missing import": (declared("import torch\n", "import torhc\n"), ("torhc", "line 2"), True),
    "no function": (declared("def task(", "def tusk("), ("neither task nor train",), False),
    "two functions": (DECLARED + "\ndef train(a, b, c): pass\n", ("both task and train",), False),
    "no seed": (declared("def task(seed)", "def task()"), ("task()", "task(seed)"), False),
    "no metric": (declared('MAXIMIZE = "accuracy"', ""), ("MAXIMIZE", "MINIMIZE"), False),
    "two directions": (DECLARED + '\nMINIMIZE = "loss"\n', ("MAXIMIZE", "'loss'"), False),
    "steps of none": (declared("STEPS = 8", "STEPS = 0"), ("STEPS = 0", "1 or more"), False),
    "steps in words": (declared("STEPS = 8", "STEPS = '8'"), ("STEPS = '8'", "whole"), False),
    "three things": (declared(", evaluate\n", "\n"), ("3 things", "(model, loss, batches"), False),
    "no module": (declared("nn.Linear(4, 1),", "len,"), ("not a torch.nn.Module",), False),
    "nothing to train": (declared("nn.Linear(4, 1),", "nn.ReLU(),"), ("no parameter",), False),
    "batches no iterable": (declared("DATA.split(16)", "16"), ("int", "not an iterable"), False),
    "no batches": (declared("DATA.split(16)", "[]"), ("training batches: none",), False),
    "batches only once": (
        declared("DATA.split(16)", "iter(DATA.split(16))"), ("ended after 4", "DataLoader"), False,
    ),
    "loss no scalar": (
        declared("return error(model, batch)", "return model(batch)"),
        ("loss()", "shape (16, 1)", "a tensor of one number"), False,
    ),
    "loss a number": (
        declared("return error(model, batch)", "return 0.5"),
        ("loss()", "a float", "a tensor of one number"), False,
    ),
    "loss without gradient": (
        declared("return error(model, batch)", "return 0 * error(model, batch).detach()"),
        ("no gradient",), False,
    ),
    "metric None": (declared("return -error", "-error"), ("evaluate()", "None"), False),
    "metric a word": (declared("return -error", "return str(1) or -error"), ("'1'",), False),
    "metric of three": (
        declared("def evaluate", "def evaluate(m, s): return torch.ones(3)\ndef other"),
        ("shape (3,)", "one number"), False,
    ),
    "metric nan": (
        declared("return -error", "return 1e999 or -error"), ("not finite", "step 0"), False,
    ),
    "evaluate of three": (
        declared("(model, split)", "(model, split, x)"), ("evaluate(model, split, x)",), False,
    ),
    "raises at the beginning": (declared("nn.Linear(", "nn.Lineal("), ("Lineal",), True),
    "raises at step 5": (
        own("optimizer.zero_grad()", "assert step < 5, 'five'"), ("AssertionError: five",), True,
    ),
    "divides by zero": (own("if step % 2", "if step % 0"), ("ZeroDivisionError", "line 16"), True),
    "calls sys.exit": (own("optimizer.zero_grad()", "exit(3)"), ("sys.exit(3)", "line 12"), True),
    "exits on import": (DECLARED + "\nraise SystemExit\n", ("sys.exit", "the file itself"), True),
    "never reports": (own(REPORTED, "pass"), ("never called report",), False),
    "reports too late": (own("(step, ", "(9 * step, "), ("never called", "up to step 8"), False),
    "reports backwards": (own("(step, ", "(8 - step, "), ("report(4) after report(6)",), False),
    "reports a word": (own("(step, ", "('one', "), ("report('one')",), False),
    "no validation": (own("validation=", "accuracy="), ("accuracy=...", "validation="), False),
    "reports epochs": (
        own("if step % 2 == 0", "if step % 4 == 0").replace("report(step,", "report(step // 4,"),
        ("report(1) after step 4", "not the number of epochs"), False,
    ),
    "a share in percent": (
        declared("return -error", "return 97.0 or -error") + "\nTEST_CASES = 100\n",
        ("validation=97", "expected 0 to 1", "divide by 100"), False,
    ),
    "no share on test data": (
        own("test=2 * loss.item()", "test=-0.5").replace("validation=loss.item()", "validation=1")
        + "\nTEST_CASES = 100\n",
        ("test=-0.5", "expected 0 to 1"), False,
    ),
    "an optimizer of its own": (
        own("make_optimizer(model)", "torch.optim.Adam(model.parameters())"),
        ("never called step() of the optimizer that make_optimizer(...) returned",), False,
    ),
    "no step": (own("optimizer.step()", "pass"), ("never called step()",), False),
    "an optimizer of a dict": (
        own("make_optimizer(model)", "make_optimizer({'params': model.parameters()})"),
        ("make_optimizer(a dict)", "expected a module or parameters"), False,
    ),
    "reports None": (own("validation=loss.item()", "validation=None"), ("None", "line 17"), False),
    "reports nan": (own("validation=loss.item()", "validation=1e999"), ("not finite",), False),
    "a swallowed refusal": (
        own(REPORTED, "\n            try: report(0)\n            except Exception: pass"),
        ("report(0)", "no metric"), False,
    ),
    "hyperparameters of its own": (
        own("make_optimizer(model)", "make_optimizer(model, lr=0.1)"), ("'lr'", "line 10"), True,
    ),
    "an optimizer of nothing": (own("(model)\n    for", "(None)\n    for"), ("(None)",), False),
    "another device": (
        own("nn.Linear(4, 1)", "nn.Linear(4, 1).to('cuda:99')"), ("line 9", "train()"), True,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_gets_one_helpful_line_and_exit_code_2(name, elsewhere, capfd):
    source, words, shown = BAD[name]
    (elsewhere / "mine.py").write_text(source)
    assert cli.main(["race", "mine.py", "--out", "out", "--jobs", "1"]) == 2
    err = capfd.readouterr().err
    *trace, line = err.strip().splitlines()
    assert line.startswith("steepest: mine")
    assert all(word in line for word in words), line
    assert bool(trace) == shown, err
    if shown:
        assert "steepest/" not in trace[1]  # it begins with the user's lines
        assert "mine.py" in trace[0] + trace[1]
    assert not (elsewhere / "out").exists()


def test_a_missing_file(capfd):
    assert cli.main(["race", "nowhere/mine.py"]) == 2
    assert "cannot read the task file 'nowhere/mine.py'" in capfd.readouterr().err


def test_an_error_in_a_worker_is_the_users(elsewhere):
    (elsewhere / "mine.py").write_text(BAD["raises at step 5"][0])
    done = subprocess.run(
        [sys.executable, "-m", "steepest", "race", "mine.py", "--jobs", "1"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2
    assert "assert step < 5, 'five'" in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("steepest: mine.py, line 12, train()")


def trial(name, phase=FRESH, entry="momentum", steps=8, lr=0.05, data=None):
    return Trial(str(name), phase, entry, 0, 7, steps, {"lr": lr}, data)


@pytest.fixture
def mine(elsewhere):
    """Writes a task file and runs one trial of it."""

    def run(source, **changes):
        (elsewhere / "mine.py").write_text(source)
        return trials.run(trial("mine.py", **changes))

    return run


def test_both_forms_are_the_loop_that_anybody_would_write(mine):
    whole = own(REPORTED, "report(step, validation=loss.item())")
    same = declared("DATA.split(16)", "[DATA]").replace('MAXIMIZE = "accuracy"', 'MINIMIZE = "e"')
    one = mine(whole)
    torch.manual_seed(7)
    model = nn.Linear(4, 1)
    data = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(9):
        optimizer.zero_grad()
        loss = (model(data) - data.sum(1, keepdim=True)).square().mean()
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
    assert one.steps == [2, 4, 6, 8]
    assert one.validation == pytest.approx([losses[i] for i in (1, 3, 5, 7)], rel=1e-5)
    assert one.parameters == 5
    assert (one.tested, one.test) == (False, one.validation[-1])
    judged = 'return -error(model, DATA[-32:] if split == "test" else DATA[:32])'
    other = mine(changed(same, judged, "return error(model, DATA)") + "\nEVERY = 2\n")
    assert other.initial == one.initial
    # evaluated after the step, where the loop of its own reports the loss before it
    assert other.validation[:3] == pytest.approx([losses[i] for i in (2, 4, 6)], rel=1e-5)


def test_the_seed_decides_everything_that_a_naive_file_draws(mine):
    naive = "import random\nimport numpy as np\n" + own(
        "loss.backward()", "(loss * (random.random() + np.random.rand())).backward()"
    )
    one, other = mine(naive), mine(naive)
    assert one.validation == other.validation
    assert one.initial == other.initial
    module = user_file._loaded[next(reversed(user_file._loaded))][1]
    assert module.train


def test_a_run_shorter_than_the_file_says_is_evaluated_as_often(mine):
    long = declared("STEPS = 8", "STEPS = 600\nEVERY = 25")
    assert len(mine(long, steps=100).steps) == 10
    assert mine(long, steps=6).steps == [1, 2, 3, 4, 5, 6]
    assert mine(long, steps=600).steps == list(range(25, 601, 25))
    twice = declared("STEPS = 8", "STEPS = 600\nEVERY = 300")  # no more often than the file itself
    assert mine(twice, steps=100).steps == [50, 100]
    assert mine(declared("STEPS = 8", "STEPS = 600\nEVERY = 900"), steps=100).steps == [100]


def test_steps_are_written_into_the_file_and_end_any_loop(mine):
    assert mine(OWN, steps=6).steps == [2, 4, 6]
    endless = own("range(1, STEPS + 1)", "range(1, 1000)")
    assert mine(endless, steps=6).steps == [2, 4, 6]
    stubborn = changed(endless, REPORTED, f"\n            try: {REPORTED}\n"
                       "            except Exception: pass")  # fmt: skip
    assert mine(stubborn, steps=6).steps == [2, 4, 6]


def test_tuning_keeps_no_test_metric(mine):
    assert mine(OWN, phase=TUNING).test is None
    fresh = mine(OWN)
    assert fresh.tested
    assert fresh.test == 2 * fresh.validation[-1]


def test_a_step_may_be_named(mine):
    assert mine(own("report(step, ", "report(step=step, ")).steps == [2, 4, 6, 8]


def test_a_share_may_be_off_by_rounding(mine):
    said = own(REPORTED, "report(step, validation=1 + 2e-16, test=-1e-9)") + "\nTEST_CASES = 9\n"
    result = mine(said)
    assert (result.validation, result.test) == ([1.0] * 4, 0.0)


def test_no_run_is_worse_than_one_that_diverged(elsewhere):
    rules = "\nimport steepest\n@steepest.rule\ndef {}(p, g, *, lr={}): return p - lr * g,\n"
    source = OWN + rules.format("wild", 3.0) + rules.format("dead", 1e30)
    (elsewhere / "mine.py").write_text(source)
    asked = request(optimizers="wild,dead,adamw", seeds=7)  # 5 allow no exact claim
    summary, _ = driver.race(asked, elsewhere / "out", jobs=1)
    found = summary["entries"]
    assert found["dead"]["diverged"]["fresh"] == 7 > found["wild"]["diverged"]["fresh"]
    worst = summary["worst"]
    assert worst == max(found["wild"]["test"]) > 1e6
    for name in ("validation", "test", "best_validation"):
        assert found["dead"][name] == [worst] * 7
    assert found["dead"]["difference"]["mean"] > 0  # a loss
    assert "dead" not in summary["verdict"].partition("worse than adamw")[0]
    rows = csv.DictReader((elsewhere / "out" / "runs.csv").read_text().splitlines())
    for row in rows:
        if row["entry"] == "dead":
            assert row["test"] == (str(worst) if row["phase"] == "fresh" else "")
            assert row["final_validation"] == str(worst)


def test_a_bundled_task_counts_a_diverged_run_as_its_worst_run(elsewhere):
    asked = driver.Request("diabetes", "adamw", 1, 5, 5)
    summary, _ = driver.race(asked, elsewhere / "out", jobs=1)
    assert summary["worst"] >= max(v for e in summary["entries"].values() for v in e["test"])


def test_a_task_that_ends_its_process_is_named(elsewhere):
    (elsewhere / "mine.py").write_text(own("optimizer.step()", "import os; os._exit(3)"))
    with Pool(1, trials.run) as pool, pytest.raises(WorkerError, match="ends its process") as said:
        list(pool.map([trial("mine.py")]))
    assert "fresh run 0 of momentum on mine.py, seed 7" in str(said.value)


def test_other_metrics_are_kept(mine):
    result = mine(own("test=2", "modes=step, test=2"))
    assert result.measures == {"modes": 8.0}


def test_a_run_that_diverges_is_a_result(mine):
    assert "not finite at step" in mine(OWN, lr=1e30).diverged
    rare = DECLARED + "\nEVERY = 8\n"
    assert "training loss is" in mine(rare, lr=1e30).diverged
    overflow = own("loss.backward()", "loss.backward(); 2.0 ** loss.item()")
    assert mine(overflow, lr=10.0).diverged
    # what a task raises on weights that are not finite is no mistake of the task
    raising = own("loss.backward()", "assert loss < 1e300, 'too large'; loss.backward()")
    assert mine(raising, lr=1e30).diverged
    hidden = own(REPORTED, "report(step, validation=0.1)")
    assert "a parameter is not finite" in mine(hidden, lr=1e30).diverged


def test_a_pilot_run_says_how_bad_untrained_is(mine):
    result = mine(DECLARED, phase=PILOT)
    assert result.steps[0] == 0
    task = tasks.get("mine.py")
    setup = task.build(7)
    assert result.validation[0] == setup.evaluate(setup.model, "validation")


def test_evaluation_is_no_training_time(mine):
    slow = "import time\n" + own(REPORTED, "time.sleep(0.2); " + REPORTED)
    assert mine(slow).seconds[-1] < 0.6  # of which 0.8 s are asleep
    slow = "time.sleep(0.05) or loss"
    result = mine("import time\n" + own("optimizer.step()", f"optimizer.step(lambda: {slow})"))
    assert result.step_seconds < 0.05 < result.train_seconds


def test_prints_are_shown_in_the_pilot_run_alone(mine, capfd):
    loud = own("optimizer.zero_grad()", "optimizer.zero_grad(); print('loud')")
    mine(loud)
    assert "loud" not in capfd.readouterr().out
    mine(loud, phase=PILOT)
    assert "loud" in capfd.readouterr().out


def request(**changes):
    return replace(driver.Request("mine.py", "adamw,momentum,eadam", 1, 5, 8), **changes)


def test_a_race_without_test_data_says_so(elsewhere):
    (elsewhere / "mine.py").write_text(own(REPORTED, "report(step, validation=loss.item())"))
    summary, _ = driver.race(request(), elsewhere / "out", jobs=1)
    assert not summary["test_data"]
    for entry in summary["entries"].values():
        assert entry["test"] == entry["validation"]
    # no target was said: it is what most fresh runs reach, whoever made them
    every = [v for entry in summary["entries"].values() for v in entry["validation"]]
    assert summary["target"] == np.quantile(every, 0.75, method="higher")
    reached = [at for e in summary["entries"].values() for at in e["steps_to_target"]]
    assert sum(at is not None for at in reached) >= 0.75 * len(every)
    store = Store(elsewhere / "out")
    fresh = [r for t, r in store.results() if t.phase == "fresh"]
    assert summary["worst"] == max(store.task.worst, *(r.validation[-1] for r in fresh)) > 0
    assert summary["provenance"]["backends"]["adamw"] == ["cpu"]
    assert driver.race(request(), elsewhere / "two", jobs=1)[0]["worst"] == summary["worst"]


def test_a_report_needs_no_task_file(elsewhere):
    rule = "\nimport steepest\n@steepest.rule\ndef gone(p, g, *, lr=0.1): return p - lr * g,\n"
    (elsewhere / "mine.py").write_text(OWN + rule)
    asked = request(optimizers="gone", trials=2)
    summary, _ = driver.race(asked, elsewhere / "out", jobs=1)
    (elsewhere / "mine.py").unlink()
    del steepest.rules["gone"]
    assert driver.rebuild(elsewhere / "out") == summary


def test_resume_wants_the_same_source_wherever_it_lies(elsewhere):
    (elsewhere / "mine.py").write_text(OWN)
    driver.race(request(), elsewhere / "out", jobs=1)
    (elsewhere / "moved").mkdir()
    moved = shutil.copy(elsewhere / "mine.py", elsewhere / "moved" / "mine.py")
    same = request(task=str(moved), steps=None)
    assert driver.race(same, elsewhere / "out", jobs=1, resume=True)[0]["complete"]
    (elsewhere / "mine.py").write_text(OWN + "\n")
    with pytest.raises(BadCall, match="began with task_sha256"):
        driver.race(request(), elsewhere / "out", jobs=1, resume=True)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (own("nn.Linear(4, 1)", "nn.Linear(4, 1); torch.seed(); nn.init.normal_(model.weight)"),
         "the initial weights of momentum"),
        (own("    model", "    global DATA; DATA = DATA[:-1]; model")
         .replace("step % 2", "step % (2 if len(DATA) % 2 else 4)"), "the steps of the reports"),
        (own("    model", "    global DATA; DATA = DATA[:-1]; model")
         .replace("test=2", "**{} if len(DATA) < 40 else dict(test=2) or 2")
         .replace("or 2 * loss.item()", ""), "presence of test"),
    ],
    ids=["weights", "steps", "test"],
)  # fmt: skip
def test_what_would_undo_the_pairing_is_refused(source, said, elsewhere):
    (elsewhere / "mine.py").write_text(source)
    with pytest.raises(BadCall, match=said):
        driver.race(request(), elsewhere / "out", jobs=1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["race_declarative.py", "race_own_loop.py"])
def test_an_example_is_raced(name, elsewhere):
    source = (EXAMPLES / name).read_text()
    lines = [x for x in source.splitlines() if x.strip()]
    assert len(lines) <= 31
    file = shutil.copy(EXAMPLES / name, elsewhere)
    more = ",signs+cosine" if "signs" in source else ",torch.optim:SGD"
    asked = driver.Request(file, f"adamw,momentum{more}", trials=3, seeds=5)
    summary, _ = driver.race(asked, elsewhere / "out", jobs=1)
    assert summary["task"] == Path(name).stem
    assert summary["metric"] == "accuracy"
    assert summary["test_data"]
    assert np.mean(summary["entries"]["momentum"]["test"]) > 0.85
    assert [path.name for path in elsewhere.glob("*.py")] == [name]


def test_a_dataloader_with_workers_of_its_own(elsewhere):
    source = declared("DATA.split(16)", "torch.utils.data.DataLoader(DATA, 16, num_workers=1)")
    (elsewhere / "mine.py").write_text(source)
    with Pool(1, trials.run) as pool:  # a daemon may have no children
        ((_, result),) = pool.map([trial("mine.py", steps=2)])
    assert result.steps == [1, 2]


def test_a_plan_runs_nothing_but_pilots(elsewhere, capfd):
    (elsewhere / "mine.py").write_text(OWN)
    assert cli.main(["race", "mine.py", "--plan", "--jobs", "2"]) == 0
    out = capfd.readouterr().out
    assert "9 entries, looks after 5, 8 and 12 units" in out
    assert "difference" in out
    assert [path.name for path in elsewhere.iterdir()] == ["mine.py"]


def test_a_rule_of_the_file_may_enter(elsewhere):
    rule = "\nimport steepest\n@steepest.rule\ndef mine_own(p, g, *, lr=0.1): return p - lr * g,\n"
    (elsewhere / "mine.py").write_text(OWN + rule)
    asked = request(optimizers="mine_own,mine_own+cosine")
    summary, _ = driver.race(asked, elsewhere / "out", jobs=1)
    assert list(summary["entries"])[:2] == ["mine_own", "mine_own+cosine"]
    assert "mine_own" in steepest.rules
    assert summary["entries"]["mine_own"]["tuning"][0]["hyperparameters"] == {"lr": 0.1}
