"""The families of rules, one for each public class.

If torch.optim has a class of the same name, our class takes the arguments and defaults of torch's
class. AdaBelief, AdaBound and ADOPT take the arguments and defaults of their authors' packages.
Every other class takes the arguments and defaults of its rule.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch

from .definition import Rule, find, rules
from .family import Family, Selection
from .options import PAIRS, WITHOUT_EFFECT, Group, is_used

_DECAY = {"weight_decay", "maximize", "decoupled_weight_decay", "weight_decouple", "fixed_decay"}


def members_of(key: str, rule: Rule) -> list[str]:
    """Returns the scalars of a rule that a group keeps together under `key`, in order."""
    return [n for n, (k, _) in PAIRS.items() if k == key and n in rule.defaults]


def _arguments(rule: Rule) -> dict[str, Any]:
    """Returns the arguments of a class that has only this rule."""
    arguments: dict[str, Any] = {}
    for name, default in rule.defaults.items():
        key, index = PAIRS.get(name, (name, None))
        parts = members_of(key, rule)
        if index is None:
            arguments[key] = default
        elif len(parts) > 1 and [PAIRS[n][1] for n in parts] == [*range(len(parts))]:
            arguments[key] = tuple(rule.defaults[n] for n in parts)
        else:
            arguments[name] = default
    arguments |= {n: v for n, v in rule.choices.items() if n != "matrix"}
    arguments["weight_decay"] = rule.defaults.get("wd", 0.0)
    return arguments | {"maximize": False, "differentiable": False}


def _torch_arguments(name: str, members: tuple[Rule, ...]) -> dict[str, Any]:
    """Returns the arguments of a class that torch.optim also has.

    Arguments of torch's class that this package does not know are left out: a newer torch may have
    more. Arguments that the rules need and torch's class lacks are added.
    """
    ours = {*WITHOUT_EFFECT, *_DECAY, "amsgrad", "nesterov", "differentiable"}
    for rule in members:
        ours |= {PAIRS.get(n, (n,))[0] for n in rule.defaults} | set(rule.choices)
    signature = inspect.signature(getattr(torch.optim, name))
    arguments = {n: p.default for n, p in signature.parameters.items() if n in ours}
    for rule in members:  # what the rule needs and torch's class lacks
        own = {PAIRS.get(n, (n,))[0] for n in rule.defaults} - {*arguments}
        arguments |= {n: v for n, v in _arguments(rule).items() if n in own}
    arguments.setdefault("differentiable", False)
    if name == "AdamW":  # torch's class is an Adam with this entry in its groups
        arguments["decoupled_weight_decay"] = True
    return arguments


def _pick_sgd(group: Group) -> str:
    if group["nesterov"]:
        return "nesterov"
    return "momentum" if is_used(group, "momentum") else "sgd"


def _check_sgd(group: Group) -> str:
    momentum, dampening = group["momentum"], group["dampening"]
    if group["nesterov"] and (momentum <= 0 or dampening != 0):
        return (
            f"nesterov=True was given with momentum={momentum!r} and dampening={dampening!r}, "
            "expected momentum > 0 and dampening 0"
        )
    return ""


def _check_muon(group: Group) -> str:
    if group["adjust_lr_fn"] not in (None, "original", "match_rms_adamw"):
        return (
            f"adjust_lr_fn={group['adjust_lr_fn']!r} was given, expected 'original', "
            "'match_rms_adamw' or None"
        )
    return ""


def _check_schedule_free(group: Group) -> str:
    if group.get("cautious"):
        return (
            "cautious=True was given, expected False, because y would no longer be an average of x "
            "and z if parts of a step were dropped"
        )
    return ""


def _pick_by(flag: str, on: str, off: str) -> Callable[[Group], str]:
    """Returns a function that picks the rule `on` if the group's flag is set, else `off`."""
    return lambda group: on if group[flag] else off


