"""Races that were never run: trials with made-up results, judged and shown like real ones."""

from dataclasses import replace

import numpy as np

from steepest.race import entries, tasks
from steepest.race.protocol import FRESH, TUNING, Plan, Result, Trial
from steepest.race.summary import summarise

DIGITS = tasks.get("digits")
LOSS = replace(DIGITS, metric="perplexity", maximize=False, proportion=False, worst=1e6, target=3.0)
FIELD = ("adamw", "momentum", "eadam", "adam", "adabelief")
PROVENANCE = {"command": "c", "versions": {"python": "3"}, "machine": {}, "data_sha256": "0"}


def pairs(plan, task=DIGITS, *, evaluations=20, lost=()):
    """Results that differ by entry, learning rate and seed; `lost` (phase, entry, index) diverged.

    Times depend on the entry alone. The last value of a curve is also the test metric.
    """
    rng, found = np.random.default_rng(0), []
    for phase, count in ((TUNING, plan.trials), (FRESH, plan.seeds)):
        for k, entry in enumerate(plan.entries):
            for i in range(count):
                hyper = {**entries.defaults(entry), "lr": 10 ** rng.uniform(-4, -1)}
                ends = 0.96 - 0.02 * k - 0.03 * (np.log10(hyper["lr"]) + 2) ** 2 * (phase == TUNING)
                steps = np.linspace(1, plan.steps, evaluations).round().astype(int)
                values = (ends + 0.01 * rng.random()) * (1 - np.exp(-5 * steps / plan.steps))
                if not task.proportion:
                    values = 2 + k + 40 * (1 - values)
                gone = "loss is nan" if (phase, entry, i) in lost else None
                kept = evaluations // 2 if gone else evaluations
                values = values[:kept].tolist()
                result = Result(
                    steps[:kept].tolist(), values, (steps[:kept] * 0.001 * (k + 1)).tolist(),
                    test=None if phase == TUNING else task.worst if gone else values[-1],
                    diverged=gone, step_seconds=1e-4, train_seconds=1e-3, state_bytes=80,
                    parameters=10,
                )  # fmt: skip
                trial = Trial(plan.task, phase, entry, i, 100 + i, plan.steps, hyper)
                found.append((trial, result))
    return found


def race(names=FIELD, task=DIGITS, *, trials=6, seeds=6, steps=400, evaluations=20, lost=()):
    """The summary of a complete race."""
    plan = Plan("digits", tuple(names), trials, seeds, steps, 0)
    runs = pairs(plan, task, evaluations=evaluations, lost=lost)
    return summarise(task, plan, runs, PROVENANCE)
