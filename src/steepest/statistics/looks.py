"""When a race looks at its results, and how large a difference must be at each look.

This is a group-sequential t test. A unit is one tuning and its fresh runs. Units come in groups,
and a look is the test after a group. The bounds keep the two-sided level over all looks together.
Their shape is that of O'Brien and Fleming (1979), Biometrics 35, 549-556, by the spending function
of Lan and DeMets (1983), Biometrika 70, 659-663: see `spent`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from scipy import optimize, special, stats
from scipy.stats import qmc

from steepest.statistics.inference import (
    ALPHA,
    POWER,
    constant,
    flip_interval,
    sign_flip,
    stands_apart,
)

LOOKS = (5, 8, 12)
"""Number of units at each look. Only an open entry, which is not decided yet, gets more units."""
FUTILE = (0.7, 1.3)
"""An entry is dropped if its |t| is below the first number at the first look, or below the second
number at a later look, except the last look. The bounds do not depend on dropping: the level holds
even if a dropped entry gets more units."""
LEVEL = 1e-9
"""A look that may spend less than this of the level allows no claim."""
RACES = 4000
"""Number of races that are simulated to estimate what a plan can expect."""
POINTS = 2**14
"""Number of quasi-random points of the integral for the bounds, which are exact to 1 in 1,000."""


@dataclass(frozen=True)
class Bound:
    """What a claim needs at a look: |t| of at least `t`, or, in a test without a t, such as the
    sign-flip test, a p value of at most `p`."""

    units: int
    t: float
    """Least |t| of a claim; infinite if this look allows no claim."""

    @property
    def p(self) -> float:
        """Two-sided p value of `t` in a test with a single look."""
        return float(2 * stats.t.sf(self.t, self.units - 1))


def spent(share: float, alpha: float) -> float:
    """Two-sided level that may be spent by the time that `share` of all units is finished."""
    return float(2 * stats.norm.sf(stats.norm.isf(alpha / 2) / math.sqrt(share)))


def check(looks: tuple[int, ...]) -> None:
    """ValueError for looks at which no entry could be judged."""
    if min(np.diff((1, *looks))) < 2:
        raise ValueError(
            f"looks {looks}: expected at least 3 units at the first look, and at least 2 more at "
            f"each later look"
        )


@lru_cache(maxsize=64)
def bounds(rivals: int, looks: tuple[int, ...] = LOOKS, alpha: float = ALPHA) -> tuple[Bound, ...]:
    """The bound of each look for one of `rivals` entries, at the level alpha / rivals.

    With one rival and looks at 5, 8 and 12 units, the bounds of |t| are 6.84, 3.22 and 2.31.
    ValueError if the first look has fewer than 3 units, or a later look adds fewer than 2.
    """
    check(looks)
    level = alpha / max(1, rivals)
    # Under the null hypothesis, r = sum / sqrt(n sum of squares) is a Markov chain over the looks:
    # r does not depend on the scale, and a new group adds an independent direction (Basu 1955).
    draws = qmc.Sobol(2 * len(looks) - 1, rng=0).random(POINTS)
    draws = np.clip(draws, 1e-12, 1 - 1e-12)
    n = looks[0]
    at = [_first(n, spent(n / looks[-1], level))]
    r, weight = _direction(n, draws[:, 0]), np.ones(POINTS)
    for i, units in enumerate(looks[1:]):
        weight = weight * (abs(r) <= at[-1])
        more = units - n
        share = special.betaincinv(n / 2, more / 2, draws[:, 2 * i + 1])
        old, new = np.sqrt(n / units * share) * r, np.sqrt(more / units * (1 - share))
        left = spent(units / looks[-1], level) - spent(n / looks[-1], level)

        def beyond(c: float, old=old, new=new, weight=weight, more=more, left=left) -> float:
            up, down = _above((c - old) / new, more), _above((c + old) / new, more)
            return float(np.mean(weight * (up + down))) - left

        root: Any = optimize.brentq(beyond, 1e-9, 1 - 1e-15, xtol=1e-14) if left > LEVEL else 1.0
        at.append(float(root))
        r, n = old + new * _direction(more, draws[:, 2 * i + 2]), units
    return tuple(
        Bound(units, c * math.sqrt((units - 1) / (1 - c * c)) if c < 1 else math.inf)
        for units, c in zip(looks, at, strict=True)
    )


def _first(n: int, level: float) -> float:
    """The value that |r| exceeds with probability `level` in a single look."""
    if level <= LEVEL:
        return 1.0
    t = float(stats.t.isf(level / 2, n - 1))
    return t / math.sqrt(t * t + n - 1)


def _direction(n: int, uniform: np.ndarray) -> np.ndarray:
    """r of n normal numbers with mean 0; `uniform`: random numbers between 0 and 1."""
    return 2 * special.betaincinv((n - 1) / 2, (n - 1) / 2, uniform) - 1


def _above(r: np.ndarray, n: int) -> np.ndarray:
    """Probability that r of n normal numbers with mean 0 is above `r`."""
    return special.betainc((n - 1) / 2, (n - 1) / 2, np.clip((1 - r) / 2, 0, 1))


def exact_units(rivals: int, looks: tuple[int, ...] = LOOKS) -> int | None:
    """Units at the first look at which the sign-flip test can tell an entry apart, or None."""
    able = (b.units for b in bounds(rivals, looks) if 2.0 ** (1 - b.units) <= b.p)
    return next(able, None)


def expected_units(rivals: int, looks: tuple[int, ...] = LOOKS) -> float:
    """Expected units of all entries together, in a race in which no entry differs. Simulated."""
    baseline = np.random.default_rng(0).normal(size=(RACES, looks[-1], 1))
    entries = np.random.default_rng(1).normal(size=(RACES, looks[-1], rivals))
    closed = _closed(entries - baseline, rivals, looks)[0]
    return float(closed.sum(axis=1).mean() + closed.max(axis=1).mean())


def detectable(rivals: int, looks: tuple[int, ...] = LOOKS) -> float:
    """Smallest true difference that is told apart with power 0.8, in standard deviations of the
    differences of units. Simulated.
    """
    noise = np.random.default_rng(0).normal(size=(RACES, looks[-1], 1))
    missing = lambda effect: POWER - float(_closed(noise + effect, rivals, looks)[1].mean())  # noqa: E731
    far = 1.0
    while missing(far) > 0:
        far *= 2
    root: Any = optimize.brentq(missing, 0.0, far, xtol=1e-3)
    return float(root)


def _futile(number: int) -> float:
    """The |t| below which an entry is dropped at look `number`, from 1. Not for the last look."""
    return FUTILE[min(number, len(FUTILE)) - 1]


def margin_shown(rivals: int, looks: tuple[int, ...] = LOOKS) -> float:
    """Smallest margin that is shown, with probability 0.8 at the last look, to be larger than the
    gain of an entry without a difference. In standard deviations of the differences of units.
    """
    bound = bounds(rivals, looks)[-1]
    n, t = bound.units, bound.t

    def missing(margin: float) -> float:
        return POWER - float(stats.nct.sf(t, n - 1, margin * math.sqrt(n)))

    root: Any = optimize.brentq(missing, 0.0, (t + 20) / math.sqrt(n))
    return float(root)


def _closed(d: np.ndarray, rivals: int, looks: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Units at which t tests close each entry, and whether it is told apart then.

    d: differences by race, unit and entry.
    """
    units = np.zeros((len(d), d.shape[2]), dtype=int)
    apart = np.zeros(units.shape, dtype=bool)
    for number, bound in enumerate(bounds(rivals, looks)):
        some = d[:, : bound.units]
        t = abs(some.mean(axis=1)) / some.std(axis=1, ddof=1) * math.sqrt(bound.units)
        now = units == 0
        apart |= now & (t >= bound.t)
        last = number == len(looks) - 1
        futile = math.inf if last else _futile(number + 1)
        units[now & ((t >= bound.t) | (t < futile))] = bound.units
    return units, apart


