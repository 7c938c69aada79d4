"""What all methods on the whole loss share: the flat vector, the closure, the cost, checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..checks import plain, real
from ..definition import inside

WHOLE = "whole"
"""The key in a state_dict of what goes from step to step."""
ROWS = 256
"""Rows of a Jacobian that are computed together: each holds the activations of the whole data."""


class WholeLoss(torch.optim.Optimizer):
    """A step from a closure, on all parameters as one vector in float64.

    The closure computes the loss of the whole data and returns it. It does not call backward(): the
    methods take the derivatives that they need themselves. Parameters of any real dtype, in any
    number of groups; those that require no gradient are left alone. The options are the same for
    all groups, since the method sees one vector.

    A step that is interrupted, or whose closure raises, leaves the parameters and what is kept from
    step to step as they were. What a method keeps is not in `state` but in the state_dict's entry
    "whole", since torch would cast it to the parameters' dtype.
    """

    _limits: ClassVar[dict[str, Any]] = {}
    """Option -> an interval of numbers, or a tuple of the values that are allowed."""
    _whole: ClassVar[frozenset[str]] = frozenset()
    """Options that are whole numbers."""
    _keeps: ClassVar[tuple[str, ...]] = ()
    """What goes from step to step beside the counters."""
    _instead: ClassVar[str] = ""
    """What to use for more than max_parameters, if there is such an option."""

    @torch._disable_dynamo
    def __init__(self, params: Iterable[Any], options: dict[str, Any]) -> None:
        self._memory: dict[str, Any] = {
            "kind": type(self).__name__, "thirds": 0, "steps": 0, "size": None,
            **dict.fromkeys(self._keeps),
        }  # fmt: skip
        self._check(options)
        super().__init__(params, options)

    @property
    def evaluations(self) -> float:
        """The cost so far in gradients of the whole loss: one forward counts 1/3, a forward and a
        backward 1, a product with the Hessian 2 (a Hessian of P parameters 2 P), a Jacobian of R
        rows R.
        """
        return self._memory["thirds"] / 3

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_memory": self._memory}

    # options and parameters

    def _check(self, options: dict[str, Any]) -> None:
        for name, allowed in self._limits.items():
            value = options[name]
            if isinstance(allowed, tuple):
                right = any(value is a or (type(value) is type(a) and value == a) for a in allowed)
                expected = "one of " + ", ".join(map(repr, allowed))
            else:
                options[name] = value = plain(value)
                number = type(value) is int or (type(value) is float and name not in self._whole)
                right = number and inside(allowed, real(value))
                expected = f"a {'whole ' if name in self._whole else ''}number in {allowed}"
            if not right:
                self._refuse(f"{name}={value!r} was given, expected {expected}")

    def _refuse(self, what: str, kind: type[Exception] = ValueError) -> Any:
        raise kind(f"{type(self).__name__}: {what}")

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; ValueError for options of its own, RuntimeError after the first step."""
        if self._memory["steps"]:
            self._refuse(
                "a group was added after a step, expected all parameters from the start; make a "
                "new optimizer", RuntimeError,
            )  # fmt: skip
        for name, value in self.defaults.items():
            if param_group.get(name, value) != value:
                self._refuse(
                    f"{name}={param_group[name]!r} was given to one group, expected the same for "
                    f"all, {value!r}; give it to the optimizer"
                )
        super().add_param_group(param_group)
        for p in self.param_groups[-1]["params"]:
            if not p.is_floating_point() or p.layout is not torch.strided:
                del self.param_groups[-1]
                self._refuse(
                    f"a parameter of {p.dtype}, {p.layout} was given, expected dense real ones; "
                    "torch.view_as_real or to_dense make them"
                )
        size, most = sum(p.numel() for p in self._params()), self.defaults.get("max_parameters")
        if most is not None and size > most:
            del self.param_groups[-1]
            self._refuse(
                f"{size:,} parameters were given, expected at most {most:,}, for a matrix of them "
                f"takes {size * size * 8 / 2**20:,.0f} MiB; use {self._instead}, or raise "
                "max_parameters"
            )

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            for name, value in self.defaults.items():
                group.setdefault(name, value)

    def _option(self, name: str) -> Any:
        return self.param_groups[0][name]

    def _params(self) -> list[Tensor]:
        """Each parameter that requires a gradient, once."""
        found = {id(p): p for g in self.param_groups for p in g["params"] if p.requires_grad}
        return [*found.values()]

    def _flat(self) -> Tensor:
        return _join(self._params())

    @torch.no_grad()
    def _write(self, vector: Tensor) -> None:
        for p, piece in zip(self._params(), self._split(vector), strict=True):
            p.copy_(piece)

    def _split(self, vectors: Tensor) -> list[Tensor]:
        """Vectors (..., P) as tensors (..., *shape of the parameter)."""
        params = self._params()
        pieces = vectors.split([p.numel() for p in params], -1)
        return [
            v.reshape(vectors.shape[:-1] + p.shape) for v, p in zip(pieces, params, strict=True)
        ]

    # the closure

    def _called(self, closure: Any, gradient: bool) -> Any:
        """What the closure returns; RuntimeError if it called backward(). Gradients stay."""
        params = self._params()
        kept = [p.grad for p in params]
        for p in params:
            p.grad = None
        advice = "the closure called backward(), expected one that only returns the loss"
        try:
            with torch.set_grad_enabled(gradient):
                value = closure()
            if any(p.grad is not None for p in params):
                self._refuse(advice, RuntimeError)
        except RuntimeError as error:
            if not gradient and "does not require grad" in str(error):
                raise RuntimeError(f"{type(self).__name__}: {advice}") from error
            raise
        finally:
            for p, grad in zip(params, kept, strict=True):
                p.grad = grad
        return value

    def _scalar(self, loss: Any) -> float:
        if isinstance(loss, Tensor) and loss.numel() != 1:
            self._refuse(
                f"the closure returned a tensor of shape {tuple(loss.shape)}, expected one number"
            )
        try:
            return float(loss.detach() if isinstance(loss, Tensor) else loss)
        except TypeError:
            return self._refuse(
                f"the closure returned a {type(loss).__name__}, expected the loss", TypeError
            )

    def _loss(self, closure: Callable[[], Any]) -> float:
        """The loss where the parameters are."""
        self._memory["thirds"] += 1
        return self._scalar(self._called(closure, False))

    def _loss_at(self, closure: Callable[[], Any], vector: Tensor) -> float:
        self._write(vector)
        return self._loss(closure)

    def _graph(self, closure: Callable[[], Any]) -> Tensor:
        """The loss with its graph, checked."""
        loss = self._called(closure, True)
        self._scalar(loss)
        if not isinstance(loss, Tensor) or not loss.requires_grad:
            self._refuse(
                "the closure's loss does not depend on the parameters, expected a tensor computed "
                "from them without detach(), item() or no_grad()", RuntimeError,
            )  # fmt: skip
        return loss.reshape(())

    def _rows(self, flat: Tensor) -> Iterator[Tensor]:
        """The Jacobian of flat (R) in float64, at most ROWS of its rows at a time."""
        for first in range(0, len(flat), ROWS):
            count = min(ROWS, len(flat) - first)
            chosen = torch.zeros(count, len(flat), dtype=flat.dtype, device=flat.device)
            chosen[:, first : first + count].fill_diagonal_(1)
            found = torch.autograd.grad(
                flat, self._params(), chosen, retain_graph=True, is_grads_batched=True,
                materialize_grads=True,
            )  # fmt: skip
            yield torch.cat([g.reshape(count, -1).double() for g in found], 1)

    def _gradient(self, closure: Callable[[], Any]) -> tuple[float, Tensor]:
        """Loss and gradient (P) where the parameters are."""
        self._memory["thirds"] += 3
        loss = self._graph(closure)
        found = torch.autograd.grad(loss, self._params(), materialize_grads=True)
        return float(loss.detach()), _join(found)

    # the step

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One step; the closure returns the loss. Returns what the class says."""
        return self._guarded(closure, self._step)

    def _step(self, closure: Callable[[], Any]) -> Any:
        raise NotImplementedError

    def _guarded(self, closure: Any, step: Callable[[Any], Any]) -> Any:
        if closure is None:
            self._refuse(
                "step() was called without a closure, expected one that returns the loss of all "
                "data; write optimizer.step(closure)", RuntimeError,
            )  # fmt: skip
        size = sum(p.numel() for p in self._params())
        if not size or self._memory["size"] not in (None, size):
            wanted = self._memory["size"] or "at least one number"
            self._refuse(
                f"the parameters that require a gradient have {size} numbers, expected {wanted}; "
                "make a new optimizer when they change", RuntimeError,
            )  # fmt: skip
        start, memory = self._flat(), dict(self._memory)  # its tensors are never written to
        try:
            result = step(closure)
        except BaseException:
            self._write(start)
            self._memory = memory | {"thirds": self._memory["thirds"]}
            raise
        self._memory |= {"steps": self._memory["steps"] + 1, "size": size}
        return result

    # checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Torch's, and under "whole" what goes from step to step."""
        return super().state_dict() | {WHOLE: deepcopy(self._memory)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a checkpoint of the same class and of as many numbers.

        Raises ValueError for another one, and changes nothing then.
        """
        saved = dict(state_dict)
        memory = saved.pop(WHOLE, None)
        kind = type(self).__name__
        if (
            not isinstance(memory, dict)
            or memory.get("kind") != kind
            or "param_groups" not in saved
        ):
            given = (
                memory.get("kind") if isinstance(memory, dict) else "no method on the whole loss"
            )
            self._refuse(f"a checkpoint of {given} was given, expected one of {kind}")
        if memory.keys() != self._memory.keys():
            self._refuse(
                f"the checkpoint holds {', '.join(sorted(memory))}, expected "
                f"{', '.join(sorted(self._memory))}; it is damaged or of another version"
            )
        size = sum(p.numel() for p in self._params())
        if memory["size"] not in (None, size):
            self._refuse(f"a checkpoint of {memory['size']} numbers was given, expected {size}")
        for group in saved["param_groups"]:
            self._check(self.defaults | group)
        super().load_state_dict(saved)
        device = self._flat().device
        self._memory = {
            name: value.to(device, copy=True)
            if isinstance(value, Tensor) and name != "generator"
            else deepcopy(value)
            for name, value in memory.items()
        }


class Randomly(WholeLoss):
    """A method that draws: its generator's state goes from step to step, on any device the same."""

    _random: torch.Generator

    def _seeded(self, seed: int) -> None:
        if type(chosen := plain(seed)) is not int:
            self._refuse(f"seed={seed!r} was given, expected a whole number", TypeError)
        self._memory["generator"] = torch.Generator().manual_seed(chosen).get_state()

    def _guarded(self, closure: Any, step: Callable[[Any], Any]) -> Any:
        def drawing(closure: Any) -> Any:
            self._random = torch.Generator()
            self._random.set_state(self._memory["generator"].cpu())
            result = step(closure)
            self._memory["generator"] = self._random.get_state()
            return result

        return super()._guarded(closure, drawing)

    def _normal(self, *shape: int) -> Tensor:
        drawn = torch.randn(shape, generator=self._random, dtype=torch.float64)
        return drawn.to(self._params()[0].device)

    def _uniform(self, *shape: int) -> Tensor:
        drawn = torch.rand(shape, generator=self._random, dtype=torch.float64)
        return drawn.to(self._params()[0].device)


def _join(tensors: Iterable[Tensor]) -> Tensor:
    parts = [x.detach().reshape(-1).double() for x in tensors]
    return torch.cat([x.to(parts[0].device) for x in parts]) if parts else torch.empty(0)


def backtrack(
    loss_at: Callable[[float], float], loss: float, slope: float, length: float, most: int = 30
) -> tuple[float, float] | None:
    """The first of length, length/2, ... that lowers the loss as Armijo asks, with its loss.

    loss + 1e-4 * length * slope bounds it (Nocedal & Wright, Numerical Optimization, eq. 3.4 and
    algorithm 3.1). None if none of them does; a nan lowers nothing.
    """
    for _ in range(most):
        value = loss_at(length)
        if math.isfinite(value) and value <= loss + 1e-4 * length * slope:
            return length, value
        length /= 2
    return None
