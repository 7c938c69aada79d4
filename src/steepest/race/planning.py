"""Before the start: how long a race takes and which difference it could detect."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import optimize, stats

from steepest.race.phrases import plural
from steepest.race.protocol import Plan
from steepest.race.statistics import ALPHA, LEAST, POWER, least_pairs, power
from steepest.race.verdicts import too_little

CONFIDENCE = 0.8
"""Of the interval around a standard deviation that few pilot runs gave."""


def detectable(sd: float, n: int, comparisons: int = 1) -> float:
    """Smallest true difference that `n` fresh seeds tell apart with power 0.8.

    In the units of `sd`, the standard deviation of per-seed differences to the baseline. At the
    level of Holm's first and strictest step, 0.05 / `comparisons`, as if it were the only
    difference there is. ValueError for fewer than 5 seeds, which allow no claim at all.
    """
    if n < LEAST:
        raise ValueError(f"n={n}: a claim needs at least {LEAST} fresh seeds")
    alpha = ALPHA / max(1, comparisons)
    far = 2.0
    while power(far, n, alpha) < POWER:
        far *= 2
    found = optimize.root_scalar(lambda effect: power(effect, n, alpha) - POWER, bracket=(0.0, far))
    return sd * float(found.root)


def sd_interval(sd: float, pairs: int) -> tuple[float, float]:
    """80 % interval of a normal standard deviation of which `pairs` differences gave `sd`."""
    df = pairs - 1
    low, high = stats.chi2.ppf([(1 + CONFIDENCE) / 2, (1 - CONFIDENCE) / 2], df)
    return sd * math.sqrt(df / low), sd * math.sqrt(df / high)


def duration(plan: Plan, jobs: int, run: float, warm: float) -> float:
    """Seconds of wall time: the runs of all entries and the first step of each in each worker.

    `run` and `warm` as `protocol.affordable` takes them: seconds of a training, and of the first
    step of an entry in a worker.
    """
    field = len(plan.entries)
    return math.ceil(plan.runs / jobs) * run + field * warm


def text(
    plan: Plan,
    jobs: int,
    run: float,
    warm: float,
    differences: Sequence[float] = (),
    *,
    proportion: bool = False,
    lost: tuple[int, int] = (0, 0),
) -> str:
    """What `--plan` prints: the size of the race, its wall time, the difference it could detect.

    `differences`: paired differences of pilot runs of two entries, in units of the metric; with
    fewer than two of them the answer is in standard deviations. `proportion`: the metric is a
    share, said in points. `lost`: pilot runs that diverged, of how many.
    """
    field = len(plan.entries)
    lines = [
        f"{field} {'entry' if field == 1 else 'entries, each'} with {plan.seeds} fresh "
        f"{plural('seed', plan.seeds)} and {plan.trials} tuning {plural('trial', plan.trials)} "
        f"for each of them, of {plan.steps} {plural('step', plan.steps)}: {plan.runs} runs, about "
        f"{_clock(duration(plan, jobs, run, warm))} with --jobs {jobs}."
    ]
    comparisons = field - 1
    if comparisons < 1:
        lines.append(f"{plan.baseline} runs alone: there is nothing to tell apart.")
    elif plan.seeds < LEAST:
        lines.append(
            f"No verdict: {plan.seeds} fresh {plural('seed', plan.seeds)}, a claim needs at "
            f"least {LEAST}; give --seeds {LEAST} or more."
        )
    else:
        effect = detectable(1.0, plan.seeds, comparisons)
        found = f"found in at most {POWER:.0%} of such races at n={plan.seeds} fresh seeds"
        sd = float(np.std(differences, ddof=1)) if len(differences) > 1 else 0.0
        if sd > 0:
            low, high = sd_interval(sd, len(differences))
            size, at_least, at_most = (_number(effect * s, proportion) for s in (sd, low, high))
            unit = " points" if proportion else ""
            lines.append(
                f"A difference of {size}{unit} to {plan.baseline} would be {found}; {at_least} to "
                f"{at_most}{unit}, as {len(differences)} pilot pairs know their spread no "
                f"better. Luck in tuning, which they do not have, comes on top: where tuning "
                f"matters, such a difference is found less often."
            )
        else:
            lines.append(
                f"A difference to {plan.baseline} of {effect:.2f} standard deviations of the "
                f"paired differences would be {found}; how large they are no pilot run has said."
            )
    if comparisons > 0 and (few := too_little(plan.record())):
        lines.append(f"{few}.")
    if comparisons > 0 and lost[0]:
        lines.append(
            f"{lost[0]} of {lost[1]} pilot runs diverged. Where fresh runs do, the above does not "
            f"hold, and a claim over {comparisons} {plural('comparison', comparisons)} needs "
            f"{least_pairs(comparisons)} fresh seeds or more."
        )
    return "\n".join(lines)


def _number(value: float, proportion: bool) -> str:
    return f"{100 * value:.2f}" if proportion else f"{value:.3g}"


def _clock(seconds: float) -> str:
    if seconds < 100:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
