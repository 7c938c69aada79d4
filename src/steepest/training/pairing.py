"""Evidence that the runs of one seed are paired: hashes of their batches and random states.

All entries must train on the same batches for a given seed, except entries that choose batches of
their own. The task promises the same batches; a running hash over all batches checks the promise.
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

from steepest.tasks.randomness import NUMPY, states_of_torch

MOST = 2000
"""Only this many objects of a batch are hashed, outermost first: a batch may hold its dataset."""
KEPT = 32
"""Hashes of at most this many objects of the first batch are kept, to name one in a message."""
DIGITS = 12
"""The number of hexadecimal digits that are kept of a hash: 48 bits."""
SIMPLE = (str, int, float, complex, bool, type(None))
ARRAY = "array "


class Seen:
    """A running hash of all batches: of the bytes of arrays and the contents of other objects."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._begun = False
        self.first: dict[str, str] = {}
        """Path -> description of each object in the first batch; arrays begin with "array "."""
        self.unread = ""
        """What could not be hashed; the batches are then unchecked. "" if all could be hashed."""

    def add(self, batch: Any) -> None:
        """Hash a batch. This never raises an error: a check must not end a training."""
        queue: deque[tuple[str, Any]] = deque([("", batch)])
        count = 0
        while queue:
            if count == MOST:
                self.unread = self.unread or f"more than {MOST:,} things in a batch"
                break
            count += 1
            path, value = queue.popleft()
            try:
                text, contents = _describe(value)
                queue += [(f"{path}{name}", item) for name, item in contents]
            except Exception:
                text = type(value).__qualname__
                self.unread = self.unread or f"a {text} in a batch cannot be read"
            self._hash.update(text.encode())
            if not self._begun and len(self.first) < KEPT:
                self.first[path] = text
        self._begun = True

    def so_far(self) -> str:
        """The hash of all batches until now."""
        return self._hash.hexdigest()[:DIGITS]


def _describe(value: Any) -> tuple[str, Iterable[tuple[str, Any]]]:
    """A text that identifies a value, and (name, value) of each object inside it.

    A value that cannot be described raises an error of any type.
    """
    type_name = type(value).__qualname__
    if isinstance(value, torch.Tensor):
        return _describe_tensor(value.detach())
    if type(value) is np.ndarray or isinstance(value, np.generic):
        if value.dtype.hasobject:
            return f"{type_name}{value.shape}", [("", value.tolist())]
        # a checksum is four times as fast as a hash, and nobody forges batches here
        return _describe_array(
            value.dtype, value.shape, np.ascontiguousarray(value).reshape(-1).view(np.uint8)
        )
    if isinstance(value, SIMPLE):
        return f"{type_name} {zlib.crc32(repr(value).encode()):x}", ()
    if isinstance(value, (bytes, bytearray, memoryview)):
        return f"{type_name} {len(value)} {zlib.crc32(bytes(value)):x}", ()
    if isinstance(value, Mapping):
        pairs = [(_describe_key(key), item) for key, item in islice(value.items(), MOST)]
        # sorted, since the order of a dict made from a set differs from process to process
        return f"{type_name} {len(value)} {sorted(k for k, _ in pairs)}", sorted(pairs, key=_first)
    if isinstance(value, (list, tuple)):
        if all(type(each) in SIMPLE for each in value):  # a list of numbers counts as one object
            return f"{type_name} {len(value)} {zlib.crc32(repr(value).encode()):x}", ()
        return f"{type_name} {len(value)}", [
            (f"[{i}]", v) for i, v in enumerate(islice(value, MOST))
        ]
    if isinstance(value, (set, frozenset)) and len(value) <= MOST:
        return f"{type_name} {len(value)} {sorted(_hash_alone(item) for item in value)}", ()
    if isinstance(value, (FunctionType, BuiltinFunctionType, type)):
        return f"{type_name} {value.__module__}.{value.__qualname__}", ()
    if isinstance(value, (torch.nn.Module, set, frozenset)):
        raise TypeError(value)  # a model is not data, and a large set takes too long
    reduced = value.__reduce_ex__(4)  # what pickle would save
    if isinstance(reduced, str):
        return f"{type_name} {reduced}", ()
    reduced = *reduced, None, None, None
    function, arguments, state, items, mapping = reduced[:5]
    contents = chain([(" call", function), (" of", arguments)], _list_attributes(state))
    elements = chain(islice(items or (), MOST), islice(mapping or (), MOST))
    return type_name, [*contents, *(("[]", element) for element in elements)]


