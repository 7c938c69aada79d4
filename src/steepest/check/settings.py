"""The settings in which every rule is compared with its oracle."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from .oracles import ADAMW, ORACLES, SECOND, SINGLE, Row

LIMIT = 1e-12
"""On a deviation in float64."""


@dataclass(frozen=True)
class Setting:
    """One comparison: the rule that must be selected, its row, hyperparameters, and more.

    bound: the largest deviation in float64. why: what the oracle loses, where that is not LIMIT.
    scheduled: whether the learning rate changes from step to step.
    """

    rule: str
    hyper: dict[str, Any] = field(hash=False)
    scheduled: bool = False
    row: Row | None = field(default=None, hash=False)
    bound: float = LIMIT
    why: str = ""

    @property
    def made_by(self) -> Row:
        return self.row or ORACLES[self.rule]

    def __str__(self) -> str:
        words = [f"{k}={v}" for k, v in self.hyper.items()] + ["scheduled"] * self.scheduled
        single = ["single"] * (self.row is SINGLE.get(self.rule, self))
        second = [self.made_by.kind] * (self.row is SECOND.get(self.rule, self))
        return "-".join([self.rule, *single, *second, *words]).replace(" ", "")


CANCELLING = Setting(
    "rmsprop",
    {"alpha": 0.5, "centered": True, "momentum": 0.5, "weight_decay": 0.03, "maximize": True},
    scheduled=True,
    bound=6e-8,
    why="where decay is the whole gradient, the variance v - a * a cancels to its last digits: "
    "torch itself is 2.7e-8 off there (test_cancellation)",
)


def _settings() -> Iterator[Setting]:
    def of(rule: str, *hypers: dict[str, Any], row: Row | None = None) -> Iterator[Setting]:
        # the learning rate moves in the last setting of a rule
        for k, hyper in enumerate(hypers):
            yield Setting(rule, hyper, k == len(hypers) - 1, row)

    def twice(rule: str, *hypers: dict[str, Any]) -> Iterator[Setting]:
        # the second opinion stands in the middle: the first and the last setting are run oftener
        yield Setting(rule, hypers[0])
        yield from of(rule, *hypers, row=SECOND[rule])
        yield from of(rule, *hypers[1:])

    decay = {"weight_decay": 0.03}
    ascent = {"maximize": True}
    heavy = {"momentum": 0.9}
    betas = {"betas": (0.5, 0.9)}
    yield from of("sgd", {}, {"lr": 0.02, **decay}, ascent, {"lr": 0.01, **decay, **ascent})
    yield from of(
        "momentum",
        heavy,
        {"momentum": 0.5, "dampening": 0.3, **decay},
        {**heavy, "dampening": 1.0},
        {**heavy, **ascent},
        {"lr": 0.01, **heavy, **decay},
    )
    yield from of(
        "momentum", {}, {"momentum": 0.7, "dampening": 0.1, **decay}, row=SINGLE["momentum"]
    )
    yield from of("nesterov", heavy, {"momentum": 0.5, **decay}, {**heavy, **decay, **ascent})
    yield from of("nesterov", {}, {"momentum": 0.7, **decay}, row=SINGLE["nesterov"])
    for rule in ("classical_momentum", "classical_nesterov"):
        yield from of(
            rule,
            {"lr": 0.001, **heavy},
            {"lr": 0.01, "momentum": 0.5, **decay},
            {"lr": 0.01, **heavy, **decay, **ascent},
        )
    yield from of(
        "asgd",
        {},
        {"t0": 20.0, "lambd": 0.01},
        {"t0": 3.0, "alpha": 0.6, **decay},
        {"t0": 0.0, "lr": 0.1, **decay, **ascent},
    )
    yield from of(
        "rprop", {}, {"etas": (0.3, 1.5), "step_sizes": (1e-3, 0.1)}, {"lr": 0.1, **ascent}
    )
    yield from of(
        "adagrad",
        {},
        {"lr_decay": 0.1, "eps": 1e-3},
        {"initial_accumulator_value": 0.7},
        {"lr": 0.1, "lr_decay": 0.01, "initial_accumulator_value": 0.1, **decay, **ascent},
    )
    yield from of(
        "adadelta", {}, {"rho": 0.95, "eps": 1e-3, **decay}, {"lr": 0.5, **decay, **ascent}
    )
    yield from of(
        "rmsprop",
        {},
        decay,
        {"centered": True},
        {**heavy, **decay},
        {"alpha": 0.9, "eps": 1e-3, "centered": True, **heavy, **decay, **ascent},
    )
    yield CANCELLING
    yield from of("adamax", {}, {**betas, "eps": 1e-3, **decay}, {"lr": 0.01, **decay, **ascent})
    yield from of(
        "adam",
        {},
        {**betas, "eps": 1e-3},
        decay,
        {"betas": (0.0, 0.99), **decay, **ascent},
        {"decoupled_weight_decay": True, "lr": 0.01, **decay},
    )
    yield from of("adamw", {}, {**betas, "weight_decay": 0.0}, {"lr": 0.01, **decay, **ascent})
    yield from of("amsgrad", {}, {**betas, "eps": 1e-3, **decay}, {"lr": 0.01, **decay, **ascent})
    yield from of("amsgrad", {}, {"betas": (0.8, 0.95), **decay}, row=SINGLE["amsgrad"])
    yield from of("amsgrad", {"amsgrad": True, "lr": 0.01, **decay}, row=ADAMW)
    yield from of("sparse_adam", {}, {**betas, "eps": 1e-3}, {"lr": 0.01, **betas, **ascent})
    yield from of(
        "nadam",
        {},
        {**betas, "momentum_decay": 0.1, "eps": 1e-3, **decay},
        {"decoupled_weight_decay": True, "lr": 0.01, **decay, **ascent},
    )
    yield from of(
        "radam",
        {},
        {**betas, "eps": 1e-3, **decay},
        {"betas": (0.9, 0.99), **decay},
        {"betas": (0.9, 0.5)},  # rho_inf is 3: never rectified
        {"decoupled_weight_decay": True, "lr": 0.01, **decay, **ascent},
    )
    default = {"betas": (0.9, 0.999), "eps": 1e-8, "lr": 1e-3}  # the transcription has no defaults
    yield from of(
        "eadam",
        default,
        {**default, **betas, "eps": 1e-3, **decay},
        {**default, "lr": 0.01, **decay, **ascent},
    )
    bounded = {"final_lr": 1e-3, "gamma": 0.05}  # both bounds are reached within 100 steps
    yield from of(
        "adabound",
        {},
        {**bounded, **betas, **decay},
        {**bounded, **ascent},
        {**bounded, "lr": 0.01, **decay},
    )
    yield from of(
        "amsbound", {}, {**bounded, **betas, **decay}, {**bounded, "lr": 0.01, **decay, **ascent}
    )
    yield from of(
        "amsbound", {}, {**bounded, "betas": (0.8, 0.95), **decay}, row=SINGLE["amsbound"]
    )
    yield from of(
        "adabelief",
        {},
        {"betas": (0.5, 0.9), "eps": 1e-8},
        {"rectify": False, "eps": 1e-8},
        {"rectify": False, "weight_decouple": False, **decay},
        {"betas": (0.9, 0.5)},
        {"degenerated_to_sgd": False, **decay},
        {"fixed_decay": True, "weight_decay": 1e-3},
        {"weight_decouple": False, **decay},
        {"rectify": False, **decay},
        {"rectify": False, "amsgrad": True, **decay},
        {"amsgrad": True, **decay},
        {"rectify": False, "amsgrad": True, "fixed_decay": True, "weight_decay": 1e-3},
        {"rectify": False, "degenerated_to_sgd": False},
        {"degenerated_to_sgd": False, "amsgrad": True, "weight_decouple": False, **decay},
        {"rectify": False, "weight_decouple": False, "amsgrad": True, **decay, **ascent},
        {"rectify": False, "lr": 0.01, **decay, **ascent},
        {"lr": 0.01, **decay},
    )
    yield from twice("yogi", {}, {**betas, "eps": 1e-2, **decay}, {"lr": 0.001, **decay, **ascent})
    yield from twice("signum", {}, {"momentum": 0.5, **decay}, {"lr": 0.001, **decay, **ascent})
    yield from twice("lion", {}, {**betas, **decay}, {"lr": 0.001, **decay, **ascent})
    yield from of("grams", {}, {**betas, "eps": 1e-3, **decay}, {"lr": 0.01, **decay, **ascent})
    yield from of("msvag", {}, {"beta": 0.5, **decay}, {"lr": 0.1, **decay, **ascent})
    yield from twice(
        "adopt",
        {},
        {**betas, "eps": 1e-3, **decay},
        {"clip": False, **decay},
        {"lr": 0.01, "betas": (0.9, 0.99), **decay, **ascent},
    )
    yield from of("adopt", {"decouple": True, **decay}, {"decouple": True, "lr": 0.01, **decay})
    three = {"betas": (0.9, 0.5, 0.95)}
    yield from of(
        "adan",
        {},
        {**three, "eps": 1e-3, **decay},
        {"no_prox": True, **decay},
        {"lr": 0.01, **decay, **ascent},
    )
    slow = {"betas": (0.8, 0.95, 0.99)}
    yield from twice(
        "ademamix", {}, {**slow, "eps": 1e-3, "alpha": 5.0, **decay}, {**slow, **decay, **ascent}
    )
    yield from of(
        "ademamix",
        {"alpha_warmup": 40.0, "beta3_warmup": 40.0},
        {"alpha_warmup": 150.0, "beta3_warmup": 150.0, "betas": (0.5, 0.9, 0.999), **decay},
        row=SECOND["ademamix"],
    )
    yield from of("ademamix", {**slow, "lr": 0.01, **decay, **ascent})
    yield from twice(
        "schedule_free_sgd",
        {"lr": 0.01},
        {"lr": 0.1, "momentum": 0.5, **decay},
        {"lr": 0.02, **decay, **ascent},
    )
    yield from twice(
        "schedule_free_adamw", {}, {**betas, "eps": 1e-3, **decay}, {"lr": 0.01, **decay, **ascent}
    )
    yield from of("fromage", {}, {"lr": 0.1, **decay}, {"lr": 0.03, **ascent})
    yield from of("lars", {}, {"lr": 0.1, "momentum": 0.5}, {"trust_coefficient": 0.02, **ascent})
    # optax has another norm where there is decay, and pytorch-optimizer another place for lr
    for hyper in (decay, {"momentum": 0.5, "trust_coefficient": 0.02, **decay}):
        yield Setting("lars", hyper, False, SECOND["lars"])
    yield from of("lamb", {}, {**betas, "eps": 1e-3, **decay}, {"lr": 0.01, **decay, **ascent})
    yield from of("novograd", {}, {**betas, "eps": 1e-3, **decay}, {"lr": 0.03, **decay, **ascent})
    yield Setting("prodigy", {})
    for hyper in ({**betas, "d0": 1e-4, **decay}, {"d_coef": 0.5, **decay, **ascent}):
        why = "d begins with p0 - p, which is as short as d0: a last bit of p is 1e-10 of it "
        why += "(test_a_last_bit_of_the_parameter_moves_prodigy)"
        yield Setting("prodigy", hyper, "maximize" in hyper, bound=1e-10, why=why)
    tiny = {"eps": 1e-30}  # the oracle adds eps before the correction of v, the paper after it
    warm = {**betas, **tiny, "gamma": 0.1, **decay}
    yield from of("mars", tiny, warm, {**tiny, "lr": 0.01, **decay, **ascent})
    settled = {"settled": 0.05, "lr": 0.01}
    yield from of("swats", {}, {**betas, "eps": 1e-3, **settled, **decay}, {**settled, **ascent})
    yield from of(
        "adafactor",
        {},
        {"eps": (1e-5, 1e-2), "d": 1.5, "beta2_decay": -0.6, **decay},
        {"lr": 0.02, **decay, **ascent},
    )
    flat = {"momentum": 0.8, "nesterov": False, "adjust_lr_fn": "match_rms_adamw", **decay}
    flat |= {"ns_coefficients": (3.0, -4.0, 2.0), "ns_steps": 3, "eps": 1e-3}
    fast = {"lr": 0.01, "adamw_lr": 0.01, "betas": (0.8, 0.9), "adamw_eps": 1e-6}
    yield from of("muon", {}, {**flat, "weight_decay": 0.0}, flat, fast)
    often = {**betas, "eps": 1e-3, "precondition_frequency": 3, **decay}
    yield from of("soap", {}, often, {"lr": 0.03, "weight_decay": 0.0, **ascent})
    yield from of("soap", {}, often, {"lr": 0.03, **decay, **ascent}, row=SECOND["soap"])
    yield from of("yellowfin", {}, {"beta": 0.9, **decay}, {"lr": 0.3, **ascent})
    for rule in ("schedule_free_sgd", "schedule_free_adamw"):
        warm = {"lr": 0.01, "warmup_steps": 20, "r": 1.0, "weight_lr_power": 1.0}
        yield from of(rule, warm, {**warm, **decay, **ascent})


SETTINGS: tuple[Setting, ...] = tuple(_settings())

# in float32 the first and the last setting of each rule: every loop there is compiled anew
PRECISE = tuple(
    dict.fromkeys(
        s
        for rule in ORACLES
        for own in [[s for s in SETTINGS if s.rule == rule and s is not CANCELLING]]
        for s in (own[0], own[-1])
    )
)
