"""The requirements of examinations.

Each requirement is a function. It returns None if a class meets the requirement, else the reason
why the class does not meet it. Functions such as `argument(...)` return such a function.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
from collections.abc import Callable
from typing import Any

import torch

from ..classes import classes
from ..oracles import PACKAGES
from ..oracles.trajectories import settings_of
from .guards import limited, quiet
from .subject import Subject


def dense(subject: Subject) -> str | None:
    """Requires that the class takes dense gradients."""
    if subject.sparse_only:
        return f"it takes only sparse gradients: {subject.complaint()}"
    return None


def plain(subject: Subject) -> str | None:
    """Requires that the class steps without a closure, on dense gradients."""
    return "its step() needs a closure" if subject.closure_needed else dense(subject)


def excused(subject: Subject, requirement: str) -> str | None:
    """Return why the class's rule need not meet a requirement.

    Returns None if the rule gives no reason.
    """
    cls = classes.get(subject.name)
    rules = cls.family.members if cls else ()
    return next((r.excused[requirement] for r in rules if requirement in r.excused), None)


def beyond_signs(subject: Subject) -> str | None:
    """Requires a formula that uses more of the gradient than its sign."""
    return excused(subject, "beyond_signs")


def separate(subject: Subject) -> str | None:
    """Requires that the step of a parameter does not depend on the other parameters."""
    cls = classes.get(subject.name)
    if cls and cls.family.members[0].trace().spans:
        return f"{subject.name} computes one rate from the parameters of all groups"
    return None


def coarse(subject: Subject) -> str | None:
    """Requires that the first steps are larger than the rounding errors of 16-bit numbers."""
    return excused(subject, "coarse")


def at_rest(subject: Subject) -> str | None:
    """Requires that the step is zero where the gradient is zero."""
    return excused(subject, "at_rest")


def sparse_taken(subject: Subject) -> str | None:
    """Requires that the class takes sparse gradients."""
    if subject.closure_needed:
        return "its step() needs a closure"
    complaint = subject.complaint(sparse=True)
    return f"it refuses sparse gradients: {complaint}" if complaint else None


def scheduled(subject: Subject) -> str | None:
    """Requires that the class has an argument lr and reads lr at every step."""
    return excused(subject, "scheduled") or argument("lr")(subject)


def argument(*names: str) -> Callable[[Subject], str | None]:
    """Requires that the constructor has these arguments."""

    def need(subject: Subject) -> str | None:
        missing = [n for n in names if n not in subject.parameters]
        return f"it has no argument {', '.join(missing)}" if missing else None

    return need


def descending(subject: Subject) -> str | None:
    """Requires that the class minimizes."""
    return "with maximize=True it maximizes" if subject.options.get("maximize") else None


def lr_tensor_taken(subject: Subject) -> str | None:
    """Requires an argument lr that may be a tensor.

    With foreach=True, some of torch's classes refuse a tensor as lr.
    """
    if missing := argument("lr")(subject):
        return missing
    if subject.ours or not subject.options.get("foreach"):
        return None
    try:
        with quiet():
            subject.construct([torch.nn.Parameter(torch.ones(2, 2))], lr=torch.tensor(0.1))
    except ValueError as error:
        return f"with foreach=True it refuses a tensor as lr: {error}"
    return None


def _form(value: Any) -> int:
    """Return the form of a value.

    The form is the length of a tuple or list, 0 for a number, and -1 for anything else.
    """
    if isinstance(value, (tuple, list)):
        return len(value)
    return 0 if isinstance(value, (int, float)) and not isinstance(value, bool) else -1


def grouped(name: str, *values: Any) -> Callable[[Subject], str | None]:
    """Requires that the argument `name` accepts these values.

    The current value of the argument must have the same form as these values.
    """

    def need(subject: Subject) -> str | None:
        if missing := argument(name)(subject):
            return missing
        now = subject.options.get(name, subject.parameters[name].default)
        if _form(now) != _form(values[0]):
            return f"its {name} is {now!r}; the examination needs a value like {values[0]}"
        for value in values:
            try:
                with quiet():
                    subject.construct([torch.nn.Parameter(torch.ones(2, 2))], **{name: value})
            except Exception as error:
                return f"it refuses {name}={value}: {' '.join(str(error).split())}"
        return None

    return need


def number(name: str) -> Callable[[Subject], str | None]:
    """Requires an argument `name` whose value is a number."""

    def need(subject: Subject) -> str | None:
        if missing := argument(name)(subject):
            return missing
        value = subject.options.get(name, subject.parameters[name].default)
        if isinstance(value, (int, float)):
            return None
        return f"its {name} is {value!r}; the examination needs a number"

    return need


def shape(*sizes: int) -> Callable[[Subject], str | None]:
    """Requires that the class accepts parameters of this shape."""

    def need(subject: Subject) -> str | None:
        p = torch.nn.Parameter(torch.ones(sizes))
        try:
            with quiet():
                subject.construct([p])
        except Exception as error:
            return f"it refuses parameters of shape {sizes}: {' '.join(str(error).split())}"
        return None

    return need


def elementwise(subject: Subject) -> str | None:
    """Requires that the step of an element depends only on the gradient of this element."""
    return None if subject.elementwise else "an element's step depends on other elements"


def known(subject: Subject) -> str | None:
    """Requires an independent implementation of the class's formula."""
    if not subject.ours:
        if subject.name not in classes:
            return f"steepest has no class {subject.name} to compare it with"
        try:
            with quiet():
                subject.construct(
                    [torch.nn.Parameter(torch.ones(2, 2)[:k].squeeze()) for k in (1, 2)]
                )
        except Exception as error:
            return f"it does not take both a matrix and a vector: {error}"
        return None
    settings = settings_of(subject.cls)
    if not settings:
        return f"steepest.oracles has no oracle (independent implementation) for {subject.name}"
    for module in dict.fromkeys(s.made_by.module for s in settings):
        if importlib.util.find_spec(module) is None:
            return f"its oracle is not installed; run pip install {PACKAGES[module]}"
    return None


