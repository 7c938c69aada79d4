"""Trains the tunings of several units of an entry at once: one batch has all trials' gradients.

The trials take turns in one process. Each trial has its own model, optimizer, batches and random
states; only losses and gradients are computed together. They differ from those of separate trials
only by rounding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from time import perf_counter
from typing import Any

from steepest.errors import BadCall, WorkerError
from steepest.processes import Pool
from steepest.race import halving
from steepest.race.measured import Ended, Run
from steepest.race.protocol import TUNING, Plan, Result, Trial, Tuning, derive
from steepest.tasks.randomness import OwnStates
from steepest.tasks.task import Task
from steepest.training.loop import Ask
from steepest.training.stack import Stack

LEAST_STEPS = 100
"""Shorter runs are trained one by one: measuring would take longer than it saves."""
STEPS, MEASURED, ROUNDS = 10, 8, 3
"""A measurement trains up to MEASURED trials for STEPS steps, both at once and one by one, ROUNDS
times. The first round is a warm-up."""
GAIN = 1.2
"""Trials are trained at once if this is at least so many times as fast as one by one."""
MOST = 64
"""Most trials that are trained at once. More trials would not be faster."""
SAME = 1e-4
"""Largest relative difference of two metrics that are equal up to rounding, after STEPS steps."""


def choose(plan: Plan, task: Task, pool: Pool, jobs: int) -> Plan:
    """Set `together` in the plan, if training at once is faster and gives the same numbers.

    This is measured once, before the race begins, with the defaults of the first entry whose trials
    can be trained at once. The other entries have the same model. `together` is chosen such that
    none of the `jobs` workers is without work.
    """
    stacked = replace(plan, together=1).stacked
    if not plan.looks or not task.build or plan.steps < LEAST_STEPS or not stacked:
        return plan
    units = min(math.ceil(plan.looks[0] * len(plan.entries) / jobs), plan.looks[0])
    units = max(1, min(units, MOST // plan.trials))
    entry, count = stacked[0], min(MEASURED, units * plan.trials)
    seeds = (derive(plan.seed, "together", k) for k in range(count))
    hyper = plan.defaults(entry)
    trials = tuple(
        Trial(plan.task, TUNING, entry, k, seed, STEPS, hyper, plan.data)
        for k, seed in enumerate(seeds)
    )
    seconds: list[tuple[float, float]] = []
    for _ in range(ROUNDS):
        try:
            ((_, at_once),) = pool.map([Tuning(trials, (), count)])
        except (BadCall, WorkerError):  # vmap does not support the model, for example
            return plan
        # one run at a time: others would slow it down
        alone = [result for trial in trials for _, result in pool.map([trial])]
        if not all(map(_same, alone, at_once)):
            return plan
        seconds.append((_sum(alone), _sum(at_once)))
    one_by_one, together = map(min, zip(*seconds[1:], strict=True))
    return replace(plan, together=units) if one_by_one >= GAIN * together else plan


def _sum(results: Sequence[Result]) -> float:
    return sum(result.wall_seconds for result in results)


def _same(a: Result, b: Result) -> bool:
    """Whether two results are equal up to rounding."""
    facts = ("steps", "diverged", "calls", "initial", "batches", "draws", "first", "unread")
    return all(getattr(a, name) == getattr(b, name) for name in facts) and all(
        math.isclose(x, y, rel_tol=SAME, abs_tol=SAME**2)
        for x, y in zip(a.validation, b.validation, strict=True)
    )


def run(tuning: Tuning, task: Task) -> list[Result]:
    """The results of all trials of several tunings, like those of `halving.run` for each tuning.

    Raises BadCall if the gradients of the trials cannot be computed together.
    """
    members = [_Member(trial, task) for trial in tuning.trials]
    tunings = [members[i : i + tuning.each] for i in range(0, len(members), tuning.each)]
    left = [list(tuning.rungs) for _ in tunings]
    try:
        for member in members:
            member.go_on()
        stacked: list[_Member] = []
        stack: Any = None
        while going := [member for member in members if member.ask]:
            asks = [member.ask for member in going if member.ask]
            if going != stacked:
                stack = _stack(tuning, asks, first=not stacked)
                stacked = going
            start = perf_counter()
            losses = stack.gradients([batch for _, batch in asks])
            share = (perf_counter() - start) / len(going)
            for member, loss in zip(going, losses, strict=True):
                member.go_on(loss, share)
            for group, rungs in zip(tunings, left, strict=True):
                _halve(group, rungs, task)
    finally:
        for member in members:
            member.close()
    return [member.result for member in members]


class _Member:
    """A run that stops before each loss, until it is given the loss."""

    def __init__(self, trial: Trial, task: Task) -> None:
        self._run, self._states = Run(trial, task), OwnStates()
        self.result, self._turns = self._run.result, self._run.turns(together=True)
        self._since = 0.0
        self.ask: Ask | None = None
        """What the run waits for; None before its start and after its end."""

    def go_on(self, loss: float | None = None, share: float = 0.0) -> None:
        """Give the run its loss, and train until it waits again. share: seconds for the loss."""
        if self.ask:
            self._run.wait(perf_counter() - self._since - share)
        with self._states.active():
            try:
                # a generator that has not begun takes only None
                self.ask = self._turns.send(loss)  # type: ignore[arg-type]
            except StopIteration:
                self.ask = None
        self._since = perf_counter()

    def halt(self) -> None:
        """End the run where it waits."""
        self.result.halted, self.ask = True, None
        with self._states.active():
            try:
                self._turns.throw(Ended())
            except StopIteration:
                return

    def close(self) -> None:
        self._turns.close()


def _stack(tuning: Tuning, asks: Sequence[Ask], first: bool) -> Stack:
    try:
        stack = Stack([setup for setup, _ in asks])
        if first:
            stack.check([batch for _, batch in asks])
    except BadCall as error:
        trial = tuning.trials[0]
        raise BadCall(
            f"the trials of {trial.entry} on {trial.task} cannot be trained together ({error}): "
            f"give --together 0 to train them one by one"
        ) from error
    return stack


def _halve(members: Sequence[_Member], rungs: list[tuple[int, int]], task: Task) -> None:
    """Halt the worse trials of a tuning at each rung that all its running trials have reached."""
    while rungs and any(member.ask for member in members):
        rung, most = rungs[0]
        scores = {}
        for i, member in enumerate(members):
            result = member.result
            at = next((k for k, step in enumerate(result.steps) if step >= rung), None)
            if member.ask and at is None:
                return
            if not result.diverged and not result.halted and result.validation:
                scores[i] = result.validation[-1 if at is None else at]
        del rungs[0]
        chosen = halving.best(scores, most, task.better)
        for i, member in enumerate(members):
            if member.ask and i not in chosen:
                member.halt()
