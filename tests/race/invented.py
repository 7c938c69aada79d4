"""Races that were never run, judged and shown like real ones; and a pool that works at once."""

from dataclasses import replace

import numpy as np

from steepest import tasks
from steepest.race import protocol, scores
from steepest.race.protocol import TUNING, Plan, Result
from steepest.race.summary import summarise

DIGITS = replace(tasks.get("digits"), worst=0.0)
LOSS = replace(DIGITS, metric="perplexity", maximize=False, proportion=False, worst=1e6, target=3.0)
FIELD = ("adamw", "momentum", "eadam", "adam", "adabelief")
PROVENANCE = {"command": "c", "versions": {"python": "3"}, "machine": {}, "data_sha256": "0"}


def pairs(plan, task=DIGITS, *, evaluations=20, lost=()):
    """Results that differ by entry, learning rate and seed; `lost` (phase, entry, index) diverged.

    Every fresh seed has the best of its own tuning trials. Times depend on the entry alone. The
    last value of a curve is also the test metric. Ordered as a store gives them.
    """
    rng = np.random.default_rng(0)
    place = plan.entries.index

    def ran(trials):
        ordered = sorted(trials, key=lambda trial: (place(trial.entry), trial.index))
        return [(trial, result(trial)) for trial in ordered]

    def result(trial):
        k, tuned = place(trial.entry), trial.phase == TUNING
        ends = 0.96 - 0.02 * k - 0.03 * (np.log10(trial.hyper["lr"]) + 2) ** 2 * tuned
        steps = np.linspace(1, plan.steps, evaluations).round().astype(int)
        values = (ends + 0.01 * rng.random()) * (1 - np.exp(-5 * steps / plan.steps))
        if not task.proportion:
            values = 2 + k + 40 * (1 - values)
        gone = "loss is nan" if trial.key in lost else None
        kept = evaluations // 2 if gone else evaluations
        values = values[:kept].tolist()
        return Result(
            steps[:kept].tolist(), values, (steps[:kept] * 0.001 * (k + 1)).tolist(),
            test=None if tuned else task.worst if gone else values[-1],
            diverged=gone, step_seconds=1e-4, train_seconds=1e-3, state_bytes=80, parameters=10,
        )  # fmt: skip

    found = ran(protocol.tuning(plan))
    chosen = {
        entry: [
            scores.best(task, mine)
            for mine in protocol.by_seed(plan, (p for p in found if p[0].entry == entry))
        ]
        for entry in plan.entries
    }
    return found + ran(protocol.fresh(plan, chosen))


def race(names=FIELD, task=DIGITS, *, trials=6, seeds=6, steps=400, evaluations=20, lost=()):
    """The summary of a complete race."""
    plan = Plan("digits", tuple(names), trials, seeds, steps, 0)
    runs = pairs(plan, task, evaluations=evaluations, lost=lost)
    return summarise(task, plan, runs, PROVENANCE)


class InProcess:
    """A pool without processes: what the pilot run of a bad file says, at once."""

    def __init__(self, jobs, work):
        self.map = lambda items, on_note=None: ((item, work(item)) for item in items)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass
