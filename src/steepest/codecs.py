"""Where the bytes are: how a tensor is loaded for a rule, and how its new value is stored.

A rule computes on float32 or float64; a parameter of 16 bits is loaded into float32 and rounded
when it is stored. To the nearest, a step smaller than half the distance of two bfloat16 numbers is
lost: lr 1e-4 never moves a parameter of 1.0. Two codecs keep such steps: stochastic rounding, which
is right on average, and a compensation, a second number that holds what the rounding cut off.

Each tensor that a rule sees, the parameter and every state, has a codec of its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .definition import COMPENSATION

Tensors = Sequence[Tensor]
HALVES = (torch.float16, torch.bfloat16)


def view(x: Tensor) -> Tensor:
    """Complex numbers as pairs of real ones, in place."""
    return torch.view_as_real(x) if x.is_complex() else x


def load(x: Tensor, dtype: torch.dtype) -> Tensor:
    """As the rule sees it: complex numbers as pairs in place, another dtype as a copy."""
    return view(x.resolve_conj()).to(dtype)


class Kept(NamedTuple):
    """A tensor in `optimizer.state`: its dtype, and its shape as one follows from another.

    The other is the parameter's for a state, the state's for what a codec keeps beside it.
    """

    dtype: torch.dtype
    shape: Callable[[Any], Any] = lambda shape: shape


class Noise(NamedTuple):
    """What stochastic rounding draws from. elements: of each tensor the numbers of its elements,
    counted through the optimizer's parameters.
    """

    elements: Tensors
    seed: int
    t: float


class Codec:
    """How one tensor is kept: to the nearest number of its dtype.

    name: as a backend's printer knows it. noisy: whether `store` draws from a `Noise`.
    A tensor's extras start at zero, and `load` and `store` take them in the order of `extras`.
    """

    name = "nearest"
    noisy = False

    def dtype(self, wide: torch.dtype) -> torch.dtype:
        """The dtype that a state is kept in, where the rule computes on `wide`."""
        return wide

    def extras(self, key: str, dtype: torch.dtype) -> Mapping[str, Kept]:
        """What is kept beside the tensor of that key and dtype, by keys; "" is the parameter."""
        return {}

    def load(self, tensors: Tensors, extras: Sequence[Tensors], dtype: torch.dtype) -> list[Tensor]:
        """What the rule reads, and may overwrite; where no copy is needed, the tensors themselves.

        extras: for each key of `extras`, its tensors.
        """
        return [load(x, dtype) for x in tensors]

    def store(
        self, tensors: Tensors, new: Tensors, extras: Sequence[Tensors], noise: Noise | None
    ) -> None:
        """Write back what was computed on copies; `new` may be overwritten."""
        if any(x.dtype.to_real() != n.dtype for x, n in zip(tensors, new, strict=True)):
            torch._foreach_copy_(list(map(view, tensors)), list(new))


class Stochastic(Codec):
    """bfloat16, up or down with the odds of the distances.

    The noise is a function of seed, step and an element's number alone.
    """

    name = "stochastic"
    noisy = True

    def store(
        self, tensors: Tensors, new: Tensors, extras: Sequence[Tensors], noise: Noise | None
    ) -> None:
        assert noise is not None
        bits = torch.cat([x.reshape(-1) for x in new]).float().view(torch.int32)
        finite = (bits & 0x7F800000) != 0x7F800000
        every = torch.cat([x.reshape(-1) for x in noise.elements])
        bits += torch.where(finite, draw(every, key(noise.seed, noise.t)), 0)
        bits &= torch.where(finite, ~0xFFFF, -1)  # a nan's mark may be in the low half
        pieces = bits.view(torch.float32).split([x.numel() for x in new])
        shaped = [x.view(p.shape) for x, p in zip(pieces, tensors, strict=True)]
        torch._foreach_copy_(list(tensors), shaped)


class Kahan(Codec):
    """16 bits to the nearest, and in an extra tensor what that cuts off.

    Kahan 1965, doi:10.1145/363707.363723; the pair is the sum of two numbers of 16 bits.
    """

    name = "kahan"

    def extras(self, key: str, dtype: torch.dtype) -> Mapping[str, Kept]:
        return {COMPENSATION: Kept(dtype)}

    def load(self, tensors: Tensors, extras: Sequence[Tensors], dtype: torch.dtype) -> list[Tensor]:
        loaded = super().load(tensors, (), dtype)
        torch._foreach_add_(loaded, super().load(extras[0], (), dtype))
        return loaded

    def store(
        self, tensors: Tensors, new: Tensors, extras: Sequence[Tensors], noise: Noise | None
    ) -> None:
        torch._foreach_copy_(list(tensors), list(new))
        torch._foreach_sub_(list(new), [x.to(n.dtype) for x, n in zip(tensors, new, strict=True)])
        # beyond the largest number nothing is cut off: inf less inf is no number
        torch._foreach_copy_(list(extras[0]), [x.nan_to_num_(0.0, 0.0, 0.0) for x in new])


NEAREST, STOCHASTIC, KAHAN = Codec(), Stochastic(), Kahan()


def of_parameter(rounding: str | None, dtype: torch.dtype) -> Codec:
    """The codec of a parameter, by the option `rounding` of its group."""
    if rounding == "stochastic" and dtype is torch.bfloat16:
        return STOCHASTIC
    return KAHAN if rounding == "kahan" and dtype in HALVES else NEAREST


def of_state(key: str) -> Codec:
    """The codec of a state."""
    return NEAREST


class Storage:
    """How a parameter and its states are kept: a codec for each.

    rounding and dtype: of the parameter; wide: what the rule computes on; shapes: of each state, by
    its key, what makes its shape of the parameter's.
    kept: what stands in `optimizer.state`, by key: the states, then what codecs keep beside them
    and the parameter. beside: the keys of the latter, for each codec.
    """

    def __init__(
        self,
        rounding: str | None,
        dtype: torch.dtype,
        wide: torch.dtype,
        shapes: Mapping[str, Callable[[Any], Any]],
    ) -> None:
        self.parameter, states = (
            of_parameter(rounding, dtype),
            {key: of_state(key) for key in shapes},
        )
        self.codecs = [self.parameter, *states.values()]
        self.kept = {key: Kept(c.dtype(wide), shapes[key]) for key, c in states.items()}
        self.beside: list[tuple[str, ...]] = []
        for key, codec in {"": self.parameter, **states}.items():
            own = self.kept.get(key, Kept(dtype))
            extras = codec.extras(key, own.dtype)
            self.beside.append((*extras,))
            self.kept |= {k: Kept(x.dtype, _after(x.shape, own.shape)) for k, x in extras.items()}

    def load(self, lists: Sequence[Tensors], dtype: torch.dtype) -> list[list[Tensor]]:
        """What the rule reads. lists: the parameters, and for each key of `kept` its tensors."""
        return [codec.load(x, extras, dtype) for codec, x, extras in self._each(lists)]

    def store(self, lists: Sequence[Tensors], new: Sequence[Tensors], noise: Noise | None) -> None:
        """Write back what was computed on copies: the parameters, and the states."""
        for (codec, tensors, extras), values in zip(self._each(lists), new, strict=True):
            codec.store(tensors, values, extras, noise)

    def _each(self, lists: Sequence[Tensors]) -> Iterator[tuple[Codec, Tensors, Sequence[Tensors]]]:
        at = len(self.codecs)
        for codec, tensors, keys in zip(self.codecs, lists[:at], self.beside, strict=True):
            start, at = at, at + len(keys)
            yield codec, tensors, lists[start:at]


def _after(second: Callable[[Any], Any], first: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda x: second(first(x))


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


def key(seed: int, t: float) -> int:
    """64 bits for the noise of one step."""
    digest = hashlib.blake2b(f"{seed} {int(t)}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def draw(numbers: Tensor, key: int) -> Tensor:
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
