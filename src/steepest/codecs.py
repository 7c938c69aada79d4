"""Codecs: a codec says how one tensor is loaded for a rule, and how its new value is stored.

A rule computes in float32 or float64. A parameter of 16 bits is loaded into float32 and rounded
when it is stored. Rounding to the nearest loses every step smaller than half the distance between
two bfloat16 numbers: a step of 1e-4 never moves a parameter of 1.0. Two codecs keep such steps.
Stochastic rounding is right on average. Kahan's compensation keeps the rounding error in a second
number.

Each parameter has a codec, and each of its states has one.
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
    """Returns a complex tensor as a view of pairs of real numbers, and a real tensor unchanged."""
    return torch.view_as_real(x) if x.is_complex() else x


def load(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns a tensor as the rule sees it, as real numbers of the dtype `dtype`.

    A complex tensor becomes a view of pairs of real numbers. A tensor of another dtype is copied.
    """
    return view(x.resolve_conj()).to(dtype)


class StateSpec(NamedTuple):
    """Describes a tensor in `optimizer.state` by its dtype and by `shape`, a function.

    In `Storage.specs`, `shape` computes the tensor's shape from the shape of the parameter. In the
    result of `Codec.extras`, it computes the shape of an extra tensor from the shape of the tensor
    that the codec stores.
    """

    dtype: torch.dtype
    shape: Callable[[Any], Any] = lambda shape: shape


class Noise(NamedTuple):
    """What the noise of stochastic rounding depends on.

    elements: for each tensor, the indices of its elements. The indices run through all parameters
    of the optimizer. seed: the group's option `seed`. t: the step count.
    """

    elements: Tensors
    seed: int
    t: float


class Codec:
    """How one tensor is stored; this codec rounds to the nearest number of the tensor's dtype.

    name: the name by which a backend's printer knows it.
    noisy: whether `store` needs a `Noise`.

    A codec may keep extra tensors beside the tensor that it stores. The extra tensors start at
    zero. The methods `load` and `store` take them in the order of the method `extras`.
    """

    name = "nearest"
    noisy = False

    def dtype(self, wide: torch.dtype) -> torch.dtype:
        """Returns the dtype in which a state is stored when the rule computes in `wide`."""
        return wide

    def extras(self, key: str, dtype: torch.dtype) -> Mapping[str, StateSpec]:
        """Returns key -> spec of each extra tensor that is kept beside a stored tensor.

        key: the key of the stored tensor, "" for the parameter. dtype: the stored tensor's dtype.
        """
        return {}

    def load(self, tensors: Tensors, extras: Sequence[Tensors], dtype: torch.dtype) -> list[Tensor]:
        """Returns tensors that the rule can read and overwrite: copies if needed, else `tensors`.

        extras: for each key that the method `extras` returns, the extra tensors.
        """
        return [load(x, dtype) for x in tensors]

    def store(
        self, tensors: Tensors, new: Tensors, extras: Sequence[Tensors], noise: Noise | None
    ) -> None:
        """Write `new` into `tensors` if the rule computed it on copies.

        This may overwrite `new`.
        """
        if any(x.dtype.to_real() != n.dtype for x, n in zip(tensors, new, strict=True)):
            torch._foreach_copy_(list(map(view, tensors)), list(new))


class Stochastic(Codec):
    """Stores bfloat16 and rounds up or down at random; the nearer number is more likely.

    The noise depends only on the seed, the step count and the element's index.
    """

    name = "stochastic"
    noisy = True

    def store(
        self, tensors: Tensors, new: Tensors, extras: Sequence[Tensors], noise: Noise | None
    ) -> None:
        assert noise is not None
        bits = torch.cat([x.reshape(-1) for x in new]).float().view(torch.int32)
        finite = (bits & 0x7F800000) != 0x7F800000
        numbers = torch.cat([x.reshape(-1) for x in noise.elements])
        bits += torch.where(finite, draw_bits(numbers, noise_key(noise.seed, noise.t)), 0)
        bits &= torch.where(finite, ~0xFFFF, -1)  # the bits that make a nan may be in the low half
        pieces = bits.view(torch.float32).split([x.numel() for x in new])
        shaped = [x.view(p.shape) for x, p in zip(pieces, tensors, strict=True)]
        torch._foreach_copy_(list(tensors), shaped)


class Kahan(Codec):
    """Stores 16 bits, rounded to the nearest, and keeps the rounding error in an extra tensor.

    The value of an element is the sum of its two 16-bit numbers. Kahan 1965,
    doi:10.1145/363707.363723.
    """

    name = "kahan"

    def extras(self, key: str, dtype: torch.dtype) -> Mapping[str, StateSpec]:
        return {COMPENSATION: StateSpec(dtype)}

    def load(self, tensors: Tensors, extras: Sequence[Tensors], dtype: torch.dtype) -> list[Tensor]:
        loaded = super().load(tensors, (), dtype)
        torch._foreach_add_(loaded, super().load(extras[0], (), dtype))
        return loaded

    def store(
        self, tensors: Tensors, new: Tensors, extras: Sequence[Tensors], noise: Noise | None
    ) -> None:
        torch._foreach_copy_(list(tensors), list(new))
        torch._foreach_sub_(list(new), [x.to(n.dtype) for x, n in zip(tensors, new, strict=True)])
        # store 0 where the value overflows: inf - inf is nan
        torch._foreach_copy_(list(extras[0]), [x.nan_to_num_(0.0, 0.0, 0.0) for x in new])


