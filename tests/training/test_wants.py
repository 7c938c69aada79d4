"""Optimizers that need a closure, or gradients that can be differentiated: that the race's loop
finds it out, steps as a loop written for them, and counts what they compute.
"""

import gc
import sys
import weakref
from dataclasses import replace

import pytest
import torch
from torch import nn

from steepest.errors import BadCall
from steepest.race import trials
from steepest.race.protocol import FRESH, Trial
from steepest.tasks.tables import DIABETES
from steepest.training.loop import train
from steepest.training.recipe import Recipe
from steepest.training.steps import make_step
from steepest.training.wants import Wants, wants_of

CLASSES = """
import torch
class Curved(torch.optim.Optimizer):
    '''Steps along g / (|h| + 1), h the product of the Hessian with ones.'''
    every = 1
    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr})
        self.count, self.products = 0, {}
    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if self.count % self.every == self.every - 1:
                ones = [torch.ones_like(p) for p in params]
                found = torch.autograd.grad([p.grad for p in params], params, ones)
                self.products = dict(zip(params, found))
            for p in params:
                h = self.products.get(p, torch.zeros_like(p))
                p.sub_(group["lr"] * p.grad / (h.abs() + 1))
        self.count += 1
        return loss
class Lazy(Curved):
    every = 10
class CurvedClosure(Curved):
    def step(self, closure):
        return super().step(closure)
class Pulled(torch.optim.SGD):
    '''A step of descent at the mean of the gradient here and after the step.'''
    def __init__(self, params, lr=0.1):
        super().__init__(params, lr)
    def step(self, closure):
        loss = closure()
        params = self.param_groups[0]["params"]
        before, first = [p.detach().clone() for p in params], [p.grad.clone() for p in params]
        super().step()
        closure()
        with torch.no_grad():
            for p, old, g in zip(params, before, first):
                p.copy_(old - self.param_groups[0]["lr"] * (g + p.grad) / 2)
        return loss
class Polyak(torch.optim.SGD):
    def __init__(self, params, lr=0.1):
        super().__init__(params, lr)
    def step(self, closure=None):
        assert closure is not None, "a closure, please"
        return super().step(closure)
class Broken(torch.optim.SGD):
    def __init__(self, params, lr=0.1):
        super().__init__(params, lr)
    def step(self, closure=None):
        raise ValueError("never")
"""


@pytest.fixture(autouse=True)
def classes(elsewhere, monkeypatch):
    (elsewhere / "classes.py").write_text(CLASSES)
    monkeypatch.setattr(sys, "path", [str(elsewhere), *sys.path])
    monkeypatch.delitem(sys.modules, "classes", raising=False)
    import classes

    yield classes
    sys.modules.pop("classes", None)


WANTED = {
    "torch.optim:SGD": Wants(),
    "torch.optim:AdamW": Wants(),
    "torch.optim:LBFGS": Wants(closure=True),
    "classes:Curved": Wants(graph=True),
    "classes:Lazy": Wants(graph=True),
    "classes:CurvedClosure": Wants(closure=True, graph=True),
    "classes:Pulled": Wants(closure=True),
    "classes:Polyak": Wants(closure=True),
    "classes:Broken": Wants(),
    "pytorch_optimizer:AdaHessian": Wants(graph=True),
    "pytorch_optimizer:SophiaH": Wants(graph=True),
    "pytorch_optimizer:AliG": Wants(closure=True),
    "adamw": Wants(),
    "adamw+sam": Wants(closure=True),
    "classes:Curved+lookahead": Wants(graph=True),
}


@pytest.mark.parametrize("entry", WANTED)
def test_what_a_step_needs_is_found_out(entry):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    assert Recipe.read(entry).wants == WANTED[entry]
    assert Recipe.read(entry).other_cost == (WANTED[entry] != Wants())
    assert torch.equal(torch.get_rng_state(), before)


def run(entry, steps, **hyper):
    """Train in the race's loop. Returns the weights and the cost."""
    recipe, kept, spent = Recipe.read(entry), [], []

    def build(seed, **options):
        kept.append(DIABETES.build(seed, **options))
        return kept[-1]

    def report(step, *, gradients, **metrics):
        spent.append(gradients)

    task = replace(DIABETES, build=build)
    train(task, recipe, recipe.defaults | hyper, 7, steps, report)
    return list(kept[-1].model.parameters()), spent[-1]


def by_hand(steps, step):
    """step(model, loss) for the loss on each batch. Returns the weights."""
    setup = DIABETES.build(7)
    model = setup.model.train()
    for number in range(steps):
        batch = next(setup.batches)
        step(model, lambda batch=batch: setup.loss(model, batch), number)
    return list(model.parameters())


def same(got, want):
    for p, q in zip(got, want, strict=True):
        assert torch.allclose(p, q, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "every", "clip"),
    [("Curved", 1, None), ("Lazy", 10, None), ("CurvedClosure", 1, None), ("Curved", 1, 0.1)],
)
def test_second_derivatives_are_those_of_a_loop_by_hand(name, every, clip):
    kept = {}

    def step(model, loss, number):
        params = list(model.parameters())
        grads = torch.autograd.grad(loss(), params, create_graph=True)
        if number % every == every - 1:
            total = sum(g.sum() for g in grads)
            kept["h"] = torch.autograd.grad(total, params)
        norm = torch.stack([g.detach().norm() for g in grads]).norm()
        factor = 1 if clip is None else min(1, clip / (norm.item() + 1e-6))
        with torch.no_grad():
            for k, (p, g) in enumerate(zip(params, grads, strict=True)):
                h = kept["h"][k].abs() if kept else 0
                p -= 0.05 * factor * g / (h + 1)

    entry, hyper = f"classes:{name}", {}
    if clip is not None:
        entry, hyper = f"{entry}+clip", {"clip.norm": clip}
    got, spent = run(entry, 20, lr=0.05, **hyper)
    same(got, by_hand(20, step))
    assert spent == 20 + 2 * 20 // every
    assert all(p.grad is None for p in got)


