"""Parts that choose the size of the batches."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from torch.nn.modules.batchnorm import _BatchNorm

from steepest.errors import BadCall
from steepest.training.parts.part import Advance, Part, Script, check_samples
from steepest.training.parts.rates import Step
from steepest.training.steps import Training, counted, over_batches

if TYPE_CHECKING:
    from steepest.tasks.task import Task

FIRST = 30
"""How many samples `+adaptive-batch` draws at a time, as in its authors' code."""


class Batch(Part):
    kind = "batch"
    needs, own_batches = "samples", True
    size: ClassVar[int | Literal["all"] | None] = None
    """The number of samples in a batch. None: as many as in the task's own batches."""

    def check(self, entry: str, task: Task) -> None:
        check_samples(entry, f"+{self.name}", task)

    def on_batches(self, training: Training) -> Advance | None:
        loader = training.loader(self.size)
        return over_batches(training, counted(loader, training.samples.batch))

    def code(self, script: Script) -> list[str]:
        size = {None: "batch_size", "all": '"all"'}.get(self.size, self.size)
        return [f"loader = steepest.strategies.Loader(dataset, {size}, seed=0)"]


class FullBatch(Batch):
    name, about, source = "full-batch", "all training data in every step", "Cauchy 1847"
    size = "all"


class OneSample(Batch):
    name, about, source = "one-sample", "one sample in every step", "Robbins 1951"
    size = 1


class BatchGrowth(Batch):
    name, about = "batch-growth", "batches grow where +step lowers lr"
    source = "arXiv:1711.00489"
    needs_rate = True
    conflicts, why = ("rate", "warmup"), "is a schedule"

    def on_batches(self, training: Training) -> Advance | None:
        from steepest import strategies

        loader, optimizer = training.loader(), training.optimizer
        falling = Step().schedule(optimizer, training.steps, training.hyper)
        growth = strategies.BatchGrowth(falling, loader)
        optimizer.register_step_post_hook(lambda *_: growth.step())
        return over_batches(training, counted(loader, training.samples.batch))

    def code(self, script: Script) -> list[str]:
        return [
            *super().code(script),
            f"falling = {Step().call(script.steps, script.hyper)}",
            "growth = steepest.strategies.BatchGrowth(falling, loader)",
            "optimizer.register_step_post_hook(lambda *_: growth.step())",
        ]


class AdaptiveBatch(Batch):
    name, about = "adaptive-batch", "batches by the spread of their gradients"
    source = "Yin 2017"
    needs_rate, own_gradients = True, True

    def check(self, entry: str, task: Task) -> None:
        setup = check_samples(entry, f"+{self.name}", task)
        if any(isinstance(m, _BatchNorm) for m in setup.model.modules()):
            raise BadCall(
                f"entry {entry!r}: the model of {task.name} has batch normalisation, and "
                f"+{self.name} needs gradients of single samples: expected a model without batch "
                f"normalisation"
            )

    def on_batches(self, training: Training) -> Advance | None:
        from steepest import strategies

        setup, samples, optimizer = training.setup, training.samples, training.optimizer
        loader = training.loader(max(2, min(FIRST, samples.batch, len(samples))))
        adaptive: strategies.AdaptiveBatch | None = None

        def advance(step: int) -> float:
            nonlocal adaptive
            try:
                if adaptive is None:
                    adaptive = strategies.AdaptiveBatch(setup.model, setup.loss, optimizer, loader)
                adaptive.step()
            except BadCall:
                raise
            except (ValueError, RuntimeError) as error:  # such as a model that vmap refuses
                why = str(error).strip().partition("\n")[0]
                entry, task = training.recipe.name, training.task
                raise BadCall(f"entry {entry!r} on {task.file or task.name}: {why}") from error
            return adaptive.samples / samples.batch

        return advance

    def code(self, script: Script) -> list[str]:
        return [
            f"loader = steepest.strategies.Loader(dataset, min({FIRST}, batch_size), seed=0)",
            "adaptive = steepest.strategies.AdaptiveBatch(model, loss, optimizer, loader)",
            "# each step: adaptive.step(), which computes the loss and the gradients itself",
        ]
