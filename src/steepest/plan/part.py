"""A part: what its parameters, gradients and states must be, and what is kept of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import codecs
from ..definition import COMPENSATION
from ..families import Selection
from ..formulas import modifiers
from ..trace import Program

_shape, _dtype = attrgetter("shape"), attrgetter("dtype")
_device, _layout = attrgetter("device"), attrgetter("layout")
_kind = attrgetter("dtype", "shape", "device")
_address = Tensor.data_ptr


class Stale(Exception):  # noqa: N818  a signal, caught by the shell
    """The parameters are no longer those that the plan was made for."""


class Wanted(NamedTuple):
    """What a group asks for; backend None: the fastest for each tensor."""

    selection: Selection
    backend: str | None = None
    differentiable: bool = False
    rounding: str | None = None
    seed: int = 0


@cache
def program_of(selection: Selection) -> Program:
    """The traced program of a selection, made once."""
    return selection.rule.trace(selection.modifiers, **dict(selection.choices))


def describe(tensor: Any) -> str:
    """A tensor in a few words, for messages."""
    return f"{tensor.dtype} of shape {tuple(tensor.shape)} on {tensor.device}"


def check_gradient(selection: Selection, p: Tensor, g: Tensor, sparse: bool = False) -> None:
    """Raise for a gradient that no backend can take."""
    rule = selection.rule.name
    if g.layout is not torch.strided and not sparse:
        if takes_sparse(selection, g):
            raise Stale
        if selection.rule.sparse and g.layout is torch.sparse_coo:
            rule += " with weight decay"
        raise RuntimeError(
            f"{rule}: a gradient of layout {g.layout} was given for a parameter of shape "
            f"{tuple(p.shape)}, expected a dense one; build the embedding with sparse=False, or "
            "call p.grad = p.grad.to_dense() before the step"
        )
    if g.shape != p.shape or g.device != p.device or g.dtype != p.dtype:
        raise RuntimeError(
            f"{rule}: a gradient {describe(g)} was given, expected one like its parameter, "
            f"{describe(p)}; after a change of the parameter's data set p.grad = None"
        )


def takes_sparse(selection: Selection, g: Tensor | None) -> bool:
    """Whether the gradient is sparse and the rule can step the rows that it has."""
    return (
        g is not None
        and g.layout is torch.sparse_coo
        and bool(selection.rule.sparse)
        and {*selection.modifiers} <= {modifiers.maximize}
    )


def local(x: Any) -> Any:
    """This process's share of a DTensor; any other tensor itself."""
    return x.to_local() if hasattr(x, "to_local") else x


def offset(p: Any) -> int:
    """The number of the first element of this process's rows, within the whole tensor."""
    if not hasattr(p, "to_local") or not p.numel():
        return 0
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    _, at = compute_local_shape_and_global_offset(p.shape, p.device_mesh, p.placements)
    return sum(k * math.prod(p.shape[i + 1 :]) for i, k in enumerate(at))


def adopted(scalars: Sequence[Any], dtype: torch.dtype) -> Tensor | None:
    """The vector whose elements the scalars are, if they lie one behind the other in one memory."""
    if not scalars or not all(isinstance(x, Tensor) and x.dtype is dtype for x in scalars):
        return None
    first = scalars[0]
    places = [(x.untyped_storage().data_ptr(), x.storage_offset(), x.device.type) for x in scalars]
    memory, start, _ = places[0]
    if places != [(memory, start + k, "cpu") for k in range(len(scalars))]:
        return None
    return first.as_strided((len(scalars),), (1,), start)


