"""Methods on the full batch, as optimizers of a recipe: each step uses all training data.

This module says which options of a method are tuned, makes the methods, and calls their steps. The
methods themselves are in `steepest.full_batch`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from inspect import signature
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from steepest.errors import BadCall
from steepest.training.makers import Maker, creation, make_class
from steepest.training.parts.part import Advance, Knob, Knobs, check_samples
from steepest.training.steps import Training, check_finite

if TYPE_CHECKING:
    from steepest.tasks.task import Task


@dataclass(frozen=True)
class FullBatch(Maker):
    name: str
    called: str
    """The name of the method's class in `steepest.full_batch`."""
    about: str
    source: str
    knobs: Knobs
    arguments: dict[str, Any] = field(default_factory=dict)
    """Arguments of the class in addition to the knobs."""
    residuals: bool = False
    """Whether the closure returns residuals. The loss is then the mean of the squared residuals."""

    @property
    def needs(self) -> str:
        return "samples, residuals" if self.residuals else "samples"

    @property
    def space(self) -> dict[str, tuple[float, float]]:
        return {name: (knob.low, knob.high) for name, knob in self.knobs.items()}

    @property
    def defaults(self) -> dict[str, float]:
        return {name: knob.default for name, knob in self.knobs.items()}

    def make(
        self, params: Iterable[Any], hyper: Mapping[str, float], seed: int, entry: str
    ) -> torch.optim.Optimizer:
        from steepest import full_batch as methods

        method: Any = getattr(methods, self.called)
        drawn = {"seed": seed} if "seed" in signature(method).parameters else {}
        return make_class(method, params, {**hyper, **self.arguments, **drawn}, entry)

    def code(self, hyper: Mapping[str, float]) -> list[str]:
        from steepest import full_batch as methods

        drawn = {"seed": 0} if "seed" in signature(getattr(methods, self.called)).parameters else {}
        what = "the residuals" if self.residuals else "the loss"
        pulls = " after backward()" if self.called == "LBFGS" else ""
        return [
            creation(f"steepest.full_batch.{self.called}(", {**hyper, **self.arguments, **drawn}),
            f"# each step: optimizer.step(closure); closure() returns {what} of all data{pulls}",
        ]

    def check(self, entry: str, task: Task) -> None:
        """Raise BadCall if the task lacks what the method needs, or if its model is too large."""
        setup = check_samples(entry, self.name, task)
        if self.residuals and setup.residuals is None:
            raise BadCall(
                f"entry {entry!r}: {task.name} has a loss, but {self.name} needs the residuals: "
                f"expected a bundled regression task, such as diabetes, where the loss is the mean "
                f"of the squared residuals"
            )
        self.make(setup.model.parameters(), self.defaults, 0, entry)

    def on_batches(self, training: Training) -> Advance:
        setup, samples, optimizer = training.setup, training.samples, training.optimizer
        data, calls = samples.rows(torch.arange(len(samples))), 0
        training.on_batch(data)
        loss_of: Any = setup.residuals if self.residuals else setup.loss
        pulls = isinstance(optimizer, torch.optim.LBFGS)  # needs a closure that calls backward()

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
            check_finite(float(loss), step)
            return getattr(optimizer, "evaluations", calls) * len(samples) / samples.batch

        return advance


LENGTH = {"lr": Knob(0.1, 1.0, 2.0)}
DAMPED = {"damping": Knob(1e-4, 1e-2, 1e1)}
METHODS = {
    method.name: method
    for method in (
        FullBatch("newton", "Newton", "the whole Hessian, damped", "Levenberg 1944", DAMPED),
        FullBatch(
            "saddle-free-newton",
            "Newton",
            "with the Hessian's absolute eigenvalues",
            "arXiv:1406.2572",
            DAMPED,
            {"saddle_free": True},
        ),
        FullBatch(
            "newton-cg", "NewtonCG", "by products with the Hessian", "Nocedal-Wright", LENGTH
        ),
        FullBatch(
            "levenberg-marquardt",
            "LevenbergMarquardt",
            "Gauss-Newton, damped",
            "Marquardt 1963",
            {"damping": Knob(1e-5, 1e-3, 1e1)},
            residuals=True,
        ),
        FullBatch("bfgs", "BFGS", "the inverse Hessian from gradients", "Broyden 1970", LENGTH),
        FullBatch(
            "lbfgs",
            "LBFGS",
            "inverse Hessian, from the last 100 gradients",
            "torch.optim",
            LENGTH,
            # by default, a step of torch's LBFGS makes up to 20 iterations
            {"line_search_fn": "strong_wolfe", "max_iter": 1},
        ),
        FullBatch(
            "genetic",
            "Genetic",
            "50 models, selection, crossover, mutation",
            "Holland 1975",
            {"sigma": Knob(1e-3, 1e-1, 1.0)},
        ),
        FullBatch(
            "annealing",
            "Annealing",
            "random moves, rarely upwards",
            "Kirkpatrick 1983",
            {"sigma": Knob(1e-4, 1e-2, 1.0), "temperature": Knob(1e-4, 1e-2, 1.0)},
        ),
        FullBatch(
            "greedy",
            "CoordinateSearch",
            "one parameter after the other",
            "Hooke 1961",
            {"size": Knob(1e-3, 1e-1, 1.0)},
        ),
    )
}
