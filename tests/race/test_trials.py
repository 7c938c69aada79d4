"""One trial: the loop that anybody would write, and what is measured in it."""

import math
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from steepest import tasks
from steepest.race import scores, trials
from steepest.race.protocol import FRESH, TUNING, Trial
from steepest.tasks import images
from steepest.training.recipe import Recipe

DIGITS = tasks.get("digits")


def trial(**changes):
    base = Trial("digits", FRESH, "momentum", 0, 7, 30, {"lr": 0.05})
    return replace(base, **changes)


@pytest.fixture
def stock(monkeypatch):
    """Trials with torch's own SGD in place of every entry."""
    monkeypatch.setattr(
        Recipe, "optimizer", lambda self, params, hyper, *_: torch.optim.SGD(params, lr=hyper["lr"])
    )


def test_a_trial_is_the_loop_that_anybody_would_write(stock):
    torch.set_num_threads(2)
    got = trials.run(trial())
    assert torch.get_num_threads() == 1
    setup = DIGITS.build(7)
    optimizer = torch.optim.SGD(setup.model.parameters(), lr=0.05)
    oracle = []
    for step in range(1, 31):
        optimizer.zero_grad()
        setup.loss(setup.model, next(setup.batches)).backward()
        optimizer.step()
        if step in (25, 30):
            oracle.append(setup.evaluate(setup.model, "validation"))
    assert (got.steps, got.validation) == ([25, 30], oracle)
    assert got.test == setup.evaluate(setup.model, "test")
    assert got.diverged is None
    assert 0 < got.step_seconds < got.train_seconds
    assert got.seconds[0] < got.seconds[1] < got.wall_seconds


def test_the_seed_decides_weights_and_order():
    one, same, other = DIGITS.build(1), DIGITS.build(1), DIGITS.build(2)
    first = [next(setup.batches)[0] for setup in (one, same, other)]
    assert torch.equal(first[0], first[1])
    assert not torch.equal(first[0], first[2])
    weights = [next(setup.model.parameters()) for setup in (one, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_splits_are_the_whole_data_set_without_overlap():
    from sklearn.datasets import load_digits

    def sorted_rows(images):
        rows = images.reshape(len(images), 64)
        return rows[np.lexsort(rows.T)]

    parts = [x.numpy()[:, 0] * 16 for x, _ in images.digits().values()]
    assert [len(part) for part in parts] == [800, 400, 597]
    assert np.array_equal(
        sorted_rows(np.concatenate(parts)),
        sorted_rows(load_digits(return_X_y=True)[0].astype("f4")),
    )


def test_an_epoch_sees_every_training_image_once():
    setup = DIGITS.build(3)
    seen = torch.cat([next(setup.batches)[0] for _ in range(DIGITS.every)])
    train = images.digits()["train"][0]
    assert torch.equal(seen.sum(dim=(1, 2, 3)).sort()[0], train.sum(dim=(1, 2, 3)).sort()[0])


def test_a_tuning_trial_never_sees_test_data(stock, monkeypatch):
    asked = []
    setup = DIGITS.build(0)
    spy = replace(setup, evaluate=lambda model, split: asked.append(split) or 0.5)
    monkeypatch.setitem(tasks.TASKS, "digits", replace(DIGITS, build=lambda seed: spy))
    assert trials.run(trial(phase=TUNING)).test is None
    assert set(asked) == {"validation"}


def test_a_diverged_run_is_a_result():
    result = trials.run(trial(entry="momentum", hyper={"lr": 1e30}))
    assert result.diverged
    assert result.test is None  # what it counts as, the whole race decides
    assert scores.tested(DIGITS, trial(), result) == DIGITS.worst > 0
    assert scores.tested(DIGITS, trial(phase=TUNING), result) is None
    assert scores.final(DIGITS, result) == DIGITS.worst


@pytest.mark.parametrize("error", [FloatingPointError, ZeroDivisionError, OverflowError])
def test_an_arithmetic_error_of_an_optimizer_is_divergence(error, monkeypatch):
    class Failing(torch.optim.SGD):
        def step(self, closure=None):
            raise error

    monkeypatch.setattr(Recipe, "optimizer", lambda self, params, *_: Failing(params, lr=1.0))
    assert trials.run(trial()).diverged == error.__name__


def test_the_first_step_that_compiles_is_not_training_time(monkeypatch):
    class Compiled(torch.optim.SGD):
        def step(self, closure=None):
            time.sleep(slow.pop() if slow else 0)
            return super().step(closure)

    slow = [0.5]
    monkeypatch.setattr(trials, "_warm", set())
    monkeypatch.setattr(Recipe, "optimizer", lambda self, params, *_: Compiled(params, lr=0.1))
    result = trials.run(trial(steps=2))
    assert result.warm_seconds >= 0.5
    assert result.seconds[-1] < 0.5
    assert result.step_seconds < 0.25


def test_a_bug_is_not_divergence(monkeypatch):
    monkeypatch.setattr(Recipe, "optimizer", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        trials.run(trial())


def test_a_metric_that_is_not_finite_is_divergence(stock, monkeypatch):
    spy = replace(DIGITS.build(0), evaluate=lambda model, split: math.nan)
    monkeypatch.setitem(tasks.TASKS, "digits", replace(DIGITS, build=lambda seed: spy))
    assert trials.run(trial()).diverged == "model output is not finite at step 25"
