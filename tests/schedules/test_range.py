"""The lr range test: what it finds, and that it changes nothing."""

import copy
import io
import itertools
import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim.lr_scheduler import StepLR

import steepest
from steepest.schedules import Interval, range_test
from tests.schedules.cases import BATCHES, OPTIMIZERS, Net, X, Y, loss_of, train


@pytest.fixture(autouse=True)
def _one_thread(_settings):
    torch.set_num_threads(1)  # these models are far too small for two


def everything(model, optimizer, loader):
    """All that a range test must leave as it was."""
    return copy.deepcopy(
        [
            [*model.named_parameters()], [*model.named_buffers()],
            [p.grad for p in model.parameters()], [m.training for m in model.modules()],
            optimizer.state_dict(), torch.get_rng_state(), random.getstate(),
            list(np.random.get_state()), loader.generator.get_state(),
        ]
    )  # fmt: skip


def same(one, other):
    file, again = io.BytesIO(), io.BytesIO()
    torch.save(one, file), torch.save(other, again)
    return file.getvalue() == again.getvalue()


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("name", ["AdaBelief", "tensor lr", "Lookahead"])
def test_a_range_test_changes_nothing(name, error):
    model = Net()
    model.layers[1].eval()
    optimizer = OPTIMIZERS[name](model)
    scheduler = StepLR(optimizer, 3)
    data = torch.utils.data.TensorDataset(X, Y)
    generator = torch.Generator().manual_seed(8)
    loader = torch.utils.data.DataLoader(data, 8, shuffle=True, generator=generator)
    for k in range(5):
        train(model, optimizer, k)
        scheduler.step()
    calls = 0

    def loss(model, batch):
        nonlocal calls
        calls += 1
        random.random(), np.random.rand(), torch.rand(2)
        model.train()
        if calls == 30 and error:
            raise error("stop")
        return loss_of(model, batch)

    held = [*model.parameters(), *model.buffers(), *(p.grad for p in model.parameters())]
    before = everything(model, optimizer, loader)
    assert same(before, everything(model, optimizer, loader))
    if error:
        with pytest.raises(error, match="stop"):
            range_test(model, optimizer, loss, loader, steps=20, seeds=2)
        assert calls == 30
    else:
        result = range_test(model, optimizer, loss, loader, steps=20, seeds=2)
        assert result.losses[0] != result.losses[1]
    assert same(before, everything(model, optimizer, loader))
    now = [*model.parameters(), *model.buffers(), *(p.grad for p in model.parameters())]
    assert all(a is b for a, b in zip(held, now, strict=True))


def test_its_losses_are_those_of_a_plain_loop_and_repeat():
    model = Net()
    groups = [
        {"params": model.layers[0].parameters(), "lr": 1e-3},
        {"params": [*model.layers[1].parameters(), *model.layers[3].parameters()], "lr": 4e-3},
    ]
    optimizer = steepest.AdaBelief(groups)
    train(model, optimizer, 0)
    result = range_test(model, optimizer, loss_of, BATCHES[:1], steps=12, high=0.1, seeds=[7])
    assert result == range_test(
        model, optimizer, loss_of, BATCHES[:1], steps=12, high=0.1, seeds=[7]
    )
    assert result.lrs[0], result.lrs[-1] == (1e-6, pytest.approx(0.1))
    plain = []
    for k in range(12):
        lr = 10 ** (-6 + 5 * k / 11)
        optimizer.param_groups[0]["lr"], optimizer.param_groups[1]["lr"] = lr / 4, lr
        plain.append(loss_of(copy.deepcopy(model), BATCHES[0]).item())
        train(model, optimizer, 0)
    assert result.losses[7] == pytest.approx(plain, rel=1e-6)


