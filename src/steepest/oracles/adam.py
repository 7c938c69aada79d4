"""The oracles of the rules in `formulas/adam.py`."""

from typing import Any

from torch import optim

from .foreign import foreign, sparse_adam
from .table import (
    ASCENT,
    BETAS,
    DECAY,
    MOMENTS,
    Params,
    Row,
    adapted,
    also,
    compare,
    fixing,
    named,
    optax,
    steepest,
    zeros,
)
from .transcriptions import EAdam

compare(
    "adam",
    Row("torch", optim.Adam, steepest.Adam),
    {},
    {**BETAS, "eps": 1e-3},
    DECAY,
    {"betas": (0.0, 0.99), **DECAY, **ASCENT},
    {"decoupled_weight_decay": True, "lr": 0.01, **DECAY},
)

compare(
    "adamw",
    Row("torch", optim.AdamW, steepest.AdamW),
    {},
    {**BETAS, "weight_decay": 0.0},
    {"lr": 0.01, **DECAY, **ASCENT},
)

compare(
    "amsgrad",
    Row("torch", fixing(optim.Adam, amsgrad=True), fixing(steepest.Adam, amsgrad=True)),
    {},
    {**BETAS, "eps": 1e-3, **DECAY},
    {"lr": 0.01, **DECAY, **ASCENT},
)
row = Row("torch", fixing(optim.Adam, amsgrad=True), named("amsgrad"))
also("amsgrad", {}, {"betas": (0.8, 0.95), **DECAY}, row=row, label="single")
# torch's AdamW(amsgrad=True): the same rule with decoupled decay
row = Row("torch", optim.AdamW, steepest.AdamW)
also("amsgrad", {"amsgrad": True, "lr": 0.01, **DECAY}, row=row)

compare(
    "sparse_adam",
    Row("torch", sparse_adam, steepest.SparseAdam),
    {},
    {**BETAS, "eps": 1e-3},
    {"lr": 0.01, **BETAS, **ASCENT},
)

compare(
    "nadam",
    Row("torch", optim.NAdam, steepest.NAdam),
    {},
    {**BETAS, "momentum_decay": 0.1, "eps": 1e-3, **DECAY},
    {"decoupled_weight_decay": True, "lr": 0.01, **DECAY, **ASCENT},
)

compare(
    "radam",
    Row("torch", optim.RAdam, steepest.RAdam),
    {},
    {**BETAS, "eps": 1e-3, **DECAY},
    {"betas": (0.9, 0.99), **DECAY},
    {"betas": (0.9, 0.5)},  # rho_inf is 3: never rectified
    {"decoupled_weight_decay": True, "lr": 0.01, **DECAY, **ASCENT},
)

DEFAULT = {"betas": (0.9, 0.999), "eps": 1e-8, "lr": 1e-3}  # the transcription has no defaults
compare(
    "eadam",
    Row("transcription", EAdam, steepest.EAdam),
    DEFAULT,
    {**DEFAULT, **BETAS, "eps": 1e-3, **DECAY},
    {**DEFAULT, "lr": 0.01, **DECAY, **ASCENT},
)


def _yogi(params: Params, **hyper: Any) -> Any:
    """pytorch-optimizer's Yogi, with the first moment started at 0."""
    made = foreign("pytorch_optimizer", "Yogi", foreach=False)(params, **hyper)
    for p, zero in zip(params, zeros(params), strict=True):
        made.state[p] = {"exp_avg": zero, "exp_avg_sq": zero + made.defaults["initial_accumulator"]}
    return made


compare(
    "yogi",
    optax("yogi", steepest.Yogi, MOMENTS, decay="decoupled", zeroed="mu", lr=0.01),
    {},
    {**BETAS, "eps": 1e-2, **DECAY},
    {"lr": 0.001, **DECAY, **ASCENT},
    second=adapted(_yogi, steepest.Yogi),
)
