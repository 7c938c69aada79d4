"""How a program becomes text: assignments in Python's syntax, and a function of the host scalars.

The host scalars are the numbers that are computed once per step (`trace.py`). A backend's printer
is a `Printer` that writes operators and constants in the backend's syntax. It reserves the names
that the backend's code uses: if a user's name is one of these, an underscore is appended to it.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Collection, Iterable
from typing import Any, ClassVar, NamedTuple

from .ops import Number
from .trace import FUNCTIONS, Node, Program, in_order

_NUMBERED = re.compile(r"(x|h|c|sum|either_x)\d*_*")
"""Names that printers generate: values, host scalars, slots, sums."""
_FIT = frozenset({"fit"})
"""What the function of the host scalars calls, besides FUNCTIONS."""


def safe_name(name: str, reserved: Collection[str]) -> str:
    """A user's name for generated code, with an underscore if the code uses this name itself."""
    return f"{name}_" if name in reserved or _NUMBERED.fullmatch(name) else name


class Printer:
    """Prints nodes as Python assignments, one for each value that has a name or is used twice.

    taken: names that the printer may not use.
    """

    # operator -> (template, precedence)
    templates: ClassVar[dict[str, tuple[str, float]]] = {
        "where": ("{1} if {0} else {2}", 0),
        "gt": ("{} > {}", 1),
        "ge": ("{} >= {}", 1),
        "lt": ("{} < {}", 1),
        "le": ("{} <= {}", 1),
        "eq": ("{} == {}", 1),
        "ne": ("{} != {}", 1),
        "add": ("{} + {}", 2),
        "sub": ("{} - {}", 2),
        "mul": ("{} * {}", 3),
        "div": ("{} / {}", 3),
        "pow": ("{} ** {}", 4),
    }

    def __init__(self, program: Program, taken: Iterable[str] = ()) -> None:
        self.program, self.taken = program, set(taken)
        self.names: dict[Node, str] = {}

    def name(self, node: Node, stem: str) -> str:
        """A free identifier for the node: its label in the rule, or the stem with a number."""
        labels = [node.label, f"{node.label}_new"] if node.label else []
        numbered = (f"{stem}{i}" for i in itertools.count(1))
        name = next(x for x in itertools.chain(labels, numbered) if x not in self.taken)
        self.taken.add(name)
        self.names[node] = name
        return name

    def expression(self, node: Node, above: float = -1) -> str:
        """The node as a Python expression; a node without a name is written out.

        above: the precedence of the operator around it.
        """
        if node in self.names:
            return self.names[node]
        if node.op == "const":
            return self.constant(node)
        if node.op not in self.templates:
            return f"{node.op}({', '.join(map(self.expression, node.args))})"
        template, precedence = self.templates[node.op]
        # at equal precedence, only a first operand needs no brackets
        tighter = precedence + 0.5
        first = tighter if node.op in ("pow", "where") else precedence
        args = [self.expression(a, tighter if i else first) for i, a in enumerate(node.args)]
        text = template.format(*args)
        return f"({text})" if precedence < above else text

    def constant(self, node: Node) -> str:
        """A constant in the backend's syntax."""
        return repr(node.value) if abs(node.value) < float("inf") else f"float('{node.value}')"

    def assignments(self, nodes: Iterable[Node], keep: Iterable[Node], stem: str) -> list[str]:
        """`name = expression` for nodes that are in `keep`, used twice or labelled."""
        keep, lines = set(keep), []
        for node in nodes:
            if node in keep or node.label or self.program.uses[node] > 1:
                text = self.expression(node)
                lines.append(f"{self.name(node, stem)} = {text}")
        return lines


class Host(NamedTuple):
    """The host scalars as text: assignments, the slots, the next values of carried scalars."""

    lines: list[str]
    slots: list[str]
    carried: list[str]


def host_body(program: Program, reserved: Collection[str], taken: Collection[str] = ()) -> Host:
    """The host scalars as Python.

    reserved, taken: names that the surrounding code uses. Each slot, a host scalar that the loop
    reads, is clamped into the range of the loop's type.
    """
    inputs = [safe_name(n, reserved) for n in (*program.scalars, *program.carried)]
    printer = Printer(program, taken={*reserved, *taken, *inputs, *FUNCTIONS})
    for node in in_order((*program.slots, *program.carried.values())):
        if node.op == "input":
            printer.names[node] = safe_name(node.value, reserved)
    for i, node in enumerate(program.reductions):
        printer.names[node] = f"sum{i}"
    lines = printer.assignments(program.hosts, (), "h")
    slots = [f"fit({printer.expression(n)})" for n in program.slots]
    return Host(lines, slots, [printer.expression(n) for n in program.carried.values()])


def host_notes(program: Program) -> list[str]:
    """The host scalars for people to read: how each slot, `c[i]`, is computed."""
    lines, slots, _ = host_body(program, _FIT)
    return [*lines, *(f"c[{i}] = {text}" for i, text in enumerate(slots))]


def host_function(program: Program, itemsize: int = 4) -> Callable[..., tuple[float, ...]]:
    """(t and scalars, carried) -> (slots, next carried), floats in IEEE arithmetic.

    itemsize: bytes of the type of the loop that reads the slots, 4 or 8.
    """
    lines, slots, carried = host_body(program, _FIT)
    arguments = [safe_name(n, _FIT) for n in (*program.scalars, *program.carried)]
    results = "".join(f"{value}, " for value in (*slots, *carried))
    text = "\n    ".join([f"def host({', '.join(arguments)}):", *lines, f"return ({results})"])
    names: dict[str, Any] = {**FUNCTIONS, "fit": fits[itemsize]}
    exec(compile(text, f"<host scalars of {program.rule.name}>", "exec"), names)
    host = names["host"]
    return lambda *values: tuple(float(x) for x in host(*map(Number, values)))


def _make_fit(largest: float) -> Callable[[float], float]:
    def fit(x: float) -> float:
        # 1/h of a tiny h is finite here but inf in the loop's type, and 0 * inf is nan
        if abs(x) <= largest or x != x or abs(x) == math.inf:
            return x
        return largest if x > 0.0 else -largest

    return fit


fits = {4: _make_fit((2.0 - 2.0**-23) * 2.0**127), 8: _make_fit((2.0 - 2.0**-52) * 2.0**1023)}
"""Bytes of a loop's type -> the function that clamps a host scalar into its range."""
