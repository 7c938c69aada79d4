"""What to do after a race: the code to paste, and a next command that is taken as it stands."""

import shlex
from dataclasses import replace

import pytest
import torch

from steepest import cli
from steepest.errors import BadCall
from steepest.race import driver, report, terminal
from steepest.race.protocol import FRESH, TUNING, Plan
from steepest.race.summary import summarise
from tests.race.invented import DIGITS, PROVENANCE, pairs, race
from tests.race.test_rounds import raced
from tests.race.test_summary import made_up

NAMES = ("adamw", "momentum", "adam")
EVEN = [0.90, 0.91, 0.92, 0.93, 0.94, 0.96]
UNEVEN = [0.96, 0.90, 0.93, 0.91, 0.92, 0.94]
SIX = Plan("digits", ("adamw", "adam"), trials=5, seeds=6, steps=2, seed=0)
ALL_LOST = [(FRESH, name, i) for name in NAMES for i in range(6)]


def unfinished():
    plan = Plan("digits", NAMES, 6, 6, 400, 0)
    return summarise(DIGITS, plan, pairs(plan)[:20], PROVENANCE)


# name -> (the race, the entries to use, the purpose of the next command, its words)
CASES = {
    "a better one": (lambda: race(("adam", "adamw")), ["adam"], None, ""),
    "all are worse": (lambda: race(("adamw", "adam")), ["adamw"], None, ""),
    "two are better": (
        lambda: raced({"adam": 0.02, "momentum": 0.05, "eadam": -0.05}),
        ["momentum", "adam"],
        None,
        "",
    ),
    "undecided": (
        lambda: made_up({"adamw": EVEN, "adam": UNEVEN}, SIX),
        ["adamw"],
        "decide what is still open",
        "--optimizers adamw,adam --trials 5 --seeds 24 --steps 2 --seed 1",
    ),
    "undecided in looks": (
        lambda: raced({"eadam": -0.05}, margin=1e-6),
        ["adamw"],
        "decide what is still open",
        "--looks 20,32,48",
    ),
    "unfinished": (unfinished, [], "finish this race", "digits --out DIR --resume"),
    "alone": (
        lambda: race(("adam",)), ["adam"], "compare adam with another optimizer",
        "--optimizers adam,adamw",
    ),
    "few seeds": (lambda: race(NAMES, seeds=3), [], "get a verdict", "--trials 6 --seeds 5"),
    "little tuning": (
        lambda: race(NAMES, trials=2), [], "tune enough for a verdict", "--trials 5 --seeds 6",
    ),
    "a baseline that diverges": (
        lambda: race(NAMES, lost=[(FRESH, "adamw", 0), (FRESH, "adamw", 1)]),
        [],
        "see how adamw does at lower learning rates, where it may not diverge",
        "--search adamw.lr=1e-06:0.01 --trials 6",
    ),
    "all diverged": (
        lambda: race(NAMES, lost=ALL_LOST), [], "try lower learning rates",
        "adamw.lr=1e-06:0.01,momentum.lr=0.0001:0.1,adam.lr=1e-06:0.01",
    ),
    "all at chance": (
        lambda: made_up({"adamw": [0.0] * 6, "adam": [0.0] * 6}, SIX), [], "train for longer",
        "--steps 8",
    ),
}  # fmt: skip


@pytest.fixture
def taken(monkeypatch, tmp_path):
    """Requests that the command line has checked, instead of racing."""
    monkeypatch.chdir(tmp_path)
    requests = []

    def stop(request, *_, resume=False, **__):
        request.check(resume=resume)
        requests.append(request)
        raise BadCall("far enough")

    monkeypatch.setattr(driver, "race", stop)
    monkeypatch.setattr("steepest.processes.Pool.hire", lambda _: None)
    return requests


@pytest.mark.parametrize("case", CASES)
def test_every_end_of_a_race_has_its_advice(case, taken, capsys):
    make, use, purpose, words = CASES[case]
    summary = make()
    assert summary["use"] == use
    assert summary.get("next_purpose") == purpose
    assert ("next" in summary) == (purpose is not None)
    assert words in summary.get("next", "")
    for name in use:
        assert summary["entries"][name]["code"].startswith(f"# {name}: ")
    terminal.show(summary)
    shown = capsys.readouterr().out
    html = report.page(summary)
    if use:
        assert f"\n{summary['entries'][use[0]]['code']}" in shown
        assert "<pre" in html
    else:
        assert "import steepest" not in shown
    if purpose:
        # after an interruption, the command line itself says how to go on: it knows the folder
        assert (f"To {purpose}: {summary['next']}\n" in shown) is summary["complete"]
        assert f"<p>To {purpose}: <code>" in html
        cli.main(shlex.split(summary["next"])[1:])
        assert "far enough" in capsys.readouterr().err
        assert len(taken) == 1


def test_a_next_race_never_repeats_the_seeds_that_were_seen():
    for case, (make, *_) in CASES.items():
        if case != "unfinished" and "next" in (summary := make()):
            assert f"--seed {summary['plan']['seed'] + 1}" in summary["next"]


def test_a_range_of_an_entry_that_is_left_out_is_left_out_too():
    worse = {"adamw": EVEN, "adam": UNEVEN, "momentum": [v / 2 for v in EVEN]}
    plan = replace(SIX, entries=NAMES, search={"momentum": {"lr": [1.0, 2.0]}})
    summary = made_up(worse, plan)
    assert "momentum" in summary["reproduce"]
    assert "momentum" not in summary["next"]


def test_the_code_has_the_best_of_the_chosen_trials_and_says_so():
    summary = race(("adam", "adamw"))
    entry = summary["entries"]["adam"]
    assert len(entry["chosen"]) == 6
    first, *lines = entry["code"].splitlines()
    assert first == ("# adam: best of n=6 tunings by validation accuracy; for runs of 400 steps")
    model = torch.nn.Linear(2, 1)
    names = {"model": model}
    exec("\n".join(lines), names)
    best = max((entry["tuning"][i] for i in entry["chosen"]), key=lambda trial: trial["validation"])
    rate = names["optimizer"].param_groups[0]["lr"]
    assert rate == pytest.approx(best["hyperparameters"]["lr"], rel=0.005)


def test_what_was_not_tuned_is_not_called_tuned():
    assert race(("adam",), trials=1)["entries"]["adam"]["code"].startswith(
        "# adam: its defaults, nothing was tuned; for runs of 400 steps\n"
    )
    one = race(("adam",), seeds=1)["entries"]["adam"]["code"]
    assert one.startswith("# adam: best trial of its tuning (n=1) by validation accuracy; ")


def test_a_metric_of_several_lines_is_one_comment():
    summary = race(("adam",), replace(DIGITS, metric="a\nimport os\rb"))
    first, second, *_ = summary["entries"]["adam"]["code"].splitlines()
    assert "a import os b; for runs" in first
    assert second == "import steepest"


def test_there_is_no_code_before_tuning_is_done():
    plan = Plan("digits", NAMES, 6, 6, 400, 0)
    started = summarise(
        DIGITS, plan, [p for p in pairs(plan) if p[0].phase == TUNING][:3], PROVENANCE
    )
    assert all(entry["code"] is None for entry in started["entries"].values())
    assert "as code" not in report.page(started)


def test_a_summary_of_before_is_shown_without_code(capsys):
    old = race(("adam", "adamw"))
    del old["use"]
    for entry in old["entries"].values():
        del entry["code"]
    terminal.show({**old, "next": "steepest race x"})
    assert "To decide what is still open: steepest race x" in capsys.readouterr().out
    assert "as code" not in report.page(old)
