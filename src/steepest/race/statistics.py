"""What may be claimed from paired seeds: pure functions on lists of numbers."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import special, stats

ALPHA = 0.05
POWER = 0.8
"""Share of races in which a difference of the planned size is to be found."""
LEAST = 5
"""Fewer pairs than this allow no claim, more are needed where a run failed: `least_pairs`."""
EVERY = 20
"""Pairs up to which the sign-flip test takes every subset of them."""
CHUNK = 2**15
"""Subsets drawn at once."""
APART = 10.0
"""Median distances that a difference may lie from the others' middle: see `stands_apart`."""
BOOTSTRAP_LEAST = 20
"""Pairs from which a bootstrap interval is shown; below, it is too narrow."""
NEAR = 0.01
"""Share of the best metric that a learning rate may cost and still be called as good."""
FAR = 6.0
"""Noncentrality beyond which the wrong tail, under 1e-9, is left out: scipy 1.17 has nan there."""
NO_SPREAD = 1e-12
"""Difference, relative to the numbers it is of, that is rounding and not spread."""
TINY = 1e-150
"""Beneath it squares vanish."""


@dataclass(frozen=True)
class Difference:
    """Paired difference of an entry to the baseline, in units of the metric.

    The claim rests on the t test, or on the exact one; everything from `effect` on is shown beside
    it.
    """

    n: int
    mean: float
    low: float | None
    high: float | None
    """Interval at `level`; None where there is none (one pair, no spread, too few for an exact
    one)."""
    level: float
    p: float | None
    p_holm: float | None
    claim: bool
    """Told apart from the baseline at 5 % over all entries."""
    exact: bool = False
    """By the sign-flip test, as a run failed or one stands apart; else by the t test."""
    effect: float | None = None
    """`hedges`, in standard deviations of the differences."""
    improved: float | None = None
    """Share of seeds on which the entry was better, ties counted half..."""
    improved_low: float | None = None
    improved_high: float | None = None
    """...with an exact 95 % interval."""
    bootstrap_low: float | None = None
    bootstrap_high: float | None = None
    """BCa 95 % interval of the mean, from 20 pairs on."""


def spread_of(values: Sequence[float]) -> float:
    """Standard deviation by the median absolute deviation: one run does not decide it."""
    return float(stats.median_abs_deviation(values) / stats.norm.ppf(0.75))


def holm(p: Sequence[float]) -> list[float]:
    """Adjusted p values of Holm (1979), Scandinavian Journal of Statistics 6, 65-70."""
    adjusted, _ = _step_down(dict(enumerate(p)))
    return [adjusted[i] for i in range(len(p))]


