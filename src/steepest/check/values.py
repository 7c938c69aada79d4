"""The values of the examinations' arguments, and how a script writes values as expressions."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from ..classes import classes
from ..families import families
from ..options import WITHOUT_EFFECT
from .guards import limited, quiet
from .target import TargetError, home_of

if TYPE_CHECKING:
    from .subject import Subject

PATHS = ("foreach", "fused", "capturable", "differentiable", "maximize")
"""Flags of torch's classes. Each flag has its own examinations."""
_UNUSUAL: tuple[dict[str, Any], ...] = (
    {"weight_decay": 0.1},
    {"momentum": 0.9},
    {"momentum": 0.9, "dampening": 0.5},
    {"momentum": 0.9, "nesterov": True},
    {"momentum": 0.9, "centered": True},
    {"betas": (0.8, 0.9), "eps": 1e-4},
    {"rho": 0.95, "weight_decay": 0.9},
    {"alpha": 0.9},
    {"lr_decay": 0.1, "initial_accumulator_value": 0.1},
    {"momentum_decay": 0.006},
    {"lambd": 0.01, "t0": 3.0},
    {"etas": (0.4, 1.4), "step_sizes": (1e-4, 10.0)},
    {"lr": 0.01},
    {"amsgrad": True, "weight_decay": 0.1},
    {"final_lr": 0.01, "gamma": 0.05},
)


def as_expression(value: Any) -> tuple[str, list[str]]:
    """Return an expression that gives `value`, and the modules that the expression uses.

    The modules do not include torch. Raises TargetError if no expression gives the value.
    """
    if isinstance(value, type):
        home = home_of(value)
        if home:
            return f"{home}.{value.__name__}", [home]
        raise TargetError(f"the option {value!r} cannot be imported; define the class in a module")
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")', []
    if isinstance(value, torch.Tensor):
        text, modules = as_expression(value.tolist())
        return f"torch.tensor({text}, dtype={value.dtype})", modules
    if isinstance(value, (tuple, list)) and type(value) in (tuple, list):
        members = [as_expression(member) for member in value]
        modules = [module for _, needed in members for module in needed]
        inside = ", ".join(text for text, _ in members)
        if type(value) is list:
            return f"[{inside}]", modules
        return f"({inside},)" if len(members) == 1 else f"({inside})", modules
    if type(value) is dict:
        pairs = [(as_expression(k), as_expression(v)) for k, v in value.items()]
        text = ", ".join(f"{k[0]}: {v[0]}" for k, v in pairs)
        return f"{{{text}}}", [module for k, v in pairs for module in k[1] + v[1]]
    try:
        eval(repr(value), {"torch": torch})
    except Exception:
        raise TargetError(
            f"the option {value!r} cannot be written in a script; pass a number, text, tensor or "
            "class, or a tuple, list or dict of these"
        ) from None
    return repr(value), []


def _known(subject: Subject, **values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name in subject.parameters}


def _variants(subject: Subject) -> list[dict[str, Any]]:
    """Return sets of options, to run many branches of the class's code.

    The first set is empty. Each other set has unusual values or switches one flag.
    """
    variants = [*_UNUSUAL]
    steps = not subject.complaint()  # if False, only the construction can be tried
    for name, parameter in subject.parameters.items():
        default = subject.options.get(name, parameter.default)
        if isinstance(default, bool):
            variants.append({name: not default})
    return [{}, *(options for options in variants if _usable(subject, options, steps))]


def _usable(subject: Subject, options: dict[str, Any], steps: bool) -> bool:
    if not options.keys() <= subject.parameters.keys() - {*PATHS, *WITHOUT_EFFECT}:
        return False
    p = torch.nn.Parameter(torch.ones(2, 2))
    p.grad = torch.ones(2, 2)
    try:
        with quiet(), limited():
            optimizer = subject.construct([p], **options)
            if steps:
                optimizer.step()
    except Exception:
        return False
    return True


def _shared_options(subject: Subject) -> dict[str, Any]:
    """Return the options that a foreign class shares with our class of the same name.

    The values of these options are those of the foreign class.
    """
    family = families[subject.name]
    values = {n: p.default for n, p in subject.parameters.items() if n in family.arguments}
    values |= {n: v for n, v in subject.options.items() if n in family.arguments}
    without = {*PATHS, *WITHOUT_EFFECT} - {"maximize"}
    return {n: v for n, v in values.items() if n not in without}


def _comparisons(subject: Subject) -> str:
    if subject.ours:
        return f"settings_of({subject.name})"
    if subject.name not in families:
        return "[]"
    options, cls = _shared_options(subject), classes[subject.name]
    both = [v for v in _variants(subject) if v.keys() <= families[subject.name].arguments.keys()]
    hypers = []
    for hyper in both:
        with contextlib.suppress(ValueError, TypeError):  # our class may refuse it
            cls([torch.zeros(1)], **{**options, **hyper})
            hypers.append(hyper)
    call = f"same_name({subject.name!r}, {subject.expression(options)}, hyper)"
    return f"[{call} for hyper in {subject.expression(hypers)}]"


def _fast(subject: Subject) -> float:
    lr = subject.parameters["lr"].default if "lr" in subject.parameters else None
    # a class with a large default lr makes small steps with it
    return max(0.1, lr) if isinstance(lr, (int, float)) else 0.1


def _tensors(subject: Subject) -> list[str]:
    """Return which of lr and weight_decay may be a tensor with a gradient.

    This is tried in two steps with differentiable=True.
    """
    differentiable = []
    for name in _known(subject, lr=0, weight_decay=0):
        value = torch.tensor(0.05, dtype=torch.float64, requires_grad=True)
        p = torch.ones(2, 2, dtype=torch.float64, requires_grad=True).clone()
        with contextlib.suppress(Exception), quiet(), limited():
            optimizer = subject.construct([p], differentiable=True, **{name: value})
            for _ in range(2):
                p.grad = torch.eye(2, dtype=torch.float64) + 0.5
                optimizer.step()
            p.sum().backward()
            differentiable.append(name)
    return differentiable


VALUES: dict[str, Callable[[Subject], Any]] = {
    "quiet_options": lambda s: _known(s, weight_decay=0.0, lambd=0.0),
    "device": lambda s: "cpu",
    "fast": lambda s: _known(s, lr=_fast(s)),
    "slow": lambda s: _known(s, lr=_fast(s) / 10),
    "variants": _variants,
    "name": lambda s: s.name,
    "tensors": _tensors,
    "comparisons": _comparisons,
}
"""Name of an examination's argument -> function that computes its value for a class."""
EXPRESSIONS = {"comparisons"}
"""The names in VALUES whose functions return an expression instead of a value."""
