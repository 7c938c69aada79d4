"""Entries with +sam, +asam and +lookahead, against loops that are written from the papers' formulas
with torch.optim alone; what they cost, what they leave behind, and what they cannot go with.
"""

import copy
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from steepest import tasks
from steepest.errors import BadCall
from steepest.race import driver, field, trials
from steepest.race.protocol import FRESH, Trial
from steepest.race.request import Request
from steepest.tasks.tables import DIABETES
from steepest.tasks.task import two_points
from steepest.training.loop import train
from steepest.training.parts import around
from steepest.training.recipe import Recipe
from tests.training.test_own_loops import LIGHTNING

SHORT = settings(max_examples=15, deadline=None)
SGD, ADAM = "torch.optim:SGD", "torch.optim:Adam"


def run(entry, steps=20, dtype=torch.float32, seed=7, **hyper):
    """Train an entry in the race's loop. Returns the model and the reports."""
    recipe, kept, reports = Recipe.read(entry), [], []

    def build(seed, **options):
        setup = DIABETES.build(seed, **options)
        setup.model.to(dtype)
        batches = (tuple(x.to(dtype) for x in batch) for batch in setup.batches)
        kept.append(setup.model)
        return replace(setup, batches=batches, evaluate=lambda *_: 0.0)

    torch.manual_seed(3)
    task = replace(DIABETES, build=build)
    report = lambda step, **metrics: reports.append(metrics)  # noqa: E731
    train(task, recipe, recipe.defaults | hyper, seed, steps, report)
    return kept[-1], reports


def sharp_gradients(model, loss, batch, rho, eta):
    """Equation 2 of arXiv:2010.01412; with eta, equation 8 of arXiv:2102.11600. Leaves .grad."""
    params = list(model.parameters())
    gradients = torch.autograd.grad(loss(model, batch), params)
    scales = [torch.ones_like(p) if eta is None else p.detach().abs() + eta for p in params]
    norm = sum((t * g).square().sum() for t, g in zip(scales, gradients, strict=True)).sqrt()
    moved = copy.deepcopy(model)
    with torch.no_grad():
        for p, t, g in zip(moved.parameters(), scales, gradients, strict=True):
            p += rho * t**2 * g / norm
    for p, g in zip(
        params, torch.autograd.grad(loss(moved, batch), moved.parameters()), strict=True
    ):
        p.grad = g


def by_hand(
    steps, make, dtype=torch.float32, rho=None, eta=None, clip=None, cosine=False, alpha=None
):
    """The same training, written out. Returns the model, and its weights for evaluation by step."""
    setup = DIABETES.build(7)
    model, slow, for_use = setup.model.to(dtype), None, []
    optimizer = make(model.parameters())
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps) if cosine else None
    for step in range(steps):
        batch = tuple(x.to(dtype) for x in next(setup.batches))
        if slow is None:
            slow = [p.detach().clone() for p in model.parameters()]
        if rho is None:
            optimizer.zero_grad()
            setup.loss(model, batch).backward()
        else:
            sharp_gradients(model, setup.loss, batch, rho, eta)
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        if rate:
            rate.step()
        if alpha is not None and step % 6 == 5:
            with torch.no_grad():
                for p, s in zip(model.parameters(), slow, strict=True):
                    s += alpha * (p - s)
                    p.copy_(s)
        for_use.append([p.detach().clone() for p in (slow if alpha else model.parameters())])
    return model, for_use


KINDS = {
    "sam": ({"sam.rho": 0.2}, {"rho": 0.2}),
    "asam": ({"asam.rho": 0.7}, {"rho": 0.7, "eta": 0.01}),
    "lookahead": ({"lookahead.alpha": 0.3}, {"alpha": 0.3}),
    "cosine+sam": ({"sam.rho": 0.2}, {"rho": 0.2, "cosine": True}),
    "clip+sam": ({"sam.rho": 0.2, "clip.norm": 0.1}, {"rho": 0.2, "clip": 0.1}),
    "cosine+clip+asam+lookahead": (
        {"asam.rho": 0.7, "clip.norm": 0.1, "lookahead.alpha": 0.3},
        {"rho": 0.7, "eta": 0.01, "clip": 0.1, "cosine": True, "alpha": 0.3},
    ),
}


def same(model, weights, rel):
    for p, q in zip(model.parameters(), weights, strict=True):
        assert torch.allclose(p, q, rtol=rel, atol=rel), (p - q).abs().max()


