"""Generated source to machine code.

numba compiles, llvmlite (which numba stands on) emits and loads the object code, `kept` keeps it on
disk under a hash of whatever can change it. Both are imported at the first step.

A fork waits until no thread loads a loop, so that the child has whole modules and free locks. It
cannot wait for a thread of the user's that is inside numba or llvmlite: there the child refuses.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import math
import os
import re
import sys
import threading
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from .. import ops
from ..printing import fits
from . import kept

_loaded: dict[tuple[str, int], Callable[[int], None]] = {}
_engines: list[Any] = []  # machine code lives as long as its engine
_lock = threading.RLock()  # of one thread: a signal's handler may fork while that thread compiles
_PATIENCE = 60  # seconds that a fork waits; a loop compiles in one
_stuck: set[str] = set()  # packages that a thread was inside of which this process does not have
_HELPERS = {"maximum": ops.larger, "minimum": ops.smaller}
"""What generated source may call, beside `fits` and what stands in this file."""


def _ours() -> str:
    """A hash of the files whose code is compiled in."""
    modules = {__name__, *(f.__module__ for f in (*_HELPERS.values(), *fits.values()))}
    files = [(sys.modules[m].__spec__.loader, sys.modules[m].__file__) for m in sorted(modules)]  # type: ignore[union-attr]
    return hashlib.sha256(b"".join(loader.get_data(file) for loader, file in files)).hexdigest()  # type: ignore[union-attr]


_OURS = _ours()  # now: the files may be exchanged while this process runs the old ones


def load(name: str, source: str, itemsize: int, sums: bool = False) -> Callable[[int], None]:
    """The function in `source` as machine code that takes a job's address; itemsize 4 or 8.

    sums: its sums may be taken in any order, the same one at each call.
    """
    if (source, itemsize) not in _loaded:
        with _lock:
            if (source, itemsize) not in _loaded:
                _refuse("llvmlite", name)
                _loaded[source, itemsize] = _link(*_object(name, source, itemsize, sums))
    return _loaded[source, itemsize]


class Stuck(RuntimeError):  # noqa: N818  a state, not a fault
    """A loop that cannot be loaded in a forked child."""


def _refuse(package: str, name: str) -> None:
    if package in _stuck:
        raise Stuck(
            f"{name}: its loop is not loaded, and cannot be in this process: as it was forked, a "
            f"thread of its parent was inside {package}, and will not leave it here. Make a first "
            "step before the fork, start the process by spawn, or pass backend='foreach'"
        )


def _llvm() -> Any:
    import llvmlite.binding

    return llvmlite.binding


def load_integers(name: str, source: str) -> Callable[[int], None]:
    """The function of that name, in the language of `integers.py`, as machine code."""
    with _lock:
        _refuse("llvmlite", name)
        from .integers import compiled  # which imports llvmlite: here, as a fork waits for the lock

        text = compiled(source)
        return _link(*_kept(name, text, [], lambda: _emitted(name, text)))


def _emitted(name: str, text: str) -> tuple[str, bytes]:
    llvm = _llvm()
    module, machine = llvm.parse_assembly(text), _machine()
    passes = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(2))
    passes.getModulePassManager().run(module, passes)
    return name, machine.emit_object(module)


def _object(name: str, source: str, itemsize: int, sums: bool = False) -> tuple[str, bytes]:
    return _kept(name, source, [itemsize, sums], lambda: _compile(name, source, itemsize, sums))


def _kept(
    name: str, source: str, about: list[Any], make: Callable[[], tuple[str, bytes]]
) -> tuple[str, bytes]:
    """The object code of a source, from the disk or made now and kept there."""
    llvm = _llvm()
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    made_by = [_OURS, sys.version, version("numba"), version("llvmlite"), llvm.llvm_version_info]
    made_for = [llvm.get_process_triple(), *_cpu(), *about]
    settings = sorted(item for item in os.environ.items() if item[0].startswith("NUMBA_"))
    text = repr([*made_by, *made_for, settings, source])
    key = hashlib.sha256(text.encode(errors="backslashreplace")).hexdigest()
    if (found := kept.read(name, key)) is not None:
        return found
    made = make()
    kept.write(name, key, *made)
    return made


def _compile(name: str, source: str, itemsize: int, sums: bool = False) -> tuple[str, bytes]:
    _refuse("numba", name)
    import numba

    names = _vocabulary(itemsize)
    exec(compile(source, f"<loop of {name}>", "exec"), names)
    # 'contract' (a*b+c in one rounding) keeps an element's bits wherever a range is cut
    flags = {"contract", "reassoc"} if sums else {"contract"}
    compiler = numba.cfunc(numba.void(numba.int64), error_model="numpy", fastmath=flags)
    text = compiler(names[name]).inspect_llvm()
    symbol = re.search(r"^define .*@(cfunc\.[^(]+)\(", text, re.MULTILINE)
    # object code is loaded without numba, so it may call the C library alone
    foreign = re.findall(r"^declare .*@((?:numba|NRT|Py)_?\w*)\(", text, re.MULTILINE)
    if symbol is None or foreign:
        raise RuntimeError(
            f"{name}: the compiled loop refers to {foreign or 'no entry'}; please report it"
        )
    return symbol[1], _machine().emit_object(_llvm().parse_assembly(text))


def _cpu() -> tuple[str, str]:
    """Name and features."""
    return _llvm().get_host_cpu_name(), _llvm().get_host_cpu_features().flatten()


def _machine() -> Any:
    target = _llvm().Target.from_triple(_llvm().get_process_triple())
    return target.create_target_machine(*_cpu(), opt=3, codemodel="jitdefault", jit=True)


def _link(symbol: str, code: bytes) -> Callable[[int], None]:
    llvm = _llvm()
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _machine())
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    _engines.append(engine)
    return ctypes.CFUNCTYPE(None, ctypes.c_int64)(engine.get_function_address(symbol))


def _intrinsic(emit: Callable[..., Any], result: Any, *kinds: Any) -> Any:
    """A word of generated source, said in LLVM's own: emit(builder, *arguments)."""
    from numba import extending

    names = ", ".join("abc"[: len(kinds)])
    made = lambda context, builder, signature, args: emit(builder, *args)  # noqa: E731
    scope: dict[str, Any] = {"signature": result(*kinds), "made": made}
    exec(f"def word(context, {names}): return signature, made", scope)  # numba counts its arguments
    return extending.intrinsic(scope["word"])


