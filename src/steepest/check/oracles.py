"""The independent oracle of every rule.

A rule is compared with torch.optim ("torch"), with the package of the method's authors ("package"),
with optax ("optax"), with pytorch-optimizer ("pytorch-optimizer"), or, where none of these has it,
with its paper's formula written out in `transcriptions.py` ("transcription"). The settings in which
the two are compared stand in `settings.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from types import FunctionType, SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, optim

from ..classes import classes, optimizer
from .foreign import Optax, as_rows, early, foreign, shrinking, sparse_adam, split
from .transcriptions import ClassicalMomentum, ClassicalNesterov, EAdam, Soap, Swats, YellowFin

Params = Sequence[Tensor]
Maker = Callable[..., Any]
PACKAGES = {
    "adabelief_pytorch": "adabelief-pytorch==0.2.1",
    "adabound": "adabound==0.0.5",
    "adopt": "torch-adopt==0.1.0",
    "grams": "grams-pytorch==0.0.2",
    "schedulefree": "schedulefree==1.4.1",
    "prodigyopt": "prodigyopt==1.1.2",
    "optax": "optax==0.2.8",
    "pytorch_optimizer": "pytorch-optimizer==4.1.0",
}
"""Modules of the foreign packages, and what pip calls them; imported when they are used."""


# the table


class Row(NamedTuple):
    """kind: what the oracle is; oracle, ours: makers of an optimizer, given params and hyper.

    module: the package that the oracle is imported from.
    """

    kind: str
    oracle: Maker
    ours: Maker
    module: str = "torch"

    @property
    def described(self) -> str:
        """What the oracle is, in words."""
        if self.module in PACKAGES:
            return PACKAGES[self.module]
        if self.kind == "reference":
            return f"steepest's reference {self.oracle.__name__}"
        return {"torch": "torch.optim", "transcription": "the paper's formula, transcribed"}[
            self.kind
        ]


def _named(rule: str) -> Maker:
    return lambda params, **hyper: optimizer(rule, params, **hyper)


def fixing(maker: Maker, **fixed: Any) -> Maker:
    """The maker with some options given."""

    def make(params: Params, **hyper: Any) -> Any:
        return maker(params, **{**fixed, **hyper})

    make.__name__ = maker.__name__
    return make


steepest = SimpleNamespace(**classes)
_belief = foreign("adabelief_pytorch", "AdaBelief", print_change_log=False)
_bound = foreign("adabound", "AdaBound")
_ams_bound = fixing(_bound, amsbound=True)
MOMENTS = {"exp_avg": "mu", "exp_avg_sq": "nu"}


def _optax(name: str, ours: Maker, keys: dict[str, str], **about: Any) -> Row:
    def oracle(params: Params, **hyper: Any) -> Any:
        return Optax(params, name, keys, **{**about, **hyper})

    return Row("optax", oracle, ours, "optax")


def _second(name: str, ours: Maker, shrink: bool = False, **fixed: Any) -> Row:
    """Of pytorch-optimizer, one tensor at a time; shrink: it has no weight decay."""
    oracle = foreign("pytorch_optimizer", name, foreach=False, **fixed)
    return Row(
        "pytorch-optimizer", shrinking(oracle) if shrink else oracle, ours, "pytorch_optimizer"
    )


def _adopt(params: Params, clip: bool = True, **hyper: Any) -> Any:
    """Of torch-adopt, whose decoupled decay waits for the second step."""
    made = foreign("adopt", "ADOPT", **({} if clip else {"clip_lambda": None}))
    return (early(made) if hyper.get("decouple") else made)(params, **hyper)


def _free(name: str) -> Maker:
    """Of schedulefree, in training."""

    def oracle(params: Params, **hyper: Any) -> Any:
        made = foreign("schedulefree", f"{name}ScheduleFree")(params, **hyper)
        made.train()
        return made

    return oracle


def _yogi(params: Params, **hyper: Any) -> Any:
    """Of pytorch-optimizer, with the first moment from 0."""
    made = foreign("pytorch_optimizer", "Yogi", foreach=False)(params, **hyper)
    for p in params:
        zero = torch.zeros_like(p.detach())
        made.state[p] = {"exp_avg": zero, "exp_avg_sq": zero + made.defaults["initial_accumulator"]}
    return made


def _adan(params: Params, no_prox: bool = False, **hyper: Any) -> Any:
    return foreign("pytorch_optimizer", "Adan", foreach=False, weight_decouple=no_prox)(
        params, **hyper
    )


def _mars(params: Params, weight_decay: float = 0.0, **hyper: Any) -> Any:
    """Of pytorch-optimizer: vectors treated as matrices are, and no 1e-15 added to v."""
    both = {"weight_decay": weight_decay, "weight_decay_1d": weight_decay}
    made = foreign("pytorch_optimizer", "MARS", foreach=False, optimize_1d=True, **both)
    optimizer = made(params, weight_decouple=True, **hyper)
    optimizer.apply_ams_bound = partial(optimizer.apply_ams_bound, exp_avg_sq_eps=0.0)
    return optimizer


def _msvag(params: Params, **hyper: Any) -> Any:
    """Of pytorch-optimizer, whose first variance, 0 but for rounding, is not divided by 1e-4."""
    made = foreign("pytorch_optimizer", "MSVAG", foreach=False)(params, **hyper)
    rho = made.get_rho
    made.get_rho = lambda power, beta: 0.5 if power == beta else rho(power, beta)
    return made


class _Float64:
    """torch, but what asks for float32 is given float64."""

    float32 = torch.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def _soap(params: Params, **hyper: Any) -> Any:
    """Of pytorch-optimizer, whose eigenvectors are not rounded to float32 when they are refined."""
    made = foreign("pytorch_optimizer", "SOAP", foreach=False)(params, **hyper)
    rounding = type(made).get_orthogonal_matrix_qr
    names = {**rounding.__globals__, "torch": _Float64()}
    exact = FunctionType(rounding.__code__, names, argdefs=rounding.__defaults__)
    made.get_orthogonal_matrix_qr = partial(exact, made)
    return made


def _prodigy(params: Params, **hyper: Any) -> Any:
    return foreign("prodigyopt", "Prodigy")(params, **hyper)


def _muon(params: Params, adamw_lr: float = 3e-4, **hyper: Any) -> Any:
    """torch's Muon, and its AdamW for what is no matrix, at a rate on the same schedule."""
    betas, eps = hyper.pop("betas", (0.9, 0.95)), hyper.pop("adamw_eps", 1e-10)
    decay = hyper.get("weight_decay", 0.1)
    return split(
        params,
        lambda matrices: optim.Muon(matrices, **hyper),
        lambda others: optim.AdamW(others, adamw_lr, betas, eps, decay),
    )


