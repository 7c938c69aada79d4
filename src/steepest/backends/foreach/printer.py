"""Prints a program as calls of torch._foreach_* functions.

Each call works on whole lists of tensors. So the number of calls per step depends on the rule, not
on the number of tensors. If a product or a quotient is added to something, both operations become
one addcmul or addcdiv. A weighted average becomes one lerp. A list that is not read again is
overwritten.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import torch

from ...printing import safe_name
from ...trace import Node, Program

RESERVED = frozenset({"torch", "full"})
"""Names that the generated code uses itself, besides `c` and numbered names such as `x1`."""


def _safe_name(name: str) -> str:
    return safe_name(name, RESERVED)


def full(like: list[Any], value: float) -> list[Any]:
    """Return new tensors like the tensors in `like`, filled with `value`."""
    lists = torch._foreach_mul(like, 0.0)
    torch._foreach_zero_(lists)  # 0 * nan is nan
    torch._foreach_add_(lists, value)
    return list(lists)


class _Term(NamedTuple):
    """A term of a sum.

    Its value is factor * a if the form is "plain", factor * a * b if it is "mul", and factor * a /
    b if it is "div".
    """

    factor: str
    form: str
    a: Node
    b: Node


class _Calls:
    def __init__(self, program: Program) -> None:
        self.program, self.reads_left = program, dict(program.uses)
        self.lines: list[str] = []
        self.new_names = (f"x{i}" for i in itertools.count(1))
        rule = program.rule
        stored = [rule.tensors[0], *program.states]
        self.lists = {program.inputs[n]: _safe_name(n) for n in (*stored, rule.tensors[1])}
        self.slot = {n: f"c[{i}]" for i, n in enumerate(program.slots)}
        self.reaches = {_safe_name(n): _ancestors(program.outputs.get(n)) for n in rule.tensors}
        # p comes last: it may be overwritten only when no state needs it any more
        for name in [*program.states, rule.tensors[0]]:
            if name in program.outputs:
                self.value(program.outputs[name])
        copies = []
        for name in (n for n in stored if n in program.outputs):
            result = self.take(program.outputs[name])
            if result == _safe_name(name):
                continue
            # the copies below may overwrite it
            if result in self.reaches or result.startswith("either"):
                self.lines.append(f"kept_{name} = torch._foreach_mul({result}, 1.0)")
                result = f"kept_{name}"
            copies.append(f"torch._foreach_copy_({_safe_name(name)}, {result})")
        self.lines += copies

    def scalar(self, node: Node) -> str:
        return repr(node.value) if node.op == "const" else self.slot[node]

    def value(self, node: Node) -> str:
        """Return the name of the list that holds the node.

        If there is no such list yet, the calls that compute it are printed.
        """
        if node not in self.lists:
            self.lists[node] = self.emit(node)
        return self.lists[node]

    def values(self, *nodes: Node) -> None:
        """Compute all operands before one of them is used.

        This order is necessary because the use of an operand may overwrite its list.
        """
        for node in nodes:
            if not node.host:
                self.value(node)

    def take(self, node: Node) -> str:
        """Return the name of the list that holds the node, and count one read of this list."""
        name = self.value(node)
        self.reads_left[node] -= 1
        return name

    def call(self, node: Node, op: str, a: Node, *rest: str) -> str:
        """Print a call of `op` on the list of `a`. Returns the name of the list with the result.

        The call works in place if the list of `a` is not read again and may be overwritten.
        """
        name = self.take(a)
        may_overwrite = node in self.reaches.get(name, (node,))
        if self.reads_left[a] == 0 and may_overwrite and not name.startswith("either"):
            self.lines.append(f"torch._foreach_{op}_({', '.join([name, *rest])})")
            return name
        new = next(self.new_names)
        self.lines.append(f"{new} = torch._foreach_{op}({', '.join([name, *rest])})")
        return new

    def is_read_once(self, node: Node) -> bool:
        return self.reads_left.get(node) == 1 and node not in self.lists and not node.host

    def term(self, node: Node) -> _Term:
        if self.is_read_once(node) and node.op in ("mul", "div"):
            a, b = node.args
            if node.op == "mul" and a.host:
                inner = self.term(b)
                rest = "" if inner.factor == "1" else f" * {inner.factor}"
                return inner._replace(factor=self.scalar(a) + rest)
            if not a.host and not b.host:
                inner = self.term(a)
                plain = inner if inner.form == "plain" else _Term("1", "plain", a, a)
                return _Term(plain.factor, node.op, plain.a, b)
        return _Term("1", "plain", node, node)

    def emit(self, node: Node) -> str:
        a, *rest = node.args or (node,)
        b = rest[0] if rest else a
        match node.op:
            case "add" | "sub" if not a.host and not b.host:
                return self.sum(node, a, b)
            case "add" | "mul" | "maximum" | "minimum" if a.host:
                return self.call(node, node.op, b, self.scalar(a))
            case "sub" | "div" if a.host:  # as -b + a and 1 / b * a
                first, then = ("neg", "add") if node.op == "sub" else ("reciprocal", "mul")
                name = self.call(node, first, b)
                self.lines.append(f"torch._foreach_{then}_({name}, {self.scalar(a)})")
                return name
            case "pow" if a.host:
                name = next(self.new_names)
                self.lines.append(f"{name} = torch._foreach_pow({self.scalar(a)}, {self.take(b)})")
                return name
            case "where":
                return self.either(*node.args)
            case _:
                self.values(a, *rest)
                args = [self.scalar(x) if x.host else self.take(x) for x in rest]
                return self.call(node, node.op, a, *args)

    def sum(self, node: Node, a: Node, b: Node) -> str:
        minus = "-" if node.op == "sub" else ""
        if not minus and (average := self.average(a, b)):
            weight, other = average
            self.values(a, other)
            return self.call(node, "lerp", a, self.take(other), self.scalar(weight))
        s, r = self.term(a), self.term(b)
        if node.op == "add" and r == _Term("1", "plain", b, b) and s.a is not a:
            a, r = b, s  # the product comes second
        self.values(a, r.a, r.b)
        if r.form == "plain":
            alpha = "" if r.factor == "1" else f"alpha={r.factor}"
            return self.call(node, node.op, a, self.take(r.a), *filter(None, [alpha]))
        value = f"value={minus}({r.factor})" if " " in r.factor else f"value={minus}{r.factor}"
        return self.call(node, f"addc{r.form}", a, self.take(r.a), self.take(r.b), value)

    def average(self, a: Node, b: Node) -> tuple[Node, Node] | None:
        """Return (weight, other) if b is weight * (other - a) and nothing else reads b.

        Returns None otherwise.
        """
        if (
            self.is_read_once(b)
            and b.op == "mul"
            and b.args[0].host
            and self.is_read_once(b.args[1])
        ):
            step = b.args[1]
            if step.op == "sub" and step.args[1] is a and not step.args[0].host:
                self.reads_left[a] -= 1  # the difference is never computed
                return b.args[0], step.args[0]
        return None

    def either(self, condition: Node, then: Node, otherwise: Node) -> str:
        self.values(then, otherwise)
        like = otherwise if then.host else then
        name = "either_" + next(self.new_names)
        sides = [
            f"full({self.value(like)}, {self.scalar(x)})" if x.host else self.take(x)
            for x in (then, otherwise)
        ]
        self.lines.append(f"{name} = {sides[0]} if {self.scalar(condition)} else {sides[1]}")
        # the chosen list is one of the old ones, so none of them may be overwritten any more
        for side in (then, otherwise):
            if not side.host:
                self.reads_left[side] += 1
        return name


def _ancestors(node: Node | None) -> set[Node]:
    return {node}.union(*(_ancestors(a) for a in node.args)) if node is not None else set()


def source(program: Program) -> str:
    """Return the program as the source of a function.

    The arguments of the function are lists of tensors, and `c`, the list of the host scalars.
    """
    p, g = program.rule.tensors[:2]
    arguments = ", ".join([*map(_safe_name, (p, g, *program.states)), "c"])
    body = "".join(f"    {line}\n" for line in _Calls(program).lines)
    return f"def {program.rule.name}({arguments}):\n{body}"


def compiled(program: Program) -> Any:
    """Return the function whose source `source(program)` returns."""
    names: dict[str, Any] = {"torch": torch, "full": full}
    exec(compile(source(program), f"<foreach calls of {program.rule.name}>", "exec"), names)
    return names[program.rule.name]
