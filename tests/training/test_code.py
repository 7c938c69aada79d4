"""An entry as code to paste: what runs it gets what the race trains, for every rule and part."""

import copy
import re
from dataclasses import replace

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import TensorDataset

import steepest
from steepest.tasks import get
from steepest.tasks.task import Samples, Setup, Task
from steepest.training.full_batch import METHODS
from steepest.training.loop import train
from steepest.training.parts import PARTS, Part
from steepest.training.parts.part import first_setup
from steepest.training.recipe import Recipe, shorten
from steepest.training.steps import Training, endless

SIZE, SAMPLES = 4, 24
LENGTHS = [1, 2, 7, 40]
BATCHED = [name for name, part in PARTS.items() if part.own_batches]
IN_THE_STEP = [name for name, part in PARTS.items() if part.any_loop]


def rows():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(SAMPLES, 2, generator=generator)
    return x, x.sum(1, keepdim=True)


def build(seed):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
    samples = Samples(rows(), SIZE)
    return Setup(
        model, samples.batched(seed), loss, lambda model, split: loss(model, rows()).item(),
        samples=samples, test_data=True,
    )  # fmt: skip


def loss(model, batch):
    return nn.functional.mse_loss(model(batch[0]), batch[1])


TASK = Task("tiny", "error", False, 9.0, 0.1, 20, 5, 0, False, build=build)


def pasted(entry, hyper, steps, **names):
    """What the code defines, run as it stands."""
    names = {"loss": loss, "dataset": TensorDataset(*rows()), "batch_size": SIZE, **names}
    code = Recipe.read(entry).code(hyper, steps, "min")
    assert max(map(len, code.splitlines())) <= 100
    exec(compile(code, entry, "exec"), names)
    return names


def defaults(entry, **more):
    return {k: shorten(v) for k, v in (Recipe.read(entry).defaults | more).items()}


def options(optimizer):
    return [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]


def advanced(model, optimizer, steps):
    """The learning rate at each step, on batches that are the same for everybody."""
    found, batches = [], endless(Samples(rows(), SIZE).batched(0))
    for _ in range(steps):
        batch = next(batches)

        def closure(batch=batch):
            optimizer.zero_grad()
            value = loss(model, batch)
            value.backward()
            return value

        found.append([group.get("lr") for group in optimizer.param_groups])
        around = optimizer, getattr(optimizer, "optimizer", None)
        if any(isinstance(each, steepest.SAM) for each in around):
            optimizer.step(closure)
        else:
            closure()
            optimizer.step()
    return found


@pytest.mark.parametrize("rule", list(steepest.rules))
def test_every_rule_as_code_is_the_optimizer_of_the_race(rule):
    model, hyper = build(0).model, defaults(rule)
    hyper = {k: shorten(v * 0.7) for k, v in hyper.items()}
    made, raced = pasted(rule, hyper, 5, model=model)["optimizer"], Recipe.read(rule)
    same = raced.optimizer(model.parameters(), hyper)
    assert type(made) is type(same)
    assert options(made) == options(same)
    assert all(knob in Recipe.read(rule).code(hyper, 5) for knob in hyper)


@pytest.mark.parametrize("method", list(METHODS))
def test_every_method_on_the_whole_loss_as_code(method):
    model, hyper = build(0).model, defaults(method)
    made = pasted(method, hyper, 5, model=model)["optimizer"]
    same = Recipe.read(method).optimizer(model.parameters(), hyper, 0)
    assert type(made) is type(same)
    assert options(made) == options(same)


@pytest.mark.parametrize("steps", LENGTHS)
@pytest.mark.parametrize(
    "words",
    [
        *IN_THE_STEP,
        "warmup+cosine+noise+clip",
        "warmup+triangular",
        "warmup+step+clip",
        "cosine+noise+clip+sam+lookahead",
        "clip+asam",
    ],
)
def test_every_part_of_the_step_has_the_same_rates_and_the_same_weights(words, steps):
    entry = f"momentum+{words}"
    hyper = {k: shorten(v * 0.9) for k, v in defaults(entry).items()}
    ours, theirs = build(0).model, build(0).model
    optimizer = Recipe.read(entry).optimizer(theirs.parameters(), hyper)
    Recipe.read(entry).equip(optimizer, steps, hyper, 0)
    optimizer = Recipe.read(entry).wrap(optimizer, hyper)
    made = pasted(entry, hyper, steps, model=ours)["optimizer"]
    assert advanced(ours, made, steps) == advanced(theirs, optimizer, steps)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", BATCHED)
