"""Who may enter a race. The only file of this room that knows where optimizers come from.

An entry is the name of a rule, of the package or of the task file, of a method on the whole loss
(`methods.py`), or `module:Class`, any torch.optim.Optimizer, also of the task file; what may stand
behind it, as in `adam+warmup+cosine`, is in `parts.py`.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from difflib import get_close_matches
from functools import cache, lru_cache
from inspect import Parameter, signature
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.lr_scheduler import LRScheduler

import steepest
from steepest.classes import class_of
from steepest.errors import BadCall
from steepest.families import families
from steepest.shell import RuleOptimizer
from steepest.tasks.task import turn
from steepest.tasks.user_file import module_of, silenced
from steepest.training import parts
from steepest.training.methods import SQUARES, WHOLE

if TYPE_CHECKING:
    from steepest.definition import Rule
    from steepest.race.protocol import Trial
    from steepest.tasks.task import Setup, Task

DEFAULT = (
    "adamw", "momentum", "eadam", "adam", "adabelief", "adabound", "rmsprop", "nadam", "radam",
)  # fmt: skip
"""The field where nobody names one; first two that everybody tunes, and what eps alone does."""
BASELINE = "adamw"
SPAN = 30.0
"""A class that says no search range is tuned in lr alone, from its default / 30 to * 30, as a rule
that says none is; weight decay and all else stay at their defaults. A class with the name of one of
the package's, such as torch.optim:SGD, has the range and the first trial of that one's rule."""


def parse(text: str | None) -> tuple[str, ...]:
    """The entries named in `text` ("adam,adamw+cosine"), and no others; None is the default field.

    BadCall names the fault.
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
    return names


def split(name: str) -> tuple[str, tuple[str, ...]]:
    """The optimizer of an entry, and the names of its parts."""
    optimizer, *words = name.split("+")
    return optimizer, tuple(words)


def whole(name: str) -> bool:
    """Whether the entry is a method on the whole loss."""
    return split(name)[0] in WHOLE


def dear(name: str) -> bool:
    """Whether its steps are other than one gradient of one batch, so that they may take longer."""
    return whole(name) or any(parts.PARTS[w].kind not in parts.ANYWHERE for w in split(name)[1])


def fits(name: str, task: Task) -> None:
    """BadCall if the task does not give what the entry needs."""
    optimizer, words = split(name)
    inside = [w for w in words if parts.PARTS[w].kind not in parts.ANYWHERE]
    if task.train and (inside or whole(name)):
        raise BadCall(
            f"entry {name!r}: {task.name} has a training loop of its own, and "
            f"{f'+{inside[0]}' if inside else name} acts in the race's: expected a task that says "
            f"what is trained, or parts of the kinds {', '.join(sorted(parts.ANYWHERE))}"
        )
    chooses = next((w for w in words if parts.PARTS[w].kind == "stopping"), None)
    if chooses and not _first(task).test_data:
        raise BadCall(
            f"entry {name!r}: +{chooses} chooses weights by the validation data, and {task.name} "
            f"has no test data to judge the choice by: give it test data, as evaluate(model, "
            f"split), or leave +{chooses} out"
        )
    for word in words:
        if parts.PARTS[word].kind in parts.SWITCHES and word not in task.switches:
            raise BadCall(
                f"entry {name!r}: the task {task.name} has no +{word}: expected a bundled task "
                f"with such layers, or an entry without it"
            )
    chosen = next((f"+{w}" for w in words if parts.named(w, ("batch", "order"))), "")
    if not chosen and not whole(name):
        return
    setup = _first(task)
    if setup.samples is None:
        raise BadCall(
            f"entry {name!r}: {task.name} gives batches, and {chosen or optimizer} needs samples: "
            f"expected a task whose batches are a DataLoader that goes through all of its dataset"
        )
    if optimizer == SQUARES and setup.residuals is None:
        raise BadCall(
            f"entry {name!r}: {task.name} has a loss, and {optimizer} needs the residuals whose "
            f"squares it is the mean of: expected a bundled task of regression, such as diabetes"
        )
    if whole(name):
        make(name, setup.model.parameters(), defaults(name))  # it may be too large for a matrix
    if chosen == "+adaptive-batch" and any(
        isinstance(m, _BatchNorm) for m in setup.model.modules()
    ):
        raise BadCall(
            f"entry {name!r}: the model of {task.name} has batch normalisation, and {chosen} needs "
            f"gradients of single samples: expected a model without"
        )


@lru_cache(maxsize=1)
def _first(task: Task) -> Setup:
    """The task for some seed: what it gives is the same for all."""
    assert task.build
    with silenced() if task.file else nullcontext():  # the pilot run shows what it prints
        return task.build(0)


def _check(name: str) -> None:
    optimizer, words = split(name)
    parts.check(name, words)
    if optimizer in WHOLE:
        if bad := [w for w in words if w != "early-stopping"]:
            raise BadCall(
                f"entry {name!r}: {optimizer} takes no +{bad[0]}: expected it alone, or with "
                f"+early-stopping"
            )
        return
    if ":" in optimizer:
        _class(optimizer)
        return
    if optimizer not in steepest.rules:
        raise BadCall(
            f"unknown optimizer {optimizer!r}: expected known names, or module:Class, separated by "
            f"commas; {_hint(optimizer)}"
        )