def _vocabulary(itemsize: int) -> dict[str, Any]:
    """What generated source may say, for numba."""
    from llvmlite import ir
    from numba import njit, types

    single, double = (types.float32, ir.FloatType()), (types.float64, ir.DoubleType())
    elements = {4: single, 8: double}[itemsize]
    real = elements[0]

    def pointer(kind: Any, stored: Any) -> Any:
        to = stored.as_pointer()
        return _intrinsic(lambda b, x: b.inttoptr(x, to), types.CPointer(kind), types.int64)

    def take(b: Any, counter: Any) -> Any:
        return b.atomic_rmw("add", counter, ir.Constant(ir.IntType(64), 1), "monotonic")

    # inlined for certain: a call would leave a branch to numba's error handling in the object code
    helper = njit(forceinline=True, error_model="numpy")

    @helper
    def sign(x: Any) -> Any:
        return real(x > 0) - real(x < 0)

    pointers = {
        "reals": pointer(*elements),
        "halves": pointer(types.uint16, ir.IntType(16)),
        "integers": pointer(types.int64, ir.IntType(64)),
        "doubles": pointer(*double),
    }
    functions = {"sqrt": math.sqrt, "log": math.log, "sign": sign, "fit": helper(fits[itemsize])}
    functions |= {word: helper(function) for word, function in _HELPERS.items()}
    numbers = {"real": real, "float64": types.float64}
    counter = {"take": _intrinsic(take, types.int64, types.CPointer(types.int64))}
    return {**pointers, **functions, **numbers, **counter, **_halves(), **_cells()}


