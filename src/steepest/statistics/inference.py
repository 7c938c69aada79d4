"""The tests behind every claim of a race: pure functions of lists of numbers."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import special, stats

ALPHA = 0.05
"""Level of all claims of a race together: the largest probability of any false claim."""
POWER = 0.8
"""Share of races that should find a difference of the planned size."""
LEAST = 5
"""With fewer pairs there is no claim. The exact test may need more pairs: see `least_pairs`."""
EXHAUSTIVE = 20
"""Up to this many pairs, the sign-flip test uses all subsets of the pairs."""
CHUNK = 2**15
"""Subsets that are drawn at once."""
APART = 10.0
"""A difference this many median distances away stands apart: see `stands_apart`."""
BOOTSTRAP_LEAST = 20
"""With fewer pairs a bootstrap interval is too narrow, so it is not shown."""
FAR = 6.0
"""Beyond this noncentrality, `power` leaves out the tail of the other sign, for which scipy 1.17
gives nan. This tail is below 1e-9 there."""
NO_SPREAD = 1e-12
"""A difference of two numbers counts as rounding if it is below this share of the larger number."""
TINY = 1e-150
"""A difference below this counts as rounding, since its square is close to underflow."""


@dataclass(frozen=True)
class Difference:
    """Paired difference of an entry to the baseline, in the unit of the metric.

    The claim comes from the t test or from the exact test. The fields from `effect` on are only
    shown; they do not decide the claim.
    """

    n: int
    mean: float
    low: float | None
    high: float | None
    """Interval at `level`; None for a single pair, for differences without spread, or if an exact
    interval needs more pairs."""
    level: float
    """Confidence level, 0 to 1."""
    p: float | None
    p_holm: float | None
    """`p` after Holm's correction."""
    claim: bool
    """Whether the entry is told apart from the baseline, at 5 % over all entries."""
    exact: bool = False
    """Whether the sign-flip test was used, because a run failed or a difference stands apart."""
    effect: float | None = None
    """`hedges`, in standard deviations of the differences."""
    improved: float | None = None
    """Share of pairs in which the entry was better; a tie counts half."""
    improved_low: float | None = None
    improved_high: float | None = None
    """Exact 95 % interval of `improved`."""
    bootstrap_low: float | None = None
    bootstrap_high: float | None = None
    """BCa 95 % interval of the mean, from 20 pairs on."""
    look: int | None = None
    """Number of the look that decided, from 1; None in a race of a fixed number of seeds."""
    state: str | None = None
    """State of the entry after that look: see `looks.Standing`."""
    pairs: list[float] | None = None
    """The differences that were judged at that look, one for each unit."""


def spread_of(values: Sequence[float]) -> float:
    """Standard deviation from the median absolute deviation, so that no single run decides it."""
    return float(stats.median_abs_deviation(values) / stats.norm.ppf(0.75))


def holm(p: Sequence[float]) -> list[float]:
    """Adjusted p values of Holm (1979), Scandinavian Journal of Statistics 6, 65-70."""
    adjusted, _ = _step_down(dict(enumerate(p)))
    return [adjusted[i] for i in range(len(p))]


def _step_down(p: Mapping[Any, float]) -> tuple[dict[Any, float], dict[Any, float]]:
    """The adjusted p of each test by Holm's procedure, and the confidence level of its step.

    The smallest p is tested first, at the confidence level 1 - 0.05 / (number of tests). After each
    rejection, this number of tests decreases by one.
    """
    adjusted: dict[Any, float] = {}
    levels: dict[Any, float] = {}
    largest, shares = 0.0, len(p)
    for rank, key in enumerate(sorted(p, key=lambda key: (p[key], key))):
        largest = max(largest, min(1.0, (len(p) - rank) * p[key]))
        adjusted[key] = largest
        levels[key] = 1 - ALPHA / shares
        if p[key] <= ALPHA / shares:
            shares = max(1, shares - 1)
    return adjusted, levels


