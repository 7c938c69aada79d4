"""How a program becomes text: assignments in Python, and a function that computes host scalars.

The host scalars are the numbers that are computed once per step (`trace.py`). A backend's printer
is a `Printer` that writes operators and constants in the backend's syntax. It reserves the names
that the backend's code uses. If the user's rule has a reserved name, an underscore is appended.
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
"""The functions, besides FUNCTIONS, that the code for the host scalars calls."""


def safe_name(name: str, reserved: Collection[str]) -> str:
    """Returns a user's name for generated code.

    An underscore is appended if the code itself uses this name.
    """
    return f"{name}_" if name in reserved or _NUMBERED.fullmatch(name) else name


class Printer:
    """Prints nodes as Python assignments, one for each value that has a label or several uses.

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
        """Give the node a free identifier: its label in the rule, or `stem` with a number."""
        labels = [node.label, f"{node.label}_new"] if node.label else []
        numbered = (f"{stem}{i}" for i in itertools.count(1))
        name = next(x for x in itertools.chain(labels, numbered) if x not in self.taken)
        self.taken.add(name)
        self.names[node] = name
        return name

    def expression(self, node: Node, above: float = -1) -> str:
        """Returns the node's name, or its Python expression if it has no name.

        above: the precedence of the operator around the expression.
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
        """Returns a constant in the backend's syntax."""
        return repr(node.value) if abs(node.value) < float("inf") else f"float('{node.value}')"

    def assignments(self, nodes: Iterable[Node], keep: Iterable[Node], stem: str) -> list[str]:
        """Returns `name = expression` for nodes that are in `keep`, labelled or used repeatedly."""
        keep, lines = set(keep), []
        for node in nodes:
            if node in keep or node.label or self.program.uses[node] > 1:
                text = self.expression(node)
                lines.append(f"{self.name(node, stem)} = {text}")
        return lines


class Host(NamedTuple):
    """The host scalars as text.

    lines: assignments. slots: an expression for each slot. carried: an expression for the next
    value of each carried scalar.
    """

    lines: list[str]
    slots: list[str]
    carried: list[str]


def host_body(program: Program, reserved: Collection[str], taken: Collection[str] = ()) -> Host:
    """Returns Python code that computes the host scalars.

    reserved, taken: names that the surrounding code uses. A slot is a host scalar that the loop
    reads; each slot is clamped into the range of the loop's dtype.
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
    """Returns lines that show a reader how the host scalar of each slot `c[i]` is computed."""
    lines, slots, _ = host_body(program, _FIT)
    return [*lines, *(f"c[{i}] = {text}" for i, text in enumerate(slots))]


def host_function(program: Program, itemsize: int = 4) -> Callable[..., tuple[float, ...]]:
    """Returns a function that computes the host scalars in IEEE arithmetic.

    The function takes the values of `program.scalars`, then the carried scalars. It returns floats:
    the slots, then the next carried scalars.
    itemsize: bytes of an element in the loop that reads the slots, 4 or 8.
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
"""Bytes of an element in a loop -> function that clamps a host scalar into the dtype's range."""
