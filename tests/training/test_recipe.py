"""A recipe: read once, in one place; a part is one class and one line; what a knob cannot be."""

import ast
from typing import ClassVar

import pytest
import torch

from steepest.errors import BadCall
from steepest.race import field, searching, trials
from steepest.race.protocol import FRESH, Trial
from steepest.tasks import TASKS
from steepest.training import parts
from steepest.training.listing import listing
from steepest.training.loop import train
from steepest.training.parts import Knob, Part
from steepest.training.recipe import Recipe
from tests.blocks import ROOT


class Scaled(Part):
    """Multiplies every gradient by a constant."""

    name, kind = "scaled", "scale"
    about, source = "gradients times a constant", "made up"
    needs = "nothing"
    knobs: ClassVar = {"by": Knob(0.1, 0.5, 1.0, "(0, 1]")}
    conflicts, why = ("clip",), "undoes the bound"

    def on_optimizer(self, fitting):
        def scale(*_):
            for group in fitting.optimizer.param_groups:
                for p in group["params"]:
                    p.grad.mul_(self.value(fitting.hyper, "by"))

        fitting.optimizer.register_step_pre_hook(scale)


@pytest.fixture
def scaled(monkeypatch):
    monkeypatch.setitem(parts.PARTS, Scaled.name, Scaled())  # the one line
    yield
    Recipe.read.cache_clear()


def test_a_made_up_part_is_one_class_and_one_line(scaled):
    entry = "torch.optim:SGD+noise+scaled"
    assert field.parse(entry) == (entry,)
    assert Recipe.read(entry).space["scaled.by"] == (0.1, 1.0)
    assert Recipe.read(entry).defaults["scaled.by"] == 0.5
    assert listing()[len(parts.PARTS) - 1] == {
        "name": "+scaled",
        "about": "gradients times a constant",
        "tuned": {"by": [0.1, 0.5, 1.0]},
        "needs": "nothing",
        "source": "made up",
    }
    assert searching.parse(f"{entry}.scaled.by=0.2:1", [entry])
    with pytest.raises(BadCall, match=r"refuses scaled.by=2 \(expected a number in \(0, 1\]\)"):
        searching.parse(f"{entry}.scaled.by=0.2:2", [entry])
    with pytest.raises(BadCall, match=r"\+scaled undoes the bound: expected no \+clip in the same"):
        field.parse("adam+clip+scaled")
    with pytest.raises(BadCall, match=r"expected each part once, in the order .noise.scaled"):
        field.parse("adam+scaled+noise")

    def run(name, **hyper):
        return trials.run(Trial("diabetes", FRESH, name, 0, 3, 14, hyper)).validation

    # plain descent along half the gradient is descent at half the rate
    half = run("torch.optim:SGD+scaled", lr=0.5, **{"scaled.by": 0.5})
    assert half == run("torch.optim:SGD", lr=0.25) != run("torch.optim:SGD", lr=0.5)


SPLITS = {"split", "rsplit", "partition", "rpartition"}


def test_an_entrys_name_is_split_in_one_place():
    files = [*(ROOT / "src").rglob("*.py"), *(ROOT / "bench").rglob("*.py")]
    splitting = {
        file.relative_to(ROOT).as_posix()
        for file in files
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in SPLITS
        if any(isinstance(arg, ast.Constant) and arg.value == "+" for arg in node.args)
    }
    assert splitting == {"src/steepest/training/recipe.py"}


def test_a_recipe_is_read_once_and_cannot_be_changed():
    recipe = Recipe.read("adam+warmup+cosine")
    assert recipe is Recipe.read("adam+warmup+cosine")
    assert (recipe.base, [part.name for part in recipe.parts]) == ("adam", ["warmup", "cosine"])
    with pytest.raises(AttributeError):
        recipe.base = "sgd"


@pytest.mark.parametrize(
    ("entry", "needs"),
    [
        ("adam+warmup+noise", ()),
        ("adam+batch-growth", ("samples",)),
        ("levenberg-marquardt", ("samples, residuals",)),
        ("bfgs+early-stopping", ("samples", "the race's loop, test data")),
        ("adam+dropout", ("a bundled task with the switch",)),
    ],
)
def test_a_recipe_says_what_it_needs_of_a_task(entry, needs):
    assert Recipe.read(entry).needs == needs


