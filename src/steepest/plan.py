"""A plan: one group's parameters and states laid out for the backends, kept from step to step.

A part is a share of the group that one backend steps in one go. `ready` checks everything and
writes nothing; the function that it returns writes and no longer fails.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .backends import eager, foreach
from .families import Selection
from .trace import Program, host_function

HALVES = (torch.float16, torch.bfloat16)
BACKENDS = ("cpu", "foreach", "eager")
_nbytes, _shape, _dtype = attrgetter("nbytes"), attrgetter("shape"), attrgetter("dtype")
_device, _layout = attrgetter("device"), attrgetter("layout")


class Stale(Exception):  # noqa: N818  a signal, caught by the shell
    """The parameters are no longer those that the plan was made for."""


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


def check_gradient(rule: str, p: Tensor, g: Tensor) -> None:
    """Raise for a gradient that no backend can take."""
    if g.layout is not torch.strided:
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


class Part:
    """Parameters of one device and dtype, their states in columns, their counts in one vector."""

    differentiable = False

    def __init__(
        self, selection: Selection, params: list[Tensor], old: list[dict[str, Any]]
    ) -> None:
        self.selection, self.program, self.params = selection, program_of(selection), params
        rule, program, n = selection.rule, self.program, len(params)
        self.rule = rule.name
        keeps = rule.counts and bool(program.states or program.carried or program.counts)
        self.steps = torch.zeros(n, dtype=torch.float32)
        self.carried = torch.tensor(
            [[start] * n for start in rule.carried.values()], dtype=torch.float64
        ).reshape(-1, n)
        self.columns: list[list[Tensor]] = [[] for _ in program.states]
        self.states: list[dict[str, Any] | None] = []
        views = self.steps.unbind()
        # in fp16 AdaBelief's eps is zero, and the square of a small gradient too
        kind = torch.float32 if params[0].dtype in HALVES else params[0].dtype
        self.kind = kind.to_real()
        for k, (p, state) in enumerate(zip(params, old, strict=True)):
            born = bool(state) or p.grad is not None
            new = dict(state)
            keys = [rule.keys[s] for s in program.states]
            held = [key for key in keys if state.get(key) is not None]
            if state:
                # without a saved count, what is there tells a first step from a later one
                self.steps[k] = float(state["step"]) if "step" in state else float(bool(held))
            if self.steps[k] > 0 and len(held) < len(keys):
                missing = sorted({*keys} - {*held})
                raise RuntimeError(
                    f"{self.rule}: the state of a parameter of shape {tuple(p.shape)} has made "
                    f"{int(self.steps[k])} steps and lacks {missing}; it has {sorted(state)}. Load "
                    "a checkpoint of the same options, or clear optimizer.state to begin anew"
                )
            if keeps:
                new["step"] = views[k]
            for key, column in zip(keys, self.columns, strict=True):
                if state.get(key) is None and born:
                    new[key] = torch.zeros_like(p, dtype=kind, memory_format=torch.preserve_format)
                elif born and (new[key].shape != p.shape or new[key].device != p.device):
                    raise RuntimeError(
                        f"{self.rule}: state {key!r} is {describe(new[key])}, expected one like "
                        f"its parameter, {describe(p)}; load the state after moving the model"
                    )
                column.append(new[key].detach() if born else p)
            for i, name in enumerate(rule.carried):
                if (value := state.get(rule.keys[name])) is not None:
                    self.carried[i, k] = float(value)
                new[rule.keys[name]] = self.carried[i, k]
            self.states.append(new if born else None)
        self.unborn = {k for k, state in enumerate(self.states) if state is None}

    def gradients(self) -> tuple[list[int], list[Tensor]]:
        """Where there is a gradient: the indices, and the gradients, checked."""
        grads = [p.grad for p in self.params]
        at = [k for k, g in enumerate(grads) if g is not None]
        some: list[Tensor] = [grads[k] for k in at]  # type: ignore[misc]
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
                check_gradient(self.rule, p, g)
        return at, some

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
    """The CPU's compiled loop, for dense float32 or float64 parameters."""

    def __init__(
        self, selection: Selection, params: list[Tensor], old: list[dict[str, Any]]
    ) -> None:
        from .backends import cpu

        super().__init__(selection, params, old)
        self.n = len(params)
        self.strides = [p.stride() for p in params]
        self.contiguous = all(map(Tensor.is_contiguous, params))
        # what can be transposed in its own memory
        self.matrices = [p for p in params if p.dim() > 1 and p.is_contiguous()]
        self.nbytes, self.shapes = list(map(_nbytes, params)), list(map(_shape, params))
        self.addresses = list(map(Tensor.data_ptr, params))
        self.held = [p.detach() for p in params]  # no other tensor takes an address from them
        for key, column in zip(self.program.states, self.columns, strict=True):
            for k, s in enumerate(column):
                if k not in self.unborn and (
                    s.dtype != params[k].dtype or s.stride() != self.strides[k]
                ):
                    # a state loaded in another dtype or layout: one that the loop can walk along p
                    column[k] = torch.empty_like(params[k]).copy_(s)
                    self.states[k][selection.rule.keys[key]] = column[k]  # type: ignore[index]
        self.work = cpu.Work(self.program, params, self.columns, self.steps, self.carried)
        self.scratch: dict[int, Tensor] = {}

    def ready(self, scalars: list[float]) -> Callable[[], None]:
        params, grads = self.params, [p.grad for p in self.params]
        if list(map(Tensor.data_ptr, params)) != self.addresses or not all(
            map(Tensor.is_contiguous, self.matrices)
        ):
            raise Stale
        stepped, given, sized = params, None, False
        try:
            given = np.fromiter(map(Tensor.data_ptr, grads), np.int64, self.n)  # type: ignore[arg-type]
            sized = not self.unborn and list(map(_nbytes, grads)) == self.nbytes
        except (TypeError, RuntimeError, NotImplementedError):  # None, sparse or no storage
            pass
        if not sized:
            at, grads = self.gradients()
            if list(map(_nbytes, params)) != self.nbytes:
                raise Stale
            given, stepped = np.zeros(self.n, np.int64), [params[k] for k in at]
            given[at] = list(map(Tensor.data_ptr, grads))
            self.straighten(at, grads, given)
        elif not (self.contiguous and all(map(Tensor.is_contiguous, grads))):  # type: ignore[arg-type]
            if list(map(_shape, grads)) != self.shapes:
                self.gradients()
            self.straighten(range(self.n), grads, given)

        def step() -> None:
            self.work.run(given, scalars)
            torch.autograd.graph.increment_version(stepped)
            del grads[:]  # held until here: the loop has read their memory

        return step

    def straighten(self, at: Sequence[int], grads: list[Any], given: Any) -> None:
        """Copy gradients of other strides than their parameter's, and put the copies' addresses."""
        odd = [
            (k, g)
            for k, g, strides in zip(at, grads, map(Tensor.stride, grads), strict=True)
            if strides != self.strides[k]
        ]
        if odd:
            for k, _ in odd:
                if k not in self.scratch:
                    self.scratch[k] = torch.empty_like(self.params[k], requires_grad=False)
            copies = [self.scratch[k] for k, _ in odd]
            with torch.no_grad():
                torch._foreach_copy_(copies, [g for _, g in odd])
            given[[k for k, _ in odd]] = list(map(Tensor.data_ptr, copies))