@pytest.mark.parametrize("words", KINDS)
@pytest.mark.parametrize("base", [SGD, ADAM])
def test_a_part_is_its_papers_formula(words, base):
    hyper, written = KINDS[words]
    kind = {SGD: torch.optim.SGD, ADAM: torch.optim.Adam}[base]
    got, _ = run(f"{base}+{words}", 20, torch.float64, lr=0.02, **hyper)
    _, for_use = by_hand(20, lambda p: kind(p, lr=0.02), torch.float64, **written)
    same(got, for_use[-1], 1e-9)  # a run ends with the weights for evaluation
    start, _ = run(base, 20, torch.float64, lr=0.02)
    assert not all(map(torch.allclose, got.parameters(), start.parameters()))


@pytest.mark.parametrize("words", ["sam", "asam", "lookahead"])
@pytest.mark.parametrize(("dtype", "rel"), [(torch.float32, 1e-4), (torch.bfloat16, 0.1)])
def test_in_other_precisions(words, dtype, rel):
    hyper, written = KINDS[words]
    got, _ = run(f"{SGD}+{words}", 8, dtype, lr=0.02, **hyper)
    assert {p.dtype for p in got.parameters()} == {dtype}
    _, for_use = by_hand(8, lambda p: torch.optim.SGD(p, lr=0.02), torch.float64, **written)
    same(got.double(), for_use[-1], rel)


@SHORT
@given(st.floats(1e-3, 0.1), st.integers(0, 99), st.integers(1, 3))
def test_without_radius_or_step_back_nothing_changes(lr, seed, cycles):
    plain, _ = run(SGD, 6 * cycles, seed=seed, lr=lr)
    for words, hyper in (("sam", {"sam.rho": 0.0}), ("lookahead", {"lookahead.alpha": 1.0})):
        got, _ = run(f"{SGD}+{words}", 6 * cycles, seed=seed, lr=lr, **hyper)
        assert all(map(torch.equal, got.parameters(), plain.parameters()))


def trial(entry, steps=20, **hyper):
    return Trial("diabetes", FRESH, entry, 0, 7, steps, Recipe.read(entry).defaults | hyper)


def test_lookahead_is_evaluated_at_its_slow_weights():
    """Evaluations at steps 7, 14, 20: in the middle of cycles of 6."""
    result = trials.run(trial(f"{SGD}+lookahead", 20, lr=0.02, **{"lookahead.alpha": 0.3}))
    setup = DIABETES.build(7)
    _, for_use = by_hand(20, lambda p: torch.optim.SGD(p, lr=0.02), alpha=0.3)
    wanted = []
    for step in result.steps:
        with torch.no_grad():
            for p, s in zip(setup.model.parameters(), for_use[step - 1], strict=True):
                p.copy_(s)
        wanted.append(setup.evaluate(setup.model, "validation"))
    assert result.validation == pytest.approx(wanted, rel=1e-5)
    assert result.test == pytest.approx(setup.evaluate(setup.model, "test"), rel=1e-5)
    assert result.state_bytes == 4 * result.parameters  # the slow weights: SGD itself has no state


@pytest.mark.parametrize(
    ("entry", "gradients"),
    [
        ("momentum+sam", 40),
        ("momentum+asam", 40),
        ("momentum+lookahead", 20),
        ("momentum+full-batch+sam", 40 * 222 / 32),
        ("momentum+one-sample+asam", 40 / 32),
        # the copy is trained without parts for 5 steps, and scored by forward passes
        ("momentum+curriculum+sam", 40 + 5 + 222 / 32 / 3),
    ],
)
def test_gradients_are_counted(entry, gradients):
    assert trials.run(trial(entry)).measures["gradients"] == pytest.approx(gradients)


@pytest.mark.parametrize(
    ("base", "words"),
    [
        ("momentum", "sam"),
        ("momentum+dropout", "sam"),
        ("momentum+dropout", "asam+lookahead"),
        ("momentum+batchnorm", "asam"),
    ],
)
def test_a_run_is_paired_with_the_others_and_repeats_itself(base, words):
    """The second pass of a step draws nothing new, so that masks, data and states are paired."""
    first, second = (trials.run(trial(f"{base}+{words}")) for _ in "ab")
    for name in ("validation", "test", "batches", "draws", "measures", "initial"):
        assert getattr(first, name) == getattr(second, name), name
    other = trials.run(trial(base))
    for name in ("batches", "draws", "initial"):
        assert getattr(first, name) == getattr(other, name), name
    assert first.validation != other.validation


