"""Optimizers for PyTorch, each one function written as in its paper, and a fair race of them."""

from . import formulas as formulas
from .classes import classes as _classes
from .classes import optimizer
from .definition import Rule, rule, rules

__version__ = "0.1.0"

globals().update(_classes)

__all__ = ["Rule", "optimizer", "rule", "rules", *_classes]
