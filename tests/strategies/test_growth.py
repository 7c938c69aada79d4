"""Batch growth: the noise scale is that of the schedule it stands for."""

import io
import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim import lr_scheduler as lrs

from steepest.strategies import BatchGrowth, Loader, noise_scale

SAMPLES = 100_000

SCHEDULES = {
    "milestones": lambda o: lrs.MultiStepLR(o, [6, 12, 16], 0.2),
    "exponential": lambda o: lrs.ExponentialLR(o, 0.9),
    "cosine": lambda o: lrs.CosineAnnealingLR(o, 25, 1e-4),
    "restarts": lambda o: lrs.CosineAnnealingWarmRestarts(o, 5, 2),
    "polynomial": lambda o: lrs.PolynomialLR(o, 25, 2.0),
    "lambda": lambda o: lrs.LambdaLR(o, lambda t: 1 / math.sqrt(1 + t)),
    "warm-up": lambda o: lrs.LinearLR(o, 0.1, 1.0, 8),
    "one-cycle": lambda o: lrs.OneCycleLR(o, 0.5, 30),
    "cyclic": lambda o: lrs.CyclicLR(o, 0.05, 0.5, 6),
    "sequence": lambda o: lrs.SequentialLR(
        o, [lrs.ConstantLR(o, 0.5, 4), lrs.ExponentialLR(o, 0.8)], [5]
    ),
}

# their limits are rates, the same for all groups, so groups of two rates have two factors
ONE_RATE = {"cosine", "one-cycle", "cyclic"}


def optimizer(lr=0.1, groups=2):
    return torch.optim.SGD(
        [{"params": [torch.nn.Parameter(torch.ones(2))], "lr": lr * 3**k} for k in range(groups)],
        momentum=0.9,
    )


def stand_in(size):
    return SimpleNamespace(batch_size=size)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([*SCHEDULES]), st.integers(1, 300), st.integers(1, 60), st.floats(1e-3, 2))
def test_lr_over_batch_follows_the_schedule(name, size, times, lr):
    groups = 1 if name in ONE_RATE else 2
    ours, twin = optimizer(lr, groups), optimizer(lr, groups)
    make, loader, largest = SCHEDULES[name], stand_in(size), size * times
    schedule = make(twin)
    initial = [g["initial_lr"] for g in twin.param_groups]
    growth = BatchGrowth(make(ours), loader, largest)
    for _ in range(25):
        rates = [g["lr"] for g in ours.param_groups]
        for group, other, base in zip(ours.param_groups, twin.param_groups, initial, strict=True):
            wanted = size * base / other["lr"] if other["lr"] else math.inf
            given, expected = group["lr"] / loader.batch_size, other["lr"] / size
            if 1 <= wanted <= largest:
                assert group["lr"] == base  # held, and the batch size is rounded to whole samples
                assert abs(loader.batch_size - wanted) <= 0.5 * (1 + 1e-9)
                assert abs(given - expected) <= expected * 0.5 / loader.batch_size * (1 + 1e-9)
            else:
                assert loader.batch_size == (largest if wanted > largest else 1)
                assert given == pytest.approx(expected, rel=1e-12)
            assert group["momentum"] == other["momentum"]
            if other["lr"]:
                scales = (
                    noise_scale(group["lr"], loader.batch_size, SAMPLES, group["momentum"]),
                    noise_scale(other["lr"], size, SAMPLES, other["momentum"]),
                )
                assert scales[0] == pytest.approx(scales[1], rel=0.5 / loader.batch_size + 1e-9)
        assert growth.get_last_lr() == rates
        for made in (ours, twin):
            made.step()
        growth.step()
        schedule.step()


def test_milestones_grow_the_batch_and_a_limit_makes_it_hybrid():
    """The paper's three: decay, growth by 5 at three milestones, one growth and then decay."""
    for largest, sizes, rates in (
        (16_000, [128, 640, 3200, 16_000], [0.1] * 4),
        (640, [128, 640, 640, 640], [0.1, 0.1, 0.02, 0.004]),
    ):
        loader, made = Loader((torch.zeros(50_000),), 128), optimizer(groups=1)
        growth = BatchGrowth(lrs.MultiStepLR(made, [2, 4, 6], 0.2), loader, largest)
        seen = []
        for _ in range(8):
            seen.append((loader.batch_size, made.param_groups[0]["lr"]))
            made.step()
            growth.step()
        assert [s for s, _ in seen[::2]] == sizes
        assert [s for s, _ in seen[1::2]] == sizes
        assert [r for _, r in seen[::2]] == pytest.approx(rates, rel=1e-12)


