"""Runs of entries with parts, and of methods on the whole loss, on diabetes: their effect against
loops written by hand, torch's own classes and counts.
"""

import copy
import csv
import json
import math
import re
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch import nn

from steepest import tasks
from steepest.race import driver, measured, trials
from steepest.race.protocol import FRESH, TUNING, Trial
from steepest.race.request import Request
from steepest.strategies import adaptive
from steepest.tasks.tables import DIABETES, diabetes
from steepest.training.full_batch import METHODS
from steepest.training.parts import PARTS
from steepest.training.recipe import Recipe

SAMPLES, BATCH = 222, 32
WITH_PARTS = [f"momentum+{word}" for word in PARTS]
SLOW = ("newton", "saddle-free-newton")
"""A second a step."""


def trial(entry, steps=30, seed=7, **changes):
    hyper = Recipe.read(entry).defaults
    hyper |= {"lr": 0.03} if entry[:5] in ("momen", "torch") else {}
    return Trial("diabetes", FRESH, entry, 0, seed, steps, hyper | changes)


@pytest.fixture
def spy(monkeypatch):
    """What the runs of a test train: models at the start, batches, optimizers, losses to return."""

    class Seen:
        def __init__(self):
            self.batches, self.built, self.optimizers = [], [], []
            self.spoil = self.evaluate = None

        def rows(self):
            return torch.cat([x for x, _ in self.batches])

        def sizes(self):
            return [len(x) for x, _ in self.batches]

    seen, make = Seen(), Recipe.optimizer

    def build(seed, **switches):
        setup = DIABETES.build(seed, **switches)
        seen.built.append(copy.deepcopy(setup.model))
        seen.batches.clear()

        def record(model, batch):
            seen.batches.append(batch)
            return seen.spoil(len(seen.batches)) if seen.spoil else 1.0

        def loss(model, batch):
            return setup.loss(model, batch) * record(model, batch)

        def residuals(model, batch):
            return setup.residuals(model, batch) * record(model, batch)

        return replace(
            setup, loss=loss, residuals=residuals, evaluate=seen.evaluate or setup.evaluate
        )

    def made(*args):
        seen.optimizers.append(make(*args))
        return seen.optimizers[-1]

    monkeypatch.setattr(trials, "_warm_up", lambda _: None)
    monkeypatch.setitem(tasks.TASKS, "diabetes", replace(DIABETES, build=build))
    monkeypatch.setattr(Recipe, "optimizer", made)
    return seen


def orders(seed, epochs):
    """The training rows as the task's own batches have them."""
    generator = torch.Generator().manual_seed(seed)
    x, _ = diabetes()["train"]
    return torch.cat([x[torch.randperm(SAMPLES, generator=generator)] for _ in range(epochs)])


@pytest.mark.parametrize("entry", [*WITH_PARTS, *(m for m in METHODS if m not in SLOW)])
@pytest.mark.parametrize("steps", [1, 2, 3, 5])
def test_every_entry_runs_however_short(entry, steps):
    result = trials.run(trial(entry, steps))
    assert result.diverged is None
    assert (result.steps, len(result.validation)) == ([steps], 1)
    assert math.isfinite(result.test)
    assert result.measures["gradients"] > 0


@pytest.mark.parametrize("entry", [*WITH_PARTS, *METHODS])
def test_a_loss_that_is_not_finite_is_divergence(entry, spy):
    spy.spoil = lambda call: math.nan
    assert trials.run(trial(entry, 3)).diverged


def test_without_parts_it_is_the_loop_that_anybody_would_write(spy):
    result = trials.run(trial("momentum", 20))
    assert spy.sizes() == [32] * 6 + [30] + [32] * 6 + [30] + [32] * 6
    assert torch.equal(spy.rows(), orders(7, 3)[: sum(spy.sizes())])
    assert result.measures == {"gradients": 20.0}


