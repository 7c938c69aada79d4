"""The functions of this module are now in `phrases`, `verdicts`, `notes` and `results_table`.

The next release removes this module."""

from __future__ import annotations

from typing import Any
from warnings import warn

from steepest.race import notes, phrases, results_table, verdicts


def __getattr__(name: str) -> Any:
    # in the order of their imports: a module comes before the modules that import its names
    for module in (phrases, verdicts, notes, results_table):
        if not name.startswith("_") and name in vars(module):
            new = f"{module.__name__}.{name}"
            warn(f"steepest.race.wording.{name} is now {new}", DeprecationWarning, stacklevel=2)
            return getattr(module, name)
    raise AttributeError(f"module 'steepest.race.wording' has no attribute {name!r}")
