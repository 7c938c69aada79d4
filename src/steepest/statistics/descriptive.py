"""Descriptive statistics that are shown beside a verdict. No claim uses them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from scipy import stats

NEAR = 0.01
"""A learning rate is good if its metric is at most this share worse than the best metric."""


def proportion_error(share: float, n: int) -> float:
    """Binomial standard error of a share measured on `n` independent cases."""
    return math.sqrt(share * (1 - share) / n)


def expected_best(values: Sequence[float], *, maximize: bool = True) -> list[float]:
    """Expected best of k of `values`, drawn without replacement, for k = 1 to len(values).

    This is the curve of Dodge et al. 2019, arXiv:1909.03004: the best metric to expect from k
    tuning trials. The estimator is the unbiased one of Tang et al. 2020, arXiv:2004.13705.
    """
    ordered = sorted(values, reverse=not maximize)  # best last
    n = len(ordered)
    return [
        # C(i, k - 1) of the C(n, k) choices have ordered[i] as their best
        sum(v * (math.comb(i, k - 1) / math.comb(n, k)) for i, v in enumerate(ordered))
        for k in range(1, n + 1)
    ]


def interquartile_mean(values: Sequence[float]) -> float:
    """Mean of the middle half, so that one diverged run does not decide it. Agarwal et al. 2021."""
    return float(stats.trim_mean(values, 0.25))


def lr_width(
    trials: Sequence[tuple[float, float]], *, maximize: bool = True
) -> dict[str, Any] | None:
    """How wide the range of learning rates is whose metric is within 1 % of the best.

    `trials`: (learning rate, metric) of the trials that did not diverge; without any, returns None.
    The range begins at the best trial and grows to both sides, trial by trial, until a trial is not
    within 1 %. "seen": width of this range in decades. "points": number of trials. The true
    width may be smaller or larger: other knobs vary too, a bad run ends the range early, and a
    lucky run widens it.
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
