"""WSD, cosines and schedules of options: against closed forms, transformers and plain loops."""

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim import lr_scheduler
from torch.optim.lr_scheduler import ChainedScheduler, LambdaLR, SequentialLR

import steepest
from steepest import schedules
from steepest.schedules import (
    WSDLR,
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    CosineLR,
    NoamLR,
    OptionSchedule,
    WarmupLR,
    ramp,
)
from tests.schedules.cases import params, sgd, through_a_file, walk


@pytest.fixture(autouse=True)
def _one_thread(_settings):
    torch.set_num_threads(1)


def groups(*lrs, tensor=False):
    return torch.optim.SGD(
        [
            {"params": [nn.Parameter(torch.ones(2, dtype=torch.float64))],
             "lr": torch.tensor(lr, dtype=torch.float64) if tensor else lr}
            for lr in lrs
        ]
    )  # fmt: skip


# warm-up, stable, decay


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 9), st.integers(0, 9), st.integers(1, 12),
    st.sampled_from(["linear", "cosine", "1-sqrt"]), st.floats(0, 1), st.booleans(),
)  # fmt: skip
def test_wsd_is_that_of_transformers(warmup, stable, decay, shape, floor, tensor):
    from transformers import get_wsd_schedule

    steps = warmup + stable + decay
    ours, its = groups(0.3, 0.05, tensor=tensor), groups(0.3, 0.05)
    mine = walk(
        ours,
        WSDLR(
            ours, steps, warmup=warmup, decay=decay, shape=shape, floor=floor,
            start=floor if warmup else None,
        ),
        steps + 4,
    )  # fmt: skip
    theirs = get_wsd_schedule(
        its, warmup, decay, num_stable_steps=stable, decay_type=shape, min_lr_ratio=floor
    )
    np.testing.assert_allclose(mine, walk(its, theirs, steps + 4), rtol=1e-12, atol=1e-16)


def test_wsd_wastes_no_step_and_a_straight_line_goes_to_zero():
    optimizer = sgd(1.0)
    rates = [lr for (lr,) in walk(optimizer, WSDLR(optimizer, 14, warmup=4, decay=10), 17)]
    rise, fall = [0.2, 0.4, 0.6, 0.8], [1 - k / 10 for k in range(11)]
    assert rates == pytest.approx([*rise, *fall, 0, 0], abs=1e-15)
    optimizer, other = sgd(0.3), sgd(0.3)
    line = walk(optimizer, WSDLR(optimizer, 20, decay=20), 25)
    torchs = walk(other, lr_scheduler.PolynomialLR(other, 20, power=1.0), 25)
    np.testing.assert_allclose(line, torchs, atol=1e-15)


def test_one_minus_the_root_falls_as_the_paper_says():
    optimizer = sgd(1.0)
    rates = walk(optimizer, WSDLR(optimizer, 30, decay=16, shape="1-sqrt"), 31)
    assert [lr for (lr,) in rates[:14]] == [1.0] * 14
    # Hägele et al. 2024, section 3: f(n) = 1 - sqrt((n - (N - N_decay)) / N_decay)
    assert [lr for (lr,) in rates[14::4]] == pytest.approx(
        [1, 0.5, 1 - 8**0.5 / 4, 1 - 0.75**0.5, 0]
    )


def test_a_stable_run_branches_off():
    trunk = sgd(0.1)
    scheduler = WSDLR(trunk, 1000, decay=5, warmup=2)
    walk(trunk, scheduler, 12)
    saved = through_a_file([trunk.state_dict(), scheduler.state_dict()])
    branch = sgd(0.1)
    short = WSDLR(branch, 20, decay=5, warmup=2)
    branch.load_state_dict(saved[0])
    short.load_state_dict(saved[1])
    assert short.steps == 1000
    short.steps = 20
    alone = sgd(0.1)
    expected = walk(alone, WSDLR(alone, 20, decay=5, warmup=2), 25)
    assert walk(branch, short, 13) == expected[12:]


