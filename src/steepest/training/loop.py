"""The training loop for a task that has none of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping
from typing import Any

import torch

from steepest.errors import BadCall
from steepest.tasks.task import Make, Reporter, Setup, Task, evaluating, turn
from steepest.training.recipe import Recipe
from steepest.training.steps import Training, check_finite, endless, over_batches

EVALUATIONS = 10
"""If a run has fewer steps than the user's file asks for, it is evaluated about this many times, or
fewer times if the file asks for fewer."""


Ask = tuple[Setup, Any]
"""The setup of a run, and the batch whose loss and gradients the run needs."""


def train(
    task: Task,
    recipe: Recipe,
    hyper: Mapping[str, float],
    seed: int,
    steps: int,
    report: Reporter,
    *,
    make_optimizer: Make | None = None,
    untrained: bool = False,
    test: bool = False,
    on_batch: Callable[[Any], None] = lambda batch: None,
    before_evaluation: Callable[[], None] = lambda: None,
) -> None:
    """Train the task's model with the recipe's optimizer and parts.

    `gradients` in a report is the cost so far. Its unit is one gradient of the task's usual batch.

    make_optimizer: makes the optimizer for a model, and attaches the parts that act on the
    optimizer. By default the recipe does both. untrained: report the metric at step 0 too. test:
    report the metric on test data at the last step. on_batch: a function that is called with each
    batch, if the recipe trains on the task's own batches. before_evaluation: a function that is
    called before each evaluation after step 0.

    Raises Diverged if the training loss is not finite.
    """
    for _ in turns(
        task,
        recipe,
        hyper,
        seed,
        steps,
        report,
        make_optimizer=make_optimizer,
        untrained=untrained,
        test=test,
        on_batch=on_batch,
        before_evaluation=before_evaluation,
    ):
        pass


def turns(
    task: Task,
    recipe: Recipe,
    hyper: Mapping[str, float],
    seed: int,
    steps: int,
    report: Reporter,
    *,
    together: bool = False,
    make_optimizer: Make | None = None,
    untrained: bool = False,
    test: bool = False,
    on_batch: Callable[[Any], None] = lambda batch: None,
    before_evaluation: Callable[[], None] = lambda: None,
) -> Generator[Ask, float, None]:
    """Like `train`, for one of several runs that take turns. A run waits where it needs gradients.

    together: at each step, yield the setup and the batch. The caller sets the gradients and sends
    the loss. The recipe must be `stackable`. Without `together` nothing is yielded, and the run
    computes its own gradients.
    """
    setup = recipe.setup(task, hyper, seed)

    def default(model: torch.nn.Module) -> torch.optim.Optimizer:
        made = recipe.optimizer(model.parameters(), hyper, seed)
        recipe.equip(made, steps, hyper, seed + 1)  # the same seed as in a race
        return recipe.wrap(made, hyper)

    optimizer, every = (make_optimizer or default)(setup.model), task.every
    newest: list[Any] = []

    def show(batch: Any) -> None:
        newest[:] = [batch]
        if recipe.same_batches:
            on_batch(batch)

    def evaluate(split: str) -> float:
        metric = _evaluate(setup, split)
        # the worst possible infinity, such as exp of a large loss, is a sign of divergence
        if task.file and newest and not math.isfinite(metric) and metric != task.lost:
            _check_loss(setup, newest[0], split, metric)
        return metric

    if task.file and steps < task.steps:  # about as many evaluations as in a full run, or 10
        wanted = min(EVALUATIONS, max(1, task.steps // every))
        every = min(every, max(1, steps // wanted))
    if untrained:
        with evaluating(optimizer):
            report(0, validation=evaluate("validation"))
    training = Training(task, recipe, setup, optimizer, hyper, seed, steps, show)
    hooks = [each.on_batches(training) for each in (recipe.full_batch, *recipe.parts) if each]
    batches = endless(setup.batches)
    advance = next((hook for hook in hooks if hook), None) or over_batches(
        training, ((batch, 1.0) for batch in batches)
    )
    stops = [stop for part in recipe.parts if (stop := part.on_evaluation(training))]
    spent, over = 0.0, False
    for step in range(1, steps + 1):
        last = step == steps
        if together:
            batch = next(batches)
            show(batch)
            check_finite((yield setup, batch), step)
            optimizer.step()
            spent += 1.0
        elif not over:
            spent = advance(step)
        if step % every and not last:
            continue
        before_evaluation()
        turn(optimizer, "eval")
        metric = evaluate("validation")
        if not over and (over := any(stop(metric, last) for stop in stops)):
            metric = evaluate("validation")  # the metric of the weights that the run ends with
        metrics = {"validation": metric}
        if test and last and setup.test_data and math.isfinite(metric):
            metrics["test"] = evaluate("test")
        if not over and not last:  # after training, the weights for evaluation stay
            turn(optimizer, "train")
        report(step, **metrics, gradients=spent)


def _evaluate(setup: Setup, split: str) -> float:
    setup.model.eval()
    metric = setup.evaluate(setup.model, split)
    setup.model.train()
    return metric


def _check_loss(setup: Setup, batch: Any, split: str, metric: float) -> None:
    """Raise BadCall if the training loss is finite although the metric is not."""
    # with gradients, because a loss may need them; random draws do no harm, because the run ends
    loss = setup.loss(setup.model, batch).item()
    if math.isfinite(loss):
        raise BadCall(
            f"evaluate() returned {metric} on {split} data although training is fine (the training "
            f"loss is {loss:.4g}): expected a finite number; where the metric is not defined, "
            f"return the worst possible value"
        )