def test_what_a_store_needs_of_an_entry_does_not_need_its_code():
    gone = Recipe.read("gone:Class+dropout+one-sample")
    assert (gone.same_batches, gone.model_of, gone.other_cost) == (False, ("dropout",), True)
    with pytest.raises(BadCall, match="cannot be imported"):
        _ = gone.space


def test_training_needs_no_race():
    entry, hyper, ends = "momentum+cosine+dropout+noise", {"lr": 0.05}, {}
    hyper |= {"dropout.p": 0.2, "noise.eta": 0.1}

    def report(step, **metrics):
        ends[step] = metrics

    torch.manual_seed(3)  # of the dropout
    train(TASKS["diabetes"], Recipe.read(entry), hyper, 3, 20, report, test=True)
    result = trials.run(Trial("diabetes", FRESH, entry, 0, 3, 20, hyper))
    assert [*ends] == result.steps == [7, 14, 20]
    assert [m["validation"] for m in ends.values()] == result.validation
    assert ends[20]["test"] == result.test
    assert "test" not in ends[14]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("adam+curriculum.curriculum.start=0.5:1", None),
        ("adam+curriculum.curriculum.start=0.5:1.5", r"start=1.5 \(expected a number in \(0, 1\]"),
        ("adam+dropout.dropout.p=0.1:0.9", None),
        ("adam+dropout.dropout.p=0.1:1", r"dropout.p=1 \(expected a number in \[0, 1\)"),
        ("adam+noise+clip.clip.norm=1e-9:1e9", None),
        ("muon.ns_steps=2:8", r"muon refuses ns_steps=2 \(the option takes whole"),
        ("soap.precondition_frequency=1:100", "precondition_frequency=1 .the option takes whole"),
        ("torch.optim:LBFGS.max_iter=2:8", "max_iter=2 .the option takes whole"),
        ("torch.optim:SGD.momentum=0.5:0.9", None),  # its default is the int 0
        ("newton.damping=1e-3:1", None),
        ("counting:Annotated.rounds=1:4", "rounds=1 .the option takes whole"),
        ("counting:Plain.rounds=1:4", "rounds=1 .the option takes whole"),
        ("counting:Plain.momentum=0.1:0.9", None),
        ("counting:One.rounds=1:4", "rounds=1 .TypeError in the first step: 'float' object"),
        ("counting:Exact.rounds=1:4", "rounds=1.69.* .TypeError in the first step: no fraction"),
        ("counting:Pulled.momentum=0.1:0.9", None),  # cannot step without a closure
    ],
)
def test_a_range_that_would_end_a_race_is_refused_before_it(text, said, tmp_path, monkeypatch):
    (tmp_path / "counting.py").write_text(COUNTING)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    names = ("adam+curriculum", "adam+dropout", "adam+noise+clip", "muon", "soap", "newton")
    names += (text.partition(".rounds")[0].partition(".m")[0],)
    if said is None:
        assert searching.parse(text, names)
        return
    with pytest.raises(BadCall, match=said):
        searching.parse(text, names)


COUNTING = """
import torch
class Annotated(torch.optim.SGD):
    def __init__(self, params, lr=0.1, rounds: int = 1):
        super().__init__(params, lr)
        self.rounds = rounds
    def step(self, closure=None):
        for _ in range(self.rounds):
            super().step(closure)
class Plain(Annotated):
    def __init__(self, params, lr=0.1, rounds=3, momentum=0):
        super().__init__(params, lr)
class One(Annotated):
    def __init__(self, params, lr=0.1, rounds=1):
        super().__init__(params, lr, rounds)
class Exact(torch.optim.SGD):
    def __init__(self, params, lr=0.1, rounds=1.0):
        super().__init__(params, lr)
        self.rounds = rounds
    def step(self, closure=None):
        if self.rounds % 1:
            raise TypeError("no fraction")
        super().step(closure)
class Pulled(torch.optim.SGD):
    def __init__(self, params, lr=0.1, momentum=0):
        super().__init__(params, lr, momentum)
    def step(self, closure):
        closure()
        super().step()
"""
