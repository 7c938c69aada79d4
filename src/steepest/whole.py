"""The old name of `steepest.full_batch`. The next release will not have this name.

Objects that were pickled under the old module names can still be loaded, because each old name
refers to the new module.
"""

import sys
from importlib import import_module
from typing import Any
from warnings import warn

from . import full_batch

for _name in (
    "closures", "curvature", "evolution", "linear", "members", "quasi", "residuals", "searches",
):  # fmt: skip
    sys.modules[f"{__name__}.{_name}"] = import_module(f"{full_batch.__name__}.{_name}")


def __getattr__(name: str) -> Any:
    if name == "__path__":  # with a __path__, Python would load each module a second time
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(full_batch, name)
    if not name.startswith("__"):
        warn("steepest.whole is steepest.full_batch now", DeprecationWarning, stacklevel=2)
    return value