def stands_apart(d: Sequence[float] | np.ndarray) -> bool:
    """Whether one difference is so far from the others that it alone would decide a t test.

    The rule: the distance of its size |d| from the median size is more than 10 times the median of
    all such distances (MAD; Hampel 1974, Journal of the American Statistical Association 69,
    383-393). The rule uses only sizes. The level of the exact test depends only on signs, so the
    rule does not change it. The rule applies to 3 % of samples of n=10 normal differences with
    mean 0.
    """
    size = abs(np.asarray(d, dtype=float))
    distance = abs(size - np.median(size))
    usual = max(float(np.median(distance)), NO_SPREAD * size.max())
    return bool(distance.max(initial=0.0) > APART * usual)


def sign_flip(d: Sequence[float] | np.ndarray) -> float:
    """Two-sided p of the sign-flip test of the mean of paired differences `d`.

    There are 2^n ways to choose the signs of the differences. p is the share of them whose sum is
    at least as far from 0 as the observed sum (Fisher 1935, The Design of Experiments, section 21).
    The test is exact if both entries of a pair have the same distribution, of any shape. One huge
    difference, of a run that failed, counts as one sign; in a t test, it would make t about 1. The
    smallest p is 2 / 2^n.

    Flipping the signs of a subset raises the sum exactly if the subset's own sum is below 0. So
    only the signs of the sums of subsets are needed. For more than 20 pairs, 2^20 subsets are drawn
    with a fixed seed. The empty subset is one of them, which keeps p valid.
    """
    (subsets,) = _subsets([np.asarray(d, dtype=float)])
    return subsets.p()


def flip_interval(d: Sequence[float] | np.ndarray, level: float) -> tuple[float, float] | None:
    """Confidence interval of the mean by inversion of `sign_flip`; None with too few pairs.

    The interval contains each number x for which `sign_flip(d - x)` does not reject. Its ends are
    means of subsets of the differences: Hartigan (1969), Journal of the American Statistical
    Association 64, 1303-1317.
    """
    (subsets,) = _subsets([np.asarray(d, dtype=float)])
    return subsets.interval(level)


@dataclass(frozen=True)
class _Subsets:
    """Sum and size of every subset of the differences, or of the subsets that were drawn.

    A sum that would be only rounding is set to 0.
    """

    sums: np.ndarray
    sizes: np.ndarray

    def p(self) -> float:
        fewer = min((self.sums <= 0).sum(), (self.sums >= 0).sum())
        return min(1.0, 2 * float(fewer) / len(self.sizes))

    def interval(self, level: float) -> tuple[float, float] | None:
        nonempty = self.sizes > 0
        # p of a shift is twice the share of subsets whose mean is beyond it; empty subsets count
        beyond = math.floor((1 - level) / 2 * len(nonempty) * (1 + NO_SPREAD))
        beyond -= int((~nonempty).sum())
        if beyond < 0:
            return None
        means = self.sums[nonempty] / self.sizes[nonempty]
        means.partition([beyond, len(means) - 1 - beyond])
        return float(means[beyond]), float(means[-1 - beyond])


