"""What may be claimed from paired seeds: pure functions on lists of numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import special, stats

ALPHA = 0.05
POWER = 0.8
"""Share of races in which a difference of the planned size is to be found."""
LEAST = 5
"""Fewer pairs than this allow no claim."""
BOOTSTRAP_LEAST = 20
"""Pairs from which a bootstrap interval is shown; below, it is too narrow."""
MOST_SEEDS = 10_000
"""Beyond this many seeds nobody is told a number of them."""
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

    The claim rests on the t test alone; everything from `effect` on is shown beside it.
    """

    n: int
    mean: float
    low: float | None
    high: float | None
    """t interval at `level`; None where it is undefined (one pair, or no spread)."""
    level: float
    p: float | None
    p_holm: float | None
    claim: bool
    """Told apart from the baseline at 5 % over all entries."""
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
    seeds_needed: int | None = None
    """Seeds that tell a true difference of this size apart with power 0.8; None: over 10,000."""


def holm(p: Sequence[float]) -> list[float]:
    """Adjusted p values of Holm (1979), Scandinavian Journal of Statistics 6, 65-70."""
    adjusted = [0.0] * len(p)
    running = 0.0
    for rank, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        running = max(running, min(1.0, (len(p) - rank) * p[i]))
        adjusted[i] = running
    return adjusted


def _p(d: np.ndarray) -> float | None:
    if len(d) < 2:
        return None
    if _constant(d):  # no t test without spread; the exact sign test stands in
        return 2.0 ** (1 - len(d)) if d.any() else 1.0
    test: Any = stats.ttest_1samp(d, 0.0)
    return float(test.pvalue)


def _constant(d: np.ndarray) -> bool:
    return bool(d.std() <= NO_SPREAD * abs(d.mean()))


def paired(a: Sequence[float], b: Sequence[float]) -> np.ndarray:
    """The differences a - b, without what is but rounding in numbers as large as these."""
    x, y = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    rounding = NO_SPREAD * np.maximum(abs(x), abs(y)) + TINY
    d = np.where(abs(x - y) <= rounding, 0.0, x - y)
    same = abs(d - d.mean()) <= rounding
    return np.full_like(d, d.mean()) if same.all() else d


def compare(
    differences: Mapping[str, Sequence[float] | np.ndarray], *, maximize: bool = True
) -> dict[str, Difference]:
    """Judge every entry's `paired` differences to the baseline; `maximize`: more is better.

    Two-sided paired t tests, Holm-corrected over the entries. The interval of an entry is at the
    level at which Holm's procedure tested it, between 95 % and (1 - 0.05 / entries), so that it
    leaves out zero exactly where a difference may be claimed. Where all differences of an entry
    are the same number there is no t test: the sign test decides, without an interval.
    """
    arrays = {name: np.asarray(d, dtype=float) for name, d in differences.items()}
    p = {name: _p(d) for name, d in arrays.items()}
    tested = sorted((value, name) for name, value in p.items() if value is not None)
    adjusted = dict(zip([n for _, n in tested], holm([v for v, _ in tested]), strict=True))
    levels = {}
    shares = len(tested)
    for value, name in tested:
        levels[name] = 1 - ALPHA / shares
        if value <= ALPHA / shares:  # Holm goes on to the next, less strict step
            shares = max(1, shares - 1)
    judged = {}
    for name, d in arrays.items():
        level = levels.get(name, 1 - ALPHA)
        low = high = effect = needed = None
        if len(d) >= 2 and not _constant(d):
            interval = stats.ttest_1samp(d, 0.0).confidence_interval(level)
            low, high = float(interval.low), float(interval.high)
            effect = hedges(d)
            needed = seeds_needed(abs(effect), 1 - level)
        claim = len(d) >= LEAST and adjusted[name] <= ALPHA
        better = d if maximize else -d
        judged[name] = Difference(
            len(d), float(d.mean()), low, high, level, p[name], adjusted.get(name), claim,
            effect, *improvement(better), *(bootstrap(d) or (None, None)), needed,
        )  # fmt: skip
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


def seeds_needed(effect: float, alpha: float = ALPHA) -> int | None:
    """Least number of pairs, 5 or more, with power 0.8 for a true `effect`; None over 10,000."""
    if power(effect, MOST_SEEDS, alpha) < POWER:
        return None
    few, many = LEAST - 1, MOST_SEEDS  # few is too few, many is enough
    while many - few > 1:
        middle = (few + many) // 2
        if power(effect, middle, alpha) < POWER:
            few = middle
        else:
            many = middle
    return many


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
    """How wide the range of learning rates within 1 % of the best is; None without a trial.

    `trials`: (learning rate, metric) of the trials that did not diverge. In decades: "at_least"
    between the outermost of the neighbouring trials around the best that are all within 1 %,
    "at_most" between the first trials beyond them, None where none lies beyond on one side, of
    "points" trials. Other knobs vary too, so one bad trial may end the range early.
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
    bounded = first > 0 and last < len(ordered) - 1
    return {
        "at_least": math.log10(ordered[last][0] / ordered[first][0]),
        "at_most": math.log10(ordered[last + 1][0] / ordered[first - 1][0]) if bounded else None,
        "points": len(ordered),
    }
