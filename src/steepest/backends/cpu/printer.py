"""Prints the CPU's loop as a Python function. Its one argument is the address of its job.

The frame of the function is the same for every rule. A rule fills in two parts. The first part
computes the host scalars, which are the same for all elements of a tensor. It writes them into a
row of numbers, once for each run of consecutive tensors with equal step counts. The second part is
the body. For each chunk of elements, it reads the row into constants. Then it computes one element
after the other.

A rule with reductions has two such loops. The first loop adds up each chunk. In the second loop,
the host scalars are computed from these sums.

STORED has an entry for each codec: how the loop reads and writes a bfloat16 parameter.
`compiler.py` defines the functions that the printed function calls.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

from ...printing import Printer, host_body, safe_name
from ...trace import Node, Program
from ..cells import FULL, LIMIT, SINGLE

# the job: one array of int64, these numbers and then the addresses of the arrays
NEXT, ONLY, PIECES, TENSORS, COUNT, MARKED = range(6)
ARRAYS = {
    **dict.fromkeys(("addresses", "row_of", "chunks", "borders", "starts", "firsts"), "integers"),
    **dict.fromkeys(("keys", "cells", "types"), "integers"),
    **dict.fromkeys(("scalar", "rows", "sums", "totals"), "doubles"),
}
"""Name of an array -> the type of its elements."""

_OWN = """
    address addresses job n integers doubles reals real float64 rows row_of row scalar k chunks
    count borders piece take c i zero fit halves widen narrow cut dither firsts keys first key
    compensation now grad new sums starts only pieces cells types totals fetch put
