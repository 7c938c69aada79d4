"""Parts that choose the order of the training data: curricula."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from steepest.tasks.task import evaluating
from steepest.training.parts.part import Advance, Knob, Knobs, Part, Script, check_samples
from steepest.training.steps import Training, counted, make_step, over_batches

if TYPE_CHECKING:
    from steepest.tasks.task import Task

SCORED = 4
"""A curriculum scores each sample by its loss in a copy of the model. The copy is trained for the
number of steps of the run, divided by SCORED."""
OPENED = 2
"""A curriculum starts with a part of the data. It uses all data after steps / OPENED steps."""
SOURCE = "arXiv:1904.03626"


class Curriculum(Part):
    name, about, source = "curriculum", "easy samples first, by a trained copy's loss", SOURCE
    kind = "order"
    needs, own_batches = "samples", True
    knobs: ClassVar[Knobs] = {"start": Knob(0.05, 0.2, 0.8, "(0, 1]")}
    conflicts, why = ("batch",), "draws batches of the task's size"
    first: ClassVar[Literal["easy", "hard", "random"]] = "easy"

    def check(self, entry: str, task: Task) -> None:
        check_samples(entry, f"+{self.name}", task)

    def on_batches(self, training: Training) -> Advance | None:
        from steepest import strategies

        samples, spent = training.samples, 0.0
        scores = torch.zeros(len(samples))
        if self.first != "random":
            scores, spent = difficulty(training)
        start = self.value(training.hyper, "start")
        pace = strategies.pacing.linear(start, max(1, training.steps // OPENED))
        size = min(samples.batch, len(samples))
        sampler = strategies.Curriculum(scores, pace, size, first=self.first, seed=training.seed)
        loader = training.loader(size, sampler)
        return over_batches(training, counted(loader, samples.batch), spent)

    def code(self, script: Script) -> list[str]:
        start, length = self.value(script.hyper, "start"), max(1, script.steps // OPENED)
        copied = max(1, script.steps // SCORED)
        scored = [
            f"trained = copy.deepcopy(model)  # then train this copy for {copied} steps",
            "scores = steepest.strategies.difficulty(trained, loss, dataset)",
        ]
        return [
            *(["scores = torch.zeros(len(dataset))"] if self.first == "random" else scored),
            f"pace = steepest.strategies.pacing.linear({start!r}, {length})",
            "order = steepest.strategies.Curriculum(",
            f'    scores, pace, batch_size, first="{self.first}", seed=0',
            ")",
            "loader = steepest.strategies.Loader(dataset, batch_size, sampler=order, seed=0)",
        ]


class AntiCurriculum(Curriculum):
    name, about, first = "anti-curriculum", "hard samples first", "hard"


class RandomCurriculum(Curriculum):
    name, about = "random-curriculum", "more and more samples, in random order"
    first = "random"


def difficulty(training: Training) -> tuple[Tensor, float]:
    """Train a copy of the model for some steps. Returns its loss on each sample, and the cost.

    The cost includes training and scoring. Its unit is one gradient of the task's usual batch.
    """
    setup, samples = training.setup, training.samples
    model, steps = copy.deepcopy(setup.model), max(1, training.steps // SCORED)
    recipe, batches = training.recipe, samples.batched(training.seed)
    optimizer = recipe.optimizer(model.parameters(), training.hyper)
    copied = replace(setup, model=model)
    step_on = make_step(copied, optimizer, recipe.maker.wants, training.task)
    spent = sum(step_on(next(batches), None) for _ in range(steps))
    model.eval()
    with torch.no_grad(), evaluating(optimizer):
        losses = [setup.loss(model, samples.rows(torch.tensor([i]))) for i in range(len(samples))]
    # a sample is the hardest if its loss is not finite; a forward pass costs a third of a gradient
    scores = torch.stack(losses).cpu().double().nan_to_num(math.inf).clamp(-1e300, 1e300)
    return scores, spent + len(samples) / samples.batch / 3
