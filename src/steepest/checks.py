"""Checked numbers, seeds and saved states, for what stands around the optimizers."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from decimal import Decimal
from functools import cache
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .definition import inside


def plain(value: Any) -> Any:
    """A number of any kind, of numpy's too, as Python's own; a tensor and what is none, text among
    it, as it is.
    """
    if type(value) in (bool, int, float) or isinstance(value, Tensor):
        return value
    try:
        if getattr(value, "shape", None) == () and callable(getattr(value, "item", None)):
            value = value.item()  # of numpy, or of another library's arrays
        if isinstance(value, Integral):
            return value if isinstance(value, bool) else int(value)
        return float(value) if isinstance(value, (Real, Decimal)) else value
    except (TypeError, ValueError, OverflowError):  # too large, or no number after all
        return value


def real(value: Any) -> float:
    """A real number, or a tensor of one, as a float; nan for anything else."""
    try:
        if isinstance(value, Tensor):
            whole = value.numel() == 1 and value.layout is torch.strided
            good = whole and not value.is_complex() and value.dtype is not torch.bool
            return float(value.detach()) if good else math.nan
        value = plain(value)
        return float(value) if type(value) in (int, float) else math.nan
    except (RuntimeError, TypeError, ValueError, OverflowError, NotImplementedError):
        return math.nan


def short(value: Any) -> str:
    """What was given, for a message: a number of hundreds of digits by its beginning."""
    try:
        text = repr(value)
    except ValueError:  # of more digits than Python prints
        return "an int of thousands of digits"
    long = isinstance(value, int) and len(text) > 60
    return f"{text[:20]}... ({len(text)} digits)" if long else text


def several(value: Any, size: int) -> tuple[Any, ...] | None:
    """The members of a list, an array or another sequence of that size, numbers made plain; None
    for anything else.
    """
    text = isinstance(value, (str, bytes, bytearray, Mapping))
    if text or not (hasattr(value, "__len__") and hasattr(value, "__getitem__")):
        return None
    try:
        if len(value) != size:
            return None
        return tuple(map(plain, value.tolist() if isinstance(value, Tensor) else value))
    except (TypeError, RuntimeError):  # an array without dimensions, a class, no memory
        return None


def whole(called: str, name: str, value: Any, least: int) -> int:
    """`value` as an int; ValueError if it is no whole number of at least `least`."""
    found = plain(value)
    if type(found) is not int or found < least:
        raise ValueError(
            f"{called}: {name}={value!r} was given, expected a whole number of {least} or more"
        )
    return found


def number(called: str, name: str, value: Any, interval: str) -> float:
    """`value` as a float; ValueError if it is no number in an interval written as "[0, inf)"."""
    found = math.nan if isinstance(value, Tensor) else real(value)
    if not inside(interval, found):
        raise ValueError(f"{called}: {name}={value!r} was given, expected a number in {interval}")
    return found


def choice(called: str, name: str, value: Any, known: tuple[str, ...]) -> str:
    """`value`; ValueError if it is none of `known`."""
    if value not in known:
        raise ValueError(
            f"{called}: {name}={value!r} was given, expected one of {', '.join(known)}"
        )
    return value


def saved(called: str, state: Any, keys: set[str]) -> dict[str, Any]:
    """A copy of a saved state; ValueError if it does not have exactly these keys."""
    if not isinstance(state, Mapping) or {*state} != keys:
        given = sorted(map(str, state)) if isinstance(state, Mapping) else type(state).__name__
        raise ValueError(
            f"{called}: a state of {given} was given, expected one of {sorted(keys)}; load what "
            f"{called}.state_dict() has returned"
        )
    return dict(state)


TRAINERS = ("accelerate", "lightning", "lightning_fabric", "pytorch_lightning")


def unwrapped(optimizer: Any) -> Any:
    """The optimizer that a trainer's wrapper stands for; any other one as it is.

    accelerate's has the class of an optimizer, but neither its hooks nor a step that returns the
    loss; Lightning's cannot be copied.
    """
    inner = getattr(optimizer, "optimizer", None)
    packages = {base.__module__.partition(".")[0] for base in type(optimizer).__mro__}
    both = isinstance(optimizer, torch.optim.Optimizer) and isinstance(inner, torch.optim.Optimizer)
    if both and packages & {*TRAINERS}:
        return unwrapped(inner)
    return optimizer


def batch_size(called: str, loader: Any, least: int) -> int:
    """The batch size of a loader that may be set; ValueError for one that has none."""
    if getattr(loader, "batch_size", None) is None:
        raise ValueError(
            f"{called}: a {type(loader).__name__} without a batch_size was given, expected a "
            "Loader; give the Loader itself, also where accelerate has prepared it"
        )
    return whole(called, "the loader's batch_size", loader.batch_size, least)


def slowly(called: str, error: Exception) -> None:
    """Say once that samples go one after the other; raise the error where that is no cure."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "allocat" in str(error):
        raise error
    _say(f"{called}: torch.func.vmap does not take this model, loss or data, so it goes sample by "
         "sample, as many times slower as a batch has samples")  # fmt: skip


@cache
def _say(text: str) -> None:
    logging.getLogger("steepest").warning(text)


@contextmanager
def unmoved(called: str, model: torch.nn.Module) -> Iterator[None]:
    """Refuse a model that changes a buffer of its own, and put the buffer back.

    Its samples depend on those before them: they have no loss of their own, and vmap would leave
    a tensor of its own in the model.
    """
    kept = [
        (module, name, buffer, buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None and buffer.is_floating_point()
    ]
    moved: list[str] = []
    try:
        yield
    finally:
        for module, name, buffer, before in kept:
            same = module._buffers[name] is buffer
            if not (same and torch.equal(buffer.nan_to_num(), before.nan_to_num())):
                moved.append(name)
                with torch.no_grad():
                    buffer.copy_(before)
                module._buffers[name] = buffer
    if moved:
        raise ValueError(
            f"{called}: a model that changes its buffer {moved[0]!r} as it is called was given, "
            "expected one whose samples do not depend on each other; call eval() on it, or do not "
            "update the buffer meanwhile"
        )


@contextmanager
def quietly() -> Iterator[None]:
    """Without vmap's warning of what it does one after the other."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "There is a performance drop")
        yield


def mixed(*numbers: int) -> int:
    """A seed of 64 bits from several whole numbers: (1, 0) and (0, 1) have nothing in common."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])
