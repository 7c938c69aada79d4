"""Before a race starts: make the plan, run pilots, forecast the time and the detectable difference.

A pilot run is a training run with the defaults, on a seed that no race has.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from statistics import fmean
from time import perf_counter

import numpy as np
from scipy import optimize, stats

from steepest import tasks
from steepest.errors import BadCall
from steepest.processes import Pool
from steepest.race import budgets, halving, protocol, searching
from steepest.race.phrases import listed, plural
from steepest.race.protocol import PILOT, Plan, Result, Trial
from steepest.race.request import MOST, Request
from steepest.race.verdicts import over_budget, too_little
from steepest.statistics import looks
from steepest.statistics.inference import ALPHA, LEAST, POWER, least_pairs, power
from steepest.tasks import Task
from steepest.training.recipe import Recipe

CONFIDENCE = 0.8
"""Confidence level of the interval of a standard deviation that few pilot runs estimate."""
PILOT_PAIRS = 4
"""Pairs of pilot runs from which `--plan` estimates the spread of differences."""


def make_plan(request: Request, jobs: int, pool: Pool, started: float) -> Plan:
    """The plan of a request. Pilot runs in `pool` measure how much fits into a budget.

    started: the value of `perf_counter` when the budget began.
    """
    names, units = request.entry_names(), request.units()
    plan = Plan(
        task=request.task,
        entries=names,
        trials=request.trials or protocol.TRIALS,
        seeds=units[-1] if units else request.seeds or protocol.SEEDS,
        steps=request.steps or tasks.get(request.task, request.data).steps,
        seed=request.seed or 0,
        request={key: value for key, value in asdict(request).items() if value is not None},
        data=request.data,
        search=searching.parse(request.search, names),
        looks=units,
        repeats=protocol.REPEATS if units else 1,
        halving=bool(units),
        margin=request.smallest_gain(),
        spaces=request.spaces,
        device=request.device,
        together=request.together or 0,
    ).compared_to(request.baseline_name())
    if request.budget is None:
        return _check_size(plan)
    run, warm, _ = _time_pilots(plan, jobs, jobs, pool)
    spent = perf_counter() - started
    cost = {"entries": len(names), "jobs": jobs, "run": run, "warm": warm}
    left = budgets.parse_budget(request.budget) - spent
    count, seeds = budgets.affordable(left, **cost, seeds=request.seeds)
    short = seeds * (count + 1) > budgets.runs_within(left, **cost)
    enough = None
    if count < protocol.LEAST_TRIALS:
        enough = spent + budgets.enough(**cost, seeds=request.seeds)
    plan = replace(plan, trials=count, seeds=seeds, over_budget=short, enough=enough)
    for warning in (over_budget(plan.record()) if short else "", too_little(plan.record())):
        if warning:
            print(f"steepest: {warning}", file=sys.stderr)
    return _check_size(plan)


def _check_size(plan: Plan) -> Plan:
    """The plan; BadCall if it has too many runs."""
    if plan.runs > MOST:
        raise BadCall(
            f"{plan.runs:,} runs: expected at most {MOST:,}; lower --budget, --trials, --looks or "
            f"--seeds, or name fewer --optimizers"
        )
    return plan


def _pilot_trials(plan: Plan, names: Sequence[str], count: int) -> list[Trial]:
    """`count` pilot runs of each entry in `names`, with its defaults."""
    return [
        Trial(
            plan.task,
            PILOT,
            name,
            i,
            protocol.derive(plan.seed, PILOT, i),
            plan.steps,
            Recipe.read(name).defaults,
            plan.data,
            plan.device,
        )
        for i in range(count)
        for name in names
    ]


def _time_pilots(
    plan: Plan, jobs: int, count: int, pool: Pool
) -> tuple[float, float, list[tuple[Trial, Result]]]:
    """(seconds of a run, seconds of a first step, the baseline's pilot runs: `count` or more).

    The seconds of a run are the mean over the entries; the seconds of a first step are the maximum.
    An entry gets its own timed pilot run only if its step may cost more than the baseline's.
    """
    pilots = list(pool.map(_pilot_trials(plan, [plan.baseline], jobs + max(jobs, count))))
    # the first run of each worker includes the imports, so its time does not count
    wall = {plan.baseline: fmean(r.wall_seconds for t, r in pilots if t.index >= jobs)}
    rivals = [name for name in plan.entries if name != plan.baseline]
    costly = [name for name in rivals if Recipe.read(name).other_cost]
    probes = list(pool.map(_pilot_trials(plan, costly or rivals[:1], 1)))
    wall |= {trial.entry: result.wall_seconds for trial, result in probes if trial.entry in costly}
    warm = max((result.warm_seconds for _, result in probes), default=0.0)
    return fmean(wall.get(entry, wall[plan.baseline]) for entry in plan.entries), warm, pilots


def add_worst(task: Task, plan: Plan, pool: Pool) -> Task:
    """The task with a worst metric: if its file gives none, the metric of the untrained model.

    A task from a file always gets a pilot run, which shows that the file works.
    """
    if not task.file:
        return task
    ((_, result),) = pool.map(_pilot_trials(plan, [plan.baseline], 1))
    if task.worst is not None:
        return task
    if not result.validation:
        raise BadCall(
            f"{task.name}: the pilot run of {plan.baseline} diverged ({result.diverged}) before "
            f"its first report: report a metric earlier, or give WORST = ... in the file"
        )
    return replace(task, worst=result.validation[0], measured=result.validation[0])


def forecast(request: Request, jobs: int, pool: Pool) -> str:
    """What `--plan` prints: how long the race would take, and which difference it could detect.

    The spread of differences is estimated from the baseline with its defaults: one pilot run minus
    another, on different seeds. This assumes that pairing by seed does not reduce the spread. Runs
    of two entries would not estimate the spread better: it would depend on how well the defaults of
    both suit the task.
    """
    started = perf_counter()
    request.check()
    plan = make_plan(request, jobs, pool, started)
    run, warm, pilots = _time_pilots(plan, jobs, 2 * PILOT_PAIRS, pool)
    ends = {t.index: r.validation[-1] for t, r in pilots if not r.diverged}
    pairs = [(i, i + 1) for i in range(0, 2 * PILOT_PAIRS, 2)]
    return describe(
        plan,
        jobs,
        run,
        warm,
        [ends[i] - ends[j] for i, j in pairs if i in ends and j in ends],
        proportion=tasks.get(plan.task, plan.data).proportion,
        diverged=(sum(r.diverged is not None for _, r in pilots), len(pilots)),
        reports=next((r.steps for _, r in pilots if not r.diverged), ()),
    )


def detectable(sd: float, n: int, comparisons: int = 1) -> float:
    """Smallest true difference that `n` fresh seeds tell apart with power 0.8, in the unit of `sd`.

    `sd`: standard deviation of the per-seed differences to the baseline. The level is 0.05 /
    `comparisons`, as in Holm's first and strictest step: no other entry is assumed to differ.
    ValueError for fewer than 5 seeds, because these allow no claim.
    """
    if n < LEAST:
        raise ValueError(f"n={n}: a claim needs at least {LEAST} fresh seeds; give a larger n")
    alpha = ALPHA / max(1, comparisons)
    far = 2.0
    while power(far, n, alpha) < POWER:
        far *= 2
    root = optimize.root_scalar(lambda effect: power(effect, n, alpha) - POWER, bracket=(0.0, far))
    return sd * float(root.root)


def sd_interval(sd: float, pairs: int) -> tuple[float, float]:
    """80 % interval of a standard deviation that `pairs` normal differences estimate as `sd`."""
    df = pairs - 1
    low, high = stats.chi2.ppf([(1 + CONFIDENCE) / 2, (1 - CONFIDENCE) / 2], df)
    return sd * math.sqrt(df / low), sd * math.sqrt(df / high)


def duration(plan: Plan, jobs: int, run: float, warm: float) -> float:
    """Seconds of wall time: all runs, and the first step of each entry.

    `run`: seconds of a run; `warm`: seconds of the first step of an entry in a worker. All workers
    make the first steps at the same time.
    """
    return math.ceil(plan.runs / jobs) * run + len(plan.entries) * warm


def _longest(plan: Plan, jobs: int, run: float, warm: float, tuning: float) -> float:
    """`duration` of a race in looks in which no entry is decided early.

    A tuning runs in one worker and costs as much as `tuning` full runs. A round begins when the
    round before it has ended.
    """
    seconds = len(plan.entries) * warm
    for before, units in zip((0, *plan.looks), plan.looks, strict=False):
        tunings = len(plan.entries) * (units - before)
        seconds += math.ceil(tunings / jobs) * tuning * run
        seconds += math.ceil(tunings * plan.repeats / jobs) * run
    return seconds


def describe(
    plan: Plan,
    jobs: int,
    run: float,
    warm: float,
    differences: Sequence[float] = (),
    *,
    proportion: bool = False,
    diverged: tuple[int, int] = (0, 0),
    reports: Sequence[int] = (),
) -> str:
    """The size of the race, its wall time and the difference that it could detect, as text.

    `differences`: the difference of each pair of pilot runs, in the unit of the metric; with fewer
    than two, the detectable difference is given in standard deviations. `proportion`: the metric is
    a share, shown in points. `diverged`: (number of pilot runs that diverged, number of pilot
    runs). `reports`: steps at which a run reports; default: every step.
    """
    if plan.looks:
        return _describe_looks(plan, jobs, run, warm, differences, proportion, diverged, reports)
    count = len(plan.entries)
    lines = [
        f"{count} {'entry' if count == 1 else 'entries, each'} with {plan.seeds} fresh "
        f"{plural('seed', plan.seeds)} and {plan.trials} tuning {plural('trial', plan.trials)} "
        f"for each seed, all of {plan.steps} {plural('step', plan.steps)}: {plan.runs} runs, about "
        f"{_clock(duration(plan, jobs, run, warm))} with --jobs {jobs}."
    ]
    comparisons = count - 1
    if comparisons < 1:
        lines.append(f"{plan.baseline} is the only entry: there is nothing to compare it with.")
    elif plan.seeds < LEAST:
        lines.append(
            f"No verdict: {plan.seeds} fresh {plural('seed', plan.seeds)}, but a claim needs at "
            f"least {LEAST}; give --seeds {LEAST} or more."
        )
    else:
        effect = detectable(1.0, plan.seeds, comparisons)
        seen = f"found in at most {POWER:.0%} of such races at n={plan.seeds} fresh seeds"
        sd = float(np.std(differences, ddof=1)) if len(differences) > 1 else 0.0
        if sd > 0:
            low, high = sd_interval(sd, len(differences))
            size, at_least, at_most = (_number(effect * s, proportion) for s in (sd, low, high))
            unit = " points" if proportion else ""
            lines.append(
                f"A difference of {size}{unit} to {plan.baseline} would be {seen}. "
                f"{len(differences)} pairs of pilot runs show the spread only roughly, so the true "
                f"size may be {at_least} to {at_most}{unit}. The pilot runs were not tuned. Luck "
                f"in tuning adds to the spread, so such a difference is found less often if tuning "
                f"matters."
            )
        else:
            lines.append(
                f"A difference to {plan.baseline} of {effect:.2f} standard deviations of the "
                f"paired differences would be {seen}. The pilot runs do not show how large that "
                f"standard deviation is."
            )
    if comparisons > 0 and (few := too_little(plan.record())):
        lines.append(f"{few}.")
    if comparisons > 0 and diverged[0]:
        lines.append(
            f"{diverged[0]} of {diverged[1]} pilot runs diverged. If fresh runs diverge too, the "
            f"size above does not hold, and a claim over {comparisons} "
            f"{plural('comparison', comparisons)} needs {least_pairs(comparisons)} fresh seeds or "
            f"more."
        )
    return "\n".join(lines)


def _describe_looks(
    plan: Plan,
    jobs: int,
    run: float,
    warm: float,
    differences: Sequence[float],
    proportion: bool,
    diverged: tuple[int, int],
    reports: Sequence[int],
) -> str:
    """`describe` for a race in looks."""
    count, rivals = len(plan.entries), len(plan.entries) - 1
    tuning = plan.tuning_cost(reports, repeated=not halving.system_forks())
    cost = tuning + plan.repeats
    most = count * plan.seeds * cost
    steps = f"{plan.steps} {plural('step', plan.steps)}"
    tuned = f"one tuning of {plan.trials} {plural('trial', plan.trials)} of {steps}"
    if plan.rungs:
        tuned += (
            f" (the best {' and '.join(f'{n} go on after {at} steps' for at, n in plan.rungs)})"
        )
    lines = [
        f"{count} {plural('entry', count)}, looks after {listed(plan.looks)} units. A unit is "
        f"{tuned}; then {plan.repeats} fresh runs of the best trial. "
        f"A unit costs as many steps as {cost:.3g} full runs."
    ]
    if rivals < 1:
        alone = plan.looks[0] * cost
        lines.append(
            f"{plan.baseline} is the only entry: there is nothing to compare it with. It runs to "
            f"the first look, which takes {alone:,.0f} full runs."
        )
        return "\n".join(lines)
    expected = looks.expected_units(rivals, plan.looks) * cost
    seconds = _longest(plan, jobs, run, warm, tuning)
    lines.append(
        f"At most {most:,.0f} full runs, about {_clock(seconds)} with --jobs {jobs}. About "
        f"{expected:,.0f} full runs if no entry differs from {plan.baseline}"
        f"{'' if plan.margin is None else ' and without --margin'}, about "
        f"{_clock(seconds * expected / most)}."
    )
    # a unit is a mean of fresh runs; luck in tuning is not in the pilot runs
    sd = float(np.std(differences, ddof=1)) if len(differences) > 1 else 0.0
    sd /= math.sqrt(plan.repeats)
    effect = looks.detectable(rivals, plan.looks)
    margin = looks.margin_shown(rivals, plan.looks)
    if sd > 0:
        low, high = sd_interval(sd, len(differences))
        unit = " points" if proportion else ""
        sizes = [_number(effect * s, proportion) for s in (sd, low, high)]
        margins = [_number(margin * s, proportion) for s in (sd, low, high)]
        lines.append(
            f"A difference of {sizes[0]}{unit} to {plan.baseline} would be found in "
            f"{POWER:.0%} of such races. For an entry that is equal to {plan.baseline}, "
            f"{POWER:.0%} of such races with --margin {margins[0]} would show that it gains less "
            f"than that. {len(differences)} pairs of pilot runs show the spread only roughly, so "
            f"the true sizes may be {sizes[1]} to {sizes[2]} and {margins[1]} to {margins[2]}"
            f"{unit}. The pilot runs were not tuned. Luck in tuning adds to the spread."
        )
    else:
        lines.append(
            f"A difference to {plan.baseline} of {effect:.2f} standard deviations of the paired "
            f"differences would be found in {POWER:.0%} of such races. The pilot runs do not show "
            f"how large that standard deviation is."
        )
    if few := too_little(plan.record()):
        lines.append(f"{few}.")
    needed = looks.exact_units(rivals, plan.looks)
    if needed != plan.looks[0]:
        when = f"at {needed} units, not earlier" if needed else "at none of these looks"
        lines.append(
            f"If a fresh run diverges, the exact test is used. It can tell an entry apart {when}."
        )
    if diverged[0]:
        lines.append(
            f"{diverged[0]} of {diverged[1]} pilot runs diverged. If fresh runs diverge too, the "
            f"sizes above do not hold."
        )
    return "\n".join(lines)


def _number(value: float, proportion: bool) -> str:
    return f"{100 * value:.2f}" if proportion else f"{value:.3g}"


def _clock(seconds: float) -> str:
    if seconds < 100:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
