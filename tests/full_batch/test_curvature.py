"""Newton, Gauss-Newton and quasi-Newton, against scipy and closed forms."""

import functools

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from steepest.full_batch import BFGS, LBFGS, LevenbergMarquardt, Newton, NewtonCG
from steepest.full_batch.quasi import _Point, wolfe

METHODS = {
    "newton": Newton,
    "damped": lambda p: Newton(p, damping=1.0, line_search=False),
    "damped and searched": lambda p: Newton(p, damping=1.0),
    "saddle-free": lambda p: Newton(p, saddle_free=True),
    "newton-cg": NewtonCG,
    "bfgs": BFGS,
}


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def variable(*values, dtype=torch.float64):
    return nn.Parameter(torch.tensor(values, dtype=dtype))


def rosenbrock(x):
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


def logistic():
    random = np.random.default_rng(0)
    x = random.normal(size=(80, 4))
    y = np.sign(x @ [1, -2, 0.5, 0] + random.normal(size=80))
    return torch.from_numpy(x), torch.from_numpy(y)


def logistic_loss(w):
    x, y = logistic()
    return nn.functional.softplus(-y * (x @ w)).mean() + 0.05 * w @ w


def numpy_of(loss):
    def both(x):
        w = torch.tensor(x, requires_grad=True)
        value = loss(w)
        value.backward()
        return value.item(), w.grad.numpy()

    def hessian(x):
        return torch.autograd.functional.hessian(loss, torch.tensor(x)).numpy()

    return both, hessian


PROBLEMS = [(rosenbrock, (-1.2, 1.0, -0.5)), (logistic_loss, (1.0, 1.0, 1.0, 1.0))]


@functools.cache
def scipys(loss, start):
    """The minima that three methods of scipy find."""
    both, hessian = numpy_of(loss)
    return [
        scipy.optimize.minimize(both, start, jac=True, method=method, tol=1e-9, **curved)
        for method, curved in (
            ("Newton-CG", {"hess": hessian}), ("trust-exact", {"hess": hessian}), ("BFGS", {}),
        )
    ]  # fmt: skip


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("name", METHODS)
def test_the_minimum_is_scipys(name, problem):
    loss, start = problem
    p = variable(*start)
    made = METHODS[name]([p])
    for _ in range(200 if name == "newton-cg" else 60):
        made.step(lambda: loss(p))
    for wanted in scipys(loss, start):
        # scipy's Newton-CG stops where the steps, not the gradients, are small
        found = torch.from_numpy(wanted.x)
        torch.testing.assert_close(p.detach(), found, rtol=2e-5, atol=2e-5)
        assert loss(p).item() <= wanted.fun + 1e-12


@settings(max_examples=25, deadline=None)
@given(size=st.integers(1, 8), seed=st.integers(0, 999))
def test_one_newton_step_solves_a_quadratic(size, seed):
    random = torch.Generator().manual_seed(seed)
    root = torch.randn(size, size, generator=random, dtype=torch.float64)
    matrix = root @ root.T + torch.eye(size, dtype=torch.float64)
    right = torch.randn(size, generator=random, dtype=torch.float64)
    for search in (True, False):
        p = nn.Parameter(torch.randn(size, generator=random, dtype=torch.float64))
        Newton([p], line_search=search).step(lambda p=p: p @ matrix @ p / 2 - right @ p)
        torch.testing.assert_close(
            p.detach(), torch.linalg.solve(matrix, right), rtol=1e-9, atol=1e-9
        )


def test_newton_is_drawn_to_a_saddle_and_the_saddle_free_form_is_not():
    """x^2 - y^2 + y^4 / 4: a saddle at (0, 0), minima -1 at (0, +-sqrt 2)."""

    def ends(**options):
        p = variable(1.0, 0.3)
        made = Newton([p], **options)
        for _ in range(30):
            made.step(lambda: p[0] ** 2 - p[1] ** 2 + p[1] ** 4 / 4)
        return p.detach()

    zero, low = torch.zeros(2).double(), torch.tensor([0, 2**0.5]).double()
    torch.testing.assert_close(ends(line_search=False), zero, rtol=0, atol=1e-9)
    for options in ({"saddle_free": True}, {"saddle_free": True, "line_search": False}, {}):
        torch.testing.assert_close(ends(**options), low, rtol=0, atol=1e-6)


def test_a_damped_step_is_levenbergs_and_a_singular_hessian_takes_the_shortest():
    p = variable(1.0, 2.0)
    Newton([p], damping=3.0, line_search=False).step(lambda: p[0] ** 2 + 2 * p[1] ** 2)
    wanted = torch.tensor([1 - 2 / (2 + 3), 2 - 8 / (4 + 3)]).double()
    torch.testing.assert_close(p.detach(), wanted)
    p = variable(1.0, 2.0)
    Newton([p]).step(lambda: (p.sum() - 1) ** 2)
    torch.testing.assert_close(p.detach(), torch.tensor([0.0, 1.0]).double())


