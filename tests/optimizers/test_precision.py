"""Parameters of 16 bits: what rounding keeps of small steps, and what AMP does around a step."""

import math
import runpy
import statistics
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import nn

import steepest
from steepest import codecs
from tests.blocks import ROOT

BF16 = torch.bfloat16
COUNT, STEPS, LR = 100_000, 200, 1e-4
ROUNDINGS = ("stochastic", "kahan")


# the displacement of 100,000 parameters over 200 steps


@cache
def gradients():
    """Of one sign on average, in numbers that bfloat16 has."""
    generator = torch.Generator().manual_seed(1)
    return [(1 + torch.randn(COUNT, generator=generator) / 2).to(BF16) for _ in range(STEPS)]


def run(rule, start, dtype, rounding=None, backend=None):
    """The parameters' mean displacement, with what Kahan's second number holds."""
    p = nn.Parameter(start.to(dtype, copy=True))
    made = steepest.optimizer(rule, [p], lr=LR, rounding=rounding, backend=backend)
    for gradient in gradients():
        p.grad = gradient.to(dtype)
        made.step()
    value = p.detach().double()
    if rounding == "kahan":
        value += made.state[p]["compensation"].double()
    return (value - start.double()).mean().item()


@pytest.mark.parametrize("start", ["at 1", "at N(0, 0.02)"])
@pytest.mark.parametrize(
    "rule", [n for n, r in steepest.rules.items() if not (r.trace().reductions or r.trace().matrix)]
)
def test_a_small_step_is_not_lost(rule, start):
    drawn = 0.02 * torch.randn(COUNT, generator=torch.Generator().manual_seed(0))
    start = (torch.ones(COUNT) if start == "at 1" else drawn).to(BF16)
    wanted = run(rule, start, torch.float32)
    assert abs(run(rule, start, BF16, "kahan") / wanted - 1) < 0.01
    # A rounding up is a coin of odds |step| / ulp, so n coins with the mean displacement d have the
    # standard error sqrt(|d| ulp / n). That is 2.4 % of d in Adadelta's 6e-5 from 1.0, else < 0.4 %
    ulp = start.float().abs().log2().floor().exp2().mean().item() * 2**-7
    error = math.sqrt(ulp / (COUNT * abs(wanted)))
    assert abs(run(rule, start, BF16, "stochastic") / wanted - 1) < max(0.01, 4 * error)


def test_plain_bfloat16_stays_exactly_where_it_is():
    ones = torch.ones(COUNT, dtype=BF16)
    assert run("adamw", ones, BF16, None) == 0
    assert run("adabelief", ones, BF16, None, backend="foreach") == 0


def test_a_small_language_model_ends_where_float32_does():
    bench = runpy.run_path(str(ROOT / "bench" / "precision.py"))
    torch.set_num_threads(1)
    ends = {
        kind: [
            bench["final_loss"](seed, dtype, rounding, "adabelief", 1e-3, 150) for seed in range(3)
        ]
        for kind, (dtype, rounding) in bench["VARIANTS"].items()
    }
    wanted = ends.pop("float32")
    spread, lost = statistics.stdev(wanted), ends.pop("bfloat16, to the nearest")
    for found in ends.values():
        assert abs(statistics.fmean(found) - statistics.fmean(wanted)) < spread
    # the same seeds, so that the loss of plain bfloat16 shows beyond the spread of the seeds
    assert min(a - b for a, b in zip(lost, wanted, strict=True)) > 0


# the two codecs


def ulps(x):
    """bfloat16 numbers in their order, as integers."""
    bits = x.view(torch.int16).to(torch.int32)
    return torch.where(bits < 0, -(bits & 0x7FFF), bits)


def halves(count=2000):
    return st.builds(
        lambda seed, scale: (
            torch.randn(count, generator=torch.Generator().manual_seed(seed)) * scale
        ),
        st.integers(0, 2**32),
        st.sampled_from([1e-39, 1e-8, 1e-3, 1.0, 3e4, 1e36]),
    )


