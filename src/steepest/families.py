"""A family: the rules that stand behind one class, and the arguments that it takes.

A class that torch.optim has too takes torch.optim's arguments, with torch.optim's defaults;
AdaBelief, AdaBound and ADOPT take those of their authors' packages; every other class takes those
of its rule.
"""

from __future__ import annotations

import copy
import inspect
import math
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .checks import plain, real, several, short
from .definition import COMPENSATION, Rule, find, inside, nearest, rules
from .formulas import modifiers
from .formulas.words import Parted
from .tensors import carries

Group = Mapping[str, Any]
PAIRS = {
    "beta1": ("betas", 0), "beta2": ("betas", 1), "beta3": ("betas", 2), "etaminus": ("etas", 0),
    "etaplus": ("etas", 1), "step_min": ("step_sizes", 0), "step_max": ("step_sizes", 1),
    "eps1": ("eps", 0), "eps2": ("eps", 1), "ns_a": ("ns_coefficients", 0),
    "ns_b": ("ns_coefficients", 1), "ns_c": ("ns_coefficients", 2), "wd": ("weight_decay", None),
}  # fmt: skip
"""Scalar of a rule -> where it stands in a group. A rule that takes `wd` decays by itself."""
# accepted, so that a program need not change; the backend is chosen by device
WITHOUT_EFFECT = {"foreach": None, "fused": None, "capturable": False, "print_change_log": True}
# for every class: where the bytes are, and what stands around the rule; in a group only if given
STORAGE = {"rounding": None, "seed": 0, "cautious": False, "clip_norm": None}
# what torch's schedulers leave in a group
SCHEDULED = {"initial_lr", "max_lr", "min_lr", "swa_lr", "base_momentum", "max_momentum"}
ROUNDINGS = ("stochastic", "kahan")
_WRITTEN = "; write it without quotes, and 1.0e-3 for 1e-3 in YAML"
_DECOUPLED = ("decoupled_weight_decay", "weight_decouple", "decouple")
_DECAY = {"weight_decay", "maximize", "decoupled_weight_decay", "weight_decouple", "fixed_decay"}


class Selection(NamedTuple):
    """What a group asks for: a rule, its static choices and the modifiers before it."""

    rule: Rule
    modifiers: tuple[Callable[..., Any], ...]
    choices: tuple[tuple[str, Any], ...]

    def of(self, p: torch.Tensor) -> Selection:
        """The selection for one parameter: a rule may treat matrices in another way."""
        if "matrix" not in self.rule.choices:
            return self
        return self._replace(choices=(*self.choices, ("matrix", p.dim() > 1)))


@cache
def careful(rule: Rule) -> Rule:
    """The rule with `modifiers.cautious` after it."""

    def function(p: Any, g: Any, *states: Any, **scalars: Any) -> Any:
        new = rule.function(Parted(p), g, *states, **scalars)
        new, *rest = new if isinstance(new, tuple) else (new,)
        if not isinstance(new, Parted):  # no sum of a share of p and a step
            new = Parted(p) + (new - p)
        rest = [x.whole() if isinstance(x, Parted) else x for x in rest]
        return modifiers.cautious(g, new.share * p, new.moved), *rest

    made = copy.copy(rule)
    made.function = function
    return made


