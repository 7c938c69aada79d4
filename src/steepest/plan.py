"""A plan: one group's parameters and states laid out for the backends, kept from step to step.

A part is a share of the group that one backend steps in one go. `ready` checks everything and
writes nothing; the function that it returns writes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from . import codecs
from .backends import eager, foreach
from .definition import COMPENSATION
from .families import Selection
from .formulas import modifiers
from .trace import Program, host_function

BACKENDS = ("cpu", "foreach", "eager")
_nbytes, _shape, _dtype = attrgetter("nbytes"), attrgetter("shape"), attrgetter("dtype")
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


@cache
def _foreach_of(selection: Selection, itemsize: int) -> tuple[Any, Any]:
    program = program_of(selection)
    return foreach.compiled(program), host_function(program, itemsize)


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
        keeps = self.stochastic or (rule.counts and bool(kept))
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
                    new[key] = torch.zeros_like(p, dtype=wide, memory_format=torch.preserve_format)
                elif born and not isinstance(new[key], Tensor):
                    raise RuntimeError(
                        f"{self.rule}: state {key!r} is {new[key]!r}, expected a tensor like its "
                        f"parameter, {describe(p)}; put one there, or clear optimizer.state"
                    )
                elif born and (new[key].shape != p.shape or new[key].device != p.device):
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


class CompiledPart(Part):
    """The CPU's compiled loop, for dense parameters of float32, float64 or bfloat16."""

    def __init__(
        self,
        wanted: Wanted,
        owners: list[Tensor],
        old: list[dict[str, Any]],
        firsts: Sequence[int] = (),
    ) -> None:
        from .backends import cpu

        super().__init__(wanted, owners, old, firsts)
        params = self.params
        self.n = len(params)
        self.strides = [p.stride() for p in params]
        self.contiguous = all(map(Tensor.is_contiguous, params))
        # what can be transposed in its own memory
        self.matrices = [p for p in params if p.dim() > 1 and p.is_contiguous()]
        self.nbytes, self.shapes = list(map(_nbytes, params)), list(map(_shape, params))
        self.addresses = list(map(Tensor.data_ptr, params))
        self.held = [p.detach() for p in params]  # no other tensor takes an address from them
        names = [self.selection.rule.keys[s] for s in self.program.states]
        names += [COMPENSATION] * self.compensated
        for name, column in zip(names, self.columns, strict=True):
            for k, s in enumerate(column):
                if k not in self.unborn and s.stride() != self.strides[k]:
                    # a state loaded in another layout: one that the loop can walk along p
                    state = self.states[k]
                    state[name] = torch.empty_like(owners[k], dtype=s.dtype).copy_(state[name])  # type: ignore[index]
                    column[k] = local(state[name].detach())  # type: ignore[index]
        storage = wanted.rounding or "nearest" if params[0].dtype in codecs.HALVES else ""
        self.work = cpu.Work(
            self.program,
            params,
            self.columns,
            self.steps,
            self.carried,
            storage,
            firsts or [0] * self.n,
        )
        self.scratch: dict[int, Tensor] = {}
        self.seen, self.half = False, params[0].dtype in codecs.HALVES

    def ready(self, scalars: list[float]) -> Callable[[], None]:
        params, grads = self.params, self.given()
        if list(map(Tensor.data_ptr, params)) != self.addresses or not all(
            map(Tensor.is_contiguous, self.matrices)
        ):
            raise Stale
        stepped, given, sized = self.owners, None, False
        try:
            given = np.fromiter(map(Tensor.data_ptr, grads), np.int64, self.n)  # type: ignore[arg-type]
            # the first gradients are looked at closely; torch itself refuses a later one of another
            # shape or dtype, but for those that were put in place by p.grad.data
            sized = self.seen and not self.unborn and list(map(_nbytes, grads)) == self.nbytes
            near = self.half or self.loose
            sized = sized and not (near and {*map(_dtype, grads)} != {params[0].dtype})
        except (TypeError, RuntimeError, NotImplementedError):  # None, sparse or no storage
            pass
        if not sized:
            at, grads = self.gradients()
            if list(map(_nbytes, params)) != self.nbytes:
                raise Stale
            given, stepped = np.zeros(self.n, np.int64), [self.owners[k] for k in at]
            given[at] = list(map(Tensor.data_ptr, grads))
            self.straighten(at, grads, given)
            self.seen = True
        elif not (self.contiguous and all(map(Tensor.is_contiguous, grads))):  # type: ignore[arg-type]
            if list(map(_shape, grads)) != self.shapes:
                self.gradients()
            self.straighten(range(self.n), grads, given)

        def step() -> None:
            self.work.run(given, scalars, self.keys() if self.stochastic else 0)
            torch.autograd.graph.increment_version(stepped)
            del grads[:]  # held until here: the loop has read their memory

        return step

    def keys(self) -> list[int]:
        """The key of each parameter's noise, by seed and count."""
        steps = self.steps.tolist()
        key = {t: codecs.key(self.wanted.seed, t + 1) for t in {*steps}}
        return [key[t] for t in steps]

    def straighten(self, at: Sequence[int], grads: list[Any], given: Any) -> None:
        """Copy gradients of other strides than their parameter's, and put the copies' addresses."""
        odd = [
            (k, g)
            for k, g, strides in zip(at, grads, map(Tensor.stride, grads), strict=True)
            if strides != self.strides[k] or g.is_neg()
        ]
        if odd:
            for k, _ in odd:
                if k not in self.scratch:
                    self.scratch[k] = torch.empty_like(self.params[k], requires_grad=False)
            copies = [self.scratch[k] for k, _ in odd]
            with torch.no_grad():
                torch._foreach_copy_(copies, [g for _, g in odd])
            given[[k for k, _ in odd]] = list(map(Tensor.data_ptr, copies))


