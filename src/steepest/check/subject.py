"""What is examined: a class, how it is imported and constructed, and what it can be asked."""

from __future__ import annotations

import ast
import contextlib
import inspect
import io
import math
import re
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import torch

from ..classes import classes
from ..definition import Rule, nearest
from ..families import families
from ..options import WITHOUT_EFFECT
from ..shell import RuleOptimizer
from .target import TargetError, home_of, imported, resolve, sentence

SECONDS = 30
"""What one script or trial may take before it is stopped and fails."""
PATHS = ("foreach", "fused", "capturable", "differentiable", "maximize")
"""Flags of torch's classes that have an examination of their own."""


class Subject:
    """A class under examination with the options that every construction of it gets.

    target: a subclass of torch.optim.Optimizer, a rule or its name, the name of a class of this
    package, or "module:Class". Raises TargetError with a sentence for anything else.
    """

    def __init__(self, target: Any, options: dict[str, Any] | None = None) -> None:
        self.options = dict(options or {})
        self.kind, named = resolve(target)
        self.name = self.kind.__name__
        self.parameters = _parameters(self.kind)
        self._refuse_impossible()
        module = named or home_of(self.kind)
        shown = target.partition(":")[2] if named else self.name
        self.imports = [f"from {module} import {shown}" + f" as {self.name}" * (shown != self.name)]
        if named and isinstance(getattr(sys.modules[named], shown), Rule):
            self.imports = [
                f"from {named} import {shown}",
                "from steepest.classes import class_of",
                f"{self.name} = class_of({shown})",
            ]
        self.namespace = {} if module else {self.name: self.kind}
        self._values: dict[str, str] = {}
        given = "".join(f", {name}={self._written(v)}" for name, v in self.options.items())
        self.make = (
            f"make = functools.partial({self.name}{given})" if given else f"make = {self.name}"
        )
        if self.begins_in_use:  # Schedule-Free by its authors
            usual = f"**{{**dict({given.removeprefix(', ')}), **options}}" if given else "**options"
            self.make = (
                f"def make(*args, **options):\n    made = {self.name}(*args, {usual})\n"
                "    made.train()\n    return made"
            )
        if not module:
            self.imports[0] = f"# {self.name} as defined in {self.kind.__module__}"
        self._refuse_unconstructible()

    def _refuse_unconstructible(self) -> None:
        try:
            with quiet(), limited():
                self.construct([torch.nn.Parameter(torch.ones(2, 2))])
        except Exception as error:
            raise TargetError(
                f"{self.name} cannot be constructed on one parameter: {sentence(error)}; give "
                "what it needs by --option NAME=VALUE"
            ) from error

    def _refuse_impossible(self) -> None:
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
                f"{self.name} has no default for {', '.join(missing)}; give it by "
                f"--option {missing[0]}=VALUE"
            )

    @cached_property
    def takes_any(self) -> bool:
        """Whether the constructor has **kwargs."""
        kinds = {p.kind for p in inspect.signature(self.kind).parameters.values()}
        return inspect.Parameter.VAR_KEYWORD in kinds

    @property
    def begins_in_use(self) -> bool:
        """Whether it has to be told that training begins: it has eval() and train(), and is not
        ours, which begin in training.
        """
        both = all(callable(getattr(self.kind, name, None)) for name in ("eval", "train"))
        return both and not self.ours

    @property
    def ours(self) -> bool:
        """Whether it is made of one of our rules."""
        return issubclass(self.kind, RuleOptimizer)

    def value(self, name: str) -> str:
        """The expression of a value that an examination takes by name."""
        if name not in self._values:
            found = _VALUES[name](self)
            self._values[name] = found if name in _EXPRESSIONS else self._written(found)
        return self._values[name]

    def _written(self, value: Any) -> str:
        """The expression of a value; what it needs is added to the imports."""
        text, modules = written(value)
        self.imports += [line for m in modules if (line := f"import {m}") not in self.imports]
        return text

    def construct(self, params: Any, **more: Any) -> torch.optim.Optimizer:
        """The optimizer as the scripts make it."""
        made: Any = self.kind(params, **{**self.options, **more})
        if self.begins_in_use:
            made.train()
        return made

    # what it can be asked, found out by trying

    @cached_property
    def closure_needed(self) -> bool:
        """Whether step() cannot be called without a closure, by its signature or its words."""
        signature = inspect.signature(self.kind.step)
        return any(
            p.name == "closure" and p.default is p.empty for p in signature.parameters.values()
        ) or ("closure" in self.complaint().lower())

    @cached_property
    def sparse_only(self) -> bool:
        """Whether a dense gradient is refused where a sparse one is taken."""
        return (
            not self.closure_needed and bool(self.complaint()) and not self.complaint(sparse=True)
        )

    @cached_property
    def elementwise(self) -> bool:
        """Whether an element's step depends on its own gradient alone; so it seems if it raises."""
        found = []
        for other in (0.5, 3.0):
            p = torch.nn.Parameter(torch.ones(2, 2, dtype=torch.float64))
            try:
                with quiet(), limited():
                    optimizer = self.construct([p])
                    for g in (0.3, -0.2):
                        p.grad = torch.tensor([[g, other], [-other, other * g]]).double()
                        optimizer.step()
            except Exception:
                return True  # the examination raises it again, and has a reproduction
            found.append(p.detach()[0, 0].item())
        return found[0] == found[1]

    def complaint(self, dtype: torch.dtype = torch.float32, sparse: bool = False) -> str:
        """What it says to one step on a parameter of that kind; nothing if it takes it."""
        p = torch.nn.Parameter(torch.ones(3, 2, dtype=dtype))
        p.grad = torch.full_like(p, 0.5)
        if sparse:
            p.grad = p.grad.to_sparse(1)
        try:
            with quiet(), limited():
                self.construct([p]).step()
        except Exception as error:
            return sentence(error, kind=False)
        return ""


