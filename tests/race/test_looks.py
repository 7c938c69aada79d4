"""Bounds of the looks: the level is kept by simulated paths, and known values come out."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from steepest.statistics.looks import LOOKS, bounds, spent


def crossings(looks: tuple[int, ...], at: list[float], races: int) -> np.ndarray:
    """Null paths of t, of `races`, that cross first at each look."""
    rng = np.random.default_rng(5)
    first = np.zeros(len(looks))
    for _ in range(races // 50_000):
        x = rng.normal(size=(50_000, looks[-1]))
        inside = np.ones(len(x), dtype=bool)
        for i, n in enumerate(looks):
            t = abs(stats.ttest_1samp(x[:, :n], 0.0, axis=1).statistic)
            first[i] += (inside & (t > at[i])).sum()
            inside &= t <= at[i]
    return first


@pytest.mark.parametrize("looks", [LOOKS, (5, 8), (3, 6, 9, 20)])
@pytest.mark.parametrize("rivals", [1, 3])
def test_simulated_races_without_a_difference_cross_as_often_as_was_spent(rivals, looks):
    races = 200_000
    at = [b.t for b in bounds(rivals, looks)]
    level = 0.05 / rivals
    shares = [spent(n / looks[-1], level) for n in looks]
    expected = np.diff([0.0, *shares])
    found = crossings(looks, at, races)
    low, high = stats.binom.interval(1 - 1e-6, races, expected)
    assert ((low <= found) & (found <= high)).all(), (found, expected * races)


@pytest.mark.parametrize(("rivals", "t"), [(1, (6.84, 3.22, 2.31)), (8, (22.6, 5.63, 3.42))])
def test_known_bounds_of_five_eight_and_twelve_units(rivals, t):
    assert [b.t for b in bounds(rivals)] == pytest.approx(t, rel=0.005)


def test_one_look_is_the_t_test_and_many_observations_are_normal():
    (only,) = bounds(1, (10,))
    assert only.t == pytest.approx(stats.t.isf(0.025, 9), rel=1e-9)
    assert only.p == pytest.approx(0.05, rel=1e-9)
    first, last = (b.t for b in bounds(1, (50_000, 100_000)))
    assert first == pytest.approx(stats.norm.isf(0.025) * np.sqrt(2), rel=1e-3)
    both = stats.multivariate_normal(cov=[[1, 0.5**0.5], [0.5**0.5, 1]])
    inside = both.cdf([first, last], lower_limit=[-first, -last])
    assert inside == pytest.approx(0.95, abs=1e-4)


def test_all_is_spent_at_the_end_and_little_at_first():
    assert spent(1.0, 0.05) == pytest.approx(0.05)
    assert spent(5 / 12, 0.05) == pytest.approx(2 * stats.norm.sf(1.959964 / np.sqrt(5 / 12)))


def test_more_rivals_ask_for_more_at_every_look():
    few, many = bounds(2), bounds(8)
    assert all(a.t < b.t for a, b in zip(few, many, strict=True))
    assert all(a.p > b.p for a, b in zip(few, many, strict=True))


@pytest.mark.parametrize("looks", [(2, 8), (5, 6), (8, 5), (5, 5, 8)])
def test_looks_that_cannot_be(looks):
    with pytest.raises(ValueError, match="expected at least 3 units"):
        bounds(1, looks)
