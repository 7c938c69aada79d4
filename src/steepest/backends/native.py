"""A compiled loop that reads the objects of Python and torch directly.

For 1,200 tensors it takes a twentieth of the time that Python needs. It calls torch's stable C
functions (aoti_torch/c/shim.h) and Python's C functions. The offsets of an object's type, handle
and dispatch keys are found by probing known tensors. If the probing fails, there is no loop, and
Python reads one tensor after the other (`memory.py`).
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
from . import compiler

# a job: these numbers, then the arguments of the operation
_CONSTANTS = (
    "operation scratch result type_at handle_at keys_at negated tensor parameter dict_type none"
)
_OF_TORCH = "layout dtype device_type dim sizes strides data_ptr storage_size storage_offset"
_OF_PYTHON = "PyList_Size PyList_GetItem PyDict_Size PyDict_Next Py_IncRef Py_DecRef"
_AT = {name: i for i, name in enumerate(f"{_CONSTANTS} {_OF_TORCH} {_OF_PYTHON}".split())}
_FREE = len(_AT)
"""The index in a job at which the arguments of the operation begin."""
_WALK, _CLASSIFY, _RELEASE = range(3)
"""The operations that a job can ask for."""

_SOURCE = """
def traits(job, handle):  # layout, dtype, device and whether it is negated, in one number
    buffer = job[{scratch}] + 48
    buffer[0] = 0
    buffer[1] = 0
    buffer[2] = 0
    ask(job[{layout}], handle, buffer)
    ask(job[{dtype}], handle, buffer + 8)
    ask(job[{device_type}], handle, buffer + 16)
    result = (buffer[0] * 256 + buffer[1]) * 256 + buffer[2]
    keys = handle[0][job[{keys_at}]]
    if keys & job[{negated}]:
        result += 1 << 40
    return result

def outline(job, handle):  # the number of dimensions, the addresses of sizes and strides
    buffer = job[{scratch}] + 48
    buffer[0] = 0
    ask(job[{dim}], handle, buffer)
    ask(job[{sizes}], handle, buffer + 8)
    ask(job[{strides}], handle, buffer + 16)
    return buffer

def storage(job, handle):  # data address, bytes of the storage, offset of the first element
    buffer = job[{scratch}] + 48
    buffer[0] = 0
    buffer[1] = 0
    buffer[2] = 0
    ask(job[{data_ptr}], handle, buffer)
    ask(job[{storage_size}], handle, buffer + 8)
    ask(job[{storage_offset}], handle, buffer + 16)
    return buffer

def classify(job, tape, row, object):
    # tape: bytes, bytes of an element, traits, then the outline
    if object[job[{type_at}]] != job[{tensor}] and object[job[{type_at}]] != job[{parameter}]:
        return 3
    handle = object + job[{handle_at}]
    if traits(job, handle) != tape[2]:
        return 3
    buffer = outline(job, handle)
    if buffer[0] != tape[3]:
        return 3
    sizes = buffer[1]
    strides = buffer[2]
    code = 1
    for d in range(buffer[0]):
        if sizes[d] != tape[4 + 2 * d]:
            return 3
        # the stride of a dimension of size 1 does not matter
        if sizes[d] != 1 and strides[d] != tape[5 + 2 * d]:
            code = 2
    if code == 1:
        buffer = storage(job, handle)
        if buffer[0] == 0 or buffer[1] < buffer[2] * tape[1] + tape[0]:
            return 3
        row[0] = buffer[0]
    return code

def gradients(job):  # compare gradients with their parameters
    grads = job[{free}]
    tape = job[{free} + 1]
    row = job[{free} + 3]
    codes = job[{free} + 4]
    codes_met = 0
    for k in range(job[{free} + 2]):
        row[k] = 0
        object = call(job[{PyList_GetItem}], grads, k)
        codes[k] = 0
        if object != job[{none}]:
            codes[k] = classify(job, tape, row + 8 * k, object)
        codes_met |= 1 << codes[k]
        tape += 32 + 16 * tape[3]
    return codes_met

