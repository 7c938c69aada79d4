"""What there is to say of a rule: the facts behind `steepest list` and `steepest show`."""

from __future__ import annotations

import inspect
import re
from typing import Any

from .backends import foreach
from .definition import Rule, rules
from .families import family_of, select_defaults
from .plan import BACKENDS, program_of
from .trace import host_body


def facts(rule: Rule) -> dict[str, Any]:
    """Name, class, paper, year, states and their bytes per float32 parameter, and the defaults."""
    text = inspect.cleandoc(rule.__doc__ or "")
    source = text.split("\n\n")[0].split(". ", 1)[-1].rstrip(".")
    year = re.search(r"\b(1[89]|20)\d\d\b", source)
    program = program_of(select_defaults(rule))
    return {
        "name": rule.name,
        "class": family_of(rule).name,
        "year": int(year[0]) if year else None,
        "paper": " ".join(source.split()),
        "states": [rule.keys[s] for s in program.states],
        "bytes_per_parameter": 4 * len(program.states),
        "defaults": {**rule.defaults, **rule.choices},
    }


def listing() -> list[dict[str, Any]]:
    """The facts of every rule, in order of growing complexity."""
    return [facts(rule) for rule in rules.values()]


def shown(rule: Rule, backend: str | None = None) -> str:
    """The rule's source, or what a backend makes of it with the class's defaults."""
    selection = select_defaults(rule)
    program = program_of(selection)
    if backend in (None, "eager"):
        return inspect.getsource(rule.function)
    if backend in BACKENDS and (program.matrix or (program.first and backend == "foreach")):
        why = "looks at a whole matrix" if program.matrix else "adds up a whole tensor"
        raise ValueError(
            f"{rule.name} {why}: {backend} has nothing of its own, see --backend eager"
        )
    if backend == "foreach":
        lines, slots, _ = host_body(program)
        notes = [*lines, *(f"c[{i}] = {text}" for i, text in enumerate(slots))]
        return foreach.source(program) + "".join(f"    # {line}\n" for line in notes)
    if backend == "cpu":
        from .backends import cpu

        passes = (True, False) if program.first else (False,)
        return "\n\n".join(cpu.source(program, first=first) for first in passes)
    raise ValueError(f"backend {backend!r} was given, expected one of {', '.join(BACKENDS)}")
