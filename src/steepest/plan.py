"""A plan: an optimizer's parameters and states laid out for the backends, kept from step to step.

Each group is shared out into buckets, which one backend steps in one go. All buckets are checked
before the first one writes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import accumulate, chain
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .backends import BACKENDS, choose
from .backends.bucket import Bucket, Stale, States, Wanted, program_of, takes_sparse, wider
from .backends.memory import Seen
from .family import Family
from .tensors import describe, number
from .trace import Program

__all__ = ["Plan", "Stale", "Wanted", "buckets", "describe", "program_of"]


def buckets(
    wanted: Wanted,
    indices: Mapping[Tensor, int],
    state: Mapping[Tensor, dict[str, Any]],
    first: Callable[[Tensor], int],
) -> list[Bucket]:
    """A group's parameters, with their indices in it, shared out among the backends."""
    members: dict[Any, dict[Tensor, dict[str, Any]]] = {}
    # a norm that clips a group is taken in one bucket
    common = choose(wanted, indices) if program_of(wanted.selection).clips else None
    for p in indices:
        selected = wanted._replace(selection=wanted.selection.of(p))
        _check(selected, p, state.get(p))
        backend = common or choose(selected, [p])
        selected = selected._replace(backend=backend.name)
        about = p.device, p.dtype, hasattr(p, "to_local"), wider(p, p.grad)
        key = selected, *about, takes_sparse(selected.selection, p.grad)
        members.setdefault(key, {})[p] = state.get(p) or {}
    shared = _shared(program_of(wanted.selection), state)
    return [
        BACKENDS[selected.backend].bucket(selected, old, [indices[p] for p in old], first, shared)
        for (selected, *_), old in members.items()
    ]


def _check(wanted: Wanted, p: Tensor, state: Any) -> None:
    """Raise for a parameter, or a state, that no backend can step."""
    rule, program = wanted.selection.rule.name, program_of(wanted.selection)
    if p.is_neg() or p.is_conj():
        raise RuntimeError(
            f"{rule}: a parameter {describe(p)} is a negated or conjugated view, expected one "
            "with its values in memory; write p.data = p.data.resolve_neg().resolve_conj()"
        )
    if not isinstance(state, Mapping | None):
        raise RuntimeError(
            f"{rule}: the state of a parameter {describe(p)} is a {type(state).__name__}, "
            "expected a dict; clear optimizer.state to begin anew"
        )
    if any(step == 0 and size > 1 for step, size in zip(p.stride(), p.shape, strict=True)):
        raise RuntimeError(
            f"{rule}: a parameter {describe(p)} with strides {p.stride()} was given, expected "
            "one whose elements have memory of their own; expand it in the model instead"
        )
    if wanted.rounding == "stochastic" and p.dtype == torch.float16:
        raise RuntimeError(
            f"{rule}: rounding='stochastic' was given for {describe(p)}, expected "
            "torch.bfloat16 (or 32 bits and more, which need none); take rounding='kahan'"
        )
    if hasattr(p, "to_local") and (program.reductions or program.matrix):
        raise RuntimeError(
            f"{rule}: a sharded parameter of shape {tuple(p.shape)} was given, expected whole "
            "ones, as it looks at each as a whole; use DDP or replicate it"
        )
    if program.matrix and p.is_complex():
        raise RuntimeError(
            f"{rule}: {describe(p)} was given, expected real numbers, as torch.optim does; "
            "hand it to another rule, in a group with rule=..."
        )
    if wanted.differentiable and p.grad is not None and p.grad.layout is not torch.strided:
        raise RuntimeError(
            f"{rule}: a gradient of layout {p.grad.layout} was given with differentiable=True, "
            "expected a dense one; call p.grad = p.grad.to_dense() before the step"
        )


def _shared(program: Program, state: Mapping[Tensor, dict[str, Any]]) -> dict[str, float]:
    """Of a rule that sums over all parameters, the carried scalars that they have already."""
    keys = {name: program.rule.keys[name] for name in program.rule.carried}
    for own in state.values() if program.spans and not program.clips else ():
        if isinstance(own, Mapping) and all(own.get(key) is not None for key in keys.values()):
            return {name: number(own[key]) for name, key in keys.items()}
    return {}


class _Group(NamedTuple):
    """A group's buckets, the options that they were made for, and whether one has all of it."""

    watched: list[Any]
    family: Family
    buckets: list[Bucket]
    whole: bool


