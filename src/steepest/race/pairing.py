"""What makes the runs of one seed comparable: the same batches, and no draw that shifts another's.

The entries of a seed train on the same batches unless it is the batches that they change. That is
promised by the task and checked here: a hash that runs on over every batch is compared.
"""

from __future__ import annotations

import hashlib
import zlib
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, islice
from types import BuiltinFunctionType, FunctionType
from typing import Any

import numpy as np
import torch

from steepest.tasks.randomness import STATES

MOST = 2000
"""Things in a batch that are looked at, the nearest first: one may know its whole dataset."""
KEPT = 32
"""Things in the first batch that are kept one by one, to name what differs."""
DIGITS = 12
"""Of a hash that is kept, in hexadecimals: 48 bits."""
SIMPLE = (str, int, float, complex, bool, type(None))
ARRAY = "array "


class Seen:
    """A hash of all batches so far: arrays bit by bit, all else by what it is made of."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._begun = False
        self.first: dict[str, str] = {}
        """What the first batch had where: arrays as "array ...", all else by its type."""
        self.unread = ""
        """What could not be looked into, so that batches are unchecked; empty where all was."""

    def add(self, batch: Any) -> None:
        """Take in a batch. Never raises: what trains must not end by a check."""
        left: deque[tuple[str, Any]] = deque([("", batch)])
        taken = 0
        while left:
            if taken == MOST:
                self.unread = self.unread or f"more than {MOST:,} things in a batch"
                break
            taken += 1
            path, value = left.popleft()
            try:
                text, inside = _read(value)
                left += [(f"{path}{name}", each) for name, each in inside]
            except Exception:
                text = type(value).__qualname__
                self.unread = self.unread or f"a {text} in a batch cannot be read"
            self._hash.update(text.encode())
            if not self._begun and len(self.first) < KEPT:
                self.first[path] = text
        self._begun = True

    def so_far(self) -> str:
        return self._hash.hexdigest()[:DIGITS]


def _read(value: Any) -> tuple[str, Iterable[tuple[str, Any]]]:
    """A value as a text, and what is in it; any error for what cannot be read."""
    kind = type(value).__qualname__
    if isinstance(value, torch.Tensor):
        return _tensor(value.detach())
    if type(value) is np.ndarray or isinstance(value, np.generic):
        if value.dtype.hasobject:
            return f"{kind}{value.shape}", [("", value.tolist())]
        # a checksum: it is four times as fast as a hash, and nobody forges batches here
        return _array(
            value.dtype, value.shape, np.ascontiguousarray(value).reshape(-1).view(np.uint8)
        )
    if isinstance(value, SIMPLE):
        return f"{kind} {zlib.crc32(repr(value).encode()):x}", ()
    if isinstance(value, (bytes, bytearray, memoryview)):
        return f"{kind} {len(value)} {zlib.crc32(bytes(value)):x}", ()
    if isinstance(value, Mapping):
        items = [(_key(key), each) for key, each in islice(value.items(), MOST)]
        # a dict that was made by going through a set has another order in each process
        return f"{kind} {len(value)} {sorted(k for k, _ in items)}", sorted(items, key=_first)
    if isinstance(value, (list, tuple)):
        if all(type(each) in SIMPLE for each in value):  # many numbers are one thing
            return f"{kind} {len(value)} {zlib.crc32(repr(value).encode()):x}", ()
        return f"{kind} {len(value)}", [(f"[{i}]", v) for i, v in enumerate(islice(value, MOST))]
    if isinstance(value, (set, frozenset)) and len(value) <= MOST:
        return f"{kind} {len(value)} {sorted(_alone(each) for each in value)}", ()
    if isinstance(value, (FunctionType, BuiltinFunctionType, type)):
        return f"{kind} {value.__module__}.{value.__qualname__}", ()
    if isinstance(value, (torch.nn.Module, set, frozenset)):
        raise TypeError(value)  # what is trained is no data, and a large set takes too long
    made = value.__reduce_ex__(4)  # what pickle would keep of it
    if isinstance(made, str):
        return f"{kind} {made}", ()
    made = *made, None, None, None
    calls, given, state, items, pairs = made[:5]
    inside = chain([(" call", calls), (" of", given)], _named(state))
    many = islice(items or (), MOST), islice(pairs or (), MOST)
    return kind, [*inside, *(("[]", v) for v in chain(*many))]


def _tensor(value: torch.Tensor) -> tuple[str, Iterable[tuple[str, Any]]]:
    kind = f"{value.layout} {value.dtype} "
    if value.is_nested:
        return kind, [(f"[{i}]", each) for i, each in enumerate(value.unbind())]
    if value.is_quantized:
        return kind + str(value.qscheme()), [("", value.int_repr()), ("", value.dequantize())]
    if value.layout != torch.strided:  # as it is kept: made dense it may not fit
        names = _SPARSE[value.layout]
        return f"{kind}{tuple(value.shape)}", [(f".{n}", getattr(value, n)()) for n in names]
    value = value.cpu().resolve_conj().resolve_neg()
    raw = value.contiguous().reshape(-1).view(torch.uint8).numpy()
    return _array(value.dtype, value.shape, raw)


def _array(dtype: Any, shape: Sequence[int], raw: Any) -> tuple[str, Iterable[tuple[str, Any]]]:
    size = np.prod(shape, dtype=int)
    return f"{ARRAY if size > 1 else ''}{dtype} {tuple(shape)} {zlib.crc32(raw):x}", ()


def _named(state: Any) -> Iterable[tuple[str, Any]]:
    """The attributes that pickle keeps: a dict, or with slots two."""
    if isinstance(state, dict):
        return [(f".{name}", each) for name, each in state.items()]
    if isinstance(state, tuple) and len(state) == 2 and isinstance(state[1], dict):
        return [*_named(state[0] or {}), *_named(state[1])]
    return [("", state)]


def _key(key: Any) -> str:
    return f"[{key!r}]" if isinstance(key, SIMPLE) else f"[{_alone(key)}]"


def _alone(value: Any) -> str:
    """A value in a set, or a key: its hash does not depend on what stands before it."""
    seen = Seen()
    seen.add(value)
    if seen.unread:
        raise TypeError(value)
    return seen.so_far()


def _first(pair: tuple[str, Any]) -> str:
    return pair[0]


_SPARSE = {
    torch.sparse_coo: ("_indices", "_values"),
    torch.sparse_csr: ("crow_indices", "col_indices", "values"),
    torch.sparse_bsr: ("crow_indices", "col_indices", "values"),
    torch.sparse_csc: ("ccol_indices", "row_indices", "values"),
    torch.sparse_bsc: ("ccol_indices", "row_indices", "values"),
}


def states(generators: Iterable[Any] = ()) -> str:
    """A hash of the random states of torch and numpy, and of these generators.

    Not of `random`: modules draw from it as they are imported, in whichever run comes first.
    """
    seen = Seen()
    seen.add([get() for get, _ in STATES[:2]])
    for each in generators:
        if isinstance(each, torch.Generator):
            seen.add(each.get_state())
        elif isinstance(each, np.random.Generator):
            seen.add(each.bit_generator.state)
        else:
            seen.add(each.get_state() if hasattr(each, "get_state") else each.getstate())
    return seen.so_far()


def parted(ours: Sequence[str], theirs: Sequence[str]) -> int | None:
    """The first evaluation at which two runs differ, as far as both go; None where none."""
    both = zip(ours, theirs, strict=False)
    return next((i for i, (a, b) in enumerate(both) if a != b), None)


def field(ours: Mapping[str, str], theirs: Mapping[str, str]) -> str | None:
    """What differs first in the first batches: an array if one does, since it is data."""
    names = [n for n in {**ours, **theirs} if ours.get(n) != theirs.get(n)]
    arrays = [n for n in names if is_array(ours, n) or is_array(theirs, n)]
    return next(iter(arrays or names), None)


def is_array(batch: Mapping[str, str], name: str) -> bool:
    return batch.get(name, "").startswith(ARRAY)