def walk(job):  # over lists of parameters, then over a dict of dicts
    now = job[{free}]
    limit = now + 8 * job[{free} + 2]
    objects = job[{free} + 3]
    next_object = objects
    lists = job[{free} + 4]
    state = job[{free} + 6]
    buffer = job[{scratch}]
    for i in range(job[{free} + 5]):
        size = call(job[{PyList_Size}], lists[i])
        if now + 8 * size + 8 >= limit:
            return -1
        now[0] = size
        now += 8
        for k in range(size):
            next_object[0] = call(job[{PyList_GetItem}], lists[i], k)
            now[0] = next_object[0]
            next_object += 8
            now += 8
    buffer[0] = 0
    while ask(job[{PyDict_Next}], state, buffer, buffer + 8, buffer + 16):
        own = buffer[2]
        size = -1
        if own[job[{type_at}]] == job[{dict_type}]:
            size = call(job[{PyDict_Size}], own)
        if now + 8 * size + 32 >= limit:
            return -1
        now[0] = buffer[1]
        now[1] = size
        now += 16
        buffer[3] = 0
        while size > 0 and ask(job[{PyDict_Next}], own, buffer + 24, buffer + 32, buffer + 40):
            now[0] = buffer[4]
            next_object[0] = buffer[5]
            now += 8
            next_object += 8
    job[{free} + 8] = 0
    while objects < next_object:
        job[{free} + 8] += 1
        object = objects[0]
        objects += 8
        if now + 64 >= limit:
            return -1
        now[0] = 0
        now += 8
        if object[job[{type_at}]] == job[{tensor}] or object[job[{type_at}]] == job[{parameter}]:
            handle = object + job[{handle_at}]
            code = traits(job, handle)
            now[-1] = code + 1
            if code & ((1 << 40) - 1) < 65536:  # a sparse tensor has no memory of its own
                data = storage(job, handle)
                now[0] = data[0]
                now[1] = data[1]
                now[2] = data[2]
                shape = outline(job, handle)
                dim = shape[0]
                sizes = shape[1]
                strides = shape[2]
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
    objects = job[{free} + 3]
    if job[{operation}] == 1:
        job[{result}] = gradients(job)
        return
    if job[{operation}] == 2:  # release the objects that a walk holds
        for k in range(job[{free} + 7]):
            call(job[{Py_DecRef}], objects[k])
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
            call(job[{Py_IncRef}], objects[k])
        job[{free} + 7] = job[{free} + 8]