def _ademamix(
    params: Params, alpha_warmup: float = 0, beta3_warmup: float = 0, **hyper: Any
) -> Any:
    assert alpha_warmup == beta3_warmup, "pytorch-optimizer has one number for both"
    more = {"alpha": 2.0, "weight_decouple": True, "t_alpha_beta3": alpha_warmup or None}
    return foreign("pytorch_optimizer", "AdEMAMix", foreach=False, **more)(params, **hyper)


ORACLES: dict[str, Row] = {
    "sgd": Row("torch", optim.SGD, steepest.SGD),
    "momentum": Row("torch", optim.SGD, steepest.SGD),
    "nesterov": Row("torch", fixing(optim.SGD, nesterov=True), fixing(steepest.SGD, nesterov=True)),
    "classical_momentum": Row("transcription", ClassicalMomentum, steepest.ClassicalMomentum),
    "classical_nesterov": Row("transcription", ClassicalNesterov, steepest.ClassicalNesterov),
    "asgd": Row("torch", optim.ASGD, steepest.ASGD),
    "rprop": Row("torch", optim.Rprop, steepest.Rprop),
    "adagrad": Row("torch", optim.Adagrad, steepest.Adagrad),
    "adadelta": Row("torch", optim.Adadelta, steepest.Adadelta),
    "rmsprop": Row("torch", optim.RMSprop, steepest.RMSprop),
    "adamax": Row("torch", optim.Adamax, steepest.Adamax),
    "adam": Row("torch", optim.Adam, steepest.Adam),
    "adamw": Row("torch", optim.AdamW, steepest.AdamW),
    "amsgrad": Row("torch", fixing(optim.Adam, amsgrad=True), fixing(steepest.Adam, amsgrad=True)),
    "nadam": Row("torch", optim.NAdam, steepest.NAdam),
    "sparse_adam": Row("torch", sparse_adam, steepest.SparseAdam),
    "radam": Row("torch", optim.RAdam, steepest.RAdam),
    "eadam": Row("transcription", EAdam, steepest.EAdam),
    "adabound": Row("package", _bound, steepest.AdaBound, "adabound"),
    "amsbound": Row("package", _ams_bound, fixing(steepest.AdaBound, amsbound=True), "adabound"),
    "adabelief": Row("package", _belief, steepest.AdaBelief, "adabelief_pytorch"),
    "yogi": _optax("yogi", steepest.Yogi, MOMENTS, decay="decoupled", zeroed="mu", lr=0.01),
    "signum": _optax(
        "signum",
        steepest.Signum,
        {"momentum_buffer": "ema"},
        decay="decoupled",
        lr=1e-4,
        names={"momentum": "beta"},
    ),
    "lion": _optax("lion", steepest.Lion, {"exp_avg": "mu"}, lr=1e-4, weight_decay=0.0),
    "grams": Row("package", foreign("grams", "Grams"), steepest.Grams, "grams"),
    "msvag": Row("pytorch-optimizer", shrinking(_msvag), steepest.MSVAG, "pytorch_optimizer"),
    "adopt": Row("package", _adopt, steepest.ADOPT, "adopt"),
    "adan": Row("pytorch-optimizer", _adan, steepest.Adan, "pytorch_optimizer"),
    "ademamix": _optax(
        "contrib.ademamix",
        steepest.AdEMAMix,
        {"exp_avg": "m1", "exp_avg_slow": "m2", "exp_avg_sq": "nu"},
        alpha=2.0,
    ),
    "fromage": _second("Fromage", steepest.Fromage, shrink=True, p_bound=None),
    "lars": _optax("lars", steepest.LARS, {}, lr=1.0),
    "lamb": _optax("lamb", steepest.LAMB, MOMENTS),
    "novograd": _second(
        "NovoGrad", steepest.NovoGrad, lr=1e-2, betas=(0.95, 0.98), weight_decouple=False
    ),
    "mars": Row("pytorch-optimizer", _mars, steepest.MARS, "pytorch_optimizer"),
    "swats": Row("transcription", Swats, steepest.SWATS),
    "prodigy": Row("package", _prodigy, steepest.Prodigy, "prodigyopt"),
    "adafactor": Row("torch", optim.Adafactor, steepest.Adafactor),
    "muon": Row("torch", _muon, steepest.Muon),
    "soap": Row("pytorch-optimizer", _soap, steepest.SOAP, "pytorch_optimizer"),
    "yellowfin": Row("transcription", YellowFin, steepest.YellowFin),
    "schedule_free_sgd": Row("package", _free("SGD"), steepest.SGDScheduleFree, "schedulefree"),
    "schedule_free_adamw": Row(
        "package", _free("AdamW"), steepest.AdamWScheduleFree, "schedulefree"
    ),
}

