"""Gradients that are zero, missing, late or NaN. A step never changes gradients."""

from __future__ import annotations

from typing import Any

import torch

from ..examination import examination
from ..needs import argument, at_rest, beyond_signs, elementwise, plain, separate
from .helpers import differences, drive, flat

STEP = "torch.optim.Optimizer.step: "


@examination("zero-gradient", "torch.optim: the formulas of each class", plain, at_rest)
def zero_gradient(make: Any, quiet_options: Any) -> None:
    """If all gradients are zero, a parameter without weight decay does not change or become NaN."""
    p = torch.nn.Parameter(torch.tensor([[1.0, -2.0], [0.0, 4.0]]))
    start = p.detach().clone()
    optimizer = make([p], **quiet_options)
    for _ in range(3):
        p.grad = torch.zeros_like(p)
        optimizer.step()
    assert torch.equal(p, start), f"{start.tolist()} became {p.tolist()}, expected no change"


@examination("zero-gradient-later", "torch.optim: the formulas of each class", plain)
def zero_gradient_later(make: Any) -> None:
    """Zero gradients after some steps leave parameter and state finite."""
    p = torch.nn.Parameter(torch.ones(2, 2))
    optimizer = make([p])
    drive(optimizer, [p], 3)
    for _ in range(3):
        p.grad = torch.zeros_like(p)
        optimizer.step()
    for key, value in {"p": p, **optimizer.state[p]}.items():
        finite = not isinstance(value, torch.Tensor) or bool(torch.isfinite(value).all())
        assert finite, f"{key} is {value.tolist()}, expected finite values"


@examination(
    "no-gradient",
    STEP + "parameters whose grad is None are skipped",
    plain,
    separate,
    cases={"": {"options": "{}"}, "weight-decay": {"options": "{'weight_decay': 0.1}"}},
    case_needs={"weight-decay": argument("weight_decay")},
)
def no_gradient(make: Any, options: Any) -> None:
    """A parameter whose gradient is None keeps its value and state when other parameters step."""
    p, q = torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(2, 2))
    optimizer = make([p, q], **options)
    drive(optimizer, [p, q], 2)
    before = flat([p, optimizer.state[p]])
    p.grad = None
    drive(optimizer, [q], 2)
    different = differences(flat([p, optimizer.state[p]]), before)
    assert not different, different[0]


@examination("no-gradients-at-all", STEP + "parameters whose grad is None are skipped", plain)
def no_gradients_at_all(make: Any) -> None:
    """If no parameter has a gradient and one is frozen, a step changes nothing."""
    p, frozen = torch.nn.Parameter(torch.ones(2, 2)), torch.ones(2, 2)
    optimizer = make([p, frozen])
    optimizer.step()
    assert torch.equal(p, torch.ones(2, 2)), f"the parameter became {p.tolist()}"
    assert torch.equal(frozen, torch.ones(2, 2)), f"the frozen tensor became {frozen.tolist()}"


@examination("late-gradient", "torch.optim: state['step'] is kept per parameter", plain, separate)
def late_gradient(make: Any) -> None:
    """A parameter whose first gradient comes after some steps is stepped as in a new optimizer."""
    p, late, alone = (torch.nn.Parameter(torch.ones(2, 2, dtype=torch.float64)) for _ in range(3))
    optimizer = make([p, late])
    drive(optimizer, [p], 5)
    drive(optimizer, [p, late], 3)
    fresh = make([torch.nn.Parameter(torch.ones(2, 2)), alone])
    for t in range(3):
        drive(fresh, [torch.ones(2, 2), alone], 1, start=t)
    actual, expected = late.detach(), alone.detach()
    assert torch.allclose(actual, expected, rtol=1e-9, atol=1e-12), (
        f"the late parameter is {actual.tolist()}, expected {expected.tolist()}"
    )


@examination(
    "gradient-unmodified",
    STEP + "it only reads gradients; hooks, logging and accumulation use them afterwards",
    plain,
    cases={
        "plain": {"options": "{}"},
        "weight-decay": {"options": "{'weight_decay': 0.1}"},
        "maximize": {"options": "{'maximize': True}"},
    },
    case_needs={"weight-decay": argument("weight_decay"), "maximize": argument("maximize")},
)
def gradient_unmodified(make: Any, options: Any) -> None:
    """A step does not replace the gradients or change their values."""
    p = torch.nn.Parameter(torch.ones(2, 2))
    optimizer = make([p], **options)
    for _ in range(3):
        p.grad = g = torch.tensor([[1.0, -0.5], [0.25, 2.0]])
        before = g.clone()
        optimizer.step()
        assert torch.equal(g, before), f"the gradient {before.tolist()} became {g.tolist()}"
        assert p.grad is g, "p.grad is another tensor after the step"


@examination("nan-gradient-contained", "torch.optim: elementwise formulas", plain, elementwise)
def nan_gradient_contained(make: Any) -> None:
    """A NaN in one element of the gradient reaches no other element of parameter or state."""
    p = torch.nn.Parameter(torch.ones(3, 2))
    optimizer = make([p])
    for t in range(3):
        p.grad = torch.full((3, 2), 0.5)
        if t == 1:
            p.grad[0, 0] = float("nan")
        optimizer.step()
    for key, value in {"p": p, **optimizer.state[p]}.items():
        if isinstance(value, torch.Tensor) and value.shape == p.shape:
            others = value.detach().flatten()[1:]
            assert torch.isfinite(others).all(), (
                f"{key} is {value.tolist()}, expected NaN in the first element only"
            )


@examination(
    "nan-gradient-shows",
    "beyond torch: a NaN that disappears hides a broken model (the sign of NaN may be 0)",
    plain,
    beyond_signs,
    promised=False,
)
def nan_gradient_shows(make: Any) -> None:
    """A NaN in an element of the gradient makes that element of the parameter NaN."""
    p = torch.nn.Parameter(torch.ones(3, 2))
    optimizer = make([p])
    for t in range(3):
        p.grad = torch.full((3, 2), 0.5)
        if t == 1:
            p.grad[0, 0] = float("nan")
        optimizer.step()
    value = p.detach()[0, 0]
    assert torch.isnan(value), (
        f"after a gradient of NaN the element is {value.item()}, expected NaN"
    )
