"""Annealing with restarts from the best weights."""

import copy
import math

import pytest
import torch

from steepest.schedules import RestartFromBest, WarmupLR
from tests.schedules.cases import OPTIMIZERS, Net, through_a_file, train


@pytest.fixture(autouse=True)
def _one_thread(_settings):
    torch.set_num_threads(1)  # these models are far too small for two


METRICS = [5.0, 4.0, 4.5, 4.0, math.nan, 3.0, 3.5, 3.2, 2.9, 9.0, 9.0, 9.0, 1.0]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_restart_is_a_new_optimizer_at_the_best_weights(name):
    model = Net()
    optimizer = OPTIMIZERS[name](model)
    scheduler = RestartFromBest(optimizer, model, patience=3)
    other = Net()
    plain = OPTIMIZERS[name](other)
    best, bad, lr = None, 0, 0.02
    for k, metric in enumerate(METRICS):
        train(model, optimizer, k), train(other, plain, k)
        scheduler.step(metric)
        if metric < min([m for m in METRICS[:k] if m == m], default=math.inf):
            best, bad = copy.deepcopy(other.state_dict()), 0
        else:
            bad += 1
        if bad == 3 and lr > 0.005:
            bad, lr = 0, lr / 2
            other.load_state_dict(best)
            plain = OPTIMIZERS[name](other)  # really a new one
            for group in plain.param_groups:
                group["lr"] = group["lr"] * (lr / 0.02)  # not in place
        for key, value in model.state_dict().items():
            assert torch.equal(value, other.state_dict()[key]), (k, key)
        rates = [float(group["lr"]) for group in optimizer.param_groups]
        assert [float(r) for r in scheduler.get_last_lr()] == pytest.approx(rates)
        assert rates == pytest.approx([lr] * len(rates))
    assert scheduler.restarted == 2
    assert not scheduler.stopped


def test_it_stops_with_the_best_weights_and_stays_there():
    model = Net()
    optimizer = OPTIMIZERS["AdaBelief"](model)
    scheduler = RestartFromBest(optimizer, model, mode="max", patience=2, restarts=1)
    for k, metric in enumerate((0.5, 0.7, 0.7, 0.6, 0.1, -math.inf)):
        train(model, optimizer, k)
        if metric == 0.7 and scheduler.best == 0.5:
            best = copy.deepcopy(model.state_dict())
        assert not scheduler.stopped
        scheduler.step(torch.tensor(metric))
    assert scheduler.stopped
    assert scheduler.get_last_lr() == [0.01]
    scheduler.step(1.0)
    assert scheduler.best == pytest.approx(0.7)
    for key, value in best.items():
        assert torch.equal(model.state_dict()[key], value)


def test_without_any_number_the_first_weights_are_the_best():
    model, first = Net(), Net()
    optimizer = OPTIMIZERS["AdaBelief"](model)
    scheduler = RestartFromBest(optimizer, model, patience=1, restarts=0)
    train(model, optimizer, 0)
    scheduler.step(math.nan)
    assert scheduler.stopped
    for p, q in zip(model.parameters(), first.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_restarts_resume(name):
    metrics = [math.cos(k * k) + 1 / (1 + k) for k in range(100)]

    def run():
        model = Net()
        optimizer = OPTIMIZERS[name](model)
        inner = RestartFromBest(optimizer, model, patience=9, restarts=6)
        return model, optimizer, WarmupLR(inner, 5), inner

    def go(parts, ks):
        for k in ks:
            train(parts[0], parts[1], k)
            parts[2].step()
            parts[2].step(metrics[k])
        return parts

    whole, first = go(run(), range(100)), go(run(), range(50))
    saved = through_a_file([part.state_dict() for part in first[:3]])
    again = run()
    for part, state in zip(again[:3], saved, strict=True):
        part.load_state_dict(state)
    go(again, range(50, 100))
    assert 0 < first[3].restarted < whole[3].restarted == again[3].restarted
    assert again[2].get_last_lr() == whole[2].get_last_lr()
    for key, value in whole[0].state_dict().items():
        assert torch.equal(again[0].state_dict()[key], value)
