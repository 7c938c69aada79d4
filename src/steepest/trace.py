"""How a rule becomes a straight-line program: the rule is called once, on symbols.

A value computed only from scalars is a *host* scalar, computed once per step in float64. The rest
is the *body*, computed for each element. Equal sub-expressions become one node. Helper functions
are inlined, because only their operations are recorded. `printing.py` turns a program into text,
and a backend runs the program.
"""

import copy
import inspect
import operator
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property, partial
from types import CodeType, FrameType
from typing import Any

from . import ops
from .ops import Number

_COMPARISONS = ("gt", "ge", "lt", "le", "eq", "ne")
_ARITHMETIC = {"add": "add", "sub": "sub", "mul": "mul", "div": "truediv", "pow": "pow"}
FUNCTIONS = {f: getattr(ops, f) for f in ("sqrt", "log", "abs", "sign", "maximum", "minimum")}
"""Functions of scalars and tensors that every backend has."""
REDUCTIONS = ("norm", "mean", "total")
"""Functions that turn a tensor into one scalar. They cut the program into two passes."""
SIZES = ("rows", "columns", "precision")
"""Scalars that depend only on a tensor's shape and dtype."""
_MATRICES = (
    "row_mean column_mean orthogonal covariances turned turned_back eigenvectors refined ranked"
)
MATRIX = (*_MATRICES.split(), *SIZES)
"""Functions that only torch has. A rule that uses them is not compiled: torch runs it."""
_FOLD: dict[str, Callable[..., Any]] = {
    **{op: getattr(operator, name) for op, name in _ARITHMETIC.items()},
    **{op: getattr(operator, op) for op in _COMPARISONS},
    **FUNCTIONS,
}
"""Operation -> function that computes it on constants."""

_USE_WHERE = (
    "write where(condition, a, b) to choose by a scalar, use maximum, minimum or sign to choose by "
    "elements, or take a bool or str argument for a fixed choice"
)
_USE_OPS = (
    "write new values with + - * / ** (m = beta * m + g) and with sqrt, log, abs, sign, maximum, "
    "minimum and where from steepest.ops"
)


class TraceError(TypeError):
    """A rule does something that cannot be traced; the message says what to write instead."""


def _unknown_value(use: str, hint: str = _USE_WHERE) -> TraceError:
    return TraceError(f"{use} of a traced value, which is not known before the step; {hint}")


def _make_refusal(use: str, hint: str = _USE_WHERE) -> Any:
    """Returns a method that raises TraceError, because such a use needs a known value."""

    def refuse(self: Any, *_: Any, **__: Any) -> Any:
        raise _unknown_value(use, hint)

    return refuse


class Node:
    """One value of the program: an input, a constant, or an operation on earlier values."""

    __slots__ = ("args", "host", "label", "op", "tape", "value")

    def __init__(
        self, tape: "Tape", op: str, args: tuple["Node", ...], host: bool, value: Any = None
    ) -> None:
        self.tape, self.op, self.args, self.host, self.value = tape, op, args, host, value
        self.label: str | None = None

    __hash__ = object.__hash__

    __bool__ = _make_refusal("`if`, `and`, `not` or max()")
    __float__ = __int__ = __index__ = _make_refusal("float() or a function of math", _USE_OPS)
    __array__ = _make_refusal("a function of numpy", _USE_OPS)
    __iter__ = _make_refusal("a loop over the elements")

    def __array_ufunc__(self, function: Any, *_: Any, **__: Any) -> Any:
        raise _unknown_value(f"numpy.{function.__name__}", _USE_OPS)

    @classmethod
    def __torch_function__(cls, function: Any, *_: Any, **__: Any) -> Any:
        raise TraceError(f"torch's {function.__name__}() of a traced value; {_USE_OPS}")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what Python and its libraries ask of any object
            raise AttributeError(name)
        raise TraceError(
            f".{name} of a traced value, which has no methods and no memory; {_USE_OPS}"
        )

    def __neg__(self) -> "Node":
        return self.tape.make("mul", -1.0, self)

    def __abs__(self) -> "Node":
        return self.tape.make("abs", self)


