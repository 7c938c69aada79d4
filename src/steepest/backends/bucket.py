"""A bucket: what its parameters, gradients and states must be, and what is kept of them.

Between steps a bucket holds no parameter, gradient or state, only numbers about them: what others
free is freed, and what they put there is met at the next step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .. import codecs
from ..definition import COMPENSATION
from ..family import Selection
from ..formulas import modifiers
from ..tensors import PLAIN, describe, fake, in_bounds, local, number, offset
from ..trace import Program
from .cells import LIMIT, SINGLE, Cells
from .memory import MISFIT, STRIDES, Gradients

_like, _layout = attrgetter("dtype", "shape", "device"), attrgetter("layout")
States = Mapping[Tensor, dict[str, Any]]
Lists = list[list[Tensor]]
"""The parameters, then each state's tensors, then what codecs keep beside them."""


class Stale(Exception):  # noqa: N818  a signal, caught by the plan
    """The parameters or gradients are no longer those that the plan was made for."""


class Wanted(NamedTuple):
    """What a group asks for; backend None: the fastest for each tensor."""

    selection: Selection
    backend: str | None = None
    differentiable: bool = False
    rounding: str | None = None
    seed: int = 0


class Row(NamedTuple):
    """Indices of parameters with one count, t with the next step, and the same carried scalars.

    chosen: the rows of each that a sparse gradient has, and of what; empty: every one.
    """

    at: list[int]
    t: float
    carried: list[float]
    chosen: Sequence[tuple[Tensor, ...]] = ()
    whole: Sequence[Tensor] = ()


class Ready(NamedTuple):
    """What does a bucket's step, once all buckets were checked.

    add: the sums over its parameters, for a rule that sums over all; step takes the totals then.
    """

    step: Callable[[Sequence[Any] | None], None]
    add: Callable[[], list[Any]]


class Given(NamedTuple):
    """What a step works on: the bucket's parameters, the optimizer's state, the values of the
    scalars but t, and by their indices the gradients that are there.
    """

    owners: list[Tensor]
    state: States
    scalars: list[float]
    grads: dict[int, Tensor]


@cache
def program_of(selection: Selection) -> Program:
    """The traced program of a selection, made once."""
    return selection.rule.trace(selection.modifiers, **dict(selection.choices))


def takes_sparse(selection: Selection, g: Tensor | None) -> bool:
    """Whether the gradient is sparse and the rule can step the rows that it has."""
    able = bool(selection.rule.sparse) and {*selection.modifiers} <= {modifiers.maximize}
    return able and g is not None and g.layout is torch.sparse_coo


def wider(p: Tensor, g: Tensor | None) -> bool:
    """Whether a 16-bit parameter has a float32 gradient, as code that accumulates in it makes."""
    return g is not None and p.dtype in codecs.HALVES and g.dtype is torch.float32


