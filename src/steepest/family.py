"""A family: the rules that stand behind one class, and the arguments that it takes."""

from __future__ import annotations

import copy
import math
import re
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any, NamedTuple

import torch

from .checks import plain, real, several, short
from .definition import COMPENSATION, Rule, inside, nearest
from .formulas import modifiers
from .ops import SplitParameter
from .options import (
    PAIRS,
    ROUNDINGS,
    SCHEDULED,
    STORAGE,
    WITHOUT_EFFECT,
    WRITTEN,
    Group,
    asked,
    one_apart,
    option,
    outside,
)
from .tensors import carries

_DECOUPLED = ("decoupled_weight_decay", "weight_decouple", "decouple")


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
        new = rule.function(SplitParameter(p), g, *states, **scalars)
        new, *rest = new if isinstance(new, tuple) else (new,)
        if not isinstance(new, SplitParameter):  # no sum of a share of p and a step
            new = SplitParameter(p) + (new - p)
        rest = [x.joined() if isinstance(x, SplitParameter) else x for x in rest]
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
        choices |= {choice: asked(group, option) for choice, option in rule.switches.items()}
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
                found[name] = option(name, group[name], default)
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
            hint = WRITTEN * isinstance(given, (str, bytes))
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


def warn_about(called: str, family: Family, groups: Sequence[Group]) -> None:
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