def test_damping_grows_where_the_model_is_wrong_and_shrinks_where_it_is_right():
    p = variable(3.0)
    made = Newton([p], damping=1e-3, line_search=False)
    made.step(lambda: (1 + p**2).sqrt().sum())  # Newton's own step goes to -27
    assert p.abs().item() < 3
    assert made.damping >= 4e-3
    p = variable(3.0)
    made = Newton([p], damping=1.0, line_search=False)
    made.step(lambda: p.square().sum())
    assert made.damping == 1 / 3


def test_a_loss_linear_in_the_parameters():
    for name, method in METHODS.items():
        p = variable(1.0, 2.0)
        made = method([p])
        before = p.sum().item()
        made.step(p.sum)
        assert p.isfinite().all(), name
        assert p.sum().item() <= before, name


@pytest.mark.parametrize("start", [[1.0, 1.0, 0.5], [5.0, 0.2, -1.0]])
def test_levenberg_marquardt_finds_scipys_minimum(start):
    t = np.linspace(0, 4, 30)
    y = 2.5 * np.exp(-1.3 * t) + 0.3 + 0.02 * np.random.default_rng(0).normal(size=30)
    wanted = scipy.optimize.least_squares(
        lambda w: w[0] * np.exp(-w[1] * t) + w[2] - y, start, method="lm", xtol=1e-14, ftol=1e-14
    )
    p, tt, yy = variable(*start), torch.from_numpy(t), torch.from_numpy(y)
    made = LevenbergMarquardt([p])
    for _ in range(60):
        loss = made.step(lambda: p[0] * torch.exp(-p[1] * tt) + p[2] - yy)
    torch.testing.assert_close(p.detach(), torch.from_numpy(wanted.x), rtol=1e-6, atol=1e-8)
    assert loss == pytest.approx(wanted.cost, rel=1e-10)


def test_levenberg_marquardt_on_rosenbrocks_residuals_and_gauss_newton_on_a_line():
    p = variable(-1.2, 1.0)
    made = LevenbergMarquardt([p])
    for _ in range(40):
        made.step(lambda: torch.stack([10 * (p[1] - p[0] ** 2), 1 - p[0]]))
    torch.testing.assert_close(p.detach(), torch.ones(2).double(), rtol=1e-9, atol=1e-9)
    x, y = torch.randn(600, 3).double(), torch.randn(600).double()  # three pieces of rows
    x[:, 2] = x[:, 0] - x[:, 1]
    p = variable(0.0, 0.0, 0.0)
    LevenbergMarquardt([p], damping=0).step(lambda: x @ p - y)
    wanted = torch.from_numpy(scipy.linalg.lstsq(x.numpy(), y.numpy())[0])
    torch.testing.assert_close(p.detach(), wanted, rtol=1e-10, atol=1e-10)


def test_a_network_is_fitted_by_levenberg_marquardt():
    model = nn.Sequential(nn.Linear(1, 6), nn.Tanh(), nn.Linear(6, 1))
    x = torch.linspace(-2, 2, 40)[:, None]
    made = LevenbergMarquardt(model.parameters())
    losses = [made.step(lambda: model(x) - torch.sin(2 * x)) for _ in range(40)]
    assert losses[-1] < 1e-3 * losses[0]
    assert losses == sorted(losses, reverse=True)


@settings(max_examples=40, deadline=None)
@given(a=st.floats(-3, 3), b=st.floats(-3, 3), c=st.floats(0.1, 3), t=st.floats(1e-3, 1e3))
def test_the_line_search_meets_wolfes_conditions(a, b, c, t):
    def at(t):
        x = torch.tensor(float(t), dtype=torch.float64, requires_grad=True)
        f = c * (x - 2) ** 2 + torch.sin(a * x + b)
        (slope,) = torch.autograd.grad(f, x)
        return _Point(t, f.item(), slope.item(), slope)

    start = at(0.0)
    found = wolfe(at, start, t)
    if not start.slope < 0:
        assert found is None
        return
    assert found.loss <= start.loss + 1e-4 * found.t * start.slope
    assert abs(found.slope) <= -0.9 * start.slope


def test_the_line_search_steps_back_from_a_nan():
    p = variable(1e-3)
    made = BFGS([p], lr=100.0)
    for _ in range(20):
        made.step(lambda: (p - p.log()).sum())  # nan below 0, lowest at 1
    assert p.item() == pytest.approx(1)


def test_torchs_lbfgs_is_the_one():
    assert LBFGS is torch.optim.LBFGS
