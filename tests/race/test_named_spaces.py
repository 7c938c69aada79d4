"""`--spaces`: races over a named search space, and what is refused and said of them."""

import json
import math
import shlex

import pytest

from steepest.errors import BadCall
from steepest.race import driver, planning, protocol, report, searching
from steepest.race.lint import lint
from steepest.race.notes import caveats
from steepest.race.protocol import Plan, Result
from steepest.race.request import Request
from steepest.race.store import Store
from steepest.race.summary import reproduce, summarise
from tests.race.invented import DIGITS, PROVENANCE, pairs
from tests.report.page import Page

FIELD = ("adamw", "momentum+cosine", "lamb")


def plan(spaces="algoperf", search=None, entries=FIELD, **more):
    ranges = searching.parse(search, entries)
    given = {"trials": 9, "seeds": 2, "steps": 5, "seed": 3} | more
    return Plan("digits", entries, search=ranges, spaces=spaces, **given)


def tuned(made, entry):
    return [trial.hyper for trial in protocol.tuning(made) if trial.entry == entry]


def test_trials_begin_with_the_defaults_and_fill_the_published_ranges():
    first, *drawn = tuned(plan(), "adamw")[:9]
    assert first == {"lr": 1e-3, "1-beta1": 1 - 0.9, "weight_decay": 0.01}
    # a Sobol sequence: 8 points have one in each eighth of a range, here by the logarithm
    for knob, (low, high) in plan().space("adamw").items():
        places = sorted(8 * math.log(h[knob] / low) / math.log(high / low) for h in drawn)
        assert [math.floor(at) for at in places] == list(range(8)), knob
    assert {frozenset(h) for h in tuned(plan(), "momentum+cosine")} == {
        frozenset({"lr", "1-momentum", "weight_decay"})
    }


def test_lr_only_leaves_everything_else_at_its_default():
    field = ("adam+noise", "adabound", "adamw")
    alone = plan("lr-only", entries=field)
    whole = plan(None, entries=field)
    for entry in field:
        assert len(whole.space(entry)) == 1 + (entry != "adamw")
        for here, there in zip(tuned(alone, entry), tuned(whole, entry), strict=True):
            assert here == {"lr": there["lr"]}


def test_ranges_of_search_take_precedence():
    made = plan(search="adamw.lr=1e-3:1e-1,adamw.beta2=0.9:0.99,momentum+cosine.momentum=0.5:0.9")
    assert made.space("adamw") == {
        "lr": (1e-3, 1e-1), "1-beta1": (2e-2, 0.5), "weight_decay": (5e-3, 1.0),
        "beta2": (0.9, 0.99),
    }  # fmt: skip
    assert made.space("momentum+cosine") == {
        "lr": (2e-2, 5.0), "weight_decay": (1e-7, 5e-5), "momentum": (0.5, 0.9),
    }  # fmt: skip
    assert made.defaults("momentum+cosine")["momentum"] == 0.9
    assert made.space("lamb") == plan().space("lamb")


@pytest.mark.parametrize(
    ("spaces", "optimizers", "search", "said"),
    [
        (
            "algoperf",
            "adamw,lion",
            None,
            "--spaces algoperf has no space for lion: .*leave lion ou",
        ),
        ("algoperf", "adamw,torch.optim:AdamW", None, "no space for torch.optim:AdamW"),
        ("lr-only", "adamw,genetic", None, "--spaces lr-only has no space for genetic: "),
        ("algoprf", "adamw", None, "algoprf: expected one of lr-only, algoperf; did you mean algo"),
        ("", "adamw", None, "--spaces : expected one of"),
        ("Größe", "adamw", None, "--spaces Größe: expected one of lr-only, algoperf$"),
        ("algoperf", "adamw,lion", "lion.lr=1e-5:1e-3", None),
        ("lr-only", "adamw,genetic", "genetic.sigma=1e-3:1", None),
        ("lr-only", "adam+noise,lion,momentum+cosine,torch.optim:SGD", None, None),
        ("algoperf", "adamw+warmup+cosine,nesterov,lamb,momentum", None, None),
    ],
)
def test_an_entry_without_a_space_is_refused(spaces, optimizers, search, said):
    request = Request("digits", optimizers, search=search, spaces=spaces)
    if said is None:
        request.check()
        planning.make_plan(request, 1, None, 0.0)
        return
    with pytest.raises(BadCall, match=said):
        request.check()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("adamw.1-beta1=0.01:0.5", None),
        ("adamw.1-beta1=0.01:2", "refuses 1-beta1=2"),
        ("adamw.1-beta9=0.01:0.5", "no knob called '1-beta9'"),
        ("adamw.1-beta1=0.01:0.5,adamw.beta1=0.5:0.9", "adamw.beta1 is given twice"),
        ("momentum+clip.1-clip.norm=0.1:0.5", "no knob called '1-clip.norm'"),
    ],
)
def test_search_takes_one_minus_an_option(text, said):
    field = ("adamw", "momentum+clip")
    if said is None:
        assert searching.parse(text, field) == {"adamw": {"1-beta1": [0.01, 0.5]}}
        return
    with pytest.raises(BadCall, match=said):
        searching.parse(text, field)


