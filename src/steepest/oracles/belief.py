"""The oracles of the rules in `formulas/belief.py`."""

from .foreign import foreign
from .table import ASCENT, DECAY, Row, compare, steepest

_belief = foreign("adabelief_pytorch", "AdaBelief", print_change_log=False)

compare(
    "adabelief",
    Row("package", _belief, steepest.AdaBelief, "adabelief_pytorch"),
    {},
    {"betas": (0.5, 0.9), "eps": 1e-8},
    {"rectify": False, "eps": 1e-8},
    {"rectify": False, "weight_decouple": False, **DECAY},
    {"betas": (0.9, 0.5)},
    {"degenerated_to_sgd": False, **DECAY},
    {"fixed_decay": True, "weight_decay": 1e-3},
    {"weight_decouple": False, **DECAY},
    {"rectify": False, **DECAY},
    {"rectify": False, "amsgrad": True, **DECAY},
    {"amsgrad": True, **DECAY},
    {"rectify": False, "amsgrad": True, "fixed_decay": True, "weight_decay": 1e-3},
    {"rectify": False, "degenerated_to_sgd": False},
    {"degenerated_to_sgd": False, "amsgrad": True, "weight_decouple": False, **DECAY},
    {"rectify": False, "weight_decouple": False, "amsgrad": True, **DECAY, **ASCENT},
    {"rectify": False, "lr": 0.01, **DECAY, **ASCENT},
    {"lr": 0.01, **DECAY},
)
