"""The comparisons of rules: the oracle of each rule, and the settings in which both are run.

A rule is compared with torch.optim ("torch"), with the package of the method's authors ("package"),
with optax ("optax") or with pytorch-optimizer ("pytorch-optimizer"). If none of these has the rule,
it is compared with its paper's formula, written out in `transcriptions.py` ("transcription").
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..classes import classes, optimizer
from .foreign import Optax, foreign, with_decay

LIMIT = 1e-12
"""The largest relative deviation allowed in float64."""
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
"""Module -> the argument of `pip install`. A module is imported when it is used."""
# options that many settings share
DECAY, ASCENT, HEAVY = {"weight_decay": 0.03}, {"maximize": True}, {"momentum": 0.9}
BETAS = {"betas": (0.5, 0.9)}
MOMENTS = {"exp_avg": "mu", "exp_avg_sq": "nu"}

Params = Sequence[Tensor]
Maker = Callable[..., Any]
Hyper = dict[str, Any]


class Row(NamedTuple):
    """A rule's oracle, and our class that is compared with it.

    source: what the oracle is, such as "torch" or "optax". oracle: function that makes the oracle's
    optimizer from params and hyperparameters. ours: function that makes our optimizer from the same
    arguments. module: the module from which the oracle is imported.
    """

    source: str
    oracle: Maker
    ours: Maker
    module: str = "torch"

    @property
    def described(self) -> str:
        """What the oracle is, in words."""
        if self.module in PACKAGES:
            return PACKAGES[self.module]
        if self.source == "reference":
            return f"steepest's reference {self.oracle.__name__}"
        return {"torch": "torch.optim", "transcription": "the paper's formula, transcribed"}[
            self.source
        ]


@dataclass(frozen=True)
class Setting:
    """One comparison of a rule with an oracle.

    rule: the rule that the hyperparameters must select. scheduled: whether the learning rate
    changes from step to step. row: the oracle and our class, if they are not those of the rule's
    first row. label: text that distinguishes this row from the rule's other rows, such as the
    oracle's name. bound: the largest relative deviation allowed in float64. why: the reason for a
    bound other than LIMIT.
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
        options = [f"{k}={v}" for k, v in self.hyper.items()]
        scheduled = "scheduled" if self.scheduled else ""
        parts = [self.rule, self.label, *options, scheduled]
        return "-".join(filter(None, parts)).replace(" ", "")


ORACLES: dict[str, Row] = {}
"""Rule -> its first oracle."""
SECOND: dict[str, Row] = {}
"""Rule -> its second oracle, where there is one."""
SETTINGS: list[Setting] = []


def compare(rule: str, row: Row, *hypers: Hyper, second: Row | None = None) -> None:
    """Compare a rule with its oracle in these settings. The last setting has a changing lr.

    second: a second oracle, which is compared in the same settings. Its comparisons are put in the
    middle of SETTINGS, because more tests run the first and the last comparison of a rule.
    """
    ORACLES[rule] = row
    if second is None:
        also(rule, *hypers)
        return
    SECOND[rule] = second
    SETTINGS.append(Setting(rule, hypers[0]))
    also(rule, *hypers, row=second, label=second.source)
    also(rule, *hypers[1:])


def also(rule: str, *hypers: Hyper, row: Row | None = None, label: str = "") -> None:
    """Add settings of a rule. The last setting has a changing lr.

    row: the oracle and our class, if they are not those of the rule's first row.
    """
    last = len(hypers) - 1
    for k, hyper in enumerate(hypers):
        SETTINGS.append(Setting(rule, hyper, k == last, row, label=label))


# how rows are made

steepest = SimpleNamespace(**classes)


def named(rule: str) -> Maker:
    """Returns a maker of the class of only this rule. The maker takes the rule's arguments."""
    return lambda params, **hyper: optimizer(rule, params, **hyper)


def fixing(maker: Maker, **fixed: Any) -> Maker:
    """Returns a maker that passes the options `fixed`, unless its caller gives other values."""

    def make(params: Params, **hyper: Any) -> Any:
        return maker(params, **{**fixed, **hyper})

    make.__name__ = maker.__name__
    return make


def optax(name: str, ours: Maker, keys: dict[str, str], **about: Any) -> Row:
    """Returns a row with an optimizer of optax. keys: our state -> the same field in optax."""

    def oracle(params: Params, **hyper: Any) -> Any:
        return Optax(params, name, keys, **{**about, **hyper})

    return Row("optax", oracle, ours, "optax")


def pytorch_optimizer(name: str, ours: Maker, shrink: bool = False, **fixed: Any) -> Row:
    """Returns a row with an optimizer of pytorch-optimizer.

    shrink: whether to add weight decay to the oracle, which has none.
    """
    oracle = foreign("pytorch_optimizer", name, foreach=False, **fixed)
    return adapted(with_decay(oracle) if shrink else oracle, ours)


def adapted(oracle: Maker, ours: Maker) -> Row:
    """Returns a row with an optimizer of pytorch-optimizer, which `oracle` makes and adapts."""
    return Row("pytorch-optimizer", oracle, ours, "pytorch_optimizer")


def zeros(params: Params) -> list[Tensor]:
    """Returns a zero tensor for each parameter, of the same shape and dtype."""
    return [torch.zeros_like(p.detach()) for p in params]
