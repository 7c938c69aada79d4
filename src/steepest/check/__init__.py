"""The doctor: a counted list of examinations for any torch.optim.Optimizer subclass.

`examine(SomeOptimizer)` returns a finding per examination, each with a reproduction where it fails;
`steepest.check.Suite` is the same as a pytest suite; `steepest check` the same in a terminal.
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
    """Suite, imported when it is asked for: it alone needs pytest."""
    if name == "Suite":
        from .suite import Suite

        return Suite
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
