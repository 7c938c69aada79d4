"""What holds for every method on the whole loss: checkpoints, cost, refusals, interruptions."""

import copy
import io
import math

import pytest
import torch
from torch import nn

from steepest.full_batch import (
    BFGS,
    Annealing,
    CoordinateSearch,
    Genetic,
    LevenbergMarquardt,
    Newton,
    NewtonCG,
)  # fmt: skip

GRADIENT = {
    "newton": Newton,
    "newton-damped": lambda p: Newton(p, damping=0.1, line_search=False),
    "newton-cg": NewtonCG,
    "levenberg-marquardt": LevenbergMarquardt,
    "bfgs": BFGS,
}
SEARCH = {
    "genetic": lambda p: Genetic(p, population=5, decay=0.99),
    "genetic-bits": lambda p: Genetic(p, population=5, interval=(-4, 4), bits=9, mutation=0.1),
    "annealing": Annealing,
    "coordinates": CoordinateSearch,
}
ALL = GRADIENT | SEARCH


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def parts(dtype=torch.float64):
    """Parameters of several shapes in two groups, one of them frozen."""
    random = torch.Generator().manual_seed(1)
    shapes = [(2, 2), (), (3,), (0, 2), (2,)]
    made = [nn.Parameter(torch.randn(s, generator=random).to(dtype)) for s in shapes]
    made[4].requires_grad_(False)
    return made, [{"params": made[:2]}, {"params": made[2:]}]


def residuals(params):
    """Not linear, not convex, of all the parameters."""
    a, b, c, _, d = params
    return torch.cat(
        [(a @ a - 1).flatten(), torch.stack([b**2 - 2, b * c[0]]), c**2 - c.sum() + d[0]]
    )


def closure_of(made, params):
    if isinstance(made, LevenbergMarquardt):
        return lambda: residuals(params)
    return lambda: residuals(params).square().mean()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ALL)
def test_fifty_and_fifty_are_a_hundred(name, dtype):
    params, groups = parts(dtype)
    made = ALL[name](groups)
    first = closure_of(made, params)().square().mean().item()
    for _ in range(50):
        made.step(closure_of(made, params))
    file = io.BytesIO()
    torch.save([[p.detach() for p in params], made.state_dict()], file)
    for _ in range(50):
        made.step(closure_of(made, params))
    file.seek(0)
    values, saved = torch.load(file, weights_only=True)
    others, groups = parts(dtype)
    fresh = ALL[name](groups)
    with torch.no_grad():
        for p, value in zip(others, values, strict=True):
            p.copy_(value)
    fresh.load_state_dict(saved)
    for _ in range(50):
        fresh.step(closure_of(fresh, others))
    assert all(torch.equal(p, q) for p, q in zip(params, others, strict=True))
    assert fresh.evaluations == made.evaluations
    assert closure_of(made, params)().square().mean().item() < first
    assert torch.equal(params[4], parts(dtype)[0][4])


@pytest.mark.parametrize("name", ALL)
def test_a_deep_copy_goes_the_same_way(name):
    params, groups = parts()
    made = ALL[name](groups)
    made.step(closure_of(made, params))
    others, other = copy.deepcopy((params, made))
    for _ in range(3):
        made.step(closure_of(made, params))
        other.step(closure_of(other, others))
    assert all(torch.equal(p, q) for p, q in zip(params, others, strict=True))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("when", [1, 2, 3, 4])
def test_an_interrupted_step_loses_nothing(name, when):
    params, groups = parts()
    made = ALL[name](groups)
    closure = closure_of(made, params)
    made.step(closure)
    before, saved = [p.detach().clone() for p in params], made.state_dict()
    calls = 0

    def broken():
        nonlocal calls
        calls += 1
        if calls == when:
            raise KeyboardInterrupt
        return closure()

    try:
        made.step(broken)
    except KeyboardInterrupt:
        assert all(torch.equal(p, q) for p, q in zip(params, before, strict=True))
        again = ALL[name](groups_of(made))
        again.load_state_dict(saved)
        made.step(closure)
        after = [p.detach().clone() for p in params]
        with torch.no_grad():
            for p, value in zip(params, before, strict=True):
                p.copy_(value)
        again.step(closure)
        assert all(torch.equal(p, q) for p, q in zip(params, after, strict=True))
    else:
        assert calls < when