"""


class Native:
    """The compiled loop, and the numbers with which every job for the loop begins."""

    def __init__(self) -> None:
        package = Path(torch.__file__).parent / "lib"
        name = "torch_cpu.dll" if os.name == "nt" else "libtorch_cpu.*"
        torch_c = ctypes.CDLL(str(next(package.glob(name))))
        of_torch = [getattr(torch_c, f"aoti_torch_get_{item}") for item in _OF_TORCH.split()]
        of_python = [getattr(ctypes.pythonapi, name) for name in _OF_PYTHON.split()]
        self.functions = [ctypes.cast(f, ctypes.c_void_p).value for f in (*of_torch, *of_python)]
        probes = [torch.zeros(1, device="cpu"), torch.nn.Parameter(torch.zeros(2, device="cpu"))]
        self.type_at = _find_word([(x, id(type(x))) for x in (*probes, {}, 1.5)])
        self.handle_at = 8 * _find_word([(x, x._cdata) for x in probes])
        self.keys_at, self.negated = _find_keys()
        loop = compiler.load_integers("memory", _SOURCE.format(free=_FREE, **_AT))
        # unlike the loops of rules it keeps the GIL, because it calls Python's own functions
        address: Any = ctypes.cast(loop, ctypes.c_void_p).value  # type: ignore[arg-type]
        self.run = ctypes.PYFUNCTYPE(None, ctypes.c_int64)(address)

    def job(self, operation: int, *rest: int) -> np.ndarray:
        """Return a job: an array of numbers for the loop, with scratch memory at the end."""
        start = [operation, 0, 0, self.type_at, self.handle_at, self.keys_at, self.negated]
        start += [*map(id, PLAIN), id(dict), id(None)]
        job = np.array([*start, *self.functions, *rest, *[0] * 10], np.int64)
        job[_AT["scratch"]] = job.ctypes.data + job.nbytes - 80
        return job


def _find_word(known: Sequence[tuple[Any, int]]) -> int:
    """Return the index i such that word i of each object is the number paired with the object.

    known: pairs of an object and a number. A word has 64 bits.
    """
    size = min(type(x).__basicsize__ for x, _ in known)
    words = [(ctypes.c_int64 * (size // 8)).from_address(id(x)) for x, _ in known]
    pairs = [(w, value) for w, (_, value) in zip(words, known, strict=True)]
    matches = [i for i in range(size // 8) if all(w[i] == value for w, value in pairs)]
    (match,) = matches  # ValueError for none or several: this Python or torch has another layout
    return match


def _find_keys() -> tuple[int, int]:
    """Return the index of the 64-bit word that holds a tensor's dispatch keys, and a bit mask.

    The mask has the bit of these keys that marks a negated view.
    """
    candidates: set[tuple[int, int]] = set()
    for k, shape in enumerate(((2,), (3, 1), (), (2, 3, 4), (5,), (1, 1))):
        x = torch.zeros(shape, dtype=(torch.float32, torch.float64)[k % 2], device="cpu")
        views = [x.view_as(x), torch._neg_view(x)]
        words = [(ctypes.c_int64 * 24).from_address(y._cdata) for y in views]
        bits = [a ^ b for a, b in zip(*words, strict=True)]
        single = {(i, bit) for i, bit in enumerate(bits) if bit.bit_count() == 1 and bit > 0}
        candidates = single if k == 0 else candidates & single
    (match,) = candidates
    return match


class Walk:
    """Walks over lists of parameters and a dict of states. Writes all that it meets as numbers.

    The constructor makes the first walk and keeps its numbers in `tape`. `matches` walks again and
    compares the new numbers with `tape`. If they are equal, all objects that were met are kept
    alive until `release`.
    """

    def __init__(self, native: Native, lists: Sequence[list[Tensor]], state: Any) -> None:
        states = [x for x in state.values() if isinstance(x, Mapping)]
        values = [*chain.from_iterable(lists), *chain.from_iterable(x.values() for x in states)]
        size = 16 + sum(8 + 2 * x.dim() if isinstance(x, Tensor) else 4 for x in values)
        size += 4 * (len(lists) + len(state))
        self.native = native
        self.tape, self.now = np.zeros(size, np.int64), np.zeros(size, np.int64)
        self.lists = np.zeros(len(lists), np.int64)
        # as many objects as fit on the tape: a later walk may meet more than the first one
        self.objects = np.zeros(size, np.int64)
        arrays = [x.ctypes.data for x in (self.now, self.tape)]
        arrays += [size, self.objects.ctypes.data, self.lists.ctypes.data]
        self.job = native.job(_WALK, *arrays, len(lists), 0, 0, 0)
        self.address = self.job.ctypes.data
        self.matches(lists, state)
        self.tape[:] = self.now

    def matches(self, lists: Sequence[list[Tensor]], state: Any) -> bool:
        """Whether a new walk gives the same numbers as the first walk.

        If so, the objects that the new walk met are kept alive until `release`.
        """
        if len(lists) != len(self.lists):
            return False
        self.lists[:] = list(map(id, lists))
        self.job[_FREE + 6] = id(state)
        self.native.run(self.address)
        return bool(self.job[_AT["result"]] >= 0)

    def release(self) -> None:
        """Release the objects that `matches` keeps alive."""
        if self.job[_FREE + 7]:
            self.job[_AT["operation"]] = _RELEASE
            self.native.run(self.address)
            self.job[_AT["operation"]] = _WALK


class Classifier:
    """Classifies gradients, and writes the addresses of the gradients that can be used.

    params: the parameters, whose shapes and strides the gradients should have.
    like: a tensor of the dtype that the gradients should have.
    row: array for the addresses. It gets 0 for a gradient that is missing or cannot be used.
    codes: array for the codes. It gets NONE, FINE, STRIDES or MISFIT of `memory.py` for each
    gradient.
    """

    def __init__(
        self,
        native: Native,
        params: Sequence[Tensor],
        like: Tensor,
        row: np.ndarray,
        codes: np.ndarray,
    ) -> None:
        traits, size = int(Walk(native, [[like]], {}).tape[2]) - 1, like.element_size()
        tape: list[int] = []
        for p in params:
            tape += [p.numel() * size, size, traits, p.dim()]
            tape += chain.from_iterable(zip(p.shape, p.stride(), strict=True))
        self.native, self.arrays = native, (np.array(tape, np.int64), row, codes)
        tapes, *results = [x.ctypes.data for x in self.arrays]
        self.job = native.job(_CLASSIFY, 0, tapes, len(params), *results)
        self.address = self.job.ctypes.data

    def classify(self, grads: list[Any]) -> int:
        """Write `row` and `codes`. Returns the codes that occur, as bits.

        Bit k of the result is set if code k occurs.
        """
        self.job[_FREE] = id(grads)
        self.native.run(self.address)
        return int(self.job[_AT["result"]])


def available() -> Native | None:
    """Return the loop; None if the objects of torch or Python do not have the expected layout."""
    probe = torch.zeros(2, 3, device="cpu").T
    # under a mode such as FakeTensorMode nothing can be probed, and nothing is cached
    return _probe() if type(probe) is Tensor else None


@cache
def _probe() -> Native | None:
    try:
        native = Native()
    except (OSError, AttributeError, ValueError, StopIteration, compiler.Stuck):
        return None
    x = torch.zeros(2, 3, device="cpu").T
    tape = Walk(native, [[x]], {}).tape
    expected = [1, id(x), tape[2], x.data_ptr(), 24, 0, 2, 3, 1, 2, 3]
    return native if [*tape[: len(expected)]] == expected else None
