"""Where tensors lie: their memory, shapes and strides, read by one compiled loop over objects.

A pointer may be used only if everything about its tensor was seen in this step. Asking each of
1,200 tensors in Python costs more than a step; torch's stable C functions (aoti_torch/c/shim.h)
and Python's answer a compiled loop in a twentieth of that. Nothing here holds a tensor: what was
seen stays as numbers.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import machine

PLAIN = (Tensor, torch.nn.Parameter)
"""The types whose objects torch's C functions can be asked about."""
NONE, FINE, STRIDES, MISFIT = range(4)
"""Of a gradient: there is none; as its parameter; of other strides; anything else."""
SINGLE, DOUBLE, INTEGER, SHORT, FULL = range(5)
"""Of a cell: its type; a float32 that has reached LIMIT."""
LIMIT = 2**24
"""The count that a float32 ends at: 1 more is the same number."""
_CELLS = {torch.float32: SINGLE, torch.float64: DOUBLE, torch.int64: INTEGER, torch.int32: SHORT}

# the job: these numbers, then what the operation needs
_CONSTANTS = ("operation", "scratch", "result", "type_at", "handle_at", "keys_at", "negated",
              "tensor", "parameter", "dict_type", "none")  # fmt: skip
_ASKED = ("layout", "dtype", "device_type", "dim", "sizes", "strides", "data_ptr", "storage_size",
          "storage_offset")  # fmt: skip
_PYTHON = ("PyList_Size", "PyList_GetItem", "PyDict_Size", "PyDict_Next", "Py_IncRef",
           "Py_DecRef")  # fmt: skip
_AT = {name: i for i, name in enumerate((*_CONSTANTS, *_ASKED, *_PYTHON))}
_FREE = len(_AT)
"""From where on a job has what its operation needs."""