def test_a_part_that_chooses_batches_has_the_same_sizes_and_rates(name, monkeypatch):
    entry, steps, seen, now, ordered = f"sgd+{name}", 12, [], None, []
    hyper = defaults(entry, lr=0.01)
    recipe = Recipe.read(entry)

    def noted(model, batch):
        seen.append((batch[0].shape[0], now and now.param_groups[0]["lr"]))
        return loss(model, batch)

    def make(model):
        nonlocal now
        now = recipe.optimizer(model.parameters(), hyper)
        recipe.equip(now, steps, hyper, 0)
        return now

    order = steepest.strategies.Curriculum

    def curriculum(scores, pace, size, *, first, seed):
        ordered.append(([pace(t) for t in range(steps)], size, first, len(scores)))
        return order(scores, pace, size, first=first, seed=seed)

    monkeypatch.setattr(steepest.strategies, "Curriculum", curriculum)
    task = replace(TASK, build=lambda seed: replace(build(seed), loss=noted))
    train(task, recipe, hyper, 0, steps, lambda *_, **__: None, make_optimizer=make)
    # a curriculum's copy sees batches too, before the run, and then each sample alone
    raced = [pair for pair in seen if pair[0] > 1 or name == "one-sample"][-steps:]
    model = build(0).model
    names = pasted(entry, hyper, steps, model=model)
    assert isinstance(names["loader"], steepest.strategies.Loader)
    assert ordered[1:] == ordered[:1]  # the race's, and that of the code
    assert bool(ordered) == ("curriculum" in name)
    if "adaptive" in names:
        for _ in range(steps):
            names["adaptive"].step()
        assert names["adaptive"].samples >= steps * min(30, SIZE)
        return
    now, seen[:] = names["optimizer"], []
    batches = endless(names["loader"])
    for _ in range(steps):
        now.zero_grad()
        noted(model, next(batches)).backward()
        now.step()
    assert seen == raced


def test_a_curriculum_orders_by_the_loss_of_a_copy():
    names = pasted("adam+curriculum", defaults("adam+curriculum"), 40, model=build(0).model)
    assert names["trained"] is not names["model"]
    assert names["scores"].shape == (SAMPLES,)
    assert "train this copy for 10 steps" in Recipe.read("adam+curriculum").code(
        defaults("adam+curriculum"), 40
    )


@pytest.mark.parametrize("entry", ["adamw", "torch.optim:SGD+cosine"])
def test_a_knob_that_is_a_distance_from_1_is_the_option(entry):
    knob, option = ("1-beta1", "beta1") if entry == "adamw" else ("1-momentum", "momentum")
    made = pasted(entry, {"lr": 0.01, knob: 0.123456}, 5, model=build(0).model)["optimizer"]
    group = made.param_groups[0]
    assert (group["betas"][0] if entry == "adamw" else group[option]) == 0.877


@pytest.mark.parametrize("entry", ["schedule_free_adamw+sam", "schedule_free_sgd+asam"])
def test_what_the_code_says_of_evaluation_is_there(entry):
    code = Recipe.read(entry).code(defaults(entry), 5)
    optimizer = pasted(entry, defaults(entry), 5, model=build(0).model)["optimizer"]
    calls = re.findall(r"(optimizer[.a-z]*)\.(eval|train)\(", code)
    assert calls
    for name, method in calls:
        getattr(eval(name, {"optimizer": optimizer}), method)()


METRICS = [5.0, 4.0, 4.5, 4.6, 4.7, 3.0, 3.5, 3.6, 3.7, 3.8, 3.9, 4.0, 4.1]