def _cells() -> dict[str, Any]:
    """A number of one of several types at an address, as a double: the types are those of `Cells`
    in cells.py. In LLVM's own words, as numba takes as long to type a branch as the rest.
    """
    from llvmlite import ir
    from numba import types
    from numba.core import cgutils

    double, single = ir.DoubleType(), ir.FloatType()
    stored = [single, double, ir.IntType(64), ir.IntType(32)]

    def cases(b: Any, address: Any, kind: Any) -> Any:
        for k, of in enumerate(stored):
            with b.if_then(b.icmp_signed("==", kind, ir.Constant(ir.IntType(64), k))):
                yield of, b.inttoptr(address, of.as_pointer())

    def fetch(b: Any, address: Any, kind: Any) -> Any:
        found = cgutils.alloca_once(b, double)
        for of, at in cases(b, address, kind):
            x = b.load(at)
            x = x if of is double else b.fpext(x, double) if of is single else b.sitofp(x, double)
            b.store(x, found)
        return b.load(found)

    def put(b: Any, address: Any, kind: Any, x: Any) -> Any:
        for of, at in cases(b, address, kind):
            y = x if of is double else b.fptrunc(x, of) if of is single else b.fptosi(x, of)
            b.store(y, at)
        return x

    return {
        "fetch": _intrinsic(fetch, types.float64, types.int64, types.int64),
        "put": _intrinsic(put, types.float64, types.int64, types.int64, types.float64),
    }


def _halves() -> dict[str, Any]:
    """bfloat16 in generated source: the upper half of a float32's bits, kept as uint16.

    In LLVM's own words, as numba computes integers in 64 bits, which halves the lanes.
    """
    from llvmlite import ir
    from numba import types

    word, half, single = ir.IntType(32), ir.IntType(16), ir.FloatType()

    def number(value: int) -> Any:
        return ir.Constant(word, value)

    def widen(b: Any, x: Any) -> Any:
        return b.bitcast(b.shl(b.zext(x, word), number(16)), single)

    def upper(b: Any, x: Any, add: Callable[[Any], Any]) -> Any:
        bits = b.bitcast(x, word)
        finite = b.icmp_unsigned("!=", b.and_(bits, number(0x7F800000)), number(0x7F800000))
        # a nan keeps its quiet bit, or cut off it would be an inf
        other = b.select(b.fcmp_unordered("uno", x, x), b.or_(bits, number(0x400000)), bits)
        rounded = b.select(finite, b.add(bits, add(bits)), other)
        return b.trunc(b.lshr(rounded, number(16)), half)

    def narrow(b: Any, x: Any) -> Any:
        # to the nearest, a tie to the even one
        odd = lambda bits: b.and_(b.lshr(bits, number(16)), number(1))  # noqa: E731
        return upper(b, x, lambda bits: b.add(number(0x7FFF), odd(bits)))

    def dither(b: Any, x: Any, element: Any, key: Any) -> Any:
        # the same hash as in codecs.py
        high = lambda n: b.trunc(b.lshr(n, ir.Constant(ir.IntType(64), 32)), word)  # noqa: E731
        h = b.xor(b.xor(b.trunc(element, word), high(element)), b.trunc(key, word))
        for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
            h = b.mul(b.xor(h, b.lshr(h, number(shift))), number(factor))
            h = b.xor(h, high(key)) if shift == 16 else h
        return upper(b, x, lambda _: b.lshr(h, number(16)))

    def cut(b: Any, x: Any, low: Any) -> Any:
        # beyond the largest number, where low is inf, nothing is cut off
        zero = ir.Constant(single, 0.0)
        finite = b.fcmp_ordered("oeq", b.fsub(low, low), zero)
        return b.select(finite, b.fsub(x, low), zero)

    bits, real, integer = types.uint16, types.float32, types.int64
    return {
        "widen": _intrinsic(widen, real, bits),
        "narrow": _intrinsic(narrow, bits, real),
        "dither": _intrinsic(dither, bits, real, integer, integer),
        "cut": _intrinsic(cut, real, real, real),
    }


def _before_fork() -> None:
    _lock.acquire(timeout=_PATIENCE)


def _in_parent() -> None:
    with contextlib.suppress(RuntimeError):  # the patience was at its end
        _lock.release()


def _in_child() -> None:
    global _lock
    _lock = threading.RLock()
    modules = {name: m for name, m in [*sys.modules.items()] if name.startswith(("numba", "llvm"))}
    for package, module, path in (
        ("numba", "numba.core.compiler_lock", "global_compiler_lock._lock"),
        ("llvmlite", "llvmlite.binding.ffi", "lib._lock._lock"),
    ):
        lock: Any = modules.get(module)
        for name in path.split("."):
            lock = getattr(lock, name, None)
        half = any(
            getattr(getattr(m, "__spec__", None), "_initializing", False)
            for name, m in modules.items()
            if name.split(".")[0] == package
        )
        if half or (lock is not None and not lock.acquire(blocking=False)):
            _stuck.add(package)
        elif lock is not None:
            lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_in_parent, after_in_child=_in_child)