def _view(x: Tensor) -> Tensor:
    return torch.view_as_real(x) if x.is_complex() else x


def _load(x: Tensor, kind: torch.dtype) -> Tensor:
    """As the rule sees it: complex numbers as pairs in place, another dtype as a copy."""
    return _view(x.resolve_conj()).to(kind)


class ForeachPart(Part):
    """torch._foreach calls, for whatever has no kernel."""

    def ready(self, scalars: list[float]) -> Callable[[], None]:
        at, grads = self.gradients()
        kind = self.kind
        run, host = _foreach_of(self.selection, kind.itemsize)
        order = dict(zip(at, grads, strict=True))
        # t stands first among the program's scalars, if it is there
        lead = self.program.counts
        slots = len(self.program.slots)

        @torch.no_grad()
        def step() -> None:
            for indices, t, carried in self.rows(at):
                values = host(*([t] if lead else []), *scalars, *carried)
                lists = [[column[k] for k in indices] for column in (self.params, *self.columns)]
                p, *states = loaded = [[_load(x, kind) for x in tensors] for tensors in lists]
                run(p, [_load(order[k], kind) for k in indices], *states, values[:slots])
                for tensors, new in zip(lists, loaded, strict=True):
                    if any(x.dtype not in (kind, kind.to_complex()) for x in tensors):
                        torch._foreach_copy_(list(map(_view, tensors)), new)
                self.count(indices, t, values[slots:])

        return step