def own_backend(subject: Subject) -> str | None:
    """Requires a class of this package, because only these classes have an argument backend."""
    return None if subject.ours else "it has no argument backend"


def taken(**options: Any) -> Callable[[Subject], str | None]:
    """Requires that the constructor has these arguments.

    The class must also make a step on the CPU with these values of the arguments.
    """

    def need(subject: Subject) -> str | None:
        if (missing := argument(*options)(subject)) or subject.ours:
            return missing or f"{', '.join(options)} has no effect in this class"
        try:
            p = torch.nn.Parameter(torch.ones(2, 2))
            p.grad = torch.ones(2, 2)
            with quiet(), limited():
                subject.construct([p], **options).step()
        except Exception as error:
            message = " ".join(str(error).split()) or type(error).__name__
            return f"it refuses {', '.join(options)} on the CPU: {message}"
        return None

    return need


def halves(subject: Subject) -> str | None:
    """Requires that a step in float16 raises no error that names float16."""
    complaint = subject.complaint(torch.float16)
    return f"it refuses float16: {complaint}" if "float16" in complaint else None


def differentiated(subject: Subject) -> str | None:
    """Requires that the class accepts differentiable=True together with the subject's options."""
    if missing := argument("differentiable")(subject):
        return missing
    if subject.options.get("foreach") and not subject.ours:
        return "autograd cannot differentiate a step with foreach=True"
    try:
        with quiet():
            subject.construct([torch.ones(2, 2)], differentiable=True)
    except (ValueError, RuntimeError) as error:
        return f"it refuses differentiable=True: {error}"
    return None


def capturable(subject: Subject) -> str | None:
    """Requires an argument capturable, and an accelerator.

    An accelerator is required because torch does not allow capturable on the CPU.
    """
    if missing := argument("capturable")(subject):
        return missing
    return "capturable has no effect in this class" if subject.ours else accelerator(subject)


def accelerator(subject: Subject) -> str | None:
    """Requires a device besides the CPU."""
    if torch.accelerator.is_available():
        return None
    return "torch finds no accelerator on this machine"


def fork(subject: Subject) -> str | None:
    """Requires a platform that can fork."""
    if "fork" in multiprocessing.get_all_start_methods():
        return None
    return "this platform cannot fork"
