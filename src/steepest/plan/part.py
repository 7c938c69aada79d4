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

_kind, _layout = attrgetter("dtype", "shape", "device"), attrgetter("layout")


class Stale(Exception):  # noqa: N818  a signal, caught by the shell
    """The parameters are no longer those that the plan was made for."""


class Wanted(NamedTuple):
    """What a group asks for; backend None: the fastest for each tensor."""

    selection: Selection
    backend: str | None = None
    differentiable: bool = False
    rounding: str | None = None
    seed: int = 0


class Row(NamedTuple):
    """Indices of parameters with one count, t with the next step, and the same carried scalars.

    chosen: the rows of each that a sparse gradient has; empty: every one.
    """

    at: list[int]
    t: float
    carried: list[float]
    chosen: Sequence[tuple[Tensor, ...]] = ()


@cache
def program_of(selection: Selection) -> Program:
    """The traced program of a selection, made once."""
    return selection.rule.trace(selection.modifiers, **dict(selection.choices))


def describe(x: Any) -> str:
    """A tensor in a few words, for messages; anything else as it prints itself."""
    return (
        f"{x.dtype} of shape {tuple(x.shape)} on {x.device}" if isinstance(x, Tensor) else repr(x)
    )


def takes_sparse(selection: Selection, g: Tensor | None) -> bool:
    """Whether the gradient is sparse and the rule can step the rows that it has."""
    able = bool(selection.rule.sparse) and {*selection.modifiers} <= {modifiers.maximize}
    return able and g is not None and g.layout is torch.sparse_coo


def local(x: Any) -> Any:
    """This process's share of a DTensor; any other tensor itself."""
    return x.to_local() if hasattr(x, "to_local") else x