def _parameters(kind: type) -> dict[str, inspect.Parameter]:
    """The constructor's named arguments after `params`."""
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    found = [p for p in inspect.signature(kind).parameters.values() if p.kind in named]
    return {p.name: p for p in found[1:]}


@contextlib.contextmanager
def quiet() -> Iterator[io.StringIO]:
    """No warnings, and what is printed caught: some classes greet whoever constructs them."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()) as said:
        warnings.simplefilter("ignore")
        yield said


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """TimeoutError in Python code that takes longer, where signals reach: in the main thread."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGALRM"):
        yield
        return

    def stop(*_: Any) -> None:
        raise TimeoutError(f"it did not end within {SECONDS} s")

    before, began = signal.signal(signal.SIGALRM, stop), time.monotonic()
    left, again = signal.setitimer(signal.ITIMER_REAL, SECONDS)  # an alarm of the caller's
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if left:
            rest = max(left - (time.monotonic() - began), 0.01)
            signal.setitimer(signal.ITIMER_REAL, rest, again)


# values by name


def _known(subject: Subject, **values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name in subject.parameters}


_ODD: tuple[dict[str, Any], ...] = (
    {"weight_decay": 0.1}, {"momentum": 0.9}, {"momentum": 0.9, "dampening": 0.5},
    {"momentum": 0.9, "nesterov": True}, {"momentum": 0.9, "centered": True},
    {"betas": (0.8, 0.9), "eps": 1e-4}, {"rho": 0.95, "weight_decay": 0.9}, {"alpha": 0.9},
    {"lr_decay": 0.1, "initial_accumulator_value": 0.1}, {"momentum_decay": 0.006},
    {"lambd": 0.01, "t0": 3.0}, {"etas": (0.4, 1.4), "step_sizes": (1e-4, 10.0)},
    {"lr": 0.01}, {"amsgrad": True, "weight_decay": 0.1}, {"final_lr": 0.01, "gamma": 0.05},
)  # fmt: skip


def _variants(subject: Subject) -> list[dict[str, Any]]:
    """Options that other lines of code may stand behind: the odd ones, and each flag turned."""
    found: list[dict[str, Any]] = [{}, *_ODD]
    steps = not subject.complaint()  # else there is only the construction to try
    for name, parameter in subject.parameters.items():
        default = subject.options.get(name, parameter.default)
        if isinstance(default, bool):
            found.append({name: not default})
    return [{}, *(options for options in found[1:] if _usable(subject, options, steps))]


def _usable(subject: Subject, options: dict[str, Any], steps: bool) -> bool:
    if not options.keys() <= subject.parameters.keys() - {*PATHS, *WITHOUT_EFFECT}:
        return False
    p = torch.nn.Parameter(torch.ones(2, 2))
    p.grad = torch.ones(2, 2)
    try:
        with quiet(), limited():
            optimizer = subject.construct([p], **options)
            if steps:
                optimizer.step()
    except Exception:
        return False
    return True