# cosines


def timms(t, first, low, factor, decay, limit):
    """timm's CosineLRScheduler, by its formula, on a base of one."""
    i, length, since = 0, first, t
    while since >= length:
        since, i = since - length, i + 1
        length = first * factor**i
    if i >= limit:
        return low
    return low + 0.5 * (max(decay**i, low) - low) * (1 + math.cos(math.pi * since / length))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 7), st.floats(0, 1), st.integers(1, 3), st.floats(0.2, 1), st.integers(1, 5),
    st.booleans(),
)  # fmt: skip
def test_cosines_with_decaying_restarts_are_timms(first, floor, factor, decay, periods, tensor):
    optimizer = groups(0.3, 0.05, tensor=tensor)
    scheduler = CosineLR(
        optimizer, first, floor=[floor, floor / 2], periods=periods, factor=factor, decay=decay
    )
    expected = [
        [0.3 * timms(t, first, floor, factor, decay, periods),
         0.05 * timms(t, first, floor / 2, factor, decay, periods)]
        for t in range(70)
    ]  # fmt: skip
    np.testing.assert_allclose(walk(optimizer, scheduler, 70), expected, rtol=1e-12, atol=1e-16)


def test_one_cosine_is_torchs_to_its_end_and_stays_there():
    ours, its = groups(0.4), groups(0.4)
    mine = walk(ours, CosineLR(ours, 20, floor=0.1), 30)
    np.testing.assert_allclose(mine[:21], walk(its, CosineAnnealingLR(its, 20, 0.04), 21))
    assert mine[20:] == [[0.4 * 0.1]] * 10


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_restarts_without_end_are_torchs(factor):
    ours, its = groups(0.4), groups(0.4)
    mine = walk(ours, CosineLR(ours, 5, floor=0.1, periods=None, factor=factor), 150)
    theirs = CosineAnnealingWarmRestarts(its, 5, factor, 0.04)
    np.testing.assert_allclose(mine, walk(its, theirs, 150), rtol=1e-11)


def test_periods_of_a_broken_factor_have_whole_steps():
    optimizer = sgd(1.0)
    rates = [x for (x,) in walk(optimizer, CosineLR(optimizer, 10, periods=4, factor=1.5), 90)]
    # 10, 15, 22.5 and 33.75, rounded to even
    assert [k for k, x in enumerate(rates) if x == 1.0] == [0, 10, 25, 47]
    assert rates[81:] == [0.0] * 9


# options


def adamw(make=torch.optim.AdamW, wd=(0.1, 0.0)):
    return make(
        [{"params": [p], "weight_decay": w} for p, w in zip(params(), wd, strict=True)], lr=0.01
    )


def option_walk(optimizer, schedulers, steps):
    """All options at each step."""
    seen = []
    for k in range(steps):
        seen.append([{n: v for n, v in g.items() if n != "params"} for g in optimizer.param_groups])
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad = torch.sin(p.detach() * 3 + k)
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    return seen


def test_weight_decay_rises_by_dinos_cosine_and_what_is_off_stays_off():
    optimizer = adamw()
    scheduler = OptionSchedule(optimizer, "weight_decay", ramp(0.04, 0.4, 30, "cosine"))
    seen = option_walk(optimizer, [scheduler], 40)
    # DINO's cosine_scheduler(base, final, ...): final + (base - final) * (1 + cos(pi i / n)) / 2
    expected = [0.4 + 0.5 * (0.04 - 0.4) * (1 + math.cos(math.pi * i / 30)) for i in range(30)]
    assert [a["weight_decay"] for a, _ in seen] == pytest.approx(expected + [0.4] * 10)
    assert {b["weight_decay"] for _, b in seen} == {0.0}
    assert {a["lr"] for a, _ in seen} == {0.01}


