"""Moved to `steepest.ops`; the next release will not have this name."""

from typing import Any
from warnings import warn

from .. import ops


def __getattr__(name: str) -> Any:
    found = getattr(ops, name)
    if not name.startswith("__"):
        warn("steepest.formulas.words is steepest.ops now", DeprecationWarning, stacklevel=2)
    return found