@pytest.mark.parametrize(
    ("word", "sizes"),
    [
        ("full-batch", [222] * 4),
        ("one-sample", [1] * 30),
        # milestones at 9, 18 and 24 of 30; epochs end in what is left of them
        ("batch-growth", [32] * 6 + [30] + [32] * 2 + [158] + [160, 62] * 4 + [222] * 12),
    ],
)
def test_batches_of_another_size_have_the_order_of_the_others(word, sizes, spy):
    result = trials.run(trial(f"momentum+{word}", len(sizes)))
    assert spy.sizes() == sizes
    count = sum(sizes)
    assert torch.equal(spy.rows(), orders(7, count // SAMPLES + 1)[:count])
    assert result.measures["gradients"] == pytest.approx(count / BATCH)


def test_batch_growth_keeps_the_rate_until_the_data_end(spy):
    trials.run(trial("momentum+batch-growth", 30))
    # 0.2^3 in all: at a batch that is 222/32 as large the rest is the rate's
    rate = spy.optimizers[0].param_groups[0]["lr"]
    assert rate == pytest.approx(0.03 * 0.2**3 * SAMPLES / BATCH)


def test_an_adaptive_batch_costs_the_samples_that_it_drew(spy, monkeypatch):
    drawn, original = [], adaptive.per_sample
    monkeypatch.setattr(
        adaptive, "per_sample", lambda m, f, b: drawn.append(len(b[0])) or original(m, f, b)
    )
    result = trials.run(trial("torch.optim:SGD+adaptive-batch", 10))
    assert len(drawn) >= 10
    assert {*drawn} <= {30, SAMPLES % 30}
    assert result.measures["gradients"] == pytest.approx(sum(drawn) / BATCH)


def trained(steps, change=lambda model, step: None, lr=0.03):
    """A plain loop of torch's SGD; its model and setup."""
    setup = DIABETES.build(7)
    optimizer = torch.optim.SGD(setup.model.parameters(), lr=lr)
    for step in range(steps):
        optimizer.zero_grad()
        setup.loss(setup.model, next(setup.batches)).backward()
        change(setup.model, step)
        optimizer.step()
    return setup


def test_a_clipped_gradient_is_torchs():
    bound = {"clip.norm": 0.1}
    clip = nn.utils.clip_grad_norm_
    oracle = trained(30, lambda model, _: clip(model.parameters(), 0.1))
    got = trials.run(trial("torch.optim:SGD+clip", **bound))
    assert got.validation[-1] == oracle.evaluate(oracle.model, "validation")
    assert got.validation != trials.run(trial("torch.optim:SGD")).validation


def test_clip_waits_for_the_gradients_of_a_closure():
    weight = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    Recipe.read("torch.optim:SGD+clip").equip(optimizer, 1, {"clip.norm": 0.5}, 0)

    def closure():
        optimizer.zero_grad()
        loss = (3 * weight[0] + 4 * weight[1]).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) == 7
    assert weight.tolist() == pytest.approx([1 - 0.5 * 3 / 5, 1 - 0.5 * 4 / 5])


def test_noise_has_its_variance_and_is_not_clipped():
    weight = nn.Parameter(torch.zeros(100_000))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    hyper = {"noise.eta": 0.25, "clip.norm": 0.03}
    Recipe.read("torch.optim:SGD+noise+clip").equip(optimizer, 10, hyper, 3)
    for t in range(10):
        before = weight.detach().clone()
        weight.grad = torch.zeros_like(weight)
        optimizer.step()
        variance = (weight - before).detach().square().mean().item()
        # the variance of n normals is known to sqrt(2 / n) of itself
        assert variance == pytest.approx(0.25 / (1 + t) ** 0.55, rel=5 * math.sqrt(2 / 100_000))


def test_the_first_steps_imports_and_compilers_are_no_training(monkeypatch):
    monkeypatch.setattr(trials, "_warm", set())
    seen = []
    for module, name in ((trials, "train"), (measured, "turns")):  # before the training, and it
        original = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda *a, f=original, **k: seen.append(a[1].name) or f(*a, **k)
        )
    for entry in ("momentum+adaptive-batch", "levenberg-marquardt", "momentum+batchnorm"):
        seen.clear()
        monkeypatch.setattr(trials, "suppress", lambda *_: nullcontext())  # nothing is hidden
        for expected in (2, 3):
            trials.run(trial(entry, 1))
            assert seen == [entry] * expected  # once before the training, and once only


