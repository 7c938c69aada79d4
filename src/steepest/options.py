"""The options that every class takes in addition to its rule's options; normalises options."""

from __future__ import annotations

import inspect
import math
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from .checks import plain, real, several
from .tensors import carries

Group = Mapping[str, Any]
PAIRS = {
    "beta1": ("betas", 0),
    "beta2": ("betas", 1),
    "beta3": ("betas", 2),
    "etaminus": ("etas", 0),
    "etaplus": ("etas", 1),
    "step_min": ("step_sizes", 0),
    "step_max": ("step_sizes", 1),
    "eps1": ("eps", 0),
    "eps2": ("eps", 1),
    "ns_a": ("ns_coefficients", 0),
    "ns_b": ("ns_coefficients", 1),
    "ns_c": ("ns_coefficients", 2),
    "wd": ("weight_decay", None),
}
"""Scalar of a rule -> its (key, index) in a group; an index of None means the entry itself.

A rule that takes `wd` applies weight decay itself.
"""
# accepted so that existing calls keep working; the device chooses the backend
WITHOUT_EFFECT = {"foreach": None, "fused": None, "capturable": False, "print_change_log": True}
# options of every class, for storage and for the modifiers; a group has them only if given
STORAGE = {"rounding": None, "seed": 0, "cautious": False, "clip_norm": None}
# the entries that torch's schedulers add to a group
SCHEDULED = {"initial_lr", "max_lr", "min_lr", "swa_lr", "base_momentum", "max_momentum"}
ROUNDINGS = ("stochastic", "kahan")


def is_used(group: Group, name: str) -> bool:
    """Whether the option `name` has an effect: it is not 0, or autograd needs its gradient."""
    value = group.get(name)
    return bool(value) or (bool(group.get("differentiable")) and carries(value))


def one_letter_apart(a: str, b: str) -> bool:
    """Whether two words differ by one letter that is replaced, added or left out, or by two letters
    that are swapped.
    """
    short, long = sorted((a, b), key=len)
    if len(short) < len(long):
        return short in [long[:i] + long[i + 1 :] for i in range(len(long))]
    at = [i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y]
    return len(at) == 1 or (len(at) == 2 and [a[at[0]], a[at[1]]] == [b[at[1]], b[at[0]]])


def list_params(called: str, group: dict[str, Any]) -> None:
    """Replace an iterator in group["params"] by a list. Like torch, this changes the user's own
    dict: otherwise a second optimizer that is made from this dict would have no parameters.

    Raises ValueError for a generator that was used up, and warns about any other iterator that
    gives no tensors.
    """
    params = group["params"]
    listed = params if isinstance(params, (list, tuple)) else ()
    if odd := [x for x in listed if isinstance(x, tuple) and len(x) != 2]:
        raise TypeError(
            f"{called}: params has {odd[0]!r}, expected tensors or (name, tensor) pairs"
        )
    if not isinstance(params, Iterator):
        return
    used = inspect.isgenerator(params) and inspect.getgeneratorstate(params) == inspect.GEN_CLOSED
    cure = "pass a list, which can be used more than once"
    if used:
        raise ValueError(f"{called}: a group's params is a generator that was used up; {cure}")
    group["params"] = [*params]
    if not group["params"]:
        iterator = type(params).__name__
        warnings.warn(
            f"{called}: a group's params is a {iterator} that gave no tensors; if it was used "
            f"before, {cure}",
            stacklevel=outside(),
        )


def option(name: str, value: Any, default: Any) -> Any:
    """Returns the value of an option, made of Python numbers, tuples and bools.

    Raises TypeError or ValueError for a bad value. The message says only what was expected.
    """
    if name == "seed" or name in WITHOUT_EFFECT:
        return plain(value)
    if isinstance(default, bool):
        flag = False if value is None else plain(value)  # torch takes None for False
        if type(flag) not in (bool, int) or flag not in (0, 1):
            raise TypeError("True or False")
        return bool(flag)
    if isinstance(default, str) and not isinstance(value, str):
        raise TypeError("a str")
    if isinstance(default, tuple):
        expected = "a pair of numbers" if len(default) == 2 else f"{len(default)} numbers"
        if default[0] is None:  # torch.optim.Adafactor's eps begins with None
            expected += ", the first of which may be None"
        if (members := several(value, len(default))) is None:
            raise ValueError(expected)
        return tuple(
            None if member is None and usual is None else _number(member, expected)
            for member, usual in zip(members, default, strict=True)
        )
    if isinstance(default, (int, float)) or (name == "clip_norm" and value is not None):
        return _number(value, "a number")
    return value


def _number(value: Any, expected: str) -> Any:
    if isinstance(value, torch.Tensor) and value.numel() != 1:
        shape = tuple(value.shape)
        raise ValueError(f"{expected} or a tensor of one element, not of shape {shape}")
    if math.isnan(real(value)):
        raise TypeError(expected + yaml_hint(value))
    return plain(value)


def yaml_hint(value: Any) -> str:
    """Returns the end of an error message, a hint if text was given instead of a number.

    A likely reason is YAML, which reads 1e-3 as text.
    """
    if isinstance(value, (str, bytes)):
        return "; write the number without quotes, and in YAML 1.0e-3 instead of 1e-3"
    return ""


def outside() -> int:
    """Returns the stacklevel with which a warning points outside this package and torch."""
    inside = tuple(str(Path(package).parent) + os.sep for package in (__file__, torch.__file__))
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_code.co_filename.startswith(inside):
        frame, level = frame.f_back, level + 1
    return level
