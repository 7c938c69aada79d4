"""What a race may claim and promise, against scipy, closed forms and simulation."""

import itertools
import json
import math
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from steepest.race import planning
from steepest.race.protocol import Plan
from steepest.statistics import descriptive, inference

p_values = st.lists(st.floats(0, 1), min_size=1, max_size=9)
values = st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=7)


# --- claims


def test_holm_by_hand():
    # sorted .005 .01 .03 .04, times 4 3 2 1, never falling
    assert inference.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert inference.holm([0.9, 0.8]) == [1.0, 1.0]
    assert inference.holm([]) == []


@given(p_values, st.randoms(use_true_random=False))
def test_holm_laws(p, random):
    adjusted = inference.holm(p)
    assert all(a <= b <= min(1, len(p) * a + 1e-15) for a, b in zip(p, adjusted, strict=True))
    order = np.argsort(p, kind="stable")
    assert all(np.diff(np.array(adjusted)[order]) >= 0)
    shuffled = random.sample(range(len(p)), len(p))
    assert inference.holm([p[i] for i in shuffled]) == [adjusted[i] for i in shuffled]


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 12), st.integers(1, 6), st.floats(0, 3))
def test_a_comparison_has_the_p_and_the_level_of_holms_procedure_to_the_bit(seed, n, field, shift):
    rng = np.random.default_rng(seed)
    shifts = shift * rng.normal(size=field)
    differences = {str(field - i): rng.normal(shifts[i], 1, n).round(1) for i in range(field)}
    judged = inference.compare(differences)
    p, adjusted, claims = inference.decide(differences)
    assert {name: d.p for name, d in judged.items()} == p
    assert {name: d.p_holm for name, d in judged.items()} == adjusted
    assert adjusted == dict(zip(p, inference.holm(list(p.values())), strict=True))
    assert {name for name, d in judged.items() if d.claim} == claims
    left = field
    for name in sorted(p, key=lambda name: (p[name], name)):
        assert judged[name].level == 1 - 0.05 / left
        left -= p[name] <= 0.05 / left and left > 1


def test_interval_and_p_are_those_of_a_paired_t_test():
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(2, 10))
    judged = inference.compare({"one": (a - b).tolist()})["one"]
    oracle = stats.ttest_rel(a, b)
    interval = oracle.confidence_interval(0.95)
    assert (judged.n, judged.level) == (10, 0.95)
    assert judged.mean == pytest.approx(a.mean() - b.mean())
    assert (judged.low, judged.high) == pytest.approx((interval.low, interval.high))
    assert judged.p == judged.p_holm == pytest.approx(oracle.pvalue)


def test_an_interval_is_at_the_level_at_which_holm_tested_it():
    rng = np.random.default_rng(2)
    noise = {name: rng.normal(size=10).tolist() for name in ("far", "null", "none")}
    noise["far"] = [5 + 0.1 * x for x in noise["far"]]
    judged = inference.compare(noise)
    assert judged["far"].level == pytest.approx(1 - 0.05 / 3)
    assert judged["null"].level == judged["none"].level == pytest.approx(1 - 0.05 / 2)
    assert [judged[name].claim for name in noise] == [True, False, False]


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(5, 12), st.integers(1, 6), st.floats(0, 3))
def test_an_interval_leaves_out_zero_exactly_where_a_difference_is_claimed(seed, n, field, shift):
    rng = np.random.default_rng(seed)
    shifts = shift * rng.normal(size=field)
    judged = inference.compare({str(i): rng.normal(shifts[i], 1, n).tolist() for i in range(field)})
    for d in judged.values():
        assert d.p_holm is not None
        if d.exact and d.low is None:  # too few pairs for the level
            assert not d.claim
            continue
        assert d.low is not None
        assert d.high is not None
        assert d.claim == (d.low > 0 or d.high < 0) == (d.p_holm <= 0.05)


def test_differences_without_spread_give_no_nan():
    judged = inference.compare({"same": [0.0] * 10, "shifted": [1 / 597 - 1e-17] * 9 + [1 / 597]})
    same, shifted = judged["same"], judged["shifted"]
    assert (same.low, same.high, same.p, same.claim) == (None, None, 1, False)
    assert shifted.low is None
    assert shifted.p == pytest.approx(stats.binomtest(10, 10).pvalue)  # the exact sign test
    assert not inference.compare({"five": [0.5] * 5})["five"].claim


