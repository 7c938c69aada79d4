"""The oracles of the rules in `formulas/norms.py`."""

from functools import partial
from typing import Any

from .foreign import as_rows, foreign
from .table import (
    ASCENT,
    BETAS,
    DECAY,
    MOMENTS,
    ORACLES,
    SECOND,
    SETTINGS,
    Params,
    Row,
    Setting,
    adapted,
    compare,
    optax,
    pytorch_optimizer,
    steepest,
)
from .transcriptions import Swats, YellowFin

compare(
    "fromage",
    pytorch_optimizer("Fromage", steepest.Fromage, shrink=True, p_bound=None),
    {},
    {"lr": 0.1, **DECAY},
    {"lr": 0.03, **ASCENT},
)

compare(
    "lars",
    optax("lars", steepest.LARS, {}, lr=1.0),
    {},
    {"lr": 0.1, "momentum": 0.5},
    {"trust_coefficient": 0.02, **ASCENT},
)
# with weight decay, optax takes another norm; pytorch-optimizer applies lr elsewhere, so lr is 1
_lars = as_rows(foreign("pytorch_optimizer", "LARS", foreach=False, lr=1.0))
SECOND["lars"] = adapted(_lars, steepest.LARS)
for hyper in (DECAY, {"momentum": 0.5, "trust_coefficient": 0.02, **DECAY}):
    SETTINGS.append(Setting("lars", hyper, row=SECOND["lars"], label=SECOND["lars"].source))

compare(
    "lamb",
    optax("lamb", steepest.LAMB, MOMENTS),
    {},
    {**BETAS, "eps": 1e-3, **DECAY},
    {"lr": 0.01, **DECAY, **ASCENT},
)

options = {"lr": 1e-2, "betas": (0.95, 0.98), "weight_decouple": False}
compare(
    "novograd",
    pytorch_optimizer("NovoGrad", steepest.NovoGrad, **options),
    {},
    {**BETAS, "eps": 1e-3, **DECAY},
    {"lr": 0.03, **DECAY, **ASCENT},
)


def _prodigy(params: Params, **hyper: Any) -> Any:
    return foreign("prodigyopt", "Prodigy")(params, **hyper)


ORACLES["prodigy"] = Row("package", _prodigy, steepest.Prodigy, "prodigyopt")
SETTINGS.append(Setting("prodigy", {}))
WHY = (
    "the first d is computed from p0 - p, which is as small as d0, and the last bit of p is 1e-10 "
    "of p0 - p (test_a_last_bit_of_the_parameter_moves_prodigy)"
)
for hyper in ({**BETAS, "d0": 1e-4, **DECAY}, {"d_coef": 0.5, **DECAY, **ASCENT}):
    SETTINGS.append(Setting("prodigy", hyper, "maximize" in hyper, bound=1e-10, why=WHY))


def _mars(params: Params, weight_decay: float = 0.0, **hyper: Any) -> Any:
    """pytorch-optimizer's MARS, set to treat vectors like matrices and not to add 1e-15 to v."""
    both = {"weight_decay": weight_decay, "weight_decay_1d": weight_decay}
    made = foreign("pytorch_optimizer", "MARS", foreach=False, optimize_1d=True, **both)
    optimizer = made(params, weight_decouple=True, **hyper)
    optimizer.apply_ams_bound = partial(optimizer.apply_ams_bound, exp_avg_sq_eps=0.0)
    return optimizer


TINY = {"eps": 1e-30}  # the oracle adds eps before v's correction, the paper after it
compare(
    "mars",
    adapted(_mars, steepest.MARS),
    TINY,
    {**BETAS, **TINY, "gamma": 0.1, **DECAY},
    {**TINY, "lr": 0.01, **DECAY, **ASCENT},
)

SETTLED = {"settled": 0.05, "lr": 0.01}
compare(
    "swats",
    Row("transcription", Swats, steepest.SWATS),
    {},
    {**BETAS, "eps": 1e-3, **SETTLED, **DECAY},
    {**SETTLED, **ASCENT},
)

compare(
    "yellowfin",
    Row("transcription", YellowFin, steepest.YellowFin),
    {},
    {"beta": 0.9, **DECAY},
    {"lr": 0.3, **ASCENT},
)