def groups_of(made):
    return [{"params": g["params"]} for g in made.param_groups]


@pytest.mark.parametrize("name", GRADIENT)
def test_a_loss_that_is_not_finite_is_refused(name):
    for bad in (math.nan, math.inf):
        params, groups = parts()
        made = GRADIENT[name](groups)
        made.step(closure_of(made, params))
        before, saved = [p.detach().clone() for p in params], made.state_dict()["whole"]
        loss = made.step(lambda made=made, params=params, bad=bad: closure_of(made, params)() * bad)
        # BFGS knows loss and gradient from its last search, finds no better point and begins anew
        assert name == "bfgs" or not math.isfinite(loss)
        assert all(torch.equal(p, q) for p, q in zip(params, before, strict=True))
        now = made.state_dict()["whole"]
        for key in set(saved) - {"thirds", "steps", "kind", "inverse" if name == "bfgs" else ""}:
            torch.testing.assert_close(now[key], saved[key], rtol=0, atol=0)


@pytest.mark.parametrize("name", GRADIENT)
def test_a_gradient_that_is_not_finite_is_refused(name):
    p = nn.Parameter(torch.tensor([1.0, 0.0]))
    made = GRADIENT[name]([p])
    made.step(lambda: p[1].sqrt() + p[0] ** 2 + torch.zeros(1).squeeze())
    assert p.tolist() == [1, 0]


@pytest.mark.parametrize("name", ALL)
def test_a_closure_that_calls_backward_is_told_so_and_gradients_stay(name):
    params, groups = parts()
    made = ALL[name](groups)
    params[0].grad = torch.ones(2, 2).double()
    before = [p.detach().clone() for p in params]

    def closure():
        made.zero_grad()
        loss = sum((p**2).sum() for p in params)
        loss.backward()
        return loss

    with pytest.raises(RuntimeError, match="the closure called backward"):
        made.step(closure)
    assert all(torch.equal(p, q) for p, q in zip(params, before, strict=True))
    made.step(closure_of(made, params))
    assert torch.equal(params[0].grad, torch.ones(2, 2).double())
    assert all(p.grad is None for p in params[1:])


@pytest.mark.parametrize("name", ALL)
def test_bad_closures(name):
    params, groups = parts()
    made = ALL[name](groups)
    with pytest.raises(RuntimeError, match="without a closure"):
        made.step()
    with pytest.raises((TypeError, ValueError, RuntimeError), match=type(made).__name__):
        made.step(lambda: None)
    if not isinstance(made, LevenbergMarquardt):
        with pytest.raises(ValueError, match=r"shape \(3,\), expected one number"):
            made.step(lambda: params[2] * 2)
    if name in GRADIENT:
        with pytest.raises(RuntimeError, match="not depend on the parameters"):
            made.step(lambda: torch.tensor(1.0))
    made.step(closure_of(made, params))


@pytest.mark.parametrize("name", ALL)
def test_bad_parameters(name):
    make = ALL[name]
    with pytest.raises(ValueError, match="complex64"):
        make([nn.Parameter(torch.ones(2) * 1j)])
    with pytest.raises(ValueError, match="sparse"):
        make([nn.Parameter(torch.ones(2).to_sparse())])
    with pytest.raises(ValueError, match="empty parameter list"):
        make([])
    p = nn.Parameter(torch.ones(2), requires_grad=False)
    made = make([p])
    with pytest.raises(RuntimeError, match="have 0 numbers, expected at least one"):
        made.step(lambda: 1.0)
    p.requires_grad_()
    made.step(lambda: torch.stack([p[0] ** 2 + p[1] ** 2]) * 1.5)
    with pytest.raises(RuntimeError, match="after a step"):
        made.add_param_group({"params": [nn.Parameter(torch.ones(1))]})
    p.requires_grad_(False)
    with pytest.raises(RuntimeError, match="expected 2"):
        made.step(lambda: 1.0)