@dataclass(frozen=True)
class Standing:
    """Where an entry stands after a look."""

    state: Literal["open", "told apart", "equal", "within margin", "dropped", "not told apart"]
    """One of six: "told apart" from the baseline; "equal" to it on every unit; "within margin", if
    its gain is smaller than the margin; "dropped", as it is unlikely to be told apart later; "not
    told apart", if none of these was so at the last look; "open", if its next look needs more
    units."""
    units: int
    """Number of units at the look; 0 before the first look."""
    look: int
    """Number of the look, from 1."""
    mean: float = math.nan
    low: float | None = None
    high: float | None = None
    """Repeated confidence interval at the look. These intervals hold at all looks of all rivals
    together (Jennison and Turnbull 1989, Journal of the Royal Statistical Society B 51, 305-361).
    None where the sign-flip test has too few units, or all differences are the same."""
    exact: bool = False
    """Whether the sign-flip test replaced the t test, although the differences vary."""
    differences: tuple[float, ...] = ()
    """The judged differences, one for each unit."""


def standing(
    differences: Sequence[float] | np.ndarray,
    rivals: int,
    looks: tuple[int, ...] = LOOKS,
    failed: Collection[int] = (),
    margin: float | None = None,
) -> Standing:
    """Judge one entry by its `differences` to the baseline: one for each unit, in order.

    Returns the standing after the look that closed the entry, or else after the latest look. The
    other arguments are those of `at_look`.
    """
    now = Standing("open", 0, 0)
    for number, units in enumerate(looks, 1):
        if len(differences) < units or now.state != "open":
            break
        now = at_look(differences, number, rivals, looks, failed, margin)
    return now