@pytest.mark.parametrize("size", [1e-14, 1.0, 1e14])
def test_what_is_rounding_depends_on_the_size_of_the_metric(size):
    rng = np.random.default_rng(8)
    base = size * (1 + rng.random(10))
    others = {
        "same": base * (1 + 1e-15),
        "half": base / 2,
        "shifted": base + size / 3,
        "tied": base * np.array([1 + 1e-15] * 5 + [1.1] * 5),
    }
    judged = inference.compare({e: inference.paired(v, base) for e, v in others.items()})
    assert (judged["same"].p, judged["same"].mean, judged["same"].improved) == (1, 0, 0.5)
    assert judged["half"].low is not None
    assert judged["half"].p == pytest.approx(stats.ttest_rel(base / 2, base).pvalue)
    assert (judged["half"].claim, judged["half"].improved) == (True, 0)
    assert (judged["shifted"].low, judged["shifted"].p) == (None, 2.0**-9)
    assert judged["tied"].improved == 0.75


def test_differences_whose_squares_vanish_are_none():
    judged = inference.compare({"a": inference.paired([1e-200, 2e-170] * 5, [0.0] * 10)})["a"]
    assert (judged.p, judged.mean) == (1, 0)


@pytest.mark.parametrize("n", [1, 2, 4])
def test_no_claim_on_fewer_than_five_seeds(n):
    judged = inference.compare({"huge": [100 + 0.001 * i for i in range(n)]})["huge"]
    assert not judged.claim
    assert (judged.p is None) == (n == 1)


def test_proportion_error():
    assert descriptive.proportion_error(0.5, 100) == pytest.approx(0.05)
    assert descriptive.proportion_error(1.0, 7) == 0


# --- where a run failed

LOST = st.sampled_from([-0.95, 0.0, 0.0, 0.01, -0.02, 0.004, 0.95, 3e30, -3e30])


@pytest.mark.parametrize("n", [2, 5, 8, 11])
@pytest.mark.parametrize("kind", ["plain", "one lost", "two lost", "ties"])
def test_the_sign_flip_test_is_scipys_permutation_test(n, kind):
    d = np.random.default_rng(n).normal(0.4, 1, n)
    if kind == "ties":
        d = np.round(3 * d) / 597
    elif kind != "plain":
        d[: 1 + (kind == "two lost")] -= 50
    oracle = stats.permutation_test(
        (d,), np.mean, permutation_type="samples", n_resamples=10**6, vectorized=True
    )
    assert inference.sign_flip(d) == pytest.approx(oracle.pvalue)
    assert inference.sign_flip(-d) == inference.sign_flip(d)


def test_one_huge_difference_counts_as_one_sign():
    rest = [0.03, 0.031, 0.029, 0.032, 0.028, 0.03, 0.031, 0.029, 0.03]
    for huge in (0.95, 1e6, 4e33):
        d = [huge, *rest]
        assert stats.ttest_1samp(d, 0).pvalue > 0.1
        assert inference.sign_flip(d) == 2 / 2**10
        judged = inference.compare({"a": d}, failed=["a"])["a"]
        assert (judged.claim, judged.exact, judged.effect) == (True, True, None)
        assert judged.low is not None
        assert 0.028 < judged.low < 0.032
        # and against: the one that fails once and is better elsewhere does not win
        assert not inference.compare({"a": [-huge, *rest]}, failed=["a"])["a"].claim


@settings(deadline=None)
@given(
    st.lists(st.lists(LOST, min_size=7, max_size=7), min_size=1, max_size=4), st.floats(-0.1, 0.1)
)
def test_an_exact_interval_leaves_out_zero_exactly_where_a_difference_is_claimed(found, shift):
    d = {str(i): np.array(values) + shift for i, values in enumerate(found)}
    judged = inference.compare(d, failed=[*d])
    for name, one in judged.items():
        if one.low is None or one.high is None:
            assert not one.claim or np.ptp(d[name]) < 1e-15  # too few for the level, or no spread
            continue
        assert one.low <= one.high
        assert one.claim == (one.low > 0 or one.high < 0) == (one.p_holm <= 0.05)


def test_an_exact_interval_has_the_shifts_that_are_not_rejected():
    d = np.random.default_rng(4).normal(0.3, 1, 9)
    d[0] = -30
    interval = inference.flip_interval(d, 0.95)
    assert interval is not None
    shifts = np.linspace(-40, 3, 2000)
    kept = [s for s in shifts if inference.sign_flip(d - s) > 0.05]
    step = shifts[1] - shifts[0]
    assert (min(kept), max(kept)) == pytest.approx(interval, abs=step)