class Bucket:
    """Parameters of one device and dtype, their states in columns, their counts in cells.

    owners are the optimizer's parameters, params what is stepped: of a sharded owner, its shard.
    old: what `optimizer.state` has of each owner; indices: where each stands in its group; first:
    the number of its first element; shared: the carried scalars of a rule that has the same ones
    for all parameters. `pending` is, until it is put in place, the state of each owner as the
    bucket keeps it; None before its first gradient.

    A backend says in `prepare` how it steps, and may override `ready` where it looks at gradients
    in its own way. codec: of the parameters; dtype: what the rule computes in; kept: the
    tensors of each owner's state, by key.
    """

    leading = 0  # the first one that has a gradient at this step

    def __init__(
        self,
        wanted: Wanted,
        old: dict[Tensor, dict[str, Any]],
        indices: list[int],
        first: Callable[[Tensor], int],
        shared: Mapping[str, float],
    ) -> None:
        self.wanted, self.selection, self.indices = wanted, wanted.selection, indices
        owners = [*old]
        self.sharded = hasattr(owners[0], "to_local")
        params = [local(p) for p in owners] if self.sharded else owners
        self.program = program = program_of(wanted.selection)
        rule, dtype, self.n = wanted.selection.rule, params[0].dtype, len(params)
        self.rule = rule.name
        self.half = dtype in codecs.HALVES
        self.wide = wider(params[0], owners[0].grad)
        self.sparse = takes_sparse(wanted.selection, owners[0].grad)
        # in fp16 AdaBelief's eps is zero, and the square of a small gradient too
        wide = torch.float32 if self.half else dtype
        self.dtype = wide.to_real()
        shapes = {key: partial(rule.shape, key) for key in (rule.keys[s] for s in program.states)}
        self.storage = codecs.Storage(wanted.rounding, dtype, wide, shapes)
        self.codec, self.kept = self.storage.parameter, self.storage.kept
        self.firsts = [first(p) + (offset(p) if self.codec.noisy else 0) for p in owners]
        counted = program.states or program.carried or program.reads_t
        # the noise of stochastic rounding is of the step count too
        self.keeps = self.codec.noisy or (program.saves_count and bool(counted))
        self.cells = Cells(1 + len(rule.carried), self.n)
        start = {**rule.carried, **shared}
        self.cells.own[1:] = np.array([*start.values()]).reshape(-1, 1)
        self.pending = [self.laid_out(k, p, state) for k, (p, state) in enumerate(old.items())]
        self.unborn = [k for k, state in enumerate(self.pending) if state is None]
        self.likes = list(map(_like, params))
        self.build(owners, params)

    def build(self, owners: list[Tensor], params: list[Tensor]) -> None:
        """What a backend makes of it once, from `pending`."""
        self.expected: Any = None
        if not self.sparse and all(type(p) in PLAIN and p.device.type == "cpu" for p in params):
            self.expect(owners, params, np.zeros(self.n, np.int64))

    def expect(self, owners: list[Tensor], params: list[Tensor], row: np.ndarray) -> None:
        """What gradients have to be; row: where their addresses are written."""
        like = local(owners[0].grad) if self.wide else params[0]
        self.expected = Gradients(params, like, row)

    def laid_out(self, k: int, p: Tensor, old: dict[str, Any]) -> dict[str, Any] | None:
        """The state of an owner as this bucket keeps it."""
        if not in_bounds(p):
            raise RuntimeError(f"{self.rule}: {_cut_short('a parameter', p)}")
        rule, new = self.selection.rule, dict(old)
        mine = {*rule.keys.values(), "step", COMPENSATION}
        held = {key for key in self.kept if old.get(key) is not None}
        if not mine & {*old} and p.grad is None:
            return None
        steps = 0.0
        if mine & {*old}:
            # without a saved count, what is there tells a first step from a later one
            steps = self.number("step", old["step"]) if "step" in old else float(bool(held))
        # what a codec keeps beside them begins at zero at any time
        needed = {*self.kept}.difference(held, *self.storage.beside)
        if steps > 0 and (missing := sorted(needed)):
            raise RuntimeError(
                f"{self.rule}: the state of a parameter of shape {tuple(p.shape)} has made "
                f"{int(steps)} steps and lacks {missing}; it has {sorted(map(str, old))}. Load "
                "a checkpoint of the same options, or clear optimizer.state to begin anew"
            )
        for key in {"step", COMPENSATION} - {*self.kept}:  # of options no longer asked for
            new.pop(key, None)
        self.cells.own[0, k] = steps
        if self.keeps:
            new["step"] = self.cell(0, k, old.get("step"), steps, torch.float32)
        for key, (dtype, shape_of) in self.kept.items():
            shape = shape_of(p.shape)
            if key not in held and shape == p.shape:  # with its strides and shards
                new[key] = torch.zeros_like(p, dtype=dtype)
            elif key not in held:
                new[key] = p.new_zeros(shape, dtype=dtype)
            x = new[key]
            if not isinstance(x, Tensor) or x.shape != shape or x.device != p.device:
                one = "one" if isinstance(x, Tensor) else "a tensor"
                raise RuntimeError(
                    f"{self.rule}: state {key!r} is {describe(x)}, expected {one} like its "
                    f"parameter, {describe(p)}; load the state after moving the model, put a "
                    "tensor there, or clear optimizer.state"
                )
            if not in_bounds(x):
                raise RuntimeError(f"{self.rule}: {_cut_short(f'state {key!r}', x)}")
            if not torch.is_inference_mode_enabled() and x.is_inference():
                x = x.clone()
            # in memory of its own, element for element, and as it reads
            x = x.resolve_neg().resolve_conj()
            if any(step == 0 and size > 1 for step, size in zip(x.stride(), x.shape, strict=True)):
                x = x.contiguous()
            new[key] = x if x.dtype == dtype else x.detach().to(dtype)
        for i, name in enumerate(rule.carried, start=1):
            key, value = rule.keys[name], self.cells.own[i, k]
            given = old.get(key)
            value = value if given is None else self.number(key, given)
            new[key] = self.cell(i, k, given, value, torch.float64)
        return new

    def number(self, key: str, x: Any) -> float:
        """A count or a carried scalar of a state."""
        if fake(x):
            return 0.0
        if isinstance(x, Tensor) and (x.numel() != 1 or x.is_meta):
            raise RuntimeError(
                f"{self.rule}: state {key!r} is {describe(x)}, expected one number; put a tensor "
                "of one element there, or clear optimizer.state"
            )
        if isinstance(x, Tensor) and not in_bounds(x):
            raise RuntimeError(f"{self.rule}: {_cut_short(f'state {key!r}', x)}")
        found = float(x.detach() if isinstance(x, Tensor) else x)
        if key == "step" and not 0 <= found < math.inf:
            raise RuntimeError(
                f"{self.rule}: the count of steps in optimizer.state is {found}, expected 0 or "
                "more; put a number there, or clear optimizer.state to begin anew"
            )
        return found

    def cell(self, row: int, k: int, given: Any, value: float, dtype: torch.dtype) -> Tensor:
        """The tensor that this number is kept in: the one that is there, if it can be."""
        self.cells.own[row, k] = value
        if isinstance(given, Tensor) and given.requires_grad and self.wanted.differentiable:
            return given  # its history stays beside the number
        usable = Cells.able(given) and not given.requires_grad
        if usable and given.data_ptr() in self.cells.addresses[row]:
            usable = False  # of another parameter, which would count twice
        dtype = torch.float64 if value >= LIMIT else dtype
        x = given if usable else torch.tensor(value, dtype=dtype, device="cpu")
        if Cells.able(x):  # else it is nothing but a shape, as in FakeTensorMode
            self.cells.put(row, k, x)
        return x

    # one step

    def ready(self, owners: list[Tensor], state: States, scalars: list[float]) -> Ready | None:
        """Check, and return what does the step; writes nothing. None: no gradient is there.

        owners: those of the bucket's making, in order; state: the optimizer's.
        """
        grads = self.gradients(owners)
        return self.prepare(Given(owners, state, scalars, grads)) if grads else None

    def prepare(self, given: Given) -> Ready:
        """What steps the parameters that have a gradient, which is checked."""
        raise NotImplementedError

    def load(self, lists: Lists) -> Lists:
        """What the rule reads of the parameters and of each state."""
        return self.storage.load(lists, self.dtype)

    def store(self, lists: Lists, new: Lists, row: Row) -> None:
        """Write back what was stepped in copies."""
        self.storage.store(lists, new, self.noise(lists[0], row) if self.codec.noisy else None)

    def noise(self, params: list[Tensor], row: Row) -> codecs.Noise:
        """What the rounding of these parameters draws from."""
        chosen = row.chosen or [()] * len(row.at)
        # of some rows, the numbers are those in the whole parameter
        of = zip(row.whole or params, row.at, chosen, strict=True)
        elements = [codecs.numbers(p, self.firsts[k], rows) for p, k, rows in of]
        return codecs.Noise(elements, self.wanted.seed, row.t)

    def columns(self, owners: Sequence[Tensor], state: States, at: list[int]) -> Lists:
        """The tensors of the parameters with these indices."""
        some = [owners[k] for k in at]
        # optimizer.state makes a dict for whoever asks: only a rule that has states may
        own = [[local(state[p][key]) for p in some] for key in self.kept]
        return [list(map(local, some)) if self.sharded else some, *own]

    def gradients(self, owners: Sequence[Tensor]) -> dict[int, Tensor]:
        """The gradients that are there, checked, by the index of their parameter.

        Raises Stale if another bucket has to take one.
        """
        grads = self.given(owners)
        some: dict[int, Tensor] = {k: g for k, g in enumerate(grads) if g is not None}
        if not some.keys().isdisjoint(self.unborn):
            raise Stale
        if self.expected is not None and type(grads) is list:
            odd = self.expected.look(grads) & (1 << STRIDES | 1 << MISFIT)
        else:
            layout = torch.sparse_coo if self.sparse else torch.strided
            likes = [self.likes[k] for k in some]
            fits = list(map(_like, some.values())) == likes
            odd = not (fits and {*map(_layout, some.values())} <= {layout})
        if odd:
            for k, g in some.items():
                self.check_gradient(local(owners[k]), g)
        self.leading = min(some, default=0)
        return some

    def check_gradient(self, p: Tensor, g: Tensor) -> None:
        """Raise for a gradient that no backend can take, Stale for one of another bucket."""
        if takes_sparse(self.selection, g) is not self.sparse or wider(p, g) is not self.wide:
            raise Stale
        if g.layout is not torch.strided and not self.sparse:
            known = bool(self.selection.rule.sparse) and g.layout is torch.sparse_coo
            why = " with weight decay or clipping" if known else ""
            raise RuntimeError(
                f"{self.rule}{why}: a gradient of layout {g.layout} was given for {describe(p)}, "
                "expected a dense one; build the embedding with sparse=False, or call p.grad = "
                "p.grad.to_dense() before the step"
            )
        dtype = torch.float32 if self.wide else p.dtype
        if (g.dtype, g.shape, g.device) != (dtype, p.shape, p.device):
            raise RuntimeError(
                f"{self.rule}: a gradient {describe(g)} was given, expected one like its parameter,"
                f" {describe(p)}; after a change of the parameter's data set p.grad = None"
            )
        if not in_bounds(g):
            raise RuntimeError(f"{self.rule}: {_cut_short('a gradient', g)}")

    def given(self, owners: Sequence[Tensor]) -> list[Any]:
        """What stands as gradient, shards for shards."""
        return self.shards(owners) if self.sharded else [p.grad for p in owners]

    @torch.no_grad()  # else to_local goes through autograd, for every tensor
    def shards(self, owners: Sequence[Tensor]) -> list[Any]:
        """This process's shares of the gradients, placed as the parameters are."""
        grads: list[Any] = []
        for p in owners:
            g: Any = p.grad
            if g is not None and hasattr(g, "placements") and g.placements != p.placements:  # type: ignore[attr-defined]
                g = g.redistribute(placements=p.placements)  # type: ignore[attr-defined]
            grads.append(local(g))
        return grads

    def rows(self, at: list[int]) -> list[Row]:
        """The indices by equal counts and carried scalars."""
        values = self.cells.read()[:, at]
        values[0] += 1
        if at and bool((values == values[:, :1]).all()):
            t, *carried = values[:, 0].tolist()
            return [Row(at, t, carried)]
        rows: dict[tuple[float, ...], list[int]] = {}
        for k, key in zip(at, values.T.tolist(), strict=True):
            rows.setdefault(tuple(key), []).append(k)
        return [Row(indices, t, carried) for (t, *carried), indices in rows.items()]

    def count(self, owners: Sequence[Tensor], state: States, row: Row, carried: Any) -> None:
        """Write what the step made of counts and carried scalars."""
        values = np.repeat(np.array([row.t, *carried], np.float64)[:, None], len(row.at), 1)
        if row.t > LIMIT:
            values[0, self.cells.kinds[0, row.at] == SINGLE] -= 1
        self.cells.write(values, row.at)
        if row.t > LIMIT:
            self.widen(owners, state, row.at)

    def widen(self, owners: Sequence[Tensor], state: States, at: Sequence[int]) -> None:
        """Count on in float64 where a float32 count has reached its end, and so was left as it was.

        Others may count in shared memory: there it stays, and stands still.
        """
        for p in (owners[k] for k in at):
            x = state[p].get("step") if p in state else None
            if isinstance(x, Tensor) and x.dtype is torch.float32 and float(x) >= LIMIT:
                state[p]["step"] = x if x.is_shared() else x.double() + 1

    def carried_of(self, owners: list[Tensor], state: States, k: int) -> list[Any]:
        """The carried scalars of one parameter."""
        return self.cells.read()[1:, k].tolist()

    def carry(self, owners: list[Tensor], state: States, values: Sequence[Any]) -> None:
        """Give all parameters the same carried scalars, those without a gradient too."""
        counts = self.cells.read()[:1]
        rest = np.repeat(np.array([*map(number, values)])[:, None], self.n, 1)
        self.cells.write(np.vstack([counts, rest]), [*range(self.n)])


def _cut_short(what: str, x: Tensor) -> str:
    have = x.untyped_storage().nbytes()
    return (
        f"{what} {describe(x)} has a storage of {have} bytes, fewer than its elements need; bring "
        "its memory back before the step"
    )