class Plan:
    """All buckets of an optimizer, made for what its groups, parameters and states are now.

    Making one checks everything and writes nothing.
    """

    @torch.inference_mode(False)  # states made here are changed outside of it, too
    def __init__(self, optimizer: Any) -> None:
        self.optimizer, self.backend = optimizer, optimizer.backend
        groups, state = optimizer.param_groups, dict(optimizer.state)
        first = self._first(groups)
        self.groups: list[_Group] = []
        self.seen: Seen | None = None
        for group in groups:
            family = optimizer._family(group)
            optimizer._check_options(family, group)
            stored = {n: group[n] for n in ("rounding", "seed") if n in group}
            differentiable = bool(group.get("differentiable"))
            wanted = Wanted(family.select(group), optimizer.backend, differentiable, **stored)
            indices: dict[Tensor, int] = {}
            for i, p in enumerate(group["params"]):
                indices.setdefault(p, i)
            made = buckets(wanted, indices, state, first.__getitem__)
            for bucket in made:  # a parameter may stand in another group too
                owners = [group["params"][i] for i in bucket.indices]
                pairs = zip(owners, bucket.pending, strict=True)
                state.update((p, own) for p, own in pairs if own is not None)
            whole = len(made) == 1 and made[0].indices == [*range(len(group["params"]))]
            self.groups.append(_Group(_watched(family, group), family, made, whole))

    @staticmethod
    def _first(groups: list[dict[str, Any]]) -> dict[Tensor, int]:
        """The number of a parameter's first element, counted through all groups."""
        every = list(chain.from_iterable(group["params"] for group in groups))
        starts = accumulate((p.numel() for p in every), initial=0)
        return dict(zip(every, starts, strict=False))

    def holds(self) -> bool:
        """Whether groups, parameters and states are still what the plan was made for."""
        groups = self.optimizer.param_groups
        return (
            self.seen is not None
            and self.optimizer.backend == self.backend
            and len(groups) == len(self.groups)
            and all(
                _watched(known.family, group) == known.watched
                and self.optimizer._family(group) is known.family
                for known, group in zip(self.groups, groups, strict=True)
            )
            and self.seen.same([group["params"] for group in groups], self.optimizer.state)
        )

    def ready(self) -> Callable[[], None]:
        """Check every gradient and scalar, and return what steps; writes nothing.

        Raises Stale if a gradient asks for another plan.
        """
        steps: list[Callable[[], None]] = []
        spanning: dict[Any, list[Any]] = {}
        for known, group in zip(self.groups, self.optimizer.param_groups, strict=True):
            scalars: dict[Any, list[float]] = {}
            for bucket in known.buckets:
                program, params = bucket.program, group["params"]
                if program not in scalars:
                    names = [n for n in program.scalars if n != "t"]
                    of = known.family.read
                    scalars[program] = [of(group, n, program.rule) for n in names]
                owners = params if known.whole else [params[i] for i in bucket.indices]
                made = bucket.ready(owners, self.optimizer.state, scalars[program])
                if program.spans and not program.clips:
                    spanning.setdefault(program.rule.name, []).append((bucket, owners, made))
                elif made is not None:
                    steps.append(partial(made.step, None))
        state = self.optimizer.state
        steps += [partial(_together, state, members) for members in spanning.values()]

        def run() -> None:
            if self.seen is None:
                self._put()
            for step in steps:
                step()

        return run

    def release(self) -> None:
        """Let go of what a step has held."""
        if self.seen is not None:
            self.seen.release()

    def _put(self) -> None:
        """Put the states of the buckets in place, and look at all of it once."""
        groups, state = self.optimizer.param_groups, self.optimizer.state
        new: dict[Tensor, dict[str, Any]] = {}
        for known, group in zip(self.groups, groups, strict=True):
            for bucket in known.buckets:
                owners = [group["params"][i] for i in bucket.indices]
                pairs = zip(owners, bucket.pending, strict=True)
                new.update((p, s) for p, s in pairs if s or (s is not None and p in state))
        self._check_apart(new)
        # in the groups' order, whatever bucket it is in: a checkpoint of shards gathers state after
        # state in this order, and a shard may be empty in one process alone
        for p in filter(new.__contains__, self._first(groups)):
            mine = state.setdefault(p, {})
            mine.update(new[p])
            for key in mine.keys() - new[p].keys():
                del mine[key]
        lists = [group["params"] for group in groups]
        self.seen = Seen(lists, state)
        held = self.seen.same(lists, state)
        if not held or any(
            state[p].get(key) is not x for p, s in new.items() for key, x in s.items()
        ):
            raise Stale  # another thread has changed them meanwhile
        for known in self.groups:
            for bucket in known.buckets:
                bucket.pending = []

    def _check_apart(self, new: dict[Tensor, dict[str, Any]]) -> None:
        """Raise where two parameters have one dict of states, and need different ones."""
        mine: dict[int, dict[str, Any]] = {}
        for p, own in new.items():
            known = self.optimizer.state.get(p)
            other = mine.setdefault(id(known), own) if known is not None else own
            if any(other.get(key) is not x for key, x in own.items()):
                raise RuntimeError(
                    f"{self.optimizer._called}: a parameter {describe(p)} has the same dict in "
                    "optimizer.state as another one, and needs another state; give each its own"
                )


def _watched(family: Family, group: dict[str, Any]) -> list[Any]:
    """The options that decide over a group's buckets."""
    values = [group.get(name) for name in family.static]
    return [(v.item(), v.requires_grad) if isinstance(v, Tensor) else v for v in values]


def _together(state: States, members: Sequence[tuple[Bucket, list[Tensor], Any]]) -> None:
    """Step the buckets of a rule that sums over all parameters, with their common totals.

    What it carries is the same for all of them, as the first one that has a gradient computes it.
    """
    able = [(bucket, owners, made) for bucket, owners, made in members if made is not None]
    if not able:
        return
    totals = [sum(column) for column in zip(*(made.add() for *_, made in able), strict=True)]
    plain = [*map(number, totals)]
    for bucket, _, made in able:
        made.step(totals if bucket.wanted.differentiable else plain)
    leader, owners, _ = able[0]
    carried = leader.carried_of(owners, state, leader.leading)
    for bucket, owners, _ in members:
        bucket.carry(owners, state, carried)