def _hint(optimizer: str) -> str:
    """What somebody may have meant who wrote an optimizer that is unknown."""
    module, _, name = optimizer.rpartition(".")
    if module in steepest.rules or module in WHOLE:
        return f"did you mean '{module}+{name}'?"
    words = (*module.split("."), name)
    if module and all(w.isidentifier() for w in words) and _may_be_a_class(module, name):
        return f"did you mean '{module}:{name}'?"
    for wrapper in (steepest.SAM, steepest.Lookahead):
        if optimizer.lower() == wrapper.__name__.lower():
            return (
                f"steepest.{wrapper.__name__} wraps an optimizer and is no entry: in a loop of "
                f"your own put it around what make_optimizer(...) returns"
            )
    for rule in steepest.rules:
        if optimizer.lower() == class_of(rule).__name__.lower():
            return f"did you mean {rule!r}?"
    known = [*steepest.rules, *WHOLE]
    near = get_close_matches(optimizer.lower(), known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"


def _may_be_a_class(module: str, name: str) -> bool:
    """Whether it is an optimizer's, or of a module that is not found here."""
    try:
        found = getattr(importlib.import_module(module), name, None)
    except Exception:
        return True
    return isinstance(found, type) and issubclass(found, torch.optim.Optimizer)


def _module(name: str) -> ModuleType:
    """The module; that of the task's file where it is the one: a second import defines rules twice.

    It would be another source, too, where the file was edited.
    """
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # the caller's own modules
    if name not in sys.modules and (spec := importlib.util.find_spec(name)) and spec.origin:
        task = module_of(Path(spec.origin))
        if task:
            return task
    return importlib.import_module(name)


def _class(name: str) -> tuple[type[torch.optim.Optimizer], dict[str, float]]:
    """The class, and the default of what is tuned."""
    module, _, attribute = name.partition(":")
    try:
        found: Any = _module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
        raise BadCall(f"entry {name!r} cannot be imported ({why}): expected module:Class") from None
    if not isinstance(found, type) or not issubclass(found, torch.optim.Optimizer):
        raise BadCall(f"entry {name!r} is no torch.optim.Optimizer class: expected module:Class")
    return found, _tuned(name, found)


def _known(kind: type[torch.optim.Optimizer]) -> Rule | None:
    """The package's rule for a class: that of the name, or of a parent whose lr it has kept.

    Which of a class's rules it is, the defaults say: SGD without momentum is `sgd`.
    """
    given = _options(kind)
    for base in kind.__mro__:
        for family in families.values() if issubclass(base, torch.optim.Optimizer) else ():
            named = {_plain(rule.name): rule for rule in family.members}
            if _plain(base.__name__) not in (*named, _plain(family.name)):
                continue
            theirs = _options(base).get("lr")
            mine = given.get("lr")
            if mine is None or theirs is None or mine.default != theirs.default:
                return None
            usual = {n: p.default for n, p in given.items() if p.default is not Parameter.empty}
            picked = family.rule({**family.arguments, **usual})
            return (
                picked if base.__name__ == family.name else named.get(_plain(base.__name__), picked)
            )
    return None


def _options(kind: type) -> dict[str, Parameter]:
    """What the class takes, and where that is any **options what its parent does."""
    given = dict(signature(kind).parameters)
    if any(p.kind is Parameter.VAR_KEYWORD for p in given.values()):
        above = next((k for k in kind.__mro__[1:] if "__init__" in vars(k)), object)
        if issubclass(above, torch.optim.Optimizer) and above is not torch.optim.Optimizer:
            given = {**_options(above), **given}
    return given


def _plain(name: str) -> str:
    """A name, however its spelling joins the words."""
    return name.replace("_", "").lower()


@cache
def _tuned(name: str, found: type[torch.optim.Optimizer]) -> dict[str, float]:
    """Default of each knob of a class that is tuned; BadCall for an lr that has none."""
    given = _options(found)
    lr = given.get("lr")
    if lr is None:
        return {}
    if "lr" not in signature(found).parameters:  # it may set lr itself
        try:
            found([torch.nn.Parameter(torch.zeros(1))], lr=lr.default)  # type: ignore[call-arg]
        except TypeError:
            return {}
    if rule := _known(found):
        return {knob: float(rule.defaults[knob]) for knob in rule.search if knob in given}
    if lr.default is Parameter.empty or not isinstance(lr.default, (int, float)) or lr.default <= 0:
        given = "none" if lr.default is Parameter.empty else repr(lr.default)
        raise BadCall(
            f"entry {name!r}: its default lr is {given}, and a race tunes around the default: "
            f"expected a number above 0; derive a class that has one"
        )
    return {"lr": float(lr.default)}


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
    mine = {knob: (low, high) for knob, (low, _, high) in _more(name).items()}
    optimizer, _ = split(name)
    if optimizer in WHOLE:
        return mine
    if ":" in optimizer:
        kind, usual = _class(optimizer)
        rule = _known(kind)
        ranges = rule.search if rule else {k: (v / SPAN, v * SPAN) for k, v in usual.items()}
        return {knob: ranges[knob] for knob in usual} | mine
    return {**steepest.rules[optimizer].search, **mine}


def _more(name: str) -> dict[str, tuple[float, float, float]]:
    """Knobs that are no rule's and no class's: (low, default, high)."""
    optimizer, words = split(name)
    return {**(WHOLE[optimizer].knobs if optimizer in WHOLE else {}), **parts.knobs(words)}


def defaults(name: str) -> dict[str, float]:
    """The optimizer's own value of every hyperparameter that is searched."""
    mine = {knob: default for knob, (_, default, _) in _more(name).items()}
    optimizer, _ = split(name)
    if optimizer in WHOLE:
        return mine
    if ":" in optimizer:
        return {**_class(optimizer)[1], **mine}
    rule = steepest.rules[optimizer]
    return {**{knob: float(rule.defaults[knob]) for knob in rule.search}, **mine}


def make(
    name: str, params: Iterable[Any], hyper: Mapping[str, float], seed: int = 0
) -> torch.optim.Optimizer:
    """The optimizer of the entry `name` over `params` with `hyper`, without its parts.

    It is in training, where it knows of that. seed: of a method that draws.
    """
    optimizer, _ = split(name)
    own = {knob: value for knob, value in hyper.items() if "." not in knob}
    if optimizer in WHOLE:
        from steepest import full_batch as methods

        method = WHOLE[optimizer]
        kind: Any = getattr(methods, method.called)
        own |= method.options | ({"seed": seed} if "seed" in signature(kind).parameters else {})
    elif ":" in optimizer:
        kind = _class(optimizer)[0]
    else:
        return steepest.optimizer(optimizer, params, **own)
    try:
        made = kind(params, **own)
        turn(made, "train")  # Schedule-Free by its authors begins at the point of use
        return made
    except Exception as error:
        given = ", ".join(
            f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}" for k, v in own.items()
        )
        why = f"{type(error).__name__}: {error}"
        raise BadCall(
            f"entry {name!r} cannot be made with {given or 'its defaults'} ({why})"
        ) from None


