"""Python functions on whole numbers of 64 bits, straight to LLVM: numba takes seconds for them.

Every variable is such a number, `a[i]` the one at address a + 8 i. There are arithmetic without
division, comparisons, `and` and `or` in conditions, if, while, for in range(n), return, calls of
the functions before, `call(address, ...)` of a C function that returns a long, `ask(address, ...)`
of one that returns an int, and `load4(address)` and `store4(address, number)` for 32 bits.
"""

from __future__ import annotations

import ast
from typing import Any

from llvmlite import ir

_WORD, _INT = ir.IntType(64), ir.IntType(32)
_ARITHMETIC = {
    ast.Add: "add",
    ast.Sub: "sub",
    ast.Mult: "mul",
    ast.BitOr: "or_",
    ast.BitAnd: "and_",
    ast.BitXor: "xor",
    ast.LShift: "shl",
}
_COMPARISONS = {
    ast.Eq: "==",
    ast.NotEq: "!=",
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
}


def compiled(source: str) -> str:
    """LLVM's text of the functions in `source`; the last one may be called from outside."""
    module, functions = ir.Module(), {}
    *helpers, last = ast.parse(source).body
    for definition in (*helpers, last):
        assert isinstance(definition, ast.FunctionDef)
        kind = ir.FunctionType(_WORD, [_WORD] * len(definition.args.args))
        function = ir.Function(module, kind, definition.name)
        function.linkage = "external" if definition is last else "internal"
        functions[definition.name] = function
        _Function(definition, function, functions)
    return str(module)


class _Function:
    def __init__(self, definition: ast.FunctionDef, function: ir.Function, known: Any) -> None:
        self.known, self.function = known, function
        self.b: Any = ir.IRBuilder(function.append_basic_block())
        b = self.b
        stored = (n.id for n in ast.walk(definition) if isinstance(n, ast.Name))
        names = [a.arg for a in definition.args.args]
        self.at = {n: b.alloca(_WORD) for n in dict.fromkeys([*names, *stored])}
        for name, value in zip(names, function.args, strict=True):
            b.store(value, self.at[name])
        self.block(definition.body)
        if not b.block.is_terminated:
            b.ret(_WORD(0))

    def block(self, body: list[ast.stmt]) -> None:
        for statement in body:
            getattr(self, type(statement).__name__)(statement)

    def Return(self, node: Any) -> None:  # noqa: N802  named as ast names them, here and below
        self.b.ret(self.value(node.value) if node.value else _WORD(0))

    def Expr(self, node: Any) -> None:  # noqa: N802
        self.value(node.value)

    def Assign(self, node: Any) -> None:  # noqa: N802
        value = self.value(node.value)
        for target in node.targets:
            self.b.store(value, self.place(target))

    def AugAssign(self, node: Any) -> None:  # noqa: N802
        at = self.place(node.target)
        op = getattr(self.b, _ARITHMETIC[type(node.op)])
        self.b.store(op(self.b.load(at), self.value(node.value)), at)

    def If(self, node: Any) -> None:  # noqa: N802
        with self.b.if_else(self.test(node.test)) as (then, otherwise):
            with then:
                self.block(node.body)
            with otherwise:
                self.block(node.orelse)

    def While(self, node: Any) -> None:  # noqa: N802
        head, body, end = (self.function.append_basic_block() for _ in range(3))
        self.b.branch(head)
        self.b.position_at_end(head)
        self.b.cbranch(self.test(node.test), body, end)
        self.b.position_at_end(body)
        self.block(node.body)
        if not self.b.block.is_terminated:
            self.b.branch(head)
        self.b.position_at_end(end)

    def For(self, node: Any) -> None:  # noqa: N802
        head, body, end = (self.function.append_basic_block() for _ in range(3))
        i, size = self.at[node.target.id], self.value(node.iter.args[0])
        self.b.store(_WORD(0), i)
        self.b.branch(head)
        self.b.position_at_end(head)
        self.b.cbranch(self.b.icmp_signed("<", self.b.load(i), size), body, end)
        self.b.position_at_end(body)
        self.block(node.body)
        if not self.b.block.is_terminated:
            self.b.store(self.b.add(self.b.load(i), _WORD(1)), i)
            self.b.branch(head)
        self.b.position_at_end(end)

    def place(self, target: Any) -> Any:
        """Where a value is stored."""
        if isinstance(target, ast.Name):
            return self.at[target.id]
        index = self.b.mul(self.value(target.slice), _WORD(8))
        address = self.b.add(self.value(target.value), index)
        return self.b.inttoptr(address, _WORD.as_pointer())

    def test(self, node: Any) -> Any:
        """A condition as one bit."""
        if isinstance(node, ast.Compare):
            left, right = self.value(node.left), self.value(node.comparators[0])
            return self.b.icmp_signed(_COMPARISONS[type(node.ops[0])], left, right)
        if isinstance(node, ast.BoolOp):  # the right side is computed only if it counts
            both, left = isinstance(node.op, ast.And), self.test(node.values[0])
            rest = node.values[1] if len(node.values) == 2 else ast.BoolOp(node.op, node.values[1:])
            start, more, end = self.b.block, *(self.function.append_basic_block() for _ in "ab")
            self.b.cbranch(left, *((more, end) if both else (end, more)))
            self.b.position_at_end(more)
            right, stop = self.test(rest), self.b.block
            self.b.branch(end)
            self.b.position_at_end(end)
            found = self.b.phi(ir.IntType(1))
            found.add_incoming(ir.IntType(1)(not both), start)
            found.add_incoming(right, stop)
            return found
        return self.b.icmp_signed("!=", self.value(node), _WORD(0))

    def value(self, node: Any) -> Any:
        """An expression as a number."""
        match node:
            case ast.Constant():
                return _WORD(node.value)
            case ast.UnaryOp(op=ast.USub()):
                return self.b.neg(self.value(node.operand))
            case ast.Name() | ast.Subscript():
                return self.b.load(self.place(node))
            case ast.BinOp():
                op = getattr(self.b, _ARITHMETIC[type(node.op)])
                return op(self.value(node.left), self.value(node.right))
            case ast.Call(func=ast.Name(id=name)):
                first, *rest = [self.value(a) for a in node.args]
                if name in ("load4", "store4"):
                    at = self.b.inttoptr(first, _INT.as_pointer())
                    if name == "load4":
                        return self.b.sext(self.b.load(at), _WORD)
                    return self.b.store(self.b.trunc(rest[0], _INT), at)
                if name in self.known:
                    return self.b.call(self.known[name], [first, *rest])
                result = {"call": _WORD, "ask": _INT}[name]
                kind = ir.FunctionType(result, [_WORD] * len(rest))
                found = self.b.call(self.b.inttoptr(first, kind.as_pointer()), rest)
                return found if result is _WORD else self.b.sext(found, _WORD)
            case _:
                return self.b.zext(self.test(node), _WORD)
