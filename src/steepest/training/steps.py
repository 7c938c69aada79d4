"""How a training step is made, and which data it uses."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.autograd.graph import register_multi_grad_hook
from torch.utils.data import Sampler

from steepest.errors import BadCall, Diverged
from steepest.tasks import generators
from steepest.tasks.randomness import remember
from steepest.tasks.task import Samples, Setup, Task
from steepest.training.wants import Wants, backward

if TYPE_CHECKING:
    from steepest.strategies import Loader
    from steepest.training.recipe import Recipe

HESSIAN_PRODUCT = 2.0
"""The cost of a product with the Hessian, in gradients of the same batch."""


@dataclass
class Training:
    """What the parts of a recipe know about one run of the training loop."""

    task: Task
    recipe: Recipe
    setup: Setup
    optimizer: torch.optim.Optimizer
    hyper: Mapping[str, float]
    seed: int
    steps: int
    on_batch: Callable[[Any], None]
    """A function that is called with every batch."""

    @property
    def samples(self) -> Samples:
        """The training data. If a task has none, `Recipe.check` refuses entries that need it."""
        assert self.setup.samples
        return self.setup.samples

    @property
    def mode(self) -> Literal["max", "min"]:
        """Whether the metric is better when it is larger ("max") or smaller ("min")."""
        return "max" if self.task.maximize else "min"

    def loader(self, size: int | Literal["all"] | None = None, sampler: Any = None) -> Loader:
        """Return a Loader of the task's samples, in the order of `sampler`.

        Without a sampler, the order is that of the task's own batches. size: the number of samples
        in a batch; None: as many as in the task's own batches.
        """
        from steepest.strategies import Loader

        samples = self.samples
        options: Any = {"collate_fn": samples.collate} if samples.collate else {}
        return Loader(
            samples.data,
            min(samples.batch, len(samples)) if size is None else size,
            sampler=sampler or _TaskOrder(samples, self.seed),
            seed=self.seed,
            drop_last=samples.drop_last,
            **options,
        )


class _TaskOrder(Sampler[int]):
    """The order of the task's own batches, epoch by epoch."""

    def __init__(self, samples: Samples, seed: int) -> None:
        self._orders, self._size, self._epoch = samples.orders(seed), len(samples), -1

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration. Going back to an earlier epoch is not possible."""
        while self._epoch < epoch:
            self._order, self._epoch = next(self._orders), self._epoch + 1

    def __iter__(self) -> Iterator[int]:
        return iter(self._order)

    def __len__(self) -> int:
        return self._size


def over_batches(
    training: Training, batches: Iterator[tuple[Any, float]], spent: float = 0.0
) -> Callable[[int], float]:
    """Return a function that makes one training step on the next batch and returns the cost so far.

    The unit of the cost is one gradient of the task's usual batch. batches: pairs of a batch and
    its cost in this unit, which is its size / the usual size. spent: the cost before the first
    step.
    """
    step_on = make_step(training.setup, training.optimizer, training.recipe.wants, training.task)

    def advance(step: int) -> float:
        nonlocal spent
        batch, cost = next(batches)
        training.on_batch(batch)
        spent += cost * step_on(batch, step)
        return spent

    return advance


def make_step(
    setup: Setup, optimizer: torch.optim.Optimizer, wants: Wants, task: Task
) -> Callable[[Any, int | None], float]:
    """Return a function that makes a step on a batch, and returns the cost.

    The unit of the cost is one gradient of this batch. A product with the Hessian counts as two.
    The function's second argument is the number of the step, which is named in the error if the
    loss is not finite. With None, the loss is not checked.

    All calls of a closure within a step compute the same function: the batch and the random states,
    and so the masks of dropout, are the same. Only the first call changes the model's buffers, such
    as the running statistics of batch normalisation. So random states and buffers are the same
    after a step with a closure and after one without.
    """
    model, spent = setup.model, 0.0
    params = [p for group in optimizer.param_groups for p in group["params"]]
    draws = generators(task)

    def count_product(_: Any) -> None:
        nonlocal spent
        spent += HESSIAN_PRODUCT

    def gradient(batch: Any, step: int | None) -> Tensor:
        nonlocal spent
        spent += 1
        optimizer.zero_grad()
        loss = setup.loss(model, batch)
        if step is not None:
            check_finite(loss.item(), step)
        backward(loss, graph=wants.graph)
        if wants.graph:
            grads = [p.grad for p in params if p.grad is not None and p.grad.requires_grad]
            if grads:
                register_multi_grad_hook(grads, count_product, mode="any")
        return loss

    def make_closure(batch: Any, step: int | None) -> Callable[[], Tensor]:
        restore: Callable[[], None] | None = None

        @torch.enable_grad()
        def closure() -> Tensor:
            nonlocal restore
            if restore is None:
                restore = remember(draws, str(params[0].device))
                return gradient(batch, step)
            restore()
            buffers = [(b, b.clone()) for b in model.buffers()]
            loss = gradient(batch, None)  # a line search may try points of an infinite loss
            for buffer, before in buffers:
                buffer.data.copy_(before)  # .data: a graph may have saved the buffer
            return loss

        return closure

    def step_on(batch: Any, step: int | None) -> float:
        nonlocal spent
        spent = 0.0
        if wants.closure:
            optimizer.step(make_closure(batch, step))  # type: ignore[arg-type]
            if not spent:
                raise BadCall(
                    "step(closure) of the optimizer did not call the closure; call it in step()"
                )
        else:
            gradient(batch, step)
            optimizer.step()
        if wants.graph:
            optimizer.zero_grad()  # the graph of a gradient refers to its parameter: a cycle
        return spent

    return step_on


def counted(loader: Loader, usual: int) -> Iterator[tuple[Any, float]]:
    """Yield (batch, its size / `usual`) for the batches of the loader, repeated without end."""
    while True:
        for batch in loader:
            yield batch, loader.handed / usual


def check_finite(loss: float, step: int) -> None:
    """Raise Diverged if the training loss is not finite."""
    if not math.isfinite(loss):
        raise Diverged(f"training loss is {loss} at step {step}")


def endless(batches: Iterable[Any]) -> Iterator[Any]:
    """Yield the batches, repeated without end. Raises BadCall if a pass gives no batch."""
    total = 0
    while True:
        before = total
        for batch in batches:
            total += 1
            yield batch
        if total == before:
            ended = (
                f"they ended after {total}, and a second pass gave none" if total else "none given"
            )
            raise BadCall(
                f"training batches: {ended}; return a list or a DataLoader with batches in "
                f"it, or a generator without end"
            )
