"""The oracles of the rules in `formulas/signs.py`."""

from .foreign import foreign
from .table import ASCENT, BETAS, DECAY, Row, compare, optax, pytorch_optimizer, steepest

options = {"decay": "decoupled", "lr": 1e-4, "names": {"momentum": "beta"}}
compare(
    "signum",
    optax("signum", steepest.Signum, {"momentum_buffer": "ema"}, **options),
    {},
    {"momentum": 0.5, **DECAY},
    {"lr": 0.001, **DECAY, **ASCENT},
    second=pytorch_optimizer("SignSGD", steepest.Signum, lr=1e-4),
)

compare(
    "lion",
    optax("lion", steepest.Lion, {"exp_avg": "mu"}, lr=1e-4, weight_decay=0.0),
    {},
    {**BETAS, **DECAY},
    {"lr": 0.001, **DECAY, **ASCENT},
    second=pytorch_optimizer("Lion", steepest.Lion),
)

compare(
    "grams",
    Row("package", foreign("grams", "Grams"), steepest.Grams, "grams"),
    {},
    {**BETAS, "eps": 1e-3, **DECAY},
    {"lr": 0.01, **DECAY, **ASCENT},
)