def test_a_store_keeps_the_space_and_reads_those_that_have_none(tmp_path):
    store = Store.create(tmp_path, plan(), PROVENANCE, DIGITS)
    assert store.plan == plan()
    assert store.spaces["adamw"]["1-beta1"] == (2e-2, 0.5)
    for trial in protocol.tuning(plan())[:6]:  # a default of 0 lies outside its range
        store.add(trial, Result([1], [0.5], [0.1]))
    assert len(store.results()) == 6
    before = {k: v for k, v in plan().record().items() if k not in ("spaces", "device")}
    assert Plan(**{**before, "entries": FIELD}).spaces is None


def test_the_pages_name_the_space_and_the_command_gives_the_same_again():
    made = plan(search="adamw.beta2=0.9:0.99")
    summary = summarise(DIGITS, made, pairs(made), PROVENANCE)
    assert summary["plan"]["spaces"] == "algoperf"
    note = next(line for line in caveats(summary) if line.startswith("Tuned:"))
    assert "lr and 1-beta1 and weight_decay and beta2 of adamw" in note
    assert note.endswith(
        "Everything else stayed at its default. The search space is algoperf: the ranges of the "
        "baselines of AlgoPerf (Dahl et al. 2023, arXiv:2306.07179); --search gave other ranges."
    )
    text = " ".join(Page(report.page(summary)).text.split())
    assert "1-beta1 0.02 to 0.5, weight_decay 0.005 to 1, beta2 0.9 to 0.99 (--search)" in text
    assert "the others are those of the search space algoperf." in text
    json.dumps(summary, allow_nan=False)
    words = shlex.split(reproduce(made))
    given = {words[i][2:]: words[i + 1] for i in range(3, len(words), 2)}
    whole = {
        k: int(v) if k in ("trials", "seeds", "steps", "seed") else v for k, v in given.items()
    }
    again = planning.make_plan(Request("digits", **whole), 1, None, 0.0)
    assert protocol.tuning(again) == protocol.tuning(made)
    plain = plan(None)
    assert "--spaces" not in reproduce(plain)
    declared = summarise(DIGITS, plain, pairs(plain), PROVENANCE)
    assert "search space is" not in " ".join(caveats(declared))
    assert "the others are declared with the optimizer" in report.page(declared)
    alone = summarise(DIGITS, plan("lr-only"), pairs(plan("lr-only")), PROVENANCE)
    assert "lr-only: the learning rate alone, over the range that the entry declares." in " ".join(
        caveats(alone)
    )


@pytest.mark.parametrize(("began", "other"), [("algoperf", "lr-only"), (None, "algoperf")])
def test_resume_with_another_space_is_refused(began, other, tmp_path, monkeypatch):
    asked = Request("digits", "adamw,momentum", trials=2, seeds=5, steps=20, spaces=began)
    made = planning.make_plan(asked, 1, None, 0.0)
    Store.create(tmp_path, made, driver.provenance(asked))
    monkeypatch.setattr(driver, "_run", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    again = Request("digits", spaces=other)
    how = f"with {began}" if began else "without --spaces"
    with pytest.raises(BadCall, match=f"--resume with --spaces {other}: .* started {how};"):
        driver.race(again, tmp_path, jobs=1, resume=True)
    assert driver.race(Request("digits"), tmp_path, jobs=1, resume=True)[1]


def test_a_race_over_a_named_space_runs(tmp_path):
    asked = Request("diabetes", "adamw,momentum+cosine", trials=3, seeds=1, steps=5)
    asked = Request(**{**asked.__dict__, "spaces": "algoperf"})
    summary, _ = driver.race(asked, tmp_path, jobs=1)
    for name in ("adamw", "momentum+cosine"):
        low, high = summary["entries"][name]["space"]["lr"]
        values = [t["hyperparameters"]["lr"] for t in summary["entries"][name]["tuning"]]
        assert len(set(values)) == 3
        assert all(low <= value <= high for value in values[1:])
    assert " --spaces algoperf " in summary["reproduce"]


def test_findings_know_which_option_a_knob_sets():
    """The highest 1-beta1 was best each time: a wider range ends at 1, where beta1 is 0."""
    made = plan(entries=("adamw", "momentum"), trials=5, seeds=12)
    summary = summarise(DIGITS, made, pairs(made), PROVENANCE)
    entry = summary["entries"]["adamw"]
    for i in range(12):
        for k, trial in enumerate(entry["tuning"][5 * i : 5 * i + 5]):
            trial["hyperparameters"] = {**trial["hyperparameters"], "1-beta1": 0.1 + 0.05 * k}
            trial["validation"] = 0.5 + 0.01 * k
        entry["chosen"][i] = 5 * i + 4
    texts = [f["text"] for f in lint(summary) if f["name"] == "border"]
    assert any("give --search adamw.1-beta1=0.02:1 (the range was 0.02 to 0.5)" in t for t in texts)
