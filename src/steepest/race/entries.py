"""Who may enter a race. The only file of this room that knows where optimizers come from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches

import torch

import steepest
from steepest.race import BadCall

DEFAULT = (
    "adamw", "momentum", "eadam", "adam", "adabelief", "adabound", "rmsprop", "nadam", "radam",
)  # fmt: skip
BASELINE = "adamw"


def parse(text: str | None) -> tuple[str, ...]:
    """The entries named in `text` ("adam,adamw"), or the default field; BadCall names the fault."""
    if text is None:
        return DEFAULT
    names = tuple(part.strip() for part in text.split(","))
    for name in names:
        if name not in steepest.rules:
            near = get_close_matches(name.lower(), list(steepest.rules), n=1, cutoff=0.4)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(steepest.rules)}"
            raise BadCall(
                f"unknown optimizer {name!r}: expected known names separated by commas; {hint}"
            )
        if names.count(name) > 1:
            raise BadCall(f"optimizer {name!r} is given more than once: name each entry once")
    return names


def space(name: str) -> dict[str, tuple[float, float]]:
    """Hyperparameter -> (low, high) of its log-uniform search range, as declared by the rule."""
    return dict(steepest.rules[name].search)


def defaults(name: str) -> dict[str, float]:
    """The rule's own value of every hyperparameter that is searched."""
    rule = steepest.rules[name]
    return {knob: float(rule.defaults[knob]) for knob in rule.search}


def make(
    name: str, params: Iterable[torch.Tensor], hyper: Mapping[str, float]
) -> torch.optim.Optimizer:
    """The optimizer `name` over `params` with hyperparameters `hyper`."""
    return steepest.optimizer(name, params, **hyper)
