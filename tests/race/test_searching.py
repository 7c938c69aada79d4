"""`--search` and `--baseline`: what is tuned over what, against whom."""

import json
import math
import shlex

import pytest

from steepest.errors import BadCall
from steepest.race import planning, protocol, report, searching
from steepest.race.field import DEFAULT
from steepest.race.notes import caveats
from steepest.race.protocol import Plan
from steepest.race.request import Request
from steepest.race.store import Store
from steepest.race.summary import reproduce, summarise
from steepest.training.recipe import Recipe
from tests.race.invented import DIGITS, PROVENANCE, pairs
from tests.report.page import Page

FIELD = ("adamw", "adam+noise", "torch.optim:AdamW", "newton", "adamw+cosine")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("adamw.weight_decay=1e-4:1", {"adamw": {"weight_decay": [1e-4, 1.0]}}),
        (
            "adamw.lr=1e-4:1, adamw.beta1=0.5:0.99",
            {"adamw": {"lr": [1e-4, 1.0], "beta1": [0.5, 0.99]}},
        ),
        # names with dots, and knobs with dots
        ("adam+noise.noise.eta=0.1:1", {"adam+noise": {"noise.eta": [0.1, 1.0]}}),
        ("torch.optim:AdamW.eps=1e-8:1", {"torch.optim:AdamW": {"eps": [1e-8, 1.0]}}),
        ("newton.damping=1:2", {"newton": {"damping": [1.0, 2.0]}}),
        ("adamw+cosine.lr=1e-3:1", {"adamw+cosine": {"lr": [1e-3, 1.0]}}),
        (None, {}),
    ],
)
def test_ranges_are_read_and_written(text, found):
    assert searching.parse(text, FIELD) == found
    assert searching.parse(searching.as_option(found), FIELD) == found


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("adamw.lr", "'adamw.lr': expected ENTRY.KNOB=LOW:HIGH"),
        ("", None),
        ("adamw.lr=1e-4", "expected ENTRY.KNOB=LOW:HIGH"),
        ("adamw.lr=1:1e-4", "1:1e-4 is no range; expected two numbers above 0, the lower one"),
        ("adamw.lr=0:1", "0:1 is no range"),
        ("adamw.lr=1e-4:inf", "no range"),
        ("adamw.lr=a:b", "a:b is no range"),
        (
            "lion.lr=1e-4:1",
            "lion.lr does not begin with an entry of the race; .* is one of adamw, adam",
        ),
        (
            "torch.optim:SGD.lr=1e-4:1",
            "torch.optim:SGD.lr does not begin with an entry of the race",
        ),
        ("adamw.weight_decai=1e-4:1", "no knob called 'weight_decai'; expected one of .*wei"),
        ("torch.optim:AdamW.betas=1e-4:1", "no knob called 'betas'; expected one of lr, eps"),
        ("newton.lr=1e-4:1", "newton has no knob called 'lr'; expected one of damping"),
        ("adamw.beta1=0.5:1.5", r"adamw refuses beta1=1.5 \(.*expected a number in \[0, 1\)"),
        ("adamw.lr=1e-4:1,adamw.lr=1e-3:1", "adamw.lr is given twice"),
        ("adam+noise.noise.lr=1e-4:1", "no knob called 'noise.lr'"),
    ],
)
def test_what_cannot_be_searched_is_refused_with_what_can(text, said):
    if said is None:
        assert searching.parse(text, FIELD) == {}
        return
    with pytest.raises(BadCall, match=said):
        searching.parse(text, FIELD)


def plan(search="adamw.weight_decay=1e-4:1,adam.lr=1e-3:1e-1", **more):
    field = ("adam", "adamw", "momentum")
    ranges = searching.parse(search, field)
    return Plan("digits", field, trials=9, seeds=2, steps=5, seed=3, search=ranges, **more)