def stochastically(x, seed, t=1, first=0):
    found = torch.empty_like(x, dtype=BF16)
    elements = codecs.element_numbers(x, first)
    codecs.STOCHASTIC.store([found], [x.clone()], (), codecs.Noise([elements], seed, t))
    return found


@given(x=halves(), seed=st.integers(-(2**70), 2**70), t=st.integers(1, 2**24))
@settings(max_examples=60, deadline=None)
def test_stochastic_rounding_takes_one_of_the_two_neighbours(x, seed, t):
    found, nearest = stochastically(x, seed, t), x.to(BF16)
    below = (x.view(torch.int32) & ~0xFFFF).view(torch.float32).to(BF16)  # towards zero
    assert {*(ulps(found).abs() - ulps(below).abs()).tolist()} <= {0, 1}
    assert torch.equal(stochastically(nearest.float(), seed, t), nearest)  # what needs no rounding


@pytest.mark.parametrize("part", [0.01, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_odds_are_those_of_the_distances(part, sign):
    n = 200_000
    x = torch.full((n,), sign * (1 + part * 2**-7))
    away = (stochastically(x, seed=5) != sign).sum().item()
    assert stats.binomtest(away, n, part).pvalue > 1e-4


def test_the_noise_is_even_and_depends_on_seed_step_and_element_alone():
    numbers = torch.arange(1 << 16)
    draws = {
        (seed, t): codecs.draw_bits(numbers, codecs.noise_key(seed, t))
        for seed in (0, 1)
        for t in (1, 2)
    }
    for draw in draws.values():
        assert draw.min() >= 0
        assert draw.max() < 2**16
        assert stats.chisquare(torch.bincount(draw >> 8, minlength=256).numpy()).pvalue > 1e-4
        assert stats.chisquare(torch.bincount(draw & 255, minlength=256).numpy()).pvalue > 1e-4
        for lag in (1, 2, 64, 256, 4096):  # neighbours, and rows of a matrix
            pair = torch.stack([draw[:-lag], draw[lag:]]).double()
            assert abs(torch.corrcoef(pair)[0, 1]) < 0.02
    every = torch.stack([*draws.values()]).double()
    assert (torch.corrcoef(every) - torch.eye(4)).abs().max() < 0.02
    later = codecs.draw_bits(torch.arange(1000, 2000), codecs.noise_key(0, 1))
    assert torch.equal(later, draws[0, 1][1000:2000])
    far = codecs.draw_bits(numbers + 2**33, codecs.noise_key(0, 1))
    assert not torch.equal(far, draws[0, 1])


@pytest.mark.parametrize("rounding", [None, *ROUNDINGS])
@pytest.mark.parametrize("backend", [None, "foreach", "eager"])
def test_what_is_no_finite_number_is_stored_as_such(rounding, backend):
    inf, nan, largest = math.inf, math.nan, torch.finfo(BF16).max
    p = nn.Parameter(torch.tensor([inf, -inf, nan, largest, -largest, 0.0, -0.0], dtype=BF16))
    before = p.detach().clone()
    made = steepest.SGD([p], lr=1.0, rounding=rounding, backend=backend)
    p.grad = torch.zeros_like(p)
    for _ in range(3):
        made.step()
    torch.testing.assert_close(p.detach(), before, equal_nan=True, rtol=0, atol=0)
    p.grad = -torch.full_like(p, largest)  # beyond the largest number
    for _ in range(2):
        made.step()
    assert p[3] == inf


@given(bits=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=50))
@settings(max_examples=200, deadline=None)
def test_the_loop_rounds_as_torch_does(bits):
    """Numbers of every kind, nan and inf among them, and steps of a part of their last place."""
    x = torch.tensor([b - 2**32 * (b >> 31) for b in bits], dtype=torch.int32).view(torch.float32)
    high = x.to(BF16)
    results = []
    for backend in ("cpu", "foreach"):
        p = nn.Parameter(high.clone())
        p.grad = high.roll(1)
        steepest.SGD([p], lr=2**-9, backend=backend).step()
        results.append(p.detach())
    torch.testing.assert_close(*results, equal_nan=True, rtol=0, atol=0)


@pytest.mark.parametrize("rounding", [None, *ROUNDINGS])
@pytest.mark.parametrize("rule", steepest.rules)
def test_the_backends_round_alike(rule, rounding):
    found = {}
    for backend in ("cpu", "foreach", "eager"):
        generator = torch.Generator().manual_seed(0)
        params = [
            nn.Parameter(torch.randn(shape, generator=generator).to(BF16))
            for shape in ((300,), (7, 11), (), (0,), (2, 3))
        ]
        made = steepest.optimizer(rule, params, rounding=rounding, seed=7, backend=backend)
        for step in range(5):
            for k, p in enumerate(params):
                p.grad = None if (step + k) % 3 == 0 else torch.randn(
                    p.shape, generator=generator
                ).to(BF16)  # fmt: skip
            made.step()
        found[backend] = torch.cat([ulps(p.detach()).reshape(-1) for p in params])
    for backend in ("cpu", "foreach"):
        # float32 results that differ by a last place may be rounded to different sides
        apart = (found[backend] - found["eager"]).abs()
        assert apart.max() <= 1
        assert apart.sum() <= 2


def test_kahan_is_a_sum_of_two_numbers():
    torch.manual_seed(0)
    p = nn.Parameter(torch.randn(1000).to(BF16))
    wanted = p.detach().double()
    made = steepest.SGD([p], lr=1e-4, rounding="kahan")
    for _ in range(500):
        p.grad = torch.randn(1000).to(BF16)
        wanted -= 1e-4 * p.grad.double()
        made.step()
    found = p.detach().double() + made.state[p]["compensation"].double()
    # half a last place of the second number at each step, one way and the other
    assert (found - wanted).abs().max() < 500**0.5 * 4 * 2**-18
    assert (p.detach().double() - wanted).abs().max() < 2**-7


# the options


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_parameters_of_32_bits_need_no_rounding(rounding):
    found = []
    for option in (None, rounding):
        p = nn.Parameter(torch.linspace(-1, 1, 50))
        made = steepest.AdamW([p], rounding=option)
        for _ in range(3):
            p.grad = torch.cos(p.detach())
            made.step()
        found.append(p.detach())
        assert "compensation" not in made.state[p]
    assert torch.equal(*found)


def test_half_precision_is_compensated_but_not_dithered():
    p = nn.Parameter(torch.ones(4, dtype=torch.float16))
    p.grad = torch.ones_like(p)
    with pytest.raises(RuntimeError, match=r"stochastic.*float16.*rounding='kahan'"):
        steepest.AdamW([p], rounding="stochastic").step()
    made = steepest.AdamW([p], lr=1e-5, rounding="kahan", weight_decay=0)
    for _ in range(100):
        made.step()
    assert p[0] < 1
    assert made.state[p]["compensation"].dtype == torch.float16


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"rounding": "up"}, ValueError, "rounding='up' was given, expected one of"),
        (
            {"rounding": "stochastic", "seed": 1.5},
            TypeError,
            "seed=1.5 was given, expected a whole",
        ),
        (
            {"rounding": "kahan", "differentiable": True},
            ValueError,
            "autograd cannot go through rounding; give only one of the two",
        ),
    ],
)
def test_a_bad_option_says_what_was_expected(options, kind, message):
    p = nn.Parameter(torch.ones(3, dtype=BF16))
    with pytest.raises(kind, match=message):
        steepest.AdamW([p], **options)
    with pytest.raises(kind, match=message):
        steepest.AdamW([{"params": [p], **options}])


