"""An optimizer with its parts, as an entry names them: `adamw+warmup+cosine`.

The optimizer is one of three kinds: a rule of the package or of the task file; a full-batch method;
or a subclass of torch.optim.Optimizer, written as `module:Class`. The parts are in `parts/`. No
other module splits the name of an entry.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch.optim.lr_scheduler import LRScheduler

import steepest
from steepest.classes import class_of
from steepest.errors import BadCall
from steepest.shell import RuleOptimizer
from steepest.training import spaces
from steepest.training.full_batch import METHODS, FullBatch
from steepest.training.makers import ClassMaker, Maker, RuleMaker
from steepest.training.parts import PARTS, Knob, Part
from steepest.training.parts.part import NOTHING, Fitting, Script
from steepest.training.parts.rates import guard
from steepest.training.wants import Wants
from steepest.wrapper import innermost

if TYPE_CHECKING:
    from steepest.tasks.task import Setup, Task

PACKAGES = ("pytorch_optimizer", "torch.optim")
"""Packages whose classes a hint may name, for an optimizer that is unknown here."""


@dataclass(frozen=True)
class Recipe:
    """How a task is trained. The optimizer's code is looked up only when it is needed."""

    name: str
    base: str
    """The optimizer's name, without the parts."""
    parts: tuple[Part, ...]

    @staticmethod
    @lru_cache
    def read(name: str) -> Recipe:
        """Return the recipe called `name`.

        Raises BadCall for parts that do not exist or cannot go together. This method does not check
        whether the optimizer exists; the property `maker` does.
        """
        base, *words = name.split("+")
        for word in words:
            if word not in PARTS:
                near = get_close_matches(word, list(PARTS), n=1)
                known = f"expected one of {', '.join(PARTS)}"
                hint = f"did you mean +{near[0]}?" if near else known
                raise BadCall(f"entry {name!r}: +{word} is unknown; {hint}")
        ordered = [word for word in PARTS if word in words]
        if ordered != words:
            raise BadCall(
                f"entry {name!r}: expected each part once, in the order +{'+'.join(ordered)}"
            )
        parts = tuple(PARTS[word] for word in words)
        for part in parts:
            same = [f"+{other.name}" for other in parts if other.kind == part.kind]
            if len(same) > 1:
                raise BadCall(
                    f"entry {name!r}: {' and '.join(same)} exclude each other: keep one of them"
                )
            for other in parts:
                if other.name in part.conflicts or other.kind in part.conflicts:
                    raise BadCall(
                        f"entry {name!r}: +{part.name} {part.why}: expected no +{other.name} "
                        f"in the same entry"
                    )
        stray = [part for part in parts if part.name != "early-stopping"]
        if base in METHODS and stray:
            raise BadCall(
                f"entry {name!r}: {base} takes no +{stray[0].name}: expected {base} alone, or with "
                f"+early-stopping"
            )
        return Recipe(name, base, parts)

    @property
    def full_batch(self) -> FullBatch | None:
        """The optimizer, if it is a method on the full batch; else None."""
        return METHODS.get(self.base)

    @property
    def maker(self) -> Maker:
        """The maker of the optimizer. Raises BadCall if there is no such optimizer."""
        if self.full_batch:
            return self.full_batch
        if ":" in self.base:
            return ClassMaker(self.base)
        if self.base in steepest.rules:
            return RuleMaker(self.base)
        raise BadCall(
            f"unknown optimizer {self.base!r}: expected known names, or module:Class, separated by "
            f"commas; {_hint(self.base)}"
        )

    @property
    def knobs(self) -> dict[str, Knob]:
        """Name, such as "noise.eta" -> knob, for all knobs of the parts. These are tuned too."""
        return {f"{p.name}.{knob}": span for p in self.parts for knob, span in p.knobs.items()}

    @property
    def space(self) -> dict[str, tuple[float, float]]:
        """Hyperparameter -> (low, high) of its log-uniform search range."""
        ranges = {name: (knob.low, knob.high) for name, knob in self.knobs.items()}
        return {**self.maker.space, **ranges}

    @property
    def defaults(self) -> dict[str, float]:
        """The default of every hyperparameter in `space`."""
        return {**self.maker.defaults, **{n: knob.default for n, knob in self.knobs.items()}}

    @property
    def options(self) -> dict[str, float]:
        """The default of every number that can be searched, including those in `space`."""
        return {**self.maker.options, **self.defaults}

    def check_value(self, knob: str, value: float) -> None:
        """Raise ValueError, TypeError or RuntimeError if the knob cannot have the value."""
        if knob in self.knobs:
            if not self.knobs[knob].allows(value):
                raise ValueError(f"expected a number in {self.knobs[knob].domain}")
        elif spaces.option_of(knob) in self.maker.whole_numbers:
            raise ValueError(
                "the option takes whole numbers, but a search also tries fractions; search another "
                "option"
            )
        else:
            self.maker.try_out({**self.maker.defaults, **spaces.options({knob: value})})

    @property
    def needs(self) -> tuple[str, ...]:
        """What a task must offer to the method and the parts, in the words of `Part.needs`."""
        whose = (*([self.full_batch] if self.full_batch else []), *self.parts)
        return tuple(dict.fromkeys(each.needs for each in whose if each.needs != NOTHING))

    @property
    def same_batches(self) -> bool:
        """Whether the recipe trains on the task's own batches, in their size and order."""
        return not self.full_batch and not any(part.own_batches for part in self.parts)

    @property
    def wants(self) -> Wants:
        """What a step of the optimizer, with its parts, needs besides gradients."""
        wants = self.maker.wants
        return replace(wants, closure=wants.closure or any(part.closure for part in self.parts))

    @property
    def needy(self) -> str:
        """The part that needs a closure, such as "+sam"; if there is none, the optimizer's name."""
        return next((f"+{part.name}" for part in self.parts if part.closure), self.base)

    @property
    def stackable(self) -> bool:
        """Whether runs of the recipe may share one batched computation of their gradients.

        Such a recipe makes the usual step on the task's own batches and model, and no part acts at
        an evaluation. Classes named `module:Class` are excluded, because they may need a closure.
        """
        return not (self.full_batch or ":" in self.base) and not any(
            part.switches
            or part.closure
            or type(part).on_batches is not Part.on_batches
            or type(part).on_evaluation is not Part.on_evaluation
            for part in self.parts
        )

    @property
    def other_cost(self) -> bool:
        """Whether a step may cost more or less than one gradient of one batch."""
        return (
            bool(self.full_batch)
            or not all(part.any_loop for part in self.parts)
            or self.wants != Wants()
        )

    @property
    def model_of(self) -> tuple[str, ...]:
        """The parts that change the model, and so perhaps its initial weights."""
        return tuple(part.name for part in self.parts if part.switches)

    def check(self, task: Task) -> None:
        """Raise BadCall if the task does not offer what the recipe needs."""
        inside = [f"+{part.name}" for part in self.parts if not part.any_loop]
        inside += [self.base] if self.full_batch else []
        if task.train and inside:
            raise BadCall(
                f"entry {self.name!r}: {task.name} has its own training loop, and {inside[0]} "
                f"works only in the race's loop; give a task without a loop of its own, or an "
                f"entry with only these kinds of parts: {', '.join(_kinds_for_any_loop())}"
            )
        for part in self.parts:
            part.check(self.name, task)
            if part.own_gradients and self.wants != Wants():
                kind = "a closure" if self.wants.closure else "gradients with a graph"
                raise BadCall(
                    f"entry {self.name!r}: +{part.name} computes the gradients itself, and "
                    f"{self.needy} needs {kind}: expected no +{part.name} in the same entry"
                )
        if self.full_batch:
            self.full_batch.check(self.name, task)
        elif any(part.wraps for part in self.parts):
            weight = torch.nn.Parameter(torch.ones(2, 2))
            self.wrap(self.optimizer([weight], self.defaults), self.defaults)

    def setup(self, task: Task, hyper: Mapping[str, float], seed: int) -> Setup:
        """The task's setup for a seed. Its model has the layers that the parts switch on."""
        assert task.build
        switched = {k: v for p in self.parts for k, v in p.model_options(hyper).items()}
        return task.build(seed, **switched)

    def optimizer(
        self, params: Iterable[Any], hyper: Mapping[str, float], seed: int = 0
    ) -> torch.optim.Optimizer:
        """The optimizer over `params`, without the parts. seed: for its random draws."""
        own = {knob: value for knob, value in hyper.items() if "." not in knob}
        return self.maker.make(params, spaces.options(own), seed, self.name)

    def wrap(
        self, optimizer: torch.optim.Optimizer, hyper: Mapping[str, float]
    ) -> torch.optim.Optimizer:
        """The optimizer, with the parts around it that are optimizers themselves, such as SAM."""
        if self.maker.wants.graph and any(part.closure for part in self.parts):
            raise BadCall(
                f"entry {self.name!r}: {self.base} differentiates its gradients, which is not "
                f"possible after {self.needy} has moved the weights: expected {self.base} without "
                f"{self.needy}"
            )
        for part in self.parts:
            optimizer = part.around(optimizer, hyper, self.name)
        return optimizer

    def equip(
        self,
        optimizer: torch.optim.Optimizer,
        steps: int,
        hyper: Mapping[str, float],
        seed: int,
        *,
        guarded: bool = False,
    ) -> LRScheduler | None:
        """Attach the parts that act in step(). Returns the schedule of lr, or None.

        optimizer: the result of the method `optimizer`, not of `wrap`, because +clip and +noise act
        on the gradient that the entry's own optimizer gets. seed: the seed of the noise.
        guarded: True if the task has its own training loop. A step then raises Undone if that loop
        has changed the learning rate that the schedule had set.
        """
        needy = next((part for part in self.parts if part.needs_rate), None)
        if needy and not all("lr" in group for group in optimizer.param_groups):
            raise BadCall(
                f"entry {self.name!r}: +{needy.name} needs a learning rate, and the optimizer has "
                f"no option lr: expected an optimizer with lr, or an entry without +{needy.name}"
            )
        fitting = Fitting(self.name, optimizer, steps, hyper, seed, self._warmup(steps))
        for part in reversed(self.parts):
            part.on_optimizer(fitting)
        if schedule := fitting.schedule:
            optimizer.register_step_post_hook(lambda *_: schedule.step())
            if guarded:
                setting = [p.name for p in self.parts if p.any_loop and p.needs_rate]
                guard(self.name, f"+{'+'.join(setting)}", optimizer)
        return fitting.schedule

    def _warmup(self, steps: int) -> int:
        """The number of warm-up steps in a run."""
        lead = sum(part.lead for part in self.parts)
        return min(max(1, round(lead * steps)), steps) if lead else 0

    def code(
        self, hyper: Mapping[str, float], steps: int, mode: Literal["max", "min"] = "max"
    ) -> str:
        """What `optimizer` and `equip` make, as Python to paste; values are rounded by `shorten`.

        The code uses the names that `Part.code` lists. A schedule steps by itself, after each
        `optimizer.step()`. mode: whether a larger or a smaller metric is better, for parts that
        react to the metric. This needs none of the user's code, so it works for stored races too.
        """
        rounded = {option: shorten(value) for option, value in spaces.options(hyper).items()}
        maker = self.full_batch or (ClassMaker if ":" in self.base else RuleMaker)(self.base)
        lines = maker.code({knob: value for knob, value in rounded.items() if "." not in knob})
        scheduled = any(part.kind == "rate" for part in self.parts)
        warmup = self._warmup(steps)
        script = Script(steps, rounded, mode, warmup, scheduled)
        first = next((i for i, part in enumerate(self.parts) if part.wraps), len(self.parts))
        if first < len(self.parts):  # SAM has no eval() of its own
            inner = re.compile(r"optimizer\.(?=(eval|train)\()")
            lines = [inner.sub("optimizer.optimizer.", line) for line in lines]
        lines += [line for part in reversed(self.parts[:first]) for line in part.code(script)]
        if scheduled or warmup:
            lines.append("optimizer.register_step_post_hook(lambda *_: scheduler.step())")
        lines += [line for part in self.parts[first:] for line in part.code(script)]
        body = [line for line in lines if not line.startswith("from ")]
        run = "".join(line.partition("#")[0] for line in body)
        used = {module for module in ("copy", "steepest", "torch") if f"{module}." in run}
        imports = [f"import {module}" for module in sorted(used)]
        imports += [line for line in lines if line.startswith("from ")]
        return "\n".join([*imports, "", *body]) + "\n"