def test_the_interval_of_a_symmetric_difference_covers_its_middle():
    rng = np.random.default_rng(5)
    covered = 0
    for _ in range(1000):
        interval = inference.flip_interval(1 + rng.standard_t(2, 8), 0.95)
        assert interval is not None
        covered += interval[0] <= 1 <= interval[1]
    assert stats.binom.ppf(0.005, 1000, 0.95) <= covered <= stats.binom.ppf(0.995, 1000, 0.96)


def test_many_pairs_are_tested_on_subsets_that_stand_for_all():
    d = np.random.default_rng(6).normal(0.25, 1, 25)
    # by a convolution over a fine grid, which needs no subsets
    grid = np.round(d * 1000).astype(int)
    half = int(abs(grid).sum())
    chance = np.zeros(2 * half + 1)
    chance[half] = 1.0
    for x in abs(grid):
        chance = (np.roll(chance, x) + np.roll(chance, -x)) / 2
    exact = 2 * chance[half + abs(grid.sum()) :].sum()
    assert inference.sign_flip(grid) == pytest.approx(exact, abs=0.001)
    low, high = inference.flip_interval(grid, 1 - exact - 0.003)
    assert low > 0 or high < 0
    low, high = inference.flip_interval(grid, 1 - exact + 0.003)
    assert low < 0 < high  # of the same subsets, whoever asks


@pytest.mark.parametrize(("rivals", "least"), [(1, 6), (2, 7), (3, 7), (4, 8), (8, 9)])
def test_the_least_pairs_are_those_whose_least_p_is_small_enough(rivals, least):
    assert inference.least_pairs(rivals) == least
    for n in (least - 1, least):
        d = {str(i): [0.9, *[0.01] * (n - 2), 0.02] for i in range(rivals)}
        judged = inference.compare(d, failed=[*d])
        assert all(one.claim == (n == least) for one in judged.values())


@pytest.mark.parametrize(("failed", "n"), [(0, 10), (1, 10), (3, 6), (10, 10)])
def test_the_bound_of_a_rate_is_the_rate_that_gives_as_few_in_one_of_twenty(failed, n):
    bound = inference.failure_bound(failed, n)
    if failed == n:
        assert bound == 1
    else:
        assert stats.binom.cdf(failed, n, bound) == pytest.approx(0.05)
    assert inference.failure_bound(0, 10) == pytest.approx(1 - 0.05**0.1)  # 26 %


def null(rng, kind, shape, rate, who):
    """Test metrics of 10 seeds of a baseline and rivals, equal but for who diverges at `rate`."""
    if kind == "heavy":
        test = 0.96 + 0.006 * rng.standard_t(2, shape)
    else:
        test = rng.normal(0.96, 0.006, shape)
    if kind == "discrete":
        test = np.round(test * 150) / 150
    lost = np.zeros(shape, dtype=bool)
    rows = {"baseline": slice(0, 1), "rival": slice(1, 2), "all": slice(None)}[who]
    lost[rows] = rng.random(lost[rows].shape) < rate
    return np.where(lost, 0.0, test.clip(0, 1)), lost.any(axis=1)


@pytest.mark.parametrize("who", ["baseline", "rival", "all"])
@pytest.mark.parametrize("kind", ["heavy", "discrete"])
def test_no_claim_in_the_wrong_direction_where_runs_diverge(kind, who):
    # a full table: python bench/calibration.py --failures
    rng, races, false = np.random.default_rng(7), 400, 0
    for _ in range(races):
        test, lost = null(rng, kind, (3, 10), 0.1, who)
        d = {str(i): inference.paired(test[i + 1], test[0]) for i in range(2)}
        failed = [key for i, key in enumerate(d) if lost[0] or lost[i + 1]]
        true = {"baseline": [1, 1], "rival": [-1, 0], "all": [0, 0]}[who]
        _, _, claims = inference.decide(d, failed)
        false += any(np.sign(d[key].mean()) != true[int(key)] for key in claims)
    assert false <= stats.binom.ppf(1 - 0.025 / 6, races, 0.05)


