"""The compiler turns generated source into machine code.

numba compiles the source. llvmlite, on which numba is built, emits and loads the object code.
`disk_cache` stores the object code under a hash of everything that can change this code. numba and
llvmlite are imported at the first step.

When the process forks, the fork waits until no thread loads a loop. So in the child all modules are
complete and all locks are free. The fork cannot wait for a thread of the user's that is inside
numba or llvmlite. If there is such a thread, the child refuses to load loops.
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
from . import disk_cache

_loaded: dict[tuple[str, int], Callable[[int], None]] = {}
_engines: list[Any] = []  # machine code lives as long as its engine
_lock = threading.RLock()  # reentrant: a signal handler may fork while its thread compiles
_TIMEOUT = 60  # seconds that a fork waits at most; a loop compiles in about one
_stuck: set[str] = set()  # packages that a thread of the parent was using at the fork
_HELPERS = {"maximum": ops.larger, "minimum": ops.smaller}
"""Name -> function that generated source may call, besides `fits` and the functions below."""


def _hash_sources() -> str:
    """Return a hash of the source files whose code is compiled into loops."""
    modules = {__name__, *(f.__module__ for f in (*_HELPERS.values(), *fits.values()))}
    files = [(sys.modules[m].__spec__.loader, sys.modules[m].__file__) for m in sorted(modules)]  # type: ignore[union-attr]
    return hashlib.sha256(b"".join(loader.get_data(file) for loader, file in files)).hexdigest()  # type: ignore[union-attr]


_SOURCES = _hash_sources()  # now: the files may be replaced while this process runs


def load(name: str, source: str, itemsize: int, sums: bool = False) -> Callable[[int], None]:
    """Return the function in `source` as machine code. Its argument is the address of a job.

    itemsize: 4 to compute in float32, 8 to compute in float64.
    sums: whether the compiler may change the order in which numbers are added. The compiled order
        is the same at each call.
    """
    if (source, itemsize) not in _loaded:
        with _lock:
            if (source, itemsize) not in _loaded:
                _refuse("llvmlite", name)
                _loaded[source, itemsize] = _link(*_load_object(name, source, itemsize, sums))
    return _loaded[source, itemsize]


class Stuck(RuntimeError):  # noqa: N818  a state, not an error
    """Raised if a loop cannot be loaded in a forked child."""


def _refuse(package: str, name: str) -> None:
    if package in _stuck:
        raise Stuck(
            f"{name}: this process cannot load the compiled loop, because a thread of its parent "
            f"was inside {package} at the fork, so its locks stay held here; make a first step "
            "before the fork, start the process by spawn, or pass backend='foreach'"
        )


def _llvm() -> Any:
    import llvmlite.binding

    return llvmlite.binding


def load_integers(name: str, source: str) -> Callable[[int], None]:
    """Return the last function in `source` as machine code.

    source: functions in the language of `integers.py`.
    """
    with _lock:
        _refuse("llvmlite", name)
        from .integers import to_llvm  # imports llvmlite: under the lock, which a fork waits for

        text = to_llvm(source)
        return _link(*_look_up(name, text, [], lambda: _emit(name, text)))


def _emit(name: str, text: str) -> tuple[str, bytes]:
    llvm = _llvm()
    module, machine = llvm.parse_assembly(text), _machine()
    passes = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(2))
    passes.getModulePassManager().run(module, passes)
    return name, machine.emit_object(module)


def _load_object(name: str, source: str, itemsize: int, sums: bool = False) -> tuple[str, bytes]:
    return _look_up(name, source, [itemsize, sums], lambda: _compile(name, source, itemsize, sums))


def _look_up(
    name: str, source: str, options: list[Any], make: Callable[[], tuple[str, bytes]]
) -> tuple[str, bytes]:
    """Return the symbol and the object code of `source`.

    They are read from the disk cache. If the cache lacks them, `make` makes them, and they are
    written to the cache.
    """
    llvm = _llvm()
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    tools = [_SOURCES, sys.version, version("numba"), version("llvmlite"), llvm.llvm_version_info]
    target = [llvm.get_process_triple(), *_cpu(), *options]
    settings = sorted(item for item in os.environ.items() if item[0].startswith("NUMBA_"))
    text = repr([*tools, *target, settings, source])
    key = hashlib.sha256(text.encode(errors="backslashreplace")).hexdigest()
    if (entry := disk_cache.read(name, key)) is not None:
        return entry
    entry = make()
    disk_cache.write(name, key, *entry)
    return entry


def _compile(name: str, source: str, itemsize: int, sums: bool = False) -> tuple[str, bytes]:
    _refuse("numba", name)
    import numba

    names = _make_namespace(itemsize)
    exec(compile(source, f"<loop of {name}>", "exec"), names)
    # 'contract' (a*b+c with one rounding) gives an element the same bits wherever a range is cut
    flags = {"contract", "reassoc"} if sums else {"contract"}
    compiler = numba.cfunc(numba.void(numba.int64), error_model="numpy", fastmath=flags)
    text = compiler(names[name]).inspect_llvm()
    symbol = re.search(r"^define .*@(cfunc\.[^(]+)\(", text, re.MULTILINE)
    # object code is loaded without numba, so it may call only the C library
    foreign = re.findall(r"^declare .*@((?:numba|NRT|Py)_?\w*)\(", text, re.MULTILINE)
    if symbol is None or foreign:
        raise RuntimeError(
            f"{name}: the compiled loop refers to {foreign or 'no entry'}, expected only the C "
            "library; please report it"
        )
    return symbol[1], _machine().emit_object(_llvm().parse_assembly(text))


def _cpu() -> tuple[str, str]:
    """Return the name and the features of this processor."""
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


def _make_intrinsic(emit: Callable[..., Any], result: Any, *types: Any) -> Any:
    """Make a function that generated source can call.

    emit: `emit(builder, *arguments)` writes the LLVM code of the function.
    """
    from numba import extending

    names = ", ".join("abc"[: len(types)])
    code = lambda context, builder, signature, args: emit(builder, *args)  # noqa: E731
    scope: dict[str, Any] = {"signature": result(*types), "code": code}
    # numba counts the arguments
    exec(f"def function(context, {names}): return signature, code", scope)
    return extending.intrinsic(scope["function"])


def _make_namespace(itemsize: int) -> dict[str, Any]:
    """Return the functions and types that generated source uses, in the form that numba needs."""
    from llvmlite import ir
    from numba import njit, types

    single, double = (types.float32, ir.FloatType()), (types.float64, ir.DoubleType())
    elements = {4: single, 8: double}[itemsize]
    real = elements[0]

    def pointer(element: Any, stored: Any) -> Any:
        to = stored.as_pointer()
        return _make_intrinsic(lambda b, x: b.inttoptr(x, to), types.CPointer(element), types.int64)

    def take(b: Any, counter: Any) -> Any:
        return b.atomic_rmw("add", counter, ir.Constant(ir.IntType(64), 1), "monotonic")

    # always inlined: a call would leave a branch to numba's error handling in the object code
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
    functions |= {name: helper(function) for name, function in _HELPERS.items()}
    numbers = {"real": real, "float64": types.float64}
    counter = {"take": _make_intrinsic(take, types.int64, types.CPointer(types.int64))}
    return {**pointers, **functions, **numbers, **counter, **_half_functions(), **_cell_functions()}


def _cell_functions() -> dict[str, Any]:
    """Return functions that read the number at an address as a double, or write a double there.

    The number at the address has one of the types of `Cells` in cells.py. The functions are written
    in LLVM code, because numba's type inference takes as long for one branch as for the rest of the
    loop.
    """
    from llvmlite import ir
    from numba import types
    from numba.core import cgutils

    double, single = ir.DoubleType(), ir.FloatType()
    stored = [single, double, ir.IntType(64), ir.IntType(32)]

    def cases(b: Any, address: Any, code: Any) -> Any:
        for k, cell in enumerate(stored):
            with b.if_then(b.icmp_signed("==", code, ir.Constant(ir.IntType(64), k))):
                yield cell, b.inttoptr(address, cell.as_pointer())

    def fetch(b: Any, address: Any, code: Any) -> Any:
        result = cgutils.alloca_once(b, double)
        for cell, at in cases(b, address, code):
            x = b.load(at)
            if cell is not double:
                x = b.fpext(x, double) if cell is single else b.sitofp(x, double)
            b.store(x, result)
        return b.load(result)

    def put(b: Any, address: Any, code: Any, x: Any) -> Any:
        for cell, at in cases(b, address, code):
            y = x
            if cell is not double:
                y = b.fptrunc(x, cell) if cell is single else b.fptosi(x, cell)
            b.store(y, at)
        return x

    return {
        "fetch": _make_intrinsic(fetch, types.float64, types.int64, types.int64),
        "put": _make_intrinsic(put, types.float64, types.int64, types.int64, types.float64),
    }


def _half_functions() -> dict[str, Any]:
    """Return the functions with which generated source reads and writes bfloat16.

    A bfloat16 is the upper half of a float32's bits, stored as uint16. The functions are written in
    LLVM code, because numba computes integers in 64 bits. With 64 bits, one instruction computes
    only half as many elements.
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
        # set the quiet bit of a nan: without its lower half it could be inf
        other = b.select(b.fcmp_unordered("uno", x, x), b.or_(bits, number(0x400000)), bits)
        rounded = b.select(finite, b.add(bits, add(bits)), other)
        return b.trunc(b.lshr(rounded, number(16)), half)

    def narrow(b: Any, x: Any) -> Any:
        # to the nearest, ties to even
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
        # 0 where the value overflows and low is inf
        zero = ir.Constant(single, 0.0)
        finite = b.fcmp_ordered("oeq", b.fsub(low, low), zero)
        return b.select(finite, b.fsub(x, low), zero)

    bits, real, integer = types.uint16, types.float32, types.int64
    return {
        "widen": _make_intrinsic(widen, real, bits),
        "narrow": _make_intrinsic(narrow, bits, real),
        "dither": _make_intrinsic(dither, bits, real, integer, integer),
        "cut": _make_intrinsic(cut, real, real, real),
    }


def _before_fork() -> None:
    _lock.acquire(timeout=_TIMEOUT)


def _in_parent() -> None:
    with contextlib.suppress(RuntimeError):  # the fork gave up waiting
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
        partly_imported = any(
            getattr(getattr(m, "__spec__", None), "_initializing", False)
            for name, m in modules.items()
            if name.split(".")[0] == package
        )
        if partly_imported or (lock is not None and not lock.acquire(blocking=False)):
            _stuck.add(package)
        elif lock is not None:
            lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_in_parent, after_in_child=_in_child)
