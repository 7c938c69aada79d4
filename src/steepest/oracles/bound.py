"""The oracles of the rules in `formulas/bound.py`."""

from .foreign import foreign
from .table import ASCENT, BETAS, DECAY, Row, also, compare, fixing, named, steepest

_bound = foreign("adabound", "AdaBound")
_ams_bound = fixing(_bound, amsbound=True)
BOUNDED = {"final_lr": 1e-3, "gamma": 0.05}  # both bounds are reached within 100 steps

compare(
    "adabound",
    Row("package", _bound, steepest.AdaBound, "adabound"),
    {},
    {**BOUNDED, **BETAS, **DECAY},
    {**BOUNDED, **ASCENT},
    {**BOUNDED, "lr": 0.01, **DECAY},
)

compare(
    "amsbound",
    Row("package", _ams_bound, fixing(steepest.AdaBound, amsbound=True), "adabound"),
    {},
    {**BOUNDED, **BETAS, **DECAY},
    {**BOUNDED, "lr": 0.01, **DECAY, **ASCENT},
)
row = Row("package", _ams_bound, named("amsbound"), "adabound")
also("amsbound", {}, {**BOUNDED, "betas": (0.8, 0.95), **DECAY}, row=row, label="single")
