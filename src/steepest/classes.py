"""The public classes: one torch.optim.Optimizer per family, looked up by name or by rule."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from .arguments import arguments_section
from .averaged import AveragedOptimizer
from .checks import several
from .definition import Rule, rules
from .families import families, family_of
from .family import Family
from .options import PAIRS, STORAGE
from .shared import SharedOptimizer
from .shell import RuleOptimizer

# classes with methods beyond a step: eval() and train(), share_memory()
_BASES = {
    "SGDScheduleFree": AveragedOptimizer,
    "AdamWScheduleFree": AveragedOptimizer,
    "Adagrad": SharedOptimizer,
}


def make_class(family: Family) -> type[RuleOptimizer]:
    """Make the torch.optim.Optimizer class of a family."""
    text = "\n\n".join(inspect.cleandoc(r.__doc__ or r.name) for r in family.members)
    base = _BASES.get(family.name, RuleOptimizer)
    made: Any = type(family.name, (base,), {"family": family, "__module__": "steepest"})
    texts = dict.fromkeys(
        [
            text,
            arguments_section(family),
            *(inspect.cleandoc(c.__doc__ or "") for c in (base, RuleOptimizer)),
        ]
    )
    made.__doc__ = "\n\n".join(texts)
    usual, keyword = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    parameters = [inspect.Parameter("params", usual)]
    parameters += [inspect.Parameter(n, usual, default=d) for n, d in family.arguments.items()]
    options = {"backend": None, **STORAGE}
    parameters += [inspect.Parameter(n, keyword, default=d) for n, d in options.items()]
    made.__signature__ = inspect.Signature(parameters)
    return made


classes: dict[str, type[RuleOptimizer]] = {name: make_class(f) for name, f in families.items()}
_by_family: dict[int, type[RuleOptimizer]] = {id(c.family): c for c in classes.values()}


def class_of(rule: str | Rule) -> type[RuleOptimizer]:
    """Returns the class of a rule. rule: the rule itself, its name, or the name of its class."""
    family = family_of(rule)
    if id(family) not in _by_family:
        _by_family[id(family)] = make_class(family)  # the class keeps the family, and so its id
    return _by_family[id(family)]


def revive(rule: str, called: str) -> RuleOptimizer:
    """Returns an optimizer without attributes; pickle or copy then sets the attributes.

    rule: the name of the first rule of its class. called: the name of its class.
    """
    if rule not in rules:
        raise ValueError(
            f"this {called} steps by the rule {rule!r}, which is not defined here; import the "
            "module that defines it, then load again"
        )
    cls = class_of(called if called in classes else rule)
    return cls.__new__(cls)


def optimizer(rule: str | Rule, params: Any, **hyper: Any) -> Any:
    """Make an optimizer from its rule or name: `optimizer("adabelief", model, lr=1e-3)`.

    params: a torch.nn.Module, or anything that torch.optim takes. hyper: the arguments of the
    class; the members of a pair may be given one by one (`beta1=0.5` for `betas=(0.5, default)`).
    The name "lbfgs" makes a torch.optim.LBFGS.
    Raises ValueError for an unknown name, and suggests a similar known name.
    """
    params = params.parameters() if isinstance(params, torch.nn.Module) else params
    if rule in ("lbfgs", "LBFGS"):  # it works on the full loss and has no rule
        return torch.optim.LBFGS(params, **hyper)
    cls = class_of(rule)
    arguments = cls.family.arguments
    for name, (pair, index) in PAIRS.items():
        if name in hyper and name not in arguments and pair in arguments:
            if index is None:
                hyper[pair] = hyper.pop(name)
                continue
            usual, member = arguments[pair], hyper.pop(name)
            values = several(hyper.get(pair, usual), len(usual))
            if values is not None:  # otherwise the class raises and says what it expected
                hyper[pair] = (*values[:index], member, *values[index + 1 :])
    return cls(params, **hyper)
