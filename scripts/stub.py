"""Writes src/steepest/__init__.pyi, the signatures that type checkers and editors read:

    python scripts/stub.py --write

Without --write it says whether the file is out of date, and leaves with 1 if it is.
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
# of what the decorator takes, where a type checker can be told more
NARROWER = {
    "decay": 'Literal["coupled", "decoupled"]', "sparse": 'Literal["", "rows", "dense"]',
    "clocks": "Mapping[str, Any] | None",
}  # fmt: skip
KNOWN = {
    "rounding": 'Literal["stochastic", "kahan"] | None', "seed": "int", "cautious": "bool",
    "clip_norm": "float | Tensor | None", "backend": 'Literal["cpu", "foreach", "eager"] | None',
    "adjust_lr_fn": 'Literal["original", "match_rms_adamw"] | None',
}  # fmt: skip


def kind(name: str, default: Any) -> str:
    """The annotation of an argument."""
    if name in KNOWN:
        return KNOWN[name]
    if name in WITHOUT_EFFECT:
        return "bool | None"
    if isinstance(default, bool):
        return "bool"
    if isinstance(default, tuple):
        return f"Sequence[float | Tensor{' | None' * (None in default)}]"
    return "float | Tensor" if isinstance(default, (int, float)) else type(default).__name__


def shown(family: Family, base: str) -> str:
    """The class of a family, with its constructor."""
    every = [(n, d, False) for n, d in family.arguments.items()]
    every += [(n, d, True) for n, d in {**STORAGE, "backend": None}.items()]
    lines = [f"class {family.name}({base}):", "    def __init__(", "        self,",
             "        params: ParamsT,"]  # fmt: skip
    star = False
    for name, default, keyword in every:
        if keyword and not star:
            lines.append("        *,")
            star = True
        value = 'float("inf")' if default == float("inf") else repr(default)
        lines.append(f"        {name}: {kind(name, default)} = {value},")
    return "\n".join([*lines, "    ) -> None: ..."])


def decorator() -> str:
    """What @rule takes, as `Rule` itself does."""
    lines = []
    for name, one in inspect.signature(steepest.Rule.__init__).parameters.items():
        if one.kind is one.KEYWORD_ONLY:
            plain = inspect.formatannotation(one.annotation).replace("collections.abc.", "")
            shown = NARROWER.get(name, plain.replace("typing.", ""))
            usual = json.dumps(one.default) if isinstance(one.default, str) else one.default
            lines.append(f"    {name}: {shown} = {usual},")
    return "\n".join(lines)


def stub() -> str:
    """The whole file."""
    imports = [f"from . import {room} as {room}" for room in ROOMS]
    bases = sorted({c.__mro__[1] for c in classes.classes.values()}, key=lambda c: c.__name__)
    every = [*bases, *(getattr(steepest, n) for n in ("Rule", "SAM", "Lookahead"))]
    every += [steepest.convert, steepest.param_groups]
    for made in every:
        name, module = made.__name__, made.__module__.removeprefix("steepest")
        imports += [f"from {module} import {name} as {name}"]
    body = [shown(c.family, c.__mro__[1].__name__) for c in classes.classes.values()]
    head = HEAD.replace("{imports}", "\n".join(sorted(imports))).replace("{about}", decorator())
    return head + "\n" + "\n\n".join(body) + "\n"


def main(write: bool) -> int:
    text = stub()
    same = STUB.exists() and STUB.read_text(encoding="utf-8") == text
    if write:
        STUB.write_text(text, encoding="utf-8")
    elif not same:
        print(f"{STUB.name} is out of date: python scripts/stub.py --write")
    return int(not same and not write)


if __name__ == "__main__":
    sys.exit(main("--write" in sys.argv))
