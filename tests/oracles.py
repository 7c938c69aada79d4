"""The independent oracle of every rule, and the settings in which the two are compared.

A rule is compared with torch.optim ("torch"), with the package of the method's authors ("package"),
or, where neither exists, with its paper's formula written out below ("transcription").
"""

from __future__ import annotations

import contextlib
import io
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

import torch
from adabelief_pytorch import AdaBelief
from adabound import AdaBound
from torch import Tensor

import steepest

STEPS = 100
SHAPES = ((16, 15), (60,))
"""Of the parameters in float64; the last four elements have gradients that vanish at some steps."""
LIMIT = 1e-12
"""On a deviation in float64."""
LARGE = ((100, 100),)
"""Of the parameter in float32: enough elements for a quantile of 99.9 %."""

Params = Sequence[Tensor]
Maker = Callable[..., Any]


# transcriptions: formulas of papers, in the order of their lines


class Transcription:
    """What the harness needs of an optimizer: groups, states and a step."""

    def __init__(self, params: Params, **hyper: Any) -> None:
        self.param_groups = [{"params": list(params), **hyper}]
        self.state: dict[Tensor, dict[str, Any]] = {p: {} for p in params}
        self.t = 0

    @torch.no_grad()
    def step(self) -> None:
        self.t += 1
        group = self.param_groups[0]
        for p in group["params"]:
            g = -p.grad if group.get("maximize") else p.grad
            if decay := group.get("weight_decay", 0.0):
                g = g + decay * p
            self.update(p, g, self.state[p], group)

    def update(self, p: Tensor, g: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        raise NotImplementedError


class ClassicalMomentum(Transcription):
    """v <- gamma v + lr g;  p <- p - v (Ruder 2016, section 4.1; Qian 1999)."""

    def update(self, p: Tensor, g: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        v = state["v"] = group["momentum"] * state.get("v", torch.zeros_like(p)) + group["lr"] * g
        p.sub_(v)


class ClassicalNesterov(Transcription):
    """v <- mu v - lr grad(theta + mu v);  theta <- theta + v (Sutskever et al. 2013, eq. 3 and 4).

    The gradient is taken at the look-ahead point, so that is what stands in the parameter: theta
    lives here alone.
    """

    def update(self, p: Tensor, g: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        theta = state.get("theta", p.clone())
        v = state["v"] = group["momentum"] * state.get("v", torch.zeros_like(p)) - group["lr"] * g
        state["theta"] = theta + v
        p.copy_(state["theta"] + group["momentum"] * v)


class EAdam(Transcription):
    """Yuan and Gao 2020, Algorithm 1: Adam whose eps is added to v itself, and nowhere else."""

    def update(self, p: Tensor, g: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        zero, (beta1, beta2) = torch.zeros_like(p), group["betas"]
        m = state["exp_avg"] = beta1 * state.get("exp_avg", zero) + (1 - beta1) * g
        v = beta2 * state.get("exp_avg_sq", zero) + (1 - beta2) * g * g
        v = state["exp_avg_sq"] = v + group["eps"]
        m_hat, v_hat = m / (1 - beta1**self.t), v / (1 - beta2**self.t)
        p.sub_(group["lr"] * m_hat / v_hat.sqrt())


# foreign packages


def quietly(kind: Maker) -> Maker:
    """A maker that prints nothing and whose steps raise no warning of deprecated signatures."""

    def make(params: Params, **hyper: Any) -> Any:
        maximize = hyper.pop("maximize", False)
        with contextlib.redirect_stdout(io.StringIO()):
            optimizer = kind(params, **hyper)
        plain_step = optimizer.step

        def step() -> None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                for p in params if maximize else ():  # the packages cannot ascend by themselves
                    p.grad = None if p.grad is None else -p.grad
                plain_step()

        optimizer.step = step
        return optimizer

    return make


def _belief(params: Params, **hyper: Any) -> AdaBelief:
    return AdaBelief(params, print_change_log=False, **hyper)


# the table


class Row(NamedTuple):
    """kind: what the oracle is; oracle, ours: makers of an optimizer, given params and hyper."""

    kind: str
    oracle: Maker
    ours: Maker


def _named(rule: str) -> Maker:
    return lambda params, **hyper: steepest.optimizer(rule, params, **hyper)


def _with(maker: Maker, **fixed: Any) -> Maker:
    return lambda params, **hyper: maker(params, **{**fixed, **hyper})


_belief = quietly(_belief)
_bound = quietly(AdaBound)
optim = torch.optim

ORACLES: dict[str, Row] = {
    "sgd": Row("torch", optim.SGD, steepest.SGD),
    "momentum": Row("torch", optim.SGD, steepest.SGD),
    "nesterov": Row("torch", _with(optim.SGD, nesterov=True), _with(steepest.SGD, nesterov=True)),
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
    "amsgrad": Row("torch", _with(optim.Adam, amsgrad=True), _with(steepest.Adam, amsgrad=True)),
    "nadam": Row("torch", optim.NAdam, steepest.NAdam),
    "radam": Row("torch", optim.RAdam, steepest.RAdam),
    "eadam": Row("transcription", EAdam, steepest.EAdam),
    "adabound": Row("package", _bound, steepest.AdaBound),
    "amsbound": Row(
        "package", _with(_bound, amsbound=True), _with(steepest.AdaBound, amsbound=True)
    ),
    "adabelief": Row("package", _belief, steepest.AdaBelief),
}

# the classes of one rule, whose arguments are the rule's own
SINGLE: dict[str, Row] = {
    "momentum": Row("torch", _with(optim.SGD, momentum=0.9), _named("momentum")),
    "nesterov": Row("torch", _with(optim.SGD, momentum=0.9, nesterov=True), _named("nesterov")),
    "amsgrad": Row("torch", _with(optim.Adam, amsgrad=True), _named("amsgrad")),
    "amsbound": Row("package", _with(_bound, amsbound=True), _named("amsbound")),
}

# AdamW of torch with amsgrad: the rule amsgrad, but decoupled decay
ADAMW = Row("torch", optim.AdamW, steepest.AdamW)


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
        return "-".join([self.rule, *single, *words]).replace(" ", "")


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


# one run


@cache
def gradients(shapes: Sequence[tuple[int, ...]], dtype: torch.dtype) -> list[list[Tensor]]:
    """STEPS lists of gradients that depend on no parameter and spread over six orders of magnitude.

    Every third element keeps its sign. In float64, of each tensor's last four elements the first
    always has a zero gradient, the next one for the first ten steps, the others every other step.
    """
    random = torch.Generator().manual_seed(20)
    made = []
    for shape in shapes:
        n = math.prod(shape)
        scale = 10 ** (6 * torch.rand(n, generator=random, dtype=torch.float64) - 3)
        g = torch.randn(STEPS, n, generator=random, dtype=torch.float64) * scale
        g[:, ::3] = g[:, ::3].abs()
        if dtype is torch.float64:
            g[:, -4] = 0
            g[:10, -3] = 0
            g[::2, -2] = 0
            g[1::2, -1] = 0
        made.append([row.reshape(shape).to(dtype) for row in g])
    return [list(row) for row in zip(*made, strict=True)]


def starts(shapes: Sequence[tuple[int, ...]], dtype: torch.dtype) -> list[Tensor]:
    """The parameters before the first step."""
    random = torch.Generator().manual_seed(7)
    return [torch.randn(s, generator=random, dtype=torch.float64).to(dtype) for s in shapes]


def scheduled(lr: float, t: int) -> float:
    """A learning rate that rises, falls and jumps; the first step already has another than `lr`."""
    return lr * (1 + 0.5 * math.sin(0.3 * t)) * (0.1 if t > 60 else 1.0)


Path = dict[str, Tensor]
"""Key -> values after each step, of shape (steps, elements); the parameter's key is "p"."""


def steps(
    maker: Maker,
    setting: Setting,
    shapes: Sequence[tuple[int, ...]],
    dtype: torch.dtype,
    rounded: torch.dtype,
    **more: Any,
) -> Iterator[dict[str, Tensor]]:
    """What an optimizer makes in `dtype`, step by step, of starts and gradients in `rounded`."""
    params = [p.to(dtype).requires_grad_() for p in starts(shapes, rounded)]
    with default_dtype(dtype):
        optimizer = maker(params, **setting.hyper, **more)
    group = optimizer.param_groups[0]
    lr = group["lr"]
    for t, grads in enumerate(gradients(shapes, rounded), start=1):
        if setting.scheduled:
            group["lr"] = scheduled(lr, t)
        for p, g in zip(params, grads, strict=True):
            p.grad = g.to(dtype, copy=True)
        with default_dtype(dtype):
            optimizer.step()
        made = {}
        for key in ("p", *optimizer.state[params[0]]):
            values = [p.detach() if key == "p" else optimizer.state[p][key] for p in params]
            flat = [torch.as_tensor(v, dtype=torch.float64).reshape(-1) for v in values]
            made[key] = torch.cat(flat)  # a copy, also of one tensor
        yield made


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """torch keeps NAdam's mu_product and ASGD's eta in its default dtype, not the parameter's."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def path_of(maker: Maker, setting: Setting, **more: Any) -> Path:
    """The whole path in float64."""
    made = list(steps(maker, setting, SHAPES, torch.float64, torch.float64, **more))
    return {key: torch.stack([row[key] for row in made]) for key in made[-1]}


@cache
def oracle(setting: Setting) -> Path:
    """The oracle's path in float64, run once for all backends."""
    return path_of(setting.made_by.oracle, setting)


class End(NamedTuple):
    """After the last step: the values, and the largest magnitude of each element on the way."""

    values: dict[str, Tensor]
    peaks: dict[str, Tensor]


def end_of(maker: Maker, setting: Setting, dtype: torch.dtype, **more: Any) -> End:
    """Where an optimizer ends in `dtype`, from starts and gradients that float32 holds exactly."""
    peaks: dict[str, Tensor] = {}
    made: dict[str, Tensor] = {}
    for made in steps(maker, setting, LARGE, dtype, torch.float32, **more):
        for key, value in made.items():
            peaks[key] = torch.maximum(peaks.get(key, value.abs()), value.abs())
    return End(made, peaks)


@cache
def oracle_end(setting: Setting, dtype: torch.dtype) -> End:
    """Where the oracle ends, run once for all backends."""
    return end_of(setting.made_by.oracle, setting, dtype)


def scales(path: Tensor) -> Tensor:
    """Per step and element the largest value so far: a moment that passes zero keeps its scale."""
    return path.abs().cummax(0).values


def deviation(ours: Tensor, theirs: Tensor) -> float:
    """The largest deviation at any step, relative to element's scale and to tensor's maximum."""
    difference = (ours - theirs).abs()
    if not difference.any():
        return 0.0
    if not bool(torch.isfinite(difference).all()):
        return math.inf
    tiny = torch.finfo(torch.float64).tiny
    element = difference / scales(theirs).clamp_min(tiny)
    tensor = difference.amax(1) / theirs.abs().amax(1).clamp_min(tiny)
    return float(torch.maximum(element.amax(), tensor.amax()))
