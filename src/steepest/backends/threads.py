"""The threads that run the pieces of work: torch's OpenMP threads if torch has OpenMP, else a pool.

After every backward pass, the threads of torch's OpenMP keep their cores busy for a while. A pool
of our own would compete for these cores, so loops run on the OpenMP threads. OpenMP hangs in a
forked child, so a forked child uses only one thread.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import torch

ENOUGH = 1 << 18  # elements; for fewer, a second thread costs more than it gains
_forked = False


def wanted(elements: int, pieces: int) -> int:
    """Return how many threads are worth using for so many elements, cut into so many pieces."""
    return 1 if elements < ENOUGH or _forked else min(torch.get_num_threads(), pieces)


def run(loop: Callable[[int], None], address: int, count: int) -> None:
    """Call `loop(address)` on `count` threads at once. Returns when all calls are done."""
    if (parallel := _openmp()) is not None:
        parallel(ctypes.cast(loop, ctypes.c_void_p), address, count, 0)  # type: ignore[arg-type]
    else:
        list(_pool(count).map(loop, [address] * count))


@cache
def _openmp() -> Any:
    """Return GOMP_parallel(function, data, threads, flags) from torch's OpenMP library.

    Returns None if torch has no such library.
    """
    package = Path(torch.__file__).parent
    for file in (*(package / "lib").glob("libgomp*"), *package.parent.glob("torch.libs/libgomp*")):
        try:
            parallel = ctypes.CDLL(str(file)).GOMP_parallel
        except (OSError, AttributeError):
            continue
        parallel.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
        parallel.restype = None
        return parallel
    return None


@cache
def _pool(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, thread_name_prefix="steepest")


def _in_child() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
