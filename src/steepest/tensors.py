"""Questions about a tensor: its memory, its shard, its autograd history, its description."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

PLAIN = (Tensor, torch.nn.Parameter)
"""The types that torch's C functions can inspect."""


def describe(x: Any) -> str:
    """Returns a short description of a tensor for messages, or the repr of anything else."""
    return (
        f"{x.dtype} of shape {tuple(x.shape)} on {x.device}" if isinstance(x, Tensor) else repr(x)
    )


def number(x: Any) -> float:
    """Returns a total or a carried scalar as a float, without autograd history."""
    return float(x.detach()) if isinstance(x, Tensor) else x


def carries(x: Any) -> bool:
    """Whether a value is a tensor that requires a gradient."""
    return isinstance(x, Tensor) and x.requires_grad


def local(x: Any) -> Any:
    """Returns this process's shard of a DTensor. Any other tensor is returned unchanged."""
    return x.to_local() if hasattr(x, "to_local") else x


def fake(x: Any) -> bool:
    """Whether x is a tensor of FakeTensorMode, which has no values."""
    return hasattr(x, "fake_mode")


def offset(p: Any) -> int:
    """Returns where this process's shard begins in the whole tensor.

    This is the index of the shard's first element in the flattened whole tensor.
    """
    if not hasattr(p, "to_local") or not p.numel():
        return 0
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    _, start = compute_local_shape_and_global_offset(p.shape, p.device_mesh, p.placements)
    return sum(k * math.prod(p.shape[i + 1 :]) for i, k in enumerate(start))


def in_bounds(x: Tensor) -> bool:
    """Whether a tensor's storage is large enough for its elements; True if this is unknown."""
    x = x.to_local() if hasattr(x, "to_local") else x  # type: ignore[attr-defined]
    if type(x) not in PLAIN or x.layout is not torch.strided or not x.numel() or x.is_meta:
        return True
    last = x.storage_offset() + sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True))
    return (last + 1) * x.element_size() <= x.untyped_storage().nbytes()