def test_it_repeats_wherever_the_generators_are():
    model = Net()
    data = torch.utils.data.TensorDataset(X, Y)
    generator = torch.Generator().manual_seed(8)
    own = torch.utils.data.DataLoader(data, 8, shuffle=True, generator=generator)
    common = torch.utils.data.DataLoader(data, 8, shuffle=True)
    optimizer = steepest.AdaBelief(model.parameters())
    noises = [lambda: 0, random.random, np.random.rand, lambda: torch.rand(()).item()]
    for loader, noise in [(own, noises[0]), *((common, noise) for noise in noises)]:

        def loss(model, batch, noise=noise):
            return loss_of(model, batch) * (1 + noise())

        first = range_test(model, optimizer, loss, loader, steps=10, seeds=2)
        torch.rand(3), random.random(), np.random.rand(), torch.rand(3, generator=generator)
        assert range_test(model, optimizer, loss, loader, steps=10, seeds=2) == first
        assert first.losses[0] != first.losses[1]


def test_it_asks_what_adabound_would_do_if_made_with_that_rate():
    model = Net()
    result = range_test(
        model, steepest.AdaBound(model.parameters()), loss_of, BATCHES[:1], steps=12, seeds=1
    )
    optimizer = steepest.AdaBound(model.parameters())
    for k, seen in enumerate(result.losses[0]):
        lr = 10 ** (-6 + 7 * k / 11)
        assert loss_of(copy.deepcopy(model), BATCHES[0]).item() == pytest.approx(seen, rel=1e-5)
        made = steepest.AdaBound(model.parameters(), lr=lr)
        saved = made.state_dict()
        optimizer.load_state_dict({**optimizer.state_dict(), "param_groups": saved["param_groups"]})
        train(model, optimizer, 0)


def test_what_calls_the_closure_twice_is_taken_and_what_cannot_be_copied_is_not():
    model = Net()
    sam = steepest.SAM(torch.optim.SGD(model.parameters(), lr=1.0))
    result = range_test(model, sam, loss_of, BATCHES[:1], steps=10, seeds=1)
    assert result.losses[0][0] == pytest.approx(loss_of(Net(), BATCHES[0]).item())
    assert len(result.losses[0]) == 10
    with pytest.raises(TypeError, match="an LBFGS was given"):
        range_test(model, torch.optim.LBFGS(model.parameters()), loss_of, BATCHES)


class Bowl(nn.Module):
    """A quadratic of the given curvature around the batch's point."""

    def __init__(self, curvature):
        super().__init__()
        self.x = nn.Parameter(torch.full((8,), 30.0, dtype=torch.float64))
        self.curvature = curvature

    def forward(self, batch):
        return self.curvature / 2 * (self.x - batch).square().sum()


POINTS = [*torch.randn(40, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)]


def bowl(curvature, **options):
    model = Bowl(curvature)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    low, high = 1e-5 / curvature, 10 / curvature
    return range_test(model, optimizer, Bowl.__call__, POINTS, low=low, high=high, **options)


def test_on_a_quadratic_the_loss_rises_where_gradient_descent_is_unstable():
    result = bowl(1.0)
    fall, rise = result.fall, result.rise
    assert fall.n == rise.n == 5
    # exact gradient descent is stable below 2, and falls fastest per step at 1
    assert 0.02 < fall.low <= fall.median <= fall.high < 1
    assert fall.high < rise.low <= rise.median <= rise.high < 2
    assert all(len(row) < len(result.lrs) for row in result.losses.values())


@pytest.mark.parametrize("last", [None, 40, 60])
def test_the_two_rates_are_read_off_a_moving_mean_over_a_tenth(last):
    calls = itertools.count(1)
    model = Bowl(1.0)
    found = range_test(
        model, torch.optim.SGD(model.parameters()),
        lambda m, b: m(b) * (math.nan if next(calls) == last else 1), POINTS,
        low=1e-5, high=10, seeds=1,
    )  # fmt: skip
    row = [x for x in found.losses[0] if x == x]
    assert last is None or len(row) == last - 1
    means = [sum(row[k - 5 : k + 6]) / 11 for k in range(5, len(row) - 5)]
    bottom = means.index(min(means))
    drops = [means[k] - means[k + 1] for k in range(bottom)]
    k = 5 + drops.index(max(drops))
    assert found.falls[0] == pytest.approx(math.sqrt(found.lrs[k] * found.lrs[k + 1]))
    assert found.rises[0] == pytest.approx(found.lrs[5 + bottom])


