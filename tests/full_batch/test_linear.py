"""Least squares in closed form, against numpy, scipy and scikit-learn."""

from itertools import pairwise

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_diabetes
from sklearn.linear_model import LinearRegression, Ridge

from steepest.full_batch import least_squares


def made(n, p, k=None, seed=0):
    random = np.random.default_rng(seed)
    return random.normal(size=(n, p)) + 3, random.normal(size=n if k is None else (n, k)) - 2


def same(found, wanted, rtol=1e-9):
    torch.testing.assert_close(
        found, torch.as_tensor(wanted, dtype=torch.float64), rtol=rtol, atol=rtol
    )


@pytest.mark.parametrize(
    "shape", [(40, 5, None), (40, 5, 3), (4, 9, 2), (1, 3, None), (7, 7, None)]
)
@pytest.mark.parametrize("ridge", [0.0, 0.7])
@pytest.mark.parametrize("intercept", [True, False])
def test_against_sklearn(shape, ridge, intercept):
    x, y = made(*shape)
    model = Ridge(ridge, fit_intercept=intercept, solver="svd") if ridge else LinearRegression(
        fit_intercept=intercept
    )  # fmt: skip
    model.fit(x, y)
    found = least_squares(x, y, ridge, intercept)
    same(found.coefficients, model.coef_.T)
    same(found.intercept, np.asarray(model.intercept_) + np.zeros(found.intercept.shape))
    same(found.predict(x), model.predict(x))
    same(found.residual, ((y - model.predict(x)) ** 2).sum(0))
    assert found.rows == len(x)


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 20), p=st.integers(1, 6), inner=st.integers(1, 6), seed=st.integers(0, 99),
    cuts=st.lists(st.integers(0, 20), max_size=3),
)  # fmt: skip
def test_a_stream_is_the_whole_and_of_deficient_rank_the_shortest(n, p, inner, seed, cuts):
    x = made(n, inner, seed=seed)[0] @ made(inner, p, seed=seed + 1)[0]
    y = made(n, 1, seed=seed + 2)[0][:, 0]
    ends = sorted({0, n, *(min(c, n) for c in cuts)})
    pieces = [(x[a:b], y[a:b]) for a, b in pairwise(ends)]
    wanted, _, rank, values = scipy.linalg.lstsq(x, y, cond=np.finfo(float).eps * max(x.shape))
    for found in (least_squares(x, y, intercept=False), least_squares(pieces, intercept=False)):
        assert found.rank == rank
        same(found.singular_values, values)
        condition = values[0] / values[rank - 1]
        same(found.coefficients, wanted, rtol=1e-14 * condition**2 + 1e-9)


def test_an_ill_conditioned_matrix_keeps_half_of_its_digits():
    """Condition 1e10: the normal equations would have 1e20, and nothing left."""
    random = np.random.default_rng(0)
    u = np.linalg.qr(random.normal(size=(60, 4)))[0]
    v = np.linalg.qr(random.normal(size=(4, 4)))[0]
    x = u * np.array([1, 1e-3, 1e-6, 1e-10]) @ v.T
    truth = random.normal(size=4)
    pieces = [(x[k : k + 7], (x @ truth)[k : k + 7]) for k in range(0, 60, 7)]
    found = least_squares(pieces, intercept=False)
    assert found.rank == 4
    same(found.coefficients, truth, rtol=1e-5)
    normal = np.linalg.lstsq(x.T @ x, x.T @ x @ truth, rcond=None)[0]
    assert np.abs(normal - truth).max() > 1e-2


def test_diabetes_is_where_gradient_descent_goes():
    x, y = load_diabetes(return_X_y=True)
    x = x / x.std(0)
    fit = least_squares(x, y)
    weights, bias = np.zeros(x.shape[1]), 0.0
    gram, right = x.T @ x / len(x), x.T @ (y - y.mean()) / len(x)
    rate = 1 / np.linalg.eigvalsh(gram)[-1]
    for _ in range(20_000):
        weights -= rate * (gram @ weights - right)
    bias = y.mean() - x.mean(0) @ weights
    same(fit.coefficients, weights, rtol=1e-7)
    same(fit.intercept, np.float64(bias), rtol=1e-7)


def test_float32_and_whole_numbers_are_solved_in_float64():
    x, y = torch.tensor([[1], [2], [3]]), torch.tensor([2.0, 4.0, 6.0])
    found = least_squares(x, y)
    assert found.coefficients.dtype == torch.float64
    same(found.coefficients, [2.0])


X, Y = torch.ones(3, 2), torch.ones(3)


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        ((X[:0], Y[:0]), ValueError, "0 rows"),
        ((X[:, :0], Y), ValueError, "0 columns"),
        (([],), ValueError, "0 rows"),
        ((X, Y[:2]), ValueError, "the same number of rows"),
        ((X[0], Y), ValueError, "two"),
        ((X * float("nan"), Y), ValueError, "not finite"),
        ((X, Y / 0), ValueError, "not finite"),
        ((X * 1j, Y), ValueError, "real"),
        ((X, Y, -1.0), ValueError, "ridge=-1.0"),
        ((X, Y, float("nan")), ValueError, "ridge=nan"),
        ((X, Y, "much"), ValueError, "ridge='much'"),
        ((X,), ValueError, "without y"),
        (("text", "text"), TypeError, "expected a tensor"),
        (([(X, Y), (X[:, :1], Y)],), ValueError, "2 columns in X"),
        (([(X, Y), (X, torch.ones(3, 2))],), ValueError, "y has 2 columns"),
    ],
)
def test_bad_data_is_refused(arguments, kind, words):
    with pytest.raises(kind, match=words):
        least_squares(*arguments)