@pytest.mark.parametrize("name", ["early-stopping", "restarts"])
def test_a_part_that_stops_stops_at_the_same_evaluation(name):
    entry = f"adam+{name}"
    hyper, setup = defaults(entry), build(0)
    recipe = Recipe.read(entry)
    optimizer = recipe.optimizer(setup.model.parameters(), hyper)
    training = Training(TASK, recipe, setup, optimizer, hyper, 0, 13, lambda batch: None)
    stop = PARTS[name].on_evaluation(training)
    names = pasted(entry, hyper, 13, model=copy.deepcopy(setup.model))
    for metric in METRICS:
        over = stop(metric, False)
        if name == "restarts":
            names["restarts"].step(metric)
            assert names["restarts"].stopped == over
            assert options(names["optimizer"]) == options(optimizer)
        else:
            assert names["stopping"].step(metric) == over
        if over:
            return
    raise AssertionError("nothing stopped")


@pytest.mark.parametrize("name", ["batchnorm", "dropout"])
def test_a_switch_names_layers_that_the_task_has(name):
    entry = f"adam+{name}"
    hyper = defaults(entry)
    found = re.findall(r"torch\.nn\.(\w+)", Recipe.read(entry).code(hyper, 5))
    layers = {type(m).__name__ for m in Recipe.read(entry).setup(get("digits"), hyper, 0).model}
    layers |= {type(m).__name__ for m in Recipe.read(entry).setup(get("diabetes"), hyper, 0).model}
    assert found
    assert set(found) <= layers
    assert not set(found) & {type(m).__name__ for m in first_setup(get("diabetes")).model}
    assert name != "dropout" or "Dropout(0.2)" in Recipe.read(entry).code(hyper, 5)
    pasted(entry, hyper, 5, model=build(0).model)


def test_every_part_says_its_code():
    assert [name for name, part in PARTS.items() if type(part).code is Part.code] == []


MINE = """
import torch
class Outer:
    class Inner(torch.optim.SGD):
        trained = False
        def __init__(self, params, lr=0.1):
            super().__init__(params, lr)
        def train(self):
            self.trained = True
"""


def test_a_class_of_the_user_is_imported_and_nothing_of_it_is_needed(tmp_path, monkeypatch):
    entry, hyper = "mine_to_paste:Outer.Inner+cosine", {"lr": 0.25}
    assert Recipe.read(entry).code(hyper, 5)  # there is no such module yet
    (tmp_path / "mine_to_paste.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    made = pasted(entry, hyper, 5, model=build(0).model)["optimizer"]
    assert type(made).__qualname__ == "Outer.Inner"
    assert made.trained
    plain = pasted("torch.optim:SGD", {"lr": 0.25, "momentum": 0.5}, 5, model=build(0).model)
    assert type(plain["optimizer"]) is torch.optim.SGD
    assert plain["optimizer"].defaults["momentum"] == 0.5


def test_a_rule_of_the_user_is_made_by_its_name(monkeypatch):
    text = Recipe.read("unknown_rule").code({"lr": 0.25}, 5)
    assert "# unknown_rule is a rule of your own: import the module that defines it" in text

    @steepest.rule
    def unknown_rule(p, g, *, lr=0.1):
        """Made up."""
        return p - lr * g

    try:
        assert Recipe.read("unknown_rule").code({"lr": 0.25}, 5) == text
        names = {"model": build(0).model}
        exec(text, names)
        assert options(names["optimizer"])[0]["lr"] == 0.25
    finally:
        del steepest.rules["unknown_rule"]


def test_one_number_of_a_pair():
    hyper = {"lr": 0.01, "beta2": 0.99996}
    made = pasted("adamw", hyper, 5, model=build(0).model)["optimizer"]
    assert made.param_groups[0]["betas"] == (0.9, 0.99996)


@given(st.floats(1e-12, 1e12))
@example(0.99996)
@example(0.9999999)
@example(1.0)
@example(1 / 3)
def test_a_rounded_value_is_near_also_in_its_distance_from_one(value):
    short = shorten(value)
    assert abs(short - value) <= 0.005 * abs(value)
    assert abs(short - value) <= 0.005 * abs(1 - value)
    assert shorten(short) == short
    assert (short < 1) == (value < 1)


@pytest.mark.parametrize(("value", "short"), [(0.0208333, 0.0208), (1 / 3, 0.333), (0.001, 0.001)])
def test_three_digits_are_enough_mostly(value, short):
    assert shorten(value) == short
