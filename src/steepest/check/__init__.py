"""The doctor: a fixed list of examinations for any torch.optim.Optimizer subclass.

`examine(SomeOptimizer)` returns one finding per examination. If an examination fails, its finding
contains a script that reproduces the failure. `steepest.check.Suite` runs the examinations under
pytest. The command `steepest check` runs them in a terminal.
"""

from typing import TYPE_CHECKING, Any

from .doctor import Finding, examinations, examine
from .examination import Examination
from .passports import passport
from .target import TargetError

if TYPE_CHECKING:
    from .suite import Suite as Suite

__all__ = ["Examination", "Finding", "TargetError", "examinations", "examine", "passport"]


def __getattr__(name: str) -> Any:
    """Import Suite on first use, because only Suite needs pytest."""
    if name == "Suite":
        from .suite import Suite

        return Suite
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