def at_look(
    differences: Sequence[float] | np.ndarray,
    number: int,
    rivals: int,
    looks: tuple[int, ...] = LOOKS,
    failed: Collection[int] = (),
    margin: float | None = None,
) -> Standing:
    """Judge one entry, which is still open, at look `number` (from 1).

    differences: one for each unit; a positive difference is a gain. failed: indices of the units in
    which a fresh run of the entry or of the baseline failed. A look that includes such a unit
    compares the p of the exact sign-flip test with that of the bound. So does a look at which one
    difference stands apart, or all differences are the same. margin: the smallest gain that would
    matter. With a margin, no entry is dropped; an entry is closed when its interval excludes gains
    of the margin or more.
    """
    bound = bounds(rivals, looks)[number - 1]
    d = np.asarray(differences, dtype=float)[: bound.units]
    mean, flat = float(d.mean()), constant(d)
    exact = not flat and (any(i < bound.units for i in failed) or stands_apart(d))
    low = high = None
    if flat or exact:
        p = sign_flip(d)
        over = 0 < bound.p >= p
        if exact:
            low, high = flip_interval(d, 1 - bound.p) or (None, None)
    else:
        spread = float(d.std(ddof=1)) / math.sqrt(bound.units)
        p = float(2 * stats.t.sf(abs(mean) / spread, bound.units - 1))
        over = abs(mean) >= bound.t * spread
        if bound.t < math.inf:
            low, high = mean - bound.t * spread, mean + bound.t * spread
    futile = 2 * stats.t.sf(_futile(number), bound.units - 1)
    if over:
        state = "told apart"
    elif flat and not mean:
        state = "equal"
    elif margin is not None and high is not None and high < margin:
        state = "within margin"
    elif number == len(looks):
        state = "not told apart"
    elif margin is None and p > futile:
        state = "dropped"
    else:
        state = "open"
    return Standing(state, bound.units, number, mean, low, high, exact, tuple(d.tolist()))
