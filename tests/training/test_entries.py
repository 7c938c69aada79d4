"""Who may enter: names, classes of others, schedules; against torch's own optimizers."""

import sys

import pytest
import torch
from torch import nn

import steepest
from steepest.errors import BadCall
from steepest.race import field, trials
from steepest.race.protocol import FRESH, Trial
from steepest.race.request import Request
from steepest.training.full_batch import METHODS
from steepest.training.parts import PARTS
from steepest.training.recipe import Recipe, backends


def test_nobody_is_added_to_the_entries_that_are_named():
    assert field.parse("adam") == ("adam",)
    assert field.parse("eadam, adamw+cosine") == ("eadam", "adamw+cosine")
    assert {"adamw", "momentum", "eadam"} <= set(field.parse(None))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("adamx+cosine", "'adamx'.*did you mean 'adam"),
        ("adam+cosin", "entry 'adam.cosin': .cosin is unknown; did you mean .cosine"),
        ("adam+zzz", ".zzz is unknown; expected one of warmup, cosine, step, "),
        ("adam+cosine+warmup", "expected each part once, in the order .warmup.cosine"),
        ("adam+noise+noise", "expected each part once, in the order .noise$"),
        ("adam+", ". is unknown; expected one of warmup"),
        ("adam+cosine+sgdr", ".cosine and .sgdr exclude each other: keep one of them"),
        ("adam+full-batch+one-sample", ".full-batch and .one-sample exclude each other"),
        ("adam+warmup+noam", ".noam has a warm-up: expected no .warmup in the same"),
        ("adam+warmup+one-cycle", ".one-cycle has a warm-up: expected no .warmup"),
        ("adam+warmup+batch-growth", ".batch-growth is a schedule: expected no .warmup"),
        ("adam+step+batch-growth", ".batch-growth is a schedule: expected no .step"),
        ("adam+cosine+restarts", ".restarts sets the learning rate: expected no .cosine"),
        ("adam+batch-growth+restarts", ".restarts sets .* expected no .batch-growth"),
        ("adam+batchnorm+one-sample", ".batchnorm needs several .* no .one-sample"),
        ("adam+batchnorm+adaptive-batch", ".batchnorm needs several .* no .adaptive-batch"),
        ("adam+full-batch+curriculum", ".curriculum draws batches .* no .full-batch"),
        ("bfgs+cosine", "bfgs takes no .cosine: expected bfgs alone, or with .early-stopping"),
        ("genetic+restarts", "genetic takes no .restarts"),
        ("newton+dropout", "newton takes no .dropout"),
        ("newtn", "unknown optimizer 'newtn'.*did you mean 'newton'"),
        ("torch.optim:Adaam", r"cannot be imported \(AttributeError.*expected module:Class"),
        ("nowhere.at.all:Adam", r"cannot be imported \(ModuleNotFoundError"),
        ("torch.nn:Linear", "is not a subclass of torch.optim.Optimizer"),
        ("torch.optim:lr_scheduler", "is not a subclass of torch.optim.Optimizer"),
        (":Adam", "cannot be imported"),
        ("torch.optim:", "cannot be imported"),
        ("torch.optim.AdamW", "'torch.optim.AdamW': .*did you mean 'torch.optim:AdamW'"),
        ("my.own.Class+cosine", "did you mean 'my.own:Class'"),
        ("adamw.cosine", "did you mean 'adamw[+]cosine'"),
        ("newton.early-stopping", "did you mean 'newton[+]early-stopping'"),
        ("numpy.random", "unknown optimizer 'numpy.random'.*; known: "),
        ("AdamWScheduleFree", "did you mean 'schedule_free_adamw'"),
        ("sam", "sam is a part of an entry: did you mean 'adamw[+]sam'"),
        ("Lookahead", "lookahead is a part of an entry: did you mean 'adamw[+]lookahead'"),
        ("steepest.SAM", "did you mean 'adamw[+]sam'"),
        ("steepest:ASAM", "cannot be imported"),
        ("steepest:SAM", "SAM needs optimizer, but a race gives .* 'adamw[+]sam'"),
        ("pytorch_optimizer:SAM", "SAM needs base_optimizer, but .* 'adamw[+]sam'"),
        ("pytorch_optimizer:LOMO", "LOMO needs model, but .*; derive a subclass"),
        ("stranger:Many", "Many needs loss, steps, but a race gives it only parameters"),
        ("cosine", "cosine is a part of an entry: did you mean 'adamw[+]cosine'"),
        ("sophia", "did you mean 'pytorch_optimizer:SophiaH'"),
        ("AdaHessian", "did you mean 'pytorch_optimizer:AdaHessian'"),
        ("zzzz", "known: sgd, momentum"),
        ("adam,adam", "more than once"),
        ("adam+cosine,adam+cosine", "more than once"),
        ("stranger:NoDefault", "its default lr is none"),
        ("stranger:Zero", "its default lr is 0.0"),
    ],
)
def test_a_bad_entry_gets_one_helpful_line(text, said, strangers):
    with pytest.raises(BadCall, match=said):
        field.parse(text)


