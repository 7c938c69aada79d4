"""Generated source to machine code, and the cache of it on disk.

numba compiles, llvmlite (which numba stands on) emits and loads the object code. An entry is one
file under a hash of source, versions and CPU: written once by rename, checked by its own hash when
read, and compiled anew when it is damaged. A directory that cannot be written costs nothing but the
time to compile again.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import math
import os
import re
import tempfile
import threading
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm

from ..formulas import words
from ..trace import fits

_loaded: dict[tuple[str, int], Callable[[int], None]] = {}
_engines: list[Any] = []  # machine code lives as long as its engine
_lock = threading.Lock()


def directory() -> Path:
    """Where compiled loops are kept: STEEPEST_CACHE_DIR, else the user's cache directory."""
    if chosen := os.environ.get("STEEPEST_CACHE_DIR"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "steepest"


def load(name: str, source: str, itemsize: int, sums: bool = False) -> Callable[[int], None]:
    """The function in `source` as machine code that takes a job's address; itemsize 4 or 8.

    sums: its sums may be taken in any order, the same one at each call.
    """
    with _lock:
        if (source, itemsize) not in _loaded:
            _loaded[source, itemsize] = _link(*_object(name, source, itemsize, sums))
        return _loaded[source, itemsize]


def load_text(name: str, text: str) -> Callable[[int], None]:
    """The function of that name in LLVM's own text, optimized, compiled in memory."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    module, machine = llvm.parse_assembly(text), _machine()
    passes = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(2))
    passes.getModulePassManager().run(module, passes)
    with _lock:
        return _link(name, machine.emit_object(module))


def _object(name: str, source: str, itemsize: int, sums: bool = False) -> tuple[str, bytes]:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    made_by = f"{version('numba')} {version('llvmlite')} {llvm.get_process_triple()} {_cpu()}"
    by_us = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    key = hashlib.sha256(f"{by_us} {itemsize} {sums} {made_by}\n{source}".encode()).hexdigest()
    file = directory() / f"{name}-{key[:32]}.o"
    with contextlib.suppress(OSError, ValueError):
        symbol, digest, code = file.read_bytes().split(b"\n", 2)
        if hashlib.sha256(code).hexdigest().encode() == digest:
            return symbol.decode(), code
    symbol, code = _compile(name, source, itemsize, sums)
    _keep(file, f"{symbol}\n{hashlib.sha256(code).hexdigest()}\n".encode() + code)
    return symbol, code


def _keep(file: Path, content: bytes) -> None:
    with contextlib.suppress(OSError):
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=file.parent) as folder:
            handle, path = tempfile.mkstemp(dir=folder)
            with os.fdopen(handle, "wb") as out:
                out.write(content)
            os.replace(path, file)


def _compile(name: str, source: str, itemsize: int, sums: bool = False) -> tuple[str, bytes]:
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
    return symbol[1], _machine().emit_object(llvm.parse_assembly(text))


def _cpu() -> tuple[str, str]:
    """Name and features."""
    return llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()


def _machine() -> Any:
    target = llvm.Target.from_triple(llvm.get_process_triple())
    return target.create_target_machine(*_cpu(), opt=3, codemodel="jitdefault", jit=True)


def _link(symbol: str, code: bytes) -> Callable[[int], None]:
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _machine())
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    _engines.append(engine)
    return ctypes.CFUNCTYPE(None, ctypes.c_int64)(engine.get_function_address(symbol))


def _intrinsic(emit: Callable[..., Any], result: Any, *kinds: Any) -> Any:
    """A word of generated source, said in LLVM's own: emit(builder, *arguments)."""
    from numba import extending

    names = ", ".join("abc"[: len(kinds)])
    scope: dict[str, Any] = {
        "found": result(*kinds), "emit": lambda c, builder, s, args: emit(builder, *args)
    }  # fmt: skip
    exec(f"def word(context, {names}): return found, emit", scope)  # numba counts its arguments
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

    return {
        "real": real, "float64": types.float64, "reals": pointer(*elements),
        "take": _intrinsic(take, types.int64, types.CPointer(types.int64)),
        "integers": pointer(types.int64, ir.IntType(64)), "doubles": pointer(*double),
        "singles": pointer(*single), "sqrt": math.sqrt, "sign": sign, "log": math.log,
        "halves": pointer(types.uint16, ir.IntType(16)), **_halves(), "fit": helper(fits[itemsize]),
        "maximum": helper(words.larger), "minimum": helper(words.smaller), "helper": helper,
        **_cells(helper, pointer),
    }  # fmt: skip


def _cells(helper: Any, pointer: Any) -> dict[str, Any]:
    """Numbers of several types at addresses: as in memory.py's list of them."""
    from llvmlite import ir
    from numba import types

    integers, shorts = (
        pointer(types.int64, ir.IntType(64)), pointer(types.int32, ir.IntType(32))
    )  # fmt: skip
    singles, doubles = (
        pointer(types.float32, ir.FloatType()), pointer(types.float64, ir.DoubleType())
    )  # fmt: skip
    real, whole, small = types.float32, types.int64, types.int32

    @helper
    def fetch(address: Any, kind: Any) -> Any:
        if kind == 0:
            return types.float64(singles(address)[0])
        if kind == 1:
            return doubles(address)[0]
        if kind == 2:
            return types.float64(integers(address)[0])
        return types.float64(shorts(address)[0])

    @helper
    def put(address: Any, kind: Any, value: Any) -> Any:
        if kind == 0:
            singles(address)[0] = real(value)
        elif kind == 1:
            doubles(address)[0] = value
        elif kind == 2:
            integers(address)[0] = whole(value)
        else:
            shorts(address)[0] = small(value)

    return {"fetch": fetch, "put": put}


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
        "widen": _intrinsic(widen, real, bits), "narrow": _intrinsic(narrow, bits, real),
        "dither": _intrinsic(dither, bits, real, integer, integer),
        "cut": _intrinsic(cut, real, real, real),
    }  # fmt: skip