def _make_operator(op: str, swap: bool) -> Callable[[Node, Any], Any]:
    def binary(self: Node, other: Any) -> Any:
        if not isinstance(other, (Node, int, float)):
            return NotImplemented
        return self.tape.make(op, other, self) if swap else self.tape.make(op, self, other)

    return binary


for _op, _name in _ARITHMETIC.items():
    setattr(Node, f"__{_name}__", _make_operator(_op, False))
    setattr(Node, f"__r{_name}__", _make_operator(_op, True))
for _op in _COMPARISONS:
    setattr(Node, f"__{_op}__", _make_operator(_op, False))


class Tape:
    """The nodes of one trace. Equal operations on equal values become one node."""

    def __init__(self) -> None:
        self.nodes: dict[Any, Node] = {}
        self.traced: CodeType | None = None
        self.frame: FrameType | None = None

    def node(self, op: str, args: tuple[Node, ...], host: bool, value: Any = None) -> Node:
        # a sum or product is the same node in either order
        ids = sorted(map(id, args)) if op in ("add", "mul") else map(id, args)
        key = (op, *ids, value)
        if key not in self.nodes:
            self.nodes[key] = Node(self, op, args, host, value)
        return self.nodes[key]

    def constant(self, value: float) -> Node:
        return self.node("const", (), True, float(value))

    def hold_frame(self) -> None:
        """Hold the frame of the traced function, so that its variables outlive the call.

        A Python profiler would also show the variables, but it would replace the user's profiler.
        """
        frame: FrameType | None = sys._getframe()
        while frame and frame.f_code is not self.traced:
            frame = frame.f_back
        self.frame, self.traced = frame, None if frame else self.traced

    def make(self, op: str, *values: Any) -> Node:
        if self.traced:
            self.hold_frame()
        a, *rest = args = [v if isinstance(v, Node) else self.constant(v) for v in values]
        host = op in SIZES or all(x.host for x in args)
        if op in _COMPARISONS and not host:
            raise _unknown_value("a comparison")
        if op == "where" and not a.host:
            raise _unknown_value("a where()")
        if op in _FOLD and all(x.op == "const" for x in args):
            return self.constant(_FOLD[op](*(Number(x.value) for x in args)))
        b = rest[0] if rest else a
        if op in REDUCTIONS:
            if any(n.op in REDUCTIONS for n in in_order([a], through=True)):
                raise TraceError(
                    f"a {op} of a value that depends on another norm, mean or total; move the "
                    "inner one out, such as norm(g) / norm(p) instead of norm(g / norm(p))"
                )
            if a.host:
                return abs(a) if op == "norm" else a
            # two equal totals stay two nodes: the reference numbers totals by their calls
            return self.node(op, (a,), True, len(self.nodes) if op == "total" else None)
        match op:
            case "where" if a.op == "const" or b is rest[1]:
                return b if a.value != 0 else rest[1]
            # only for a constant is `value` a number
            case "add" if a.value == 0:
                return b
            case "add" | "sub" if b.value == 0:
                return a
            case "mul" if 1 in (a.value, b.value):
                return b if a.value == 1 else a
            case "mul":
                if b.host and not a.host:
                    a, b = args = [b, a]
                # host factors move to the front: lr * (m * h) is one multiplication per element
                if not b.host and a.host and b.op == "mul" and b.args[0].host:
                    return self.make("mul", self.make("mul", a, b.args[0]), b.args[1])
            case "div" if b.host and not a.host:
                # a division costs a quarter of the loop's time
                return self.make("mul", self.make("div", 1, b), a)
            case "pow" if b.value == 2:
                return self.make("mul", a, a)
            case "pow" if b.value in (0.5, 1):
                return a if b.value == 1 else self.make("sqrt", a)
        return self.node(op, tuple(args), host)


