"""Moved to `steepest.ops`; this module will be removed in the next release."""

from typing import Any
from warnings import warn

from .. import ops


def __getattr__(name: str) -> Any:
    found = getattr(ops, name)
    if not name.startswith("__"):
        warn("use steepest.ops, not steepest.formulas.words", DeprecationWarning, stacklevel=2)
    return found
