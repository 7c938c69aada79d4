"""The oracles of the rules in `formulas/scaled.py`."""

from torch import optim

from .table import ASCENT, BETAS, DECAY, HEAVY, SETTINGS, Row, Setting, compare, steepest

compare(
    "rprop",
    Row("torch", optim.Rprop, steepest.Rprop),
    {},
    {"etas": (0.3, 1.5), "step_sizes": (1e-3, 0.1)},
    {"lr": 0.1, **ASCENT},
)

compare(
    "adagrad",
    Row("torch", optim.Adagrad, steepest.Adagrad),
    {},
    {"lr_decay": 0.1, "eps": 1e-3},
    {"initial_accumulator_value": 0.7},
    {"lr": 0.1, "lr_decay": 0.01, "initial_accumulator_value": 0.1, **DECAY, **ASCENT},
)

compare(
    "adadelta",
    Row("torch", optim.Adadelta, steepest.Adadelta),
    {},
    {"rho": 0.95, "eps": 1e-3, **DECAY},
    {"lr": 0.5, **DECAY, **ASCENT},
)

compare(
    "rmsprop",
    Row("torch", optim.RMSprop, steepest.RMSprop),
    {},
    DECAY,
    {"centered": True},
    {**HEAVY, **DECAY},
    {"alpha": 0.9, "eps": 1e-3, "centered": True, **HEAVY, **DECAY, **ASCENT},
)
CANCELLING = Setting(
    "rmsprop",
    {"alpha": 0.5, "centered": True, "momentum": 0.5, "weight_decay": 0.03, "maximize": True},
    scheduled=True,
    bound=6e-8,
    why="where weight decay is the only gradient, the variance v - a * a loses most digits, and "
    "torch's own deviation is 2.7e-8 (test_cancellation)",
)
SETTINGS.append(CANCELLING)

compare(
    "adamax",
    Row("torch", optim.Adamax, steepest.Adamax),
    {},
    {**BETAS, "eps": 1e-3, **DECAY},
    {"lr": 0.01, **DECAY, **ASCENT},
)
