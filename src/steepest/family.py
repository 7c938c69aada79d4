"""A family: the rules behind one class, and the arguments that the class takes."""

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
    Group,
    is_used,
    one_letter_apart,
    option,
    outside,
    yaml_hint,
)
from .tensors import carries

_DECOUPLED = ("decoupled_weight_decay", "weight_decouple", "decouple")


class Selection(NamedTuple):
    """What steps a group: a rule, its static choices, and the modifiers applied before the rule."""

    rule: Rule
    modifiers: tuple[Callable[..., Any], ...]
    choices: tuple[tuple[str, Any], ...]

    def of(self, p: torch.Tensor) -> Selection:
        """Returns the selection for the parameter `p`: some rules treat matrices differently."""
        if "matrix" not in self.rule.choices:
            return self
        return self._replace(choices=(*self.choices, ("matrix", p.dim() > 1)))


@cache
def cautious_rule(rule: Rule) -> Rule:
    """Returns a copy of the rule that is followed by `modifiers.cautious`."""

    def function(p: Any, g: Any, *states: Any, **scalars: Any) -> Any:
        new = rule.function(SplitParameter(p), g, *states, **scalars)
        new, *rest = new if isinstance(new, tuple) else (new,)
        if not isinstance(new, SplitParameter):  # the rule did not return a share of p plus a step
            new = SplitParameter(p) + (new - p)
        rest = [x.joined() if isinstance(x, SplitParameter) else x for x in rest]
        return modifiers.cautious(g, new.share * p, new.moved), *rest

    made = copy.copy(rule)
    made.function = function
    return made


