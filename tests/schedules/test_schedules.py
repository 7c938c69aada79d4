"""Schedules: torch's with our optimizers, Noam, warm-up, restarts from the best, the range test."""

import math
import re
import subprocess
import sys

import adabound
import numpy as np
import pytest
import torch
from adabelief_pytorch import AdaBelief
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim.lr_scheduler import ChainedScheduler, LambdaLR, SequentialLR

import steepest
from steepest import schedules
from steepest.schedules import (
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    CyclicLR,
    ExponentialLR,
    LinearLR,
    MultiStepLR,
    NoamLR,
    OneCycleLR,
    PolynomialLR,
    ReduceLROnPlateau,
    RestartFromBest,
    StepLR,
    WarmupLR,
)
from tests.blocks import blocks, paste, text
from tests.schedules.cases import STEPS, Net, params, sgd, through_a_file, walk

PAGE = text("docs/schedules.md")
NET = Net()


@pytest.fixture(autouse=True)
def _one_thread(_settings):
    torch.set_num_threads(1)  # these models are far too small for two


# torch's schedulers, by their papers' formulas: (make, lr of step k for a group's base lr)


def sgdr(k, base, first=6, factor=2, floor=1e-4):
    while k >= first:
        k, first = k - first, first * factor
    return floor + (base - floor) * (1 + math.cos(math.pi * k / first)) / 2


def clr(k, scale, low=0.01, high=0.06, half=4):
    cycle = math.floor(1 + k / (2 * half))
    x = abs(k / half - 2 * cycle + 1)
    return low + (high - low) * max(0.0, 1 - x) * scale(cycle, k)


def one_cycle(k, top=0.2, total=STEPS + 1, rise=0.3):
    def cos(a, b, share):
        return b + (a - b) * (1 + math.cos(math.pi * share)) / 2

    low, turn = top / 25, rise * total - 1
    if k <= turn:
        return cos(low, top, k / turn)
    return cos(top, low / 1e4, (k - turn) / (total - 1 - turn))


