"""Runs a class and its oracle for 100 steps and measures how far their paths deviate."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..classes import classes
from . import CANCELLING, SETTINGS, Maker, Row, Setting, fixing

STEPS = 100
SHAPES = ((16, 15), (60,))
"""The shapes of the parameters in a float64 run.

The gradients of the last four elements of each parameter are zero at some steps.
"""
LARGE = ((100, 100),)
"""The shape of the parameter in a float32 run: enough elements for a quantile of 99.9 %."""
FOREIGN = 1e-9
"""The largest relative deviation allowed between another package's class and our class of its name.

If a setting of our class has a looser bound, the looser bound applies.
"""


# one run


@cache
def gradients(shapes: Sequence[tuple[int, ...]], dtype: torch.dtype) -> list[list[Tensor]]:
    """Returns the gradients of each step. They do not depend on the parameters.

    Their magnitudes span six orders of magnitude. Every third element keeps its sign. In float64,
    the last four elements of each tensor have zero gradients: the first of the four at every step,
    the second in the first ten steps, and the last two alternately.
    """
    random = torch.Generator().manual_seed(20)
    made = []
    for shape in shapes:
        n = math.prod(shape)
        scale = 10 ** (6 * torch.rand(n, generator=random, dtype=torch.float64) - 3)
        g = torch.randn(STEPS, n, generator=random, dtype=torch.float64) * scale
        g[:, ::3] = g[:, ::3].abs()
        if dtype is torch.float64:
            g[:, -4] = 0
            g[:10, -3] = 0
            g[::2, -2] = 0
            g[1::2, -1] = 0
        made.append([row.reshape(shape).to(dtype) for row in g])
    return [list(row) for row in zip(*made, strict=True)]


def starts(shapes: Sequence[tuple[int, ...]], dtype: torch.dtype) -> list[Tensor]:
    """Returns the parameters before the first step."""
    random = torch.Generator().manual_seed(7)
    return [torch.randn(s, generator=random, dtype=torch.float64).to(dtype) for s in shapes]


def scheduled(lr: float, t: int) -> float:
    """Returns the learning rate at step `t`. It oscillates, and drops to a tenth after step 60.

    Even at the first step it differs from `lr`.
    """
    return lr * (1 + 0.5 * math.sin(0.3 * t)) * (0.1 if t > 60 else 1.0)


Path = dict[str, Tensor]
"""Key -> values after each step, of shape (steps, elements); the parameter's key is "p"."""


def steps(
    maker: Maker,
    setting: Setting,
    shapes: Sequence[tuple[int, ...]],
    dtype: torch.dtype,
    rounded: torch.dtype,
    **more: Any,
) -> Iterator[dict[str, Tensor]]:
    """Run an optimizer in `dtype`. Yields key -> values after each step.

    The initial parameters and all gradients are numbers that the dtype `rounded` holds exactly.
    """
    params = [p.to(dtype).requires_grad_() for p in starts(shapes, rounded)]
    with default_dtype(dtype):
        optimizer = maker(params, **setting.hyper, **more)
    group = optimizer.param_groups[0]
    lr = group["lr"]
    for t, grads in enumerate(gradients(shapes, rounded), start=1):
        if setting.scheduled:
            group["lr"] = scheduled(lr, t)
        for p, g in zip(params, grads, strict=True):
            p.grad = g.to(dtype, copy=True)
        with default_dtype(dtype):
            optimizer.step()
        row = {}
        states = [state for p in params for state in optimizer.state[p].items()]
        keys = dict.fromkeys(k for k, v in states if isinstance(v, (Tensor, float, int)))
        for key in ("p", *keys):
            # matrices and vectors may have different keys
            having = [p for p in params if key == "p" or key in optimizer.state[p]]
            values = [p.detach() if key == "p" else optimizer.state[p][key] for p in having]
            flat = [torch.as_tensor(v, dtype=torch.float64).reshape(-1) for v in values]
            row[key] = torch.cat(flat)  # a copy, even of one tensor
        yield row


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Set torch's default dtype in the `with` block.

    NAdam's mu_product and ASGD's eta are kept in the default dtype.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def path_of(maker: Maker, setting: Setting, **more: Any) -> Path:
    """Returns the path of an optimizer in float64."""
    rows = list(steps(maker, setting, SHAPES, torch.float64, torch.float64, **more))
    return {key: torch.stack([row[key] for row in rows]) for key in rows[-1]}