def test_running_statistics_are_those_of_the_first_pass():
    """After one step: the second pass, at the worst point, has left no trace."""
    plain, sharp = (run(f"{SGD}+batchnorm{w}", 1, lr=0.1)[0] for w in ("", "+sam"))
    found = [dict(model.named_buffers()) for model in (plain, sharp)]
    assert found[0].keys() == found[1].keys() != set()
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert not all(map(torch.equal, plain.parameters(), sharp.parameters()))


def test_noise_is_added_once_to_the_gradient_that_the_optimizer_gets():
    hyper = {"noise.eta": 0.5, "sam.rho": 0.2, "clip.norm": 1e-6}
    entry = f"{SGD}+noise+clip+sam"
    got, _ = run(entry, 1, lr=1.0, **hyper)
    plain, _ = run(f"{SGD}+noise+clip", 1, lr=1.0, **hyper)
    same(got, plain.parameters(), 1e-5)  # the clipped gradient is next to nothing


# --- loops of a user's own

OWN = """
import torch
from torch import nn
MINIMIZE, STEPS = "loss", 8
DATA = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
def train(make_optimizer, report, seed):
    model = nn.Linear(4, 1)
    optimizer = make_optimizer(MADE)
    def closure():
        optimizer.zero_grad()
        loss = (model(DATA) - DATA.sum(1, keepdim=True)).square().mean()
        loss.backward()
        return loss
    for step in range(1, STEPS + 1):
        DO
        if step % 4 == 0:
            JUDGE
            weights = {f"w{i}": w.item() for i, w in enumerate(model.weight.flatten())}
            report(step, validation=1.0, test=1.0, **weights)
            AFTER
"""
GROUPS = "[{'params': [model.weight]}, {'params': [model.bias], 'lr': 0.5}]"
CLOSED, PLAIN = "optimizer.step(closure)", "closure(); optimizer.step()"
pytestmark = pytest.mark.usefixtures("elsewhere")


@pytest.fixture
def own(elsewhere):
    def run(entry, do=PLAIN, judge="pass", after="pass", made="model", **hyper):
        source = OWN
        for name, line in (("DO", do), ("JUDGE", judge), ("AFTER", after), ("MADE", made)):
            source = source.replace(name, line)
        (elsewhere / "mine.py").write_text(source)
        hyper = Recipe.read(entry).defaults | hyper
        result = trials.run(Trial("mine.py", FRESH, entry, 0, 7, 8, hyper))
        return [result.measures[f"w{i}"] for i in range(4)]

    return run


def linear(make, rho=None, eta=None, alpha=None, clip=None, steps=8):
    """The loop of OWN, written out. Returns the fast and the slow weights."""
    data = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    loss = lambda model, x: (model(x) - x.sum(1, keepdim=True)).square().mean()  # noqa: E731
    torch.manual_seed(7)
    model = nn.Linear(4, 1)
    optimizer, slow = make(model), copy.deepcopy(model)
    for step in range(steps):
        if rho is None:
            optimizer.zero_grad()
            loss(model, data).backward()
        else:
            sharp_gradients(model, loss, data, rho, eta)
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        if step % 6 == 5 and alpha:
            with torch.no_grad():
                for p, s in zip(model.parameters(), slow.parameters(), strict=True):
                    p.copy_(s.add_(alpha * (p - s)))
    return [m.weight.detach().flatten().tolist() for m in (model, slow)]


@pytest.mark.parametrize("word", ["sam", "asam"])
@pytest.mark.parametrize("made", ["model", GROUPS])
def test_an_own_loop_with_a_closure_trains_by_the_formula(word, made, own):
    def make(model):
        other = {"lr": 0.5} if made == GROUPS else {}
        groups = [{"params": [model.weight]}, {"params": [model.bias]} | other]
        return torch.optim.SGD(groups, lr=0.05)

    got = own(f"{SGD}+{word}", CLOSED, made=made, lr=0.05, **{f"{word}.rho": 0.3})
    assert got == pytest.approx(linear(make, 0.3, 0.01 if word == "asam" else None)[0], rel=1e-5)


@pytest.mark.parametrize("do", [PLAIN, f"try: {PLAIN}\n        except Exception: pass"])
@pytest.mark.parametrize(
    "entry", [f"{SGD}+asam", "adamw+cosine+sam+lookahead", "torch.optim:LBFGS"]
)
def test_an_own_loop_without_a_closure_is_told_what_to_do(do, entry, own):
    needy = entry if entry.endswith("LBFGS") else "+asam" if "asam" in entry else "+sam"
    with pytest.raises(BadCall) as found:
        own(entry, do)
    said = str(found.value)
    assert f"step() without a closure, which {needy} needs; call step(closure) with a " in said
    assert f"race entries without {needy}" in said
    assert "\n" not in said