class ReferencePart(Part):
    """The rule itself, one parameter after the other; autograd goes through when asked to."""

    def ready(self, scalars: list[float]) -> Callable[[], None]:
        at, grads = self.gradients()
        rule, program, choices = self.selection.rule, self.program, dict(self.selection.choices)
        values = dict(zip((n for n in program.scalars if n != "t"), scalars, strict=True))

        def step() -> None:
            for k, g in zip(at, grads, strict=True):
                t, state = float(self.steps[k]) + 1, self.states[k] or {}
                values.update(zip(rule.carried, self.carried[:, k].tolist(), strict=True), t=t)
                with torch.set_grad_enabled(self.differentiable):
                    states = [state[rule.keys[s]] for s in program.states]
                    p = self.params[k]
                    loaded = [_load(x, self.kind) for x in (p, g, *states)]
                    new, carried = eager.run(program, choices, loaded, values)
                    _view(p).copy_(new.pop(rule.tensors[0]))
                    for name, old in zip(program.states, states, strict=True):
                        if name in new and self.differentiable:
                            state[rule.keys[name]] = new[name]
                        elif name in new:
                            _view(old).copy_(new[name])
                self.count([k], t, carried)

        return step


def compiled_for(p: Tensor) -> bool:
    """Whether the CPU's loop can step the parameter: dense memory, float32 or float64."""
    return (
        p.device.type == "cpu"
        and p.dtype in (torch.float32, torch.float64)
        and type(p) in (Tensor, torch.nn.Parameter)
        and p.layout is torch.strided
        and p.numel() > 0
        and not p.is_neg()
        # a copy that preserves the format has the strides of dense memory alone
        and (p.is_contiguous() or torch.empty_like(p, device="meta").stride() == p.stride())
    )


def parts(
    selection: Selection,
    params: Sequence[Tensor],
    state: Callable[[Tensor], dict[str, Any]],
    backend: str | None,
    differentiable: bool,
) -> list[Part]:
    """The group's parameters shared out among the backends."""
    kinds: dict[Any, list[Tensor]] = {}
    for p in params:
        if any(step == 0 and size > 1 for step, size in zip(p.stride(), p.shape, strict=True)):
            raise RuntimeError(
                f"{selection.rule.name}: a parameter of shape {tuple(p.shape)} and strides "
                f"{p.stride()} was given, expected one whose elements have memory of their own; "
                "expand it in the model, not in the optimizer"
            )
        kind: type[Part] = ForeachPart
        if differentiable or backend == "eager":
            kind = ReferencePart
        elif backend != "foreach" and compiled_for(p):
            kind = CompiledPart
        kinds.setdefault((kind, p.device, p.dtype), []).append(p)
    found = [kind(selection, ps, [state(p) for p in ps]) for (kind, *_), ps in kinds.items()]
    for part in found:
        part.differentiable = differentiable
    return found
