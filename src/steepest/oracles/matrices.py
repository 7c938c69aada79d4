"""The oracles of the rules in `formulas/matrices.py`."""

from functools import partial
from types import FunctionType
from typing import Any

import torch
from torch import optim

from .foreign import foreign, split
from .table import ASCENT, BETAS, DECAY, SECOND, Params, Row, adapted, also, compare, steepest
from .transcriptions import Soap

compare(
    "adafactor",
    Row("torch", optim.Adafactor, steepest.Adafactor),
    {},
    {"eps": (1e-5, 1e-2), "d": 1.5, "beta2_decay": -0.6, **DECAY},
    {"lr": 0.02, **DECAY, **ASCENT},
)


def _muon(params: Params, adamw_lr: float = 3e-4, **hyper: Any) -> Any:
    """torch's Muon for matrices and torch's AdamW for other parameters.

    One schedule sets the learning rates of both.
    """
    betas, eps = hyper.pop("betas", (0.9, 0.95)), hyper.pop("adamw_eps", 1e-10)
    decay = hyper.get("weight_decay", 0.1)
    return split(
        params,
        lambda matrices: optim.Muon(matrices, **hyper),
        lambda others: optim.AdamW(others, adamw_lr, betas, eps, decay),
    )


FLAT = {"momentum": 0.8, "nesterov": False, "adjust_lr_fn": "match_rms_adamw", **DECAY}
FLAT |= {"ns_coefficients": (3.0, -4.0, 2.0), "ns_steps": 3, "eps": 1e-3}
FAST = {"lr": 0.01, "adamw_lr": 0.01, "betas": (0.8, 0.9), "adamw_eps": 1e-6}
row = Row("torch", _muon, steepest.Muon)
compare("muon", row, {}, {**FLAT, "weight_decay": 0.0}, FLAT, FAST)


class _Float64:
    """Stands in for the module torch: its `float32` is torch.float64."""

    float32 = torch.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def _soap(params: Params, **hyper: Any) -> Any:
    """pytorch-optimizer's SOAP, changed so that refined eigenvectors are not rounded to float32."""
    made = foreign("pytorch_optimizer", "SOAP", foreach=False)(params, **hyper)
    original = type(made).get_orthogonal_matrix_qr
    names = {**original.__globals__, "torch": _Float64()}
    exact = FunctionType(original.__code__, names, argdefs=original.__defaults__)
    made.get_orthogonal_matrix_qr = partial(exact, made)
    return made


OFTEN = {**BETAS, "eps": 1e-3, "precondition_frequency": 3, **DECAY}
row = adapted(_soap, steepest.SOAP)
compare("soap", row, {}, OFTEN, {"lr": 0.03, "weight_decay": 0.0, **ASCENT})
SECOND["soap"] = Row("transcription", Soap, steepest.SOAP)
last = {"lr": 0.03, **DECAY, **ASCENT}
also("soap", {}, OFTEN, last, row=SECOND["soap"], label=SECOND["soap"].source)