def test_the_trials_lie_in_the_ranges_that_were_asked_for():
    tuned = {e: [t.hyper for t in protocol.tuning(plan()) if t.entry == e] for e in plan().entries}
    plain = {
        e: [t.hyper for t in protocol.tuning(plan(None)) if t.entry == e] for e in plan().entries
    }
    assert tuned["momentum"] == plain["momentum"]
    for i, hyper in enumerate(tuned["adamw"]):
        assert list(hyper) == ["lr", "weight_decay"]
        assert hyper["lr"] == plain["adamw"][i]["lr"]  # knob 0 has coordinate 0 as ever
        assert i % 9 == 0 or 1e-4 <= hyper["weight_decay"] <= 1
    assert tuned["adamw"][0] == {"lr": 1e-3, "weight_decay": 0.01}  # the class's own default
    places = sorted(8 * math.log10(h["weight_decay"] / 1e-4) / 4 for h in tuned["adamw"][1:9])
    assert [math.floor(at) for at in places] == list(range(8))
    for i, hyper in enumerate(tuned["adam"]):
        assert i % 9 == 0 or 1e-3 <= hyper["lr"] <= 1e-1
    assert tuned["adam"][0] == Recipe.read("adam").defaults


@pytest.mark.parametrize("entry", ["adamw", "torch.optim:AdamW", "lion", "muon", "sgd"])
def test_a_searched_knob_arrives_in_the_optimizer(entry):
    import torch

    ranges = searching.parse(f"{entry}.weight_decay=0.2:0.4", (entry,))
    one = Plan("digits", (entry,), 2, 1, 1, 0, search=ranges)
    hyper = protocol.tuning(one)[1].hyper
    made = Recipe.read(entry).optimizer([torch.nn.Parameter(torch.ones(2, 2))], hyper)
    assert made.param_groups[0].get("weight_decay") == hyper["weight_decay"]


def test_a_store_keeps_ranges_and_baseline(tmp_path):
    mine = plan(baseline="momentum")
    store = Store.create(tmp_path, mine, PROVENANCE, DIGITS)
    assert store.plan == mine
    assert store.spaces["adamw"]["weight_decay"] == (1e-4, 1.0)
    for trial in protocol.tuning(mine)[:6]:
        store.add(trial, protocol.Result([1], [0.5], [0.1]))
    assert len(store.results()) == 6


def test_the_pages_say_what_was_tuned_over_what_and_how_to_get_the_same_again():
    mine = plan(baseline="momentum")
    summary = summarise(DIGITS, mine, pairs(mine), PROVENANCE)
    assert summary["baseline"] == "momentum"
    assert summary["entries"]["momentum"]["difference"] is None
    assert (
        "Tuned: lr of adam, momentum; lr and weight_decay of adamw. Everything else stayed at its "
        "default." in caveats(summary)
    )
    text = " ".join(Page(report.page(summary)).text.split())
    assert "lr 1e-05 to 0.1, weight_decay 0.0001 to 1 (--search)" in text
    json.dumps(summary, allow_nan=False)
    words = shlex.split(reproduce(mine))
    given = {words[i][2:]: words[i + 1] for i in range(3, len(words), 2)}
    whole = {
        k: int(v) if k in ("trials", "seeds", "steps", "seed") else v for k, v in given.items()
    }
    again = planning.make_plan(Request("digits", **whole), 1, None, 0.0)
    assert (again.search, again.baseline, again.entries) == (mine.search, "momentum", mine.entries)
    assert protocol.tuning(again) == protocol.tuning(mine)
    assert "--baseline" not in reproduce(plan())
    assert "--search" not in reproduce(plan(None))


@pytest.mark.parametrize(
    ("optimizers", "baseline", "field", "base"),
    [
        ("lion,adamw", None, ("lion", "adamw"), "adamw"),
        ("lion,sgd", None, ("lion", "sgd"), "lion"),
        ("lion,adamw", "lion", ("lion", "adamw"), "lion"),
        ("lion", "adamw", ("lion", "adamw"), "adamw"),
        (None, "lion", (*DEFAULT, "lion"), "lion"),
        (None, None, DEFAULT, "adamw"),
    ],
)
def test_the_baseline_takes_part(optimizers, baseline, field, base):
    request = Request("digits", optimizers, baseline=baseline)
    request.check()
    made = planning.make_plan(request, 1, None, 0.0)
    assert (made.entries, made.baseline) == (field, base)


@pytest.mark.parametrize("baseline", ["adamx", "adamw,sgd", ""])
def test_a_baseline_is_one_entry(baseline):
    with pytest.raises(BadCall, match="expected"):
        Request("digits", "lion", baseline=baseline).check()
