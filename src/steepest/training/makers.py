"""What makes the optimizer of a recipe: a rule, or a class that is named `module:Class`.

The third kind of maker, a method on the full batch, is in `full_batch.py`.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from inspect import Parameter, signature
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch

import steepest
from steepest.errors import BadCall
from steepest.families import families
from steepest.tasks.task import turn
from steepest.tasks.user_file import module_of

if TYPE_CHECKING:
    from steepest.definition import Rule

SPAN = 30.0
"""A class without a known search range is tuned in lr alone, from its default / 30 to * 30, as a
rule that declares none is; all else stays at its defaults. A class with the name of one of the
package's classes, such as torch.optim:SGD, has the range and the defaults of that class's rule."""


class Maker(ABC):
    """Makes one kind of optimizer, and knows its hyperparameters."""

    name: str
    """The optimizer in an entry's name."""

    @property
    @abstractmethod
    def space(self) -> dict[str, tuple[float, float]]:
        """Hyperparameter -> (low, high) of its search range."""

    @property
    @abstractmethod
    def defaults(self) -> dict[str, float]:
        """The default of each hyperparameter in `space`."""

    @property
    def options(self) -> dict[str, float]:
        """The default of each number that `--search` can add to what is tuned."""
        return {}

    @property
    def whole_numbers(self) -> set[str]:
        """Those of `options` that take whole numbers only."""
        return set()

    @abstractmethod
    def make(
        self, params: Iterable[Any], hyper: Mapping[str, float], seed: int, entry: str
    ) -> torch.optim.Optimizer:
        """The optimizer. seed: of one that draws. entry: for an error's text."""

    def try_out(self, hyper: Mapping[str, float]) -> None:
        """Raise what the optimizer raises at these values."""
        self.make([torch.nn.Parameter(torch.ones(2, 2))], hyper, 0, self.name)


@dataclass(frozen=True)
class RuleMaker(Maker):
    """A rule, of the package or of the task file."""

    name: str

    @property
    def rule(self) -> Rule:
        return steepest.rules[self.name]

    @property
    def space(self) -> dict[str, tuple[float, float]]:
        return dict(self.rule.search)

    @property
    def defaults(self) -> dict[str, float]:
        return {knob: float(self.rule.defaults[knob]) for knob in self.rule.search}

    @property
    def options(self) -> dict[str, float]:
        made = steepest.optimizer(self.name, [torch.nn.Parameter(torch.ones(2, 2))])
        decay = {"weight_decay": made.param_groups[0].get("weight_decay")}
        return _numbers({**decay, **self.rule.defaults})

    @property
    def whole_numbers(self) -> set[str]:
        return {name for name, value in self.rule.defaults.items() if type(value) is int}

    def make(
        self, params: Iterable[Any], hyper: Mapping[str, float], seed: int, entry: str
    ) -> torch.optim.Optimizer:
        return steepest.optimizer(self.name, params, **hyper)


@dataclass(frozen=True)
class ClassMaker(Maker):
    """A subclass of torch.optim.Optimizer, named `module:Class`."""

    name: str

    @property
    def cls(self) -> type[torch.optim.Optimizer]:
        """The class as it is now; BadCall if it cannot be imported."""
        module, _, attribute = self.name.partition(":")
        try:
            value: Any = _import(module)
            for part in attribute.split("."):
                value = getattr(value, part)
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
            raise BadCall(
                f"entry {self.name!r} cannot be imported ({why}): expected module:Class"
            ) from None
        if not isinstance(value, type) or not issubclass(value, torch.optim.Optimizer):
            raise BadCall(
                f"entry {self.name!r} is not a subclass of torch.optim.Optimizer: expected "
                f"module:Class"
            )
        return value

    @property
    def space(self) -> dict[str, tuple[float, float]]:
        defaults, rule = self.defaults, _rule_of(self.cls)
        if rule:
            return {knob: rule.search[knob] for knob in defaults}
        return {knob: (value / SPAN, value * SPAN) for knob, value in defaults.items()}

    @property
    def defaults(self) -> dict[str, float]:
        return dict(_tuned(self.name, self.cls))

    @property
    def options(self) -> dict[str, float]:
        return _numbers({name: p.default for name, p in signature(self.cls).parameters.items()})

    @property
    def whole_numbers(self) -> set[str]:
        """Options annotated as int, or whose default is an int above 1 without an annotation.

        `momentum=0` and `lr=1` mean fractions as often as not.
        """
        return {
            name
            for name, p in signature(self.cls).parameters.items()
            if name not in self.defaults
            and (
                p.annotation in (int, "int")
                or (p.annotation is Parameter.empty and type(p.default) is int and p.default > 1)
            )
        }

    def make(
        self, params: Iterable[Any], hyper: Mapping[str, float], seed: int, entry: str
    ) -> torch.optim.Optimizer:
        return make_class(self.cls, params, hyper, entry)

    def try_out(self, hyper: Mapping[str, float]) -> None:
        super().try_out(hyper)
        error = self._first_step(hyper)
        if error and not self._first_step(self.defaults):  # it can step without a closure
            raise ValueError(f"{type(error).__name__} in the first step: {error}")

    def _first_step(self, hyper: Mapping[str, float]) -> Exception | None:
        """What it raises, if anything."""
        weight = torch.nn.Parameter(torch.ones(2, 2))
        weight.grad = torch.ones(2, 2)
        try:
            self.make([weight], hyper, 0, self.name).step()
        except Exception as error:
            return error
        return None


