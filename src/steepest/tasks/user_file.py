"""A task in a Python file of the user's own, in one of two forms.

`task(seed)` returns the model, loss(model, batch), the training batches and evaluate(model) or
evaluate(model, split), and the race trains. `train(make_optimizer, report, seed)` is a whole loop:
`make_optimizer(params_or_model)` hands out the candidate, a schedule inside; `report(step,
validation=..., test=...)` tells how well it does. Constants of the file say the rest:

MAXIMIZE or MINIMIZE   name of the metric (needed)
STEPS                  optimizer steps of one run (300); `--steps` writes it anew
EVERY                  steps between two evaluations (a twelfth of STEPS); less where `--steps` is
                       less than STEPS, to have 10 evaluations, or all of the file's if it has fewer
TARGET                 validation metric whose first reaching is timed (what three quarters of all
                       fresh runs end at or pass)
WORST                  metric that a diverged run counts as, and every run that ends worse. Without
                       it that of the untrained model, or the first that a pilot run reports, or the
                       worst that a fresh run ended at, where that is worse
TEST_CASES             the metric is a share, 0 to 1, of so many test cases: shown in %

A race knows the file by its sha256, and goes on only with the same one. It reads the file once:
what runs is that source, also where the file is edited meanwhile. Modules that it imports, from
beside it or from where you are, must stay as they are: a race ends where one was changed.

Each run begins with torch, numpy and random seeded anew from the run's seed, and so are the
generators that the file, and the modules that it imports from beside it, have made at the top: each
has a stream of its own, and no run depends on which ones came before it.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import linecache
import math
import os
import random
import sys
import traceback
from collections import deque
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import BuiltinMethodType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, RandomSampler, Sampler, SequentialSampler, Subset

from steepest.errors import BadCall, TaskError
from steepest.tasks import user_modules
from steepest.tasks.randomness import begin
from steepest.tasks.task import Make, Reporter, Samples, Setup, Task

MODULE = "steepest_task"
STEPS = 300
EVALUATIONS = 12

MOST_WORST = 1e100
SEARCHED = 1000
"""Things in a list of the file's, up to which generators are looked for in it."""
LOOKED_AT = 100_000
"""Things in all."""

_generators: dict[int, list[tuple[str, Any]]] = {}
"""id of a file's module, which is kept for ever -> path and generator."""
_loaded: dict[tuple[Path, str], tuple[ModuleType, Task]] = {}
_held: dict[Path, bytes] = {}


def read(path: Path) -> bytes:
    """The source of the file, or what is held of it; BadCall if there is none."""
    try:
        return _held[path.resolve()] if path.resolve() in _held else path.read_bytes()
    except OSError as error:
        raise BadCall(
            f"cannot read the task file '{path}' ({error.strerror}): expected a Python file"
        ) from None


@contextlib.contextmanager
def held(path: Path, source: bytes | None = None) -> Iterator[bytes]:
    """Meanwhile the file is what it is now, or `source`, whatever becomes of it on the disk."""
    key = path.resolve()
    before = _held.get(key)
    _held[key] = read(path) if source is None else source
    try:
        yield _held[key]
    finally:
        if before is None:
            del _held[key]
        else:
            _held[key] = before


def load(path: Path) -> Task:
    """The task in the file `path`; BadCall, with the user's lines, for what it cannot mean."""
    source = read(path)
    digest = hashlib.sha256(source).hexdigest()
    key = path.resolve(), digest
    if key not in _loaded:
        module = _imported(path.resolve(), source)
        _generators[id(module)] = _found(module)
        _loaded[key] = module, _read(module, path, digest)
    return _loaded[key][1]


def module_of(path: Path) -> ModuleType | None:
    """The file as a module, if the last task that was loaded is the one in it."""
    module = sys.modules.get(MODULE)
    return module if module and module.__file__ == str(path.resolve()) else None


def _imported(path: Path, source: bytes) -> ModuleType:
    module = ModuleType(MODULE)
    module.__file__ = str(path)
    before = sys.modules.get(MODULE)
    sys.modules[MODULE] = module
    if str(path.parent) not in sys.path:  # as `python FILE` does
        sys.path.insert(0, str(path.parent))
    try:
        with told(path, "the file itself"):
            code = compile(source, str(path), "exec")
            # lines of an error are those that ran: without a time of change nobody reads them again
            lines = source.decode("utf-8", "replace").splitlines(keepends=True)
            linecache.cache[str(path)] = len(source), None, lines, str(path)
            exec(code, module.__dict__)
    except BaseException:
        del sys.modules[MODULE]
        if before:
            sys.modules[MODULE] = before
        raise
    return module


