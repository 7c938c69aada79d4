"""A task in a Python file of your own.

The file defines one of two functions:

task(seed)
    Returns (model, loss, batches, evaluate), and the race trains the model.
    model: a torch.nn.Module. loss(model, batch): the training loss, a tensor of one number.
    batches: the training batches, such as a DataLoader. Each epoch iterates over them again.
    evaluate(model) or evaluate(model, split): the metric, one number; split is "validation" or
    "test". Without `split` there is no test data, and the verdict is about validation data.

train(make_optimizer, report, seed)
    Runs the whole training. make_optimizer(params_or_model) returns the optimizer to use. If the
    entry has a schedule, the optimizer also steps that schedule. Call
    report(step, validation=..., test=...) with the metric after `step` optimizer steps; test may be
    left out.

Either function may have one more parameter, `device`, a torch.device. Put the model and the batches
on this device. It is the device that --device names. Without --device, it is the parameter's
default, or the CPU if there is no default. With --device, the race refuses a file whose function
has no such parameter.

These constants at the top of the file describe the task. Only the first is required:

MAXIMIZE or MINIMIZE   The name of the metric, such as MAXIMIZE = "accuracy".
STEPS                  Optimizer steps of a run. Default 300. --steps replaces it.
EVERY                  Steps between two evaluations of a task(seed) file. Default STEPS / 12.
                       If --steps is less than STEPS, the evaluations are closer together. A run
                       then still has about 10 evaluations, or fewer if EVERY asks for fewer.
TARGET                 A validation metric. The race measures the time until a run first reaches it.
                       Default: the value that three quarters of the fresh runs reach or pass at
                       their end. Fresh runs are the runs on new seeds, after tuning. Diverged runs
                       do not count.
WORST                  A run that diverges, or ends worse than this metric, counts as this metric.
                       Default: the metric of the untrained model; with train(...), the first report
                       of a pilot run. If a fresh run ends even worse, the default is the metric of
                       the worst fresh run.
TEST_CASES             The number of test cases, if the metric is a share of these cases, from 0 to
                       1. The share is then shown in %, with its binomial standard error.

Edits: the race reads the file once and runs that source, even if the file is edited meanwhile.
--resume needs the same source, and compares its sha256. Modules that the file imports from its own
folder or from the current folder must not change during a race. If one of them changes, the race
stops.

Seeds: before each run, torch, numpy and random are seeded with the run's seed. The race also seeds
the random generators that exist right after the import of the file and of the modules beside it.
Each of these generators gets its own seed. No run depends on the runs before it.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import linecache
import math
import os
import sys
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, RandomSampler, SequentialSampler, Subset

from steepest.errors import BadCall, TaskError
from steepest.tasks import devices
from steepest.tasks.seeding import remember_generators, seed_everything
from steepest.tasks.task import Make, Reporter, Samples, Setup, Task

MODULE = "steepest_task"
"""The user's file is imported as a module of this name."""
STEPS = 300
"""The value of STEPS if the file does not define it."""
EVALUATIONS = 12
"""How many evaluations a run has, if the file does not define EVERY."""
MOST_WORST = 1e100
"""The largest absolute value of WORST. Its square is still finite."""
ARGUMENTS = {"task": ("seed",), "train": ("make_optimizer", "report", "seed")}
RETURNS = "expected task(seed) to return (model, loss, batches, evaluate)"

_loaded: dict[tuple[Path, str], tuple[ModuleType, Task]] = {}
_held: dict[Path, bytes] = {}


def read(path: Path) -> bytes:
    """Return the source that `held` keeps for the file, or else the source on disk.

    Raises BadCall if the file cannot be read.
    """
    try:
        return _held[path.resolve()] if path.resolve() in _held else path.read_bytes()
    except OSError as error:
        raise BadCall(
            f"cannot read the task file '{path}' ({error.strerror}): expected a Python file"
        ) from None


@contextlib.contextmanager
def held(path: Path, source: bytes | None = None) -> Iterator[bytes]:
    """Make `load` use one source for the file until the block ends, even if the file is edited.

    source: the source to use. If it is None, the file's present source is used. Yields the source.
    """
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
    """Return the task that the file `path` defines. Raises BadCall if it defines none."""
    source = read(path)
    digest = hashlib.sha256(source).hexdigest()
    key = path.resolve(), digest
    if key not in _loaded:
        module = _import(path.resolve(), source)
        remember_generators(module)
        _loaded[key] = module, _read_task(module, path, digest)
    return _loaded[key][1]


def module_of(path: Path) -> ModuleType | None:
    """The file as a module, if it is the task file that was loaded last."""
    module = sys.modules.get(MODULE)
    return module if module and module.__file__ == str(path.resolve()) else None


