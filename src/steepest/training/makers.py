"""Makers of a recipe's optimizer: one for rules, one for classes that are named `module:Class`.

A third maker, for methods on the full batch, is in `full_batch.py`.
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
from steepest.classes import class_of
from steepest.errors import BadCall
from steepest.families import families
from steepest.tasks.task import turn
from steepest.tasks.user_file import module_of
from steepest.training.parts import PARTS
from steepest.training.wants import Wants, first_error, wants_of

if TYPE_CHECKING:
    from steepest.definition import Rule

SPAN = 30.0
"""If a class has no search range, only its lr is tuned: from default / SPAN to default * SPAN.
All other options keep their defaults. A rule that declares no range is tuned in the same way. If a
class has the name of one of the package's classes, as torch.optim:SGD does, it gets the search
range and the defaults of the package's rule."""

NO_PARAMETERS = ("optimizer", "base_optimizer", "model", "module", "net")
"""Names of a first argument that is not the parameters."""


LINE = 100
"""Characters in a line of code to paste."""


class Maker(ABC):
    """Makes one kind of optimizer, and knows its hyperparameters."""

    name: str
    """The optimizer's name, as in the name of an entry."""

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
        """Option -> its default, for each numeric option that `--search` can add to the tuning."""
        return {}

    @property
    def whole_numbers(self) -> set[str]:
        """The options that take only whole numbers."""
        return set()

    @property
    def wants(self) -> Wants:
        """What a step of the optimizer needs besides gradients."""
        return Wants()

    @abstractmethod
    def make(
        self, params: Iterable[Any], hyper: Mapping[str, float], seed: int, entry: str
    ) -> torch.optim.Optimizer:
        """Make the optimizer. seed: for its random draws. entry: the entry's name, for errors."""

    @abstractmethod
    def code(self, hyper: Mapping[str, float]) -> list[str]:
        """Lines of Python to paste that make the optimizer of `model`: imports, `optimizer = ...`.

        This needs none of the user's code.
        """

    def try_out(self, hyper: Mapping[str, float]) -> None:
        """Make the optimizer with these values, so that bad values raise the optimizer's errors."""
        self.make([torch.nn.Parameter(torch.ones(2, 2))], hyper, 0, self.name)


@dataclass(frozen=True)
class RuleMaker(Maker):
    """Makes the optimizer of a rule. The rule is from the package or from the task's file."""

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

    def code(self, hyper: Mapping[str, float]) -> list[str]:
        cls = class_of(self.name) if self.name in steepest.rules else None
        if cls is None or getattr(steepest, cls.__name__, None) is not cls:
            why = f"# {self.name} is a rule of your own: import the module that defines it first"
            return [why, creation(f'steepest.optimizer("{self.name}", ', hyper)]
        if not cls.family.arguments.keys() >= hyper.keys():  # one number of a pair, such as beta2
            return [creation(f'steepest.optimizer("{self.name}", ', hyper)]
        averaged = ["# optimizer.eval() before each evaluation, optimizer.train() after it"]
        evaluated = averaged if hasattr(cls, "eval") else []
        return [creation(f"steepest.{cls.__name__}(", hyper), *evaluated]


