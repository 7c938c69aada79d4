"""What the steps of an optimizer need besides gradients, found out by trying its class."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from inspect import Parameter, signature
from typing import Any

import torch
from torch import Tensor, nn

from steepest.tasks.randomness import put_back
from steepest.tasks.task import turn

TRIED = 11
"""How many steps of a class are tried. A class may differentiate its gradients only at some steps:
Sophia does so at every tenth."""


@dataclass(frozen=True)
class Wants:
    """What a step of an optimizer needs besides gradients."""

    closure: bool = False
    """step() has to be given a closure, which computes the loss and its gradients."""
    graph: bool = False
    """The optimizer differentiates its gradients, so backward() needs create_graph=True."""


@cache
def wants_of(
    cls: type[torch.optim.Optimizer], options: tuple[tuple[str, float], ...] = ()
) -> Wants:
    """What the steps of a class need: the least `Wants` with which it steps on a small example.

    If no `Wants` lets it step, the class fails for another reason. The result then depends only on
    the signature of step(). options: arguments of the class.
    """
    declared, given = _needs_closure(cls), dict[str, Any](options)
    ways = [Wants(closure, graph) for closure in (False, True) for graph in (False, True)]
    for wants in ways:
        if wants.closure >= declared and not first_error(lambda p: cls(p, **given), wants):
            return wants
    return Wants(closure=declared)


def first_error(
    make: Callable[[Iterable[Any]], torch.optim.Optimizer], wants: Wants, steps: int = TRIED
) -> Exception | None:
    """The error that an optimizer's first steps raise on a 2 x 2 weight; None if there is no error.

    The random states of the process do not change.
    """
    weight = nn.Parameter(torch.ones(2, 2))

    @torch.enable_grad()
    def loss_and_gradient() -> Tensor:
        weight.grad = None
        loss = weight.pow(4).mean()  # its second derivative is not zero
        backward(loss, graph=wants.graph)
        return loss

    try:
        with put_back(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the run itself warns
            optimizer: Any = make([weight])
            turn(optimizer, "train")
            for _ in range(steps):
                if wants.closure:
                    optimizer.step(loss_and_gradient)
                else:
                    loss_and_gradient()
                    optimizer.step()
    except Exception as error:
        return error
    finally:
        weight.grad = None  # its graph refers to the weight
    return None


def backward(loss: Tensor, *, graph: bool) -> None:
    """`loss.backward()`, with create_graph=True if `graph`.

    A gradient's graph refers to its parameter. torch's warning about this cycle is suppressed, so
    the caller has to reset the gradients after the step.
    """
    if not graph:
        loss.backward()
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Using backward\(\) with create_graph=True", UserWarning)
        loss.backward(create_graph=True)


def _needs_closure(cls: type[torch.optim.Optimizer]) -> bool:
    """Whether step() has an argument `closure` without a default."""
    closure = signature(cls.step).parameters.get("closure")
    return closure is not None and closure.default is Parameter.empty