def test_two_optimizers_of_a_loop_have_two_noises(tmp_path):
    file = tmp_path / "own.py"
    file.write_text(
        "import torch\nMINIMIZE = 'loss'\nSTEPS = 3\n"
        "def train(make_optimizer, report, seed):\n"
        "    both = [torch.nn.Parameter(torch.zeros(4)) for _ in range(2)]\n"
        "    made = [make_optimizer([p]) for p in both]\n"
        "    for step in (1, 2, 3):\n"
        "        for p, optimizer in zip(both, made):\n"
        "            p.grad = torch.zeros(4)\n            optimizer.step()\n"
        "        report(step, validation=1.0, a=both[0][0].item(), b=both[1][0].item())\n"
    )
    kept = replace(trial("torch.optim:SGD+cosine+noise", 3), task=str(file))
    found = trials.run(kept).measures
    assert 0 != found["a"] != found["b"] != 0
    assert trials.run(kept).measures == found


@pytest.mark.parametrize("word", ["curriculum", "anti-curriculum", "random-curriculum"])
def test_a_curriculum_opens_the_data_in_the_order_of_a_trained_copys_losses(word, spy):
    steps, start = 40, 0.2
    result = trials.run(trial(f"torch.optim:SGD+{word}", steps, **{f"{word}.start": start}))
    copied = trained(10)
    x, y = diabetes()["train"]
    with torch.no_grad():
        losses = (copied.model(x) - y).square()
    ranking = losses.argsort(descending=word == "anti-curriculum").tolist()
    known = {tuple(row.tolist()): i for i, row in enumerate(x)}
    scoring = 0 if word == "random-curriculum" else 10 + SAMPLES
    batches = [[known[tuple(row.tolist())] for row in x] for x, _ in spy.batches[scoring:]]
    assert len(batches) == steps
    opened = [math.ceil(min(1, start + t / 20 * (1 - start)) * SAMPLES) for t in range(steps)]
    for batch, count in zip(batches, opened, strict=True):
        assert len({*batch}) == BATCH
        if scoring:
            assert {*batch} <= {*ranking[:count]}
    if not scoring:  # a growing part, whichever it is, and not that of the losses
        assert len({i for batch in batches[:3] for i in batch}) <= opened[2]
        assert not {*batches[0]} <= {*ranking[: opened[0]]}
    cost = steps + (10 + SAMPLES / BATCH / 3 if scoring else 0)
    assert result.measures["gradients"] == pytest.approx(cost)


def metrics(values):
    """An evaluation that gives each new set of weights the next of the values."""
    known, left = {}, iter(values)

    def evaluate(model, split):
        key = tuple(p.detach().double().sum().item() for p in model.parameters())
        if key not in known:
            known[key] = next(left)
        return known[key]

    return evaluate


def test_early_stopping_ends_with_the_best_weights(spy):
    spy.evaluate = metrics([5.0, 3.0, 4.0, 6.0, 7.0])
    result = trials.run(trial("momentum+early-stopping", 63))
    assert result.validation == [5, 3, 4, 6, 3, 3, 3, 3, 3]
    assert (result.test, result.measures) == (3, {"gradients": 35.0})
    assert len(spy.batches) == 35
    assert result.steps == [*range(7, 64, 7)]  # those of the others
    assert len({*result.seconds[4:]}) == 1


def test_a_run_that_is_not_stopped_ends_with_the_best_weights_too(spy):
    spy.evaluate = metrics([5.0, 3.0, 4.0])
    result = trials.run(trial("momentum+early-stopping", 21))
    assert (result.validation, result.test) == ([5, 3, 3], 3)


def test_restarts_halve_the_rate_from_the_best_weights(spy):
    spy.evaluate = metrics([3.0, *range(4, 100)])
    result = trials.run(trial("momentum+restarts", 84))
    # one and three worse, then twice three worse: a third time stops
    assert result.validation == [3, 4, 5, 6, 7, 8, 9, 10, 11, 3, 3, 3]
    assert result.measures["gradients"] == 70
    assert spy.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.03 / 4)


