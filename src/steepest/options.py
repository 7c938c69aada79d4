"""What every class takes beside its rule's numbers, and how an option is made plain."""

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
    "beta1": ("betas", 0), "beta2": ("betas", 1), "beta3": ("betas", 2), "etaminus": ("etas", 0),
    "etaplus": ("etas", 1), "step_min": ("step_sizes", 0), "step_max": ("step_sizes", 1),
    "eps1": ("eps", 0), "eps2": ("eps", 1), "ns_a": ("ns_coefficients", 0),
    "ns_b": ("ns_coefficients", 1), "ns_c": ("ns_coefficients", 2), "wd": ("weight_decay", None),
}  # fmt: skip
"""Scalar of a rule -> where it stands in a group. A rule that takes `wd` decays by itself."""
# accepted, so that a program need not change; the backend is chosen by device
WITHOUT_EFFECT = {"foreach": None, "fused": None, "capturable": False, "print_change_log": True}
# for every class: where the bytes are, and what stands around the rule; in a group only if given
STORAGE = {"rounding": None, "seed": 0, "cautious": False, "clip_norm": None}
# what torch's schedulers leave in a group
SCHEDULED = {"initial_lr", "max_lr", "min_lr", "swa_lr", "base_momentum", "max_momentum"}
ROUNDINGS = ("stochastic", "kahan")
WRITTEN = "; write it without quotes, and 1.0e-3 for 1e-3 in YAML"


def asked(group: Group, name: str) -> bool:
    """Whether a group has a decay or a momentum: at 0, too, if its gradient is asked for."""
    value = group.get(name)
    return bool(value) or (bool(group.get("differentiable")) and carries(value))


def one_apart(a: str, b: str) -> bool:
    """Whether words differ by one letter: another, one more or less, or two that changed places."""
    short, long = sorted((a, b), key=len)
    if len(short) < len(long):
        return short in [long[:i] + long[i + 1 :] for i in range(len(long))]
    at = [i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y]
    return len(at) == 1 or (len(at) == 2 and [a[at[0]], a[at[1]]] == [b[at[1]], b[at[0]]])


def taken(called: str, group: dict[str, Any]) -> None:
    """Put the tensors of an iterator that is a group's params into a list in the user's own dict,
    as torch does: else a second optimizer made of that dict would have no parameters.

    Raises ValueError for a generator that was used up; UserWarning for another iterator without
    tensors.
    """
    params = group["params"]
    listed = params if isinstance(params, (list, tuple)) else ()
    if odd := [x for x in listed if isinstance(x, tuple) and len(x) != 2]:
        raise TypeError(f"{called}: params has {odd[0]!r}, expected tensors or (name, tensor) each")
    if not isinstance(params, Iterator):
        return
    used = inspect.isgenerator(params) and inspect.getgeneratorstate(params) == inspect.GEN_CLOSED
    cure = "pass a list, which can be used more than once"
    if used:
        raise ValueError(f"{called}: a group's params is a generator that was used up; {cure}")
    group["params"] = [*params]
    if not group["params"]:
        given = type(params).__name__
        warnings.warn(
            f"{called}: a group's params is a {given} that gave no tensors; if it was used before, "
            f"{cure}",
            stacklevel=outside(),
        )


def option(name: str, value: Any, default: Any) -> Any:
    """An option made plain; TypeError or ValueError that says what was expected."""
    if name == "seed" or name in WITHOUT_EFFECT:
        return plain(value)
    if isinstance(default, bool):
        found = False if value is None else plain(value)  # torch takes None for False
        if type(found) not in (bool, int) or found not in (0, 1):
            raise TypeError("True or False")
        return bool(found)
    if isinstance(default, str) and not isinstance(value, str):
        raise TypeError("a str")
    if isinstance(default, tuple):
        words = f"{'a pair of' if len(default) == 2 else len(default)} numbers"
        words += ", the first of which may be None" * (default[0] is None)
        if (found := several(value, len(default))) is None:
            raise ValueError(words)
        # torch.optim.Adafactor's eps begins with None
        return tuple(
            None if one is None and usual is None else _number(one, words)
            for one, usual in zip(found, default, strict=True)
        )
    if isinstance(default, (int, float)) or (name == "clip_norm" and value is not None):
        return _number(value, "a number")
    return value


def _number(value: Any, words: str) -> Any:
    if isinstance(value, torch.Tensor) and value.numel() != 1:
        raise ValueError(f"{words} or a tensor of one element, not of shape {tuple(value.shape)}")
    if math.isnan(real(value)):
        text = isinstance(value, (str, bytes))  # as YAML reads 1e-3
        raise TypeError(words + WRITTEN * text)
    return plain(value)


def outside() -> int:
    """The stacklevel of a caller's warning: where this package and torch were called from."""
    inside = tuple(str(Path(package).parent) + os.sep for package in (__file__, torch.__file__))
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_code.co_filename.startswith(inside):
        frame, level = frame.f_back, level + 1
    return level