def test_rounding_may_differ_by_group_and_stands_in_the_checkpoint():
    a, b = (nn.Parameter(torch.ones(8, dtype=BF16)) for _ in range(2))
    made = steepest.AdamW(
        [{"params": [a], "rounding": "kahan"}, {"params": [b]}],
        lr=1e-4, rounding="stochastic", seed=3,
    )  # fmt: skip
    for p in (a, b):
        p.grad = torch.ones_like(p)
    made.step()
    assert "compensation" in made.state[a]
    assert "compensation" not in made.state[b]
    saved = made.state_dict()
    assert [g["rounding"] for g in saved["param_groups"]] == ["kahan", "stochastic"]
    other = steepest.AdamW([{"params": [a]}, {"params": [b]}])
    other.load_state_dict(saved)
    assert [g["seed"] for g in other.param_groups] == [3, 3]
    assert "rounding" not in steepest.AdamW([a]).param_groups[0]  # torch's keys, unless asked for
    torch.optim.AdamW([{"params": [a]}, {"params": [b]}]).load_state_dict(saved)


@pytest.mark.parametrize("backend", ["cpu", "foreach"])
def test_the_seed_decides(backend):
    def end(seed):
        p = nn.Parameter(torch.ones(10_000, dtype=BF16))
        made = steepest.AdamW([p], lr=1e-4, rounding="stochastic", seed=seed, backend=backend)
        for _ in range(20):
            p.grad = torch.ones_like(p)
            made.step()
        return p.detach()

    assert torch.equal(end(1), end(1))
    assert not torch.equal(end(1), end(2))


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_a_later_choice_of_rounding_continues(rounding):
    p = nn.Parameter(torch.ones(64, dtype=BF16))
    p.grad = torch.ones_like(p)
    made = steepest.AdamW([p], lr=1e-4)
    made.step()
    made.param_groups[0]["rounding"] = rounding
    for _ in range(200):
        made.step()
    assert made.state[p]["step"] == 201
    assert p.float().mean() < 1 - 0.015


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_bits_do_not_depend_on_the_number_of_threads(rounding):
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        generator = torch.Generator().manual_seed(0)
        p = nn.Parameter(torch.randn(1 << 20, generator=generator).to(BF16))
        made = steepest.AdaBelief([p], rounding=rounding)
        for _ in range(3):
            p.grad = torch.randn(p.shape, generator=generator).to(BF16)
            made.step()
        found.append(p.detach())
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