CASES = {
    "beta1": ("AdamW", lambda: ramp(0.8, 0.95, 20), {}),
    "beta2": ("AdamW", lambda: [0.9, 0.99, 0.999], {}),
    "weight_decay": ("AdamW", lambda: np.linspace(0.01, 0.3, 25), {"weight_decay": 0.2}),
    "weight_decay to zero": ("AdamW", lambda: ramp(0.3, 0.0, 20), {"weight_decay": 0.2}),
    "momentum": ("SGD", lambda: ramp(0.85, 0.95, 20), {"momentum": 0.9}),
    "eps": ("Adam", lambda: ramp(1e-3, 1e-8, 20, "1-sqrt"), {}),
    "lr": ("Adam", lambda: torch.linspace(0.1, 0.01, 30), {}),
    "alpha": ("RMSprop", lambda: lambda t: 1 - (1 + t) ** -0.8, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_options_are_set_as_by_hand_and_ours_step_as_torchs(case):
    option, (name, values, options) = case.partition(" ")[0], CASES[case]
    values, start, made = values(), {"lr": 0.01, **options}, []
    for make in (getattr(steepest, name), getattr(torch.optim, name)):
        mine, by_hand = params(), params()
        optimizer, other = make(mine, **start), make(by_hand, **start)
        scheduler = OptionSchedule(optimizer, option, values)
        for k in range(40):
            value = values(k) if callable(values) else float(values[min(k, len(values) - 1)])
            group = other.param_groups[0]
            if option.startswith("beta"):
                at = int(option[4]) - 1
                group["betas"] = tuple(
                    value if i == at else b for i, b in enumerate(group["betas"])
                )
            else:
                group[option] = value
            for p in [*mine, *by_hand]:
                p.grad = torch.sin(p.detach() * 3 + k)
            kept = {n: v for n, v in optimizer.param_groups[0].items() if n != "params"}
            by_hands = {n: v for n, v in group.items() if n != "params"}
            assert kept == by_hands | {"initial_lr": 0.01}
            optimizer.step(), other.step(), scheduler.step()
        assert all(map(torch.equal, mine, by_hand))
        made.append(mine)
    torch.testing.assert_close(*made, rtol=1e-12, atol=1e-14)


def test_shares_are_of_each_groups_own():
    optimizer = adamw(wd=(0.1, 0.02))
    seen = option_walk(
        optimizer, [OptionSchedule(optimizer, "weight_decay", [1, 0.5, 0], relative=True)], 4
    )
    assert [[g["weight_decay"] for g in both] for both in seen] == [
        [0.1, 0.02], [0.05, 0.01], [0, 0], [0, 0],
    ]  # fmt: skip


def test_it_stands_beside_a_schedule_of_lr():
    def run(how):
        optimizer = adamw()
        decay = OptionSchedule(optimizer, "weight_decay", ramp(0.1, 0.01, 10))
        made = [WarmupLR(CosineLR(optimizer, 15), 5), decay]
        return option_walk(optimizer, how(optimizer, made), 20)

    both = run(lambda o, made: made)
    assert run(lambda o, made: [ChainedScheduler(made, o)]) == both
    alone = adamw()
    rates = [lr for lr, _ in walk(alone, WarmupLR(CosineLR(alone, 15), 5), 20)]
    assert [a["lr"] for a, _ in both] == rates
    assert both[-1][0]["weight_decay"] == 0.01


def test_betas_that_are_tensors_stay_those():
    p = nn.Parameter(torch.ones(2))
    betas = torch.tensor(0.9), torch.tensor(0.99)
    optimizer = torch.optim.AdamW([p], lr=torch.tensor(0.01), betas=betas, capturable=False)
    scheduler = OptionSchedule(optimizer, "beta1", [0.8, 0.7])
    assert betas[0] == pytest.approx(0.8)
    optimizer.step(), scheduler.step()
    assert betas[0] == pytest.approx(0.7)
    group = optimizer.param_groups[0]
    assert group["betas"][0] is betas[0]
    assert scheduler.get_last_lr() == [group["lr"]]
    assert scheduler.get_last_lr()[0] is not group["lr"]


# all of them

ALL = {
    "wsd": lambda o: WSDLR(o, 80, warmup=20, decay=40, shape="1-sqrt", floor=0.1),
    "floor per group": lambda o: WSDLR(o, 80, decay=80, floor=[0.1] * len(o.param_groups)),
    "cosine": lambda o: CosineLR(o, 15, floor=0.05, periods=3, factor=1.7, decay=0.6),
    "lr from a list": lambda o: OptionSchedule(o, "lr", list(np.linspace(0.1, 0.01, 70))),
    "decay": lambda o: OptionSchedule(o, "weight_decay", ramp(0.02, 0.4, 90), relative=True),
    "beta1": lambda o: OptionSchedule(o, "beta1", ramp(0.5, 0.95, 90)),
}


@pytest.mark.parametrize("name", ALL)
def test_fifty_steps_and_fifty_are_a_hundred(name):
    def run():
        optimizer = adamw(steepest.AdamW)
        return optimizer, ALL[name](optimizer)

    whole, scheduler = run()
    there = option_walk(whole, [scheduler], 100)
    first, scheduler = run()
    here = option_walk(first, [scheduler], 50)
    saved = through_a_file([first.state_dict(), scheduler.state_dict()])
    again, scheduler = run()
    again.load_state_dict(saved[0])
    scheduler.load_state_dict(saved[1])
    for a, b in zip(again.param_groups, first.param_groups, strict=True):
        for p, q in zip(a["params"], b["params"], strict=True):
            p.data.copy_(q.data)
    for k in range(50, 100):
        here += [[{n: v for n, v in g.items() if n != "params"} for g in again.param_groups]]
        for p in (p for g in again.param_groups for p in g["params"]):
            p.grad = torch.sin(p.detach() * 3 + k)
        again.step(), scheduler.step()
    assert here == there
    for a, b in zip(again.param_groups, whole.param_groups, strict=True):
        assert all(map(torch.equal, a["params"], b["params"]))


@pytest.mark.parametrize("name", [n for n in ALL if n != "floor per group"])
def test_a_group_that_is_added_takes_part_with_its_own(name):
    optimizer, other = adamw(), adamw()
    scheduler, twin = ALL[name](optimizer), ALL[name](other)
    option_walk(optimizer, [scheduler], 12), option_walk(other, [twin], 12)
    extra = {"params": [nn.Parameter(torch.ones(2).double())], "lr": 0.01, "weight_decay": 0.1}
    optimizer.add_param_group(extra)
    option_walk(optimizer, [scheduler], 1), option_walk(other, [twin], 1)
    for _ in range(30):
        (mine, _, its), (old, _) = optimizer.param_groups, other.param_groups
        for key in ("lr", "weight_decay", "betas"):
            assert mine[key] == old[key]
            assert its[key] == pytest.approx(mine[key])
        option_walk(optimizer, [scheduler], 1), option_walk(other, [twin], 1)


def test_a_floor_for_each_group_says_when_there_are_more():
    optimizer = adamw()
    scheduler = CosineLR(optimizer, 9, floor=[0.1, 0.2])
    optimizer.step()
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))]})
    with pytest.raises(ValueError, match="floor has 2 numbers but the optimizer now has 3 param"):
        scheduler.step()
    noam = NoamLR(optimizer, 64, 8, factor=[1, 2, 3])
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))]})
    with pytest.raises(ValueError, match="factor has 3 numbers but the optimizer now has 4 param"):
        noam.step()


