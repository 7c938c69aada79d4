"""Which families there are, a public class for each.

A class that torch.optim has too takes torch.optim's arguments, with torch.optim's defaults;
AdaBelief, AdaBound and ADOPT take those of their authors' packages; every other class takes those
of its rule.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch

from .definition import Rule, find, rules
from .family import Family, Selection
from .options import PAIRS, WITHOUT_EFFECT, Group, asked

_DECAY = {"weight_decay", "maximize", "decoupled_weight_decay", "weight_decouple", "fixed_decay"}


def members_of(key: str, rule: Rule) -> list[str]:
    """The scalars of a rule that stand in a group under one key, in order."""
    return [n for n, (k, _) in PAIRS.items() if k == key and n in rule.defaults]


def _arguments(rule: Rule) -> dict[str, Any]:
    """The arguments of a class made of a rule alone."""
    found: dict[str, Any] = {}
    for name, default in rule.defaults.items():
        key, index = PAIRS.get(name, (name, None))
        parts = members_of(key, rule)
        if index is None:
            found[key] = default
        elif len(parts) > 1 and [PAIRS[n][1] for n in parts] == [*range(len(parts))]:
            found[key] = tuple(rule.defaults[n] for n in parts)
        else:
            found[name] = default
    return (
        found
        | {n: v for n, v in rule.choices.items() if n != "matrix"}
        | {"weight_decay": rule.defaults.get("wd", 0.0), "maximize": False, "differentiable": False}
    )


def _torch_arguments(name: str, members: tuple[Rule, ...]) -> dict[str, Any]:
    """Those arguments of torch.optim's class that we know; a newer torch may have more."""
    ours = {*WITHOUT_EFFECT, *_DECAY, "amsgrad", "nesterov", "differentiable"}
    for rule in members:
        ours |= {PAIRS.get(n, (n,))[0] for n in rule.defaults} | set(rule.choices)
    signature = inspect.signature(getattr(torch.optim, name))
    found = {n: p.default for n, p in signature.parameters.items() if n in ours}
    for rule in members:  # what torch's class has not, and the rule needs
        own = {PAIRS.get(n, (n,))[0] for n in rule.defaults} - {*found}
        found |= {n: v for n, v in _arguments(rule).items() if n in own}
    found.setdefault("differentiable", False)
    if name == "AdamW":  # torch's class is an Adam with this entry in its groups
        found["decoupled_weight_decay"] = True
    return found


def _sgd(group: Group) -> str:
    return "nesterov" if group["nesterov"] else "momentum" if asked(group, "momentum") else "sgd"


def _sgd_check(group: Group) -> str:
    if group["nesterov"] and (group["momentum"] <= 0 or group["dampening"] != 0):
        return (f"nesterov=True was given with momentum={group['momentum']!r} and dampening="
                f"{group['dampening']!r}, expected momentum > 0 and dampening 0")  # fmt: skip
    return ""


def _muon_check(group: Group) -> str:
    if group["adjust_lr_fn"] not in (None, "original", "match_rms_adamw"):
        return (f"adjust_lr_fn={group['adjust_lr_fn']!r} was given, expected 'original', "
                "'match_rms_adamw' or None")  # fmt: skip
    return ""


def _free_check(group: Group) -> str:
    if group.get("cautious"):
        return "cautious=True was given, expected False; a masked y is no mean of x and z"
    return ""


def _either(plain: str, flag: str, other: str) -> Callable[[Group], str]:
    return lambda group: other if group[flag] else plain


_TORCH: dict[str, tuple[str, Callable[[Group], str]]] = {
    "SGD": ("sgd momentum nesterov", _sgd),
    "ASGD": ("asgd", lambda g: "asgd"),
    "Rprop": ("rprop", lambda g: "rprop"),
    "Adagrad": ("adagrad", lambda g: "adagrad"),
    "Adadelta": ("adadelta", lambda g: "adadelta"),
    "RMSprop": ("rmsprop", lambda g: "rmsprop"),
    "Adam": ("adam amsgrad", _either("adam", "amsgrad", "amsgrad")),
    "AdamW": ("adamw amsgrad", _either("adamw", "amsgrad", "amsgrad")),
    "Adamax": ("adamax", lambda g: "adamax"),
    "NAdam": ("nadam", lambda g: "nadam"),
    "RAdam": ("radam", lambda g: "radam"),
    "SparseAdam": ("sparse_adam", lambda g: "sparse_adam"),
    "Adafactor": ("adafactor", lambda g: "adafactor"),
    "Muon": ("muon", lambda g: "muon"),
}

_BELIEF = {
    "lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-16, "weight_decay": 0.0, "amsgrad": False,
    "weight_decouple": True, "fixed_decay": False, "rectify": True, "degenerated_to_sgd": True,
    "print_change_log": True, "maximize": False, "differentiable": False,
}  # fmt: skip
_BOUND = {
    "lr": 1e-3, "betas": (0.9, 0.999), "final_lr": 0.1, "gamma": 1e-3, "eps": 1e-8,
    "weight_decay": 0.0, "amsbound": False, "maximize": False, "differentiable": False,
}  # fmt: skip
_ADOPT = {
    "lr": 1e-3, "betas": (0.9, 0.9999), "eps": 1e-6, "clip": True, "weight_decay": 0.0,
    "decouple": False, "maximize": False, "differentiable": False,
}  # fmt: skip


def of(rule: Rule) -> Family:
    """The family of one rule: its class is named after it, with its own arguments."""
    check = _free_check if rule.called.endswith("ScheduleFree") else lambda group: ""
    return Family(rule.called, (rule,), _arguments(rule), check=check)


def _all() -> dict[str, Family]:
    found = {}
    for name, (members, pick) in _TORCH.items():
        known = tuple(rules[m] for m in members.split())
        check = {"SGD": _sgd_check, "Muon": _muon_check}.get(name, lambda group: "")
        found[name] = Family(name, known, _torch_arguments(name, known), pick, check)
    found["AdaBelief"] = Family("AdaBelief", (rules["adabelief"],), _BELIEF)
    found["AdaBound"] = Family(
        "AdaBound", (rules["adabound"], rules["amsbound"]), _BOUND,
        _either("adabound", "amsbound", "amsbound"),
    )  # fmt: skip
    found["ADOPT"] = Family("ADOPT", (rules["adopt"],), _ADOPT)
    done = {f.members[0].name for f in found.values()}
    for rule in rules.values():
        if rule.name not in done:
            family = of(rule)
            found[family.name] = family
    return found


def select_defaults(rule: Rule) -> Selection:
    """What the rule's class asks for when it is given nothing but parameters."""
    family = family_of(rule)
    return family.select(family.arguments)


families = _all()
"""Class name -> family."""
_by_rule = {f.members[0].name: f for f in families.values()}


def family_of(rule: str | Rule) -> Family:
    """The family of a rule, of its name, or of its class's name."""
    if isinstance(rule, str):
        if rule in families:
            return families[rule]
        rule = find(rule)
    if not isinstance(rule, Rule):
        raise TypeError(
            f"{rule!r} was given, expected a rule or its name; decorate it with @steepest.rule"
        )
    known = _by_rule.get(rule.name)
    if known is None or known.members[0] is not rule:
        known = _by_rule[rule.name] = of(rule)
    return known
