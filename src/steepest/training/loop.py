"""The training loop of a task that only says what is trained, and what an entry makes of it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler

from steepest.errors import BadCall, Diverged
from steepest.race.protocol import FRESH, PILOT, Trial
from steepest.tasks.task import Make, Reporter, Samples, Setup, Task, evaluating, turn
from steepest.training import entries, parts
from steepest.training.methods import SQUARES

EVALUATIONS = 10
"""Of a run that `--steps` has made shorter than its file says."""
PATIENCE = 3
"""Evaluations in a row without a better one until `+early-stopping` stops, `+restarts` restarts."""
SCORED = 4
"""A curriculum's scores are of a model that was trained for a quarter of the steps."""
OPENED = 2
"""All data are open to a curriculum after half of the steps."""
FIRST = 30
"""Samples that `+adaptive-batch` draws at a time, as its authors' code does."""


def declared(
    task: Task,
    trial: Trial,
    make_optimizer: Make,
    report: Reporter,
    saw: Callable[[Any], None] = lambda batch: None,
    evaluates: Callable[[], None] = lambda: None,
) -> None:
    """Train what the task declares, with the entry's optimizer and parts.

    `gradients` of a report is the cost so far: gradients of the task's usual batch. saw: is shown
    each batch of an entry that trains on the task's own. evaluates: is called before an evaluation.
    """
    setup = entries.built(task, trial)
    model = setup.model
    optimizer, every = make_optimizer(model), task.every
    newest: list[Any] = []

    def take(batch: Any) -> None:
        newest[:] = [batch]
        if entries.same_batches(trial.entry):
            saw(batch)

    def evaluate(split: str) -> float:
        metric = _evaluate(setup, split)
        # as large as can be to the bad side, such as exp of a loss, is what divergence looks like
        if task.file and newest and not math.isfinite(metric) and metric != task.lost:
            _blame(setup, newest[0], split, metric)
        return metric

    if task.file and trial.steps < task.steps:  # as many evaluations as the file has, up to 10
        wanted = min(EVALUATIONS, max(1, task.steps // every))
        every = min(every, max(1, trial.steps // wanted))
    if trial.phase == PILOT:  # how bad is a model that has learned nothing?
        with evaluating(optimizer):
            report(0, validation=evaluate("validation"))
    advance = _advance(trial, setup, optimizer, take)
    stopping = _stopping(task, trial, setup, optimizer)
    spent, over = 0.0, False
    for step in range(1, trial.steps + 1):
        if not over:
            spent = advance(step)
        if step % every and step != trial.steps:
            continue
        evaluates()
        turn(optimizer, "eval")
        metric = evaluate("validation")
        if stopping and not over and (over := stopping(metric, step == trial.steps)):
            metric = evaluate("validation")
        found = {"validation": metric}
        tested = setup.test_data and step == trial.steps and trial.phase in (FRESH, PILOT)
        if tested and math.isfinite(metric):
            found["test"] = evaluate("test")
        if not over and step < trial.steps:  # what is trained no more stays as it is used
            turn(optimizer, "train")
        report(step, **found, gradients=spent)


def _blame(setup: Setup, batch: Any, split: str, metric: float) -> None:
    """BadCall for a metric that is no number where the training loss is one."""
    # as in training, with gradients: a loss may need them. The run ends here, whatever it draws
    loss = setup.loss(setup.model, batch).item()
    if math.isfinite(loss):
        raise BadCall(
            f"evaluate() returned {metric} on {split} data although training is fine (its loss is "
            f"{loss:.4g}); return a number, also where the metric is not defined: the worst that "
            f"it can be"
        )


def _advance(
    trial: Trial, setup: Setup, optimizer: torch.optim.Optimizer, take: Callable[[Any], None]
) -> Callable[[int], float]:
    """What makes step number `step`, and returns the gradients computed until then.

    take: is shown every batch.
    """
    optimized, words = entries.split(trial.entry)
    if entries.whole(trial.entry):
        return _whole(setup, optimizer, optimized == SQUARES, take)
    kinds = {parts.PARTS[word].kind: word for word in words}
    batch, order = kinds.get("batch"), kinds.get("order")
    batches, spent = ((b, 1.0) for b in endless(setup.batches)), 0.0
    if batch or order:
        assert setup.samples
        loader, spent = _loader(trial, setup, setup.samples, batch, order)
        if batch == "adaptive-batch":
            return _adaptive(trial, setup, setup.samples, optimizer, loader)
        if batch == "batch-growth":
            from steepest.strategies import BatchGrowth

            growth = BatchGrowth(parts.falling(optimizer, trial.steps), loader)
            optimizer.register_step_post_hook(lambda *_: growth.step())
        batches = _counted(loader, setup.samples.batch)

    def advance(step: int) -> float:
        nonlocal spent
        given, cost = next(batches)
        take(given)
        spent += cost
        optimizer.zero_grad()
        loss = setup.loss(setup.model, given)
        _finite(loss.item(), step)
        loss.backward()
        optimizer.step()
        return spent

    return advance


def _counted(loader: Any, usual: int) -> Iterator[tuple[Any, float]]:
    """The batches without end, each with its size in usual batches."""
    while True:
        for batch in loader:
            yield batch, loader.handed / usual


def _finite(loss: float, step: int) -> None:
    if not math.isfinite(loss):
        raise Diverged(f"training loss is {loss} at step {step}")


def _whole(
    setup: Setup, optimizer: torch.optim.Optimizer, squares: bool, take: Callable[[Any], None]
) -> Callable[[int], float]:
    samples, calls = setup.samples, 0
    assert samples
    data = samples.rows(torch.arange(len(samples)))
    take(data)
    loss_of: Any = setup.residuals if squares else setup.loss
    pulls = isinstance(optimizer, torch.optim.LBFGS)  # torch's closures call backward()

    def closure() -> Tensor:
        nonlocal calls
        calls += 1
        loss = loss_of(setup.model, data)
        if pulls:
            optimizer.zero_grad()
            loss.backward()
            loss = loss.detach()
        return loss

    def advance(step: int) -> float:
        loss: Any = optimizer.step(closure)  # type: ignore[arg-type]
        _finite(float(loss), step)
        return getattr(optimizer, "evaluations", calls) * len(samples) / samples.batch

    return advance


def _adaptive(
    trial: Trial, setup: Setup, samples: Samples, optimizer: torch.optim.Optimizer, loader: Any
) -> Callable[[int], float]:
    from steepest.strategies import AdaptiveBatch

    adaptive: Any = None

    def advance(step: int) -> float:
        nonlocal adaptive
        try:
            adaptive = adaptive or AdaptiveBatch(setup.model, setup.loss, optimizer, loader)
            adaptive.step()
        except BadCall:
            raise
        except (ValueError, RuntimeError) as error:  # a loss below 0, a model that vmap refuses
            why = str(error).strip().partition("\n")[0]
            raise BadCall(f"entry {trial.entry!r} on {trial.task}: {why}") from error
        return adaptive.samples / samples.batch

    return advance


def _loader(
    trial: Trial, setup: Setup, samples: Samples, batch: str | None, order: str | None
) -> tuple[Any, float]:
    """The loader that the parts ask for, and the gradients that its order has cost."""
    from steepest.strategies import Curriculum, Loader, pacing

    size = min(samples.batch, len(samples))
    sizes: dict[str | None, int | str] = {"full-batch": "all", "one-sample": 1}
    sizes["adaptive-batch"] = max(2, min(FIRST, size))
    sampler: Any = _SameOrder(samples, trial.seed)
    spent = 0.0
    if order:
        scores = torch.zeros(len(samples))
        if order != "random-curriculum":
            scores, spent = _scores(trial, setup, samples)
        pace = pacing.linear(trial.hyper[f"{order}.start"], max(1, trial.steps // OPENED))
        first = {"curriculum": "easy", "anti-curriculum": "hard"}.get(order, "random")
        sampler = Curriculum(scores, pace, size, first=first, seed=trial.seed)
    options: Any = {"collate_fn": samples.collate} if samples.collate else {}
    options |= {"sampler": sampler, "seed": trial.seed, "drop_last": samples.drop_last}
    return Loader(samples.data, sizes.get(batch, size), **options), spent


def _scores(trial: Trial, setup: Setup, samples: Samples) -> tuple[Tensor, float]:
    """How hard each sample is to a copy of the model, trained for a while without a curriculum."""
    model, steps = copy.deepcopy(setup.model), max(1, trial.steps // SCORED)
    optimizer = entries.make(trial.entry, model.parameters(), trial.hyper)
    batches = samples.batched(trial.seed)
    for _ in range(steps):
        optimizer.zero_grad()
        setup.loss(model, next(batches)).backward()
        optimizer.step()
    model.eval()
    with torch.no_grad(), evaluating(optimizer):
        each = [setup.loss(model, samples.rows(torch.tensor([i]))) for i in range(len(samples))]
    # what is not finite is as hard as can be; a forward is a third of a gradient
    scores = torch.stack(each).double().nan_to_num(math.inf).clamp(-1e300, 1e300)
    return scores, steps + len(samples) / samples.batch / 3


class _SameOrder(Sampler[int]):
    """The order of the batches that the entries without parts have, epoch by epoch."""

    def __init__(self, samples: Samples, seed: int) -> None:
        self._orders, self._size, self._epoch = samples.orders(seed), len(samples), -1

    def set_epoch(self, epoch: int) -> None:
        """Which epoch the next iteration is; never an earlier one."""
        while self._epoch < epoch:
            self._order, self._epoch = next(self._orders), self._epoch + 1

    def __iter__(self) -> Iterator[int]:
        return iter(self._order)

    def __len__(self) -> int:
        return self._size


def _stopping(
    task: Task, trial: Trial, setup: Setup, optimizer: torch.optim.Optimizer
) -> Callable[[float, bool], bool] | None:
    """(metric, at the end) -> whether to stop; the best weights are in the model then."""
    _, words = entries.split(trial.entry)
    mode: Any = "max" if task.maximize else "min"
    if "early-stopping" in words:
        from steepest.strategies import EarlyStopping

        early = EarlyStopping(setup.model, PATIENCE, mode=mode)

        def stop(metric: float, last: bool) -> bool:
            over = early.step(metric) or last
            if over and early.best is not None:
                early.restore()
            return over

        return stop
    if "restarts" in words:
        from steepest.schedules import RestartFromBest

        best = RestartFromBest(optimizer, setup.model, mode=mode, patience=PATIENCE)

        def restart(metric: float, last: bool) -> bool:
            best.step(metric)
            return best.stopped

        return restart
    return None


def endless(batches: Iterable[Any]) -> Iterator[Any]:
    """The batches again and again."""
    total = 0
    while True:
        before = total
        for batch in batches:
            total += 1
            yield batch
        if total == before:
            ended = (
                f"ended after {total} and gave none when gone through again" if total else "none"
            )
            raise BadCall(
                f"training batches: {ended}; return a list or a DataLoader with batches in "
                f"it, or a generator without end"
            )


def _evaluate(setup: Setup, split: str) -> float:
    setup.model.eval()
    metric = setup.evaluate(setup.model, split)
    setup.model.train()
    return metric