def test_a_baseline_that_diverges_is_beaten_by_what_is_better():
    rng, found = np.random.default_rng(8), {"exact": 0, "t": 0}
    for _ in range(200):
        test, _ = null(rng, "plain", (2, 10), 0.1, "baseline")
        test[1] += 0.024  # 4 standard deviations
        d = {"a": inference.paired(test[1], test[0])}
        found["exact"] += inference.compare(d, failed=["a"])["a"].claim
        found["t"] += stats.ttest_1samp(d["a"], 0).pvalue < 0.05
    assert found["exact"] == 200
    assert found["t"] < 120


@pytest.mark.parametrize(("n", "least"), [(8, 190), (10, 190), (12, 190)])
def test_a_baseline_that_collapses_to_chance_is_beaten_by_what_is_better(n, least):
    # a collapse is no failure that anybody has said: 0.1 is far above WORST = 0
    rng, found, by_t = np.random.default_rng(9), 0, 0
    for _ in range(200):
        base = np.where(rng.random(n) < 0.1, 0.1, rng.normal(0.94, 0.005, n))
        d = rng.normal(0.96, 0.005, n) - base
        found += inference.compare({"a": d})["a"].claim
        by_t += stats.ttest_1samp(d, 0).pvalue < 0.05
    assert found >= least
    assert by_t < 150


def test_what_stands_apart_does_not_depend_on_signs():
    rng = np.random.default_rng(10)
    for _ in range(200):
        d = rng.standard_t(2, 9)
        assert inference.stands_apart(d) == inference.stands_apart(d * rng.choice([-1, 1], 9))
    assert inference.stands_apart([0.02, 0.021, 0.019, 0.02, 0.022, 0.018, -0.85])
    assert not inference.stands_apart([0.02, 0.021, 0.019, 0.02, 0.022, 0.018, 0.025])
    assert not inference.stands_apart([0.3, 0.3, 0.3 + 1e-17])
    assert inference.stands_apart([0.0] * 8 + [0.1])


@pytest.mark.parametrize("kind", ["normal", "heavy", "collapse", "discrete"])
@pytest.mark.parametrize("n", [7])
def test_the_choice_of_the_test_keeps_the_level(kind, n):
    rng, races, false = np.random.default_rng(11), 2000, 0
    for _ in range(races):
        a = rng.standard_t(2, (2, n)) if kind == "heavy" else rng.normal(size=(2, n))
        if kind == "collapse":
            a[rng.random((2, n)) < 0.1] -= 150
        d = np.round(a[1] - a[0]) if kind == "discrete" else a[1] - a[0]
        false += len(inference.decide({"a": d})[2])
    assert false <= stats.binom.ppf(1 - 0.025 / 8, races, 0.05)


def test_many_pairs_take_seconds_and_no_other_numbers():
    d = np.random.default_rng(12).normal(0.1, 1, (2, 22))
    together = inference.compare({str(i): x for i, x in enumerate(d)}, failed=["0", "1"])
    for i, x in enumerate(d):
        one = together[str(i)]
        assert one.p == inference.sign_flip(x)
        assert (one.low, one.high) == inference.flip_interval(x, one.level)


# --- effect size


@pytest.mark.parametrize("df", [2, 4, 9, 30])
def test_hedges_correction_is_the_published_one(df):
    d = np.arange(df + 1.0)
    g = inference.hedges(d)
    correction = math.gamma(df / 2) / (math.sqrt(df / 2) * math.gamma((df - 1) / 2))
    assert g == pytest.approx(d.mean() / d.std(ddof=1) * correction)
    assert g == pytest.approx(d.mean() / d.std(ddof=1) * (1 - 3 / (4 * df - 1)), rel=0.04)
    assert inference.hedges(-d) == -g


def test_hedges_has_no_bias_at_five_pairs():
    rng = np.random.default_rng(0)
    found = [inference.hedges(rng.normal(0.8, 1, 5)) for _ in range(20_000)]
    raw = [g * (4 / 2) ** 0.5 * math.gamma(1.5) / math.gamma(2) for g in found]
    assert np.mean(found) == pytest.approx(0.8, abs=0.02)
    assert np.mean(raw) > 0.95  # without the correction


def test_two_pairs_have_no_effect_size():
    assert inference.hedges([1.0, 2.0]) == 0


# --- probability of improvement


