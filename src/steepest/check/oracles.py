"""The independent oracle of every rule.

A rule is compared with torch.optim ("torch"), with the package of the method's authors ("package"),
or, where neither exists, with its paper's formula written out below ("transcription"). The settings
in which the two are compared stand in `trajectories.py`.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import warnings
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, optim

from ..classes import classes, optimizer

Params = Sequence[Tensor]
Maker = Callable[..., Any]
PACKAGES = {"adabelief_pytorch": "adabelief-pytorch==0.2.1", "adabound": "adabound==0.0.5"}
"""Modules of the authors' packages, and what pip calls them; imported when they are used."""


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


def _foreign(module: str, name: str, **fixed: Any) -> Maker:
    """A maker that prints nothing and whose steps raise no warning of deprecated signatures."""

    def make(params: Params, **hyper: Any) -> Any:
        kind = getattr(importlib.import_module(module), name)
        maximize = hyper.pop("maximize", False)
        with contextlib.redirect_stdout(io.StringIO()):
            optimizer = kind(params, **{**fixed, **hyper})
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


def _sparse_adam(params: Params, **hyper: Any) -> Any:
    """torch's SparseAdam, given gradients that have every row."""
    optimizer: Any = optim.SparseAdam(params, **hyper)
    plain_step = optimizer.step

    def step() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for p in params:
                if p.grad is not None:
                    rows = torch.arange(len(p))[None]
                    p.grad = torch.sparse_coo_tensor(rows, p.grad, p.shape)
            plain_step()

    optimizer.step = step
    return optimizer


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
        if self.kind == "package":
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
_belief = _foreign("adabelief_pytorch", "AdaBelief", print_change_log=False)
_bound = _foreign("adabound", "AdaBound")
_ams_bound = fixing(_bound, amsbound=True)

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
    "sparse_adam": Row("torch", _sparse_adam, steepest.SparseAdam),
    "radam": Row("torch", optim.RAdam, steepest.RAdam),
    "eadam": Row("transcription", EAdam, steepest.EAdam),
    "adabound": Row("package", _bound, steepest.AdaBound, "adabound"),
    "amsbound": Row("package", _ams_bound, fixing(steepest.AdaBound, amsbound=True), "adabound"),
    "adabelief": Row("package", _belief, steepest.AdaBelief, "adabelief_pytorch"),
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