def make_class(
    cls: Any, params: Iterable[Any], options: Mapping[str, Any], entry: str
) -> torch.optim.Optimizer:
    """An optimizer of the class, in training mode if it has one; BadCall if it cannot be made."""
    try:
        made = cls(params, **options)
        turn(made, "train")  # Schedule-Free by its authors begins at the point of use
        return made
    except Exception as error:
        given = ", ".join(
            f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}" for k, v in options.items()
        )
        why = f"{type(error).__name__}: {error}"
        raise BadCall(
            f"entry {entry!r} cannot be made with {given or 'its defaults'} ({why})"
        ) from None


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {
        name: float(value)
        for name, value in values.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    }


def _import(name: str) -> ModuleType:
    """The module, or the task's file if that is the module.

    A second import of the file would define its rules twice, and differ if the file was edited.
    """
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # the caller's own modules
    if name not in sys.modules and (spec := importlib.util.find_spec(name)) and spec.origin:
        task = module_of(Path(spec.origin))
        if task:
            return task
    return importlib.import_module(name)


@cache
def _tuned(name: str, cls: type[torch.optim.Optimizer]) -> dict[str, float]:
    """Default of each tuned option of a class; BadCall for an lr without a usable default."""
    options = _options(cls)
    lr = options.get("lr")
    if lr is None:
        return {}
    if "lr" not in signature(cls).parameters:  # it may set lr itself
        try:
            cls([torch.nn.Parameter(torch.zeros(1))], lr=lr.default)  # type: ignore[call-arg]
        except TypeError:
            return {}
    if rule := _rule_of(cls):
        return {knob: float(rule.defaults[knob]) for knob in rule.search if knob in options}
    if lr.default is Parameter.empty or not isinstance(lr.default, (int, float)) or lr.default <= 0:
        given = "none" if lr.default is Parameter.empty else repr(lr.default)
        raise BadCall(
            f"entry {name!r}: its default lr is {given}, and a race tunes around the default: "
            f"expected a number above 0; derive a class that has one"
        )
    return {"lr": float(lr.default)}


def _rule_of(cls: type[torch.optim.Optimizer]) -> Rule | None:
    """The package's rule for a class: by its name, or that of a parent whose lr it has kept.

    The defaults of the class decide among the rules of a family: SGD without momentum is `sgd`.
    """
    options = _options(cls)
    for base in cls.__mro__:
        for family in families.values() if issubclass(base, torch.optim.Optimizer) else ():
            members = {_plain(rule.name): rule for rule in family.members}
            if _plain(base.__name__) not in (*members, _plain(family.name)):
                continue
            theirs, own = _options(base).get("lr"), options.get("lr")
            if own is None or theirs is None or own.default != theirs.default:
                return None
            usual = {n: p.default for n, p in options.items() if p.default is not Parameter.empty}
            chosen = family.rule({**family.arguments, **usual})
            if base.__name__ == family.name:
                return chosen
            return members.get(_plain(base.__name__), chosen)
    return None


def _options(cls: type) -> dict[str, Parameter]:
    """The arguments of the class, and those of its parent where it hands on any **options."""
    options = dict(signature(cls).parameters)
    if any(p.kind is Parameter.VAR_KEYWORD for p in options.values()):
        above = next((c for c in cls.__mro__[1:] if "__init__" in vars(c)), object)
        if issubclass(above, torch.optim.Optimizer) and above is not torch.optim.Optimizer:
            options = {**_options(above), **options}
    return options


def _plain(name: str) -> str:
    """A name without case and underscores."""
    return name.replace("_", "").lower()