def test_noams_rate_is_that_of_a_group_that_is_added_too():
    optimizer = adamw()
    scheduler = NoamLR(optimizer, 64, 8)
    walk(optimizer, scheduler, 3)
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2).double())]})
    walk(optimizer, scheduler, 9)
    assert len({group["lr"] for group in optimizer.param_groups}) == 1


@pytest.mark.parametrize("name", ["wsd", "floor per group", "cosine", "lr from a list"])
def test_as_a_part_of_a_sequence_it_begins_there(name):
    alone, optimizer = sgd(), sgd()
    there = walk(alone, ALL[name](alone), 30)
    parts = [lr_scheduler.ConstantLR(optimizer, 0.5, 100), ALL[name](optimizer)]
    here = walk(optimizer, SequentialLR(optimizer, parts, [7]), 37)
    assert here[:7] == [[0.05]] * 7
    assert here[7:] == there
    optimizer = sgd()
    parts = [ALL[name](optimizer), lr_scheduler.ConstantLR(optimizer, 0.5, 100)]
    here = walk(optimizer, SequentialLR(optimizer, parts, [30]), 33)
    assert here == there + [[0.05]] * 3


# torch's own


def test_all_of_torchs_schedulers_are_here():
    for name in lr_scheduler.__all__:
        assert getattr(schedules, name) is getattr(lr_scheduler, name)
        assert name in schedules.__all__