def _step_down(p: Mapping[Any, float]) -> tuple[dict[Any, float], dict[Any, float]]:
    """The adjusted p of each test by Holm's procedure, and the confidence level of its step.

    The smallest p is tested first, at 1 - 0.05 / (number of tests); each step that rejects lowers
    that number by one for the next.
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
    """Whether one of the differences is so far from the others that a t test sees only it.

    Its size |d| lies further from the median size than 10 times the median of all such distances
    (MAD; Hampel 1974, Journal of the American Statistical Association 69, 383-393). It asks for
    sizes alone: where it sends a race does not depend on signs, which are what the exact test
    counts. Of normal differences without a mean it holds for 3 % at n=10.
    """
    size = abs(np.asarray(d, dtype=float))
    away = abs(size - np.median(size))
    return bool(away.max(initial=0.0) > APART * max(float(np.median(away)), NO_SPREAD * size.max()))


def sign_flip(d: Sequence[float] | np.ndarray) -> float:
    """Two-sided p of the sign-flip test of the mean of paired differences `d`.

    The share of the 2^n sums of plus or minus every difference that lie as far from 0 as theirs
    (Fisher 1935, The Design of Experiments, section 21). It is exact where both entries of a pair
    have the same distribution, whatever that is: one huge difference, of a run that failed, counts
    as one sign, while it makes the t of a t test 1. The least p is 2 / 2^n.

    Flipping a subset of the signs raises the sum just where the subset's own sum is below 0, so
    that signs of sums of subsets are all that is needed. Beyond 20 pairs 2^20 subsets drawn from a
    fixed seed stand for all, and the one of none counts, which keeps p valid.
    """
    (subsets,) = _subsets([np.asarray(d, dtype=float)])
    return subsets.p()


def flip_interval(d: Sequence[float] | np.ndarray, level: float) -> tuple[float, float] | None:
    """The shifts of `d` that `sign_flip` does not reject at `level`; None for too few pairs.

    Its ends are means of subsets of the differences: Hartigan (1969), Journal of the American
    Statistical Association 64, 1303-1317.
    """
    (subsets,) = _subsets([np.asarray(d, dtype=float)])
    return subsets.interval(level)


@dataclass(frozen=True)
class _Subsets:
    """Sum, exactly 0 where it is but rounding, and size of every subset, or of those drawn."""

    sums: np.ndarray
    sizes: np.ndarray

    def p(self) -> float:
        few = min((self.sums <= 0).sum(), (self.sums >= 0).sum())
        return min(1.0, 2 * float(few) / len(self.sizes))

    def interval(self, level: float) -> tuple[float, float] | None:
        some = self.sizes > 0
        # p of a shift is twice the share of subsets with a mean beyond it, empty ones among them
        few = math.floor((1 - level) / 2 * len(some) * (1 + NO_SPREAD)) - int((~some).sum())
        if few < 0:
            return None
        means = self.sums[some] / self.sizes[some]
        means.partition([few, len(means) - 1 - few])
        return float(means[few]), float(means[-1 - few])


def _subsets(found: Sequence[np.ndarray]) -> list[_Subsets]:
    """Those of each of `found`, all of as many pairs: the same subsets for all."""
    if not found:
        return []
    n, every = len(found[0]), np.array([row for d in found for row in (d, abs(d))])
    if n <= EVERY:
        sums = np.zeros((len(every), 1))
        sizes = np.zeros(1)
        for i in range(n):
            sums = np.concatenate((sums, sums + every[:, i : i + 1]), axis=1)
            sizes = np.concatenate((sizes, sizes + 1))
    else:
        rng, parts = np.random.default_rng(0), []
        for k in range(2**EVERY // CHUNK):
            drawn = rng.integers(2, size=(CHUNK, n), dtype=np.int8).astype(float)
            drawn[0] *= k > 0  # the first of all is that of none
            parts.append((every @ drawn.T, drawn.sum(axis=1)))
        sums, sizes = (np.concatenate(part, axis=-1) for part in zip(*parts, strict=True))
    return [
        _Subsets(np.where(abs(own) <= NO_SPREAD * size, 0.0, own), sizes)
        for own, size in zip(sums[::2], sums[1::2], strict=True)
    ]


def least_pairs(comparisons: int) -> int:
    """Fewest pairs with which the sign-flip test can reject at Holm's first step."""
    return max(LEAST, 1 + math.ceil(math.log2(max(1, comparisons) / ALPHA)))


def failure_bound(failed: int, n: int) -> float:
    """The largest rate of failure that `failed` of `n` runs do not exclude, at 95 %, one-sided.

    Clopper and Pearson (1934), Biometrika 26, 404-413.
    """
    bound = stats.binomtest(failed, n, alternative="less").proportion_ci(1 - ALPHA, "exact")
    return float(bound.high)


def _constant(d: np.ndarray) -> bool:
    return bool(d.std() <= NO_SPREAD * abs(d.mean()))


def paired(a: Sequence[float], b: Sequence[float]) -> np.ndarray:
    """The differences a - b, without what is but rounding in numbers as large as these."""
    x, y = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    rounding = NO_SPREAD * np.maximum(abs(x), abs(y)) + TINY
    d = np.where(abs(x - y) <= rounding, 0.0, x - y)
    same = abs(d - d.mean()) <= rounding
    return np.full_like(d, d.mean()) if same.all() else d


@dataclass(frozen=True)
class _Tests:
    """Of every entry that has two pairs: its p, and what an exact one is made of."""

    p: dict[str, float]
    subsets: dict[str, _Subsets]
    exact: set[str]


