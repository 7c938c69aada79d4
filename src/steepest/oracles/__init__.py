"""The oracle of every rule, and the settings in which rule and oracle are compared.

An oracle is an independent implementation of the same optimizer. Each file of `formulas/` has a
file of the same name here, which calls `compare(...)` once for each rule.
"""

from . import adam, belief, bound, free, gradient, matrices, momenta, norms, signs  # noqa: F401
from .scaled import CANCELLING
from .table import LIMIT, ORACLES, PACKAGES, SECOND, SETTINGS, Maker, Row, Setting, fixing

__all__ = [
    "CANCELLING",
    "LIMIT",
    "ORACLES",
    "PACKAGES",
    "PRECISE",
    "SECOND",
    "SETTINGS",
    "Maker",
    "Row",
    "Setting",
    "fixing",
]


def _first_and_last(rule: str) -> tuple[Setting, Setting]:
    own = [s for s in SETTINGS if s.rule == rule and s is not CANCELLING]
    return own[0], own[-1]


# run in float32: only two settings of each rule, since each setting compiles a loop
PRECISE = tuple(dict.fromkeys(s for rule in ORACLES for s in _first_and_last(rule)))