_SOURCE = """
def about(job, handle):  # layout, dtype and device in one number, and whether it is negated
    words = job[{scratch}] + 48
    words[0] = 0
    words[1] = 0
    words[2] = 0
    ask(job[{layout}], handle, words)
    ask(job[{dtype}], handle, words + 8)
    ask(job[{device_type}], handle, words + 16)
    found = (words[0] * 256 + words[1]) * 256 + words[2]
    keys = handle[0][job[{keys_at}]]
    if keys & job[{negated}]:
        found += 1 << 40
    return found

def outline(job, handle):  # the number of dimensions, where sizes and strides are
    words = job[{scratch}] + 48
    words[0] = 0
    ask(job[{dim}], handle, words)
    ask(job[{sizes}], handle, words + 8)
    ask(job[{strides}], handle, words + 16)
    return words

def storage(job, handle):  # address, bytes of the storage, elements before the first
    words = job[{scratch}] + 48
    words[0] = 0
    words[1] = 0
    words[2] = 0
    ask(job[{data_ptr}], handle, words)
    ask(job[{storage_size}], handle, words + 8)
    ask(job[{storage_offset}], handle, words + 16)
    return words

def judge(job, tape, row, thing):
    # tape: bytes, bytes of an element, layout, then the outline
    if thing[job[{type_at}]] != job[{tensor}] and thing[job[{type_at}]] != job[{parameter}]:
        return 3
    handle = thing + job[{handle_at}]
    if about(job, handle) != tape[2]:
        return 3
    words = outline(job, handle)
    if words[0] != tape[3]:
        return 3
    sizes = words[1]
    strides = words[2]
    code = 1
    for d in range(words[0]):
        if sizes[d] != tape[4 + 2 * d]:
            return 3
        if sizes[d] != 1 and strides[d] != tape[5 + 2 * d]:  # of one there is no way to go
            code = 2
    if code == 1:
        words = storage(job, handle)
        if words[0] == 0 or words[1] < words[2] * tape[1] + tape[0]:
            return 3
        row[0] = words[0]
    return code

def gradients(job):  # against what their parameters are
    many = job[{free}]
    tape = job[{free} + 1]
    row = job[{free} + 3]
    codes = job[{free} + 4]
    found = 0
    for k in range(job[{free} + 2]):
        row[k] = 0
        thing = call(job[{PyList_GetItem}], many, k)
        codes[k] = 0
        if thing != job[{none}]:
            codes[k] = judge(job, tape, row + 8 * k, thing)
        found |= 1 << codes[k]
        tape += 32 + 16 * tape[3]
    return found

def walk(job):  # lists of parameters, then a dict of dicts
    now = job[{free}]
    limit = now + 8 * job[{free} + 2]
    things = job[{free} + 3]
    many = things
    lists = job[{free} + 4]
    state = job[{free} + 6]
    words = job[{scratch}]
    for i in range(job[{free} + 5]):
        size = call(job[{PyList_Size}], lists[i])
        if now + 8 * size + 8 >= limit:
            return -1
        now[0] = size
        now += 8
        for k in range(size):
            many[0] = call(job[{PyList_GetItem}], lists[i], k)
            now[0] = many[0]
            many += 8
            now += 8
    words[0] = 0
    while ask(job[{PyDict_Next}], state, words, words + 8, words + 16):
        own = words[2]
        size = -1
        if own[job[{type_at}]] == job[{dict_type}]:
            size = call(job[{PyDict_Size}], own)
        if now + 8 * size + 32 >= limit:
            return -1
        now[0] = words[1]
        now[1] = size
        now += 16
        words[3] = 0
        while size > 0 and ask(job[{PyDict_Next}], own, words + 24, words + 32, words + 40):
            now[0] = words[4]
            many[0] = words[5]
            now += 8
            many += 8
    job[{free} + 8] = 0
    while things < many:
        job[{free} + 8] += 1
        thing = things[0]
        things += 8
        if now + 64 >= limit:
            return -1
        now[0] = 0
        now += 8
        if thing[job[{type_at}]] == job[{tensor}] or thing[job[{type_at}]] == job[{parameter}]:
            handle = thing + job[{handle_at}]
            kind = about(job, handle)
            now[-1] = kind + 1
            if kind & ((1 << 40) - 1) < 65536:  # a sparse one has no memory of its own
                found = storage(job, handle)
                now[0] = found[0]
                now[1] = found[1]
                now[2] = found[2]
                found = outline(job, handle)
                dim = found[0]
                sizes = found[1]
                strides = found[2]
                now[3] = dim
                now += 32
                if now + 16 * dim + 16 >= limit:
                    return -1
                for d in range(dim):
                    now[0] = sizes[d]
                    now[1] = strides[d]
                    now += 16
    return now - job[{free}]

def memory(job):
    things = job[{free} + 3]
    if job[{operation}] == 1:
        job[{result}] = gradients(job)
        return
    if job[{operation}] == 2:  # let go of what a walk has held
        for k in range(job[{free} + 7]):
            call(job[{Py_DecRef}], things[k])
        job[{free} + 7] = 0
        return
    size = walk(job)
    now = job[{free}]
    before = job[{free} + 1]
    stop = now + size
    differ = 0
    while now < stop:
        differ |= now[0] ^ before[0]
        now += 8
        before += 8
    job[{result}] = size
    if differ:
        job[{result}] = -1
    elif size > 0:
        for k in range(job[{free} + 8]):
            call(job[{Py_IncRef}], things[k])
        job[{free} + 7] = job[{free} + 8]
"""


class _Native:
    """The loop, and the numbers that every job of it begins with."""

    def __init__(self) -> None:
        package = Path(torch.__file__).parent / "lib"
        name = "torch_cpu.dll" if os.name == "nt" else "libtorch_cpu.*"
        torch_c = ctypes.CDLL(str(next(package.glob(name))))
        asked = [getattr(torch_c, f"aoti_torch_get_{what}") for what in _ASKED]
        python = [getattr(ctypes.pythonapi, name) for name in _PYTHON]
        self.functions = [ctypes.cast(f, ctypes.c_void_p).value for f in (*asked, *python)]
        probes = [torch.zeros(1, device="cpu"), torch.nn.Parameter(torch.zeros(2, device="cpu"))]
        self.type_at = _found_at([(x, id(type(x))) for x in (*probes, {}, 1.5)])
        self.handle_at = 8 * _found_at([(x, x._cdata) for x in probes])
        self.keys_at, self.negated = _keys()
        source = _SOURCE.format(free=_FREE, **_AT)
        loop = machine.load_integers("memory", source)
        # Python's own functions are called: unlike the loops of rules this one keeps the lock
        at: Any = ctypes.cast(loop, ctypes.c_void_p).value  # type: ignore[arg-type]
        self.run = ctypes.PYFUNCTYPE(None, ctypes.c_int64)(at)

    def walk(self, lists: list[list[Tensor]], state: Any) -> np.ndarray:
        """What the walk over lists and dicts writes."""
        return Seen(lists, state, self).tape

    def job(self, operation: int, *rest: int) -> np.ndarray:
        """A job and, behind it, its scratch memory."""
        start = [operation, 0, 0, self.type_at, self.handle_at, self.keys_at, self.negated]
        start += [*map(id, PLAIN), id(dict), id(None)]
        job = np.array([*start, *self.functions, *rest, *[0] * 10], np.int64)
        job[_AT["scratch"]] = job.ctypes.data + job.nbytes - 80
        return job


