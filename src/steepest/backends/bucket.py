"""A bucket: parameters that one backend steps together.

Between steps a bucket holds no parameter, gradient or state, only numbers that describe these
tensors. So a bucket keeps no tensor's memory alive. If other code replaces a tensor between two
steps, this is noticed at the next step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import codecs
from ..definition import COMPENSATION
from ..tensors import PLAIN, describe, fake, in_bounds, local, number, offset
from .cells import LIMIT, SINGLE, Cells
from .inputs import Lists, Ready, Row, Stale, States, StepInputs
from .memory import MISFIT, STRIDES, Gradients
from .wanted import Wanted, program_of, takes_sparse, wider

_traits, _layout = attrgetter("dtype", "shape", "device"), attrgetter("layout")


class Bucket:
    """Parameters of one device and dtype that a backend steps together.

    The `owners` are parameters of the optimizer. The `params` are the tensors that are stepped: for
    a sharded owner its local shard, else the owner itself.

    Parameters
    ----------
    old: owner -> its state in `optimizer.state`.
    indices: the index of each owner in its group.
    first: function from an owner to the index of its first element, counted through all parameters
        of the optimizer.
    shared: the values of the carried scalars, if the rule has the same values for all parameters.

    Attributes
    ----------
    pending: for each owner, the state that will be put into `optimizer.state`; None if the owner
        has had no gradient yet.
    codec: the codec of the parameters.
    dtype: the dtype that the rule computes in.
    specs: key of an owner's state -> the dtype of the tensor under this key, and a function from
        the owner's shape to the tensor's shape.
    leading: the index of the first parameter that has a gradient at this step.

    A backend implements `prepare`, and may override `ready` to check gradients in its own way.
    """

    leading = 0

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
        # in float16 AdaBelief's eps is zero, and so is the square of a small gradient
        wide = torch.float32 if self.half else dtype
        self.dtype = wide.to_real()
        shapes = {key: partial(rule.shape, key) for key in (rule.keys[s] for s in program.states)}
        self.storage = codecs.Storage(wanted.rounding, dtype, wide, shapes)
        self.codec, self.specs = self.storage.parameter, self.storage.specs
        self.firsts = [first(p) + (offset(p) if self.codec.noisy else 0) for p in owners]
        counted = program.states or program.carried or program.reads_t
        # a noisy codec needs the count: the noise depends on it
        self.saves_count = self.codec.noisy or (program.saves_count and bool(counted))
        self.cells = Cells(1 + len(rule.carried), self.n)
        start = {**rule.carried, **shared}
        self.cells.own[1:] = np.array([*start.values()]).reshape(-1, 1)
        self.pending = [self.make_state(k, p, state) for k, (p, state) in enumerate(old.items())]
        self.stateless = [k for k, state in enumerate(self.pending) if state is None]
        self.traits = list(map(_traits, params))
        self.build(owners, params)

    def build(self, owners: list[Tensor], params: list[Tensor]) -> None:
        """Set up what the backend needs. Called once, when `pending` is complete."""
        self.expected: Any = None
        if not self.sparse and all(type(p) in PLAIN and p.device.type == "cpu" for p in params):
            self.expect(owners, params, np.zeros(self.n, np.int64))

    def expect(self, owners: list[Tensor], params: list[Tensor], row: np.ndarray) -> None:
        """Set the dtype, shape and strides that gradients must have.

        row: the array to which the addresses of the gradients will be written.
        """
        like = local(owners[0].grad) if self.wide else params[0]
        self.expected = Gradients(params, like, row)

    def make_state(self, k: int, p: Tensor, old: dict[str, Any]) -> dict[str, Any] | None:
        """Return the state of an owner in the form that this bucket needs.

        Returns None if the owner has no state of this rule and no gradient.
        """
        if not in_bounds(p):
            raise RuntimeError(f"{self.rule}: {_describe_cut('a parameter', p)}")
        rule, new = self.selection.rule, dict(old)
        own_keys = {*rule.keys.values(), "step", COMPENSATION}
        held = {key for key in self.specs if old.get(key) is not None}
        if not own_keys & {*old} and p.grad is None:
            return None
        steps = 0.0
        if own_keys & {*old}:
            # without a saved count, an existing state means that this is not the first step
            steps = self.number("step", old["step"]) if "step" in old else float(bool(held))
        # a codec's extras may start at zero at any step
        needed = {*self.specs}.difference(held, *self.storage.extra_keys)
        if steps > 0 and (missing := sorted(needed)):
            raise RuntimeError(
                f"{self.rule}: a parameter of shape {tuple(p.shape)} has made {int(steps)} steps, "
                f"but its state lacks {missing} and has only {sorted(map(str, old))}; load a "
                "checkpoint of the same options, or clear optimizer.state to start again"
            )
        for key in {"step", COMPENSATION} - {*self.specs}:  # may be left from other options
            new.pop(key, None)
        self.cells.own[0, k] = steps
        if self.saves_count:
            new["step"] = self.cell(0, k, old.get("step"), steps, torch.float32)
        for key, (dtype, shape_of) in self.specs.items():
            shape = shape_of(p.shape)
            if key not in held and shape == p.shape:  # with the parameter's strides and shards
                new[key] = torch.zeros_like(p, dtype=dtype)
            elif key not in held:
                new[key] = p.new_zeros(shape, dtype=dtype)
            x = new[key]
            if not isinstance(x, Tensor) or x.shape != shape or x.device != p.device:
                expected = "one" if isinstance(x, Tensor) else "a tensor"
                raise RuntimeError(
                    f"{self.rule}: state {key!r} is {describe(x)}, expected {expected} like its "
                    f"parameter, {describe(p)}; load the state after moving the model, replace "
                    "the state, or clear optimizer.state"
                )
            if not in_bounds(x):
                raise RuntimeError(f"{self.rule}: {_describe_cut(f'state {key!r}', x)}")
            if not torch.is_inference_mode_enabled() and x.is_inference():
                x = x.clone()
            # each element needs its own memory, which must hold the value that is read
            x = x.resolve_neg().resolve_conj()
            if any(step == 0 and size > 1 for step, size in zip(x.stride(), x.shape, strict=True)):
                x = x.contiguous()
            new[key] = x if x.dtype == dtype else x.detach().to(dtype)
        for i, name in enumerate(rule.carried, start=1):
            key, value = rule.keys[name], self.cells.own[i, k]
            old_value = old.get(key)
            value = value if old_value is None else self.number(key, old_value)
            new[key] = self.cell(i, k, old_value, value, torch.float64)
        return new

    def number(self, key: str, x: Any) -> float:
        """Convert a step count or a carried scalar of a state to a float.

        key: the key of the number `x` in the state.
        """
        if fake(x):
            return 0.0
        if isinstance(x, Tensor) and (x.numel() != 1 or x.is_meta):
            raise RuntimeError(
                f"{self.rule}: state {key!r} is {describe(x)}, expected one number; replace it by "
                "a tensor of one element, or clear optimizer.state"
            )
        if isinstance(x, Tensor) and not in_bounds(x):
            raise RuntimeError(f"{self.rule}: {_describe_cut(f'state {key!r}', x)}")
        value = float(x.detach() if isinstance(x, Tensor) else x)
        if key == "step" and not 0 <= value < math.inf:
            raise RuntimeError(
                f"{self.rule}: the step count in optimizer.state is {value}, expected a finite "
                "number of 0 or more; correct it, or clear optimizer.state to start again"
            )
        return value

    def cell(self, row: int, k: int, old: Any, value: float, dtype: torch.dtype) -> Tensor:
        """Return the tensor that holds `value`: `old` if it can be used, else a new tensor."""
        self.cells.own[row, k] = value
        if isinstance(old, Tensor) and old.requires_grad and self.wanted.differentiable:
            return old  # it keeps its autograd history
        usable = Cells.can_use(old) and not old.requires_grad
        if usable and old.data_ptr() in self.cells.addresses[row]:
            usable = False  # it is another parameter's count already, and would count twice
        dtype = torch.float64 if value >= LIMIT else dtype
        x = old if usable else torch.tensor(value, dtype=dtype, device="cpu")
        if Cells.can_use(x):  # in FakeTensorMode it has no value
            self.cells.put(row, k, x)
        return x

    # one step

    def ready(self, owners: list[Tensor], state: States, scalars: list[float]) -> Ready | None:
        """Check the gradients and return the step, without making it.

        Returns None if no parameter has a gradient.

        owners: the owners in the same order as in the constructor.
        state: the optimizer's state.
        """
        grads = self.gradients(owners)
        return self.prepare(StepInputs(owners, state, scalars, grads)) if grads else None

    def prepare(self, inputs: StepInputs) -> Ready:
        """Return the step of the parameters that have a gradient.

        `ready` has already checked these gradients.
        """
        raise NotImplementedError

    def load(self, lists: Lists) -> Lists:
        """Return the parameters and states in the form in which the rule reads them."""
        return self.storage.load(lists, self.dtype)

    def store(self, lists: Lists, new: Lists, row: Row) -> None:
        """Write the values in `new`, which were computed on copies, to the tensors in `lists`."""
        self.storage.store(lists, new, self.noise(lists[0], row) if self.codec.noisy else None)

    def noise(self, params: list[Tensor], row: Row) -> codecs.Noise:
        """Return what determines the noise of the stochastic rounding of these parameters."""
        selected = row.selected or [()] * len(row.at)
        # if only some rows are stepped, elements have their indices in the whole parameter
        each = zip(row.full_params or params, row.at, selected, strict=True)
        elements = [codecs.element_numbers(p, self.firsts[k], rows) for p, k, rows in each]
        return codecs.Noise(elements, self.wanted.seed, row.t)

    def columns(self, owners: Sequence[Tensor], state: States, at: list[int]) -> Lists:
        """Return the parameters with the indices `at`, and the tensors of their states."""
        params = [owners[k] for k in at]
        # look up optimizer.state only for a rule that has states: a look-up creates an entry
        states = [[local(state[p][key]) for p in params] for key in self.specs]
        return [list(map(local, params)) if self.sharded else params, *states]

    def gradients(self, owners: Sequence[Tensor]) -> dict[int, Tensor]:
        """Check the gradients that exist, and return them: index of a parameter -> its gradient.

        Raises Stale if one of these gradients needs another bucket.
        """
        grads = self.read_gradients(owners)
        present: dict[int, Tensor] = {k: g for k, g in enumerate(grads) if g is not None}
        if not present.keys().isdisjoint(self.stateless):
            raise Stale
        if self.expected is not None and type(grads) is list:
            suspect = self.expected.classify(grads) & (1 << STRIDES | 1 << MISFIT)
        else:
            layout = torch.sparse_coo if self.sparse else torch.strided
            traits = [self.traits[k] for k in present]
            fits = list(map(_traits, present.values())) == traits
            suspect = not (fits and {*map(_layout, present.values())} <= {layout})
        if suspect:
            for k, g in present.items():
                self.check_gradient(local(owners[k]), g)
        self.leading = min(present, default=0)
        return present

    def check_gradient(self, p: Tensor, g: Tensor) -> None:
        """Raise RuntimeError if no backend takes the gradient, Stale if it needs another bucket."""
        if takes_sparse(self.selection, g) is not self.sparse or wider(p, g) is not self.wide:
            raise Stale
        if g.layout is not torch.strided and not self.sparse:
            modified = bool(self.selection.rule.sparse) and g.layout is torch.sparse_coo
            called = self.rule + (" with weight decay or clipping" if modified else "")
            raise RuntimeError(
                f"{called}: a gradient of layout {g.layout} was given for {describe(p)}, "
                "expected a dense one; build the embedding with sparse=False, or set p.grad = "
                "p.grad.to_dense() before the step"
            )
        dtype = torch.float32 if self.wide else p.dtype
        if (g.dtype, g.shape, g.device) != (dtype, p.shape, p.device):
            raise RuntimeError(
                f"{self.rule}: a gradient {describe(g)} was given, expected one like its parameter,"
                f" {describe(p)}; if you changed the parameter's data, set p.grad = None"
            )
        if not in_bounds(g):
            raise RuntimeError(f"{self.rule}: {_describe_cut('a gradient', g)}")

    def read_gradients(self, owners: Sequence[Tensor]) -> list[Any]:
        """Return the gradients of the owners.

        For sharded owners, return the local shards of the gradients.
        """
        return self.read_shards(owners) if self.sharded else [p.grad for p in owners]

    @torch.no_grad()  # else to_local goes through autograd, for every tensor
    def read_shards(self, owners: Sequence[Tensor]) -> list[Any]:
        """Return the local shards of the gradients.

        A gradient whose placements differ from its parameter's is redistributed first.
        """
        grads: list[Any] = []
        for p in owners:
            g: Any = p.grad
            if g is not None and hasattr(g, "placements") and g.placements != p.placements:  # type: ignore[attr-defined]
                g = g.redistribute(placements=p.placements)  # type: ignore[attr-defined]
            grads.append(local(g))
        return grads

    def rows(self, at: list[int]) -> list[Row]:
        """Group parameters by equal counts and equal carried scalars.

        Returns one `Row` per group.

        at: the indices of the parameters to group.
        """
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
        """Write the step counts and carried scalars of the parameters of `row` after a step."""
        values = np.repeat(np.array([row.t, *carried], np.float64)[:, None], len(row.at), 1)
        if row.t > LIMIT:
            values[0, self.cells.types[0, row.at] == SINGLE] -= 1
        self.cells.write(values, row.at)
        if row.t > LIMIT:
            self.widen(owners, state, row.at)

    def widen(self, owners: Sequence[Tensor], state: States, at: Sequence[int]) -> None:
        """Replace a float32 count that cannot grow any more by a float64 count.

        A count in shared memory is not replaced, because other processes may use it. So it stops
        growing.
        """
        for p in (owners[k] for k in at):
            x = state[p].get("step") if p in state else None
            if isinstance(x, Tensor) and x.dtype is torch.float32 and float(x) >= LIMIT:
                state[p]["step"] = x if x.is_shared() else x.double() + 1

    def carried_of(self, owners: list[Tensor], state: States, k: int) -> list[Any]:
        """Return the carried scalars of the parameter with the index `k`."""
        return self.cells.read()[1:, k].tolist()

    def carry(self, owners: list[Tensor], state: States, values: Sequence[Any]) -> None:
        """Give the same carried scalars to all parameters, even those without a gradient."""
        counts = self.cells.read()[:1]
        carried = np.repeat(np.array([*map(number, values)])[:, None], self.n, 1)
        self.cells.write(np.vstack([counts, carried]), [*range(self.n)])


def _describe_cut(name: str, x: Tensor) -> str:
    size = x.untyped_storage().nbytes()
    return (
        f"{name} {describe(x)} has a storage of {size} bytes, fewer than its elements need; "
        "restore its memory before the step"
    )