def test_noise_scale_is_the_papers():
    assert noise_scale(0.1, 128, 50_000) == pytest.approx(0.1 * 50_000 / 128)
    assert noise_scale(0.1, 128, 50_000, 0.9) == pytest.approx(10 * noise_scale(0.1, 128, 50_000))
    for bad in ((-1, 1, 1), (0.1, 0, 1), (0.1, 1, 0), (0.1, 1, 1, 1.0), (math.nan, 1, 1)):
        with pytest.raises(ValueError, match="noise_scale: "):
            noise_scale(*bad)


def test_a_plateau_grows_the_batch():
    loader, made = stand_in(10), optimizer()
    growth = BatchGrowth(lrs.ReduceLROnPlateau(made, factor=0.5, patience=0), loader, 35)
    sizes = []
    for metric in (1.0, 2.0, 2.0, 0.5, 0.6):
        made.step()
        growth.step(metric)
        sizes.append(loader.batch_size)
    assert sizes == [10, 20, 35, 35, 35]
    assert made.param_groups[0]["lr"] == pytest.approx(0.1 * 35 / 80)


def test_an_lr_that_is_a_tensor_stays_one():
    p = torch.nn.Parameter(torch.ones(2))
    made = torch.optim.SGD([p], lr=torch.tensor(0.1))
    held = made.param_groups[0]["lr"]
    loader = stand_in(10)
    growth = BatchGrowth(lrs.ExponentialLR(made, 0.5), loader, 20)
    for expected in (0.1, 0.1, 0.05):
        assert held.item() == pytest.approx(expected)
        made.step()
        growth.step()
    assert made.param_groups[0]["lr"] is held
    assert loader.batch_size == 20
    assert growth.get_last_lr()[0] is not held


def through_a_file(*states):
    file = io.BytesIO()
    torch.save(states, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("name", [n for n in SCHEDULES if n != "lambda"])
def test_fifty_and_fifty_steps_are_a_hundred(name):
    x = torch.randn(400, 3, dtype=torch.float64)

    def make():
        p = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
        model = torch.nn.ParameterList([p])
        made = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        loader = Loader((x,), 4)
        return model, made, loader, BatchGrowth(SCHEDULES[name](made), loader, 60)

    def run(parts, k, last):
        model, made, loader, growth = parts
        while True:
            for (rows,) in loader:
                made.zero_grad()
                (rows @ model[0] - 1).square().mean().backward()
                made.step()
                k += 1
                if k % 4 == 0:
                    growth.step()
                if k == last:
                    return

    whole, first, second = make(), make(), make()
    run(whole, 0, 100)
    run(first, 0, 50)
    for part, state in zip(second, through_a_file(*(p.state_dict() for p in first)), strict=True):
        part.load_state_dict(state)
    run(second, 50, 100)
    assert torch.equal(second[0][0], whole[0][0])
    assert second[1].param_groups[0]["lr"] == whole[1].param_groups[0]["lr"]
    assert second[2].state_dict() == whole[2].state_dict()


def test_bad_input_is_refused():
    made = optimizer()
    schedule = lrs.ExponentialLR(made, 0.9)
    with pytest.raises(TypeError, match="a SGD was given, expected a scheduler"):
        BatchGrowth(made, stand_in(1))
    with pytest.raises(ValueError, match="so `largest` has no default; give"):
        BatchGrowth(schedule, stand_in(1))
    with pytest.raises(ValueError, match="largest=7 was given, expected a whole number of 8"):
        BatchGrowth(schedule, stand_in(8), 7)
    for bad in (0, -1, 2.5, math.nan):
        with pytest.raises(ValueError, match="largest="):
            BatchGrowth(schedule, stand_in(1), bad)
    loader = Loader((torch.zeros(50),), 10)
    with pytest.raises(ValueError, match="largest=51 was given, expected at most 50"):
        BatchGrowth(schedule, loader, 51)
    assert BatchGrowth(schedule, loader).largest == 50
    still = optimizer(0.0)
    with pytest.raises(ValueError, match="initial lr of 0"):
        BatchGrowth(lrs.ExponentialLR(still, 0.9), stand_in(1), 2)
    apart = optimizer()
    ways = [lambda t: 0.5**t, lambda t: 0.9**t]
    growth = BatchGrowth(lrs.LambdaLR(apart, ways), stand_in(1), 100)
    apart.step()
    with pytest.raises(ValueError, match="expected one factor for all"):
        growth.step()
    with pytest.raises(ValueError, match="a state of"):
        growth.load_state_dict({"largest": 2})