def test_lookahead_in_an_own_loop(own):
    entry, hyper = f"{SGD}+lookahead", {"lr": 0.05, "lookahead.alpha": 0.3}
    make = lambda model: torch.optim.SGD(model.parameters(), lr=0.05)  # noqa: E731
    fast, slow = linear(make, alpha=0.3)
    assert fast != pytest.approx(slow, rel=1e-3)
    assert own(entry, **hyper) == pytest.approx(fast, rel=1e-5)
    assert own(entry, CLOSED, **hyper) == pytest.approx(fast, rel=1e-5)
    asked = ("if hasattr(optimizer, 'eval'): optimizer.eval()", "optimizer.train()")
    assert own(entry, PLAIN, *asked, **hyper) == pytest.approx(slow, rel=1e-5)
    with pytest.raises(Exception, match=r"step\(\) was called after eval\(\).*optimizer.train\(\)"):
        own(entry, PLAIN, asked[0], **hyper)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("words", ["sam", "clip+asam+lookahead"])
def test_lightning_has_a_closure_by_itself(words, elsewhere):
    pytest.importorskip("pytorch_lightning")
    entry = f"{SGD}+{words}"
    plain = LIGHTNING.replace("EVAL", "pass").replace("self.optimizers().train()", "pass")
    (elsewhere / "mine.py").write_text(plain)
    hyper = Recipe.read(entry).defaults | {"lr": 0.05}
    found = trials.run(Trial("mine.py", FRESH, entry, 0, 7, 8, hyper))
    assert (len(found.validation), found.diverged) == (4, None)


@pytest.mark.parametrize("task", ["digits-gan", "bag-of-words"])
def test_lookahead_fits_the_bundled_loops(task):
    run = Trial(task, FRESH, "adam+lookahead", 0, 7, 2, Recipe.read("adam+lookahead").defaults)
    assert trials.run(run).diverged is None
    with pytest.raises(BadCall, match=r"step\(\) without a closure, which \+sam needs;"):
        trials.run(replace(run, entry="adam+sam", hyper=Recipe.read("adam+sam").defaults))


@pytest.mark.parametrize("do", [CLOSED, "optimizer.step(closure=closure)", PLAIN])
def test_clip_bounds_the_gradient_of_a_closure_too(do, own):
    got = own(f"{SGD}+clip", do, lr=0.05, **{"clip.norm": 0.01})
    make = lambda model: torch.optim.SGD(model.parameters(), lr=0.05)  # noqa: E731
    assert got == pytest.approx(linear(make, clip=0.01)[0], rel=1e-5)


def test_two_points_around_each_other():
    weight = nn.Parameter(torch.ones(3))
    recipe = Recipe.read("schedule_free_sgd+sam")
    hyper = recipe.defaults | {"lr": 0.5}
    inner = recipe.optimizer([weight], hyper)
    sharp = recipe.wrap(inner, hyper)
    assert two_points(sharp)

    def closure():
        weight.grad = weight.detach().clone()
        return 0.0

    for _ in range(3):
        sharp.step(closure)
    y = weight.detach().clone()
    sharp.eval()
    assert not torch.equal(weight, y)
    sharp.train()
    assert torch.allclose(weight, y)
    plain = Recipe.read("sgd+sam")
    assert not two_points(plain.wrap(plain.optimizer([weight], {"lr": 0.1}), plain.defaults))


def test_a_reset_while_the_slow_weights_are_used_keeps_the_new_weights():
    weight = nn.Parameter(torch.ones(3))
    slow = around.SlowAtEvaluation(torch.optim.SGD([weight], lr=0.5))
    fresh = slow.state_dict()
    weight.grad = torch.ones(3)
    slow.step()
    for _ in "ab":  # twice is as once
        slow.eval()
    assert torch.equal(weight, torch.ones(3))
    slow.load_state_dict(fresh)
    with torch.no_grad():
        weight.fill_(7.0)
    slow.train()
    assert torch.equal(weight, torch.full((3,), 7.0))
    slow.step()
    slow.eval()
    assert torch.equal(weight, torch.full((3,), 7.0))
    slow.train()
    assert torch.equal(weight, torch.full((3,), 6.5))


@pytest.mark.parametrize("word", ["early-stopping", "restarts"])
def test_what_restores_weights_goes_with_lookahead(word):
    name = f"momentum+lookahead+{word}"
    found = trials.run(trial(name, 84, lr=0.03))
    assert found.diverged is None
    if word == "early-stopping":  # what the run ends with is the best that was evaluated
        assert found.validation[-1] == min(found.validation)