# a second opinion where there is one
SECOND: dict[str, Row] = {
    "lars": Row(
        "pytorch-optimizer",
        as_rows(foreign("pytorch_optimizer", "LARS", foreach=False, lr=1.0)),
        steepest.LARS,
        "pytorch_optimizer",
    ),
    "yogi": Row("pytorch-optimizer", _yogi, steepest.Yogi, "pytorch_optimizer"),
    "signum": _second("SignSGD", steepest.Signum, lr=1e-4),
    "lion": _second("Lion", steepest.Lion),
    "adopt": _optax(
        "contrib.adopt", steepest.ADOPT, MOMENTS, decay="coupled", names={"clip": "use_clipping"}
    ),
    "ademamix": Row("pytorch-optimizer", _ademamix, steepest.AdEMAMix, "pytorch_optimizer"),
    "soap": Row("transcription", Soap, steepest.SOAP),
    "schedule_free_sgd": _optax(
        "contrib.schedule_free_sgd",
        steepest.SGDScheduleFree,
        {"z": "z"},
        lr=1.0,
        names={"momentum": "b1"},
    ),
    "schedule_free_adamw": _optax(
        "contrib.schedule_free_adamw",
        steepest.AdamWScheduleFree,
        {"z": "z", "exp_avg_sq": "nu"},
        lr=2.5e-3,
    ),
}

# the classes of one rule, whose arguments are the rule's own
SINGLE: dict[str, Row] = {
    "momentum": Row("torch", fixing(optim.SGD, momentum=0.9), _named("momentum")),
    "nesterov": Row("torch", fixing(optim.SGD, momentum=0.9, nesterov=True), _named("nesterov")),
    "amsgrad": Row("torch", fixing(optim.Adam, amsgrad=True), _named("amsgrad")),
    "amsbound": Row("package", _ams_bound, _named("amsbound"), "adabound"),
}

# AdamW of torch with amsgrad: the rule amsgrad, but decoupled decay
ADAMW = Row("torch", optim.AdamW, steepest.AdamW)