@dataclass(frozen=True)
class Family:
    """name: the class's; members: its rules by name, the first one giving the class its docstring;
    arguments: name -> default, in order; pick: group -> name of the rule; check: group ->
    complaint.
    """

    name: str
    members: tuple[Rule, ...]
    arguments: dict[str, Any]
    pick: Callable[[Group], str] = field(default=lambda group: "")
    check: Callable[[Group], str] = field(default=lambda group: "")

    def rule(self, group: Group) -> Rule:
        """The rule that the group's entries ask for."""
        wanted = self.pick(group)
        return next((r for r in self.members if r.name == wanted), self.members[0])

    def select(self, group: Group) -> Selection:
        """Rule, modifiers and static choices of a group."""
        rule = self.rule(group)
        before: list[Callable[..., Any]] = []
        before += [modifiers.clipped] * (group.get("clip_norm") is not None)
        before += [modifiers.maximize] * bool(group.get("maximize"))
        if asked(group, "weight_decay") and "wd" not in rule.defaults:
            usual = rule.decay == "decoupled"
            decoupled = next((group[name] for name in _DECOUPLED if name in group), usual)
            fixed = modifiers.fixed if group.get("fixed_decay") else modifiers.decoupled
            before.append(fixed if decoupled else modifiers.coupled)
        choices = {c: bool(group[c]) if isinstance(v, bool) else group[c]
                   for c, v in rule.choices.items() if c in group}  # fmt: skip
        if "heavy" in rule.choices:
            choices["heavy"] = asked(group, "momentum")
        rule = careful(rule) if group.get("cautious") else rule
        return Selection(rule, tuple(before), tuple(choices.items()))

    def bind(self, args: Sequence[Any], options: dict[str, Any]) -> dict[str, Any]:
        """The arguments of a constructor by name; TypeError for one too many, twice or unknown."""
        if len(args) > len(self.arguments):
            raise TypeError(
                f"{self.name} takes at most {1 + len(self.arguments)} positional arguments"
            )
        for name, value in zip(self.arguments, args, strict=False):
            if name in options:
                raise TypeError(f"{self.name} got {name!r} twice")
            options[name] = value
        known = {*self.arguments, *self.captured, *STORAGE}
        options = {n: v for n, v in options.items() if n in known or n not in WITHOUT_EFFECT}
        for name in options:
            if name not in known:
                raise TypeError(f"{self.name} has no argument {name!r}; {nearest(name, known)}")
        return options

    def slips(self, group: Group) -> list[str]:
        """The entries that are slips of the pen, and nobody else's: an option with other capitals
        or underscores, or one letter away from one of five or more.
        """
        known = {*self.arguments, *self.captured, *STORAGE, "params", "param_names", "rule"}
        bare = {n.replace("_", ""): n for n in known}
        found = []
        for name in group:
            letters = re.sub("[_ -]", "", name).lower() if isinstance(name, str) else ""
            if name in known or name in {*SCHEDULED, *WITHOUT_EFFECT}:
                continue
            close = [x for x in bare if x == letters or (len(x) > 4 and one_apart(x, letters))]
            if close:
                found.append(f"{name!r}; did you mean {bare[close[0]]!r}?")
        return found

    def plain(self, group: Group, where: str = "") -> dict[str, Any]:
        """The group with numbers as Python's own, sequences of them as tuples and flags as bools:
        whatever they came as, they step, save and load alike. Tensors of one number stay.

        Raises TypeError or ValueError for an option that is none; where: of what checkpoint.
        """
        found = dict(group)
        options = {**self.arguments, **dict.fromkeys(self.captured, 0.0), **STORAGE}
        for name, default in options.items():
            if name not in group:
                continue
            try:
                found[name] = _option(name, group[name], default)
            except (TypeError, ValueError) as error:
                one = short(group[name])
                what = f"{self.name}: {name}={one} was given{where}, expected {error}"
                raise type(error)(what) from None
        return found

    def saved(self, group: Group) -> dict[str, Any]:
        """The group with its options made plain as far as they can be: what somebody has put there
        since is saved all the same.
        """
        found = dict(group)
        for name in {*self.arguments, *self.captured, *STORAGE, *SCHEDULED} & group.keys():
            with suppress(TypeError, ValueError):
                found[name] = plain(self.plain({name: group[name]})[name])
        return found

    def _place(self, name: str) -> tuple[str, int | None]:
        """Where a scalar of a rule stands in a group: the key, and the place in a pair."""
        key, index = PAIRS.get(name, (name, None))
        # a rule with one of a pair's names alone takes it under that name
        return (key, index) if key in self.arguments or index is None else (name, None)

    def scalar(self, group: Group, name: str, rule: Rule) -> float:
        """The value of a rule's scalar in a group, betas and their like taken apart."""
        one = self._entry(group, name, rule)
        number = one if type(one) is float else real(one)  # at every step
        if number != number:
            key, _ = self._place(name)
            given = group[key] if key in group else rule.defaults.get(name)
            hint = _WRITTEN * isinstance(given, (str, bytes))
            what = f"{self.name}: {key}={short(given)} was given, expected a number{hint}"
            raise TypeError(what)
        return number

    def read(self, group: Group, name: str, rule: Rule) -> Any:
        """What a step reads of it: the tensor itself where autograd is to go through."""
        number = self.scalar(group, name, rule)
        if not group.get("differentiable"):
            return number
        one = self._entry(group, name, rule)
        return one if carries(one) else number

    def _entry(self, group: Group, name: str, rule: Rule) -> Any:
        key, index = self._place(name)
        given: Any = group[key] if key in group else rule.defaults.get(name)
        if index is None or key not in group:
            return given
        usual = self.arguments[key]
        plainly = type(given) is tuple and len(given) == len(usual)
        members: Any = given if plainly else several(given, len(usual))
        one = math.nan if members is None else members[index]
        return rule.defaults[name] if one is None and usual[index] is None else one

    def validate(self, group: Group) -> dict[str, Any]:
        """The group with its options made plain; TypeError or ValueError for one that is no number
        or out of limits.
        """
        group = self.plain(group)
        rule = self.rule(group)
        limits = {**rule.limits, "weight_decay": ("[0, inf)", ""), "clip_norm": ("(0, inf]", "")}
        limits |= {n: rule.limits[of] for n, of in rule.captured.items() if of in rule.limits}
        for name in (*rule.defaults, *rule.captured, "weight_decay", "clip_norm"):
            key, index = self._place(name)
            one: Any = group.get(key)
            if one is None or (index is not None and one[index] is None):
                continue
            value = self.scalar(group, name, rule)
            interval, why = limits.get(name, ("[-inf, inf]", ""))
            if not inside(interval, value):
                what = key if index is None else f"{key}[{index}]"
                why = why and f"; {why}"
                raise ValueError(
                    f"{self.name}: {what}={value!r} was given, expected a number in {interval}{why}"
                )
        rounding, seed = group.get("rounding"), group.get("seed", 0)
        if rounding is not None and not (isinstance(rounding, str) and rounding in ROUNDINGS):
            raise ValueError(
                f"{self.name}: rounding={rounding!r} was given, expected one of {ROUNDINGS} or None"
            )
        if type(seed) is not int:
            raise TypeError(f"{self.name}: seed={seed!r} was given, expected a whole number")
        if group.get("differentiable") and _iterates(rule):
            raise ValueError(
                f"{self.name}: differentiable=True was given, expected False, as its rule iterates "
                "in bfloat16, whose steps have no slope; hand the parameter to another rule"
            )
        if rounding and group.get("differentiable"):
            raise ValueError(
                f"{self.name}: rounding={rounding!r} was given with differentiable=True, expected "
                "one of them; autograd does not go through a rounding"
            )
        if group.get("clip_norm") is not None and not rule.trace().elementwise:
            raise ValueError(
                f"{self.name}: clip_norm={group['clip_norm']!r} was given, expected None, as its "
                "rule looks at whole tensors itself; call torch.nn.utils.clip_grad_norm_ before "
                "the step"
            )
        if complaint := self.check(group):
            raise ValueError(f"{self.name}: {complaint}")
        return group

    @cached_property
    def keys(self) -> set[str]:
        """Every key that a state of this family may have."""
        return {"step", COMPENSATION}.union(*(r.keys.values() for r in self.members))

    @cached_property
    def static(self) -> list[str]:
        """The options that decide over rule, modifiers and choices."""
        values = {PAIRS.get(n, (n,))[0] for r in self.members for n in r.defaults}
        return [
            n for n in self.arguments if n not in values - {"momentum"} and n not in WITHOUT_EFFECT
        ] + ["rule", *STORAGE]

    @cached_property
    def captured(self) -> dict[str, str]:
        """Group constants: name -> the hyperparameter that it is taken from."""
        return {n: source for r in self.members for n, source in r.captured.items()}