# --- what cannot go together

STRANGE = """
import torch
class Bare(torch.optim.Optimizer):
    def __init__(self, params, lr=0.1): super().__init__(params, {"lr": lr})
    def step(self): pass
class Deaf(Bare):
    def step(self, closure=None): pass
class Two(torch.optim.SGD):
    def __init__(self, params, lr=0.1): super().__init__(params, lr)
    def eval(self): pass
    def train(self): pass
"""


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("schedule_free_sgd+lookahead", r"\+lookahead and the optimizer's eval"),
        ("strange:Two+lookahead", r"\+lookahead and .* eval\(\) and train\(\) would both"),
        ("strange:Bare+sam", r"step\(\) of Bare has no argument closure"),
        ("momentum+adaptive-batch+sam", r"\+adaptive-batch computes .* and \+sam needs a closure"),
        ("torch.optim:LBFGS+adaptive-batch", r"and torch.optim:LBFGS needs a closure: expected no"),
        ("momentum+sam+asam", r"\+sam and \+asam exclude each other: keep one of them"),
        ("momentum+sam+cosine", r"expected each part once, in the order \+cosine\+sam"),
        ("bfgs+sam", r"bfgs takes no \+sam: expected bfgs alone"),
        ("genetic+lookahead", r"genetic takes no \+lookahead"),
    ],
)
def test_what_cannot_go_together_is_one_line(entry, said, elsewhere):
    (elsewhere / "strange.py").write_text(STRANGE)
    with pytest.raises(BadCall, match=said) as found:
        Request("diabetes", entry).check()
    assert "\n" not in str(found.value)


def test_an_optimizer_that_never_calls_its_closure_is_named(elsewhere):
    (elsewhere / "strange.py").write_text(STRANGE)
    with pytest.raises(BadCall, match=r"step\(closure\) .*did not call the closure"):
        trials.run(trial("strange:Deaf+sam", 2))


def test_knobs_are_tuned_in_the_papers_ranges():
    field.parse("adamw+sam,adamw+asam,adamw+lookahead")
    ranges = {"sam.rho": (0.01, 0.5), "asam.rho": (0.05, 2.0), "lookahead.alpha": (0.2, 0.8)}
    for knob, (low, high) in ranges.items():
        word = knob.partition(".")[0]
        recipe = Recipe.read(f"adamw+{word}")
        assert recipe.space[knob] == (low, high)
        assert low < recipe.defaults[knob] < high
        assert recipe.other_cost == (word != "lookahead")
        assert recipe.same_batches
        assert recipe.needs == (() if word == "lookahead" else ("step(closure)",))


def test_a_race_shows_what_sam_costs(tmp_path):
    request = Request("diabetes", "adamw,adamw+sam,adamw+lookahead", trials=2, seeds=2, steps=7)
    summary, interrupted = driver.race(request, tmp_path / "race", jobs=1)
    assert summary["complete"]
    assert not interrupted
    found = {name: entry["gradients"] for name, entry in summary["entries"].items()}
    assert found == {"adamw": 7, "adamw+sam": 14, "adamw+lookahead": 7}
    assert "cost" in {finding["name"] for finding in summary["lint"]}
    page = (tmp_path / "race" / "report.html").read_text(encoding="utf-8")
    assert "adamw+sam computed 14 gradients of a batch for its 7 steps" in page


def test_a_generator_of_the_users_file_is_paired_too(elsewhere):
    (elsewhere / "mine.py").write_text(
        "import random\nimport numpy as np\nimport torch\nfrom torch import nn\n"
        "MINIMIZE, STEPS, EVERY = 'loss', 4, 2\n"
        "DATA = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))\n"
        "OWN = [torch.Generator(), np.random.default_rng(0), np.random.RandomState(0)]\n"
        "OTHER = random.Random(0)\n"
        "def error(model, x):\n"
        "    scale = torch.rand(1, generator=OWN[0]) + OWN[1].random() + OWN[2].rand()\n"
        "    return ((model(x * scale) - x.sum(1, keepdim=True)) ** 2).mean() + OTHER.random()\n"
        "def task(seed):\n    return nn.Linear(4, 1), error, DATA.split(8), lambda m: 1.0\n"
    )
    draws = []
    for entry in ("momentum", "momentum+sam"):
        run = Trial("mine.py", FRESH, entry, 0, 7, 4, Recipe.read(entry).defaults)
        draws.append(trials.run(run).draws)
    assert draws[0] == draws[1]
    assert len({*draws[0]}) == 2
    assert tasks.generators(tasks.get("mine.py"))
