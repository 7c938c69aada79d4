"""What may be claimed from paired seeds: pure functions on lists of numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

ALPHA = 0.05
LEAST = 5
"""Fewer pairs than this allow no claim."""
NO_SPREAD = 1e-12
"""Standard deviation, relative to the mean, that is rounding and not spread."""


@dataclass(frozen=True)
class Difference:
    """Paired difference of an entry to the baseline, in units of the metric."""

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
        return 1.0 if abs(d.mean()) <= NO_SPREAD else 2.0 ** (1 - len(d))
    test: Any = stats.ttest_1samp(d, 0.0)
    return float(test.pvalue)


def _constant(d: np.ndarray) -> bool:
    return d.std() <= NO_SPREAD * max(1.0, abs(d.mean()))


def compare(differences: Mapping[str, Sequence[float]]) -> dict[str, Difference]:
    """Judge every entry's per-seed differences to the baseline.

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
        low = high = None
        if len(d) >= 2 and not _constant(d):
            interval = stats.ttest_1samp(d, 0.0).confidence_interval(level)
            low, high = float(interval.low), float(interval.high)
        claim = len(d) >= LEAST and adjusted[name] <= ALPHA
        judged[name] = Difference(
            len(d), float(d.mean()), low, high, level, p[name], adjusted.get(name), claim
        )
    return judged


def proportion_error(share: float, n: int) -> float:
    """Binomial standard error of a share measured on `n` independent cases."""
    return math.sqrt(share * (1 - share) / n)
