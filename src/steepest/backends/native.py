"""One compiled loop that reads the objects of Python and torch: a twentieth of the time that asking
1,200 tensors in Python takes.

It calls torch's stable C functions (aoti_torch/c/shim.h) and Python's own. Where an object has its
type, its handle and its dispatch keys is found out on tensors that are known; where that fails
there is no loop, and Python asks tensor by tensor (`memory.py`).
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..tensors import PLAIN
from . import machine

# the job: these numbers, then what the operation needs
_CONSTANTS = (
    "operation scratch result type_at handle_at keys_at negated tensor parameter dict_type none"
)
_OF_TORCH = "layout dtype device_type dim sizes strides data_ptr storage_size storage_offset"
_OF_PYTHON = "PyList_Size PyList_GetItem PyDict_Size PyDict_Next Py_IncRef Py_DecRef"
_AT = {name: i for i, name in enumerate(f"{_CONSTANTS} {_OF_TORCH} {_OF_PYTHON}".split())}
_FREE = len(_AT)
"""From where on a job has what its operation needs."""
_WALK, _JUDGE, _RELEASE = range(3)
"""The operations."""

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


class Native:
    """The loop, and the numbers that every job of it begins with."""

    def __init__(self) -> None:
        package = Path(torch.__file__).parent / "lib"
        name = "torch_cpu.dll" if os.name == "nt" else "libtorch_cpu.*"
        torch_c = ctypes.CDLL(str(next(package.glob(name))))
        asked = [getattr(torch_c, f"aoti_torch_get_{what}") for what in _OF_TORCH.split()]
        python = [getattr(ctypes.pythonapi, name) for name in _OF_PYTHON.split()]
        self.functions = [ctypes.cast(f, ctypes.c_void_p).value for f in (*asked, *python)]
        probes = [torch.zeros(1, device="cpu"), torch.nn.Parameter(torch.zeros(2, device="cpu"))]
        self.type_at = _found_at([(x, id(type(x))) for x in (*probes, {}, 1.5)])
        self.handle_at = 8 * _found_at([(x, x._cdata) for x in probes])
        self.keys_at, self.negated = _keys()
        loop = machine.load_integers("memory", _SOURCE.format(free=_FREE, **_AT))
        # Python's own functions are called: unlike the loops of rules this one keeps the lock
        at: Any = ctypes.cast(loop, ctypes.c_void_p).value  # type: ignore[arg-type]
        self.run = ctypes.PYFUNCTYPE(None, ctypes.c_int64)(at)

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
    pairs = [(w, value) for w, (_, value) in zip(words, known, strict=True)]
    found = [i for i in range(size // 8) if all(w[i] == value for w, value in pairs)]
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


class Walk:
    """A walk over lists of parameters and a dict of states: all that it meets, as numbers.

    The first one is kept in `tape`; each later one is compared with it, and holds what it has met
    until `release`.
    """

    def __init__(self, native: Native, lists: Sequence[list[Tensor]], state: Any) -> None:
        own = [x for x in state.values() if isinstance(x, Mapping)]
        every = [*chain.from_iterable(lists), *chain.from_iterable(x.values() for x in own)]
        size = 16 + sum(8 + 2 * x.dim() if isinstance(x, Tensor) else 4 for x in every)
        size += 4 * (len(lists) + len(state))
        self.native = native
        self.tape, self.now = np.zeros(size, np.int64), np.zeros(size, np.int64)
        self.lists = np.zeros(len(lists), np.int64)
        # as many things as there is room for: a walk may meet more than at the first time
        self.things = np.zeros(size, np.int64)
        arrays = [x.ctypes.data for x in (self.now, self.tape)]
        arrays += [size, self.things.ctypes.data, self.lists.ctypes.data]
        self.job = native.job(_WALK, *arrays, len(lists), 0, 0, 0)
        self.address = self.job.ctypes.data
        self.same(lists, state)
        self.tape[:] = self.now

    def same(self, lists: Sequence[list[Tensor]], state: Any) -> bool:
        """Whether all is as it was at the first time; then it is held."""
        if len(lists) != len(self.lists):
            return False
        self.lists[:] = list(map(id, lists))
        self.job[_FREE + 6] = id(state)
        self.native.run(self.address)
        return bool(self.job[_AT["result"]] >= 0)

    def release(self) -> None:
        """Let go of what is held."""
        if self.job[_FREE + 7]:
            self.job[_AT["operation"]] = _RELEASE
            self.native.run(self.address)
            self.job[_AT["operation"]] = _WALK


class Judge:
    """What gradients have to be, and a row for the addresses of those that are so.

    params: what they are gradients of, in its shape and strides; like: a tensor of their dtype;
    row: the addresses, 0 for one that is missing or not to be used; codes: of each, NONE, FINE,
    STRIDES or MISFIT of `memory.py`.
    """

    def __init__(
        self,
        native: Native,
        params: Sequence[Tensor],
        like: Tensor,
        row: np.ndarray,
        codes: np.ndarray,
    ) -> None:
        about, size = int(Walk(native, [[like]], {}).tape[2]) - 1, like.element_size()
        tape: list[int] = []
        for p in params:
            tape += [p.numel() * size, size, about, p.dim()]
            tape += chain.from_iterable(zip(p.shape, p.stride(), strict=True))
        self.native, self.arrays = native, (np.array(tape, np.int64), row, codes)
        tapes, *results = [x.ctypes.data for x in self.arrays]
        self.job = native.job(_JUDGE, 0, tapes, len(params), *results)
        self.address = self.job.ctypes.data

    def look(self, grads: list[Any]) -> int:
        """Write row and codes; returns the codes that were met, as bits."""
        self.job[_FREE] = id(grads)
        self.native.run(self.address)
        return int(self.job[_AT["result"]])


def available() -> Native | None:
    """None where torch or Python is built in another way: then Python asks tensor by tensor."""
    probe = torch.zeros(2, 3, device="cpu").T
    # under a mode such as FakeTensorMode there is nothing to probe, and nothing to remember
    return _probed() if type(probe) is Tensor else None


@cache
def _probed() -> Native | None:
    try:
        native = Native()
    except (OSError, AttributeError, ValueError, StopIteration, machine.Stuck):
        return None
    x = torch.zeros(2, 3, device="cpu").T
    tape = Walk(native, [[x]], {}).tape
    expected = [1, id(x), tape[2], x.data_ptr(), 24, 0, 2, 3, 1, 2, 3]
    return native if [*tape[: len(expected)]] == expected else None
