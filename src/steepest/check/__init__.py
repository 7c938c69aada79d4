"""The doctor: a counted list of examinations for any torch.optim.Optimizer subclass.

`examine(SomeOptimizer)` returns one finding per examination, with a reproduction if it fails.
`steepest.check.Suite` runs the examinations as a pytest suite, `steepest check` in a terminal.
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