def same_options(subject: Subject) -> dict[str, Any]:
    """The options of a foreign class that ours of the same name has too, at the foreign values."""
    family = families[subject.name]
    values = {n: p.default for n, p in subject.parameters.items() if n in family.arguments}
    values |= {n: v for n, v in subject.options.items() if n in family.arguments}
    without = {*PATHS, *WITHOUT_EFFECT} - {"maximize"}
    return {n: v for n, v in values.items() if n not in without}


def written(value: Any) -> tuple[str, list[str]]:
    """A value as an expression, and the modules that it names beside torch. TargetError if none."""
    if isinstance(value, type):
        home = home_of(value)
        if home:
            return f"{home}.{value.__name__}", [home]
        raise TargetError(f"{value!r} is an option, expected a class that can be imported")
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")', []
    if isinstance(value, torch.Tensor):
        text, modules = written(value.tolist())
        return f"torch.tensor({text}, dtype={value.dtype})", modules
    if isinstance(value, (tuple, list)) and type(value) in (tuple, list):
        texts, many = zip(*map(written, value), strict=True) if value else ((), ())
        inside = ", ".join(texts) + "," * (type(value) is tuple and len(value) == 1)
        return f"({inside})" if type(value) is tuple else f"[{inside}]", [
            m for some in many for m in some
        ]
    if type(value) is dict:
        pairs = [(written(k), written(v)) for k, v in value.items()]
        text = ", ".join(f"{k[0]}: {v[0]}" for k, v in pairs)
        return f"{{{text}}}", [m for k, v in pairs for m in k[1] + v[1]]
    try:
        eval(repr(value), {"torch": torch})
    except Exception:
        raise TargetError(
            f"{value!r} is an option, expected a number, text, tensor, class, or tuples, lists and "
            "dicts of them, which a reproduction can write"
        ) from None
    return repr(value), []


def _comparisons(subject: Subject) -> str:
    if subject.ours:
        return f"settings_of({subject.name})"
    if subject.name not in families:
        return "[]"
    options, kind = same_options(subject), classes[subject.name]
    both = [v for v in _variants(subject) if v.keys() <= families[subject.name].arguments.keys()]
    hypers = []
    for hyper in both:
        with contextlib.suppress(ValueError, TypeError):  # what ours refuses
            kind([torch.zeros(1)], **{**options, **hyper})
            hypers.append(hyper)
    call = f"same_name({subject.name!r}, {subject._written(options)}, hyper)"
    return f"[{call} for hyper in {subject._written(hypers)}]"


def _fast(subject: Subject) -> float:
    lr = subject.parameters["lr"].default if "lr" in subject.parameters else None
    # what has a large one by default makes something small of it
    return max(0.1, lr) if isinstance(lr, (int, float)) else 0.1


def _tensors(subject: Subject) -> list[str]:
    """Whether lr and weight_decay may be tensors that autograd goes through, two steps on."""
    found = []
    for name in _known(subject, lr=0, weight_decay=0):
        value = torch.tensor(0.05, dtype=torch.float64, requires_grad=True)
        p = torch.ones(2, 2, dtype=torch.float64, requires_grad=True).clone()
        with contextlib.suppress(Exception), quiet(), limited():
            optimizer = subject.construct([p], differentiable=True, **{name: value})
            for _ in range(2):
                p.grad = torch.eye(2, dtype=torch.float64) + 0.5
                optimizer.step()
            p.sum().backward()
            found.append(name)
    return found


_VALUES: dict[str, Callable[[Subject], Any]] = {
    "quiet_options": lambda s: _known(s, weight_decay=0.0, lambd=0.0),
    "device": lambda s: "cpu",
    "fast": lambda s: _known(s, lr=_fast(s)),
    "slow": lambda s: _known(s, lr=_fast(s) / 10),
    "variants": _variants,
    "name": lambda s: s.name,
    "tensors": _tensors,
    "comparisons": _comparisons,
}
_EXPRESSIONS = {"comparisons"}
"""Those that are expressions already."""
_WORDS = {"true": True, "false": False, "none": None}


def read_option(text: str) -> tuple[str, Any]:
    """`name=value` as (name, value): as Python writes it, else module:Class, else as text.

    true, false and none are taken in any case, inf and nan as numbers.
    """
    name, sign, value = text.partition("=")
    if not sign or not name.isidentifier():
        raise TargetError(f"--option {text}: expected name=value, e.g. --option lr=0.1")
    if value.lower() in _WORDS:
        return name, _WORDS[value.lower()]
    if re.fullmatch(r"[+-]?(inf|nan)", value.lower()):
        return name, float(value)
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        known = re.fullmatch(r"[\w.]+:\w+", value)
        return name, imported(value) if known else value
