"""Who may enter a race. The only file of this room that knows where optimizers come from.

An entry is the name of a rule, of the package or of the task file, or `module:Class`, any
torch.optim.Optimizer; `+cosine`, `+warmup` or `+warmup+cosine` behind it is its schedule.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from functools import cache
from inspect import Parameter, signature
from typing import Any

import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR

import steepest
from steepest.race import BadCall
from steepest.shell import RuleOptimizer

REFERENCES = ("adamw", "momentum", "eadam")
"""Always in the field: two that everybody tunes, and the one that shows what eps alone does."""
DEFAULT = (*REFERENCES, "adam", "adabelief", "adabound", "rmsprop", "nadam", "radam")
BASELINE = "adamw"
SPAN = 30.0
"""A class that says no search range is tuned in lr alone, from its default / 30 to * 30, as a rule
that says none is; weight decay and all else stay at their defaults."""
WARMUP = 0.1
"""Share of the steps over which `+warmup` raises the learning rate from near 0, linearly."""
SCHEDULES = ("warmup", "cosine")


def parse(text: str | None) -> tuple[str, ...]:
    """The entries named in `text` ("adam,adamw+cosine"), and those that are always in.

    None is the default field. BadCall names the fault.
    """
    if text is None:
        return DEFAULT
    names = tuple(part.strip() for part in text.split(","))
    for name in names:
        if not name:
            raise BadCall(
                f"--optimizers {text!r}: a name is empty: expected names separated by commas"
            )
        _check(name)
        if names.count(name) > 1:
            raise BadCall(f"optimizer {name!r} is given more than once: name each entry once")
    return (*names, *(name for name in REFERENCES if name not in names))


def split(name: str) -> tuple[str, tuple[str, ...]]:
    """The optimizer of an entry, and its schedule's words."""
    optimizer, *words = name.split("+")
    return optimizer, tuple(words)


def _check(name: str) -> None:
    optimizer, words = split(name)
    if words and words not in (("cosine",), ("warmup",), SCHEDULES):
        raise BadCall(
            f"entry {name!r}: schedule {'+'.join(words)!r} is unknown: expected +cosine, +warmup "
            f"or +warmup+cosine behind the optimizer"
        )
    if ":" in optimizer:
        _class(optimizer)
        return
    if optimizer not in steepest.rules:
        near = get_close_matches(optimizer.lower(), list(steepest.rules), n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(steepest.rules)}"
        raise BadCall(
            f"unknown optimizer {optimizer!r}: expected known names, or module:Class, separated by "
            f"commas; {hint}"
        )


@cache
def _class(name: str) -> tuple[type[torch.optim.Optimizer], dict[str, float]]:
    """The class, and the default of what is tuned."""
    module, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # the caller's own modules
    try:
        found = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
        raise BadCall(f"entry {name!r} cannot be imported ({why}): expected module:Class") from None
    if not isinstance(found, type) or not issubclass(found, torch.optim.Optimizer):
        raise BadCall(f"entry {name!r} is no torch.optim.Optimizer class: expected module:Class")
    lr = signature(found).parameters.get("lr")
    if lr is None:
        return found, {}
    if lr.default is Parameter.empty or not isinstance(lr.default, (int, float)) or lr.default <= 0:
        given = "none" if lr.default is Parameter.empty else repr(lr.default)
        raise BadCall(
            f"entry {name!r}: its default lr is {given}, and a race tunes around the default: "
            f"expected a number above 0; derive a class that has one"
        )
    return found, {"lr": float(lr.default)}


_stored: dict[str, dict[str, tuple[float, float]]] = {}


@contextmanager
def declared(spaces: dict[str, dict[str, tuple[float, float]]]) -> Iterator[None]:
    """Meanwhile entries have the search ranges that a store has kept: their code may be gone."""
    _stored.update(spaces)
    try:
        yield
    finally:
        _stored.clear()


def space(name: str) -> dict[str, tuple[float, float]]:
    """Hyperparameter -> (low, high) of its log-uniform search range, as declared by the rule."""
    if name in _stored:
        return dict(_stored[name])
    optimizer, _ = split(name)
    if ":" in optimizer:
        return {knob: (value / SPAN, value * SPAN) for knob, value in _class(optimizer)[1].items()}
    return dict(steepest.rules[optimizer].search)


def defaults(name: str) -> dict[str, float]:
    """The optimizer's own value of every hyperparameter that is searched."""
    optimizer, _ = split(name)
    if ":" in optimizer:
        return dict(_class(optimizer)[1])
    rule = steepest.rules[optimizer]
    return {knob: float(rule.defaults[knob]) for knob in rule.search}


def make(name: str, params: Iterable[Any], hyper: Mapping[str, float]) -> torch.optim.Optimizer:
    """The optimizer of the entry `name` over `params` with `hyper`, without its schedule."""
    optimizer, _ = split(name)
    if ":" not in optimizer:
        return steepest.optimizer(optimizer, params, **hyper)
    kind: Any = _class(optimizer)[0]
    try:
        return kind(params, **hyper)
    except Exception as error:
        given = ", ".join(f"{k}={v:g}" for k, v in hyper.items())
        why = f"{type(error).__name__}: {error}"
        raise BadCall(
            f"entry {name!r} cannot be made with {given or 'its defaults'} ({why})"
        ) from None


def schedule(name: str, optimizer: torch.optim.Optimizer, steps: int) -> LRScheduler | None:
    """Give `optimizer` the schedule of the entry over `steps` steps; it moves inside of step()."""
    _, words = split(name)
    if not words:
        return None
    warm = min(max(1, round(WARMUP * steps)), steps) if "warmup" in words else 0
    parts: list[LRScheduler] = []
    if warm:
        parts.append(LinearLR(optimizer, 1 / (warm + 1), 1.0, warm))
    if "cosine" in words:
        parts.append(CosineAnnealingLR(optimizer, max(1, steps - warm)))
    made = parts[0] if len(parts) == 1 else SequentialLR(optimizer, parts, [warm])
    optimizer.register_step_post_hook(lambda *_: made.step())
    return made


def backends(optimizer: torch.optim.Optimizer) -> set[str]:
    """What stepped it: the package's own parts, by name, or a class of torch or of others."""
    if isinstance(optimizer, RuleOptimizer):
        return optimizer.stepped_by()
    kind = type(optimizer)
    return {f"{kind.__module__}:{kind.__qualname__}"}