@cache
def _iterates(rule: Rule) -> bool:
    """Whether a rule makes matrices orthogonal in 16 bits."""
    return any(node.op == "orthogonal" for node in rule.trace().body)


def asked(group: Group, name: str) -> bool:
    """Whether a group has a decay or a momentum: at 0, too, if its gradient is asked for."""
    value = group.get(name)
    return bool(value) or (bool(group.get("differentiable")) and carries(value))


def one_apart(a: str, b: str) -> bool:
    """Whether words differ by one letter: another, one more or less, or two that changed places."""
    short, long = sorted((a, b), key=len)
    if len(short) < len(long):
        return short in [long[:i] + long[i + 1 :] for i in range(len(long))]
    at = [i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y]
    return len(at) == 1 or (len(at) == 2 and [a[at[0]], a[at[1]]] == [b[at[1]], b[at[0]]])


def taken(called: str, group: dict[str, Any]) -> None:
    """Put the tensors of an iterator that is a group's params into a list in the user's own dict,
    as torch does: else a second optimizer made of that dict would have no parameters.

    Raises ValueError for a generator that was used up; UserWarning for another iterator without
    tensors.
    """
    params = group["params"]
    listed = params if isinstance(params, (list, tuple)) else ()
    if odd := [x for x in listed if isinstance(x, tuple) and len(x) != 2]:
        raise TypeError(f"{called}: params has {odd[0]!r}, expected tensors or (name, tensor) each")
    if not isinstance(params, Iterator):
        return
    used = inspect.isgenerator(params) and inspect.getgeneratorstate(params) == inspect.GEN_CLOSED
    cure = "pass a list, which can be used more than once"
    if used:
        raise ValueError(f"{called}: a group's params is a generator that was used up; {cure}")
    group["params"] = [*params]
    if not group["params"]:
        given = type(params).__name__
        warnings.warn(
            f"{called}: a group's params is a {given} that gave no tensors; if it was used before, "
            f"{cure}",
            stacklevel=outside(),
        )


