"""Finds the class to examine. The target is a class, a rule, or the name of a class or rule."""

from __future__ import annotations

import contextlib
import importlib
import sys
from typing import Any

import torch

from ..classes import class_of, classes
from ..definition import Rule, nearest, rules
from ..errors import BadCall


class TargetError(BadCall):
    """Raised if the target is not an optimizer class or cannot be constructed with the options.

    Also raised for an unknown name of an examination.
    """


def resolve(target: Any) -> tuple[type[torch.optim.Optimizer], str]:
    """Return the class that a target names, and the name of a module.

    For a target "module:Class" the name is that of this module; for any other target it is "".
    """
    module = ""
    if isinstance(target, str) and ":" in target:
        module = target.partition(":")[0]
        target = imported(target)
    elif isinstance(target, str):
        try:
            target = class_of(target)
        except ValueError:
            hint = nearest(target, {*rules, *classes})
            hint = hint if hint.endswith("?") else f"{hint}."
            raise TargetError(
                f"{target!r} is not an optimizer of this package; {hint} For a class of another "
                "package, write module:Class"
            ) from None
    if isinstance(target, Rule):
        target = class_of(target)
    if not is_optimizer(target):
        raise TargetError(
            f"{target!r} is not an optimizer; pass a subclass of torch.optim.Optimizer, a rule's "
            "name, 'module:Class' or 'module:rule'"
        )
    return target, module


def imported(target: str) -> Any:
    """Import the module in "module:Class" and return the object `Class`."""
    module, _, name = target.partition(":")
    if not all(part.isidentifier() for part in module.split(".")):
        raise TargetError(f"{target!r} is not a class; write module:Class, e.g. torch.optim:AdamW")
    try:
        with contextlib.redirect_stdout(sys.stderr):  # stdout is kept for our own output
            loaded = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and f"{module}.".startswith(f"{error.name}."):
            raise TargetError(f"{target}: there is no module {error.name!r}") from None
        raise TargetError(
            f"{target}: importing {module} needs {error.name!r}, which is not installed"
        ) from error
    except Exception as error:
        message = f"{type(error).__name__}: {error}"
        raise TargetError(f"{target}: importing {module} raised {message}") from error
    if not hasattr(loaded, name):
        known = [n for n, v in vars(loaded).items() if is_optimizer(v)]
        raise TargetError(f"{target}: {module} has no {name!r}; {nearest(name, known)}")
    return getattr(loaded, name)


def one_line(error: Exception, with_type: bool = True) -> str:
    """Return the message of an error on one line."""
    message, name = " ".join(str(error).split()), type(error).__name__
    if not message:
        return name
    return f"{name}: {message}" if with_type else message


def is_optimizer(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, torch.optim.Optimizer)


def home_of(cls: type) -> str:
    """Return the shortest module from which the class can be imported; "" if there is none."""
    parts = cls.__module__.split(".")
    for k in range(1, len(parts) + 1):
        module = ".".join(parts[:k])
        if getattr(sys.modules.get(module), cls.__name__, None) is cls and module != "__main__":
            return module
    return ""
