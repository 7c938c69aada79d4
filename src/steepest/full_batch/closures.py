"""The base class of all methods on the whole loss.

It flattens the parameters, calls the closure, counts the cost, and saves checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..checks import plain, real
from ..definition import inside

STATE_KEY = "whole"
"""The key of a state_dict under which the method's own state is saved."""
ROWS = 256
"""Jacobian rows computed at once. Each row needs memory for the activations of all data."""


class FullBatchOptimizer(torch.optim.Optimizer):
    """An optimizer that takes a closure and treats all parameters as one float64 vector.

    The closure computes the loss of all data and returns it. It does not call backward(): the
    method computes the derivatives that it needs. Parameters may have any real dtype and any number
    of groups. Parameters that do not require a gradient never change. All groups must have the same
    options, because the method sees one vector.

    If a step is interrupted or the closure raises, the parameters and the method's own state do not
    change; only `evaluations` keeps its new count. The method's own state is saved in the
    state_dict under "whole", and not under "state", because torch casts the tensors under "state"
    to the parameters' dtype.
    """

    _limits: ClassVar[dict[str, Any]] = {}
    """Maps an option to the interval of its values, or to a tuple of its allowed values."""
    _integers: ClassVar[frozenset[str]] = frozenset()
    """Options that must be whole numbers."""
    _saved: ClassVar[tuple[str, ...]] = ()
    """Names of the state that the method keeps between steps, apart from the counters."""
    _alternative: ClassVar[str] = ""
    """The class to recommend when a model exceeds the option max_parameters."""

    @torch._disable_dynamo
    def __init__(self, params: Iterable[Any], options: dict[str, Any]) -> None:
        counters = {"kind": type(self).__name__, "thirds": 0, "steps": 0, "size": None}
        self._memory: dict[str, Any] = counters | dict.fromkeys(self._saved)
        self._check(options)
        super().__init__(params, options)

    @property
    def evaluations(self) -> float:
        """The cost so far, in gradients of the whole loss.

        A forward pass costs 1/3, a forward and backward pass together cost 1, and a product with
        the Hessian costs 2. The Hessian of P parameters costs 2 P. A Jacobian of R rows costs R.
        """
        return self._memory["thirds"] / 3

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_memory": self._memory}

    # options and parameters

    def _check(self, options: dict[str, Any]) -> None:
        for name, allowed in self._limits.items():
            value = options[name]
            if isinstance(allowed, tuple):
                valid = any(value is a or (type(value) is type(a) and value == a) for a in allowed)
                expected = "one of " + ", ".join(map(repr, allowed))
            else:
                options[name] = value = plain(value)
                number = type(value) is int or (type(value) is float and name not in self._integers)
                valid = number and inside(allowed, real(value))
                expected = f"a {'whole ' if name in self._integers else ''}number in {allowed}"
            if not valid:
                self._refuse(f"{name}={value!r} was given, expected {expected}")

    def _refuse(self, message: str, error: type[Exception] = ValueError) -> Any:
        raise error(f"{type(self).__name__}: {message}")

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group.

        Raises ValueError if an option of the group differs from the optimizer's. Raises
        RuntimeError if the optimizer has already made a step.
        """
        if self._memory["steps"]:
            self._refuse(
                "a group was added after a step, expected all groups before the first step; make a "
                "new optimizer",
                RuntimeError,
            )
        for name, value in self.defaults.items():
            if param_group.get(name, value) != value:
                self._refuse(
                    f"{name}={param_group[name]!r} was given to one group, expected {value!r} in "
                    f"all groups; set {name} for the whole optimizer"
                )
        super().add_param_group(param_group)
        for p in self.param_groups[-1]["params"]:
            if not p.is_floating_point() or p.layout is not torch.strided:
                del self.param_groups[-1]
                self._refuse(
                    f"a parameter of {p.dtype} and {p.layout} was given, expected dense tensors of "
                    "real floating-point numbers; convert it with torch.view_as_real or to_dense"
                )
        size, most = sum(p.numel() for p in self._trainable()), self.defaults.get("max_parameters")
        if most is not None and size > most:
            del self.param_groups[-1]
            self._refuse(
                f"{size:,} parameters were given, expected at most {most:,}: the matrix takes "
                f"{size * size * 8 / 2**20:,.0f} MiB; use {self._alternative}, or raise "
                "max_parameters"
            )

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            for name, value in self.defaults.items():
                group.setdefault(name, value)

    def _option(self, name: str) -> Any:
        return self.param_groups[0][name]

    def _trainable(self) -> list[Tensor]:
        """The parameters that require a gradient, without duplicates."""
        params = {id(p): p for g in self.param_groups for p in g["params"] if p.requires_grad}
        return [*params.values()]

    def _flatten(self) -> Tensor:
        return _join(self._trainable())

    @torch.no_grad()
    def _write(self, vector: Tensor) -> None:
        for p, piece in zip(self._trainable(), self._split(vector), strict=True):
            p.copy_(piece)

    def _split(self, vectors: Tensor) -> list[Tensor]:
        """Split vectors of shape (..., P) into one tensor (..., *p.shape) for each parameter p."""
        params = self._trainable()
        pieces = vectors.split([p.numel() for p in params], -1)
        return [
            v.reshape(vectors.shape[:-1] + p.shape) for v, p in zip(pieces, params, strict=True)
        ]

    # the closure

    def _call(self, closure: Any, gradient: bool) -> Any:
        """Call the closure and return its value. The parameters' `.grad` stay as they were.

        Raises RuntimeError if the closure called backward().
        """
        params = self._trainable()
        grads = [p.grad for p in params]
        for p in params:
            p.grad = None
        message = "the closure called backward(), expected one that only returns the loss"
        try:
            with torch.set_grad_enabled(gradient):
                value = closure()
            if any(p.grad is not None for p in params):
                self._refuse(message, RuntimeError)
        except RuntimeError as error:
            if not gradient and "does not require grad" in str(error):
                raise RuntimeError(f"{type(self).__name__}: {message}") from error
            raise
        finally:
            for p, grad in zip(params, grads, strict=True):
                p.grad = grad
        return value

    def _check_loss(self, loss: Any) -> float:
        if isinstance(loss, Tensor) and loss.numel() != 1:
            self._refuse(
                f"the closure returned a tensor of shape {tuple(loss.shape)}, expected one number"
            )
        try:
            return float(loss.detach() if isinstance(loss, Tensor) else loss)
        except TypeError:
            return self._refuse(
                f"the closure returned a {type(loss).__name__}, expected a number, the loss",
                TypeError,
            )

    def _compute_loss(self, closure: Callable[[], Any]) -> float:
        """The loss at the current parameters."""
        self._memory["thirds"] += 1
        return self._check_loss(self._call(closure, False))

    def _compute_loss_at(self, closure: Callable[[], Any], vector: Tensor) -> float:
        self._write(vector)
        return self._compute_loss(closure)

    def _build_graph(self, closure: Callable[[], Any]) -> Tensor:
        """Call the closure, check the loss, and return the loss with its autograd graph."""
        loss = self._call(closure, True)
        self._check_loss(loss)
        if not isinstance(loss, Tensor) or not loss.requires_grad:
            self._refuse(
                "the closure's loss does not depend on the parameters, expected a tensor computed "
                "from them without detach(), item() or no_grad()",
                RuntimeError,
            )
        return loss.reshape(())

    def _jacobian_rows(self, flat: Tensor) -> Iterator[Tensor]:
        """Yield the Jacobian of flat (R) in float64, up to ROWS rows at a time."""
        for first in range(0, len(flat), ROWS):
            count = min(ROWS, len(flat) - first)
            selector = torch.zeros(count, len(flat), dtype=flat.dtype, device=flat.device)
            selector[:, first : first + count].fill_diagonal_(1)
            rows = torch.autograd.grad(
                flat,
                self._trainable(),
                selector,
                retain_graph=True,
                is_grads_batched=True,
                materialize_grads=True,
            )
            yield torch.cat([g.reshape(count, -1).double() for g in rows], 1)

    def _compute_gradient(self, closure: Callable[[], Any]) -> tuple[float, Tensor]:
        """Loss and gradient (P) at the current parameters."""
        self._memory["thirds"] += 3
        loss = self._build_graph(closure)
        grads = torch.autograd.grad(loss, self._trainable(), materialize_grads=True)
        return float(loss.detach()), _join(grads)

    # the step

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Make one step. The class's docstring says what the closure and step() return."""
        return self._run_step(closure, self._step)

    def _step(self, closure: Callable[[], Any]) -> Any:
        raise NotImplementedError

    def _run_step(self, closure: Any, step: Callable[[Any], Any]) -> Any:
        if closure is None:
            self._refuse(
                "step() was called without a closure, expected one that returns the loss of all "
                "data; write optimizer.step(closure)",
                RuntimeError,
            )
        size = sum(p.numel() for p in self._trainable())
        if not size or self._memory["size"] not in (None, size):
            expected = self._memory["size"] or "at least one number"
            self._refuse(
                f"the parameters that require a gradient have {size} numbers, expected {expected}; "
                "make a new optimizer when the parameters change",
                RuntimeError,
            )
        # a shallow copy is enough: tensors in the state are replaced, never written to
        start, memory = self._flatten(), dict(self._memory)
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
        """torch's state_dict, with the method's own state under "whole"."""
        return super().state_dict() | {STATE_KEY: deepcopy(self._memory)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a checkpoint of the same class with the same number of parameters.

        Raises ValueError, and changes nothing, for any other checkpoint.
        """
        saved = dict(state_dict)
        memory = saved.pop(STATE_KEY, None)
        name = type(self).__name__
        saved_name = memory.get("kind") if isinstance(memory, dict) else None
        if saved_name != name or "param_groups" not in saved:
            source = saved_name if isinstance(memory, dict) else "another kind of optimizer"
            self._refuse(f"a checkpoint of {source} was given, expected one of {name}")
        if memory.keys() != self._memory.keys():
            self._refuse(
                f"the checkpoint holds {', '.join(sorted(memory))}, expected "
                f"{', '.join(sorted(self._memory))}; it is damaged or from another version"
            )
        size = sum(p.numel() for p in self._trainable())
        if memory["size"] not in (None, size):
            self._refuse(
                f"a checkpoint of {memory['size']} numbers was given, expected {size} numbers"
            )
        for group in saved["param_groups"]:
            self._check(self.defaults | group)
        super().load_state_dict(saved)
        device = self._flatten().device
        self._memory = {
            name: value.to(device, copy=True)
            if isinstance(value, Tensor) and name != "generator"
            else deepcopy(value)
            for name, value in memory.items()
        }


class RandomizedOptimizer(FullBatchOptimizer):
    """A method that draws random numbers. The draws are the same on every device.

    The generator's state is part of the method's state.
    """

    _random: torch.Generator

    def _set_seed(self, seed: int) -> None:
        if type(number := plain(seed)) is not int:
            self._refuse(f"seed={seed!r} was given, expected a whole number", TypeError)
        self._memory["generator"] = torch.Generator().manual_seed(number).get_state()

    def _run_step(self, closure: Any, step: Callable[[Any], Any]) -> Any:
        def seeded_step(closure: Any) -> Any:
            self._random = torch.Generator()
            self._random.set_state(self._memory["generator"].cpu())
            result = step(closure)
            self._memory["generator"] = self._random.get_state()
            return result

        return super()._run_step(closure, seeded_step)

    def _draw_normal(self, *shape: int) -> Tensor:
        drawn = torch.randn(shape, generator=self._random, dtype=torch.float64)
        return drawn.to(self._trainable()[0].device)

    def _draw_uniform(self, *shape: int) -> Tensor:
        drawn = torch.rand(shape, generator=self._random, dtype=torch.float64)
        return drawn.to(self._trainable()[0].device)


def _join(tensors: Iterable[Tensor]) -> Tensor:
    vectors = [x.detach().reshape(-1).double() for x in tensors]
    return torch.cat([v.to(vectors[0].device) for v in vectors]) if vectors else torch.empty(0)


def backtrack(
    loss_at: Callable[[float], float], loss: float, slope: float, length: float, most: int = 30
) -> tuple[float, float] | None:
    """Armijo's line search: try `length`, then half of it, and so on, until the loss falls enough.

    That is, until the loss at the length t is at most `loss` + 1e-4 * t * `slope` (Nocedal &
    Wright, Numerical Optimization, eq. 3.4 and algorithm 3.1). Returns the accepted length and the
    loss there. Returns None after `most` lengths without success. A loss of nan is never accepted.
    """
    for _ in range(most):
        value = loss_at(length)
        if math.isfinite(value) and value <= loss + 1e-4 * length * slope:
            return length, value
        length /= 2
    return None