def _found_at(known: Sequence[tuple[Any, int]]) -> int:
    """Which word of every one of these objects is the number beside it."""
    size = min(type(x).__basicsize__ for x, _ in known)
    words = [(ctypes.c_int64 * (size // 8)).from_address(id(x)) for x, _ in known]
    found = [
        i for i in range(size // 8)
        if all(w[i] == value for w, (_, value) in zip(words, known, strict=True))
    ]  # fmt: skip
    (only,) = found  # none or several: this Python or torch is laid out in another way
    return only


def _keys() -> tuple[int, int]:
    """Where torch's object has its dispatch keys, and the bit of those that says "negated"."""
    found: set[tuple[int, int]] = set()
    for k, shape in enumerate(((2,), (3, 1), (), (2, 3, 4), (5,), (1, 1))):
        x = torch.zeros(shape, dtype=(torch.float32, torch.float64)[k % 2], device="cpu")
        views = [x.view_as(x), torch._neg_view(x)]
        words = [(ctypes.c_int64 * 24).from_address(y._cdata) for y in views]
        bits = [a ^ b for a, b in zip(*words, strict=True)]
        here = {(i, bit) for i, bit in enumerate(bits) if bit.bit_count() == 1 and bit > 0}
        found = here if k == 0 else found & here
    (only,) = found
    return only


def _native() -> _Native | None:
    """None where torch or Python is built in another way: then Python asks tensor by tensor."""
    probe = torch.zeros(2, 3, device="cpu").T
    # under a mode such as FakeTensorMode there is nothing to probe, and nothing to remember
    return _probed() if type(probe) is Tensor else None


@cache
def _probed() -> _Native | None:
    try:
        native = _Native()
    except (OSError, AttributeError, ValueError, StopIteration, machine.Stuck):
        return None
    x = torch.zeros(2, 3, device="cpu").T
    tape = native.walk([[x]], {})
    expected = [1, id(x), tape[2], x.data_ptr(), 24, 0, 2, 3, 1, 2, 3]
    return native if [*tape[: len(expected)]] == expected else None


def facts(x: Any) -> Any:
    """What `Seen` compares of a tensor, asked in Python; of anything else nothing."""
    if not isinstance(x, Tensor):
        return None
    x = x.to_local() if hasattr(x, "to_local") else x  # type: ignore[attr-defined]
    memory = strides = None
    if x.layout is torch.strided:
        strides = x.stride()
        with contextlib.suppress(RuntimeError, NotImplementedError):  # it has none
            memory = x.data_ptr(), x.untyped_storage().nbytes()
    return type(x), x.dtype, x.device, x.layout, x.shape, strides, memory, x.is_neg()


def in_bounds(x: Tensor) -> bool:
    """Whether the tensor's storage reaches as far as its elements; True where that is unknown."""
    x = x.to_local() if hasattr(x, "to_local") else x  # type: ignore[attr-defined]
    if type(x) not in PLAIN or x.layout is not torch.strided or not x.numel() or x.is_meta:
        return True
    last = x.storage_offset() + sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True))
    return (last + 1) * x.element_size() <= x.untyped_storage().nbytes()


class Seen:
    """All that was seen of an optimizer's parameters and states: addresses, sizes, strides, dtypes,
    storages, and which keys there are. It holds numbers alone, so what is freed is freed.
    """

    def __init__(
        self, lists: list[list[Tensor]], state: Any, native: _Native | None = None
    ) -> None:
        own = [x for x in state.values() if isinstance(x, Mapping)]
        every = [*chain.from_iterable(lists), *chain.from_iterable(x.values() for x in own)]
        self.native = native = native or (_native() if _walkable(lists, state) else None)
        # a DTensor's memory is that of its local share, which only Python can ask for; and the walk
        # knows no other mapping than a dict
        odd = any(isinstance(x, Tensor) and type(x) not in PLAIN for x in every)
        self.python = odd or native is None or any(type(x) is not dict for x in own)
        self.held: Any = None
        self.facts = self._ask(lists, state) if self.python else []
        if native is not None:
            size = 16 + sum(8 + 2 * x.dim() if isinstance(x, Tensor) else 4 for x in every)
            size += 4 * (len(lists) + len(state))
            self.tape, self.now = np.zeros(size, np.int64), np.zeros(size, np.int64)
            self.lists = np.zeros(len(lists), np.int64)
            # as many things as there is room for: a walk may meet more than at the first time
            self.things = np.zeros(size, np.int64)
            arrays = [x.ctypes.data for x in (self.now, self.tape)]
            arrays += [size, self.things.ctypes.data, self.lists.ctypes.data]
            self.job = native.job(0, *arrays, len(lists), 0, 0, 0)
            self.address = self.job.ctypes.data
            self._walk(lists, state)
            self.tape[:] = self.now

    def same(self, lists: list[list[Tensor]], state: Any) -> bool:
        """Whether all is as it was seen. Then it is held until `release`: another thread may put
        other tensors in their places while a step runs.
        """
        self.release()
        if self.native is not None and (
            not _walkable(lists, state)
            or len(lists) != len(self.lists)
            or self._walk(lists, state) < 0
        ):
            return False
        if self.python:
            self.held = [[*own.values()] for own in state.values() if isinstance(own, Mapping)]
            return self._ask(lists, state) == self.facts
        return True

    def release(self) -> None:
        """Let go of what `same` has held."""
        self.held = None
        if self.native is not None and self.job[_FREE + 7]:
            self.job[_AT["operation"]] = 2
            self.native.run(self.address)
            self.job[_AT["operation"]] = 0

    __del__ = release

    def _walk(self, lists: list[list[Tensor]], state: Any) -> int:
        self.lists[:] = list(map(id, lists))
        self.job[_FREE + 6] = id(state)
        self.native.run(self.address)  # type: ignore[union-attr]
        return int(self.job[_AT["result"]])

    @staticmethod
    @torch.no_grad()
    def _ask(lists: list[list[Tensor]], state: Any) -> list[Any]:
        asked: list[Any] = [[(id(p), facts(p)) for p in many] for many in lists]
        for key, own in state.items():
            items = own.items() if isinstance(own, Mapping) else ()
            asked.append((id(key), [(name, facts(x)) for name, x in items]))
        return asked


def _walkable(lists: Sequence[Any], state: Any) -> bool:
    return isinstance(state, dict) and all(type(many) is list for many in lists)


class Gradients:
    """What the gradients of some parameters have to be for their addresses to be used.

    like: a tensor of their dtype; row: where the addresses are written, 0 for one that is missing
    or not to be used.
    """

    def __init__(self, params: Sequence[Tensor], like: Tensor, row: np.ndarray) -> None:
        n = len(params)
        self.row, self.codes = row, np.zeros(n, np.int64)
        self.native = native = _native()
        self.expected: list[Any] = []
        if native is None:
            self.expected = [(like.dtype, p.device, p.layout, p.shape, p.stride()) for p in params]
            return
        tape: list[int] = []
        about, size = int(native.walk([[like]], {})[2]) - 1, like.element_size()
        for p in params:
            tape += [p.numel() * size, size, about, p.dim()]
            tape += chain.from_iterable(zip(p.shape, p.stride(), strict=True))
        self.tape = np.array(tape, np.int64)
        arrays = (self.row.ctypes.data, self.codes.ctypes.data)
        self.job = native.job(1, 0, self.tape.ctypes.data, n, *arrays)
        self.address = self.job.ctypes.data

    def look(self, grads: list[Any]) -> int:
        """Write `row` and `codes`; returns the codes that were met, as bits."""
        if self.native is not None:
            self.job[_FREE] = id(grads)
            self.native.run(self.address)
            met = int(self.job[_AT["result"]])
        else:
            judged = list(map(self._judge, grads, self.expected))
            self.codes[:] = judged
            self.row[:] = [
                g.data_ptr() if code == FINE else 0 for g, code in zip(grads, judged, strict=True)
            ]
            met = sum(1 << code for code in {*judged})
        return met

    @staticmethod
    def _judge(g: Any, expected: Any) -> int:
        if g is None:
            return NONE
        dtype, device, layout, shape, strides = expected
        if type(g) not in PLAIN or g.is_neg() or (g.dtype, g.device, g.layout, g.shape) != (
            dtype, device, layout, shape
        ):  # fmt: skip
            return MISFIT
        steps = zip(g.stride(), strides, shape, strict=True)
        if any(a != b and size != 1 for a, b, size in steps):
            return STRIDES
        return FINE if in_bounds(g) and g.data_ptr() else MISFIT


class Cells:
    """Single numbers that lie here and there, one of each row for each parameter.

    A cell is a tensor of one element on the CPU, read and written where it lies, as others may
    count in it too; whatever has no such tensor lies in an array here. Addresses are good as long
    as `Seen` says so.
    """

    def __init__(self, rows: int, n: int) -> None:
        self.own, self.kinds = np.zeros((rows, n)), np.full((rows, n), DOUBLE, np.int64)
        start = self.own.ctypes.data
        self.addresses = start + 8 * np.arange(rows * n, dtype=np.int64).reshape(rows, n)

    @staticmethod
    def able(x: Any) -> bool:
        """Whether a cell can be this tensor."""
        plain = type(x) in PLAIN and x.dtype in _CELLS and x.numel() == 1
        return plain and x.device.type == "cpu" and x.layout is torch.strided and in_bounds(x)

    def put(self, row: int, k: int, x: Tensor) -> None:
        """The cell in this row for this parameter is the tensor x."""
        self.addresses[row, k], self.kinds[row, k] = x.data_ptr(), _CELLS[x.dtype]

    def full(self) -> np.ndarray:
        """Whose count a loop has left at the end of float32, and marked so."""
        at = np.flatnonzero(self.kinds[0] == FULL)
        self.kinds[0, at] = SINGLE
        return at

    def read(self) -> np.ndarray:
        """All numbers, as doubles of shape (rows, n)."""
        bits = _move(self.addresses, self.kinds)
        values = np.where(self.kinds == DOUBLE, bits.view(np.float64), bits)
        singles = bits.astype(np.int32).view(np.float32)
        return np.where(self.kinds == SINGLE, singles, values).reshape(self.own.shape)

    def write(self, values: np.ndarray, at: Sequence[int]) -> None:
        """Write columns: values of shape (rows, len(at))."""
        addresses, kinds = self.addresses[:, at], self.kinds[:, at]
        values = np.ascontiguousarray(values, np.float64)
        with np.errstate(all="ignore"):  # what a type has no room for is inf there
            singles = values.astype(np.float32).view(np.int32)
            whole = values.astype(np.int64)
        bits = np.where(kinds == DOUBLE, values.view(np.int64), whole)
        bits = np.where(kinds == SINGLE, singles, bits)
        _move(addresses, kinds, bits)


_CELLS_SOURCE = f"""
def cells(job):
    cells = job[2]
    bits = job[4]
    for k in range(job[0]):
        cell = cells[k]
        narrow = job[3][k] == {SINGLE} or job[3][k] >= {SHORT}
        if job[1] == 0 and narrow:
            bits[k] = load4(cell)
        elif job[1] == 0:
            bits[k] = cell[0]
        elif narrow:
            store4(cell, bits[k])
        else:
            cell[0] = bits[k]
"""


@cache
def _loop() -> Callable[[int], Any]:
    return machine.load_integers("cells", _CELLS_SOURCE)


def _move(addresses: np.ndarray, kinds: np.ndarray, bits: np.ndarray | None = None) -> np.ndarray:
    """The bits of cells; or, given these, write them there."""
    addresses, kinds = np.ascontiguousarray(addresses), np.ascontiguousarray(kinds)
    write, bits = bits is not None, np.zeros_like(kinds) if bits is None else bits
    bits = np.ascontiguousarray(bits, np.int64)
    try:
        loop = _loop()
    except machine.Stuck:  # in a forked child that cannot load one
        for i, (address, kind) in enumerate(zip(addresses.flat, kinds.flat, strict=True)):
            narrow = kind in (SINGLE, SHORT, FULL)
            cell = (ctypes.c_int32 if narrow else ctypes.c_int64).from_address(int(address))
            if write:
                cell.value = int(bits.flat[i])
            else:
                bits.flat[i] = cell.value
        return bits
    arrays = (addresses, kinds, bits)
    job = np.array([bits.size, write, *(x.ctypes.data for x in arrays)], np.int64)
    loop(job.ctypes.data)
    return bits