"""
RESERVED = frozenset(_OWN.split())
"""Names that the printed function uses itself, besides numbered names such as `sum0`."""

_FRAME = """\
def {name}(address):
    job = integers(address)
    only, pieces, n, count = job[1], job[2], job[3], job[4]
{arrays}    if job[0] < 0:  # the host scalars: one row for each run of tensors with equal counts
{start}        row = -{slots}
        for k in range(n):
            if addresses[n + k] == 0:  # no gradient
                continue
            t = fetch(cells[k], types[k]) + 1.0
{read}{compute}{write}            row_of[k] = row
{count}        job[0] = 0
        if only != 0:
            return
    while True:
        piece = take(job)
        if piece >= pieces:
            return
        for c in range(borders[piece], borders[piece + 1]):
            k = chunks[c]
            if addresses[n + k] == 0:
                continue
            row = row_of[k]
{pointers}{constants}            for i in range(chunks[count + c], chunks[2 * count + c]):
{body}{sums}"""
_DEPTHS = {
    **dict.fromkeys(("arrays",), 1),
    **dict.fromkeys(("start",), 2),
    **dict.fromkeys(("read", "write", "count", "pointers", "constants", "sums"), 3),
    **dict.fromkeys(("compute", "body"), 4),
}
"""Field of the frame -> the indentation of its lines."""


class Stored(NamedTuple):
    """Lines of source with which the loop reads and writes a bfloat16 parameter or its gradient.

    pointer: the type of the tensor's elements.
    load: the expression that reads an element of the tensor {x}.
    then: the line after `load`. It changes `now`, the value that was read.
    store: the expression that converts the new value `new` to the type of the tensor's elements.
    last: the line after all stores.
    extra: the name of the extra tensor that the codec keeps.
    start: the line before the first element of a chunk.
    """

    pointer: str
    load: str
    store: str = ""
    then: str = ""
    last: str = ""
    extra: str = ""
    start: str = ""


_HALF = Stored("halves", "widen({x}[i])", "narrow(new)")
_WIDE = Stored("reals", "{x}[i]")
STORED = {
    "nearest": _HALF,
    "stochastic": _HALF._replace(
        store="dither(new, first + i, key)", start="first, key = firsts[k], keys[k]"
    ),
    "kahan": _HALF._replace(
        extra="compensation",
        then="now = now + widen(compensation[i])",
        last="compensation[i] = narrow(cut(new, widen(narrow(new))))",
    ),
}
"""Name of a codec -> how the loop reads and writes a bfloat16 parameter."""


class _Elements(Printer):
    """Prints constants in the type that the loop computes in."""

    templates: ClassVar = {**Printer.templates, "where": ("{1} if {0} != zero else {2}", 0)}

    def constant(self, node: Node) -> str:
        return f"real({super().constant(node)})"


def source(program: Program, storage: str = "", first: bool = False, wide: bool = False) -> str:
    """Return the source of a program's loop.

    storage: the codec of bfloat16 parameters, a name in STORED; "" for other dtypes.
    wide: whether the gradients of bfloat16 parameters are float32.
    first: whether to print the first of two passes. This pass adds up each chunk in float64 for the
        reductions.
    """
    return _Loop(program, storage, first, wide).text()


class _Loop:
    def __init__(self, both: Program, storage: str, first: bool, wide: bool) -> None:
        self.program = program = (both.first if first else None) or both
        self.sums = both.reductions if first else []
        self.first = first
        self.p, self.g = program.rule.tensors[:2]
        self.tensors = {x: _safe_name(x) for x in (self.p, self.g, *program.states)}
        self.stored: dict[str, Stored] = {}
        if storage:
            self.stored = {self.p: STORED[storage], self.g: _WIDE if wide else _HALF}
        self.host = host_body(program, RESERVED, [*self.tensors.values()])
        self.printer = _Elements(program, taken={*RESERVED, *self.tensors.values()})

    def text(self) -> str:
        constants = self.constants()  # first, so that constants get their labels as names
        arrays = enumerate(ARRAYS.items(), MARKED + 1)
        parts = {
            "arrays": [f"{name} = {pointer}(job[{i}])" for i, (name, pointer) in arrays],
            **self.scalars(),
            "pointers": self.pointers(),
            "constants": constants,
            "body": [*self.loads(), *self.values(), *self.stores()],
            "sums": [f"sums[{i} * count + c] = sum{i}" for i in range(len(self.sums))],
        }
        blocks = {
            name: "".join(f"{'    ' * _DEPTHS[name]}{line}\n" for line in lines)
            for name, lines in parts.items()
        }
        return _FRAME.format(name=self.program.rule.name, slots=self.slots, **blocks)

    # the host scalars

    @property
    def slots(self) -> int:
        """The length of a row of host scalars."""
        return max(len(self.program.slots), 1)

    def scalars(self) -> dict[str, list[str]]:
        """Return the lines that compute a row of host scalars.

        A tensor gets the row of the tensor before it if the inputs of both rows are equal, such as
        their step counts.
        """
        program = self.program
        carried = [_safe_name(c) for c in program.carried]
        # a new count needs a new row only if the rule reads t
        inputs = ["t", *carried] if program.reads_t else carried
        before = {f"last_{x}": x for x in inputs}
        cells = [f"cells[{i} * n + k], types[{i} * n + k]" for i in range(1, len(carried) + 1)]
        options = [_safe_name(s) for s in program.scalars if s != "t"]
        start = [f"{s} = scalar[{i}]" for i, s in enumerate(options)]
        start += [f"{old} = 0.0" for old in before] + [f"next_{c} = 0.0" for c in carried]
        read = [f"{c} = fetch({cell})" for c, cell in zip(carried, cells, strict=True)]
        read += self.totals()
        changed = ["row < 0", *(f"{old} != {now}" for old, now in before.items())]
        read.append(f"if {'True' if program.reductions else ' or '.join(changed)}:")
        compute = [f"row += {self.slots}", *self.host.lines]
        compute += [f"rows[row + {i}] = {value}" for i, value in enumerate(self.host.slots)]
        compute += [f"next_{c} = {v}" for c, v in zip(carried, self.host.carried, strict=True)]
        compute += [f"{old} = {now}" for old, now in before.items()]
        write, count = [], []
        if not self.first:
            write = [f"put({cell}, next_{c})" for c, cell in zip(carried, cells, strict=True)]
            # a float32 count cannot grow any more: mark it, so that a wider one replaces it
            count = [f"if types[k] == {SINGLE} and t > {LIMIT}.0:"]
            count += [f"    types[k], job[{MARKED}] = {FULL}, 1"]
            count += ["else:", "    put(cells[k], types[k], t)"]
        return {"start": start, "read": read, "compute": compute, "write": write, "count": count}

    def totals(self) -> list[str]:
        """Return the lines that compute a tensor's reductions from the sums of the first pass."""
        lines = []
        for i, node in enumerate(self.program.reductions):
            if node.op == "total":  # over all parameters, added up between the passes
                lines.append(f"sum{i} = totals[{i}]")
                continue
            lines.append(f"sum{i} = 0.0")
            lines.append("for c in range(starts[k], starts[k + 1]):")
            lines.append(f"    sum{i} += sums[{i} * count + c]")
            if node.op == "norm":
                lines.append(f"sum{i} = sqrt(sum{i})")
            else:  # a mean: the number of elements is the end of the last chunk
                lines.append(f"sum{i} = sum{i} / chunks[2 * count + starts[k + 1] - 1]")
        return lines

    # the elements

    def pointers(self) -> list[str]:
        """Return the lines that set pointers to the memory of the tensors."""
        types = dict.fromkeys(self.tensors.values(), "reals")
        for x, stored in self.stored.items():
            types[self.tensors[x]] = stored.pointer
        types |= {x.extra: x.pointer for x in self.stored.values() if x.extra}
        return [f"{x} = {t}(addresses[{i} * n + k])" for i, (x, t) in enumerate(types.items())]

    def constants(self) -> list[str]:
        """Return the lines that read the numbers that are the same for all elements of a tensor."""
        lines = ["zero = real(0.0)", *(x.start for x in self.stored.values() if x.start)]
        for i, node in enumerate(self.program.slots):
            if node.op == "input":
                node.label = _safe_name(node.value)
            note = self.host.slots[i].removeprefix("fit(").removesuffix(")")
            lines.append(f"{self.printer.name(node, 'c')} = real(rows[row + {i}])  # {note}")
        return [*lines, *(f"sum{i} = 0.0" for i in range(len(self.sums)))]

    def loads(self) -> list[str]:
        """Return the lines that load an element of a bfloat16 parameter and of its gradient.

        All other elements are read in place, because they have the type that the loop computes in.
        """
        inputs = self.program.inputs
        for x in self.program.rule.tensors:
            self.printer.names[inputs[x]] = f"{_safe_name(x)}[i]"
        if not self.stored:
            return []
        self.printer.names |= {inputs[self.p]: "now", inputs[self.g]: "grad"}
        values = [stored.load.format(x=self.tensors[x]) for x, stored in self.stored.items()]
        then = [stored.then for stored in self.stored.values() if stored.then]
        return [f"now, grad = {', '.join(values)}", *then]

    def values(self) -> list[str]:
        """Return the lines that compute an element's new values, without storing them."""
        lines, printer, outputs = [], self.printer, self.program.outputs
        sides = [s for node in self.program.body if node.op == "where" for s in node.args[1:]]
        for node in dict.fromkeys(s for s in sides if s.op == "input" and not s.host):
            old = printer.names[node]  # always read: a load in one branch would not be vectorised
            lines.append(f"{printer.name(node, 'x')} = {old}")
        kept = [node for node in outputs.values() if node.op != "const"]
        lines += printer.assignments(self.program.body, kept, "x")
        for name, node in outputs.items():  # read another tensor's old value before it is written
            if not node.host and node.op == "input" and node.value != name:
                old = printer.names[node]
                lines.append(f"{printer.name(node, 'x')} = {old}")
        return lines

    def stores(self) -> list[str]:
        """Return the lines that store the new values.

        In the first pass, the lines add to the sums instead.
        """
        nodes = self.program.outputs
        if self.sums:
            return [self.term(i, node) for i, node in enumerate(nodes.values())]
        lines = []
        for name, node in nodes.items():
            value = self.printer.expression(node)
            if name in self.stored:
                lines.append(f"new = {value}")
                value = self.stored[name].store
            lines.append(f"{self.tensors[name]}[i] = {value}")
        return [*lines, *(x.last for x in self.stored.values() if x.last)]

    def term(self, i: int, node: Node) -> str:
        """Return the line that adds the term of one element to sum `i`."""
        factors = node.args if node.op == "mul" else [node]
        if self.sums[i].op == "norm":
            factors = [node, node]
        # a square may overflow float32 where its factors do not
        terms = [f"float64({self.printer.expression(x)})" for x in factors]
        return f"sum{i} += {' * '.join(terms)}"


def _safe_name(name: str) -> str:
    return safe_name(name, RESERVED)
