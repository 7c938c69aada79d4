"""Where the bytes are: how a parameter is loaded for a rule, and how its new value is stored.

A rule computes on float32 or float64; a parameter of 16 bits is loaded into float32 and rounded
when it is stored. To the nearest, a step smaller than half the distance of two bfloat16 numbers is
lost: lr 1e-4 never moves a parameter of 1.0. Two codecs keep such steps: stochastic rounding, which
is right on average, and a compensation, a second number that holds what the rounding cut off.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

Tensors = Sequence[Tensor]
HALVES = (torch.float16, torch.bfloat16)


def view(x: Tensor) -> Tensor:
    """Complex numbers as pairs of real ones, in place."""
    return torch.view_as_real(x) if x.is_complex() else x


def load(x: Tensor, kind: torch.dtype) -> Tensor:
    """As the rule sees it: complex numbers as pairs in place, another dtype as a copy."""
    return view(x.resolve_conj()).to(kind)


def store(tensors: Tensors, new: Tensors, kind: torch.dtype) -> None:
    """Write what was computed on copies back, rounded to the nearest."""
    if any(x.dtype not in (kind, kind.to_complex()) for x in tensors):
        torch._foreach_copy_(list(map(view, tensors)), list(new))


def numbers(p: Tensor, first: int, rows: tuple[Tensor, ...] = ()) -> Tensor:
    """The numbers of a parameter's elements, or of those in the rows that the indices name.

    first, for the first element in its memory, and so on in the order of the memory; in that of the
    shape where the memory has gaps.
    """
    dense = torch.empty_like(p, device="meta").stride() == p.stride()
    strides = p.stride() if dense else torch.empty(p.shape, device="meta").stride()
    found = torch.tensor(first, device=p.device)
    for index, stride in zip(rows, strides, strict=False):
        found = found + index * stride
    for size, stride in list(zip(p.shape, strides, strict=True))[len(rows) :]:
        found = found[..., None] + torch.arange(size, device=p.device) * stride
    return found


def store_stochastic(
    tensors: Tensors, new: Tensors, elements: Tensors, seed: int, t: float
) -> None:
    """Write float32 numbers into bfloat16 tensors, up or down with the odds of their distances.

    elements: the numbers of the elements, counted through the optimizer's parameters. The noise is
    a function of seed, step t and an element's number alone.
    """
    bits = torch.cat([x.reshape(-1) for x in new]).float().view(torch.int32)
    finite = (bits & 0x7F800000) != 0x7F800000
    every = torch.cat([x.reshape(-1) for x in elements])
    bits += torch.where(finite, noise(every, key(seed, t)), 0)
    bits &= torch.where(finite, ~0xFFFF, -1)  # a nan's mark may be in the low half
    pieces = bits.view(torch.float32).split([x.numel() for x in new])
    shaped = [x.view(p.shape) for x, p in zip(pieces, tensors, strict=True)]
    torch._foreach_copy_(list(tensors), shaped)


def key(seed: int, t: float) -> int:
    """64 bits for the noise of one step."""
    digest = hashlib.blake2b(f"{seed} {int(t)}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def noise(numbers: Tensor, key: int) -> Tensor:
    """16 random bits for each element number, as int32: a hash of number and key.

    Rounds of a key, a shift and an odd factor. That a generator may be a hash of a counter: Salmon
    et al. 2011, doi:10.1145/2063384.2063405.
    """
    low, high = key & 0xFFFFFFFF, (key >> 32) & 0xFFFFFFFF
    x = _wrapped(numbers ^ (numbers >> 32)) ^ _wrapped(low)
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x ^= (x >> shift) & (0xFFFFFFFF >> shift)  # a logical shift
        x *= _wrapped(factor)
        if shift == 16:
            x ^= _wrapped(high)
    return (x >> 16) & 0xFFFF


def _wrapped(x: Any) -> Any:
    """Into the range of int32, modulo 2**32."""
    return x.to(torch.int32) if isinstance(x, Tensor) else (x + 2**31) % 2**32 - 2**31


def store_compensated(tensors: Tensors, new: Tensors, compensation: Tensors) -> None:
    """Write the new numbers rounded to the nearest, and beside them what that cuts off.

    Kahan 1965, doi:10.1145/363707.363723; the pair is the sum of two numbers of 16 bits.
    """
    torch._foreach_copy_(list(tensors), list(new))
    torch._foreach_sub_(list(new), [x.to(n.dtype) for x, n in zip(tensors, new, strict=True)])
    # beyond the largest number nothing is cut off: inf less inf is no number
    torch._foreach_copy_(list(compensation), [x.nan_to_num_(0.0, 0.0, 0.0) for x in new])
