"""A small compiler from Python functions on 64-bit integers to LLVM.

numba is not used for these functions, because it takes seconds for them. Every variable is a 64-bit
integer, and `a[i]` is the integer at address a + 8 * i. The language has arithmetic without
division, comparisons, `and` and `or` in conditions, if, while, for in range(n), return, and calls
of functions that are defined earlier.

`call(address, ...)` calls a C function that returns a long. `ask(address, ...)` calls a C function
that returns an int. `load4(address)` reads 32 bits, and `store4(address, number)` writes 32 bits.
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


def to_llvm(source: str) -> str:
    """Return the LLVM assembly of the functions in `source`.

    Only the last function can be called from outside.
    """
    module, functions = ir.Module(), {}
    *helpers, last = ast.parse(source).body
    for definition in (*helpers, last):
        assert isinstance(definition, ast.FunctionDef)
        signature = ir.FunctionType(_WORD, [_WORD] * len(definition.args.args))
        function = ir.Function(module, signature, definition.name)
        function.linkage = "external" if definition is last else "internal"
        functions[definition.name] = function
        _Function(definition, function, functions)
    return str(module)


class _Function:
    def __init__(self, definition: ast.FunctionDef, function: ir.Function, known: Any) -> None:
        self.known, self.function = known, function
        self.b: Any = ir.IRBuilder(function.append_basic_block())
        b = self.b
        variables = (n.id for n in ast.walk(definition) if isinstance(n, ast.Name))
        parameters = [a.arg for a in definition.args.args]
        self.slots = {n: b.alloca(_WORD) for n in dict.fromkeys([*parameters, *variables])}
        for name, value in zip(parameters, function.args, strict=True):
            b.store(value, self.slots[name])
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
            self.b.store(value, self.address(target))

    def AugAssign(self, node: Any) -> None:  # noqa: N802
        address = self.address(node.target)
        op = getattr(self.b, _ARITHMETIC[type(node.op)])
        self.b.store(op(self.b.load(address), self.value(node.value)), address)

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
        i, size = self.slots[node.target.id], self.value(node.iter.args[0])
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

    def address(self, target: Any) -> Any:
        """Return the address of a variable, or of an item such as `a[i]`."""
        if isinstance(target, ast.Name):
            return self.slots[target.id]
        index = self.b.mul(self.value(target.slice), _WORD(8))
        address = self.b.add(self.value(target.value), index)
        return self.b.inttoptr(address, _WORD.as_pointer())

    def test(self, node: Any) -> Any:
        """Emit the code of a condition. Returns the condition as one bit."""
        if isinstance(node, ast.Compare):
            left, right = self.value(node.left), self.value(node.comparators[0])
            return self.b.icmp_signed(_COMPARISONS[type(node.ops[0])], left, right)
        if isinstance(node, ast.BoolOp):  # the right side is computed only if it matters
            both, left = isinstance(node.op, ast.And), self.test(node.values[0])
            rest = node.values[1] if len(node.values) == 2 else ast.BoolOp(node.op, node.values[1:])
            start = self.b.block
            more, end = self.function.append_basic_block(), self.function.append_basic_block()
            self.b.cbranch(left, *((more, end) if both else (end, more)))
            self.b.position_at_end(more)
            right, stop = self.test(rest), self.b.block
            self.b.branch(end)
            self.b.position_at_end(end)
            result = self.b.phi(ir.IntType(1))
            result.add_incoming(ir.IntType(1)(not both), start)
            result.add_incoming(right, stop)
            return result
        return self.b.icmp_signed("!=", self.value(node), _WORD(0))

    def value(self, node: Any) -> Any:
        """Emit the code of an expression. Returns the value of the expression as an integer."""
        match node:
            case ast.Constant():
                return _WORD(node.value)
            case ast.UnaryOp(op=ast.USub()):
                return self.b.neg(self.value(node.operand))
            case ast.Name() | ast.Subscript():
                return self.b.load(self.address(node))
            case ast.BinOp():
                op = getattr(self.b, _ARITHMETIC[type(node.op)])
                return op(self.value(node.left), self.value(node.right))
            case ast.Call(func=ast.Name(id=name)):
                first, *rest = [self.value(a) for a in node.args]
                if name in ("load4", "store4"):
                    pointer = self.b.inttoptr(first, _INT.as_pointer())
                    if name == "load4":
                        return self.b.sext(self.b.load(pointer), _WORD)
                    return self.b.store(self.b.trunc(rest[0], _INT), pointer)
                if name in self.known:
                    return self.b.call(self.known[name], [first, *rest])
                returned = {"call": _WORD, "ask": _INT}[name]
                signature = ir.FunctionType(returned, [_WORD] * len(rest))
                result = self.b.call(self.b.inttoptr(first, signature.as_pointer()), rest)
                return result if returned is _WORD else self.b.sext(result, _WORD)
            case _:
                return self.b.zext(self.test(node), _WORD)
