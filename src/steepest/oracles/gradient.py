"""The oracles of the rules in `formulas/gradient.py`."""

from torch import optim

from .table import ASCENT, DECAY, HEAVY, Row, also, compare, fixing, named, steepest
from .transcriptions import ClassicalMomentum, ClassicalNesterov

compare(
    "sgd",
    Row("torch", optim.SGD, steepest.SGD),
    {},
    {"lr": 0.02, **DECAY},
    ASCENT,
    {"lr": 0.01, **DECAY, **ASCENT},
)

compare(
    "momentum",
    Row("torch", optim.SGD, steepest.SGD),
    HEAVY,
    {"momentum": 0.5, "dampening": 0.3, **DECAY},
    {**HEAVY, "dampening": 1.0},
    {**HEAVY, **ASCENT},
    {"lr": 0.01, **HEAVY, **DECAY},
)
also(
    "momentum",
    {},
    {"momentum": 0.7, "dampening": 0.1, **DECAY},
    row=Row("torch", fixing(optim.SGD, momentum=0.9), named("momentum")),
    label="single",
)

compare(
    "nesterov",
    Row("torch", fixing(optim.SGD, nesterov=True), fixing(steepest.SGD, nesterov=True)),
    HEAVY,
    {"momentum": 0.5, **DECAY},
    {**HEAVY, **DECAY, **ASCENT},
)
also(
    "nesterov",
    {},
    {"momentum": 0.7, **DECAY},
    row=Row("torch", fixing(optim.SGD, momentum=0.9, nesterov=True), named("nesterov")),
    label="single",
)

CLASSICAL = (
    {"lr": 0.001, **HEAVY},
    {"lr": 0.01, "momentum": 0.5, **DECAY},
    {"lr": 0.01, **HEAVY, **DECAY, **ASCENT},
)
row = Row("transcription", ClassicalMomentum, steepest.ClassicalMomentum)
compare("classical_momentum", row, *CLASSICAL)
row = Row("transcription", ClassicalNesterov, steepest.ClassicalNesterov)
compare("classical_nesterov", row, *CLASSICAL)

compare(
    "asgd",
    Row("torch", optim.ASGD, steepest.ASGD),
    {},
    {"t0": 20.0, "lambd": 0.01},
    {"t0": 3.0, "alpha": 0.6, **DECAY},
    {"t0": 0.0, "lr": 0.1, **DECAY, **ASCENT},
)
