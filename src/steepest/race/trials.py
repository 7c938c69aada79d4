"""One training of one entry, measured. Runs in a worker process."""

from __future__ import annotations

import math
import statistics
from dataclasses import replace
from time import perf_counter

import torch

from steepest.race import entries, tasks
from steepest.race.protocol import FRESH, Result, Trial

_warm: set[tuple[str, str]] = set()


def run(trial: Trial) -> Result:
    """Train as `trial` says, on one thread. A run that diverges is a result, not an error."""
    torch.set_num_threads(1)
    start = perf_counter()
    if (trial.task, trial.entry) not in _warm:  # compilation is not the entry's step time
        _train(replace(trial, steps=1))
        _warm.add((trial.task, trial.entry))
    warm = perf_counter() - start
    result = _train(trial)
    result.warm_seconds = warm
    return result


def _train(trial: Trial) -> Result:
    task = tasks.get(trial.task)
    started = perf_counter()
    setup = task.build(trial.seed)
    model = setup.model
    optimizer = entries.make(trial.entry, list(model.parameters()), trial.hyper)
    result = Result(parameters=sum(p.numel() for p in model.parameters()))
    whole: list[float] = []
    stepping: list[float] = []
    spent = 0.0
    try:
        for step in range(1, trial.steps + 1):
            start = perf_counter()
            optimizer.zero_grad()
            loss = setup.loss(model, next(setup.batches))
            if not math.isfinite(loss.item()):
                raise FloatingPointError(f"training loss is {loss.item()} at step {step}")
            loss.backward()
            before = perf_counter()
            optimizer.step()
            end = perf_counter()
            stepping.append(end - before)
            whole.append(end - start)
            spent += end - start
            if step % task.every == 0 or step == trial.steps:
                metric = _evaluate(setup, "validation")
                if not math.isfinite(metric):
                    raise FloatingPointError(f"model output is not finite at step {step}")
                result.steps.append(step)
                result.validation.append(metric)
                result.seconds.append(spent)
        if trial.phase == FRESH:
            result.test = _evaluate(setup, "test")
            if not math.isfinite(result.test):
                raise FloatingPointError("model output on test data is not finite")
    except ArithmeticError as error:  # FloatingPointError, OverflowError, ZeroDivisionError
        result.diverged = str(error) or type(error).__name__
        result.test = task.worst if trial.phase == FRESH else None
    if whole:
        result.step_seconds = statistics.median(stepping)
        result.train_seconds = statistics.median(whole)
    result.state_bytes = sum(
        value.numel() * value.element_size()
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor)
    )
    result.wall_seconds = perf_counter() - started
    return result


def _evaluate(setup: tasks.Setup, split: str) -> float:
    setup.model.eval()
    metric = setup.evaluate(setup.model, split)
    setup.model.train()
    return metric
