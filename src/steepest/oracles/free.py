"""The oracles of the rules in `formulas/free.py`."""

from typing import Any

from .foreign import foreign
from .table import ASCENT, BETAS, DECAY, Maker, Params, Row, also, compare, optax, steepest


def _free(name: str) -> Maker:
    """Returns a maker of schedulefree's class, in train mode."""

    def oracle(params: Params, **hyper: Any) -> Any:
        made = foreign("schedulefree", f"{name}ScheduleFree")(params, **hyper)
        made.train()
        return made

    return oracle


WARM = {"lr": 0.01, "warmup_steps": 20, "r": 1.0, "weight_lr_power": 1.0}

options = {"lr": 1.0, "names": {"momentum": "b1"}}
compare(
    "schedule_free_sgd",
    Row("package", _free("SGD"), steepest.SGDScheduleFree, "schedulefree"),
    {"lr": 0.01},
    {"lr": 0.1, "momentum": 0.5, **DECAY},
    {"lr": 0.02, **DECAY, **ASCENT},
    second=optax("contrib.schedule_free_sgd", steepest.SGDScheduleFree, {"z": "z"}, **options),
)
also("schedule_free_sgd", WARM, {**WARM, **DECAY, **ASCENT})

keys = {"z": "z", "exp_avg_sq": "nu"}
compare(
    "schedule_free_adamw",
    Row("package", _free("AdamW"), steepest.AdamWScheduleFree, "schedulefree"),
    {},
    {**BETAS, "eps": 1e-3, **DECAY},
    {"lr": 0.01, **DECAY, **ASCENT},
    second=optax("contrib.schedule_free_adamw", steepest.AdamWScheduleFree, keys, lr=2.5e-3),
)
also("schedule_free_adamw", WARM, {**WARM, **DECAY, **ASCENT})
