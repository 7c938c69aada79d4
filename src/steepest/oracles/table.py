"""How a rule is compared: its oracle, and the settings in which the two are run side by side.

A rule is compared with torch.optim ("torch"), with the package of the method's authors ("package"),
with optax ("optax"), with pytorch-optimizer ("pytorch-optimizer"), or, where none of these has it,
with its paper's formula written out in `transcriptions.py` ("transcription").
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..classes import classes, optimizer
from .foreign import Optax, foreign, shrinking

LIMIT = 1e-12
"""On a deviation in float64."""
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
# options that many settings share
DECAY, ASCENT, HEAVY = {"weight_decay": 0.03}, {"maximize": True}, {"momentum": 0.9}
BETAS = {"betas": (0.5, 0.9)}
MOMENTS = {"exp_avg": "mu", "exp_avg_sq": "nu"}

Params = Sequence[Tensor]
Maker = Callable[..., Any]
Hyper = dict[str, Any]


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


@dataclass(frozen=True)
class Setting:
    """One comparison: the rule that must be selected, its row, hyperparameters, and more.

    bound: the largest deviation in float64. why: what the oracle loses, where that is not LIMIT.
    scheduled: whether the learning rate changes from step to step. label: of what the row is, if
    not the rule's first one.
    """

    rule: str
    hyper: Hyper = field(hash=False)
    scheduled: bool = False
    row: Row | None = field(default=None, hash=False)
    bound: float = LIMIT
    why: str = ""
    label: str = ""

    @property
    def made_by(self) -> Row:
        return self.row or ORACLES[self.rule]

    def __str__(self) -> str:
        words = [f"{k}={v}" for k, v in self.hyper.items()] + ["scheduled"] * self.scheduled
        return "-".join(filter(None, [self.rule, self.label, *words])).replace(" ", "")


ORACLES: dict[str, Row] = {}
"""Rule -> its first oracle."""
SECOND: dict[str, Row] = {}
"""Rule -> a second opinion, where there is one."""
SETTINGS: list[Setting] = []


def compare(rule: str, row: Row, *hypers: Hyper, second: Row | None = None) -> None:
    """Run a rule beside its oracle in these settings; the learning rate moves in the last one.

    second: another oracle. Its settings stand in the middle: a rule's first and last setting are
    run oftener.
    """
    ORACLES[rule] = row
    if second is None:
        also(rule, *hypers)
        return
    SECOND[rule] = second
    SETTINGS.append(Setting(rule, hypers[0]))
    also(rule, *hypers, row=second, label=second.kind)
    also(rule, *hypers[1:])


def also(rule: str, *hypers: Hyper, row: Row | None = None, label: str = "") -> None:
    """More settings; row: of another oracle or another class."""
    last = len(hypers) - 1
    for k, hyper in enumerate(hypers):
        SETTINGS.append(Setting(rule, hyper, k == last, row, label=label))


# how rows are made

steepest = SimpleNamespace(**classes)


def named(rule: str) -> Maker:
    """The class of that rule alone, whose arguments are the rule's own."""
    return lambda params, **hyper: optimizer(rule, params, **hyper)


def fixing(maker: Maker, **fixed: Any) -> Maker:
    """The maker with some options given."""

    def make(params: Params, **hyper: Any) -> Any:
        return maker(params, **{**fixed, **hyper})

    make.__name__ = maker.__name__
    return make


def optax(name: str, ours: Maker, keys: dict[str, str], **about: Any) -> Row:
    """Of optax; keys: ours -> its own, of the states."""

    def oracle(params: Params, **hyper: Any) -> Any:
        return Optax(params, name, keys, **{**about, **hyper})

    return Row("optax", oracle, ours, "optax")


def another(name: str, ours: Maker, shrink: bool = False, **fixed: Any) -> Row:
    """Of pytorch-optimizer, one tensor at a time; shrink: it has no weight decay."""
    oracle = foreign("pytorch_optimizer", name, foreach=False, **fixed)
    return second_library(shrinking(oracle) if shrink else oracle, ours)


def second_library(oracle: Maker, ours: Maker) -> Row:
    """Of pytorch-optimizer, made in a way of its own."""
    return Row("pytorch-optimizer", oracle, ours, "pytorch_optimizer")


def zeros(params: Params) -> list[Tensor]:
    """A zero tensor like each parameter."""
    return [torch.zeros_like(p.detach()) for p in params]
