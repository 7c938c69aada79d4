"""The executor runs an optimizer's steps: it divides parameters and states among the backends.

The parameters of each group are divided into buckets; one backend steps a bucket in one go. All
buckets are checked before the first one writes. An executor is reused at every step until groups,
parameters or states change.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import accumulate, chain
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .backends import BACKENDS, choose
from .backends.bucket import Bucket
from .backends.inputs import Stale, States
from .backends.memory import Snapshot
from .backends.wanted import Wanted, program_of, takes_sparse, wider
from .family import Family
from .tensors import describe, number
from .trace import Program


def make_buckets(
    wanted: Wanted,
    indices: Mapping[Tensor, int],
    state: Mapping[Tensor, dict[str, Any]],
    first: Callable[[Tensor], int],
) -> list[Bucket]:
    """Divide a group's parameters into buckets, each for one backend.

    indices: parameter -> its index in the group. first: function from a parameter to the index of
    its first element, counted through all parameters of the optimizer.
    """
    members: dict[Any, dict[Tensor, dict[str, Any]]] = {}
    # the norm that clips a group is computed in one bucket
    common = choose(wanted, indices) if program_of(wanted.selection).clips else None
    for p in indices:
        selected = wanted._replace(selection=wanted.selection.of(p))
        _check_parameter(selected, p, state.get(p))
        backend = common or choose(selected, [p])
        selected = selected._replace(backend=backend.name)
        traits = p.device, p.dtype, hasattr(p, "to_local"), wider(p, p.grad)
        key = selected, *traits, takes_sparse(selected.selection, p.grad)
        members.setdefault(key, {})[p] = state.get(p) or {}
    shared = _shared_scalars(program_of(wanted.selection), state)
    return [
        BACKENDS[selected.backend].bucket(selected, old, [indices[p] for p in old], first, shared)
        for (selected, *_), old in members.items()
    ]


def _check_parameter(wanted: Wanted, p: Tensor, state: Any) -> None:
    """Raise RuntimeError if no backend can step this parameter with this state."""
    rule, program = wanted.selection.rule.name, program_of(wanted.selection)
    if p.is_neg() or p.is_conj():
        raise RuntimeError(
            f"{rule}: a parameter {describe(p)} is a negated or conjugated view, expected a "
            "tensor with its values in memory; write p.data = p.data.resolve_neg().resolve_conj()"
        )
    if not isinstance(state, Mapping | None):
        raise RuntimeError(
            f"{rule}: the state of a parameter {describe(p)} is a {type(state).__name__}, "
            "expected a dict; clear optimizer.state to start again"
        )
    if any(step == 0 and size > 1 for step, size in zip(p.stride(), p.shape, strict=True)):
        raise RuntimeError(
            f"{rule}: a parameter {describe(p)} with strides {p.stride()} was given, expected "
            "one whose elements do not share memory; expand it in the model's forward() instead"
        )
    if wanted.rounding == "stochastic" and p.dtype == torch.float16:
        raise RuntimeError(
            f"{rule}: rounding='stochastic' was given for {describe(p)}, expected "
            "torch.bfloat16, or a type of 32 bits or more; use rounding='kahan'"
        )
    if hasattr(p, "to_local") and (program.reductions or program.matrix):
        raise RuntimeError(
            f"{rule}: a sharded parameter of shape {tuple(p.shape)} was given, expected an "
            "unsharded one, because the rule needs all its elements; use DDP or replicate it"
        )
    if program.matrix and p.is_complex():
        raise RuntimeError(
            f"{rule}: {describe(p)} was given, expected real numbers, as for torch.optim's "
            "class; put this parameter in a group with another rule=..."
        )
    if wanted.differentiable and p.grad is not None and p.grad.layout is not torch.strided:
        raise RuntimeError(
            f"{rule}: a gradient of layout {p.grad.layout} was given with differentiable=True, "
            "expected a dense one; set p.grad = p.grad.to_dense() before the step"
        )


def _shared_scalars(program: Program, state: Mapping[Tensor, dict[str, Any]]) -> dict[str, float]:
    """Returns the carried scalars that all parameters already share.

    Only a rule that sums over all parameters has such scalars. For any other rule, and before the
    first step, the result is empty.
    """
    keys = {name: program.rule.keys[name] for name in program.rule.carried}
    for values in state.values() if program.spans and not program.clips else ():
        if isinstance(values, Mapping) and all(values.get(k) is not None for k in keys.values()):
            return {name: number(values[key]) for name, key in keys.items()}
    return {}


class _Group(NamedTuple):
    """A group's buckets and the option values that they were made for.

    single: whether one bucket has all parameters of the group.
    """

    options: list[Any]
    family: Family
    buckets: list[Bucket]
    single: bool


class Executor:
    """All buckets of an optimizer, made for the present groups, parameters and states.

    Creating an executor checks options, parameters and states, and writes nothing.
    """

    @torch.inference_mode(False)  # states made here are also changed outside of inference mode
    def __init__(self, optimizer: Any) -> None:
        self.optimizer, self.backend = optimizer, optimizer.backend
        groups, state = optimizer.param_groups, dict(optimizer.state)
        first = self._first_elements(groups)
        self.groups: list[_Group] = []
        self.snapshot: Snapshot | None = None
        for group in groups:
            family = optimizer._family(group)
            optimizer._check_options(family, group)
            stored = {n: group[n] for n in ("rounding", "seed") if n in group}
            differentiable = bool(group.get("differentiable"))
            wanted = Wanted(family.select(group), optimizer.backend, differentiable, **stored)
            indices: dict[Tensor, int] = {}
            for i, p in enumerate(group["params"]):
                indices.setdefault(p, i)
            buckets = make_buckets(wanted, indices, state, first.__getitem__)
            for bucket in buckets:  # a parameter may be in another group too
                owners = [group["params"][i] for i in bucket.indices]
                pairs = zip(owners, bucket.pending, strict=True)
                state.update((p, own) for p, own in pairs if own is not None)
            single = len(buckets) == 1 and buckets[0].indices == [*range(len(group["params"]))]
            self.groups.append(_Group(_option_values(family, group), family, buckets, single))

    @staticmethod
    def _first_elements(groups: list[dict[str, Any]]) -> dict[Tensor, int]:
        """Returns parameter -> the index of its first element.

        The index counts the elements of all parameters in all groups.
        """
        params = list(chain.from_iterable(group["params"] for group in groups))
        starts = accumulate((p.numel() for p in params), initial=0)
        return dict(zip(params, starts, strict=False))

    def is_current(self) -> bool:
        """Whether groups, parameters and states have not changed since the buckets were made."""
        groups = self.optimizer.param_groups
        return (
            self.snapshot is not None
            and self.optimizer.backend == self.backend
            and len(groups) == len(self.groups)
            and all(
                _option_values(known.family, group) == known.options
                and self.optimizer._family(group) is known.family
                for known, group in zip(self.groups, groups, strict=True)
            )
            and self.snapshot.matches([group["params"] for group in groups], self.optimizer.state)
        )

    def prepare(self) -> Callable[[], None]:
        """Check every gradient and scalar, and return the function that makes the step.

        `prepare` itself writes nothing. It raises Stale if a gradient needs other buckets.
        """
        steps: list[Callable[[], None]] = []
        spanning: dict[Any, list[Any]] = {}
        for known, group in zip(self.groups, self.optimizer.param_groups, strict=True):
            scalars: dict[Any, list[float]] = {}
            for bucket in known.buckets:
                program, params = bucket.program, group["params"]
                if program not in scalars:
                    names = [n for n in program.scalars if n != "t"]
                    read = known.family.read
                    scalars[program] = [read(group, n, program.rule) for n in names]
                owners = params if known.single else [params[i] for i in bucket.indices]
                prepared = bucket.ready(owners, self.optimizer.state, scalars[program])
                if program.spans and not program.clips:
                    spanning.setdefault(program.rule.name, []).append((bucket, owners, prepared))
                elif prepared is not None:
                    steps.append(partial(prepared.step, None))
        state = self.optimizer.state
        steps += [partial(_step_spanning, state, members) for members in spanning.values()]

        def run() -> None:
            if self.snapshot is None:
                self._store_states()
            for step in steps:
                step()

        return run

    def release(self) -> None:
        """Release the tensors that were held during a step."""
        if self.snapshot is not None:
            self.snapshot.release()

    def _store_states(self) -> None:
        """Put the states of all buckets into `optimizer.state`, and take the snapshot."""
        groups, state = self.optimizer.param_groups, self.optimizer.state
        new: dict[Tensor, dict[str, Any]] = {}
        for known, group in zip(self.groups, groups, strict=True):
            for bucket in known.buckets:
                owners = [group["params"][i] for i in bucket.indices]
                pairs = zip(owners, bucket.pending, strict=True)
                new.update((p, s) for p, s in pairs if s or (s is not None and p in state))
        self._check_distinct(new)
        # in the order of the groups, which is the same in all processes: a sharded checkpoint
        # gathers the states in this order. Buckets differ where a process has an empty shard.
        for p in filter(new.__contains__, self._first_elements(groups)):
            own = state.setdefault(p, {})
            own.update(new[p])
            for key in own.keys() - new[p].keys():
                del own[key]
        lists = [group["params"] for group in groups]
        self.snapshot = Snapshot(lists, state)
        if not self.snapshot.matches(lists, state) or any(
            state[p].get(key) is not x for p, s in new.items() for key, x in s.items()
        ):
            raise Stale  # another thread has changed them in the meantime
        for known in self.groups:
            for bucket in known.buckets:
                bucket.pending = []

    def _check_distinct(self, new: dict[Tensor, dict[str, Any]]) -> None:
        """Raise RuntimeError if two parameters share a dict of states but need different ones."""
        first_needs: dict[int, dict[str, Any]] = {}
        for p, own in new.items():
            known = self.optimizer.state.get(p)
            other = first_needs.setdefault(id(known), own) if known is not None else own
            if any(other.get(key) is not x for key, x in own.items()):
                raise RuntimeError(
                    f"{self.optimizer._called}: a parameter {describe(p)} has the same dict in "
                    "optimizer.state as another parameter, but the two need different states; give "
                    "each parameter its own dict"
                )


def _option_values(family: Family, group: dict[str, Any]) -> list[Any]:
    """Returns the values of the options that decide which buckets a group has."""
    values = [group.get(name) for name in family.static]
    return [(v.item(), v.requires_grad) if isinstance(v, Tensor) else v for v in values]


def _step_spanning(state: States, members: Sequence[tuple[Bucket, list[Tensor], Any]]) -> None:
    """Step all buckets of a rule that sums over all parameters.

    The sums are taken over all these buckets together. The carried scalars are computed for the
    first parameter with a gradient, and all other parameters get the same values.
    """
    active = [member for member in members if member[-1] is not None]
    if not active:
        return
    sums = (prepared.add() for *_, prepared in active)
    totals = [sum(column) for column in zip(*sums, strict=True)]
    plain = [*map(number, totals)]
    for bucket, _, prepared in active:
        prepared.step(totals if bucket.wanted.differentiable else plain)
    leader, owners, _ = active[0]
    carried = leader.carried_of(owners, state, leader.leading)
    for bucket, owners, _ in members:
        bucket.carry(owners, state, carried)
