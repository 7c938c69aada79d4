"""What a bucket takes and returns at a step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

States = Mapping[Tensor, dict[str, Any]]
Lists = list[list[Tensor]]
"""A list of the parameters, then a list of tensors for each state, then for each extra state of a
codec.
"""


class Stale(Exception):  # noqa: N818  a signal, caught by the shell
    """Raised if the parameters or their gradients no longer fit the buckets."""


class Row(NamedTuple):
    """Parameters with the same step count and the same carried scalars.

    A carried scalar is a number that a parameter carries from step to step.

    at: the indices of these parameters in the bucket.
    t: the step count of these parameters, this step included.
    carried: their carried scalars before this step.
    selected: for each parameter, the indices of the rows in its sparse gradient; empty if the
        gradients are dense.
    full_params: the whole parameters, if only the rows in `selected` are stepped; else empty.
    """

    at: list[int]
    t: float
    carried: list[float]
    selected: Sequence[tuple[Tensor, ...]] = ()
    full_params: Sequence[Tensor] = ()


class Ready(NamedTuple):
    """A step of a bucket that has passed all checks and can be made.

    step: makes the step. If the rule uses sums over all parameters, `step` takes these sums.
    add: if the rule uses such sums, returns the sums over the parameters of this bucket.
    """

    step: Callable[[Sequence[Any] | None], None]
    add: Callable[[], list[Any]]


class StepInputs(NamedTuple):
    """The inputs of a bucket's step.

    owners: the parameters of the bucket.
    state: the optimizer's state.
    scalars: the values of the rule's scalars other than the step count t.
    grads: index of a parameter -> its gradient. Parameters without a gradient are left out.
    """

    owners: list[Tensor]
    state: States
    scalars: list[float]
    grads: dict[int, Tensor]