def _tests(differences: Mapping[str, np.ndarray], failed: Collection[str]) -> _Tests:
    exact = {name for name, d in differences.items() if name in failed or stands_apart(d)}
    flipped: dict[int, list[str]] = {}
    for name, d in differences.items():
        if len(d) >= 2 and (name in exact or _constant(d)):  # there is no t test without spread
            flipped.setdefault(len(d), []).append(name)
    subsets = {
        name: one
        for names in flipped.values()
        for name, one in zip(names, _subsets([differences[name] for name in names]), strict=True)
    }
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
    """p of every entry that has two pairs, the same after Holm, and the entries told apart."""
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
    """Judge every entry's `paired` differences to the baseline; `maximize`: more is better.

    Two-sided paired t tests; the exact `sign_flip` for the entries `failed`, of which, or of whose
    baseline, a run has failed, where one difference `stands_apart`, and where all differences are
    the same number. Holm-corrected over the entries. The interval of an entry is of the same test,
    at the level at which Holm's procedure tested it, between 95 % and (1 - 0.05 / entries), so
    that it leaves out zero exactly where a difference may be claimed. Where all differences are the
    same there is none.
    """
    arrays = {name: np.asarray(d, dtype=float) for name, d in differences.items()}
    tests = _tests(arrays, failed)
    adjusted, levels = _step_down(tests.p)
    judged = {}
    for name, d in arrays.items():
        level, exact = levels.get(name, 1 - ALPHA), name in tests.exact
        low = high = effect = between = None
        if len(d) >= 2 and not _constant(d):
            if exact:  # an effect size and a bootstrap would be of the one difference alone
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
    """Mean over standard deviation of paired differences, without its bias in small samples.

    The standardised mean difference of pairs (d_z) times the exact correction of Hedges (1981),
    Journal of Educational Statistics 6, 107-128, for n - 1 degrees of freedom, which is 0 for
    n = 2. Needs two pairs or more, with spread.
    """
    d = np.asarray(d, dtype=float)
    df = len(d) - 1
    if df < 2:
        return 0.0
    log_correction = special.gammaln(df / 2) - special.gammaln((df - 1) / 2)
    return float(d.mean() / d.std(ddof=1) * math.exp(log_correction) / math.sqrt(df / 2))


def improvement(d: Sequence[float] | np.ndarray) -> tuple[float, float, float]:
    """Share of pairs above zero, ties counted half, and an exact 95 % interval (low, high).

    The probability of improvement of Agarwal et al. 2021, arXiv:2108.13264, for pairs. The
    interval is that of Clopper and Pearson (1934), Biometrika 26, 404-413, with every tie
    against the entry at its lower end and for it at its upper end: never too narrow.
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
    if len(d) < BOOTSTRAP_LEAST or _constant(d):
        return None
    interval = stats.bootstrap(
        (d,), np.mean, confidence_level=1 - ALPHA, method="BCa", rng=np.random.default_rng(0)
    ).confidence_interval
    return float(interval.low), float(interval.high)


def power(effect: float, n: int, alpha: float = ALPHA) -> float:
    """Chance that a two-sided t test of `n` pairs at `alpha` sees a true `effect`.

    `effect` is the mean of the differences in their standard deviations. Noncentral t: Cohen
    (1988), Statistical Power Analysis for the Behavioral Sciences.
    """
    shift, edge = abs(effect) * math.sqrt(n), stats.t.isf(alpha / 2, n - 1)
    found = float(stats.nct.sf(edge, n - 1, shift))
    if shift < FAR:
        found += float(stats.nct.cdf(-edge, n - 1, shift))
    return found


def proportion_error(share: float, n: int) -> float:
    """Binomial standard error of a share measured on `n` independent cases."""
    return math.sqrt(share * (1 - share) / n)


def expected_best(values: Sequence[float], *, maximize: bool = True) -> list[float]:
    """Mean of the best of k of `values`, drawn without replacement, for k = 1 to all of them.

    What k tuning trials may be expected to find: the curve of Dodge et al. 2019,
    arXiv:1909.03004, by the unbiased estimator of Tang et al. 2020, arXiv:2004.13705.
    """
    ordered = sorted(values, reverse=not maximize)  # the best last
    n = len(ordered)
    return [
        # C(i, k - 1) of the C(n, k) choices have ordered[i] as their best
        sum(v * (math.comb(i, k - 1) / math.comb(n, k)) for i, v in enumerate(ordered))
        for k in range(1, n + 1)
    ]


def interquartile_mean(values: Sequence[float]) -> float:
    """Mean of the middle half: one diverged run does not decide it. Agarwal et al. 2021."""
    return float(stats.trim_mean(values, 0.25))


def lr_width(
    trials: Sequence[tuple[float, float]], *, maximize: bool = True
) -> dict[str, Any] | None:
    """How far the learning rates tried that came within 1 % of the best reach; None without one.

    `trials`: (learning rate, metric) of the trials that did not diverge. "seen": decades between
    the outermost of the neighbouring trials around the best that are all within 1 %, of "points"
    trials. It is of what was tried, and no bound of the true width from either side: other knobs
    vary too, a bad run ends the range early, and a lucky one widens it.
    """
    if not trials:
        return None
    ordered = sorted(trials)
    sign = 1 if maximize else -1
    scores = [sign * value for _, value in ordered]
    best = max(range(len(scores)), key=scores.__getitem__)
    enough = scores[best] - NEAR * abs(scores[best])
    first = last = best
    while first > 0 and scores[first - 1] >= enough:
        first -= 1
    while last < len(scores) - 1 and scores[last + 1] >= enough:
        last += 1
    return {"seen": math.log10(ordered[last][0] / ordered[first][0]), "points": len(ordered)}