def _subsets(samples: Sequence[np.ndarray]) -> list[_Subsets]:
    """The subsets of each of `samples`. All samples have equal lengths and get the same subsets."""
    if not samples:
        return []
    n = len(samples[0])
    pairs = np.array([(d, abs(d)) for d in samples])
    rows = pairs.reshape(-1, n)
    if n <= EXHAUSTIVE:
        sums = np.zeros((len(rows), 1))
        sizes = np.zeros(1)
        for i in range(n):
            sums = np.concatenate((sums, sums + rows[:, i : i + 1]), axis=1)
            sizes = np.concatenate((sizes, sizes + 1))
    else:
        rng, chunks = np.random.default_rng(0), []
        for k in range(2**EXHAUSTIVE // CHUNK):
            drawn = rng.integers(2, size=(CHUNK, n), dtype=np.int8).astype(float)
            if k == 0:
                drawn[0] = 0  # the empty subset
            # one product for each sample: the rounding of a product depends on its number of rows
            chunks.append(((pairs @ drawn.T).reshape(len(rows), CHUNK), drawn.sum(axis=1)))
        sums, sizes = (np.concatenate(chunk, axis=-1) for chunk in zip(*chunks, strict=True))
    return [
        _Subsets(np.where(abs(total) <= NO_SPREAD * size, 0.0, total), sizes)
        for total, size in zip(sums[::2], sums[1::2], strict=True)
    ]


def least_pairs(comparisons: int) -> int:
    """The fewest pairs with which the sign-flip test can reject at the first step of Holm."""
    return max(LEAST, 1 + math.ceil(math.log2(max(1, comparisons) / ALPHA)))


def failure_bound(failed: int, n: int) -> float:
    """One-sided 95 % upper bound of the failure rate if `failed` of `n` runs failed.

    Clopper and Pearson (1934), Biometrika 26, 404-413.
    """
    bound = stats.binomtest(failed, n, alternative="less").proportion_ci(1 - ALPHA, "exact")
    return float(bound.high)


def constant(d: np.ndarray) -> bool:
    return bool(d.std() <= NO_SPREAD * abs(d.mean()))


def paired(a: Sequence[float], b: Sequence[float]) -> np.ndarray:
    """The differences a - b without rounding.

    A difference that is only rounding becomes 0. If all differences agree up to rounding, all
    become their mean.
    """
    x, y = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    rounding = NO_SPREAD * np.maximum(abs(x), abs(y)) + TINY
    d = np.where(abs(x - y) <= rounding, 0.0, x - y)
    same = abs(d - d.mean()) <= rounding
    return np.full_like(d, d.mean()) if same.all() else d


@dataclass(frozen=True)
class _Tests:
    """p of every entry with two pairs or more, and the subsets that gave an exact p."""

    p: dict[str, float]
    subsets: dict[str, _Subsets]
    exact: set[str]
    """Entries that are judged by the exact test."""


def _tests(differences: Mapping[str, np.ndarray], failed: Collection[str]) -> _Tests:
    exact = {name for name, d in differences.items() if name in failed or stands_apart(d)}
    by_size: dict[int, list[str]] = {}
    for name, d in differences.items():
        if len(d) >= 2 and (name in exact or constant(d)):  # there is no t test without spread
            by_size.setdefault(len(d), []).append(name)
    subsets: dict[str, _Subsets] = {}
    for names in by_size.values():
        made = _subsets([differences[name] for name in names])
        subsets |= dict(zip(names, made, strict=True))
    p = {}
    for name, d in differences.items():
        if name in subsets:
            p[name] = subsets[name].p()
        elif len(d) >= 2:
            test: Any = stats.ttest_1samp(d, 0.0)
            p[name] = float(test.pvalue)
    return _Tests(p, subsets, exact)


def decide(
    differences: Mapping[str, np.ndarray], failed: Collection[str] = ()
) -> tuple[dict[str, float], dict[str, float], set[str]]:
    """p of every entry with two pairs or more, p after Holm, and the entries told apart."""
    p = _tests(differences, failed).p
    adjusted, _ = _step_down(p)
    return p, adjusted, {e for e, d in differences.items() if _claimed(d, adjusted.get(e))}


def _claimed(d: np.ndarray, p_holm: float | None) -> bool:
    return len(d) >= LEAST and p_holm is not None and p_holm <= ALPHA


def compare(
    differences: Mapping[str, Sequence[float] | np.ndarray],
    *,
    maximize: bool = True,
    failed: Collection[str] = (),
) -> dict[str, Difference]:
    """Judge every entry's `paired` differences to the baseline. `maximize`: more is better.

    The tests are two-sided paired t tests, Holm-corrected over the entries. The exact `sign_flip`
    replaces the t test in three cases: for an entry in `failed` (a run of the entry or of the
    baseline failed), if one difference `stands_apart`, and if all differences are the same number.

    The interval of an entry inverts the test that was used for it. Its confidence level is that of
    the entry's step in Holm's procedure: at least 0.95, at most 1 - 0.05 / (number of entries).
    With five pairs or more, the interval excludes zero exactly if a difference is claimed. If all
    differences are the same, there is no interval.
    """
    arrays = {name: np.asarray(d, dtype=float) for name, d in differences.items()}
    tests = _tests(arrays, failed)
    adjusted, levels = _step_down(tests.p)
    judged = {}
    for name, d in arrays.items():
        level, exact = levels.get(name, 1 - ALPHA), name in tests.exact
        low = high = effect = between = None
        if len(d) >= 2 and not constant(d):
            if exact:  # one difference would decide an effect size and a bootstrap
                low, high = tests.subsets[name].interval(level) or (None, None)
            else:
                interval = stats.ttest_1samp(d, 0.0).confidence_interval(level)
                low, high = float(interval.low), float(interval.high)
                effect, between = hedges(d), bootstrap(d)
        improved, improved_low, improved_high = improvement(d if maximize else -d)
        bootstrap_low, bootstrap_high = between or (None, None)
        judged[name] = Difference(
            n=len(d),
            mean=float(d.mean()),
            low=low,
            high=high,
            level=level,
            p=tests.p.get(name),
            p_holm=adjusted.get(name),
            claim=_claimed(d, adjusted.get(name)),
            exact=exact,
            effect=effect,
            improved=improved,
            improved_low=improved_low,
            improved_high=improved_high,
            bootstrap_low=bootstrap_low,
            bootstrap_high=bootstrap_high,
        )
    return judged


def hedges(d: Sequence[float] | np.ndarray) -> float:
    """Mean over standard deviation of paired differences, corrected for small samples.

    This is the standardised mean difference of pairs (d_z) times the exact correction of Hedges
    (1981), Journal of Educational Statistics 6, 107-128, for n - 1 degrees of freedom. The
    correction is 0 for n = 2. `d` needs two pairs or more, and some spread.
    """
    d = np.asarray(d, dtype=float)
    df = len(d) - 1
    if df < 2:
        return 0.0
    log_correction = special.gammaln(df / 2) - special.gammaln((df - 1) / 2)
    return float(d.mean() / d.std(ddof=1) * math.exp(log_correction) / math.sqrt(df / 2))


def improvement(d: Sequence[float] | np.ndarray) -> tuple[float, float, float]:
    """Share of pairs above zero, where a tie counts half, and its exact 95 % interval (low, high).

    The share is the probability of improvement of Agarwal et al. 2021, arXiv:2108.13264, for pairs.
    The interval is that of Clopper and Pearson (1934), Biometrika 26, 404-413. The lower end counts
    ties as losses, the upper end counts ties as wins, so the interval is never too narrow.
    """
    signs = np.sign(d)
    n, wins, ties = len(signs), int((signs > 0).sum()), int((signs == 0).sum())
    low = stats.binomtest(wins, n).proportion_ci(1 - ALPHA, "exact").low
    high = stats.binomtest(wins + ties, n).proportion_ci(1 - ALPHA, "exact").high
    return (wins + ties / 2) / n, float(low), float(high)


def bootstrap(d: Sequence[float] | np.ndarray) -> tuple[float, float] | None:
    """BCa 95 % interval of the mean; None below 20 pairs or without spread. For display only.

    Efron (1987), Journal of the American Statistical Association 82, 171-185.
    """
    d = np.asarray(d, dtype=float)
    if len(d) < BOOTSTRAP_LEAST or constant(d):
        return None
    interval = stats.bootstrap(
        (d,), np.mean, confidence_level=1 - ALPHA, method="BCa", rng=np.random.default_rng(0)
    ).confidence_interval
    return float(interval.low), float(interval.high)


def power(effect: float, n: int, alpha: float = ALPHA) -> float:
    """Power of a two-sided t test of `n` pairs at `alpha` for a true `effect`.

    `effect`: mean of the differences divided by their standard deviation. The power follows from
    the noncentral t distribution: Cohen (1988), Statistical Power Analysis for the Behavioral
    Sciences.
    """
    shift, edge = abs(effect) * math.sqrt(n), stats.t.isf(alpha / 2, n - 1)
    chance = float(stats.nct.sf(edge, n - 1, shift))
    if shift < FAR:
        chance += float(stats.nct.cdf(-edge, n - 1, shift))
    return chance