def _add_to_tape(op: str, *args: Any) -> Node:
    return next(a for a in args if isinstance(a, Node)).tape.make(op, *args)


ops.register(
    Node,
    where=partial(_add_to_tape, "where"),
    **{op: partial(_add_to_tape, op) for op in (*FUNCTIONS, *REDUCTIONS, *MATRIX)},
)


class Program:
    """A rule with its choices bound, as a straight line of operations.

    Attributes
    ----------
    states: the states that are read or written; a state that a choice leaves untouched is not
        listed.
    outputs: tensor -> the node of its new value. States that do not change are left out.
    carried: carried scalar -> the node of its next value.
    body, hosts: the tensor nodes and the host nodes, in order of computation.
    slots: the host nodes that the body reads.
    scalars: names of the host inputs, `t` first; reads_t: whether `t` is one of them.
    reductions: the norms, means and totals that the host nodes use.
    first: the program of an earlier pass, which computes what is summed up in the reductions; None
        without reductions.
    spans: whether a reduction is over several parameters. It is over the parameters of one group if
        a modifier clips (`clips`), else over the parameters of all groups.
    matrix: whether only torch can run the program. elementwise: whether it has no reduction and no
        matrix function.
    saves_count: whether the step count is saved.
    """

    def __init__(self, rule: Any, tensors: list[Node], new: list[Node], modifiers: Any) -> None:
        self.rule, self.modifiers = rule, modifiers
        p, names = rule.tensors[0], (rule.tensors[0], *rule.states)
        results = dict(zip((*names, *rule.carried), new, strict=True))
        self.inputs = dict(zip(rule.tensors, tensors, strict=True))
        self.outputs = {n: results[n] for n in names if n == p or results[n] is not self.inputs[n]}
        self.carried = {n: results[n] for n in rule.carried}
        self._order_nodes()
        ends = (*self.outputs.values(), *self.carried.values())
        ordered = in_order(ends, through=True)
        read = {n.value: n for n in ordered if n.op == "input"}
        scalars = [n for n in read if read[n].host and n not in self.carried]
        self.scalars = sorted(scalars, key=lambda n: n != "t")
        self.reads_t = "t" in self.scalars
        self.states = [s for s in rule.states if s in self.outputs or s in read]
        index = {n: i for i, n in enumerate(tensors[0].tape.nodes.values())}
        self.reductions = sorted((n for n in ordered if n.op in REDUCTIONS), key=index.__getitem__)
        self.spans = any(n.op == "total" for n in self.reductions)
        self.clips = any("clip_norm" in scalars_of(m) for m in modifiers)
        # if a rule has a branch for matrices, only branches that read t save the count
        self.saves_count = rule.counts and (self.reads_t or "matrix" not in rule.choices)
        self.matrix = any(n.op in MATRIX for n in ordered) or "matrix" in rule.choices
        self.elementwise = not (self.reductions or self.matrix)
        self.first: Program | None = None
        if self.reductions:
            self.first = first = copy.copy(self)
            first.reductions = []
            first.outputs = {f"sum{i}": n.args[0] for i, n in enumerate(self.reductions)}
            first.carried = {c: read.get(c, tensors[0].tape.constant(0)) for c in self.carried}
            first._order_nodes()

    def _order_nodes(self) -> None:
        """Put the nodes of this pass in order of computation: body, slots and hosts."""
        ordered = in_order((*self.outputs.values(), *self.carried.values()))
        self.body = [n for n in ordered if not n.host and n.op != "input"]
        used = {a for n in self.body for a in n.args} | set(self.outputs.values())
        self.slots = [n for n in ordered if n.host and n in used and n.op != "const"]
        host_nodes = in_order((*self.slots, *self.carried.values()))
        self.hosts = [n for n in host_nodes if n.op not in ("input", "const", *REDUCTIONS)]

    def depends(self, name: str) -> bool:
        """Whether a tensor's new value depends on its old value."""
        return name in self.outputs and self.inputs[name] in set(in_order([self.outputs[name]]))

    @cached_property
    def uses(self) -> Counter[Node]:
        """How often each node is read."""
        count = Counter(a for n in (*self.body, *self.hosts) for a in n.args)
        count.update((*self.outputs.values(), *self.carried.values()))
        return count


