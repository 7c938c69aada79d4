"""The CPU: one compiled loop over raw pointers for all tensors of a group. Parameters are float32,
float64 or, with states of float32, bfloat16.

The program is printed as a Python function and compiled by numba; the machine code is kept on disk
(`machine.py`), so that later processes load it without importing numba. Work is cut into pieces of
equal elements, with borders that depend on sizes alone; threads take pieces by an atomic counter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from ..trace import RESERVED, Node, Printer, Program, host_body, spelt
from . import machine, threads

CHUNK = 1 << 16  # elements: long enough to pay for a turn, short enough to share out

# the job: one array of int64 that the loop reads its addresses and sizes from
(NEXT, PIECES, TENSORS, ADDRESSES, STEPS, CARRIED, SCALARS, ROWS, ROW_OF, CHUNKS, COUNT, BORDERS,
 ONLY, FIRSTS, KEYS, SUMS, STARTS) = range(17)  # fmt: skip

_SOURCE = """\
def {name}(address):
    job = integers(address)
    n, addresses, row_of, rows = job[2], integers(job[3]), integers(job[8]), doubles(job[7])
    chunks, count, borders = integers(job[9]), job[10], integers(job[11])
    sums, starts = doubles(job[15]), integers(job[16])
    if job[0] < 0:  # the host scalars: one row for each run of tensors with equal counts
        steps, carried, scalar = singles(job[4]), doubles(job[5]), doubles(job[6])
{unpack}        row = -{slots}
        for k in range(n):
            if addresses[n + k] == 0:  # no gradient
                continue
            t = float64(steps[k]) + 1.0
{changed}{host}            row_of[k] = row
{counted}        job[0] = 0
        if job[12] != 0:
            return
{noise}    while True:
        piece = take(job)
        if piece >= job[1]:
            return
        for c in range(borders[piece], borders[piece + 1]):
            k = chunks[c]
            if addresses[n + k] == 0:
                continue
            row = row_of[k]
{pointers}{constants}{counter}            for i in range(chunks[count + c], chunks[2 * count + c]):
{loop}{summed}"""


class _Loop(Printer):
    def constant(self, node: Node) -> str:
        return f"real({super().constant(node)})"

    def expression(self, node: Node, above: float = -1) -> str:
        if node.op == "where" and node not in self.names:
            condition, *sides = (self.expression(a, 1) for a in node.args)
            return f"({sides[0]} if {condition} != zero else {sides[1]})"
        return super().expression(node, above)


def _indent(lines: Sequence[str], depth: int) -> str:
    return "".join(f"{'    ' * depth}{line}\n" for line in lines)


def source(whole: Program, storage: str = "", first: bool = False) -> str:
    """The loop as a Python function of one argument, the address of its job.

    storage: how bfloat16 parameters are rounded, "nearest", "stochastic" or "kahan"; "" for others.
    first: the pass that adds up, in float64 and for each chunk, what norms and means are made of.
    """
    program = whole
    if first:
        assert whole.first
        program = whole.first
    p, g = program.rule.tensors[:2]
    tensors = [spelt(x) for x in (p, g, *program.states)]
    scalars = [spelt(s) for s in program.scalars if s != "t"]
    host, values, new = host_body(program, {*RESERVED, *tensors})
    carried = [spelt(c) for c in program.carried]
    slots = max(len(program.slots), 1)
    # counts that move in step make one row
    memo = [("last_t", "t")] * program.counts + [(f"last_{c}", c) for c in carried]
    read = [f"{c} = carried[{i} * n + k]" for i, c in enumerate(carried)]
    test = " or ".join(["row < 0", *(f"{old} != {now}" for old, now in memo)])
    for i, node in enumerate(program.reductions):
        size = "chunks[2 * count + starts[k + 1] - 1]"  # where the last chunk ends
        mine = "0, count" if node.op == "total" else "starts[k], starts[k + 1]"
        read += [
            f"sum{i} = 0.0",
            f"for c in range({mine}):",
            "    if addresses[n + chunks[c]] != 0:",
            f"        sum{i} += sums[{i} * count + c]",
            *[f"sum{i} = sqrt(sum{i})"] * (node.op == "norm"),
            *[f"sum{i} = sum{i} / {size}"] * (node.op == "mean"),
        ]
        test = "True"
    compute = [f"row += {slots}", *host, *(f"rows[row + {i}] = {v}" for i, v in enumerate(values))]
    compute += [f"next_{c} = {v}" for c, v in zip(carried, new, strict=True)]
    compute += [f"{old} = {now}" for old, now in memo]
    start = [f"{old} = 0.0" for old, _ in memo] + [f"next_{c} = 0.0" for c in carried]
    write = [f"carried[{i} * n + k] = next_{c}" for i, c in enumerate(carried)]

    dithered = storage == "stochastic"
    printer = _Loop(program, taken={*RESERVED, *tensors})
    for name in program.rule.tensors:
        printer.names[program.inputs[name]] = f"{spelt(name)}[i]"
    start_of_loop, halves = [], tensors[:2] if storage else []
    if storage:
        printer.names |= {program.inputs[p]: "now", program.inputs[g]: "grad"}
        start_of_loop = [f"now, grad = widen({tensors[0]}[i]), widen({tensors[1]}[i])"]
    if storage == "kahan":
        start_of_loop.append("now = now + widen(compensation[i])")
        tensors, halves = [*tensors, "compensation"], [*halves, "compensation"]
    constants = ["zero = real(0.0)"]
    for i, node in enumerate(program.slots):
        if node.op == "input":
            node.label = spelt(node.value)
        text = f"real(rows[row + {i}])"
        constants.append(f"{printer.name(node, 'c')} = {text}  # {values[i][4:-1]}")
    outputs = list(program.outputs.items())
    lines = start_of_loop + printer.assignments(
        program.body, [n for _, n in outputs if n.op != "const"], "x"
    )
    for name, node in outputs:  # an output that is another tensor's old value is read before
        if not node.host and node.op == "input" and node.value != name:
            old = printer.names[node]
            lines.append(f"{printer.name(node, 'x')} = {old}")
    of = [n.op for n in whole.reductions] if first else []
    for i, (_, node) in enumerate(outputs if first else ()):
        value = f"float64({printer.expression(node)})"
        lines.append(f"sum{i} += {value}{f' * {value}' if of[i] == 'norm' else ''}")
    constants += [f"sum{i} = 0.0" for i in range(len(of))]
    for name, node in outputs if not first else ():
        value = printer.expression(node)
        if name != p or not storage:
            lines.append(f"{spelt(name)}[i] = {value}")
        elif storage == "stochastic":
            lines.append(f"{tensors[0]}[i] = dither({value}, first + i, key)")
        else:
            lines += [f"new = {value}", "low = narrow(new)", f"{tensors[0]}[i] = low"]
            if storage == "kahan":
                lines.append("compensation[i] = narrow(cut(new, widen(low)))")
    return _SOURCE.format(
        name=program.rule.name,
        counted=_indent(["steps[k] = t"] * (not first), 3),
        summed=_indent([f"sums[{i} * count + c] = sum{i}" for i in range(len(of))], 3),
        slots=slots,
        unpack=_indent([f"{s} = scalar[{i}]" for i, s in enumerate(scalars)] + start, 2),
        changed=_indent([*read, f"if {test}:"], 3),
        host=_indent(compute, 4) + _indent(write, 3),
        pointers=_indent(
            [
                f"{x} = {'halves' if x in halves else 'reals'}(addresses[{i} * n + k])"
                for i, x in enumerate(tensors)
            ],
            3,
        ),
        noise=_indent(["firsts, keys = integers(job[13]), integers(job[14])"] * dithered, 1),
        counter=_indent(["first, key = firsts[k], keys[k]"] * dithered, 3),
        constants=_indent(constants, 3),
        loop=_indent(lines, 4),
    )


def _int64(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.int64)


class Work:
    """The loop and what stays from step to step: addresses of states, pieces, scratch."""

    def __init__(
        self,
        program: Program,
        params: Sequence[Tensor],
        states: Sequence[Sequence[Tensor]],
        steps: Tensor,
        carried: Tensor,
        storage: str = "",
        firsts: Sequence[int] = (),
    ) -> None:
        size = max(params[0].element_size(), 4)
        passes = [True, False] if program.reductions else [False]
        self.loops = [
            machine.load(program.rule.name, source(program, storage, first), size, first)
            for first in passes
        ]
        slots = max(len(program.slots), len(program.first.slots) if program.first else 1)
        n, sizes = len(params), [p.numel() for p in params]
        self.scalars = np.zeros(max(len(program.scalars), 1))
        self.table = _int64(2 + len(states), n)
        for i, tensors in enumerate(states):
            self.table[2 + i] = [s.data_ptr() for s in tensors]
        self.table[0] = [p.data_ptr() for p in params]
        chunks, borders = _cut(sizes)
        self.arrays = (
            self.table, steps.numpy(), carried.numpy(), self.scalars,
            np.zeros((n, max(slots, 1))), _int64(n), chunks, borders,
            np.zeros((len(program.reductions), chunks.shape[1])),
            np.searchsorted(chunks[0], np.arange(n + 1)).astype(np.int64),
            np.array(firsts, np.int64), _int64(n),
        )  # fmt: skip
        at = [a.ctypes.data for a in self.arrays]
        self.keys = self.arrays[-1]
        self.job = _int64(17)
        self.job[[TENSORS, PIECES, COUNT]] = n, len(borders) - 1, chunks.shape[1]
        self.job[
            [
                ADDRESSES,
                STEPS,
                CARRIED,
                SCALARS,
                ROWS,
                ROW_OF,
                CHUNKS,
                BORDERS,
                SUMS,
                STARTS,
                FIRSTS,
                KEYS,
            ]
        ] = at
        self.address, self.elements, self.pieces = (
            self.job.ctypes.data,
            sum(sizes),
            len(borders) - 1,
        )

    def run(self, gradients: Any, scalars: Sequence[float], keys: Any = 0) -> None:
        """One step: addresses of the gradients (0: none), the values of the scalars but t, and the
        keys of the noise.
        """
        self.table[1], self.keys[:] = gradients, keys
        self.scalars[: len(scalars)] = scalars
        count = threads.wanted(self.elements, self.pieces)
        for loop in self.loops:
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