@given(st.integers(-12, 12))
@settings(max_examples=8, deadline=None)
def test_the_rates_found_scale_as_one_over_the_curvature(power):
    found, scaled = bowl(1.0, seeds=2), bowl(2.0**power, seeds=2)
    for seed in (0, 1):
        assert scaled.falls[seed] * 2.0**power == pytest.approx(found.falls[seed], rel=1e-6)
        assert scaled.rises[seed] * 2.0**power == pytest.approx(found.rises[seed], rel=1e-6)


def test_the_interval_is_the_median_the_lowest_and_the_highest():
    result = bowl(1.0, seeds=3)
    rates = sorted(result.falls.values())
    assert result.fall == Interval(pytest.approx(rates[1]), rates[0], rates[2], 3)
    assert f"n={3}" in str(result)
    assert len(str(result).splitlines()) == 3


def test_it_says_where_nothing_falls_or_rises():
    model = Bowl(1.0)
    options = {"low": 1e-9, "high": 1e-3, "seeds": 2}
    optimizer = torch.optim.SGD(model.parameters())
    steady = range_test(model, optimizer, lambda m, b: m(0 * b), POINTS, **options)
    assert steady.rise is None
    assert "begins to rise at no lr" in str(steady)
    gone = range_test(model, optimizer, lambda m, b: m(b) * math.nan, POINTS, **options)
    assert gone.fall is None
    assert [len(row) for row in gone.losses.values()] == [1, 1]
    assert "falls fastest at no lr" in str(gone)
    # one of two seeds
    calls = []

    def half(model, batch):
        calls.append(0)
        return model(batch) * (math.nan if len(calls) > 100 else 1)

    once = range_test(model, optimizer, half, POINTS, low=1e-3, high=1e-1, seeds=2)
    assert "n=1 of 2 seeds" in str(once)


NET = Net()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"low": 0}, "expected 0 < low < high"), ({"low": math.nan}, "expected 0 < low < high"),
        ({"low": 2, "high": 1}, "expected 0 < low < high"), ({"high": math.inf}, "low < high"),
        ({"steps": 9}, "a whole number of 10"), ({"steps": 20.0}, "a whole number of 10"),
        ({"seeds": 0}, "at least 1"), ({"seeds": [1, 1]}, "different"), ({"seeds": []}, "at least"),
        ({"diverged": 1}, "above 1"), ({"diverged": math.nan}, "above 1"),
        ({"batches": []}, "batches is empty"), ({"batches": iter(BATCHES)}, "only once"),
        ({"model": "net"}, "expected a torch.nn.Module and an optimizer"),
        ({"model": nn.Linear(2, 2)}, "parameters that the model does not have"),
        ({"loss": lambda m, b: 1.0}, "a tensor of one element"),
        ({"loss": lambda m, b: m(b[0])}, "a tensor of one element"),
        ({"loss": lambda m, b: loss_of(NET, b)}, "copy of the model that is"),
    ],
)  # fmt: skip
def test_a_range_test_refuses(options, words):
    given = {"model": NET, "loss": loss_of, "batches": BATCHES, **options}
    optimizer = torch.optim.SGD(NET.parameters(), lr=0.1)
    state = torch.get_rng_state()
    with pytest.raises((TypeError, ValueError), match=words):
        range_test(given.pop("model"), optimizer, given.pop("loss"), given.pop("batches"), **given)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_range_test_refuses_what_cannot_be_copied():
    model = Net()
    model.cached = model(X)  # with its graph
    with pytest.raises(TypeError, match="cannot be copied"):
        range_test(model, torch.optim.SGD(model.parameters()), loss_of, BATCHES)