def _import(path: Path, source: bytes) -> ModuleType:
    module = ModuleType(MODULE)
    module.__file__ = str(path)
    before = sys.modules.get(MODULE)
    sys.modules[MODULE] = module
    if str(path.parent) not in sys.path:  # as `python FILE` does
        sys.path.insert(0, str(path.parent))
    try:
        with told(path, "the file itself"):
            code = compile(source, str(path), "exec")
            # linecache keeps an entry without a time, so a traceback shows the lines that ran
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
    """Turn errors of the user's code into TaskError. The traceback begins in the user's file.

    where: names the part of the file in the message. passes: classes of errors that are not turned
    into TaskError, such as ArithmeticError, which means that the run has diverged.
    """
    try:
        yield
    except (TaskError, *passes):  # a TaskError comes from an inner `told`
        raise
    except (Exception, SystemExit) as error:
        shown = traceback.TracebackException.from_exception(error)
        in_file = [f.filename == str(path.resolve()) for f in shown.stack]
        del shown.stack[: in_file.index(True) if any(in_file) else len(in_file)]
        lines = [f.lineno for f in shown.stack if f.filename == str(path.resolve())]
        if isinstance(error, SyntaxError) and error.filename == str(path.resolve()):
            shown.stack.clear()
            lines = [error.lineno]
        what = f"{type(error).__name__}: {error}".removesuffix(": ")
        if isinstance(error, SystemExit):
            what = f"it calls sys.exit({error.code!r}): expected a task that returns or raises"
        if isinstance(error, BadCall):  # a check of the race failed: a traceback adds nothing
            what, shown = str(error), None
        at = f"line {lines[-1]}, " if lines else ""
        trace = "".join(shown.format()) if shown and lines else ""
        raise TaskError(f"{path.name}, {at}{where}: {' '.join(what.split())}", trace) from None


