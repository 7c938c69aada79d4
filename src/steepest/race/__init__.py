"""A fair comparison of optimizers on one task: equal tuning, paired seeds, an honest verdict.

Before a race: `request` and `planning` make the plan; the pure functions of `protocol` turn the
plan into trials. During the race: `driver` runs it; `trials` does the work of a worker,
`halving` runs a tuning and `measured` runs one trial; `store` keeps the results at a `location`;
`leases` distributes the trials among processes. After the race: `outcomes`, `judging` and `summary`
judge the results (`schema` lists the fields of a summary); `statements`, `verdicts`, `notes`,
`advice` and `results_table` put the results into words; `terminal`, `report` and `exports` show
them. `imported` makes a race from the runs in a file. The tasks are in `steepest.tasks`, the
training loop is in `steepest.training`, and the tests are in `steepest.statistics`.
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
"""Old name -> (new module, new name; None: the module). The next release removes old names."""


def __getattr__(name: str) -> Any:
    if name not in _MOVED:
        raise AttributeError(f"module 'steepest.race' has no attribute {name!r}")
    module, attribute = _MOVED[name]
    new = f"{module}.{attribute}" if attribute else module
    warnings.warn(
        f"steepest.race.{name} is now {new}: use this name; the next release removes the old one",
        DeprecationWarning,
        stacklevel=2,
    )
    value = importlib.import_module(module)
    return getattr(value, attribute) if attribute else value
