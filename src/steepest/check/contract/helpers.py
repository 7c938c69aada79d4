"""Helpers of the examinations. Their source is copied into scripts, so they are few and short."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def drive(optimizer: Any, params: Sequence[Tensor], count: int, start: int = 0) -> None:
    """Take `count` steps.

    The gradients are random, but the same for the same step number and the same position in
    `params`.
    """
    for t in range(start, start + count):
        for k, p in enumerate(params):
            random = torch.Generator().manual_seed(1000 * k + t)
            g = torch.randn(p.shape, generator=random, dtype=torch.float64)
            p.grad = g.to(p)
        optimizer.step()


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """Convert nested dicts and lists to one dict: path -> value.

    A tensor becomes its dtype and its numbers.
    """
    if isinstance(value, torch.Tensor):
        return {path: (value.dtype, value.tolist())}
    if isinstance(value, (list, tuple)):
        value = dict(enumerate(value))
    if not isinstance(value, dict):
        return {path: value}
    return {p: v for k, x in value.items() for p, v in flat(x, f"{path}[{k!r}]").items()}


def differences(one: dict[str, Any], two: dict[str, Any]) -> list[str]:
    """Return one sentence for each difference between two results of `flat`."""
    keys = [k for k in {**one, **two} if one.get(k) != two.get(k)]
    return [f"{k} is {one.get(k)}, expected {two.get(k)}" for k in keys]