def test_switches_change_the_model_and_not_its_weights(spy):
    result = trials.run(trial("momentum", 1))
    trials.run(trial("momentum+dropout", 1, **{"dropout.p": 0.3}))
    both = trials.run(trial("momentum+batchnorm+dropout", 1))
    plain, dropped, normed = spy.built
    assert result.initial != both.initial
    assert [m.p for m in dropped if isinstance(m, nn.Dropout)] == [0.3, 0.3]
    assert sum(isinstance(m, nn.BatchNorm1d) for m in normed) == 2
    for other in (dropped, normed):
        linear = [[m.weight for m in model if isinstance(m, nn.Linear)] for model in (plain, other)]
        assert all(torch.equal(a, b) for a, b in zip(*linear, strict=True))


@pytest.mark.parametrize("entry", METHODS)
def test_a_method_on_the_whole_loss_sees_all_data_and_counts_what_it_costs(entry, spy):
    steps = 1 if entry in SLOW else 4
    result = trials.run(trial(entry, steps))
    calls, size = len(spy.batches), 10 * 32 + 32 + 32 * 32 + 32 + 32 + 1
    assert {*spy.sizes()} == {SAMPLES}
    gradients = result.measures["gradients"] * BATCH / SAMPLES
    assert result.parameters == size
    if entry in SLOW:  # a gradient and a Hessian, then losses
        assert gradients == pytest.approx(1 + 2 * size + (calls - 1) / 3)
    elif entry == "levenberg-marquardt":  # a Jacobian each
        assert gradients == pytest.approx(calls / 3 + steps * SAMPLES)
    elif entry in ("bfgs", "lbfgs"):
        assert gradients == pytest.approx(calls)
    elif entry == "newton-cg":  # and products
        assert gradients > steps + (calls - steps) / 3 + 2 * steps - 1e-9
    else:
        assert gradients == pytest.approx(calls / 3)
    if entry == "genetic":
        assert calls == 50 + 3 * 49


def test_lbfgs_is_torchs():
    setup = DIABETES.build(7)
    optimizer = torch.optim.LBFGS(
        setup.model.parameters(), lr=1.0, max_iter=1, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        loss = setup.loss(setup.model, diabetes()["train"])
        loss.backward()
        return loss

    for _ in range(10):
        optimizer.step(closure)
    got = trials.run(trial("lbfgs", 10))
    assert got.validation[-1] == pytest.approx(setup.evaluate(setup.model, "validation"), rel=1e-6)


@pytest.mark.parametrize("entry", ["momentum+clip+noise", "adam+clip", "momentum+noise+cosine"])
@pytest.mark.parametrize("task", ["digits-gan", "bag-of-words", "text", "digits"])
def test_what_acts_at_the_step_runs_in_every_task(task, entry, monkeypatch):
    entry = "+".join([entry.split("+")[0], *(w for w in PARTS if w in entry.split("+"))])
    run = replace(trial(entry, 2), task=task, phase=TUNING)
    result = trials.run(run)
    assert (result.diverged, result.steps) == (None, [2])
    assert ("gradients" in result.measures) == (task in ("text", "digits"))


def test_a_race_with_parts_is_stored_and_shown(tmp_path):
    names = "adamw,adamw+noise,momentum+batch-growth,bfgs"
    request = Request("diabetes", names, trials=2, seeds=2, steps=7)
    summary, interrupted = driver.race(request, tmp_path / "race", jobs=1)
    assert summary["complete"]
    assert not interrupted
    found = summary["entries"]
    assert found["momentum+batch-growth"]["gradients"] > 7 == found["adamw"]["gradients"]
    assert {*found["adamw+noise"]["hyperparameters"]} == {"lr", "weight_decay", "noise.eta"} & {
        *Recipe.read("adamw+noise").space
    }
    assert "cost" in {finding["name"] for finding in summary["lint"]}
    rows = [*csv.DictReader((tmp_path / "race" / "runs.csv").read_text().splitlines())]
    assert len(rows) == 4 * 2 * 3
    for row in rows:
        assert bool(row["hyper.noise.eta"]) == (row["entry"] == "adamw+noise")
        assert float(row["measure.gradients"]) > 0
    page = (tmp_path / "race" / "report.html").read_text(encoding="utf-8")
    assert len(re.findall(r"<th[^>]*>(?:<wbr>)?\s*gradients", page)) == 1
    same, _ = driver.race(replace(request, seeds=None), tmp_path / "race", jobs=1, resume=True)
    assert json.dumps(same) == json.dumps(summary)