def fake(x: Any) -> bool:
    """Whether it is a tensor of FakeTensorMode, whose value cannot be asked for."""
    return hasattr(x, "fake_mode")


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
    old: what `optimizer.state` has of each owner; first: the number of its first element.
    """

    sparse = False  # what gradients it takes

    def __init__(
        self, wanted: Wanted, old: dict[Tensor, dict[str, Any]], first: Callable[[Tensor], int]
    ) -> None:
        self.wanted, self.selection = wanted, wanted.selection
        self.owners = owners = [*old]
        self.sharded = hasattr(owners[0], "to_local")
        self.params = params = [local(p) for p in owners] if self.sharded else owners
        self.program = program = program_of(wanted.selection)
        rule, dtype, n = wanted.selection.rule, params[0].dtype, len(params)
        self.rule = rule.name
        self.half = dtype in codecs.HALVES
        self.stochastic = wanted.rounding == "stochastic" and dtype is torch.bfloat16
        self.compensated = wanted.rounding == "kahan" and self.half
        self.firsts = [first(p) + (offset(p) if self.stochastic else 0) for p in owners]
        # in fp16 AdaBelief's eps is zero, and the square of a small gradient too
        wide = torch.float32 if self.half else dtype
        self.kind = wide.to_real()
        self.dtypes = {rule.keys[s]: wide for s in program.states}
        self.dtypes |= {COMPENSATION: dtype} if self.compensated else {}
        kept = program.states or program.carried or program.counts
        # the noise of stochastic rounding is of the step count too
        self.keeps = self.stochastic or (program.saves_count and bool(kept))
        # another process may count in the same memory: it is kept where it can be
        counts = adopted([state.get("step") for state in old.values()], torch.float32)
        self.steps = torch.zeros(n, dtype=torch.float32, device="cpu") if counts is None else counts
        scalars = [state.get(rule.keys[c]) for c in rule.carried for state in old.values()]
        if (carried := adopted(scalars, torch.float64)) is None:
            starts = [[start] * n for start in rule.carried.values()]
            carried = torch.tensor(starts, dtype=torch.float64, device="cpu")
        self.carried = carried.reshape(-1, n)
        self.states = [self.laid_out(k, p, state) for k, (p, state) in enumerate(old.items())]
        self.unborn = {k for k, state in enumerate(self.states) if state is None}
        self.columns = [
            [local(x[key].detach() if x else p) for p, x in zip(owners, self.states, strict=True)]
            for key in self.dtypes
        ]
        self.kinds = list(map(_kind, params))
        # torch lets no other gradient in, unless it was told to
        leaves = [p for p in params if p.is_leaf]
        self.loose = any(getattr(p, "grad_dtype", p.dtype) != p.dtype for p in leaves)

    def laid_out(self, k: int, p: Tensor, old: dict[str, Any]) -> dict[str, Any] | None:
        """The state of an owner as this part keeps it; None before its first gradient."""
        if not old and p.grad is None:
            return None
        rule, new = self.selection.rule, dict(old)
        held = {key for key in self.dtypes if old.get(key) is not None}
        if old:
            # without a saved count, what is there tells a first step from a later one
            known = old["step"] if "step" in old else bool(held)
            self.steps[k] = known if fake(known) else float(known)
        # a compensation begins at zero at any time
        missing = sorted({*self.dtypes} - {*held, COMPENSATION})
        if missing and not fake(self.steps) and self.steps[k] > 0:
            raise RuntimeError(
                f"{self.rule}: the state of a parameter of shape {tuple(p.shape)} has made "
                f"{int(self.steps[k])} steps and lacks {missing}; it has {sorted(old)}. Load "
                "a checkpoint of the same options, or clear optimizer.state to begin anew"
            )
        for key in {"step", COMPENSATION} - {*self.dtypes}:  # of options no longer asked for
            new.pop(key, None)
        if self.keeps:
            new["step"] = self.steps[k]
        for key, wide in self.dtypes.items():
            shape = rule.shape(key, p.shape)
            if key not in held:
                like = shape == p.shape  # with its strides and shards
                new[key] = (
                    torch.zeros_like(p, dtype=wide) if like else p.new_zeros(shape, dtype=wide)
                )
            x = new[key]
            if not isinstance(x, Tensor) or x.shape != shape or x.device != p.device:
                one = "one" if isinstance(x, Tensor) else "a tensor"
                raise RuntimeError(
                    f"{self.rule}: state {key!r} is {describe(x)}, expected {one} like its "
                    f"parameter, {describe(p)}; load the state after moving the model, put a "
                    "tensor there, or clear optimizer.state"
                )
            new[key] = x if x.dtype == wide else x.detach().to(wide)
        for key, row in zip((rule.keys[c] for c in rule.carried), self.carried, strict=True):
            if old.get(key) is not None:
                row[k] = old[key] if fake(old[key]) else float(old[key])
            new[key] = row[k]
        return new

    def gradients(self) -> tuple[list[int], list[Tensor]]:
        """Where there is a gradient: the indices, and the gradients, checked.

        Raises Stale if a parameter has another dtype, shape or device than at planning.
        """
        if list(map(_kind, self.params)) != self.kinds:
            raise Stale
        grads = self.given()
        at = [k for k, g in enumerate(grads) if g is not None]
        some: list[Tensor] = [grads[k] for k in at]
        if not self.unborn.isdisjoint(at):
            raise Stale
        layout = torch.sparse_coo if self.sparse else torch.strided
        kinds = [self.kinds[k] for k in at]
        if list(map(_kind, some)) != kinds or not {*map(_layout, some)} <= {layout}:
            for k, g in zip(at, some, strict=True):
                self.check_gradient(self.params[k], g)
        return at, some

    def check_gradient(self, p: Tensor, g: Tensor) -> None:
        """Raise for a gradient that no backend can take, Stale for one that another part takes."""
        if takes_sparse(self.selection, g) is not self.sparse:
            raise Stale
        if g.layout is not torch.strided and not self.sparse:
            known = bool(self.selection.rule.sparse) and g.layout is torch.sparse_coo
            why = " with weight decay or clipping" * known
            raise RuntimeError(
                f"{self.rule}{why}: a gradient of layout {g.layout} was given for {describe(p)}, "
                "expected a dense one; build the embedding with sparse=False, or call p.grad = "
                "p.grad.to_dense() before the step"
            )
        if _kind(g) != _kind(p):
            raise RuntimeError(
                f"{self.rule}: a gradient {describe(g)} was given, expected one like its parameter,"
                f" {describe(p)}; after a change of the parameter's data set p.grad = None"
            )

    def given(self) -> list[Any]:
        """What stands as gradient, shards for shards."""
        return self.shards() if self.sharded else [p.grad for p in self.params]

    @torch.no_grad()  # else to_local goes through autograd, for every tensor
    def shards(self) -> list[Any]:
        """This process's shares of the gradients, placed as the parameters are."""
        at = Tensor.data_ptr
        if list(map(at, map(local, self.owners))) != list(map(at, self.params)):
            raise Stale
        grads: list[Any] = []
        for p in self.owners:
            g: Any = p.grad
            if g is not None and hasattr(g, "placements") and g.placements != p.placements:  # type: ignore[attr-defined]
                g = g.redistribute(placements=p.placements)  # type: ignore[attr-defined]
            grads.append(local(g))
        return grads

    def rows(self, at: list[int]) -> list[Row]:
        """The indices by equal counts and carried scalars."""
        if fake(self.steps):
            return [Row(at, 1.0, [*self.selection.rule.carried.values()])] if at else []
        steps = self.steps[at] + 1
        if not len(self.carried) and bool((steps == steps[:1]).all()):
            return [Row(at, float(steps[0]), [])] if at else []
        rows: dict[tuple[float, ...], list[int]] = {}
        values = zip(steps.tolist(), *(c[at].tolist() for c in self.carried), strict=True)
        for k, key in zip(at, values, strict=True):
            rows.setdefault(key, []).append(k)
        return [Row(indices, t, carried) for (t, *carried), indices in rows.items()]

    def count(self, row: Row, carried: Sequence[float]) -> None:
        """Write what the step made of counts and carried scalars."""
        self.steps[row.at] = row.t
        for column, value in zip(self.carried, carried, strict=True):
            column[row.at] = value

    def ready(self, scalars: list[float]) -> Callable[[], None]:
        """Check, and return what does the step; writes nothing."""
        raise NotImplementedError