@pytest.fixture
def strangers(tmp_path, monkeypatch):
    """A module of the caller's own, in the folder where the command was called."""
    (tmp_path / "stranger.py").write_text(
        "from torch.optim import SGD, Optimizer\n"
        "class NoDefault(SGD):\n    def __init__(self, params, lr): super().__init__(params, lr)\n"
        "class Zero(SGD):\n    def __init__(self, params, lr=0.0): super().__init__(params, lr)\n"
        "class Many(SGD):\n    def __init__(self, params, loss, steps, lr=0.1, *a, **k): ...\n"
        "class Rateless(Optimizer):\n    def __init__(self, params): super().__init__(params, {})\n"
        "class Free(SGD):\n    def __init__(self, params): super().__init__(params, 0.1)\n"
        "class Mine(SGD):\n    def __init__(self, params, lr=0.5): super().__init__(params, lr)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p != str(tmp_path)])
    monkeypatch.delitem(sys.modules, "stranger", raising=False)
    yield
    sys.modules.pop("stranger", None)


def test_a_class_is_tuned_in_lr_around_its_default(strangers):
    assert field.parse("stranger:Mine")[0] == "stranger:Mine"
    assert Recipe.read("stranger:Mine").defaults == {"lr": 0.5}
    assert Recipe.read("stranger:Mine").space["lr"] == pytest.approx((0.5 / 30, 15))
    assert Recipe.read("stranger:Free").space == Recipe.read("stranger:Free").defaults == {}
    weight = nn.Parameter(torch.ones(2))
    made = Recipe.read("stranger:Mine+cosine").optimizer([weight], {"lr": 0.25}, seed=1)
    assert type(made).__name__ == "Mine"
    assert made.param_groups[0]["lr"] == 0.25
    assert backends(made) == {"stranger:Mine"}
    assert Recipe.read("stranger:Free").optimizer([weight], {}).param_groups[0]["lr"] == 0.1


KNOWN = {
    "torch.optim:SGD": "sgd",
    "torch.optim:Adam": "adam",
    "torch.optim:Adadelta": "adadelta",
    "known:SGD": "sgd",
    "known:Adam": "adam",  # with a default of its own
    "known:Lamb": "lamb",
    "known:ScheduleFreeAdamW": "schedule_free_adamw",
    "known:Heavy": "momentum",  # torch's lr, kept by a child; its momentum is not 0
    "steepest:AdaBound": "adabound",
}


def test_a_class_of_a_known_name_is_tuned_as_the_rule(tmp_path, monkeypatch):
    (tmp_path / "known.py").write_text(
        "import torch\n"
        "class SGD(torch.optim.SGD):\n    def __init__(self, params, lr):\n"
        "        super().__init__(params, lr)\n"
        "class Adam(torch.optim.Adam):\n    def __init__(self, params, lr=0.5):\n"
        "        super().__init__(params, lr)\n"
        "class Lamb(Adam): pass\nclass ScheduleFreeAdamW(Adam): pass\n"
        "class Heavy(torch.optim.SGD):\n"
        "    def __init__(self, params, lr=1e-3, momentum=0.9):\n"
        "        super().__init__(params, lr, momentum)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for entry, rule in KNOWN.items():
        assert Recipe.read(entry).space == Recipe.read(rule).space, entry
        assert Recipe.read(entry).defaults == Recipe.read(rule).defaults, entry
    sys.modules.pop("known", None)


def test_an_own_class_and_an_own_rule_may_stand_in_one_file(tmp_path, monkeypatch):
    (tmp_path / "both_in.py").write_text(
        "import steepest, torch\nfrom torch import nn\nMINIMIZE, STEPS = 'loss', 2\nMADE = []\n"
        "@steepest.rule\ndef of_both(p, g, *, lr=0.1): return p - lr * g,\n"
        "class Mine(torch.optim.SGD):\n    def __init__(self, params, lr=0.5):\n"
        "        MADE.append(lr)\n        super().__init__(params, lr)\n"
        "def task(seed):\n    x = torch.ones(4, 2)\n"
        "    return nn.Linear(2, 1), lambda m, b: m(b).square().mean(), [x], lambda m: m(x).sum()\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    try:
        Request("both_in.py", "both_in:Mine,of_both").check()
        for entry in ("both_in:Mine", "of_both"):
            run = Trial("both_in.py", FRESH, entry, 0, 1, 2, Recipe.read(entry).defaults)
            assert trials.run(run).diverged is None
        assert sys.modules["steepest_task"].MADE  # that of the task, and no second one
        assert "both_in" not in sys.modules
    finally:
        sys.modules.pop("steepest_task", None)
        steepest.rules.pop("of_both", None)


def test_what_needs_a_learning_rate_says_so(strangers):
    for word in ("cosine", "warmup", "batch-growth", "adaptive-batch", "restarts"):
        entry, weight = f"stranger:Rateless+{word}", nn.Parameter(torch.ones(2))
        made = Recipe.read(entry).optimizer([weight], {})
        with pytest.raises(BadCall, match=rf"\+{word} needs a learning rate.*no option lr"):
            Recipe.read(entry).equip(made, 10, {}, 0)
    Recipe.read("stranger:Rateless+noise+clip").equip(
        made, 10, {"noise.eta": 1.0, "clip.norm": 1.0}, 0
    )


def test_knobs_of_parts_are_tuned_beside_the_optimizers():
    both = Recipe.read("adam+polynomial+noise+clip").space
    assert both == {
        **Recipe.read("adam").space, "polynomial.power": (0.5, 4.0), "noise.eta": (1e-4, 1.0),
        "clip.norm": (0.03, 30.0),
    }  # fmt: skip
    assert next(iter(both)) == "lr"  # the coordinate of the points that it shares with others
    known = Recipe.read("adam+polynomial+noise+clip").defaults
    assert known.keys() == both.keys()
    assert (known["polynomial.power"], known["noise.eta"], known["clip.norm"]) == (1, 0.01, 1)
    assert Recipe.read("newton").space == {"damping": (1e-4, 10.0)}
    assert Recipe.read("annealing").defaults == {"sigma": 0.01, "temperature": 0.01}
    for name in (*PARTS, *METHODS):
        entry = name if name in METHODS else f"adam+{name}"
        for knob, (low, high) in Recipe.read(entry).space.items():
            assert 0 < low <= Recipe.read(entry).defaults[knob] <= high, (entry, knob)


@pytest.mark.parametrize(
    ("entry", "task", "said"),
    [
        ("adam+batch-growth", "text", "text gives only batches, but .batch-growth needs samples"),
        ("adam+curriculum", "text", "text gives only batches, but .curriculum needs samples"),
        ("bfgs", "text", "text gives only batches, but bfgs needs samples"),
        ("levenberg-marquardt", "digits", "digits has a loss, .* needs the residuals"),
        ("newton", "digits", "'newton' cannot be made .*6,090 parameters were given"),
        ("adam+batchnorm", "text", "the task text has no .batchnorm"),
        ("adam+early-stopping", "digits-gan", "has its own training loop, and .early-stopping"),
        ("adam+batchnorm", "digits-gan", "has its own training loop, and .batchnorm works"),
        ("genetic", "bag-of-words", "own training loop, and genetic works only in the race's loop"),
    ],
)
def test_a_task_that_cannot_have_an_entry_says_so_before_the_race(entry, task, said):
    with pytest.raises(BadCall, match=said):
        Request(task, entry).check()


@pytest.mark.parametrize("task", ["digits", "diabetes", "text", "digits-gan", "bag-of-words"])
def test_what_acts_at_the_step_fits_every_task(task):
    Request(task, "adam+warmup+cosine+noise+clip,torch.optim:SGD+sgdr").check()


def test_a_schedule_changes_neither_space_nor_defaults():
    assert Recipe.read("adam+warmup+cosine").space == Recipe.read("adam").space
    assert Recipe.read("adam+cosine").defaults == Recipe.read("adam").defaults


def rates(entry, steps):
    """The learning rate of each step of an entry."""
    weight = nn.Parameter(torch.ones(2))
    optimizer = Recipe.read(entry).optimizer([weight], {"lr": 1.0})
    found = []
    Recipe.read(entry).equip(optimizer, steps, {}, 0)
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        weight.grad = torch.ones(2)
        optimizer.step()
    return found


@pytest.mark.parametrize("name", ["adam", "torch.optim:SGD"])
def test_schedules_by_hand(name):
    half = torch.arange(20, dtype=torch.float64) / 20
    cosine = ((1 + torch.cos(torch.pi * half)) / 2).tolist()
    assert rates(f"{name}+cosine", 20) == pytest.approx(cosine)
    # a tenth of 20 steps from a third upwards, then the cosine over the other 18
    rest = torch.arange(18, dtype=torch.float64) / 18
    tail = ((1 + torch.cos(torch.pi * rest)) / 2).tolist()
    assert rates(f"{name}+warmup+cosine", 20) == pytest.approx([1 / 3, 2 / 3, *tail])
    assert rates(f"{name}+warmup", 20) == pytest.approx([1 / 3, 2 / 3] + [1] * 18)
    assert rates(name, 3) == [1, 1, 1]


@pytest.mark.parametrize("entry", ["adam+cosine", "adam+warmup", "adam+warmup+cosine"])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_schedule_of_a_very_short_run(entry, steps):
    assert all(0 < rate <= 1 for rate in rates(entry, steps))


def test_an_entry_with_a_schedule_steps_as_torch_does():
    ours, theirs = (nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64)) for _ in "ab")
    candidate = Recipe.read("adam+cosine").optimizer([ours], {"lr": 0.1})
    Recipe.read("adam+cosine").equip(candidate, 10, {}, 0)
    oracle = torch.optim.Adam([theirs], lr=0.1)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(oracle, 10)
    for _ in range(10):
        for weight in (ours, theirs):
            weight.grad = weight.detach() ** 3
        candidate.step()
        oracle.step()
        cosine.step()
    assert torch.allclose(ours, theirs, rtol=1e-12, atol=0)


def test_what_stepped_an_entry_is_named():
    weight = nn.Parameter(torch.ones(4))
    optimizer = Recipe.read("adam").optimizer([weight], {"lr": 0.1})
    weight.grad = torch.ones(4)
    optimizer.step()
    assert backends(optimizer) == {"cpu"}
    other = Recipe.read("torch.optim:Adam").optimizer([weight], {"lr": 0.1})
    assert backends(other) == {"torch.optim.adam:Adam"}


def test_a_class_that_cannot_be_made_is_named():
    with pytest.raises(BadCall, match=r"'torch.optim:Adam' cannot be made with lr=-1 \(ValueError"):
        Recipe.read("torch.optim:Adam").optimizer([nn.Parameter(torch.ones(1))], {"lr": -1.0})


def test_a_class_that_refuses_the_parameters_has_a_rule_of_its_name():
    bias = nn.Parameter(torch.ones(3))
    with pytest.raises(BadCall, match=r"only supports 2D.*; did you mean 'muon'\?"):
        Recipe.read("torch.optim:Muon").optimizer([bias], {"lr": 0.1})
    with pytest.raises(BadCall, match=r"ValueError.*\)$"):  # here it is the rate
        Recipe.read("torch.optim:Muon").optimizer([bias], {"lr": -1.0})


OPEN = """
import torch
class SGD(torch.optim.SGD):
    def __init__(self, params, **options):
        super().__init__(params, **{"lr": 0.1, **options})
class Child(torch.optim.Adam):
    def __init__(self, params, **options):
        super().__init__(params, **options)
class Grandchild(Child):
    def __init__(self, params, *, lr=1e-3, **options):
        super().__init__(params, lr=lr, **options)
class Fixed(torch.optim.SGD):
    def __init__(self, params, **options):
        super().__init__(params, lr=0.1, **options)
class Adam(torch.optim.Optimizer):
    def __init__(self, params):
        super().__init__(params, {"lr": 1.0})
"""


def test_options_that_a_class_hands_on_are_its_parents(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    (tmp_path / "handed_on.py").write_text(OPEN)
    weight = [torch.nn.Parameter(torch.ones(1))]
    for name, rule in (("SGD", "sgd"), ("Child", "adam"), ("Grandchild", "adam")):
        entry = f"handed_on:{name}"
        assert Recipe.read(entry).space == dict(steepest.rules[rule].search)
        assert Recipe.read(entry).defaults["lr"] == steepest.rules[rule].defaults["lr"]
        made = Recipe.read(entry).optimizer(weight, {"lr": 0.25})
        assert made.param_groups[0]["lr"] == 0.25
    for name, lr in (("Fixed", 0.1), ("Adam", 1.0)):
        entry = f"handed_on:{name}"
        assert Recipe.read(entry).space == Recipe.read(entry).defaults == {}
        assert Recipe.read(entry).optimizer(weight, {}).param_groups[0]["lr"] == lr
    del sys.modules["handed_on"]