# class -> its rules, and the function that picks the rule of a group
_TORCH: dict[str, tuple[str, Callable[[Group], str]]] = {
    "SGD": ("sgd momentum nesterov", _pick_sgd),
    "ASGD": ("asgd", lambda g: "asgd"),
    "Rprop": ("rprop", lambda g: "rprop"),
    "Adagrad": ("adagrad", lambda g: "adagrad"),
    "Adadelta": ("adadelta", lambda g: "adadelta"),
    "RMSprop": ("rmsprop", lambda g: "rmsprop"),
    "Adam": ("adam amsgrad", _pick_by("amsgrad", on="amsgrad", off="adam")),
    "AdamW": ("adamw amsgrad", _pick_by("amsgrad", on="amsgrad", off="adamw")),
    "Adamax": ("adamax", lambda g: "adamax"),
    "NAdam": ("nadam", lambda g: "nadam"),
    "RAdam": ("radam", lambda g: "radam"),
    "SparseAdam": ("sparse_adam", lambda g: "sparse_adam"),
    "Adafactor": ("adafactor", lambda g: "adafactor"),
    "Muon": ("muon", lambda g: "muon"),
}

_BELIEF = {
    "lr": 1e-3,
    "betas": (0.9, 0.999),
    "eps": 1e-16,
    "weight_decay": 0.0,
    "amsgrad": False,
    "weight_decouple": True,
    "fixed_decay": False,
    "rectify": True,
    "degenerated_to_sgd": True,
    "print_change_log": True,
    "maximize": False,
    "differentiable": False,
}
_BOUND = {
    "lr": 1e-3,
    "betas": (0.9, 0.999),
    "final_lr": 0.1,
    "gamma": 1e-3,
    "eps": 1e-8,
    "weight_decay": 0.0,
    "amsbound": False,
    "maximize": False,
    "differentiable": False,
}
_ADOPT = {
    "lr": 1e-3,
    "betas": (0.9, 0.9999),
    "eps": 1e-6,
    "clip": True,
    "weight_decay": 0.0,
    "decouple": False,
    "maximize": False,
    "differentiable": False,
}


def _family_of_one(rule: Rule) -> Family:
    """Make a family of one rule. The rule gives the family its name and arguments."""
    check = _check_schedule_free if rule.called.endswith("ScheduleFree") else lambda group: ""
    return Family(rule.called, (rule,), _arguments(rule), check=check)


def _build_families() -> dict[str, Family]:
    built = {}
    for name, (members, pick) in _TORCH.items():
        known = tuple(rules[m] for m in members.split())
        check = {"SGD": _check_sgd, "Muon": _check_muon}.get(name, lambda group: "")
        built[name] = Family(name, known, _torch_arguments(name, known), pick, check)
    built["AdaBelief"] = Family("AdaBelief", (rules["adabelief"],), _BELIEF)
    pick = _pick_by("amsbound", on="amsbound", off="adabound")
    built["AdaBound"] = Family("AdaBound", (rules["adabound"], rules["amsbound"]), _BOUND, pick)
    built["ADOPT"] = Family("ADOPT", (rules["adopt"],), _ADOPT)
    done = {f.members[0].name for f in built.values()}
    for rule in rules.values():
        if rule.name not in done:
            family = _family_of_one(rule)
            built[family.name] = family
    return built


def select_defaults(rule: Rule) -> Selection:
    """Returns what the rule's class selects for a group whose options are the defaults."""
    family = family_of(rule)
    return family.select(family.arguments)


families = _build_families()
"""Class name -> family."""
_by_rule = {f.members[0].name: f for f in families.values()}


def family_of(rule: str | Rule) -> Family:
    """Returns the family of a rule. rule: the rule itself, its name, or the name of its class."""
    if isinstance(rule, str):
        if rule in families:
            return families[rule]
        rule = find(rule)
    if not isinstance(rule, Rule):
        raise TypeError(
            f"{rule!r} was given, expected a rule or its name; decorate the function with "
            "@steepest.rule"
        )
    known = _by_rule.get(rule.name)
    if known is None or known.members[0] is not rule:
        known = _by_rule[rule.name] = _family_of_one(rule)
    return known
