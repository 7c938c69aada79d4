"""Where the bytes are: how a parameter is loaded for a rule, and how its new value is stored.

A rule computes on float32 or float64; a parameter of 16 bits is loaded into float32 and rounded
when it is stored. To the nearest, a step smaller than half the distance of two bfloat16 numbers is
lost: lr 1e-4 never moves a parameter of 1.0. Two codecs keep such steps: stochastic rounding, which
is right on average, and a compensation, a second number that holds what the rounding cut off.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

HALVES = (torch.float16, torch.bfloat16)


def view(x: Tensor) -> Tensor:
    """Complex numbers as pairs of real ones, in place."""
    return torch.view_as_real(x) if x.is_complex() else x


def load(x: Tensor, kind: torch.dtype) -> Tensor:
    """As the rule sees it: complex numbers as pairs in place, another dtype as a copy."""
    return view(x.resolve_conj()).to(kind)


def store(tensors: Sequence[Tensor], new: Sequence[Tensor], kind: torch.dtype) -> None:
    """Write what was computed on copies back, rounded to the nearest."""
    if any(x.dtype not in (kind, kind.to_complex()) for x in tensors):
        torch._foreach_copy_(list(map(view, tensors)), list(new))


def store_stochastic(
    tensors: Sequence[Tensor], new: Sequence[Tensor], firsts: Sequence[int], seed: int, t: float
) -> None:
    """Write float32 numbers into bfloat16 tensors, up or down with the odds of their distances.

    firsts: the number of each tensor's first element, counted through the optimizer's parameters.
    The noise is a function of seed, step t and an element's number alone.
    """
    bits = torch.cat([x.reshape(-1) for x in new]).view(torch.int32)
    finite = (bits & 0x7F800000) != 0x7F800000
    numbers = [
        torch.arange(first, first + x.numel(), device=x.device)
        for first, x in zip(firsts, new, strict=True)
    ]
    bits += torch.where(finite, noise(torch.cat(numbers), seed, t), 0)
    bits &= torch.where(finite, ~0xFFFF, -1)  # a nan's mark may be in the low half
    pieces = bits.view(torch.float32).split([x.numel() for x in new])
    torch._foreach_copy_(
        list(tensors), [x.view(p.shape) for x, p in zip(pieces, tensors, strict=True)]
    )


def noise(numbers: Tensor, seed: int, t: float) -> Tensor:
    """16 random bits for each element number, as int32: a hash of seed, step and number.

    Rounds of a key, a shift and an odd factor. That a generator may be a hash of a counter: Salmon
    et al. 2011, doi:10.1145/2063384.2063405.
    """
    digest = hashlib.blake2b(f"{seed} {int(t)}".encode(), digest_size=12).digest()
    keys = [int.from_bytes(digest[i : i + 4], signed=True, byteorder="big") for i in (0, 4, 8)]
    x = (numbers ^ (numbers >> 32)).to(torch.int32)
    for key, factor in zip(keys, (0x7FEB352D, 0x2C1B3C6D, 0x297A2D39), strict=True):
        x ^= key
        x ^= (x >> 16) & 0xFFFF
        x *= factor
    return (x >> 16) & 0xFFFF


def store_compensated(
    tensors: Sequence[Tensor], new: Sequence[Tensor], compensation: Sequence[Tensor]
) -> None:
    """Write the new numbers rounded to the nearest, and beside them what that cuts off.

    Kahan 1965, doi:10.1145/363707.363723; the pair is the sum of two numbers of 16 bits.
    """
    torch._foreach_copy_(list(tensors), list(new))
    torch._foreach_sub_(list(new), [x.to(n.dtype) for x, n in zip(tensors, new, strict=True)])
    # beyond the largest number nothing is cut off: inf less inf is no number
    torch._foreach_copy_(list(compensation), [x.nan_to_num_(0.0, 0.0, 0.0) for x in new])