def _read_task(module: ModuleType, path: Path, digest: str) -> Task:
    """Return the task that an imported file defines. digest: sha256 of the file's source."""

    def bad(problem: str) -> BadCall:
        return BadCall(f"{path.name}: {problem}")

    def whole_number(name: str) -> int | None:
        value = getattr(module, name, None)
        is_whole = isinstance(value, int) and not isinstance(value, bool)
        if value is None or (is_whole and value >= 1):
            return value
        raise bad(f"{name} = {value!r}: expected a whole number of 1 or more")

    def finite(name: str) -> float | None:
        value = getattr(module, name, None)
        is_number = isinstance(value, (float, int)) and not isinstance(value, bool)
        if value is None or (is_number and math.isfinite(value)):
            return value
        raise bad(f"{name} = {value!r}: expected a finite number")

    defined = [n for n in ARGUMENTS if isinstance(getattr(module, n, None), FunctionType)]
    if len(defined) != 1:
        given = "both task and train" if defined else "neither task nor train"
        raise bad(
            f"it defines {given}: expected one function, task(seed) or "
            f"train(make_optimizer, report, seed)"
        )
    (form,) = defined
    signature = inspect.signature(getattr(module, form))
    takes_device = "device" in signature.parameters
    try:
        signature.bind(*ARGUMENTS[form], **({"device": None} if takes_device else {}))
    except TypeError as error:
        expected = ", ".join(ARGUMENTS[form])
        raise bad(f"{form}{signature}: expected {form}({expected}) ({error})") from None
    directions = [n for n in ("MAXIMIZE", "MINIMIZE") if hasattr(module, n)]
    if len(directions) != 1 or not isinstance(getattr(module, directions[0]), str):
        given = "; ".join(f"{n} = {getattr(module, n)!r}" for n in directions)
        raise bad(
            f"{given or 'it defines neither MAXIMIZE nor MINIMIZE'}: expected one of the two, with "
            f'the name of the metric, such as MAXIMIZE = "accuracy" or MINIMIZE = "loss"'
        )
    steps, cases = whole_number("STEPS") or STEPS, whole_number("TEST_CASES") or 0
    worst = finite("WORST")
    if worst is not None and abs(worst) > MOST_WORST:
        raise bad(f"WORST = {worst!r}: expected a number between -1e100 and 1e100")
    whole: Any = partial({"task": _build, "train": _train}[form], module, path)
    run = whole if takes_device else lambda *a: whole(*a)  # `devices.on` asks for the parameter
    return Task(
        name=path.stem,
        metric=getattr(module, directions[0]),
        maximize=directions[0] == "MAXIMIZE",
        worst=worst,
        target=finite("TARGET"),
        steps=steps,
        every=whole_number("EVERY") or max(1, steps // EVALUATIONS),
        test_size=cases,
        proportion=cases > 0,
        build=run if form == "task" else None,
        train=run if form == "train" else None,
        source_hash=digest,
        file=str(path),
    )


def _train(
    module: ModuleType,
    path: Path,
    make: Make,
    report: Reporter,
    seed: int,
    steps: int,
    device: torch.device | None = None,
) -> None:
    seed_everything(seed, module)
    vars(module)["STEPS"] = steps
    with told(path, "train()", (ArithmeticError,)):
        module.train(make, report, seed, **devices.given(module.train, device))


def _build(module: ModuleType, path: Path, seed: int, device: torch.device | None = None) -> Setup:
    seed_everything(seed, module)
    with told(path, "task()"):
        returned = module.task(seed, **devices.given(module.task, device))
        if not isinstance(returned, tuple) or len(returned) != 4:
            is_tuple = isinstance(returned, tuple)
            given = f"{len(returned)} things" if is_tuple else f"a {type(returned).__name__}"
            raise BadCall(f"it returned {given}: {RETURNS}")
        model, loss, batches, evaluate = returned
        if not isinstance(model, nn.Module):
            raise BadCall(
                f"the model is a {type(model).__name__}, not a torch.nn.Module: {RETURNS}"
            )
        if not any(p.requires_grad for p in model.parameters()):
            raise BadCall(
                "the model has no parameter to train: add one, or set requires_grad to True"
            )
        for name, value in (("loss", loss), ("evaluate", evaluate)):
            if not callable(value):
                raise BadCall(f"{name} is a {type(value).__name__}, not a function: {RETURNS}")
        if not hasattr(batches, "__iter__"):
            raise BadCall(f"batches is a {type(batches).__name__}, not an iterable: {RETURNS}")
        split = _takes_split(evaluate)

    def loss_of(model: nn.Module, batch: Any) -> torch.Tensor:
        with told(path, "loss()", (ArithmeticError,)):
            value = loss(model, batch)
            if not isinstance(value, torch.Tensor) or value.numel() != 1:
                raise BadCall(f"it returned {described(value)}: expected a tensor of one number")
            if torch.is_grad_enabled() and not value.requires_grad:
                raise BadCall(
                    "the loss that it returned has no gradient: expected a loss computed from the "
                    "model without .item(), .detach() or no_grad"
                )
        return value.reshape(())

    def metric_of(model: nn.Module, name: str) -> float:
        with told(path, "evaluate()", (ArithmeticError,)), torch.no_grad():
            return number(evaluate(model, name) if split else evaluate(model))

    return Setup(
        model, _Batches(batches, path), loss_of, metric_of, split, samples=_samples_of(batches)
    )


def _samples_of(batches: Any) -> Samples | None:
    """Return the samples in `batches`, if it is a DataLoader that visits all its data; else None.

    A DataLoader with a sampler that may skip samples also gives None, because the skipped samples
    may be for validation.
    """
    sampler = getattr(batches, "sampler", None)
    visits_all = type(sampler) is SequentialSampler or (
        type(sampler) is RandomSampler and not sampler.replacement
    )
    if not isinstance(batches, DataLoader) or batches.batch_size is None or not visits_all:
        return None
    loader, size = batches, len(batches.sampler)  # type: ignore[arg-type]
    if size != len(loader.dataset) or (loader.drop_last and size < batches.batch_size):  # type: ignore[arg-type]
        return None

    def order() -> list[int]:
        # a DataLoader first draws a seed for its workers: draw one too, to get the same order
        torch.empty((), dtype=torch.int64).random_(generator=loader.generator)
        return list(loader.sampler)

    # a Subset, because a dataset that is a list of tensors would be taken for a list of columns
    data = Subset(loader.dataset, range(size))
    return Samples(data, batches.batch_size, loader.collate_fn, loader.drop_last, order)


def _takes_split(evaluate: Any) -> bool:
    """True for evaluate(model, split), False for evaluate(model). Raises BadCall for others."""
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
        with told(self.path, "the training batches"):  # any error here is from the user's code
            yield from self.batches


def described(value: Any) -> str:
    """A short description of a value, for an error."""
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return f"a {type(value).__name__} of shape {tuple(value.shape)}"
    if isinstance(value, (str, bool, type(None))):
        return repr(value)
    return f"a {type(value).__name__}"


def number(value: Any) -> float:
    """Return a metric as a float. Raises BadCall unless it is a single number."""
    if not isinstance(value, (str, bytes, bool)):
        with contextlib.suppress(TypeError, ValueError, RuntimeError):
            return float(value.item() if isinstance(value, np.ndarray) else value)
    raise BadCall(f"the metric is {described(value)}: expected one number")


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Discard all output of the task, including the output of C code and of logging."""
    sys.stdout.flush()
    sys.stderr.flush()
    saved = [os.dup(1), os.dup(2)]
    with open(os.devnull, "w") as nothing:
        for stream in (1, 2):
            os.dup2(nothing.fileno(), stream)
        try:
            with contextlib.redirect_stdout(nothing), contextlib.redirect_stderr(nothing):
                yield
        finally:
            for stream, old in zip((1, 2), saved, strict=True):
                os.dup2(old, stream)
                os.close(old)
