"""A fair comparison of optimizers on one task: equal tuning, paired seeds, an honest verdict.

Before a race: `request` and `planning` make the plan; the pure functions of `protocol` turn the
plan into trials. During the race: `driver` runs it; `trials` is what a worker does, `halving` a
tuning and `measured` one run; `store` keeps the results at a `location`; `leases` shares the trials
among processes. After it: `outcomes`, `judging`
and `summary` judge the results (`schema` lists the fields of a summary); `statements`, `verdicts`,
`notes`, `advice` and `results_table` put them into words; `terminal`, `report` and `exports` show
them. `imported` makes a race of runs from a file. The tasks are in
`steepest.tasks`, the training loop is in `steepest.training`, the tests in `steepest.statistics`.
"""

from __future__ import annotations

import importlib
import warnings
from typing import Any

_MOVED = {
    "BadCall": ("steepest.errors", "BadCall"),
    "descriptive": ("steepest.statistics.descriptive", None),
    "looks": ("steepest.statistics.looks", None),
    "pairing": ("steepest.training.pairing", None),
    "profile": ("steepest.profiles", None),
    "statistics": ("steepest.statistics.inference", None),
    "tasks": ("steepest.tasks", None),
    "workers": ("steepest.processes", None),
}
"""Old name -> (its module now, its name there). The next release removes the old names."""


def __getattr__(name: str) -> Any:
    if name not in _MOVED:
        raise AttributeError(f"module 'steepest.race' has no attribute {name!r}")
    module, attribute = _MOVED[name]
    new = f"{module}.{attribute}" if attribute else module
    warnings.warn(
        f"steepest.race.{name} is now {new}: use that; the next release removes the old name",
        DeprecationWarning,
        stacklevel=2,
    )
    value = importlib.import_module(module)
    return getattr(value, attribute) if attribute else value