class ForeachPart(Part):
    """torch._foreach calls, for whatever has no kernel."""

    def ready(self, scalars: list[float]) -> Callable[[], None]:
        at, grads = self.gradients()
        order = dict(zip(at, grads, strict=True))

        @torch.no_grad()
        def step() -> None:
            for indices, t, carried in self.rows(at):
                lists = [[column[k] for k in indices] for column in (self.params, *self.columns)]
                self.advance(lists, [order[k] for k in indices], indices, t, carried, scalars)

        return step

    def advance(
        self,
        lists: list[list[Tensor]],
        grads: list[Tensor],
        indices: list[int],
        t: float,
        carried: list[float],
        scalars: list[float],
    ) -> None:
        """Step the tensors, parameters first and then states, all of the same count t."""
        run, host = _foreach_of(self.selection, self.kind.itemsize)
        # t stands first among the program's scalars, if it is there
        values = host(*([t] if self.program.counts else []), *scalars, *carried)
        slots = len(self.program.slots)
        loaded = self.load(lists)
        run(loaded[0], [codecs.load(g, self.kind) for g in grads], *loaded[1:], values[:slots])
        self.store(lists, loaded, indices, t)
        self.count(indices, t, values[slots:])

    def load(self, lists: list[list[Tensor]]) -> list[list[Tensor]]:
        """What the rule reads: without the compensation, which is part of the parameter."""
        loaded = [[codecs.load(x, self.kind) for x in tensors] for tensors in lists]
        if self.compensated:
            compensation = loaded.pop()
            torch._foreach_add_(loaded[0], compensation)
        return loaded

    def store(
        self, lists: list[list[Tensor]], loaded: list[list[Tensor]], indices: list[int], t: float
    ) -> None:
        """Write back what was stepped in copies."""
        params, *states = lists
        if self.compensated:
            codecs.store_compensated(params, loaded[0], states.pop())
        elif self.stochastic:
            elements = [self.elements(k) for k in indices]
            codecs.store_stochastic(params, loaded[0], elements, self.wanted.seed, t)
        else:
            codecs.store(params, loaded[0], self.kind)
        for old, new in zip(states, loaded[1:], strict=True):
            codecs.store(old, new, self.kind)

    def elements(self, k: int) -> Tensor:
        """The numbers of a parameter's elements, for their noise."""
        return codecs.numbers(self.params[k], self.firsts[k])


class SparsePart(ForeachPart):
    """The rows that a sparse gradient has, for rules that leave a row without gradient alone."""

    chosen: dict[int, Any]

    def elements(self, k: int) -> Tensor:
        """The numbers of the elements in the rows of this step."""
        rows = self.chosen[k]
        return codecs.numbers(self.params[k], self.firsts[k], () if rows is ... else rows)

    def ready(self, scalars: list[float]) -> Callable[[], None]:
        self.check_params()
        grads = self.given()
        at = [k for k, g in enumerate(grads) if g is not None]
        if not all(takes_sparse(self.selection, grads[k]) for k in at):
            raise Stale
        if not self.unborn.isdisjoint(at):
            raise Stale
        for k in at:
            check_gradient(self.selection, self.params[k], grads[k], sparse=True)

        @torch.no_grad()
        def step() -> None:
            for indices, t, carried in self.rows(at):
                pieces, self.chosen = [], {}
                for k in indices:
                    g = grads[k].coalesce()
                    # the first step is of all rows: a state may have a start other than zero
                    every = t == 1 or self.selection.rule.sparse == "dense"
                    rows = ... if every else tuple(g.indices())
                    self.chosen[k] = rows
                    pieces.append((rows, g.to_dense() if every else g.values()))
                columns = [[c[k] for k in indices] for c in (self.params, *self.columns)]
                lists = [[x[rows] for x, (rows, _) in zip(c, pieces, strict=True)] for c in columns]
                self.advance(lists, [g for _, g in pieces], indices, t, carried, scalars)
                for column, tensors in zip(columns, lists, strict=True):
                    for x, (rows, _), new in zip(column, pieces, tensors, strict=True):
                        if rows is not ...:  # else it was a view
                            x[rows] = new

        return step


