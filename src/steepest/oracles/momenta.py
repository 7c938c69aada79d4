"""The oracles of the rules in `formulas/momenta.py`."""

from typing import Any

from .foreign import foreign, with_decay, with_first_decay
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
    optax,
    steepest,
)


def _msvag(params: Params, **hyper: Any) -> Any:
    """pytorch-optimizer's MSVAG, with rho at the first step set to 0.5.

    With its own rho, it would divide the first variance, which is only rounding error, by 1e-4.
    """
    made = foreign("pytorch_optimizer", "MSVAG", foreach=False)(params, **hyper)
    rho = made.get_rho
    made.get_rho = lambda power, beta: 0.5 if power == beta else rho(power, beta)
    return made


compare(
    "msvag",
    adapted(with_decay(_msvag), steepest.MSVAG),
    {},
    {"beta": 0.5, **DECAY},
    {"lr": 0.1, **DECAY, **ASCENT},
)


def _adopt(params: Params, clip: bool = True, **hyper: Any) -> Any:
    """torch-adopt's ADOPT, with decoupled weight decay from the first step on."""
    made = foreign("adopt", "ADOPT", **({} if clip else {"clip_lambda": None}))
    return (with_first_decay(made) if hyper.get("decouple") else made)(params, **hyper)


clips = {"decay": "coupled", "names": {"clip": "use_clipping"}}
compare(
    "adopt",
    Row("package", _adopt, steepest.ADOPT, "adopt"),
    {},
    {**BETAS, "eps": 1e-3, **DECAY},
    {"clip": False, **DECAY},
    {"lr": 0.01, "betas": (0.9, 0.99), **DECAY, **ASCENT},
    second=optax("contrib.adopt", steepest.ADOPT, MOMENTS, **clips),
)
also("adopt", {"decouple": True, **DECAY}, {"decouple": True, "lr": 0.01, **DECAY})


def _adan(params: Params, no_prox: bool = False, **hyper: Any) -> Any:
    return foreign("pytorch_optimizer", "Adan", foreach=False, weight_decouple=no_prox)(
        params, **hyper
    )


compare(
    "adan",
    adapted(_adan, steepest.Adan),
    {},
    {"betas": (0.9, 0.5, 0.95), "eps": 1e-3, **DECAY},
    {"no_prox": True, **DECAY},
    {"lr": 0.01, **DECAY, **ASCENT},
)


def _ademamix(
    params: Params, alpha_warmup: float = 0, beta3_warmup: float = 0, **hyper: Any
) -> Any:
    assert alpha_warmup == beta3_warmup, "pytorch-optimizer has one option for both warm-ups"
    more = {"alpha": 2.0, "weight_decouple": True, "t_alpha_beta3": alpha_warmup or None}
    return foreign("pytorch_optimizer", "AdEMAMix", foreach=False, **more)(params, **hyper)


SLOW = {"betas": (0.8, 0.95, 0.99)}
keys = {"exp_avg": "m1", "exp_avg_slow": "m2", "exp_avg_sq": "nu"}
other = adapted(_ademamix, steepest.AdEMAMix)
compare(
    "ademamix",
    optax("contrib.ademamix", steepest.AdEMAMix, keys, alpha=2.0),
    {},
    {**SLOW, "eps": 1e-3, "alpha": 5.0, **DECAY},
    {**SLOW, **DECAY, **ASCENT},
    second=other,
)
also(
    "ademamix",
    {"alpha_warmup": 40.0, "beta3_warmup": 40.0},
    {"alpha_warmup": 150.0, "beta3_warmup": 150.0, "betas": (0.5, 0.9, 0.999), **DECAY},
    row=other,
    label=other.source,
)
also("ademamix", {**SLOW, "lr": 0.01, **DECAY, **ASCENT})
