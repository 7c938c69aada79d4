"""The examined class: how scripts import and construct it, and facts about it.

The facts are found by constructing and stepping the class.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
from functools import cached_property
from typing import Any

import torch

from ..definition import Rule, nearest
from ..shell import RuleOptimizer
from .guards import limited, quiet
from .target import TargetError, home_of, imported, one_line, resolve
from .values import EXPRESSIONS, VALUES, as_expression


class Subject:
    """A class under examination, and the options with which it is always constructed.

    target: a subclass of torch.optim.Optimizer, a rule or its name, the name of a class of this
    package, or "module:Class". Raises TargetError for anything else.
    """

    def __init__(self, target: Any, options: dict[str, Any] | None = None) -> None:
        self.options = dict(options or {})
        self.cls, named = resolve(target)
        self.name = self.cls.__name__
        self.parameters = _parameters(self.cls)
        self._check_options()
        module = named or home_of(self.cls)
        attribute = target.partition(":")[2] if named else self.name
        alias = "" if attribute == self.name else f" as {self.name}"
        self.imports = [f"from {module} import {attribute}{alias}"]
        if named and isinstance(getattr(sys.modules[named], attribute), Rule):
            self.imports = [
                f"from {named} import {attribute}",
                "from steepest.classes import class_of",
                f"{self.name} = class_of({attribute})",
            ]
        self.namespace = {} if module else {self.name: self.cls}
        self._values: dict[str, str] = {}
        fixed = ", ".join(f"{name}={self.expression(v)}" for name, v in self.options.items())
        self.make = f"make = {self.name}"
        if fixed:
            self.make = f"make = functools.partial({self.name}, {fixed})"
        if self.needs_train:  # such as the classes of the package schedulefree
            usual = f"**{{**dict({fixed}), **options}}" if fixed else "**options"
            self.make = (
                f"def make(*args, **options):\n    made = {self.name}(*args, {usual})\n"
                "    made.train()\n    return made"
            )
        if not module:
            self.imports[0] = f"# {self.name} as defined in {self.cls.__module__}"
        self._check_construction()

    def _check_construction(self) -> None:
        try:
            with quiet(), limited():
                self.construct([torch.nn.Parameter(torch.ones(2, 2))])
        except Exception as error:
            raise TargetError(
                f"{self.name} cannot be constructed on one parameter: {one_line(error)}; give "
                "the arguments that it needs with --option NAME=VALUE"
            ) from error

    def _check_options(self) -> None:
        for name in self.options:
            if name not in self.parameters and not self.takes_any:
                raise TargetError(
                    f"{self.name} has no argument {name!r}; {nearest(name, self.parameters)}"
                )
        missing = [
            name
            for name, p in self.parameters.items()
            if p.default is p.empty and name not in self.options
        ]
        if missing:
            raise TargetError(
                f"{self.name} has no default for {', '.join(missing)}; give a value with "
                f"--option {missing[0]}=VALUE"
            )

    @cached_property
    def takes_any(self) -> bool:
        """Whether the constructor has **kwargs."""
        kinds = {p.kind for p in inspect.signature(self.cls).parameters.values()}
        return inspect.Parameter.VAR_KEYWORD in kinds

    @property
    def needs_train(self) -> bool:
        """Whether train() must be called before the first step.

        This is so for classes of other packages that have eval() and train().
        """
        both = all(callable(getattr(self.cls, name, None)) for name in ("eval", "train"))
        return both and not self.ours

    @property
    def ours(self) -> bool:
        """Whether this package makes the class from its rules."""
        return issubclass(self.cls, RuleOptimizer)

    def value(self, name: str) -> str:
        """Return an expression for the value of an examination's argument `name`."""
        if name not in self._values:
            value = VALUES[name](self)
            self._values[name] = value if name in EXPRESSIONS else self.expression(value)
        return self._values[name]

    def expression(self, value: Any) -> str:
        """Return an expression that gives `value`.

        Adds the modules that the expression uses to `imports`.
        """
        text, modules = as_expression(value)
        self.imports += [line for m in modules if (line := f"import {m}") not in self.imports]
        return text

    def construct(self, params: Any, **more: Any) -> torch.optim.Optimizer:
        """Construct the optimizer as the scripts do."""
        made: Any = self.cls(params, **{**self.options, **more})
        if self.needs_train:
            made.train()
        return made

    # facts found by trying

    @cached_property
    def closure_needed(self) -> bool:
        """Whether step() needs a closure, judged by its signature or its error message."""
        signature = inspect.signature(self.cls.step)
        return any(
            p.name == "closure" and p.default is p.empty for p in signature.parameters.values()
        ) or ("closure" in self.complaint().lower())

    @cached_property
    def sparse_only(self) -> bool:
        """Whether the class refuses dense gradients and takes sparse ones."""
        if self.closure_needed or not self.complaint():
            return False
        return not self.complaint(sparse=True)

    @cached_property
    def elementwise(self) -> bool:
        """Whether the step of an element depends only on the gradient of this element.

        True if the step raises an error.
        """
        ends = []
        for other in (0.5, 3.0):
            p = torch.nn.Parameter(torch.ones(2, 2, dtype=torch.float64))
            try:
                with quiet(), limited():
                    optimizer = self.construct([p])
                    for g in (0.3, -0.2):
                        p.grad = torch.tensor([[g, other], [-other, other * g]]).double()
                        optimizer.step()
            except Exception:
                return True  # the examination raises the error again, with a reproduction
            ends.append(p.detach()[0, 0].item())
        return ends[0] == ends[1]

    def complaint(self, dtype: torch.dtype = torch.float32, sparse: bool = False) -> str:
        """Return the error message of a step on a gradient of this dtype, sparse or dense.

        Returns "" if the step works.
        """
        p = torch.nn.Parameter(torch.ones(3, 2, dtype=dtype))
        p.grad = torch.full_like(p, 0.5)
        if sparse:
            p.grad = p.grad.to_sparse(1)
        try:
            with quiet(), limited():
                self.construct([p]).step()
        except Exception as error:
            return one_line(error, with_type=False)
        return ""


def _parameters(cls: type) -> dict[str, inspect.Parameter]:
    """The constructor's named arguments after `params`."""
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = [p for p in inspect.signature(cls).parameters.values() if p.kind in named]
    return {p.name: p for p in parameters[1:]}


_CONSTANTS = {"true": True, "false": False, "none": None}


def read_option(text: str) -> tuple[str, Any]:
    """Read `name=value`. Returns the name and the value.

    The value is read as a Python literal if it is one, else as module:Class if it has this form,
    else as text. true, false, none, inf and nan may be written in upper or lower case.
    """
    name, sign, value = text.partition("=")
    if not sign or not name.isidentifier():
        raise TargetError(f"--option {text}: write name=value, e.g. --option lr=0.1")
    if value.lower() in _CONSTANTS:
        return name, _CONSTANTS[value.lower()]
    if re.fullmatch(r"[+-]?(inf|nan)", value.lower()):
        return name, float(value)
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        is_class = re.fullmatch(r"[\w.]+:\w+", value)
        return name, imported(value) if is_class else value
