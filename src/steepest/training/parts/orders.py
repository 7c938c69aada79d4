"""Parts that choose the order of the training data: curricula."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from steepest.tasks.task import evaluating
from steepest.training.parts.part import Advance, Knob, Knobs, Part, check_samples
from steepest.training.steps import Training, counted, over_batches

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


class AntiCurriculum(Curriculum):
    name, about, first = "anti-curriculum", "hard samples first", "hard"


class RandomCurriculum(Curriculum):
    name, about = "random-curriculum", "more and more samples, in no order"
    first = "random"


def difficulty(training: Training) -> tuple[Tensor, float]:
    """Train a copy of the model for some steps. Returns its loss on each sample, and the cost.

    The cost includes training and scoring. Its unit is one gradient of the task's usual batch.
    """
    setup, samples = training.setup, training.samples
    model, steps = copy.deepcopy(setup.model), max(1, training.steps // SCORED)
    optimizer = training.recipe.optimizer(model.parameters(), training.hyper)
    batches = samples.batched(training.seed)
    for _ in range(steps):
        optimizer.zero_grad()
        setup.loss(model, next(batches)).backward()
        optimizer.step()
    model.eval()
    with torch.no_grad(), evaluating(optimizer):
        losses = [setup.loss(model, samples.rows(torch.tensor([i]))) for i in range(len(samples))]
    # a sample is the hardest if its loss is not finite; a forward pass costs a third of a gradient
    scores = torch.stack(losses).cpu().double().nan_to_num(math.inf).clamp(-1e300, 1e300)
    return scores, steps + len(samples) / samples.batch / 3
