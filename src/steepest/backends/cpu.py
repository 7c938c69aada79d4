"""The CPU: one compiled loop over raw pointers for all tensors of a group. Parameters are float32,
float64 or, with states of float32, bfloat16.

The program is printed as a Python function and compiled by numba; the machine code is kept on disk
(`machine.py`), so that later processes load it without importing numba. Work is cut into pieces of
equal elements, with borders that depend on sizes alone; threads take pieces by an atomic counter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np

from ..codecs import Tensors
from ..printing import Printer, host_body, spelt
from ..trace import Node, Program
from . import machine, threads
from .cells import FULL, LIMIT, SINGLE, Cells

CHUNK = 1 << 16  # elements: long enough to pay for a turn, short enough to share out

# the job: one array of int64, these numbers and then the addresses of the arrays, which stand here
# by the type of their elements
NEXT, ONLY, PIECES, TENSORS, COUNT, MARKED = range(6)
ARRAYS = {
    "integers": (
        "addresses", "row_of", "chunks", "borders", "starts", "firsts", "keys", "cells", "kinds",
    ),
    "doubles": ("scalar", "rows", "sums", "totals"),
}  # fmt: skip

_OWN = """
    address addresses job n integers doubles reals real float64 rows row_of row scalar k chunks
    count borders piece take c i zero fit halves widen narrow cut dither firsts keys first key
    compensation now grad new sums starts only pieces cells kinds totals fetch put
