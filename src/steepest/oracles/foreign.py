"""Makers of oracles from other packages. The oracles print nothing and have torch's interface."""

from __future__ import annotations

import contextlib
import importlib
import io
import itertools
import operator
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, optim

Params = Sequence[Tensor]
Maker = Callable[..., Any]


def foreign(module: str, name: str, **fixed: Any) -> Maker:
    """Returns a maker of a package's optimizer that prints nothing and issues no warnings."""

    def make(params: Params, **hyper: Any) -> Any:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            cls = getattr(importlib.import_module(module), name)
            maximize = hyper.pop("maximize", False)
            optimizer = cls(params, **{**fixed, **hyper})
        plain_step = optimizer.step

        def step() -> None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                for p in params if maximize else ():  # the packages have no maximize
                    p.grad = None if p.grad is None else -p.grad
                plain_step()

        optimizer.step = step
        return optimizer

    return make


def sparse_adam(params: Params, **hyper: Any) -> Any:
    """Makes torch's SparseAdam. It gets each gradient as a sparse tensor that contains all rows."""
    optimizer: Any = optim.SparseAdam(params, **hyper)
    plain_step = optimizer.step

    def step() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for p in params:
                if p.grad is not None:
                    rows = torch.arange(len(p))[None]
                    p.grad = torch.sparse_coo_tensor(rows, p.grad, p.shape)
            plain_step()

    optimizer.step = step
    return optimizer


def _call_before_step(optimizer: Any, act: Callable[[], None]) -> Any:
    """Make the optimizer call `act` before each step, and return the optimizer."""
    plain_step = optimizer.step

    def step() -> None:
        act()
        plain_step()

    optimizer.step = step
    return optimizer


def with_decay(maker: Maker) -> Maker:
    """Returns a maker that adds decoupled weight decay to an optimizer without weight decay."""

    def make(params: Params, weight_decay: float = 0.0, **hyper: Any) -> Any:
        optimizer = maker(params, **hyper)
        group = optimizer.param_groups[0]
        return _call_before_step(optimizer, lambda: _shrink(params, group["lr"] * weight_decay))

    return make


def with_first_decay(maker: Maker) -> Maker:
    """Returns a maker that adds weight decay at step 1 to an optimizer that decays from step 2."""

    def make(params: Params, **hyper: Any) -> Any:
        optimizer = maker(params, **hyper)
        group, steps = optimizer.param_groups[0], itertools.count()

        def shrink() -> None:
            if next(steps) == 0:
                _shrink(params, group["lr"] * group["weight_decay"])

        return _call_before_step(optimizer, shrink)

    return make


def as_rows(maker: Maker) -> Maker:
    """Returns a maker that passes each parameter to the optimizer as a matrix of one row.

    This is for an optimizer that treats vectors differently from matrices.
    """

    def make(params: Params, **hyper: Any) -> Any:
        rows = [p.detach().view(1, -1).requires_grad_() for p in params]  # share the memory
        optimizer = maker(rows, **hyper)
        plain_step = optimizer.step

        def step() -> None:
            for p, row in zip(params, rows, strict=True):
                row.grad = None if p.grad is None else p.grad.view(1, -1)
            plain_step()
            optimizer.state.update(zip(params, map(optimizer.state.get, rows), strict=True))

        optimizer.step = step
        return optimizer

    return make


def split(params: Params, matrices: Maker, others: Maker) -> Any:
    """Returns an optimizer for matrices, whose step() also steps an optimizer for other parameters.

    The ratio of the two learning rates is fixed.
    """
    made = matrices([p for p in params if p.dim() > 1])
    if all(p.dim() > 1 for p in params):
        return made
    rest = others([p for p in params if p.dim() < 2])
    plain_step, (group,), (other,) = made.step, made.param_groups, rest.param_groups
    ratio = other["lr"] / group["lr"]

    def step() -> None:
        plain_step()
        other["lr"] = ratio * group["lr"]
        rest.step()
        made.state.update(rest.state)

    made.step = step
    return made


@torch.no_grad()
def _shrink(params: Params, share: float) -> None:
    for p in params:
        p.mul_(1 - share)


class Optax:
    """Runs an optax transformation in 64 bits, with the interface of a torch optimizer.

    name: the transformation's path in optax. keys: our state -> the same field in optax. decay:
    "own" if the transformation has weight decay; else the decay to add, "coupled" or "decoupled".
    names: our argument -> its name in optax. zeroed: a field of optax's state that starts at 0. The
    transformation is rebuilt at each step, since the learning rate may change.
    """

    def __init__(
        self,
        params: Params,
        name: str,
        keys: Mapping[str, str],
        decay: str = "own",
        names: Mapping[str, str] | None = None,
        zeroed: str = "",
        lr: float = 1e-3,
        **hyper: Any,
    ) -> None:
        import jax
        import optax

        self.jax, self.make = jax, operator.attrgetter(name)(optax)
        self.keys, self.decay, self.zeroed = keys, decay, zeroed
        self.maximize = hyper.pop("maximize", False)
        for k, beta in enumerate(hyper.pop("betas", ()), start=1):
            hyper[f"b{k}"] = beta
        for ours, theirs in (names or {}).items():
            if ours in hyper:
                hyper[theirs] = hyper.pop(ours)
        self.shrink = 0.0 if decay == "own" else hyper.pop("weight_decay", 0.0)
        self.hyper = hyper
        self.param_groups = [{"params": list(params), "lr": lr}]
        self.state: dict[Tensor, dict[str, Any]] = {p: {} for p in params}
        self.inner: dict[Tensor, Any] = {}

    @torch.no_grad()
    def step(self) -> None:
        group, array = self.param_groups[0], self.jax.numpy.asarray
        with self.jax.enable_x64(True):
            made = self.make(group["lr"], **self.hyper)
            for p in group["params"]:
                g = -p.grad if self.maximize else p.grad
                if self.decay == "coupled":
                    g = g + self.shrink * p
                elif self.decay == "decoupled":
                    p.mul_(1 - group["lr"] * self.shrink)
                point = array(p.detach().numpy(), copy=True)
                inner = self.inner.get(p)
                inner = self.start(made, point) if inner is None else inner
                move, inner = made.update(array(g.numpy(), copy=True), inner, point)
                self.inner[p] = inner
                p.copy_(_torch(point + move))
                values = dict(_fields(inner))
                self.state[p] = {ours: _torch(values[theirs]) for ours, theirs in self.keys.items()}

    def start(self, made: Any, point: Any) -> Any:
        """Returns optax's state before the first step."""
        inner = made.init(point)
        if not self.zeroed:
            return inner
        return inner[0]._replace(**{self.zeroed: 0 * point}), *inner[1:]


def _torch(x: Any) -> Tensor:
    import numpy

    return torch.from_numpy(numpy.array(x))


def _fields(state: Any) -> Iterator[tuple[str, Any]]:
    """Yields (name, value) of each field in a nested state of optax."""
    names = getattr(state, "_fields", ()) or [""] * len(state)
    for name, value in zip(names, state, strict=True):
        if isinstance(value, tuple):
            yield from _fields(value)
        else:
            yield name, value