class ReferencePart(ForeachPart):
    """The rule itself, one parameter after the other; autograd goes through when asked to."""

    def ready(self, scalars: list[float]) -> Callable[[], None]:
        at, grads = self.gradients()
        rule, program, choices = self.selection.rule, self.program, dict(self.selection.choices)
        values = dict(zip((n for n in program.scalars if n != "t"), scalars, strict=True))
        differentiable = self.wanted.differentiable
        if differentiable and torch.is_grad_enabled():
            for k in at:
                if self.params[k].is_leaf and self.params[k].requires_grad:
                    raise RuntimeError(
                        f"{self.rule}: differentiable=True was given for a leaf that requires "
                        f"grad, {describe(self.params[k])}, expected what autograd can change in "
                        "place; pass clones, [p.clone() for p in model.parameters()]"
                    )

        def step() -> None:
            for k, g in zip(at, grads, strict=True):
                t, state = float(self.steps[k]) + 1, self.states[k] or {}
                values.update(zip(rule.carried, self.carried[:, k].tolist(), strict=True), t=t)
                with torch.set_grad_enabled(differentiable):
                    lists = [[column[k]] for column in (self.params, *self.columns)]
                    if differentiable:  # as the last step left them, with their history
                        lists[1:] = [[state[rule.keys[s]]] for s in program.states]
                    loaded = self.load(lists)
                    tensors = [x for (x,) in loaded]
                    tensors.insert(1, codecs.load(g, self.kind))
                    new, carried = eager.run(program, choices, tensors, values)
                    if not differentiable:
                        for old, name in zip(
                            loaded, (rule.tensors[0], *program.states), strict=True
                        ):
                            if name in new:
                                old[0].copy_(new[name])
                        self.store(lists, loaded, [k], t)
                    else:
                        codecs.view(self.params[k]).copy_(new.pop(rule.tensors[0]))
                        state.update((rule.keys[name], x) for name, x in new.items())
                self.count([k], t, carried)

        return step


def compiled_for(p: Tensor) -> bool:
    """Whether the CPU's loop can step the parameter: dense memory, and not float16."""
    return (
        p.device.type == "cpu"
        and p.dtype in (torch.float32, torch.float64, torch.bfloat16)
        and type(p) in (Tensor, torch.nn.Parameter)
        and p.layout is torch.strided
        and p.numel() > 0
        and not p.is_neg()
        # a copy that preserves the format has the strides of dense memory alone
        and (p.is_contiguous() or torch.empty_like(p, device="meta").stride() == p.stride())
    )


def parts(
    wanted: Wanted,
    params: Sequence[Tensor],
    state: Callable[[Tensor], dict[str, Any]],
    firsts: Callable[[Tensor], int],
) -> list[Part]:
    """The group's parameters shared out among the backends."""
    kinds: dict[Any, list[Tensor]] = {}
    rule, backend = wanted.selection.rule.name, wanted.backend
    for p in params:
        if any(step == 0 and size > 1 for step, size in zip(p.stride(), p.shape, strict=True)):
            raise RuntimeError(
                f"{rule}: a parameter of shape {tuple(p.shape)} and strides "
                f"{p.stride()} was given, expected one whose elements have memory of their own; "
                "expand it in the model, not in the optimizer"
            )
        if wanted.rounding == "stochastic" and p.dtype == torch.float16:
            raise RuntimeError(
                f"{rule}: rounding='stochastic' was given for {describe(p)}, expected "
                "torch.bfloat16 (or 32 bits and more, which need none); take rounding='kahan'"
            )
        kind: type[Part] = ForeachPart
        if takes_sparse(wanted.selection, p.grad):
            kind = SparsePart
        elif wanted.differentiable or backend == "eager":
            kind = ReferencePart
        elif backend != "foreach" and compiled_for(local(p)):
            kind = CompiledPart
        kinds.setdefault((kind, p.device, p.dtype, hasattr(p, "to_local")), []).append(p)
    dithered = wanted.rounding == "stochastic"
    return [
        kind(
            wanted, ps, [state(p) for p in ps],
            [firsts(p) + (offset(p) if dithered else 0) for p in ps],
        )
        for (kind, *_), ps in kinds.items()
    ]  # fmt: skip
