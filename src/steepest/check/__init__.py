"""The doctor: a counted list of examinations for any torch.optim.Optimizer subclass.

`examine(SomeOptimizer)` returns a finding per examination, each with a reproduction where it fails;
`steepest.check.suite.Suite` is the same as a pytest suite; `steepest check` the same in a terminal.
"""

from .doctor import Finding, examinations, examine
from .examination import Examination
from .passports import passport
from .subject import TargetError

__all__ = ["Examination", "Finding", "TargetError", "examinations", "examine", "passport"]