"""
RESERVED = frozenset(_OWN.split())
"""What generated code calls its own things, beside numbered names."""

_SOURCE = """\
def {name}(address):
    job = integers(address)
    only, pieces, n, count = job[1], job[2], job[3], job[4]
{arrays}    if job[0] < 0:  # the host scalars: one row for each run of tensors with equal counts
{unpack}        row = -{slots}
        for k in range(n):
            if addresses[n + k] == 0:  # no gradient
                continue
            t = fetch(cells[k], kinds[k]) + 1.0
{changed}{host}            row_of[k] = row
{counted}        job[0] = 0
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
{loop}{summed}"""


def _spelt(name: str) -> str:
    return spelt(name, RESERVED)


class _Loop(Printer):
    templates: ClassVar = {**Printer.templates, "where": ("{1} if {0} != zero else {2}", 0)}

    def constant(self, node: Node) -> str:
        return f"real({super().constant(node)})"


def _indent(lines: Sequence[str], depth: int) -> str:
    return "".join(f"{'    ' * depth}{line}\n" for line in lines)


def source(whole: Program, storage: str = "", first: bool = False, wide: bool = False) -> str:
    """The loop as a Python function of one argument, the address of its job.

    storage: how bfloat16 parameters are rounded, "nearest", "stochastic" or "kahan"; "" for others.
    wide: their gradients are float32.
    first: the pass that adds up, in float64 and for each chunk, what norms and means are made of.
    """
    program = (whole.first if first else None) or whole
    p, g = program.rule.tensors[:2]
    tensors = [_spelt(x) for x in (p, g, *program.states)]
    scalars = [_spelt(s) for s in program.scalars if s != "t"]
    host, values, new = host_body(program, RESERVED, tensors)
    carried = [_spelt(c) for c in program.carried]
    slots = max(len(program.slots), 1)
    # counts that move in step make one row
    memo = [("last_t", "t")] * program.counts + [(f"last_{c}", c) for c in carried]
    cells = [f"cells[{i} * n + k], kinds[{i} * n + k]" for i in range(1, len(carried) + 1)]
    read = [f"{c} = fetch({cell})" for c, cell in zip(carried, cells, strict=True)]
    test = " or ".join(["row < 0", *(f"{old} != {now}" for old, now in memo)])
    for i, node in enumerate(program.reductions):
        if node.op == "total":  # of all parameters, added up between the passes
            read.append(f"sum{i} = totals[{i}]")
            test = "True"
            continue
        size = "chunks[2 * count + starts[k + 1] - 1]"  # where the last chunk ends
        read += [
            f"sum{i} = 0.0",
            "for c in range(starts[k], starts[k + 1]):",
            f"    sum{i} += sums[{i} * count + c]",
            *[f"sum{i} = sqrt(sum{i})"] * (node.op == "norm"),
            *[f"sum{i} = sum{i} / {size}"] * (node.op == "mean"),
        ]
        test = "True"
    compute = [f"row += {slots}", *host, *(f"rows[row + {i}] = {v}" for i, v in enumerate(values))]
    compute += [f"next_{c} = {v}" for c, v in zip(carried, new, strict=True)]
    compute += [f"{old} = {now}" for old, now in memo]
    start = [f"{old} = 0.0" for old, _ in memo] + [f"next_{c} = 0.0" for c in carried]
    write = [f"put({cell}, next_{c})" for c, cell in zip(carried, cells, strict=True)] * (not first)

    printer = _Loop(program, taken={*RESERVED, *tensors})
    for name in program.rule.tensors:
        printer.names[program.inputs[name]] = f"{_spelt(name)}[i]"
    lines, halves, dithered = [], tensors[: 2 - wide] if storage else [], storage == "stochastic"
    if storage:
        printer.names |= {program.inputs[p]: "now", program.inputs[g]: "grad"}
        grad = f"{tensors[1]}[i]" if wide else f"widen({tensors[1]}[i])"
        lines.append(f"now, grad = widen({tensors[0]}[i]), {grad}")
    if storage == "kahan":
        lines.append("now = now + widen(compensation[i])")
        tensors, halves = [*tensors, "compensation"], [*halves, "compensation"]
    constants = ["zero = real(0.0)"]
    constants += ["first, key = firsts[k], keys[k]"] * dithered
    for i, node in enumerate(program.slots):
        if node.op == "input":
            node.label = _spelt(node.value)
        text = f"real(rows[row + {i}])"
        constants.append(f"{printer.name(node, 'c')} = {text}  # {values[i][4:-1]}")
    sides = [s for node in program.body if node.op == "where" for s in node.args[1:]]
    for node in dict.fromkeys(s for s in sides if s.op == "input" and not s.host):
        old = printer.names[node]  # read in any case: a load on one side alone is no vector's
        lines.append(f"{printer.name(node, 'x')} = {old}")
    outputs = list(program.outputs.items())
    kept = [node for _, node in outputs if node.op != "const"]
    lines += printer.assignments(program.body, kept, "x")
    for name, node in outputs:  # an output that is another tensor's old value is read before
        if not node.host and node.op == "input" and node.value != name:
            old = printer.names[node]
            lines.append(f"{printer.name(node, 'x')} = {old}")
    sums = whole.reductions if first else []
    constants += [f"sum{i} = 0.0" for i in range(len(sums))]
    for i, (name, node) in enumerate(outputs):
        value = printer.expression(node)
        if first:
            # a square may be beyond float32, and its factors are not
            factors = node.args if node.op == "mul" else [node]
            factors = [node, node] if sums[i].op == "norm" else factors
            terms = [f"float64({printer.expression(x)})" for x in factors]
            lines.append(f"sum{i} += {' * '.join(terms)}")
        else:
            if storage and name == p:
                lines.append(f"new = {value}")
                value = "dither(new, first + i, key)" if dithered else "narrow(new)"
            lines.append(f"{_spelt(name)}[i] = {value}")
    if storage == "kahan" and not first:
        lines.append("compensation[i] = narrow(cut(new, widen(narrow(new))))")
    # a float32 count would stand still from here on: the caller puts a wider one there
    full = f"kinds[k], job[{MARKED}] = {FULL}, 1"
    counted = [f"if kinds[k] == {SINGLE} and t > {LIMIT}.0:", f"    {full}"]
    counted += ["else:", "    put(cells[k], kinds[k], t)"]
    every = [(name, kind) for kind, names in ARRAYS.items() for name in names]
    arrays = [f"{name} = {kind}(job[{i}])" for i, (name, kind) in enumerate(every, MARKED + 1)]
    types = [(x, "halves" if x in halves else "reals") for x in tensors]
    pointers = [f"{x} = {kind}(addresses[{i} * n + k])" for i, (x, kind) in enumerate(types)]
    return _SOURCE.format(
        name=program.rule.name,
        arrays=_indent(arrays, 1),
        counted=_indent(counted * (not first), 3),
        summed=_indent([f"sums[{i} * count + c] = sum{i}" for i in range(len(sums))], 3),
        slots=slots,
        unpack=_indent([f"{s} = scalar[{i}]" for i, s in enumerate(scalars)] + start, 2),
        changed=_indent([*read, f"if {test}:"], 3),
        host=_indent(compute, 4) + _indent(write, 3),
        pointers=_indent(pointers, 3),
        constants=_indent(constants, 3),
        loop=_indent(lines, 4),
    )


class Work:
    """The loops and what stays from step to step: addresses, pieces, scratch, and no tensor.

    wide: gradients are float32 where parameters are bfloat16. columns: the parameters, then each
    state's tensors. firsts: the number of each parameter's first
    element for the noise of stochastic rounding.
    """

    def __init__(
        self, program: Program, storage: str, wide: bool, columns: Sequence[Tensors], cells: Cells,
        firsts: Sequence[int],
    ) -> None:  # fmt: skip
        params = columns[0]
        n, sizes = len(params), [p.numel() for p in params]
        name, size = program.rule.name, max(params[0].element_size(), 4)
        self.loops = [
            machine.load(name, source(program, storage, first, wide), size, first)
            for first in ([True, False] if program.first else [False])
        ]
        slots = max(len(each.slots) for each in (program, program.first or program))
        addresses = [[x.data_ptr() for x in column] for column in columns]
        self.table = np.array([addresses[0], [0] * n, *addresses[1:]], np.int64)
        self.gradients = self.table[1]
        self.scalars, self.keys = np.zeros(len(program.scalars)), np.zeros(n, np.int64)
        self.chunks, borders = _cut(sizes)
        count, self.pieces, self.elements = self.chunks.shape[1], len(borders) - 1, sum(sizes)
        starts = np.searchsorted(self.chunks[0], np.arange(n + 1)).astype(np.int64)
        # which reductions are over all parameters
        self.spanning = [i for i, x in enumerate(program.reductions) if x.op == "total"]
        reductions = len(program.reductions)
        rows, self.sums = np.zeros((n, max(slots, 1))), np.zeros((reductions, count))
        self.totals, row_of = np.zeros(reductions), np.zeros(n, np.int64)
        first = np.array(firsts, np.int64)
        # held here, in the order of ARRAYS
        integers = [self.table, row_of, self.chunks, borders, starts, first, self.keys]
        integers += [cells.addresses, cells.kinds]
        self.arrays = [*integers, self.scalars, rows, self.sums, self.totals]
        at = [array.ctypes.data for array in self.arrays]
        self.job = np.array([-1, 0, self.pieces, n, count, 0, *at], np.int64)
        self.address = self.job.ctypes.data

    def prepare(self, scalars: Sequence[float], keys: Any = 0) -> None:
        """Take the values of the scalars but t, and the keys of the noise."""
        self.scalars[: len(scalars)], self.keys[:] = scalars, keys

    def add(self) -> list[float]:
        """The first pass: what is summed over parameters, over these alone."""
        self._run(self.loops[0])
        stepped = self.gradients[self.chunks[0]] != 0
        return [float(self.sums[i, stepped].sum()) for i in self.spanning]

    def run(self, totals: Sequence[float] | None = None) -> bool:
        """The step; totals: what `add` of all who share them adds up to. Whether a count has
        reached the end of its dtype.
        """
        if totals is None and len(self.loops) > 1:
            totals = self.add()
        if totals is not None:
            self.totals[self.spanning] = totals
        self.job[MARKED] = 0
        self._run(self.loops[-1])
        return bool(self.job[MARKED])

    def _run(self, loop: Callable[[int], None]) -> None:
        count = threads.wanted(self.elements, self.pieces)
        self.job[NEXT], self.job[ONLY] = -1, count > 1
        loop(self.address)
        if count > 1:
            threads.run(loop, self.address, count)


def _cut(sizes: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Chunks (tensor, first, last) of at most CHUNK elements, and the borders of pieces."""
    chunks, borders, filled = [], [0], 0
    for k, size in enumerate(sizes):
        for start in range(0, size, CHUNK):
            stop = min(size, start + CHUNK)
            if filled and filled + stop - start > CHUNK:
                borders.append(len(chunks))
                filled = 0
            chunks.append((k, start, stop))
            filled += stop - start
    borders.append(len(chunks))
    table = np.array(chunks, np.int64).reshape(-1, 3).T
    return np.ascontiguousarray(table), np.array(borders, np.int64)
