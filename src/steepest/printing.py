"""How a program becomes text: assignments in Python's syntax, and the host scalars as a function.

A backend's printer is a `Printer` that writes operators and constants in its own way. It brings the
words that its own code uses: a name of the user's that is among them is spelt with a stroke.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Collection, Iterable
from typing import Any, ClassVar, NamedTuple

from .ops import Number
from .trace import WORDS, Node, Program, in_order

_NUMBERED = re.compile(r"(x|h|c|sum|either_x)\d*_*")
"""Names that printers make up: values, host scalars, slots, sums."""
_FIT = frozenset({"fit"})
"""What the function of the host scalars calls, beside WORDS."""


def spelt(name: str, reserved: Collection[str]) -> str:
    """A name of the user's in generated code: with a stroke where the code has that name itself."""
    return f"{name}_" if name in reserved or _NUMBERED.fullmatch(name) else name


class Printer:
    """Prints nodes as Python assignments, one per value that has a name or is used twice.

    taken: the names that are not free.
    """

    # operator -> (template, how strongly it binds)
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
        """A free identifier for the node: its label in the rule, else the stem with a number."""
        wishes = [node.label, f"{node.label}_new"] if node.label else []
        more = (f"{stem}{i}" for i in itertools.count(1))
        name = next(x for x in itertools.chain(wishes, more) if x not in self.taken)
        self.taken.add(name)
        self.names[node] = name
        return name

    def expression(self, node: Node, above: float = -1) -> str:
        """The node as Python, with whatever has no name of its own written out.

        `above` is how strongly the operator around it binds.
        """
        if node in self.names:
            return self.names[node]
        if node.op == "const":
            return self.constant(node)
        if node.op not in self.templates:
            return f"{node.op}({', '.join(map(self.expression, node.args))})"
        template, binds = self.templates[node.op]
        # the order of the operations is the program's, so only a first operand may go bare
        tighter = binds + 0.5
        first = tighter if node.op in ("pow", "where") else binds
        args = [self.expression(a, tighter if i else first) for i, a in enumerate(node.args)]
        text = template.format(*args)
        return f"({text})" if binds < above else text

    def constant(self, node: Node) -> str:
        """A constant as the backend writes it."""
        return repr(node.value) if abs(node.value) < float("inf") else f"float('{node.value}')"

    def assignments(self, nodes: Iterable[Node], keep: Iterable[Node], stem: str) -> list[str]:
        """`name = expression` for the nodes that are kept, used twice, or bear a label."""
        keep, lines = set(keep), []
        for node in nodes:
            if node in keep or node.label or self.program.uses[node] > 1:
                text = self.expression(node)
                lines.append(f"{self.name(node, stem)} = {text}")
        return lines


class Host(NamedTuple):
    """The host scalars as text: assignments, the slots, the next values of the carried scalars."""

    lines: list[str]
    slots: list[str]
    carried: list[str]


def host_body(program: Program, reserved: Collection[str], taken: Collection[str] = ()) -> Host:
    """The host scalars as Python, where the code around has the words `reserved` and the names
    `taken`; a slot is fitted into the type of the loop that reads it.
    """
    inputs = [spelt(n, reserved) for n in (*program.scalars, *program.carried)]
    printer = Printer(program, taken={*reserved, *taken, *inputs, *WORDS})
    for node in in_order((*program.slots, *program.carried.values())):
        if node.op == "input":
            printer.names[node] = spelt(node.value, reserved)
    for i, node in enumerate(program.reductions):
        printer.names[node] = f"sum{i}"
    lines = printer.assignments(program.hosts, (), "h")
    slots = [f"fit({printer.expression(n)})" for n in program.slots]
    return Host(lines, slots, [printer.expression(n) for n in program.carried.values()])


def host_notes(program: Program) -> list[str]:
    """The host scalars as people read them: how each slot, `c[i]`, is computed."""
    lines, slots, _ = host_body(program, _FIT)
    return [*lines, *(f"c[{i}] = {text}" for i, text in enumerate(slots))]


def host_function(program: Program, itemsize: int = 4) -> Callable[..., tuple[float, ...]]:
    """(t and scalars, carried) -> (slots, next carried), floats in IEEE arithmetic.

    itemsize is that of the loop which reads the slots, 4 or 8 bytes.
    """
    lines, slots, carried = host_body(program, _FIT)
    arguments = [spelt(n, _FIT) for n in (*program.scalars, *program.carried)]
    results = "".join(f"{value}, " for value in (*slots, *carried))
    text = "\n    ".join([f"def host({', '.join(arguments)}):", *lines, f"return ({results})"])
    names: dict[str, Any] = {**WORDS, "fit": fits[itemsize]}
    exec(compile(text, f"<host scalars of {program.rule.name}>", "exec"), names)
    host = names["host"]
    return lambda *values: tuple(float(x) for x in host(*map(Number, values)))


def _fit(huge: float) -> Callable[[float], float]:
    def fit(x: float) -> float:
        # 1/h of a tiny h is finite here, and would be inf in the loop's type: 0 * inf is nan
        if abs(x) <= huge or x != x or abs(x) == math.inf:
            return x
        return huge if x > 0.0 else -huge

    return fit


fits = {4: _fit((2.0 - 2.0**-23) * 2.0**127), 8: _fit((2.0 - 2.0**-52) * 2.0**1023)}
"""Bytes of a loop's type -> the function that brings a host scalar into its range."""
