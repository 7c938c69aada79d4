"""Optimizers for PyTorch, each a function written as in its paper, and fair races between them."""

import importlib as _importlib
import typing as _typing

from torch.optim import LBFGS

from . import formulas as formulas
from .classes import classes as _classes
from .classes import optimizer
from .conversion import convert
from .definition import Rule, rule, rules
from .groups import param_groups
from .shell import RuleOptimizer
from .wrappers import SAM, Lookahead

__version__ = "0.1.0"
_ROOMS = ("check", "full_batch", "oracles", "race", "schedules", "strategies")
"""Submodules that are imported when they are first asked for."""

globals().update(_classes)  # one class per family of rules; __init__.pyi has their signatures

__all__ = [
    "LBFGS",
    "SAM",
    "Lookahead",
    "Rule",
    "RuleOptimizer",
    "convert",
    "optimizer",
    "param_groups",
    "rule",
    "rules",
    *_classes,
]


def __getattr__(name: str) -> _typing.Any:
    if name in (*_ROOMS, "whole"):  # whole: the old name of full_batch, not in dir()
        return _importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_ROOMS})