# bad input


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda o: WSDLR(o, 0, decay=1), "steps=0 was given"),
        (lambda o: WSDLR(o, 10, decay=0), "decay=0 was given"),
        (lambda o: WSDLR(o, 10, decay=2.5), "decay=2.5 was given"),
        (lambda o: WSDLR(o, 10, decay=8, warmup=3), "expected at most steps=10 in total"),
        (lambda o: WSDLR(o, 10, decay=8, warmup=-1), "warmup=-1"),
        (lambda o: WSDLR(o, 10, decay=8, shape="sqrt"), "one of linear, cosine, 1-sqrt"),
        (lambda o: WSDLR(o, 10, decay=8, floor=1.5), "floor=1.5 was given, expected a number in"),
        (lambda o: WSDLR(o, 10, decay=8, floor=math.nan), "floor=nan"),
        (lambda o: WSDLR(o, 10, decay=8, floor=[0.1, 0.1]), "each of the 1 param groups"),
        (lambda o: WSDLR(o, 10, decay=8, start=2), "start=2"),
        (lambda o: CosineLR(o, 0), "steps=0"),
        (lambda o: CosineLR(o, 10, periods=0), "periods=0"),
        (lambda o: CosineLR(o, 10, factor=0.5), "factor=0.5"),
        (lambda o: CosineLR(o, 10, decay=0), "decay=0"),
        (lambda o: CosineLR(o, 10, decay=1.1), "decay=1.1"),
        (lambda o: CosineLR(o, 10, floor=-0.1), "floor=-0.1"),
        (lambda o: CosineLR(nn.Linear(1, 1), 10), "floor=0.0 was given|Linear is not an Optimizer"),
        (lambda o: OptionSchedule(o, "lr", []), "expected a list of numbers"),
        (lambda o: OptionSchedule(o, "lr", 3), "values=3 was given"),
        (lambda o: OptionSchedule(o, "lr", "0.1"), "values='0.1' was given"),
        (lambda o: OptionSchedule(o, "lr", [0.1, math.nan]), "expected a list of numbers"),
        (lambda o: OptionSchedule(o, "lr", [-0.1]), r"the values give lr=-0.1 at step 0"),
        (lambda o: OptionSchedule(o, "momentum", [1.0]), r"expected a number in \[0, 1\)"),
        (lambda o: OptionSchedule(o, "momentum", lambda t: "x"), "the values give momentum=nan"),
        (lambda o: OptionSchedule(o, "beta1", [0.9]), "option='beta1' was given, expected one of"),
        (lambda o: OptionSchedule(o, "nesterov", [1]), "option='nesterov' was given"),
        (lambda o: OptionSchedule(o, "params", [1]), "option='params' was given"),
        (lambda o: OptionSchedule(o, "weight_decay", [1]), "every group of the SGD has weight_de"),
        (lambda o: ramp(0, math.inf, 3), "last=inf"),
        (lambda o: ramp("a", 1, 3), "first='a'"),
        (lambda o: ramp(0, 1, 0), "steps=0"),
        (lambda o: ramp(0, 1, 5, "root"), "shape='root'"),
    ],
)
def test_schedules_refuse(make, words):
    optimizer = sgd()
    with pytest.raises((TypeError, ValueError), match=words):
        make(optimizer)
    assert {g["lr"] for g in optimizer.param_groups} == {0.1}
    assert {g["momentum"] for g in optimizer.param_groups} == {0.9}