def _option(name: str, value: Any, default: Any) -> Any:
    """An option made plain; TypeError or ValueError that says what was expected."""
    if name == "seed" or name in WITHOUT_EFFECT:
        return plain(value)
    if isinstance(default, bool):
        found = False if value is None else plain(value)  # torch takes None for False
        if type(found) not in (bool, int) or found not in (0, 1):
            raise TypeError("True or False")
        return bool(found)
    if isinstance(default, str) and not isinstance(value, str):
        raise TypeError("a str")
    if isinstance(default, tuple):
        words = f"{'a pair of' if len(default) == 2 else len(default)} numbers"
        words += ", the first of which may be None" * (default[0] is None)
        if (found := several(value, len(default))) is None:
            raise ValueError(words)
        # torch.optim.Adafactor's eps begins with None
        return tuple(
            None if one is None and usual is None else _number(one, words)
            for one, usual in zip(found, default, strict=True)
        )
    if isinstance(default, (int, float)) or (name == "clip_norm" and value is not None):
        return _number(value, "a number")
    return value


def _number(value: Any, words: str) -> Any:
    if isinstance(value, torch.Tensor) and value.numel() != 1:
        raise ValueError(f"{words} or a tensor of one element, not of shape {tuple(value.shape)}")
    if math.isnan(real(value)):
        text = isinstance(value, (str, bytes))  # as YAML reads 1e-3
        raise TypeError(words + _WRITTEN * text)
    return plain(value)


def outside() -> int:
    """The stacklevel of a caller's warning: where this package and torch were called from."""
    inside = tuple(str(Path(package).parent) + os.sep for package in (__file__, torch.__file__))
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_code.co_filename.startswith(inside):
        frame, level = frame.f_back, level + 1
    return level


def warn(called: str, family: Family, groups: Sequence[Group]) -> None:
    """UserWarning for what a new group, the last one, may do that its user does not mean."""
    for slip in family.slips(groups[-1]):
        warnings.warn(
            f"{called}: a group has the entry {slip} It is kept, without effect",
            stacklevel=outside(),
        )
    if [g.get("clip_norm") is not None for g in groups].count(True) == 2:
        warnings.warn(
            f"{called}: clip_norm holds each group below it on its own; for all groups together "
            "call torch.nn.utils.clip_grad_norm_ before the step",
            stacklevel=outside(),
        )
    params = groups[-1]["params"]
    if len({id(p) for p in params}) < len(params):
        warnings.warn(
            f"{called}: a parameter stands twice in one group; it is stepped once (torch steps it "
            "twice)",
            stacklevel=outside(),
        )


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
_NAMES = {
    "amsgrad": "AMSGrad", "eadam": "EAdam", "amsbound": "AMSBound", "msvag": "MSVAG",
    "novograd": "NovoGrad", "lars": "LARS", "lamb": "LAMB", "swats": "SWATS", "mars": "MARS",
    "soap": "SOAP", "yellowfin": "YellowFin", "ademamix": "AdEMAMix",
    "schedule_free_sgd": "SGDScheduleFree",
    "schedule_free_adamw": "AdamWScheduleFree",
}  # fmt: skip


def of(rule: Rule) -> Family:
    """The family of one rule: its class is named after it, with its own arguments."""
    name = _NAMES.get(rule.name) or "".join(w.title() for w in rule.name.split("_"))
    check = _free_check if name.endswith("ScheduleFree") else lambda group: ""
    return Family(name, (rule,), _arguments(rule), check=check)


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
