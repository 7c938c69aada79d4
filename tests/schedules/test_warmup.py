"""WarmupLR inside torch's sequences and chains, with groups that come later, by metrics alone."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    ConstantLR,
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    CyclicLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    MultiplicativeLR,
    MultiStepLR,
    OneCycleLR,
    PolynomialLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)

from steepest.schedules import WSDLR, CosineLR, NoamLR, WarmupLR
from tests.schedules.cases import params, sgd, through_a_file, walk

BEHIND = {
    "constant": lambda o: ConstantLR(o, 0.5, 9),
    "linear": lambda o: LinearLR(o, 0.25, 1.0, 6),
    "step": lambda o: StepLR(o, 4, 0.5),
    "milestones": lambda o: MultiStepLR(o, [2, 5], 0.3),
    "exponential": lambda o: ExponentialLR(o, 0.9),
    "polynomial": lambda o: PolynomialLR(o, 15),
    "cosine": lambda o: CosineAnnealingLR(o, 15),
    "sgdr": lambda o: CosineAnnealingWarmRestarts(o, 4, 2),
    "function": lambda o: LambdaLR(o, lambda k: 1 / (2 + k)),
    "factors": lambda o: MultiplicativeLR(o, lambda k: 0.9),
    "triangular": lambda o: CyclicLR(o, 0.01, 0.06, 4),
    "one cycle": lambda o: OneCycleLR(o, 0.2, 40),
    "noam": lambda o: NoamLR(o, 64, 8),
    "wsd": lambda o: WSDLR(o, 20, decay=5, warmup=3),
    "our cosine": lambda o: CosineLR(o, 9, floor=0.1),
    "chain": lambda o: ChainedScheduler([ConstantLR(o, 0.5, 3), ExponentialLR(o, 0.9)]),
    "sequence": lambda o: SequentialLR(o, [ConstantLR(o, 0.5, 9), StepLR(o, 4, 0.5)], [5]),
    "another": lambda o: WarmupLR(ConstantLR(o, 0.5, 9), 3, 0.2),
}
ABSOLUTE = {"one cycle", "triangular"}
"""These set the initial lr themselves, as they are made, for whatever is made behind them."""


def moments(optimizer, scheduler, steps):
    """lr and momentum at each step."""
    seen = []
    for _ in range(steps):
        seen.append([(float(g["lr"]), g["momentum"]) for g in optimizer.param_groups])
        walk(optimizer, scheduler, 1)
    return seen


@pytest.mark.parametrize("tensor", [False, True])
@pytest.mark.parametrize("name", BEHIND)
def test_as_a_later_part_of_a_sequence_it_is_as_alone(name, tensor):
    lr = torch.tensor(0.1, dtype=torch.float64) if tensor else 0.1
    alone, optimizer = sgd(), sgd(lr)
    there = moments(alone, WarmupLR(BEHIND[name](alone), 3, 0.2), 20)
    parts = [LinearLR(optimizer, 0.25, 1.0, 30), WarmupLR(BEHIND[name](optimizer), 3, 0.2)]
    if name in ABSOLUTE:
        parts = parts[::-1]
        parts = [ConstantLR(optimizer, 0.25, 30), parts[0]]
    here = moments(optimizer, SequentialLR(optimizer, parts, [6]), 26)
    np.testing.assert_allclose(here[6:], there, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", [n for n in BEHIND if n not in ABSOLUTE])
def test_as_the_first_part_too_whatever_was_made_before(name):
    alone, optimizer = sgd(), sgd()
    there = walk(alone, WarmupLR(BEHIND[name](alone), 3, 0.2), 12)
    later = LinearLR(optimizer, 0.25, 1.0, 4)  # which has set lr already
    parts = [WarmupLR(BEHIND[name](optimizer), 3, 0.2), later]
    here = walk(optimizer, SequentialLR(optimizer, parts, [12]), 18)
    np.testing.assert_allclose(here[:12], there, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(here[12:16], [[0.025], [0.04375], [0.0625], [0.08125]])


def test_two_warm_ups_one_behind_the_other_in_a_sequence():
    optimizer = sgd()
    parts = [WarmupLR(ExponentialLR(optimizer, 0.5), 2, 0.5) for _ in range(3)]
    rates = [lr for (lr,) in walk(optimizer, SequentialLR(optimizer, parts, [5, 8]), 13)]
    rise = [0.05, 0.075, 0.1]
    assert rates == pytest.approx([*rise, 0.05, 0.025, *rise, *rise, 0.05, 0.025])


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("tensor", [False, True])
@pytest.mark.parametrize("start", [0.0, 0.1])
def test_a_chain_multiplies(start, tensor, first):
    lrs = [torch.tensor(lr, dtype=torch.float64) if tensor else lr for lr in (0.1, 0.03)]
    groups = [{"params": [p], "lr": lr} for p, lr in zip(params(), lrs, strict=True)]
    optimizer = torch.optim.SGD(groups)
    parts = [WarmupLR(StepLR(optimizer, 4, 0.5), 5, start), ExponentialLR(optimizer, 0.9)]
    chain = ChainedScheduler(parts if first else parts[::-1], optimizer)
    # at lr 0 nobody sees what another has done
    lost = 1 if start == 0 else 0
    shares = [start + (1 - start) * k / 5 for k in range(5)] + [0.5 ** (k // 4) for k in range(15)]
    expected = [
        [lr * share * 0.9 ** max(0, k - lost) for lr in (0.1, 0.03)]
        for k, share in enumerate(shares)
    ]
    if start == 0 and first:  # the other's turn comes behind it, when lr is above 0 again
        expected = [[x * 0.9 ** min(k, 1) for x in row] for k, row in enumerate(expected)]
    np.testing.assert_allclose(walk(optimizer, chain, 20), expected, rtol=1e-12)


def test_what_is_done_by_hand_stays_done():
    optimizer = sgd()
    scheduler = WarmupLR(ConstantLR(optimizer, 1.0, 1), 4, 0.2)
    walk(optimizer, scheduler, 2)
    optimizer.param_groups[0]["lr"] *= 0.5
    rates = [lr for (lr,) in walk(optimizer, scheduler, 4)]
    assert rates == pytest.approx([0.03, 0.04, 0.05, 0.05])


@pytest.mark.parametrize("when", [2, 9])
def test_a_group_that_is_added_takes_part(when):
    optimizer = sgd()
    scheduler = WarmupLR(ExponentialLR(optimizer, 0.9), 5, 0.1)
    walk(optimizer, scheduler, when)
    extra = nn.Parameter(torch.ones(2, dtype=torch.float64))
    optimizer.add_param_group({"params": [extra], "lr": 0.03})
    walk(optimizer, scheduler, 1)
    rates = walk(optimizer, scheduler, 5 if when < 5 else 3)
    if when < 5:
        # it rises to its own lr, and falls from there as the others do
        shares = [0.64, 0.82, 1.0, 0.9, 0.81]
        assert rates == [pytest.approx([0.1 * s, 0.03 * s]) for s in shares]
    else:
        assert [b / 0.03 for _, b in rates] == pytest.approx([0.9, 0.81, 0.729])


@pytest.mark.parametrize("steps", [4, 9])
def test_in_a_sequence_and_in_a_chain_it_resumes(steps):
    def run():
        optimizer = sgd()
        warm = WarmupLR(ConstantLR(optimizer, 0.5, 4), 5, 0.1)
        chain = ChainedScheduler([warm, ExponentialLR(optimizer, 0.9)], optimizer)
        return optimizer, chain

    def sequence():
        optimizer = sgd()
        parts = [ConstantLR(optimizer, 0.3, 9), WarmupLR(LinearLR(optimizer, 0.5, 1.0, 4), 4)]
        return optimizer, SequentialLR(optimizer, parts, [3])

    for make in (run, sequence):
        whole = walk(*make(), 20)
        first = make()
        head = walk(*first, steps)
        saved = through_a_file([part.state_dict() for part in first])
        again = make()
        for part, state in zip(again, saved, strict=True):
            part.load_state_dict(state)
        assert head + walk(*again, 20 - steps) == whole


# in front of a plateau


METRICS = (3.0, 2.0, 2.0, math.nan, 2.5, 1.0, 1.5, 1.5, 1.5, 1.0)


def by_metrics(make, metrics):
    optimizer = sgd()
    scheduler, seen = make(optimizer), []
    for metric in metrics:
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step(metric)
    return seen


def test_by_metrics_alone_they_count_the_warm_up_and_then_go_on():
    bare = by_metrics(lambda o: ReduceLROnPlateau(o, factor=0.5, patience=1), METRICS)
    warmed = by_metrics(
        lambda o: WarmupLR(ReduceLROnPlateau(o, factor=0.5, patience=1), 3, 0.1),
        (9.0, 9.0, 9.0, *METRICS),
    )
    assert warmed[:3] == pytest.approx([0.01, 0.04, 0.07])
    assert warmed[3:] == bare
    assert len({*bare}) > 2


def test_two_warm_ups_in_front_of_a_plateau():
    bare = by_metrics(lambda o: ReduceLROnPlateau(o, factor=0.5, patience=1), METRICS)
    warmed = by_metrics(
        lambda o: WarmupLR(WarmupLR(ReduceLROnPlateau(o, factor=0.5, patience=1), 2, 0.5), 3, 0.1),
        (9.0,) * 5 + METRICS,
    )
    assert warmed[:5] == pytest.approx([0.005, 0.02, 0.035, 0.05, 0.075])
    assert warmed[5:] == bare


@pytest.mark.parametrize("every", [1, 2])
def test_two_warm_ups_and_a_plateau_on_two_clocks(every):
    optimizer = sgd()
    plateau = ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
    scheduler, seen = WarmupLR(WarmupLR(plateau, 2, 0.5), 3, 0.1), []
    for k in range(12):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
        if k % every == every - 1:
            scheduler.step(1.0)
    # five steps of warm-up; the first evaluation behind them is the best
    assert seen[:6] == pytest.approx([0.005, 0.02, 0.035, 0.05, 0.075, 0.1])
    expected = {1: [0.1 * 0.5**k for k in range(1, 7)], 2: [0.1, 0.1, 0.05, 0.05, 0.025, 0.025]}
    assert seen[6:] == pytest.approx(expected[every])
    assert plateau.best == 1.0


@pytest.mark.parametrize("steps", [1, 2, 4, 7])
def test_by_metrics_alone_it_resumes(steps):
    def make(optimizer):
        return WarmupLR(WarmupLR(ReduceLROnPlateau(optimizer, patience=0), 2), 3)

    metrics = (1.0,) * 12
    whole, optimizer = by_metrics(make, metrics), sgd()
    scheduler, seen = make(optimizer), []
    for k, metric in enumerate(metrics):
        if k == steps:
            saved = through_a_file([optimizer.state_dict(), scheduler.state_dict()])
            optimizer = sgd()
            scheduler = make(optimizer)
            optimizer.load_state_dict(saved[0])
            scheduler.load_state_dict(saved[1])
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step(metric)
    assert seen == whole


def stepped(scheduler, optimizer, steps):
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


AFTER = {
    "step": lambda o: StepLR(o, 100),
    "constant": lambda o: ConstantLR(o, 1.0, 1),
    "warm-up": lambda o: WarmupLR(StepLR(o, 100), 2),
}


@pytest.mark.parametrize("order", ["first", "last", "alone"])
@pytest.mark.parametrize("name", AFTER)
def test_a_state_that_is_loaded_in_any_order_leads_to_the_lr_it_had(name, order):
    def make(optimizer):
        return WarmupLR(AFTER[name](optimizer), 4)

    optimizer = sgd(1.0)
    scheduler = make(optimizer)
    stepped(scheduler, optimizer, 2)
    saved = optimizer.state_dict(), scheduler.state_dict()
    whole = stepped(scheduler, optimizer, 8)
    optimizer = sgd(1.0)
    if order == "first":
        optimizer.load_state_dict(saved[0])
    scheduler = make(optimizer)
    scheduler.load_state_dict(saved[1])
    if order == "last":
        optimizer.load_state_dict(saved[0])
    # the first of them is the optimizer's, which was not loaded, or lost it
    assert stepped(scheduler, optimizer, 8)[1:] == whole[1:]


@pytest.mark.parametrize("once", [0.0, math.inf, math.nan])
def test_an_lr_of_nothing_for_one_step_is_no_factor(once):
    optimizer = sgd(1.0)
    scheduler = WarmupLR(StepLR(optimizer, 100), 4)
    stepped(scheduler, optimizer, 2)
    optimizer.param_groups[0]["lr"] = once
    optimizer.zero_grad()
    scheduler.step()
    assert stepped(scheduler, optimizer, 4) == pytest.approx([0.8, 1, 1, 1])


def with_a_group_more(after, steps):
    """The lr of both groups after each step; the second comes behind the first step."""
    optimizer, seen = sgd(1.0), []
    scheduler = WarmupLR(after(optimizer), 3)
    stepped(scheduler, optimizer, 1)
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))], "lr": 3.0})
    for _ in range(steps):
        optimizer.step()
        scheduler.step()
        seen.append([group["lr"] for group in optimizer.param_groups])
    return seen


TAKES = {
    "StepLR": lambda o: StepLR(o, 2, 0.5),
    "MultiStepLR": lambda o: MultiStepLR(o, [2], 0.5),
    "ExponentialLR": lambda o: ExponentialLR(o, 0.5),
    "PolynomialLR": lambda o: PolynomialLR(o, 9),
    "CosineAnnealingLR": lambda o: CosineAnnealingLR(o, 9),
    "CosineLR": lambda o: CosineLR(o, 3),
    "WSDLR": lambda o: WSDLR(o, 3, decay=3),
}
REFUSES = {
    "LambdaLR": lambda o: LambdaLR(o, lambda k: 0.9**k),
    "MultiplicativeLR": lambda o: MultiplicativeLR(o, lambda k: 0.9),
    "CyclicLR": lambda o: CyclicLR(o, 0.1, 1.0, 3),
    "OneCycleLR": lambda o: OneCycleLR(o, 1.0, 9),
    "CosineAnnealingWarmRestarts": lambda o: CosineAnnealingWarmRestarts(o, 5),
}


@pytest.mark.parametrize("name", TAKES)
def test_a_group_that_is_added_in_the_warm_up_goes_on_behind_it(name):
    seen = with_a_group_more(TAKES[name], 5)
    assert [second for _, second in seen] == pytest.approx([3 * first for first, _ in seen])
    assert seen[-1][0] < 1


@pytest.mark.parametrize("name", REFUSES)
@pytest.mark.parametrize("around", ["plain", "warm-up", "chained", "sequential"])
def test_a_group_that_what_comes_behind_cannot_take_is_refused_at_once(name, around):
    def after(optimizer):
        inner = REFUSES[name](optimizer)
        if around == "warm-up":
            return WarmupLR(inner, 2)
        if around == "chained":
            return ChainedScheduler([StepLR(optimizer, 9), inner], optimizer)
        if around == "sequential":
            return SequentialLR(optimizer, [StepLR(optimizer, 9), inner], [4])
        return inner

    with pytest.raises(ValueError, match=f"now has 2 param groups, expected 1: {name}"):
        with_a_group_more(after, 1)
