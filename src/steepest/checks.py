"""Checks of numbers, seeds and saved states, for the code around the optimizers."""

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
    """Convert a number of any type, such as a NumPy scalar, to a Python bool, int or float.

    Anything else, such as a tensor or text, is returned unchanged.
    """
    if type(value) in (bool, int, float) or isinstance(value, Tensor):
        return value
    try:
        if getattr(value, "shape", None) == () and callable(getattr(value, "item", None)):
            value = value.item()  # a scalar of numpy or of another array library
        if isinstance(value, Integral):
            return value if isinstance(value, bool) else int(value)
        return float(value) if isinstance(value, (Real, Decimal)) else value
    except (TypeError, ValueError, OverflowError):  # too large, or not a number after all
        return value


def real(value: Any) -> float:
    """Returns a real number, or a tensor of one element, as a float. Anything else gives nan."""
    try:
        if isinstance(value, Tensor):
            scalar = value.numel() == 1 and value.layout is torch.strided
            is_real = scalar and not value.is_complex() and value.dtype is not torch.bool
            return float(value.detach()) if is_real else math.nan
        value = plain(value)
        return float(value) if type(value) in (int, float) else math.nan
    except (RuntimeError, TypeError, ValueError, OverflowError, NotImplementedError):
        return math.nan


def short(value: Any) -> str:
    """Returns the repr of a value for an error message. The digits of a very long int are cut."""
    try:
        text = repr(value)
    except ValueError:  # more digits than Python prints
        return "an int of thousands of digits"
    long = isinstance(value, int) and len(text) > 60
    return f"{text[:20]}... ({len(text)} digits)" if long else text


def several(value: Any, size: int) -> tuple[Any, ...] | None:
    """Returns `value` as a tuple if it is a sequence of `size` members, else None.

    An array or a tensor of one dimension counts as a sequence. Numbers become Python numbers.
    """
    if isinstance(value, (str, bytes, bytearray, Mapping)):
        return None
    if not (hasattr(value, "__len__") and hasattr(value, "__getitem__")):
        return None
    try:
        if len(value) != size:
            return None
        return tuple(map(plain, value.tolist() if isinstance(value, Tensor) else value))
    except (TypeError, RuntimeError):  # an array without dimensions, a class, no memory
        return None


def whole(called: str, name: str, value: Any, least: int) -> int:
    """Returns `value` as an int. Raises ValueError unless it is a whole number >= `least`."""
    integer = plain(value)
    if type(integer) is not int or integer < least:
        raise ValueError(
            f"{called}: {name}={value!r} was given, expected a whole number of {least} or more"
        )
    return integer


def number(called: str, name: str, value: Any, interval: str) -> float:
    """Returns `value` as a float.

    Raises ValueError unless it is a number in `interval`, such as "[0, inf)".
    """
    x = math.nan if isinstance(value, Tensor) else real(value)
    if not inside(interval, x):
        raise ValueError(f"{called}: {name}={value!r} was given, expected a number in {interval}")
    return x


def choice(called: str, name: str, value: Any, known: tuple[str, ...]) -> str:
    """Returns `value`. Raises ValueError unless it is one of `known`."""
    if value not in known:
        raise ValueError(
            f"{called}: {name}={value!r} was given, expected one of {', '.join(known)}"
        )
    return value


def saved(called: str, state: Any, keys: set[str]) -> dict[str, Any]:
    """Returns a copy of a saved state. Raises ValueError unless its keys are exactly `keys`."""
    if not isinstance(state, Mapping) or {*state} != keys:
        given = sorted(map(str, state)) if isinstance(state, Mapping) else type(state).__name__
        raise ValueError(
            f"{called}: a state of {given} was given, expected the keys {sorted(keys)}; load what "
            f"{called}.state_dict() returned"
        )
    return dict(state)


TRAINERS = ("accelerate", "lightning", "lightning_fabric", "pytorch_lightning")


def unwrapped(optimizer: Any) -> Any:
    """Returns the optimizer inside a trainer's wrapper, or `optimizer` itself if it has no wrapper.

    accelerate's wrapper is an Optimizer, but it has no hooks, and its step does not return the
    loss. Lightning's wrapper cannot be copied.
    """
    inner = getattr(optimizer, "optimizer", None)
    packages = {base.__module__.partition(".")[0] for base in type(optimizer).__mro__}
    both = isinstance(optimizer, torch.optim.Optimizer) and isinstance(inner, torch.optim.Optimizer)
    if both and packages & {*TRAINERS}:
        return unwrapped(inner)
    return optimizer


def batch_size(called: str, loader: Any, least: int) -> int:
    """Returns a loader's batch size. Raises ValueError if it has none, or one below `least`."""
    if getattr(loader, "batch_size", None) is None:
        raise ValueError(
            f"{called}: a {type(loader).__name__} without a batch_size was given, expected a "
            "steepest Loader; after accelerate.prepare, pass the Loader itself, not what prepare "
            "returned"
        )
    return whole(called, "the loader's batch_size", loader.batch_size, least)


def slowly(called: str, error: Exception) -> None:
    """Log once that vmap failed and that samples are therefore processed one at a time.

    If vmap failed because memory ran out, raise its error instead.
    """
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "allocat" in str(error):
        raise error
    _warn_once(
        f"{called}: torch.func.vmap does not take this model, loss or data, so the samples of a "
        "batch are processed one at a time, which is slower by a factor of the batch size"
    )


@cache
def _warn_once(text: str) -> None:
    logging.getLogger("steepest").warning(text)


@contextmanager
def unmoved(called: str, model: torch.nn.Module) -> Iterator[None]:
    """Restore each buffer that the model changes in the `with` block, then raise ValueError.

    If a model changes a buffer when it is called, the loss of a sample depends on the samples
    before it, and vmap would leave one of its own tensors as the buffer.
    """
    kept = [
        (module, name, buffer, buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None and buffer.is_floating_point()
    ]
    changed: list[str] = []
    try:
        yield
    finally:
        for module, name, buffer, before in kept:
            same = module._buffers[name] is buffer
            if not (same and torch.equal(buffer.nan_to_num(), before.nan_to_num())):
                changed.append(name)
                with torch.no_grad():
                    buffer.copy_(before)
                module._buffers[name] = buffer
    if changed:
        raise ValueError(
            f"{called}: the model changes its buffer {changed[0]!r} when it is called, so the loss "
            "of a sample depends on other samples; call model.eval() first, or do not update the "
            "buffer in forward()"
        )


@contextmanager
def quietly() -> Iterator[None]:
    """Silence vmap's warning about operations that it cannot batch."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "There is a performance drop")
        yield


def mixed(*numbers: int) -> int:
    """Returns a 64-bit seed made from several integers. (1, 0) and (0, 1) give unrelated seeds."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])