def test_improvement_counts_ties_half_and_its_interval_is_exact():
    share, low, high = inference.improvement([1, 2, 3, 4, 5, 6, 7, -1])
    oracle = stats.binomtest(7, 8).proportion_ci(0.95, "exact")
    assert (share, low, high) == (7 / 8, pytest.approx(oracle.low), pytest.approx(oracle.high))
    # by the beta distribution
    assert low == pytest.approx(stats.beta.ppf(0.025, 7, 2))
    assert inference.improvement([0.0] * 10) == (0.5, 0.0, 1.0)
    assert inference.improvement([2.0] * 5)[:1] == (1.0,)


@pytest.mark.parametrize(("win", "tie"), [(0.5, 0.0), (0.9, 0.0), (0.3, 0.4), (0.05, 0.9)])
def test_the_interval_of_improvement_covers_the_truth(win, tie):
    n = 10
    covered = 0.0
    for wins, ties in itertools.product(range(n + 1), repeat=2):  # every outcome by its chance
        if wins + ties <= n:
            chance = stats.multinomial.pmf(
                [wins, ties, n - wins - ties], n, [win, tie, 1 - win - tie]
            )
            d = [1.0] * wins + [0.0] * ties + [-1.0] * (n - wins - ties)
            _, low, high = inference.improvement(d)
            covered += float(chance) * (low <= win + tie / 2 <= high)
    assert covered >= 0.95


# --- bootstrap


def test_bca_from_twenty_pairs_on():
    d = np.random.default_rng(1).exponential(size=20)
    assert inference.bootstrap(d[:19]) is None
    assert inference.bootstrap([0.5] * 30) is None
    interval = inference.bootstrap(d)
    assert interval == inference.bootstrap(d)  # the same numbers in every report
    assert interval is not None
    low, high = interval
    assert low < d.mean() < high
    assert high - d.mean() > d.mean() - low  # skewed as the data are: BCa, not a t interval


# --- power


@pytest.mark.parametrize(("effect", "n", "alpha"), [(0.5, 10, 0.05), (1.2, 5, 0.05), (1, 12, 0.01)])
def test_power_by_simulation(effect, n, alpha):
    d = np.random.default_rng(2).normal(effect, 1, (20_000, n))
    share = (stats.ttest_1samp(d, 0, axis=1).pvalue <= alpha).mean()
    assert inference.power(effect, n, alpha) == pytest.approx(share, abs=0.012)


def test_power_by_integration():
    # over the standard deviation: chi with n - 1 degrees of freedom
    effect, n = 0.7, 8
    edge = stats.t.isf(0.025, n - 1)

    def found(s):
        z, shift = edge * s / math.sqrt(n - 1), effect * math.sqrt(n)
        return stats.chi.pdf(s, n - 1) * (stats.norm.sf(z - shift) + stats.norm.cdf(-z - shift))

    assert inference.power(effect, n) == pytest.approx(integrate.quad(found, 0, np.inf)[0])
    assert inference.power(0, n) == pytest.approx(0.05)
    assert inference.power(-effect, n) == inference.power(effect, n)


# --- compare


def test_compare_knows_the_direction():
    d = {"a": [0.1, 0.2, 0.3, 0.4, 0.5, -0.1]}
    up, down = (inference.compare(d, maximize=m)["a"] for m in (True, False))
    assert (up.improved, down.improved) == (pytest.approx(5 / 6), pytest.approx(1 / 6))
    assert (up.mean, up.p, up.claim, up.effect) == (down.mean, down.p, down.claim, down.effect)


@pytest.mark.parametrize("heavy", [False, True])
def test_false_claims_of_three_entries_stay_at_five_percent_together(heavy):
    rng = np.random.default_rng(6)
    races, false = 150, 0
    for _ in range(races):
        base, *others = rng.standard_t(2, (4, 5)) if heavy else rng.normal(size=(4, 5))
        _, _, claims = inference.decide({str(i): other - base for i, other in enumerate(others)})
        false += bool(claims)
    assert false <= stats.binom.ppf(0.975, races, 0.05)


@settings(deadline=None)
@given(st.lists(st.sampled_from([0.0, 0.25, -1.0, 3e8, 1e-300]), min_size=1, max_size=25))
def test_no_difference_makes_a_nan(d):
    judged = asdict(inference.compare({"a": d})["a"])
    json.dumps(judged, allow_nan=False)
    assert judged["improved_low"] <= judged["improved"] <= judged["improved_high"]


# --- how careful one must be


@given(values, st.booleans())
def test_expected_best_is_the_mean_over_all_choices(tried, maximize):
    best = max if maximize else min
    got = descriptive.expected_best(tried, maximize=maximize)
    for k in range(1, len(tried) + 1):
        every = [best(choice) for choice in itertools.combinations(tried, k)]
        assert got[k - 1] == pytest.approx(math.fsum(every) / len(every), abs=1e-9)
    assert got[-1] == best(tried)