def _describe_tensor(value: torch.Tensor) -> tuple[str, Iterable[tuple[str, Any]]]:
    prefix = f"{value.layout} {value.dtype} "
    if value.is_nested:
        return prefix, [(f"[{i}]", item) for i, item in enumerate(value.unbind())]
    if value.is_quantized:
        return prefix + str(value.qscheme()), [("", value.int_repr()), ("", value.dequantize())]
    if value.layout != torch.strided:  # hash the stored parts: a dense copy may not fit into memory
        names = _SPARSE[value.layout]
        return f"{prefix}{tuple(value.shape)}", [(f".{n}", getattr(value, n)()) for n in names]
    value = value.cpu().resolve_conj().resolve_neg()
    raw = value.contiguous().reshape(-1).view(torch.uint8).numpy()
    return _describe_array(value.dtype, value.shape, raw)


def _describe_array(
    dtype: Any, shape: Sequence[int], raw: Any
) -> tuple[str, Iterable[tuple[str, Any]]]:
    size = np.prod(shape, dtype=int)
    return f"{ARRAY if size > 1 else ''}{dtype} {tuple(shape)} {zlib.crc32(raw):x}", ()


def _list_attributes(state: Any) -> Iterable[tuple[str, Any]]:
    """The attributes in the state that pickle saves: one dict, or two if there are slots."""
    if isinstance(state, dict):
        return [(f".{name}", value) for name, value in state.items()]
    if isinstance(state, tuple) and len(state) == 2 and isinstance(state[1], dict):
        return [*_list_attributes(state[0] or {}), *_list_attributes(state[1])]
    return [("", state)]


def _describe_key(key: Any) -> str:
    return f"[{key!r}]" if isinstance(key, SIMPLE) else f"[{_hash_alone(key)}]"


def _hash_alone(value: Any) -> str:
    """The hash of a key, or of a value in a set, independent of what was hashed before."""
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


def states(generators: Iterable[Any] = (), device: str | None = None) -> str:
    """A hash of the random states of torch, of numpy and of these generators.

    device: an accelerator; torch's random state on it is included too.

    The state of Python's `random` is left out: some modules draw from it when they are imported,
    and only the first run in a process imports them.
    """
    seen = Seen()
    seen.add([get() for get, _ in (*states_of_torch(device), NUMPY)])
    for generator in generators:
        if isinstance(generator, torch.Generator):
            seen.add(generator.get_state())
        elif isinstance(generator, np.random.Generator):
            seen.add(generator.bit_generator.state)
        else:
            seen.add(
                generator.get_state() if hasattr(generator, "get_state") else generator.getstate()
            )
    return seen.so_far()


def parted(ours: Sequence[str], theirs: Sequence[str]) -> int | None:
    """Index of the first evaluation at which the hashes of two runs differ; None if they agree."""
    both = zip(ours, theirs, strict=False)  # one of the runs may have ended earlier
    return next((i for i, (a, b) in enumerate(both) if a != b), None)


def field(ours: Mapping[str, str], theirs: Mapping[str, str]) -> str | None:
    """Path of the first array that differs between the first batches of two runs.

    If no array differs, the path of the first other object that differs, or None.
    """
    names = [n for n in {**ours, **theirs} if ours.get(n) != theirs.get(n)]
    arrays = [n for n in names if is_array(ours, n) or is_array(theirs, n)]
    return next(iter(arrays or names), None)


def is_array(batch: Mapping[str, str], name: str) -> bool:
    """Whether the object at the path `name` of a first batch is an array of several elements."""
    return batch.get(name, "").startswith(ARRAY)
