"""Moved to `steepest.ops`; this name goes with the next release."""

from typing import Any
from warnings import warn

from .. import ops


def __getattr__(name: str) -> Any:
    found = getattr(ops, name)
    if not name.startswith("__"):
        warn("steepest.formulas.words is steepest.ops now", DeprecationWarning, stacklevel=2)
    return found