@dataclass(frozen=True)
class ClassMaker(Maker):
    """Makes an optimizer from a subclass of torch.optim.Optimizer. `name` is its `module:Class`."""

    name: str

    @property
    def cls(self) -> type[torch.optim.Optimizer]:
        """The class, looked up at each use. Raises BadCall if it cannot be imported."""
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
                f"module:Class with such a class"
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
        """Options annotated as int, and options without annotation whose default is an int above 1.

        A default of 0 or 1 does not show that an option is a whole number: options such as
        `momentum=0` and `lr=1` take fractions too.
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

    @property
    def wants(self) -> Wants:
        return wants_of(self.cls, tuple(self.defaults.items()))

    def make(
        self, params: Iterable[Any], hyper: Mapping[str, float], seed: int, entry: str
    ) -> torch.optim.Optimizer:
        return make_class(self.cls, params, hyper, entry)

    def code(self, hyper: Mapping[str, float]) -> list[str]:
        module, _, attribute = self.name.partition(":")
        own = ['if hasattr(optimizer, "train"):  # then also eval() before each evaluation']
        return [
            f"from {module} import {attribute.partition('.')[0]}",
            creation(f"{attribute}(", hyper),
            *([] if module.startswith("torch.") else [*own, "    optimizer.train()"]),
        ]

    def try_out(self, hyper: Mapping[str, float]) -> None:
        super().try_out(hyper)
        error = self._first_step(hyper)
        if error and not self._first_step(self.defaults):  # with its defaults it can step here
            raise ValueError(f"{type(error).__name__} in the first step: {error}")

    def _first_step(self, hyper: Mapping[str, float]) -> Exception | None:
        """The error that the optimizer raises in its first step; None if it raises none."""
        return first_error(lambda params: self.make(params, hyper, 0, self.name), self.wants, 1)


def make_class(
    cls: Any, params: Iterable[Any], options: Mapping[str, Any], entry: str
) -> torch.optim.Optimizer:
    """Make an optimizer of the class, in training mode if it has one. Raises BadCall on failure."""
    try:
        made = cls(params, **options)
        turn(made, "train")  # the authors' Schedule-Free begins in evaluation mode
        return made
    except Exception as error:
        given = ", ".join(
            f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}" for k, v in options.items()
        )
        why, hint, rule = f"{type(error).__name__}: {error}", "", _rule_of(cls)
        if rule and not first_error(lambda small: cls(small, **options), Wants(), 0):
            hint = f"; did you mean {rule.name!r}?"  # it is the parameters that the class refuses
        raise BadCall(
            f"entry {entry!r} cannot be made with {given or 'its defaults'} ({why}){hint}"
        ) from None


def creation(call: str, options: Mapping[str, Any]) -> str:
    """`optimizer = ...` as Python. call: how the call begins, such as "steepest.Adam("."""
    given = ["model.parameters()", *(f"{name}={value!r}" for name, value in options.items())]
    line = f"optimizer = {call}{', '.join(given)})"
    broken = "\n".join([f"optimizer = {call.rstrip()}", *(f"    {each}," for each in given), ")"])
    return line if len(line) <= LINE else broken


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {
        name: float(value)
        for name, value in values.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    }


def _import(name: str) -> ModuleType:
    """Import a module. If it is the task's file, return the task's module without importing it.

    A second import of the task's file would define its rules twice. If the file was edited, the
    second import would also run other code.
    """
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # to find modules in the current folder
    if name not in sys.modules and (spec := importlib.util.find_spec(name)) and spec.origin:
        task = module_of(Path(spec.origin))
        if task:
            return task
    return importlib.import_module(name)


@cache
def _tuned(name: str, cls: type[torch.optim.Optimizer]) -> dict[str, float]:
    """Tuned option -> its default, for a class. Raises BadCall if lr has no usable default."""
    _check_arguments(name, cls)
    options = _options(cls)
    lr = options.get("lr")
    if lr is None:
        return {}
    if "lr" not in signature(cls).parameters:  # the class may set lr itself
        try:
            cls([torch.nn.Parameter(torch.zeros(1))], lr=lr.default)  # type: ignore[call-arg]
        except TypeError:
            return {}
    if rule := _rule_of(cls):
        return {knob: float(rule.defaults[knob]) for knob in rule.search if knob in options}
    if lr.default is Parameter.empty or not isinstance(lr.default, (int, float)) or lr.default <= 0:
        given = "none" if lr.default is Parameter.empty else repr(lr.default)
        raise BadCall(
            f"entry {name!r}: its default lr is {given}, but a race tunes lr around the default: "
            f"derive a subclass whose default lr is above 0"
        )
    return {"lr": float(lr.default)}


def _check_arguments(name: str, cls: type[torch.optim.Optimizer]) -> None:
    """Raise BadCall if the class cannot be made from parameters and a learning rate alone."""
    first, *others = signature(cls).parameters.values()
    needed = [
        p.name
        for p in others
        if p.default is Parameter.empty
        and p.kind not in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
        and p.name != "lr"
    ]
    given = first.name if first.name in NO_PARAMETERS else ", ".join(needed)
    if given:
        cure = "derive a subclass that needs only parameters, and sets the rest itself"
        part = cls.__name__.lower()
        if part in PARTS and PARTS[part].wraps:
            cure = f"did you mean 'adamw+{part}'?"
        raise BadCall(
            f"entry {name!r}: {cls.__name__} needs {given}, but a race gives it only parameters "
            f"and the options that are tuned; {cure}"
        )


def _rule_of(cls: type[torch.optim.Optimizer]) -> Rule | None:
    """The package's rule with the name of `cls` or of a parent class; None if there is none.

    A parent class counts only if it has the same default lr as `cls`. If the name belongs to a
    family of several rules, the defaults of `cls` decide which rule: SGD without momentum is `sgd`.
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
    """The arguments of the class. If it takes **options, its parent's arguments are included."""
    options = dict(signature(cls).parameters)
    if any(p.kind is Parameter.VAR_KEYWORD for p in options.values()):
        above = next((c for c in cls.__mro__[1:] if "__init__" in vars(c)), object)
        if issubclass(above, torch.optim.Optimizer) and above is not torch.optim.Optimizer:
            options = {**_options(above), **options}
    return options


def _plain(name: str) -> str:
    """A name in lower case, without underscores."""
    return name.replace("_", "").lower()