NEAREST, STOCHASTIC, KAHAN = Codec(), Stochastic(), Kahan()


def of_parameter(rounding: str | None, dtype: torch.dtype) -> Codec:
    """Returns the codec of a parameter, given the option `rounding` of its group."""
    if rounding == "stochastic" and dtype is torch.bfloat16:
        return STOCHASTIC
    return KAHAN if rounding == "kahan" and dtype in HALVES else NEAREST


def of_state(key: str) -> Codec:
    """The codec of the state with this key."""
    return NEAREST


class Storage:
    """How a parameter and its states are stored: a codec for each of these tensors.

    rounding: the option `rounding` of the parameter's group. dtype: the parameter's dtype.
    wide: the dtype that the rule computes in.
    shapes: key of a state -> function from the parameter's shape to the state's shape.
    specs: key -> `StateSpec` of each tensor in `optimizer.state`: first the states, then the extra
        tensors of all codecs.
    extra_keys: for each codec, the keys of its extra tensors.
    """

    def __init__(
        self,
        rounding: str | None,
        dtype: torch.dtype,
        wide: torch.dtype,
        shapes: Mapping[str, Callable[[Any], Any]],
    ) -> None:
        self.parameter = of_parameter(rounding, dtype)
        states = {key: of_state(key) for key in shapes}
        self.codecs = [self.parameter, *states.values()]
        self.specs = {key: StateSpec(c.dtype(wide), shapes[key]) for key, c in states.items()}
        self.extra_keys: list[tuple[str, ...]] = []
        for key, codec in {"": self.parameter, **states}.items():
            own = self.specs.get(key, StateSpec(dtype))
            extras = codec.extras(key, own.dtype)
            self.extra_keys.append((*extras,))
            for extra_key, extra in extras.items():
                shape = _compose(extra.shape, own.shape)
                self.specs[extra_key] = StateSpec(extra.dtype, shape)

    def load(self, lists: Sequence[Tensors], dtype: torch.dtype) -> list[list[Tensor]]:
        """Returns what the rule reads: the parameters, then each of the states.

        lists: the parameters, then the tensors of each key in `specs`.
        """
        return [codec.load(x, extras, dtype) for codec, x, extras in self._each(lists)]

    def store(self, lists: Sequence[Tensors], new: Sequence[Tensors], noise: Noise | None) -> None:
        """Write `new` into the parameters and states where the rule computed on copies."""
        for (codec, tensors, extras), values in zip(self._each(lists), new, strict=True):
            codec.store(tensors, values, extras, noise)

    def _each(self, lists: Sequence[Tensors]) -> Iterator[tuple[Codec, Tensors, Sequence[Tensors]]]:
        at = len(self.codecs)
        for codec, tensors, keys in zip(self.codecs, lists[:at], self.extra_keys, strict=True):
            start, at = at, at + len(keys)
            yield codec, tensors, lists[start:at]


def _compose(second: Callable[[Any], Any], first: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda x: second(first(x))


def element_numbers(p: Tensor, first: int, rows: tuple[Tensor, ...] = ()) -> Tensor:
    """Returns the index of each element of a parameter.

    The first element in memory has the index `first`. The others follow in memory order, or in
    row-major order if the memory has gaps.
    rows: if given, only the elements of these rows get an index. Give a tensor of indices for each
        leading dimension, as in a sparse tensor.
    """
    dense = torch.empty_like(p, device="meta").stride() == p.stride()
    strides = p.stride() if dense else torch.empty(p.shape, device="meta").stride()
    result = torch.tensor(first, device=p.device)
    for index, stride in zip(rows, strides, strict=False):
        result = result + index * stride
    for size, stride in list(zip(p.shape, strides, strict=True))[len(rows) :]:
        result = result[..., None] + torch.arange(size, device=p.device) * stride
    return result


def noise_key(seed: int, t: float) -> int:
    """Returns the 64-bit key for the noise of one step."""
    digest = hashlib.blake2b(f"{seed} {int(t)}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def draw_bits(numbers: Tensor, key: int) -> Tensor:
    """Returns 16 random bits, as int32, for each element index: a hash of the index and the key.

    numbers: the indices of the elements.

    Each round mixes in a part of the key, shifts, and multiplies by an odd factor. A hash of a
    counter can serve as a random number generator: Salmon et al. 2011,
    doi:10.1145/2063384.2063405.
    """
    low, high = key & 0xFFFFFFFF, (key >> 32) & 0xFFFFFFFF
    x = _wrap(numbers ^ (numbers >> 32)) ^ _wrap(low)
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x ^= (x >> shift) & (0xFFFFFFFF >> shift)  # a logical shift
        x *= _wrap(factor)
        if shift == 16:
            x ^= _wrap(high)
    return (x >> 16) & 0xFFFF


def _wrap(x: Any) -> Any:
    """Wrap into the range of int32, modulo 2**32."""
    return x.to(torch.int32) if isinstance(x, Tensor) else (x + 2**31) % 2**32 - 2**31
