"""Writes src/steepest/__init__.pyi, the signatures for type checkers and editors:

    python scripts/stub.py --write

Without --write it checks whether the file is up to date, and exits with 1 if it is not.
"""

from __future__ import annotations

import inspect
import json
import sys
from pathlib import Path
from typing import Any

import steepest
from steepest import classes
from steepest.family import Family
from steepest.options import STORAGE, WITHOUT_EFFECT

STUB = Path(steepest.__file__).with_suffix(".pyi")
HEAD = """\
# written by scripts/stub.py --write
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, overload

from torch import Tensor, nn
from torch.optim import LBFGS as LBFGS
from torch.optim.optimizer import ParamsT

{imports}

__version__: str
__all__: list[str]
rules: dict[str, Rule]

@overload
def rule(function: Callable[..., Any]) -> Rule: ...
@overload
def rule(
    *,
{about}
) -> Callable[[Callable[..., Any]], Rule]: ...
@overload
def optimizer(  # pyright: ignore[reportOverlappingOverload]
    rule: Literal["lbfgs", "LBFGS"], params: ParamsT | nn.Module, **hyper: Any
) -> LBFGS: ...
@overload
def optimizer(rule: str | Rule, params: ParamsT | nn.Module, **hyper: Any) -> RuleOptimizer: ...
"""
ROOMS = sorted(steepest._ROOMS)
# annotations for arguments of the decorator that are narrower than those of Rule
RULE_ANNOTATIONS = {
    "decay": 'Literal["coupled", "decoupled"]',
    "sparse": 'Literal["", "rows", "dense"]',
    "clocks": "Mapping[str, Any] | None",
}
ANNOTATIONS = {
    "rounding": 'Literal["stochastic", "kahan"] | None',
    "seed": "int",
    "cautious": "bool",
    "clip_norm": "float | Tensor | None",
    "backend": 'Literal["cpu", "foreach", "eager"] | None',
    "adjust_lr_fn": 'Literal["original", "match_rms_adamw"] | None',
}


def annotate(name: str, default: Any) -> str:
    """The annotation of an argument of a class."""
    if name in ANNOTATIONS:
        return ANNOTATIONS[name]
    if name in WITHOUT_EFFECT:
        return "bool | None"
    if isinstance(default, bool):
        return "bool"
    if isinstance(default, tuple):
        member = "float | Tensor | None" if None in default else "float | Tensor"
        return f"Sequence[{member}]"
    return "float | Tensor" if isinstance(default, (int, float)) else type(default).__name__


def print_class(family: Family, base: str) -> str:
    """The class of a family, with its constructor."""
    lines = [
        f"class {family.name}({base}):",
        "    def __init__(",
        "        self,",
        "        params: ParamsT,",
        *map(print_argument, family.arguments.items()),
        "        *,",
        *map(print_argument, {**STORAGE, "backend": None}.items()),
        "    ) -> None: ...",
    ]
    return "\n".join(lines)


def print_argument(item: tuple[str, Any]) -> str:
    """A line of a constructor: name, annotation, default."""
    name, default = item
    value = 'float("inf")' if default == float("inf") else repr(default)
    return f"        {name}: {annotate(name, default)} = {value},"


def print_decorator() -> str:
    """The keyword arguments of @rule: those of `Rule`."""
    lines = []
    for name, parameter in inspect.signature(steepest.Rule.__init__).parameters.items():
        if parameter.kind is parameter.KEYWORD_ONLY:
            default = parameter.default
            text = json.dumps(default) if isinstance(default, str) else default
            full = inspect.formatannotation(parameter.annotation)
            short = full.replace("collections.abc.", "").replace("typing.", "")
            lines.append(f"    {name}: {RULE_ANNOTATIONS.get(name, short)} = {text},")
    return "\n".join(lines)


def stub() -> str:
    """The text of the file."""
    imports = [f"from . import {room} as {room}" for room in ROOMS]
    bases = sorted({c.__mro__[1] for c in classes.classes.values()}, key=lambda c: c.__name__)
    objects = [*bases, *(getattr(steepest, n) for n in ("Rule", "SAM", "Lookahead"))]
    objects += [steepest.convert, steepest.param_groups]
    for item in objects:
        name, module = item.__name__, item.__module__.removeprefix("steepest")
        imports += [f"from {module} import {name} as {name}"]
    body = [print_class(c.family, c.__mro__[1].__name__) for c in classes.classes.values()]
    head = HEAD.replace("{imports}", "\n".join(sorted(imports)))
    head = head.replace("{about}", print_decorator())
    return head + "\n" + "\n\n".join(body) + "\n"


def main(write: bool) -> int:
    text = stub()
    current = STUB.exists() and STUB.read_text(encoding="utf-8") == text
    if write:
        STUB.write_text(text, encoding="utf-8")
    elif not current:
        print(f"{STUB.name} is out of date: python scripts/stub.py --write")
    return int(not current and not write)


if __name__ == "__main__":
    sys.exit(main("--write" in sys.argv))