CYCLE = {"base_lr": 0.01, "max_lr": 0.06, "step_size_up": 4}
TORCHS = {
    "step": (lambda o: StepLR(o, 7, 0.3), lambda k, b: b * 0.3 ** (k // 7)),
    "milestones": (
        lambda o: MultiStepLR(o, [5, 20], 0.2), lambda k, b: b * 0.2 ** ((k >= 5) + (k >= 20))
    ),
    "exponential": (lambda o: ExponentialLR(o, 0.9), lambda k, b: b * 0.9**k),
    "polynomial": (
        lambda o: PolynomialLR(o, 30, 2.0), lambda k, b: b * max(0.0, 1 - k / 30) ** 2
    ),
    "linear to a floor": (
        lambda o: LinearLR(o, 1.0, 0.1, 30), lambda k, b: b * (1 - 0.9 * min(k, 30) / 30)
    ),
    "cosine to a floor": (
        lambda o: CosineAnnealingLR(o, STEPS, 1e-3),
        lambda k, b: 1e-3 + (b - 1e-3) * (1 + math.cos(math.pi * k / STEPS)) / 2,
    ),
    "sgdr": (lambda o: CosineAnnealingWarmRestarts(o, 6, 2, 1e-4), sgdr),
    "triangular": (lambda o: CyclicLR(o, **CYCLE), lambda k, b: clr(k, lambda c, k: 1)),
    "triangular2": (
        lambda o: CyclicLR(o, **CYCLE, mode="triangular2"),
        lambda k, b: clr(k, lambda c, k: 0.5 ** (c - 1)),
    ),
    "exp_range": (
        lambda o: CyclicLR(o, **CYCLE, mode="exp_range", gamma=0.97),
        lambda k, b: clr(k, lambda c, k: 0.97**k),
    ),
    "one cycle": (lambda o: OneCycleLR(o, 0.2, STEPS + 1), lambda k, b: one_cycle(k)),
}  # fmt: skip

QUIET = {"print_change_log": False}
PAIRS = {  # ours, and one that is not
    "AdaBelief": (steepest.AdaBelief, lambda groups: AdaBelief(groups, **QUIET)),
    "SGD": (
        lambda groups: steepest.SGD(groups, momentum=0.9),
        lambda groups: torch.optim.SGD(groups, momentum=0.9),
    ),
    "AdaBound": (steepest.AdaBound, adabound.AdaBound),
}


@pytest.mark.parametrize("name", TORCHS)
@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.filterwarnings("ignore:This overload of add:UserWarning")  # adabound's
def test_torchs_schedulers_drive_our_optimizers_as_they_drive_others(name, pair, capsys):
    make, formula = TORCHS[name]
    bases = (0.03, 0.01)
    ours, other = params(), params()
    # a tensor lr, which is filled in place, against a number
    tensors = [torch.tensor(b, dtype=torch.float64) for b in bases]
    mine = PAIRS[pair][0]([{"params": [p], "lr": t} for p, t in zip(ours, tensors, strict=True)])
    its = PAIRS[pair][1]([{"params": [p], "lr": b} for p, b in zip(other, bases, strict=True)])
    seen = walk(mine, make(mine))
    torch.testing.assert_close(
        seen, [[formula(k, b) for b in bases] for k in range(STEPS)], rtol=1e-12, atol=1e-15
    )
    walk(its, make(its))
    torch.testing.assert_close(ours, other, rtol=1e-11, atol=1e-13)


def test_adabounds_bounds_follow_the_rate():
    p, q = (torch.nn.Parameter(torch.ones(1, dtype=torch.float64)) for _ in range(2))
    steady = steepest.AdaBound([p], lr=0.01, final_lr=0.1, gamma=0.9)
    halved = steepest.AdaBound([q], lr=0.01, final_lr=0.1, gamma=0.9)
    scheduler = MultiStepLR(halved, [50], 0.5)
    for _ in range(60):
        before = p.item(), q.item()
        p.grad, q.grad = torch.ones_like(p), torch.ones_like(q)
        steady.step(), halved.step(), scheduler.step()
    # between the bounds, which are about final_lr: the step is m times them
    assert p.item() - before[0] == pytest.approx(-0.1, rel=0.05)
    assert q.item() - before[1] == pytest.approx((p.item() - before[0]) / 2, rel=1e-9)


# what docs/schedules.md says of torch's


def test_cyclic_and_one_cycle_turn_momentum_on_and_refuse_what_has_none():
    for make in (lambda o, **k: CyclicLR(o, 0.01, 0.1, **k), lambda o, **k: OneCycleLR(o, 0.1, 9)):
        plain = steepest.SGD(params(), lr=0.1)
        make(plain)
        assert plain.param_groups[0]["momentum"] > 0.8
        belief = steepest.AdaBelief(params(), betas=(0.5, 0.99))
        make(belief)
        assert belief.param_groups[0]["betas"] in ((0.9, 0.99), (0.95, 0.99))
        with pytest.raises(ValueError, match="must support momentum or beta1"):
            make(steepest.Adagrad(params()))
    left = steepest.SGD(params(), lr=0.1)
    CyclicLR(left, 0.01, 0.1, cycle_momentum=False)
    assert left.param_groups[0]["momentum"] == 0


def test_one_cycle_ends_with_an_error_and_cosine_turns_around():
    optimizer = sgd()
    scheduler = OneCycleLR(optimizer, 0.1, 5)
    walk(optimizer, scheduler, 5)
    with pytest.raises(ValueError, match="total steps is 5"):
        scheduler.step()
    optimizer = sgd()
    rates = walk(optimizer, CosineAnnealingLR(optimizer, 10), 21)
    assert rates[10][0] == pytest.approx(0, abs=1e-12)
    assert rates[20][0] == pytest.approx(0.1)


def test_sgdr_by_fractions_of_an_epoch_is_sgdr_by_steps_until_it_misses_a_restart():
    batches = 8
    by_step, by_epoch = sgd(), sgd()
    one = CosineAnnealingWarmRestarts(by_step, 2 * batches, 2)
    other = CosineAnnealingWarmRestarts(by_epoch, 2, 2)
    by_step.step(), by_epoch.step()
    for i in range(1, 20 * batches):
        one.step(), other.step(i / batches)
        assert by_step.param_groups[0]["lr"] == pytest.approx(by_epoch.param_groups[0]["lr"])
    by_step, by_epoch = sgd(), sgd()
    one = CosineAnnealingWarmRestarts(by_step, 1, 3)
    other = CosineAnnealingWarmRestarts(by_epoch, 1, 3)
    by_step.step()
    for _ in range(121):  # 1 + 3 + 9 + 27 + 81: the fifth restart; log(243, 3) is below 5
        one.step()
    other.step(121)
    assert by_step.param_groups[0]["lr"] == 0.1
    assert by_epoch.param_groups[0]["lr"] == 0


def test_torchs_sequence_cannot_take_what_warmup_takes():
    optimizer = sgd()
    with pytest.raises(ValueError, match="does not support `ReduceLROnPlateau`"):
        SequentialLR(optimizer, [LinearLR(optimizer), ReduceLROnPlateau(optimizer)], [3])
    chained = ChainedScheduler([ExponentialLR(optimizer, 0.9)])
    sequence = SequentialLR(optimizer, [LinearLR(optimizer), chained], [3])
    with pytest.raises((AttributeError, NotImplementedError)):
        walk(optimizer, sequence, 4)


def test_torchs_cyclic_takes_an_entry_out_of_the_state_it_loads():
    scheduler = CyclicLR(sgd(), 0.01, 0.1)
    saved = scheduler.state_dict()
    scheduler.load_state_dict(saved)
    with pytest.raises(KeyError):
        scheduler.load_state_dict(saved)


# Noam


def test_noam_peaks_where_the_paper_does():
    optimizer = steepest.Adam(params(), lr=1.0, betas=(0.9, 0.98), eps=1e-9)
    scheduler = NoamLR(optimizer, 512)
    rates = [rate for (rate,) in walk(optimizer, scheduler, 4100)]
    assert f"{max(rates):.1e}" == "7.0e-04"
    assert rates.index(max(rates)) + 1 == 4000
    assert rates[0] == pytest.approx(512**-0.5 * 4000**-1.5)


@given(st.integers(1, 4096), st.integers(1, 40), st.floats(1e-3, 1e3), st.booleans())
@settings(max_examples=30, deadline=None)
def test_noam_rises_by_equal_steps_then_falls_with_the_root(width, warmup, factor, tensor):
    lrs = [torch.tensor(1.0, dtype=torch.float64) if tensor else 1.0 for _ in range(2)]
    groups = [{"params": [p], "lr": lr} for p, lr in zip(params(), lrs, strict=True)]
    optimizer = torch.optim.SGD(groups)
    rates = np.array(walk(optimizer, NoamLR(optimizer, width, warmup, [factor, 2 * factor]), 60))
    np.testing.assert_allclose(rates[:, 1], 2 * rates[:, 0], rtol=1e-12)
    t = np.arange(1, 61)
    np.testing.assert_allclose(rates[:warmup, 0] / t[:warmup], rates[0, 0], rtol=1e-9)
    after = rates[warmup - 1 :, 0] * t[warmup - 1 :] ** 0.5
    np.testing.assert_allclose(after, factor / width**0.5, rtol=1e-9)


# warm-up

BEHIND = {
    **{name: make for name, (make, _) in TORCHS.items()},
    "chained": lambda o: ChainedScheduler([ExponentialLR(o, 0.9), StepLR(o, 4, 0.5)]),
    "sequence": lambda o: SequentialLR(o, [ExponentialLR(o, 0.9), StepLR(o, 4, 0.5)], [5]),
    "function": lambda o: LambdaLR(o, lambda k: 1 / (1 + k)),
    "noam": lambda o: NoamLR(o, 64, 8),
    "another warm-up": lambda o: WarmupLR(StepLR(o, 4, 0.5), 3, 0.5),
}


@pytest.mark.parametrize("tensor", [False, True])
@pytest.mark.parametrize("name", BEHIND)
def test_behind_a_warm_up_the_scheduler_is_as_it_would_be_alone(name, tensor):
    make = (lambda: torch.tensor(0.1, dtype=torch.float64)) if tensor else (lambda: 0.1)
    alone, warmed = sgd(make()), sgd(make())
    there = walk(alone, BEHIND[name](alone), 20)
    here = walk(warmed, WarmupLR(BEHIND[name](warmed), 5, 0.2), 25)
    assert here[5:] == there  # to the bit
    first = there[0][0]
    np.testing.assert_allclose(
        [rate for (rate,) in here[:5]], [first * (0.2 + 0.8 * k / 5) for k in range(5)], rtol=1e-12
    )
    for key in ("momentum", "lr"):
        assert isinstance(warmed.param_groups[0][key], torch.Tensor) == (key == "lr" and tensor)


@given(st.integers(1, 12), st.floats(0.01, 1))
@settings(max_examples=30, deadline=None)
def test_where_torchs_sequence_works_warm_up_agrees_with_it(steps, start):
    ours, its = sgd(), sgd()
    parts = [LinearLR(its, start, 1.0, steps), CosineAnnealingLR(its, 20)]
    theirs = walk(its, SequentialLR(its, parts, [steps]), 30)
    mine = walk(ours, WarmupLR(CosineAnnealingLR(ours, 20), steps, start), 30)
    np.testing.assert_allclose(mine, theirs, rtol=1e-10, atol=1e-15)


def test_a_warm_up_wastes_no_step_unless_asked_to():
    optimizer = sgd()
    rates = walk(optimizer, WarmupLR(ExponentialLR(optimizer, 1.0), 4), 6)
    np.testing.assert_allclose(rates, [[0.02], [0.04], [0.06], [0.08], [0.1], [0.1]])
    optimizer = sgd()
    assert walk(optimizer, WarmupLR(ExponentialLR(optimizer, 1.0), 4, start=0), 1) == [[0.0]]


def test_momentum_waits_at_its_first_value_during_the_warm_up():
    optimizer = sgd()
    scheduler = WarmupLR(OneCycleLR(optimizer, 0.1, 10), 3)
    for _ in range(3):
        assert optimizer.param_groups[0]["momentum"] == 0.95
        walk(optimizer, scheduler, 1)
    walk(optimizer, scheduler, 2)
    assert optimizer.param_groups[0]["momentum"] < 0.95


def test_a_plateau_behind_a_warm_up_has_its_own_clock():
    alone, warmed = sgd(), sgd()
    plateau = ReduceLROnPlateau(alone, patience=1)
    scheduler = WarmupLR(ReduceLROnPlateau(warmed, patience=1), 3, 0.1)
    for rate in (0.01, 0.04, 0.07):
        assert scheduler.get_last_lr() == pytest.approx([rate])
        warmed.step()
        scheduler.step(-1e9)  # an evaluation that says nothing yet
        scheduler.step()
    for metric in (3.0, 2.0, 2.0, math.nan, 2.5, 1.0):
        warmed.step()
        scheduler.step()  # and now this says nothing
        scheduler.step(metric), plateau.step(metric)
        assert scheduler.get_last_lr() == plateau.get_last_lr()
        assert warmed.param_groups[0]["lr"] == alone.param_groups[0]["lr"]
    assert warmed.param_groups[0]["lr"] == pytest.approx(0.01)


# resume


RESUMED = {
    **{f"warm-up, {name}": lambda o, m=make: WarmupLR(m(o), 55) for name, make in BEHIND.items()},
    "early warm-up, sgdr": lambda o: WarmupLR(CosineAnnealingWarmRestarts(o, 6, 2), 20),
    "early warm-up, triangular2": lambda o: WarmupLR(
        CyclicLR(o, **CYCLE, mode="triangular2"), 20
    ),
    "noam": lambda o: NoamLR(o, 64, 60),
}  # fmt: skip


@pytest.mark.parametrize("name", RESUMED)
def test_fifty_steps_and_fifty_are_a_hundred(name):
    def run():
        optimizer = steepest.AdaBound(params(), lr=0.02)
        return optimizer, RESUMED[name](optimizer)

    if name == "warm-up, one cycle":
        assert STEPS + 1 >= 100 - 55  # it ends after so many
    whole, scheduler = run()
    there = walk(whole, scheduler, 100)
    first, scheduler = run()
    here = walk(first, scheduler, 50)
    saved = through_a_file([first.state_dict(), scheduler.state_dict()])
    again, scheduler = run()
    again.load_state_dict(saved[0])
    scheduler.load_state_dict(saved[1])
    scheduler.load_state_dict(saved[1])  # which the first time has left alone
    for p, q in zip(*(o.param_groups[0]["params"] for o in (first, again)), strict=True):
        q.data.copy_(p.data)
    here += walk(again, scheduler, 50, start=50)
    assert here == there
    for p, q in zip(*(o.param_groups[0]["params"] for o in (whole, again)), strict=True):
        assert torch.equal(p, q)


# bad input


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda o: NoamLR(o, 0), "width=0 was given"),
        (lambda o: NoamLR(o, 512, 0), "warmup=0 was given"),
        (lambda o: NoamLR(o, 512, 4.5), "warmup=4.5 was given"),
        (lambda o: NoamLR(o, 512, factor=math.nan), "factor=nan was given"),
        (lambda o: NoamLR(o, 512, factor=[1, 2]), "each of the 1 param groups"),
        (lambda o: NoamLR(NET, 512), "Net is not an Optimizer"),
        (lambda o: WarmupLR(o, 5), "a SGD was given, expected a scheduler"),
        (lambda o: WarmupLR(StepLR(o, 2), 0), "steps=0 was given"),
        (lambda o: WarmupLR(StepLR(o, 2), -3), "steps=-3 was given"),
        (lambda o: WarmupLR(StepLR(o, 2), True), "steps=True was given"),
        (lambda o: WarmupLR(StepLR(o, 2), 5, -0.1), "start=-0.1 was given"),
        (lambda o: WarmupLR(StepLR(o, 2), 5, math.nan), "start=nan was given"),
        (
            lambda o: WarmupLR(StepLR(o, 2), 5).step(2),
            r"step\(2\) was called, .* StepLR takes no metric",
        ),
        (lambda o: RestartFromBest(o, o), "a SGD was given as the model"),
        (lambda o: RestartFromBest(NET, NET), "Net is not an Optimizer"),
        (lambda o: RestartFromBest(o, NET, factor=1.0), "factor=1.0 was given"),
        (lambda o: RestartFromBest(o, NET, patience=0), "patience=0 was given"),
        (lambda o: RestartFromBest(o, NET, restarts=-1), "restarts=-1 was given"),
        (lambda o: RestartFromBest(o, NET, mode="best"), "mode best is unknown"),
    ],
)
def test_schedules_refuse(make, words):
    optimizer = sgd()
    with pytest.raises((TypeError, ValueError), match=words):
        make(optimizer)
    assert optimizer.param_groups[0]["lr"] in (0.1, pytest.approx(0.1 / 6))


# the room and its page


def test_the_package_does_not_import_the_room():
    code = "import sys, steepest; sys.exit('steepest.schedules' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


def test_all_names_are_public_and_on_the_page():
    for name in schedules.__all__:
        assert hasattr(schedules, name)
        assert re.search(rf"\b{name}\b", PAGE) or name in ("Interval", "RangeTest")


@pytest.mark.parametrize("block", blocks("docs/schedules.md"))
def test_the_page_runs(block, capsys):
    paste(block, "schedules.md")


@pytest.mark.parametrize("first", [0, -1, 2.5])
def test_a_first_period_of_nothing_is_refused(first):
    with pytest.raises(ValueError, match=f"Expected positive integer T_0, but got {first}"):
        CosineAnnealingWarmRestarts(sgd(), first)