@cache
def oracle(setting: Setting) -> Path:
    """Returns the oracle's path in float64. It is computed once for all backends."""
    return path_of(setting.made_by.oracle, setting)


class End(NamedTuple):
    """The values after the last step, and the largest magnitude of each element during the run."""

    values: dict[str, Tensor]
    peaks: dict[str, Tensor]


def end_of(maker: Maker, setting: Setting, dtype: torch.dtype, **more: Any) -> End:
    """Returns the end of a run in `dtype`.

    The initial parameters and all gradients are numbers that float32 holds exactly.
    """
    peaks: dict[str, Tensor] = {}
    row: dict[str, Tensor] = {}
    for row in steps(maker, setting, LARGE, dtype, torch.float32, **more):
        for key, value in row.items():
            peaks[key] = torch.maximum(peaks.get(key, value.abs()), value.abs())
    return End(row, peaks)


@cache
def oracle_end(setting: Setting, dtype: torch.dtype) -> End:
    """Returns the end of the oracle's run. It is computed once for all backends."""
    return end_of(setting.made_by.oracle, setting, dtype)


def scales(path: Tensor) -> Tensor:
    """Returns the largest magnitude of each element up to each step.

    So a moment that passes through zero keeps its scale.
    """
    return path.abs().cummax(0).values


def deviation(ours: Tensor, theirs: Tensor) -> float:
    """Returns the largest relative deviation at any step. Each difference is divided by the scale
    of its element, and also by the maximum of its tensor; the larger quotient counts.
    """
    difference = (ours - theirs).abs()
    if not difference.any():
        return 0.0
    if not bool(torch.isfinite(difference).all()):
        return math.inf
    tiny = torch.finfo(torch.float64).tiny
    element = difference / scales(theirs).clamp_min(tiny)
    tensor = difference.amax(1) / theirs.abs().amax(1).clamp_min(tiny)
    return float(torch.maximum(element.amax(), tensor.amax()))


# the comparisons of one class


@cache
def settings_of(cls: type) -> tuple[Setting, ...]:
    """Returns the settings that compare our class `cls` with an oracle."""

    def compares(setting: Setting) -> bool:
        with contextlib.suppress(TypeError):  # an option of another class of the rule
            return type(setting.made_by.ours([torch.zeros(1)], **setting.hyper)) is cls
        return False

    return tuple(filter(compares, SETTINGS))


def _bound(name: str) -> float:
    """Returns the loosest bound in the settings of a class's rules."""
    rules = [rule.name for rule in classes[name].family.members]
    return max((s.bound for s in SETTINGS if s.rule in rules and s is not CANCELLING), default=0.0)


def same_name(name: str, options: dict[str, Any], hyper: dict[str, Any]) -> Setting:
    """Returns a setting that compares another package's class with our class of that name.

    options: arguments of our class. hyper: arguments of both classes; they override `options`.
    """
    ours = fixing(classes[name], backend="eager", **options)
    return Setting(name, hyper, row=Row("reference", ours, ours), bound=max(FOREIGN, _bound(name)))


def path_deviation(make: Maker, setting: Setting, **more: Any) -> float:
    """Returns the largest relative deviation between an optimizer's path and the oracle's.

    Both paths have 100 steps. The parameters are compared and, for our own classes, the states that
    both optimizers have.
    """
    row = setting.made_by
    if row.source == "reference":
        ours, theirs = path_of(make, setting), path_of(row.oracle, setting)
        return deviation(ours["p"], theirs["p"])
    ours, theirs = path_of(row.ours, setting, **more), oracle(setting)
    return max(deviation(ours[key], theirs[key]) for key in ours.keys() & theirs.keys())