def test_the_options_that_there_are_are_named():
    with pytest.raises(
        ValueError, match=re.escape("expected one of beta1, beta2, eps, lr, weight")
    ):
        OptionSchedule(steepest.AdamW(params()), "beta3", [0.1])


def test_a_function_of_ones_own_is_a_schedule_too():
    mine, other = sgd(), sgd()
    rates = walk(mine, OptionSchedule(mine, "lr", lambda t: 0.1 / (1 + t)), 20)
    np.testing.assert_allclose(rates, walk(other, LambdaLR(other, lambda t: 1 / (1 + t)), 20))


def test_a_share_of_lr_as_a_later_part_is_of_the_lr_that_the_group_was_made_with():
    optimizer = sgd(0.1)
    parts = [
        lr_scheduler.LinearLR(optimizer, 0.25, 1.0, 3),
        OptionSchedule(optimizer, "lr", [1.0, 0.5], relative=True),
    ]
    rates = walk(optimizer, lr_scheduler.SequentialLR(optimizer, parts, [5]), 8)
    assert [lr for (lr,) in rates[5:]] == pytest.approx([0.1, 0.05, 0.05])


class Whole(torch.optim.SGD):
    """An optimizer with an option that counts."""

    def __init__(self, params):
        super().__init__(params, lr=0.1)
        for group in self.param_groups:
            group["ns_steps"] = 5

    def step(self, closure=None):
        for group in self.param_groups:
            range(group["ns_steps"])
        return super().step(closure)


@pytest.mark.parametrize("relative", [False, True])
def test_a_whole_number_stays_one(relative):
    optimizer = Whole(params())
    values = [1, 0.8, 1] if relative else [5, 4, 5]
    scheduler = OptionSchedule(optimizer, "ns_steps", values, relative=relative)
    seen = []
    for _ in range(4):
        seen.append(optimizer.param_groups[0]["ns_steps"])
        optimizer.step()
        scheduler.step()
    assert seen == [5, 4, 5, 5]
    assert {*map(type, seen)} == {int}


def test_a_schedule_may_be_made_at_the_end_of_a_ramp_to_nothing():
    def make(optimizer):
        return OptionSchedule(optimizer, "weight_decay", [0.1, 0.0, 0.0, 0.05])

    optimizer = torch.optim.SGD(params(), lr=0.1, momentum=0.9, weight_decay=0.1)
    scheduler = make(optimizer)
    walk(optimizer, scheduler, 2)
    saved = optimizer.state_dict(), scheduler.state_dict()
    again = torch.optim.SGD(params(), lr=0.1, momentum=0.9, weight_decay=0.1)
    again.load_state_dict(saved[0])
    with pytest.warns(UserWarning, match="has weight_decay=0, .* or load the state"):
        schedule = make(again)
    schedule.load_state_dict(saved[1])
    walk(again, schedule, 1)
    assert again.param_groups[0]["weight_decay"] == 0.05


@pytest.mark.parametrize("steps", [29, 0, 40.5])
def test_steps_that_are_set_too_low_are_refused(steps):
    optimizer = sgd()
    scheduler = WSDLR(optimizer, 50, warmup=10, decay=20)
    walk(optimizer, scheduler, 12)
    scheduler.steps = steps
    with pytest.raises(ValueError, match=f"steps={steps}"):
        walk(optimizer, scheduler, 1)
    scheduler.steps = 30
    assert walk(optimizer, scheduler, 1)