class Part:
    """Parameters of one device and dtype, their states in columns, their counts in one vector.

    owners are the optimizer's parameters, params what is stepped: of a sharded owner, its shard.
    """

    def __init__(
        self,
        wanted: Wanted,
        owners: list[Tensor],
        old: list[dict[str, Any]],
        firsts: Sequence[int] = (),
    ) -> None:
        self.wanted, self.selection = wanted, wanted.selection
        self.sharded = hasattr(owners[0], "to_local")
        self.owners, params = owners, [local(p) for p in owners] if self.sharded else owners
        self.program, self.params, self.firsts = program_of(wanted.selection), params, firsts
        rule, program, n = wanted.selection.rule, self.program, len(params)
        self.rule = rule.name
        self.stochastic = wanted.rounding == "stochastic" and params[0].dtype is torch.bfloat16
        self.compensated = wanted.rounding == "kahan" and params[0].dtype in codecs.HALVES
        kept = program.states or program.carried or program.counts
        # the noise of stochastic rounding is of the step count too
        keeps = self.stochastic or (program.saves_count and bool(kept))
        # another process may count in the same memory: it is kept where it can be
        counts = adopted([state.get("step") for state in old], torch.float32)
        self.steps = torch.zeros(n, dtype=torch.float32) if counts is None else counts
        scalars = [state.get(rule.keys[c]) for c in rule.carried for state in old]
        if (carried := adopted(scalars, torch.float64)) is None:
            starts = [[start] * n for start in rule.carried.values()]
            carried = torch.tensor(starts, dtype=torch.float64)
        self.carried = carried.reshape(-1, n)
        keys = [rule.keys[s] for s in program.states]
        keys += [COMPENSATION] * self.compensated
        self.columns: list[list[Tensor]] = [[] for _ in keys]
        self.states: list[dict[str, Any] | None] = []
        views = self.steps.unbind()
        # in fp16 AdaBelief's eps is zero, and the square of a small gradient too
        kind = torch.float32 if params[0].dtype in codecs.HALVES else params[0].dtype
        self.kind = kind.to_real()
        for k, (p, state) in enumerate(zip(owners, old, strict=True)):
            born = bool(state) or p.grad is not None
            new = dict(state)
            held = [key for key in keys if state.get(key) is not None]
            if state:
                # without a saved count, what is there tells a first step from a later one
                self.steps[k] = float(state["step"]) if "step" in state else float(bool(held))
            # a compensation begins at zero at any time
            if self.steps[k] > 0 and (missing := sorted({*keys} - {*held, COMPENSATION})):
                raise RuntimeError(
                    f"{self.rule}: the state of a parameter of shape {tuple(p.shape)} has made "
                    f"{int(self.steps[k])} steps and lacks {missing}; it has {sorted(state)}. Load "
                    "a checkpoint of the same options, or clear optimizer.state to begin anew"
                )
            for key in {"step", COMPENSATION} - {*keys}:  # of options that are no longer asked for
                new.pop(key, None)
            if keeps:
                new["step"] = views[k]
            for key, column in zip(keys, self.columns, strict=True):
                if state.get(key) is None and born:
                    wide = p.dtype if key == COMPENSATION else kind
                    shape = rule.shape(key, p.shape)
                    new[key] = (
                        torch.zeros_like(p, dtype=wide, memory_format=torch.preserve_format)
                        if shape == p.shape
                        else torch.zeros(shape, dtype=wide, device=p.device)
                    )
                elif born and not isinstance(new[key], Tensor):
                    raise RuntimeError(
                        f"{self.rule}: state {key!r} is {new[key]!r}, expected a tensor like its "
                        f"parameter, {describe(p)}; put one there, or clear optimizer.state"
                    )
                elif born and (
                    new[key].shape != rule.shape(key, p.shape) or new[key].device != p.device
                ):
                    raise RuntimeError(
                        f"{self.rule}: state {key!r} is {describe(new[key])}, expected one like "
                        f"its parameter, {describe(p)}; load the state after moving the model"
                    )
                elif born and new[key].dtype != (wide := p.dtype if key == COMPENSATION else kind):
                    new[key] = new[key].detach().to(wide)
                column.append(local(new[key].detach() if born else p))
            for i, name in enumerate(rule.carried):
                if (value := state.get(rule.keys[name])) is not None:
                    self.carried[i, k] = float(value)
                new[rule.keys[name]] = self.carried[i, k]
            self.states.append(new if born else None)
        self.unborn = {k for k, state in enumerate(self.states) if state is None}
        self.kinds = list(map(_kind, params))
        # torch lets no other gradient in, unless it was told to
        leaves = [p for p in params if p.is_leaf]
        self.loose = any(getattr(p, "grad_dtype", p.dtype) != p.dtype for p in leaves)

    def check_params(self) -> None:
        """Raise Stale if a parameter has another dtype, shape or device than at planning."""
        if list(map(_kind, self.params)) != self.kinds:
            raise Stale

    def gradients(self) -> tuple[list[int], list[Tensor]]:
        """Where there is a gradient: the indices, and the gradients, checked."""
        self.check_params()
        grads = self.given()
        at = [k for k, g in enumerate(grads) if g is not None]
        some: list[Tensor] = [grads[k] for k in at]
        if self.unborn and not self.unborn.isdisjoint(at):
            raise Stale
        params = self.params if len(at) == len(grads) else [self.params[k] for k in at]
        like = self.params[0]
        if (
            list(map(_shape, some)) != list(map(_shape, params))
            or not set(map(_layout, some)) <= {torch.strided}
            or not set(map(_dtype, some)) <= {like.dtype}
            or not set(map(_device, some)) <= {like.device}
        ):
            for p, g in zip(params, some, strict=True):
                check_gradient(self.selection, p, g)
        return at, some

    def given(self) -> list[Any]:
        """What stands as gradient, shards for shards."""
        return self.shards() if self.sharded else [p.grad for p in self.params]

    @torch.no_grad()  # else to_local goes through autograd, for every tensor
    def shards(self) -> list[Any]:
        """This process's shares of the gradients, placed as the parameters are."""
        if list(map(_address, map(local, self.owners))) != list(map(_address, self.params)):
            raise Stale
        grads: list[Any] = []
        for p in self.owners:
            g: Any = p.grad
            if g is not None and hasattr(g, "placements") and g.placements != p.placements:  # type: ignore[attr-defined]
                g = g.redistribute(placements=p.placements)  # type: ignore[attr-defined]
            grads.append(local(g))
        return grads

    def rows(self, at: list[int]) -> list[tuple[list[int], float, list[float]]]:
        """The indices by equal counts and carried scalars: (indices, t, carried)."""
        steps = self.steps[at] + 1
        if not len(self.carried) and bool((steps == steps[:1]).all()):
            return [(at, float(steps[0]), [])] if at else []
        rows: dict[tuple[float, ...], list[int]] = {}
        values = zip(steps.tolist(), *(c[at].tolist() for c in self.carried), strict=True)
        for k, key in zip(at, values, strict=True):
            rows.setdefault(key, []).append(k)
        return [(indices, key[0], list(key[1:])) for key, indices in rows.items()]

    def count(self, indices: list[int], t: float, carried: Sequence[float]) -> None:
        """Write what the step made of counts and carried scalars."""
        self.steps[indices] = t
        for row, value in zip(self.carried, carried, strict=True):
            row[indices] = value

    def ready(self, scalars: list[float]) -> Callable[[], None]:
        """Check, and return what does the step; writes nothing."""
        raise NotImplementedError