def test_a_closure_sees_the_same_batch_each_time():
    def step(model, loss, _):
        params = list(model.parameters())
        first = torch.autograd.grad(loss(), params)
        before = [p.detach().clone() for p in params]
        with torch.no_grad():
            for p, g in zip(params, first, strict=True):
                p -= 0.05 * g
        second = torch.autograd.grad(loss(), params)
        with torch.no_grad():
            for p, old, g, h in zip(params, before, first, second, strict=True):
                p.copy_(old - 0.05 * (g + h) / 2)

    got, spent = run("classes:Pulled", 20, lr=0.05)
    same(got, by_hand(20, step))
    assert spent == 40


@pytest.mark.parametrize("entry", ["torch.optim:LBFGS", "torch.optim:LBFGS+lookahead"])
def test_lbfgs_on_batches_is_torchs(entry):
    made, calls, slow = [], [], []

    def step(model, loss, number):
        params = list(model.parameters())
        if not made:
            made.append(torch.optim.LBFGS(params, lr=0.1))
            slow[:] = [p.detach().clone() for p in params]

        def closure():
            calls.append(1)
            made[0].zero_grad()
            value = loss()
            value.backward()
            return value

        made[0].step(closure)
        if "lookahead" in entry and number == 5:
            with torch.no_grad():
                for p, s in zip(params, slow, strict=True):
                    p.copy_((p + s) / 2)

    got, spent = run(entry, 6, lr=0.1)
    same(got, by_hand(6, step))
    assert spent == len(calls) > 6


def test_the_calls_of_a_step_have_one_loss_and_leave_what_one_call_leaves(classes):
    """Dropout and batch normalisation, at weights that stay: three calls of a closure and one."""

    class Thrice(classes.Polyak):
        def step(self, closure=None):
            losses.extend(closure().item() for _ in range(calls))

    left = []
    for calls in (1, 3):
        torch.manual_seed(5)
        model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1))
        setup = replace(DIABETES.build(0), model=model, loss=lambda m, x: m(x).square().mean())
        losses = []
        step_on = make_step(setup, Thrice(model.parameters()), Wants(closure=True), DIABETES)
        assert step_on(torch.randn(16, 4), 1) == calls
        assert len({*losses}) == 1
        left.append([torch.get_rng_state(), *model.buffers()])
        assert model[1].num_batches_tracked == 1
    assert all(map(torch.equal, *left))


def test_a_graph_does_not_stay_behind(classes):
    """The graph of a gradient refers to its parameter: without care, a cycle that nothing frees."""
    model = nn.Linear(4, 1)
    setup = replace(DIABETES.build(0), model=model, loss=lambda m, x: m(x).pow(4).mean())
    step_on = make_step(setup, classes.Curved(model.parameters()), Wants(graph=True), DIABETES)
    step_on(torch.randn(16, 4), 1)
    gone = weakref.ref(model.weight)
    del model, setup, step_on
    gc.collect()
    assert gone() is None


def test_a_probe_that_fails_changes_nothing(classes):
    with pytest.raises(ValueError, match="never"):
        run("classes:Broken", 1)
    assert wants_of(classes.Broken) == Wants()


@pytest.mark.parametrize("word", ["sam", "asam+lookahead"])
def test_sam_moves_weights_that_a_graph_needs(word):
    recipe = Recipe.read(f"classes:Curved+{word}")
    with pytest.raises(BadCall, match=r"differentiates its gradients, which is not possible after"):
        recipe.check(DIABETES)


@pytest.mark.parametrize("word", ["curriculum", "batch-growth", "noise", "dropout", "batchnorm"])
@pytest.mark.parametrize("name", ["Curved", "Pulled"])
def test_they_go_with_other_parts(name, word):
    entry = f"classes:{name}+{word}"
    hyper = Recipe.read(entry).defaults | {"lr": 0.01}
    found = [trials.run(Trial("diabetes", FRESH, entry, 0, 7, 8, hyper)) for _ in "ab"]
    assert found[0].diverged is None
    assert found[0].validation == found[1].validation
    assert found[0].measures["gradients"] > 8


OWN = """
import torch
MINIMIZE, STEPS = "loss", 2
def train(make_optimizer, report, seed):
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = make_optimizer([weight])
    for step in (1, 2):
        optimizer.zero_grad()
        loss = weight.pow(4).sum()
        loss.backward(GRAPH)
        try: optimizer.step()
        except RuntimeError: pass
        optimizer.zero_grad()
        report(step, validation=weight.sum().item())
"""


@pytest.mark.filterwarnings("ignore:Using backward:UserWarning")
def test_an_own_loop_without_a_graph_is_told_what_to_do(elsewhere):
    run = Trial("mine.py", FRESH, "classes:Curved", 0, 7, 2, {"lr": 0.05})
    (elsewhere / "mine.py").write_text(OWN.replace("GRAPH", ""))
    with pytest.raises(
        BadCall, match=r"Curved differentiates .*; call backward\(create_graph=True"
    ):
        trials.run(run)
    (elsewhere / "mine.py").write_text(OWN.replace("GRAPH", "create_graph=True"))
    assert trials.run(run).validation[0] == pytest.approx(3 * (1 - 0.05 * 4 / 13))
