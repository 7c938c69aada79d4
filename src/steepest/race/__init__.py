"""A fair comparison of optimizers on one task: equal tuning, paired seeds, an honest verdict.

Before: `request` and `planning` make a plan, `protocol` makes trials of it (pure functions).
During: `driver` runs the race, `trials` one training; `store` keeps the results at a `location`,
`leases` shares the trials among processes. After: `outcomes`, `statistics` and `summary` judge
(`schema` has the fields of a summary), `verdicts`, `notes` and `results_table` put it in words,
`terminal` and `report` show it. What is trained is in `steepest.tasks`, and how in
`steepest.training`.
"""

from __future__ import annotations

import importlib
import warnings
from typing import Any

_MOVED = {
    "BadCall": ("steepest.errors", "BadCall"),
    "tasks": ("steepest.tasks", None),
    "workers": ("steepest.processes", None),
}
"""Old name -> the module where it is now, and its name there; goes with the next release."""


def __getattr__(name: str) -> Any:
    if name not in _MOVED:
        raise AttributeError(f"module 'steepest.race' has no attribute {name!r}")
    module, attribute = _MOVED[name]
    new = f"{module}.{attribute}" if attribute else module
    warnings.warn(
        f"steepest.race.{name} is now {new}; the old name goes with the next release",
        DeprecationWarning,
        stacklevel=2,
    )
    value = importlib.import_module(module)
    return getattr(value, attribute) if attribute else value