def in_order(ends: Iterable[Node], through: bool = False) -> list[Node]:
    """Returns the ends and all nodes that they depend on, each node after its arguments.

    The nodes that a norm, mean or total depends on belong to the first pass. These nodes are left
    out unless `through` is True.
    """
    order: dict[Node, None] = {}

    def visit(node: Node) -> None:
        if node not in order:
            for a in node.args if through or node.op not in REDUCTIONS else ():
                visit(a)
            order[node] = None

    for end in ends:
        visit(end)
    return list(order)


def trace(rule: Any, modifiers: Sequence[Callable[..., Any]], choices: dict[str, Any]) -> Program:
    """Returns the program that a call of the rule on symbols records.

    The modifiers are called before the rule, and the static choices are bound.
    """
    tape = Tape()
    tensors = [tape.node("input", (), False, n) for n in rule.tensors]
    names = ("lr", "weight_decay", "clip_norm", *rule.scalars)
    scalar = {n: tape.node("input", (), True, n) for n in names}
    arguments = {**{n: scalar[n] for n in rule.scalars}, **choices}
    p, g = tensors[:2]
    for modifier in modifiers:
        p, g = modifier(p, g, **{n: scalar[n] for n in scalars_of(modifier)})
    try:
        new = _call_and_label(tape, rule.function, (p, g, *tensors[2:]), arguments)
    except TraceError:
        raise
    except (TypeError, ValueError) as error:
        message = f"{type(error).__name__}: {str(error).replace('Node', 'traced value')}"
        raise TraceError(f"called on traced values it raised {message}; {_USE_OPS}") from error
    expected = (rule.tensors[0], *rule.states, *rule.carried)
    if new is None or isinstance(new, (list, dict)):
        returned = "nothing" if new is None else f"a {type(new).__name__}"
        raise TraceError(f"it returns {returned}; end it with `return {', '.join(expected)}`")
    new = new if isinstance(new, tuple) else (new,)
    new = [tape.constant(x) if isinstance(x, (int, float)) else x for x in new]
    if len(new) != len(expected):
        raise TraceError(
            f"it returns {len(new)} values, expected {len(expected)}; return the new "
            f"({', '.join(expected)}) in this order (each argument left of `*` is a tensor)"
        )
    for name, value in zip(expected, new, strict=True):
        if not isinstance(value, Node):
            raise TraceError(
                f"its output {name!r} is {value!r}; return an expression of its arguments"
            )
        if name in rule.carried and not value.host:
            raise TraceError(
                f"its carried scalar {name!r} is made of tensors; compute it from scalars"
            )
    return Program(rule, tensors, new, modifiers)


def scalars_of(modifier: Callable[..., Any]) -> list[str]:
    """Returns the names of the scalars that a modifier takes after p and g."""
    return list(inspect.signature(modifier).parameters)[2:]


def _call_and_label(tape: Tape, function: Any, args: Any, scalars: Any) -> Any:
    """Call the function, and label each node with the name of the variable that holds it.

    The labels make the generated code readable.
    """
    tape.traced = getattr(function, "__code__", None)
    try:
        result = function(*args, **scalars)
    finally:
        frame, tape.traced, tape.frame = tape.frame, None, None
    for name, value in frame.f_locals.items() if frame else ():
        if isinstance(value, Node) and value.op not in ("input", "const"):
            value.label = value.label or name
    return result