def equip(
    name: str,
    optimizer: torch.optim.Optimizer,
    steps: int,
    hyper: Mapping[str, float],
    seed: int,
    *,
    guarded: bool = False,
) -> LRScheduler | None:
    """Give `optimizer` the parts of the entry that act inside of its step(); its schedule.

    seed: of the noise. guarded: the loop is not the race's: BadCall where it undoes the schedule.
    """
    _, words = split(name)
    needy = next((w for w in words if parts.named(w, parts.NEED_RATE)), None)
    if needy and not all("lr" in group for group in optimizer.param_groups):
        raise BadCall(
            f"entry {name!r}: +{needy} needs a learning rate, and the optimizer has no option lr: "
            f"expected one that has it"
        )
    if "clip" in words:  # before the noise, which is not clipped
        found, norm = [p for g in optimizer.param_groups for p in g["params"]], hyper["clip.norm"]

        def clip(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if any(map(callable, (*args, *kwargs.values()))):  # its gradients come later
                raise BadCall(
                    f"entry {name!r}: +clip was given step(closure): expected a loop that calls "
                    f"backward() and then step()"
                )
            torch.nn.utils.clip_grad_norm_(found, norm)

        optimizer.register_step_pre_hook(clip)
    if "noise" in words:
        from steepest.strategies import GradientNoise

        GradientNoise(optimizer, hyper["noise.eta"], seed=seed)
    made = parts.rate(words, optimizer, steps, hyper)
    if made:
        optimizer.register_step_post_hook(lambda *_: made.step())
        if guarded:
            parts.guard(name, optimizer)
    return made


def built(task: Task, trial: Trial) -> Setup:
    """The task's setup for the trial's seed, with what the entry switches on in the model."""
    assert task.build
    _, words = split(trial.entry)
    switches = [w for w in words if parts.PARTS[w].kind in parts.SWITCHES]
    values = {w: trial.hyper.get(f"{w}.p", True) for w in switches}
    return task.build(trial.seed, **values) if values else task.build(trial.seed)


def same_batches(name: str) -> bool:
    """Whether the entry trains on the task's own batches: others have sizes or orders of theirs."""
    return not whole(name) and not any(
        parts.PARTS[w].kind in ("batch", "order") for w in split(name)[1]
    )


def model_of(name: str) -> tuple[str, ...]:
    """What the entry's model has that others have not: initial weights may differ by it."""
    return tuple(w for w in split(name)[1] if parts.PARTS[w].kind in parts.SWITCHES)


def backends(optimizer: torch.optim.Optimizer) -> set[str]:
    """What stepped it: the package's own parts, by name, or a class of torch or of others."""
    if isinstance(optimizer, RuleOptimizer):
        return optimizer.stepped_by()
    kind = type(optimizer)
    return {f"{kind.__module__}:{kind.__qualname__}"}
