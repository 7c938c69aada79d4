"""Optimizers for PyTorch, each one function written as in its paper, and a fair race of them."""

import typing as _typing

from torch.optim import LBFGS

from . import formulas as formulas
from .classes import classes as _classes
from .classes import optimizer
from .conversion import convert
from .definition import Rule, rule, rules
from .groups import param_groups
from .wrappers import SAM, Lookahead

__version__ = "0.1.0"

globals().update(_classes)
if _typing.TYPE_CHECKING:  # a class per family of rules: type checkers do not run the line above
    from .shell import RuleOptimizer

    def __getattr__(name: str) -> type[RuleOptimizer]: ...


__all__ = [
    "LBFGS", "SAM", "Lookahead", "Rule", "convert", "optimizer", "param_groups", "rule", "rules",
    *_classes,
]  # fmt: skip