def shorten(value: float) -> float:
    """Round the value to 3 digits, or to more digits if 3 would change it by more than 0.5 %.

    1 - value must not change by more than 0.5 % either. This matters for values just below 1, such
    as beta2.
    """
    error = 0.005 * min(abs(value), abs(1 - value))
    tried = (float(f"{value:.{digits}g}") for digits in range(3, 18))
    return next((short for short in tried if abs(short - value) <= error), value)


def backends(optimizer: torch.optim.Optimizer) -> set[str]:
    """The names of what made the steps: the package's backends, or another optimizer's class.

    Wrappers around the optimizer, such as SAM, are left out.
    """
    optimizer = innermost(optimizer)
    if isinstance(optimizer, RuleOptimizer):
        return optimizer.stepped_by()
    cls = type(optimizer)
    return {f"{cls.__module__}:{cls.__qualname__}"}


def _kinds_for_any_loop() -> list[str]:
    return sorted({part.kind for part in PARTS.values() if part.any_loop})


def _hint(optimizer: str) -> str:
    """A hint for an unknown optimizer: what the user may have meant."""
    module, _, name = optimizer.rpartition(".")
    if module in steepest.rules or module in METHODS:
        return f"did you mean '{module}+{name}'?"
    part = name.lower()
    if part in PARTS and (not module or PARTS[part].wraps):
        return f"{part} is a part of an entry: did you mean 'adamw+{part}'?"
    words = (*module.split("."), name)
    if module and all(w.isidentifier() for w in words) and _may_be_a_class(module, name):
        return f"did you mean '{module}:{name}'?"
    for rule in steepest.rules:
        if optimizer.lower() == class_of(rule).__name__.lower():
            return f"did you mean {rule!r}?"
    known = [*steepest.rules, *METHODS]
    names = {**_classes(), **{name: name for name in known}}
    near = get_close_matches(optimizer.lower(), names, n=1)
    return f"did you mean {names[near[0]]!r}?" if near else f"known: {', '.join(known)}"


def _classes() -> dict[str, str]:
    """Name in lower case -> entry, for the optimizers of other packages that are installed."""
    return {
        name.lower(): f"{package}:{name}"
        for package in PACKAGES
        if importlib.util.find_spec(package)
        for name, value in vars(importlib.import_module(package)).items()
        if isinstance(value, type) and issubclass(value, torch.optim.Optimizer)
    }


def _may_be_a_class(module: str, name: str) -> bool:
    """Whether `name` is an optimizer class of the module. True if the module cannot be imported."""
    try:
        value = getattr(importlib.import_module(module), name, None)
    except Exception:
        return True
    return isinstance(value, type) and issubclass(value, torch.optim.Optimizer)