@contextlib.contextmanager
def told(path: Path, where: str, passes: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Errors of the user's code as TaskError, with the traceback from the user's first line on.

    passes: what is none, such as an arithmetic error of a run that diverges.
    """
    try:
        yield
    except (TaskError, *passes):  # of a part inside this one
        raise
    except (Exception, SystemExit) as error:
        shown = traceback.TracebackException.from_exception(error)
        theirs = [f.filename == str(path.resolve()) for f in shown.stack]
        del shown.stack[: theirs.index(True) if any(theirs) else len(theirs)]
        lines = [f.lineno for f in shown.stack if f.filename == str(path.resolve())]
        if isinstance(error, SyntaxError) and error.filename == str(path.resolve()):
            shown.stack.clear()
            lines = [error.lineno]
        what = f"{type(error).__name__}: {error}".removesuffix(": ")
        if isinstance(error, SystemExit):
            what = f"it calls sys.exit({error.code!r}), which a task may not: return, or raise"
        if isinstance(error, BadCall):  # found by the race: the line says it all
            what, shown = str(error), None
        at = f"line {lines[-1]}, " if lines else ""
        trace = "".join(shown.format()) if shown and lines else ""
        raise TaskError(f"{path.name}, {at}{where}: {' '.join(what.split())}", trace) from None


def _read(module: ModuleType, path: Path, digest: str) -> Task:
    def bad(what: str) -> BadCall:
        return BadCall(f"{path.name}: {what}")

    def constant(name: str, kind: type, least: float = -math.inf) -> Any:
        value = getattr(module, name, None)
        fits = isinstance(value, (kind, int)) and not isinstance(value, bool)
        if value is None or (fits and math.isfinite(value) and value >= least):
            return value
        whole = f"a whole number of {least} or more" if kind is int else "a finite number"
        raise bad(f"{name} = {value!r}: expected {whole}")

    found = [n for n in ("task", "train") if isinstance(getattr(module, n, None), FunctionType)]
    if len(found) != 1:
        given = "both task and train" if found else "neither task nor train"
        raise bad(
            f"it defines {given}: expected one function, task(seed) or "
            f"train(make_optimizer, report, seed)"
        )
    function: FunctionType = getattr(module, found[0])
    wanted = {"task": ("seed",), "train": ("make_optimizer", "report", "seed")}[found[0]]
    try:
        inspect.signature(function).bind(*wanted)
    except TypeError as error:
        raise bad(
            f"{found[0]}{inspect.signature(function)}: expected {found[0]}({', '.join(wanted)}) "
            f"({error})"
        ) from None
    named = [n for n in ("MAXIMIZE", "MINIMIZE") if hasattr(module, n)]
    if len(named) != 1 or not isinstance(getattr(module, named[0]), str):
        given = "; ".join(f"{n} = {getattr(module, n)!r}" for n in named) or "neither is given"
        raise bad(
            f'expected one line MAXIMIZE = "accuracy" or MINIMIZE = "loss", which names the metric '
            f"of the verdict and its direction; {given}"
        )
    steps, cases = constant("STEPS", int, 1) or STEPS, constant("TEST_CASES", int, 1) or 0
    worst = constant("WORST", float)
    if worst is not None and abs(worst) > MOST_WORST:
        raise bad(f"WORST = {worst!r}: expected a number of 1e100 at most, whose square is finite")
    return Task(
        name=path.stem,
        metric=getattr(module, named[0]),
        maximize=named[0] == "MAXIMIZE",
        worst=worst,
        target=constant("TARGET", float),
        steps=steps,
        every=constant("EVERY", int, 1) or max(1, steps // EVALUATIONS),
        test_size=cases,
        proportion=cases > 0,
        build=(lambda seed: _build(module, path, seed)) if found[0] == "task" else None,
        train=(lambda *a: _train(module, path, *a)) if found[0] == "train" else None,
        source_hash=digest,
        file=str(path),
    )


def seed_everything(seed: int, module: ModuleType) -> None:
    """torch, numpy, random and the generators of the file: a run depends on its seed alone.

    Each of the file's has a stream of its own, by the path that it was found at, none of which is
    torch's: what is drawn from two of them is not the same.
    """
    begin(seed)
    for path, generator in generators(module):
        own = int.from_bytes(hashlib.sha256(f"{seed} {path}".encode()).digest()[:4], "big")
        if isinstance(generator, torch.Generator):
            generator.manual_seed(own)
        elif isinstance(generator, np.random.Generator):
            bits: Any = generator.bit_generator
            bits.state = type(bits)(own).state
        else:
            generator.seed(own)


def generators(module: ModuleType) -> list[tuple[str, Any]]:
    """The file's random generators with their paths, as there were when it had been imported.

    What it makes later, such as in a cache that is filled by the first run, is not among them.
    """
    return _generators.get(id(module), [])


def _found(module: ModuleType) -> list[tuple[str, Any]]:
    """The random generators in what a file made at its top, and in its modules from beside it: in
    lists, loaders and objects, the nearest first.
    """
    file = Path(str(module.__file__))
    own = {
        name: sys.modules[name]
        for name, _ in user_modules.under((file.parent, Path.cwd()), str(file))
    }
    known, kinds = {id(g) for g in _everybodys()}, {MODULE, *own}
    left = deque([("", vars(module)), *((f"{name}:", vars(m)) for name, m in own.items())])
    found: list[tuple[str, Any]] = []
    while left and len(known) < LOOKED_AT:
        path, value = left.popleft()
        if id(value) in known:
            continue
        known.add(id(value))
        if isinstance(
            value, (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)
        ):
            found.append((path, value))
        else:
            left += [(f"{path}.{name}", each) for name, each in _inside(value, kinds)]
    return found


def _everybodys() -> Iterable[Any]:
    """The generators that are torch's, numpy's and Python's own: they have the run's seed."""
    mine: list[Any] = [np.random.mtrand._rand, random._inst]  # type: ignore[attr-defined]
    return [torch.default_generator, *torch.cuda.default_generators, *mine]


def _inside(value: Any, kinds: Container[str]) -> list[tuple[object, Any]]:
    """Name and value of what may hold a generator in turn. kinds: modules whose objects may."""
    if isinstance(value, dict):
        return list(value.items()) if len(value) <= SEARCHED else []
    if isinstance(value, (list, tuple, deque)):
        return list(enumerate(value)) if len(value) <= SEARCHED else []
    if isinstance(value, partial):
        return [("func", value.func), ("args", value.args), ("keywords", value.keywords)]
    if isinstance(value, FunctionType):
        cells = []
        for name, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
            with contextlib.suppress(ValueError):  # a cell that is empty yet
                cells.append((name, cell.cell_contents))
        wraps = vars(value).items()
        return [
            *enumerate(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).items(), *cells,
            *wraps,
        ]  # fmt: skip
    if isinstance(value, (MethodType, BuiltinMethodType)):
        return [("self", value.__self__)] if not isinstance(value.__self__, ModuleType) else []
    theirs = type(value).__module__, getattr(value, "__module__", "")
    if isinstance(value, (DataLoader, Dataset, Sampler)) or any(m in kinds for m in theirs):
        slots = [n for k in type(value).__mro__ for n in _slots(k)]
        inside = [(n, getattr(value, n)) for n in slots if hasattr(value, n)]
        return [*getattr(value, "__dict__", {}).items(), *inside]
    return []


def _slots(kind: type) -> tuple[str, ...]:
    named = vars(kind).get("__slots__", ())
    return (named,) if isinstance(named, str) else tuple(n for n in named if n[:2] != "__")


def _train(
    module: ModuleType, path: Path, make: Make, report: Reporter, seed: int, steps: int
) -> None:
    seed_everything(seed, module)
    vars(module)["STEPS"] = steps
    with told(path, "train()", (ArithmeticError,)):
        module.train(make, report, seed)


def _build(module: ModuleType, path: Path, seed: int) -> Setup:
    seed_everything(seed, module)
    with told(path, "task()"):
        made = module.task(seed)
        shape = "expected task(seed) to return (model, loss, batches, evaluate)"
        if not isinstance(made, tuple) or len(made) != 4:
            given = f"{len(made)} things" if isinstance(made, tuple) else f"a {type(made).__name__}"
            raise BadCall(f"it returned {given}; {shape}")
        model, loss, batches, evaluate = made
        if not isinstance(model, nn.Module):
            raise BadCall(f"the model is a {type(model).__name__}, no torch.nn.Module; {shape}")
        if not any(p.requires_grad for p in model.parameters()):
            raise BadCall("the model has no parameter to train; add one or set requires_grad")
        for name, value in (("loss", loss), ("evaluate", evaluate)):
            if not callable(value):
                raise BadCall(f"{name} is a {type(value).__name__}, no function; {shape}")
        if not hasattr(batches, "__iter__"):
            raise BadCall(f"the batches are a {type(batches).__name__}, no iterable; {shape}")
        split = _takes_split(evaluate)

    def loss_of(model: nn.Module, batch: Any) -> torch.Tensor:
        with told(path, "loss()", (ArithmeticError,)):
            value = loss(model, batch)
            if not isinstance(value, torch.Tensor) or value.numel() != 1:
                raise BadCall(f"it returned {described(value)}: expected a tensor of one number")
            if torch.is_grad_enabled() and not value.requires_grad:
                raise BadCall("no gradient flows to the loss it returned: no .item(), no no_grad")
        return value.reshape(())

    def evaluated(model: nn.Module, part: str) -> float:
        with told(path, "evaluate()", (ArithmeticError,)), torch.no_grad():
            return number(evaluate(model, part) if split else evaluate(model))

    return Setup(
        model, _Batches(batches, path), loss_of, evaluated, split, samples=_samples(batches)
    )


def _samples(batches: Any) -> Samples | None:
    """What the batches are made of: a DataLoader that goes through all of its data says so.

    One with another sampler may hold back a part of them, to validate on.
    """
    sampler = getattr(batches, "sampler", None)
    whole = type(sampler) is SequentialSampler or (
        type(sampler) is RandomSampler and not sampler.replacement
    )
    if not isinstance(batches, DataLoader) or batches.batch_size is None or not whole:
        return None
    loader, size = batches, len(batches.sampler)  # type: ignore[arg-type]
    if size != len(loader.dataset) or (loader.drop_last and size < batches.batch_size):  # type: ignore[arg-type]
        return None

    def order() -> list[int]:
        # as a DataLoader does, which draws a seed for its workers first
        torch.empty((), dtype=torch.int64).random_(generator=loader.generator)
        return list(loader.sampler)

    # a list of tensors is no columns
    data = Subset(loader.dataset, range(size))
    return Samples(data, batches.batch_size, loader.collate_fn, loader.drop_last, order)


def _takes_split(evaluate: Any) -> bool:
    signature = inspect.signature(evaluate)
    for arguments in (("model", "split"), ("model",)):
        with contextlib.suppress(TypeError):
            signature.bind(*arguments)
            return len(arguments) == 2
    raise BadCall(f"evaluate{signature}: expected evaluate(model) or evaluate(model, split)")


@dataclass(frozen=True)
class _Batches:
    batches: Iterable[Any]
    path: Path

    def __iter__(self) -> Iterator[Any]:
        with told(self.path, "the training batches"):  # no error of the race passes through here
            yield from self.batches


def described(value: Any) -> str:
    """What a value is, for an error."""
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return f"a {type(value).__name__} of shape {tuple(value.shape)}"
    return (
        repr(value) if isinstance(value, (str, bool, type(None))) else f"a {type(value).__name__}"
    )


def number(value: Any) -> float:
    """A metric as a float; BadCall for what is no single number."""
    if not isinstance(value, (str, bytes, bool)):
        with contextlib.suppress(TypeError, ValueError, RuntimeError):
            return float(value.item() if isinstance(value, np.ndarray) else value)
    raise BadCall(f"the metric is {described(value)}: expected one number")


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """What the task prints, also from C or by logging, is thrown away."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(1), os.dup(2)]
    with open(os.devnull, "w") as nothing:
        for stream in (1, 2):
            os.dup2(nothing.fileno(), stream)
        try:
            with contextlib.redirect_stdout(nothing), contextlib.redirect_stderr(nothing):
                yield
        finally:
            for stream, old in zip((1, 2), kept, strict=True):
                os.dup2(old, stream)
                os.close(old)