@dataclass(frozen=True)
class Family:
    """The rules and arguments of one class.

    name: the name of the class. members: its rules, whose docstrings begin the docstring of the
    class. arguments: name -> default, in order. pick: function from a group to the name of the rule
    that steps it. check: function from a group to a complaint about its options, or to "".
    """

    name: str
    members: tuple[Rule, ...]
    arguments: dict[str, Any]
    pick: Callable[[Group], str] = field(default=lambda group: "")
    check: Callable[[Group], str] = field(default=lambda group: "")

    def rule(self, group: Group) -> Rule:
        """Returns the rule that the group's options select."""
        name = self.pick(group)
        return next((r for r in self.members if r.name == name), self.members[0])

    def select(self, group: Group) -> Selection:
        """Returns the rule, modifiers and static choices that the group's options select."""
        rule = self.rule(group)
        before: list[Callable[..., Any]] = []
        if group.get("clip_norm") is not None:
            before.append(modifiers.clipped)
        if group.get("maximize"):
            before.append(modifiers.maximize)
        if is_used(group, "weight_decay") and "wd" not in rule.defaults:
            usual = rule.decay == "decoupled"
            decoupled = next((group[name] for name in _DECOUPLED if name in group), usual)
            fixed = modifiers.fixed if group.get("fixed_decay") else modifiers.decoupled
            before.append(fixed if decoupled else modifiers.coupled)
        own = {choice: usual for choice, usual in rule.choices.items() if choice in group}
        choices = {c: bool(group[c]) if isinstance(v, bool) else group[c] for c, v in own.items()}
        choices |= {choice: is_used(group, option) for choice, option in rule.switches.items()}
        rule = cautious_rule(rule) if group.get("cautious") else rule
        return Selection(rule, tuple(before), tuple(choices.items()))

    def bind(self, args: Sequence[Any], options: dict[str, Any]) -> dict[str, Any]:
        """Returns the constructor's arguments as name -> value.

        Raises TypeError for too many arguments, an argument given twice, or an unknown argument.
        """
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

    def likely_typos(self, group: Group) -> list[str]:
        """Returns the group's entries that look like misspelt options, each with a suggestion.

        Such an entry differs from an option only in capitals, spaces, hyphens or underscores, or by
        one letter if the option has five letters or more.
        """
        known = {*self.arguments, *self.captured, *STORAGE, "params", "param_names", "rule"}
        bare = {n.replace("_", ""): n for n in known}
        typos = []
        for name in group:
            letters = re.sub("[_ -]", "", name).lower() if isinstance(name, str) else ""
            if name in known or name in {*SCHEDULED, *WITHOUT_EFFECT}:
                continue
            close = [
                x for x in bare if x == letters or (len(x) > 4 and one_letter_apart(x, letters))
            ]
            if close:
                typos.append(f"{name!r}; did you mean {bare[close[0]]!r}?")
        return typos

    def plain(self, group: Group, where: str = "") -> dict[str, Any]:
        """Returns the group with normalised options: numbers become Python numbers, sequences of
        numbers become tuples, and flags become bools. Tensors of one element stay tensors. Thus the
        type in which an option was given makes no difference to steps and checkpoints.

        Raises TypeError or ValueError for a bad option; `where` is added to the message.
        """
        made = dict(group)
        options = {**self.arguments, **dict.fromkeys(self.captured, 0.0), **STORAGE}
        for name, default in options.items():
            if name not in group:
                continue
            try:
                made[name] = option(name, group[name], default)
            except (TypeError, ValueError) as error:
                value = short(group[name])
                message = f"{self.name}: {name}={value} was given{where}, expected {error}"
                raise type(error)(message) from None
        return made

    def saved(self, group: Group) -> dict[str, Any]:
        """Returns the group as a checkpoint saves it. Options are normalised where possible, and
        everything else is left unchanged.
        """
        made = dict(group)
        for name in {*self.arguments, *self.captured, *STORAGE, *SCHEDULED} & group.keys():
            with suppress(TypeError, ValueError):
                made[name] = plain(self.plain({name: group[name]})[name])
        return made

    def _key(self, name: str) -> tuple[str, int | None]:
        """Returns where a group keeps the scalar `name` of a rule, as (key, index).

        The index is None if the group's entry is the scalar itself, not a pair or triple.
        """
        key, index = PAIRS.get(name, (name, None))
        # a rule that has only one member of a pair takes it under the member's own name
        return (key, index) if key in self.arguments or index is None else (name, None)

    def scalar(self, group: Group, name: str, rule: Rule) -> float:
        """Returns the value of the rule's scalar `name` in a group.

        A member of a pair, such as beta1 of `betas`, is read from the pair.
        """
        value = self._value(group, name, rule)
        number = value if type(value) is float else real(value)  # runs at every step
        if number != number:
            key, _ = self._key(name)
            entry = group[key] if key in group else rule.defaults.get(name)
            text = f"{self.name}: {key}={short(entry)} was given, expected a number"
            raise TypeError(text + yaml_hint(entry))
        return number

    def read(self, group: Group, name: str, rule: Rule) -> Any:
        """Returns the scalar as a step reads it.

        This is a float, or the option's tensor if autograd has to go through the option.
        """
        number = self.scalar(group, name, rule)
        if not group.get("differentiable"):
            return number
        value = self._value(group, name, rule)
        return value if carries(value) else number

    def _value(self, group: Group, name: str, rule: Rule) -> Any:
        key, index = self._key(name)
        entry: Any = group[key] if key in group else rule.defaults.get(name)
        if index is None or key not in group:
            return entry
        usual = self.arguments[key]
        is_plain = type(entry) is tuple and len(entry) == len(usual)
        members: Any = entry if is_plain else several(entry, len(usual))
        value = math.nan if members is None else members[index]
        return rule.defaults[name] if value is None and usual[index] is None else value

    def validate(self, group: Group) -> dict[str, Any]:
        """Returns the group with normalised options.

        Raises TypeError for an option that is not a number. Raises ValueError for an option that is
        out of its limits or conflicts with another option.
        """
        group = self.plain(group)
        rule = self.rule(group)
        limits = {**rule.limits, "weight_decay": ("[0, inf)", ""), "clip_norm": ("(0, inf]", "")}
        limits |= {n: rule.limits[of] for n, of in rule.captured.items() if of in rule.limits}
        for name in (*rule.defaults, *rule.captured, "weight_decay", "clip_norm"):
            key, index = self._key(name)
            entry: Any = group.get(key)
            if entry is None or (index is not None and entry[index] is None):
                continue
            value = self.scalar(group, name, rule)
            interval, why = limits.get(name, ("[-inf, inf]", ""))
            if not inside(interval, value):
                shown = key if index is None else f"{key}[{index}]"
                why = f"; {why}" if why else ""
                raise ValueError(
                    f"{self.name}: {shown}={value!r} was given, expected a number in "
                    f"{interval}{why}"
                )
        rounding, seed = group.get("rounding"), group.get("seed", 0)
        if rounding is not None and not (isinstance(rounding, str) and rounding in ROUNDINGS):
            raise ValueError(
                f"{self.name}: rounding={rounding!r} was given, expected one of {ROUNDINGS} or None"
            )
        if type(seed) is not int:
            raise TypeError(f"{self.name}: seed={seed!r} was given, expected a whole number")
        if group.get("differentiable") and _orthogonalizes(rule):
            raise ValueError(
                f"{self.name}: differentiable=True was given, expected False, because its rule "
                "iterates in bfloat16, which has no gradient; use another rule for the parameter"
            )
        if rounding and group.get("differentiable"):
            raise ValueError(
                f"{self.name}: rounding={rounding!r} was given with differentiable=True, but "
                "autograd cannot go through rounding; give only one of the two"
            )
        if group.get("clip_norm") is not None and not rule.trace().elementwise:
            raise ValueError(
                f"{self.name}: clip_norm={group['clip_norm']!r} was given, expected None, because "
                "its rule is not elementwise; call torch.nn.utils.clip_grad_norm_ before the step"
            )
        if complaint := self.check(group):
            raise ValueError(f"{self.name}: {complaint}")
        return group

    @cached_property
    def keys(self) -> set[str]:
        """Every key that a parameter's state may have in this family."""
        return {"step", COMPENSATION}.union(*(r.keys.values() for r in self.members))

    @cached_property
    def static(self) -> list[str]:
        """The options that decide which rule, modifiers and choices apply."""
        scalars = {PAIRS.get(n, (n,))[0] for r in self.members for n in r.defaults}
        ignored = {*scalars, *WITHOUT_EFFECT} - {"momentum"}
        return [*(n for n in self.arguments if n not in ignored), "rule", *STORAGE]

    @cached_property
    def captured(self) -> dict[str, str]:
        """Constant of a group -> the hyperparameter whose first value the constant keeps."""
        return {n: source for r in self.members for n, source in r.captured.items()}


@cache
def _orthogonalizes(rule: Rule) -> bool:
    """Whether a rule orthogonalizes matrices, which it does in bfloat16."""
    return any(node.op == "orthogonal" for node in rule.trace().body)


def warn_about(called: str, family: Family, groups: Sequence[Group]) -> None:
    """Issue a UserWarning for each likely mistake in the group that was added last."""
    for typo in family.likely_typos(groups[-1]):
        warnings.warn(
            f"{called}: a group has the entry {typo} It is kept, without effect",
            stacklevel=outside(),
        )
    if [g.get("clip_norm") is not None for g in groups].count(True) == 2:
        warnings.warn(
            f"{called}: clip_norm clips each group separately; to clip all groups together, call "
            "torch.nn.utils.clip_grad_norm_ before the step",
            stacklevel=outside(),
        )
    params = groups[-1]["params"]
    if len({id(p) for p in params}) < len(params):
        warnings.warn(
            f"{called}: a group has the same parameter twice; the parameter is stepped once "
            "(torch steps it twice)",
            stacklevel=outside(),
        )