@pytest.mark.parametrize("name", ALL)
def test_another_checkpoint_is_refused_and_changes_nothing(name):
    params, groups = parts()
    made = ALL[name](groups)
    made.step(closure_of(made, params))
    before = made.state_dict()
    two = [{"params": [nn.Parameter(torch.ones(2))]}, {"params": [nn.Parameter(torch.ones(1))]}]
    small = ALL[name](two)
    small.step(lambda: torch.cat([g["params"][0] for g in two]).square().sum())
    damaged = {**before, "whole": {k: v for k, v in before["whole"].items() if k != "thirds"}}
    other = (NewtonCG if name != "newton-cg" else BFGS)(parts()[1])
    plain = torch.optim.SGD(parts()[1], lr=0.1)
    for saved, words in (
        (small.state_dict(), "of 3 numbers"), (damaged, "damaged"),
        (other.state_dict(), "expected one of"), (plain.state_dict(), "of another kind"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            made.load_state_dict(saved)
    assert same(made.state_dict(), before)


def test_the_cost_is_counted():
    p = nn.Parameter(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))

    def cost(make, steps=1):
        calls = 0
        p.data = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
        made = make([p])

        def closure():
            nonlocal calls
            calls += 1
            return (p - 5).square() if isinstance(made, LevenbergMarquardt) else (p**4).sum()

        for _ in range(steps):
            made.step(closure)
        return made.evaluations, calls

    assert cost(lambda q: Newton(q, line_search=False)) == (1 + 2 * 3, 1)
    assert cost(Newton) == (1 + 2 * 3 + 1 / 3, 2)
    spent, calls = cost(lambda q: NewtonCG(q, iterations=1))
    assert spent == pytest.approx(1 + 2 + (calls - 1) / 3)
    spent, calls = cost(LevenbergMarquardt)
    assert spent == pytest.approx(1 / 3 + 3 + (calls - 1) / 3)
    spent, calls = cost(BFGS, 3)
    assert spent == calls
    assert cost(lambda q: Genetic(q, 6, elite=2), 3) == (pytest.approx((6 + 4 + 4) / 3), 14)
    assert cost(Annealing, 3) == (pytest.approx(4 / 3), 4)
    spent, calls = cost(CoordinateSearch, 3)
    assert spent == pytest.approx(calls / 3)


def same(a, b):
    """Whether two checkpoints are equal to the bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


ONE = [nn.Parameter(torch.ones(2))]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Newton(ONE, damping=-1.0), "damping=-1.0 was given"),
        (lambda: Newton(ONE, lr=math.nan), "lr=nan was given"),
        (lambda: Newton(ONE, saddle_free=1), "saddle_free=1 was given"),
        (lambda: Newton([nn.Parameter(torch.ones(3000))]), "3,000 parameters .* NewtonCG"),
        (lambda: BFGS([nn.Parameter(torch.ones(6000))]), "at most 5,000.* LBFGS"),
        (lambda: NewtonCG(ONE, iterations=0), "iterations=0 was given"),
        (lambda: NewtonCG(ONE, iterations=2.5), "iterations=2.5 was given"),
        (lambda: LevenbergMarquardt(ONE, damping="x"), "damping='x' was given"),
        (lambda: Annealing(ONE, cooling=1.5), "cooling=1.5 was given"),
        (lambda: Annealing(ONE, seed=0.5), "seed=0.5 was given"),
        (lambda: CoordinateSearch(ONE, size=0), "size=0 was given"),
        (lambda: Genetic(ONE, population=1), "population=1 was given"),
        (lambda: Genetic(ONE, population=3, elite=3), "expected fewer than"),
        (lambda: Genetic(ONE, selection="luck"), "selection='luck' was given"),
        (lambda: Genetic(ONE, interval=(1, 1)), "expected low < high"),
        (lambda: Genetic(ONE, interval=3), "expected \\(low, high\\)"),
        (lambda: Genetic(ONE, bits=4), "bits was given without an interval"),
        (lambda: Genetic(ONE, bits=0, interval=(0, 1)), "bits=0 was given"),
        (lambda: Newton([{"params": ONE, "damping": 2.0}]), "expected 0.0 in all groups"),
    ],
)
def test_bad_options(make, words):
    with pytest.raises((ValueError, TypeError), match=words):
        make()


def test_a_checkpoint_of_an_option_out_of_its_limits_is_refused():
    saved = Annealing(ONE).state_dict()
    saved["param_groups"][0]["cooling"] = 7.0
    with pytest.raises(ValueError, match=r"cooling=7\.0"):
        Annealing(ONE).load_state_dict(saved)