def test_expected_best_of_a_uniform_distribution_is_unbiased():
    rng = np.random.default_rng(4)
    curves = [descriptive.expected_best(rng.random(8).tolist()) for _ in range(4000)]
    assert np.mean(curves, axis=0) == pytest.approx([k / (k + 1) for k in range(1, 9)], abs=0.01)
    assert descriptive.expected_best([]) == []


def test_width_of_the_learning_rates_near_the_best():
    trials = [(1e-4, 0.5), (1e-3, 0.960), (3e-3, 0.965), (1e-2, 0.969), (1e-1, 0.2), (1.0, 0.965)]
    width = descriptive.lr_width(trials)
    assert width is not None
    assert width["seen"] == pytest.approx(1.0)
    assert width["points"] == 6  # of which 1.0 is as good, and no neighbour
    down = descriptive.lr_width([(lr, -v) for lr, v in trials[::-1]], maximize=False)
    assert down == width
    one = descriptive.lr_width([(0.1, 0.0)])
    assert one == {"seen": 0.0, "points": 1}
    assert descriptive.lr_width([]) is None


def test_interquartile_mean():
    assert descriptive.interquartile_mean([0, 1, 2, 3, 4, 5, 6, 1e9]) == pytest.approx(3.5)


# --- the plan


@pytest.mark.parametrize(("n", "comparisons"), [(5, 1), (10, 1), (10, 8), (40, 2)])
def test_the_detectable_difference_is_the_inverse_of_power(n, comparisons):
    least = planning.detectable(0.02, n, comparisons)
    assert inference.power(least / 0.02, n, 0.05 / comparisons) == pytest.approx(0.8)


def test_too_few_seeds_detect_nothing():
    with pytest.raises(ValueError, match="n=4: a claim needs at least 5"):
        planning.detectable(1.0, 4)


def test_the_interval_of_a_standard_deviation_covers_it():
    rng = np.random.default_rng(5)
    found = rng.normal(0, 3, (4000, 5)).std(axis=1, ddof=1)
    covered = [low < 3 < high for low, high in (planning.sd_interval(s, 5) for s in found)]
    assert np.mean(covered) == pytest.approx(0.8, abs=0.02)


def test_the_text_of_a_plan():
    plan = Plan("digits", ("adamw", "momentum", "eadam"), trials=8, seeds=10, steps=300, seed=0)
    # 3 x 10 x (8 + 1) = 270 runs on 4 workers are 68 turns of half a second, and 3 first steps
    assert planning.duration(plan, 4, 0.5, 1.0) == 37
    said = planning.describe(plan, 4, 0.5, 1.0)
    assert said.startswith(
        "3 entries, each with 10 fresh seeds and 8 tuning trials for each seed, all of 300 steps: "
        "270 runs, about 37 s with --jobs 4."
    )
    assert f"{planning.detectable(1.0, 10, 2):.2f} standard deviations" in said
    assert "found in at most 80% of such races" in said
    known = planning.describe(plan, 2, 2.0, 1.0, [0.01, -0.01, 0.02, 0.0], proportion=True)
    sd = np.std([0.01, -0.01, 0.02, 0.0], ddof=1)
    assert f"difference of {100 * planning.detectable(sd, 10, 2):.2f} points to adamw" in known
    assert "4 pairs of pilot runs show the spread only roughly" in known
    assert "standard deviations" in planning.describe(
        plan, 2, 2.0, 1.0, [0.0, 0.0]
    )  # no spread seen


def test_plans_without_a_verdict():
    alone = Plan("digits", ("adamw",), trials=8, seeds=10, steps=300, seed=0)
    assert "nothing to compare it with" in planning.describe(alone, 1, 120.0, 0.0)
    assert "1 entry with 10 fresh seeds" in planning.describe(alone, 1, 120.0, 0.0)
    assert "90 runs, about 3.0 h" in planning.describe(alone, 1, 120.0, 0.0)
    few = Plan("digits", ("adamw", "adam"), trials=1, seeds=4, steps=300, seed=0)
    assert "No verdict: 4 fresh seeds" in planning.describe(few, 1, 60.0, 0.0)
    assert "16 runs, about 16 min" in planning.describe(few, 1, 60.0, 0.0)