# mixed precision


def scaled_run(make, bad_at=3, dtype=torch.float32):
    """Steps under a GradScaler whose gradient overflows once."""
    torch.manual_seed(0)
    model = nn.Linear(6, 3).to(dtype)
    made, scaler = make(model.parameters()), torch.amp.GradScaler("cpu", init_scale=1024.0)
    seen = []
    for step in range(6):
        made.zero_grad()
        x = torch.randn(4, 6, generator=torch.Generator().manual_seed(step)).to(dtype)
        with torch.autocast("cpu", dtype=BF16):
            loss = model(x).float().square().mean()
        scaler.scale(loss).backward()
        if step == bad_at:
            next(model.parameters()).grad[0, 0] = math.inf
        before = [p.detach().clone() for p in model.parameters()]
        scaler.step(made)
        scaler.update()
        seen.append(all(map(torch.equal, before, model.parameters())))
    return torch.cat([p.detach().flatten() for p in model.parameters()]), seen, scaler, made


@pytest.mark.parametrize("name", ["Adam", "AdamW", "SGD", "RMSprop", "NAdam", "Adagrad"])
def test_a_grad_scaler_skips_what_overflowed_as_with_torch(name):
    ours, skipped, scaler, made = scaled_run(lambda ps: getattr(steepest, name)(ps, lr=1e-2))
    theirs, *_ = scaled_run(lambda ps: getattr(torch.optim, name)(ps, lr=1e-2))
    assert skipped == [step == 3 for step in range(6)]
    assert scaler.get_scale() == 512
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)
    for state in made.state.values():
        assert state.get("step", 5) == 5


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_a_grad_scaler_around_bfloat16_parameters(rounding):
    _, skipped, _, made = scaled_run(
        lambda ps: steepest.AdaBelief(ps, lr=1e-2, rounding=rounding), dtype=BF16
    )
    assert skipped[3]
    assert not any(skipped[:3])
    assert {float(s["step"]) for s in made.state.values()} == {5.0}
