"""SAM and Lookahead, which wrap any torch.optim.Optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import chain
from numbers import Integral, Real
from operator import is_
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from .loading import Pair
from .tensors import describe
from .wrapper import OptionType, Wrapper

# the type of an option, its description, and how a value is stored
_BOOL: OptionType = (bool, "True or False", bool)
_INTEGER: OptionType = (Integral, "a whole number", int)
_NUMBER: OptionType = (Real, "a number", float)
# a factor has to fit the float32 of the loop that multiplies by it
_LARGEST_FACTOR = 1e38


class SAM(Wrapper):
    """Sharpness-aware minimisation around any optimizer. Foret et al. 2021, arXiv:2010.01412.

    `SAM(steepest.AdamW(model.parameters()))`. Each step moves the parameters to the worst point
    within the distance `rho`, p + rho * g / |g| (equation 2, |g| over all parameters), and gives
    the wrapped optimizer the gradient there. A step takes two forward and backward passes instead
    of one, and memory for a copy of the parameters.

    optimizer: any torch.optim.Optimizer object. rho: radius, in units of the parameters, at least
    0. adaptive: ASAM (Kwon et al. 2021, arXiv:2102.11600), whose radius scales with each parameter:
    p + rho * T**2 * g / |T * g| with T = |p| + eta. Its authors take eta 0.01 and a ten times
    larger rho. They set T = 1 for biases; this class does not. The attributes rho, adaptive and eta
    may be changed between steps.

    `step(closure)` calls the closure twice, with gradients reset in between, and returns the first
    loss. If the first gradient is zero or not finite, the second one is taken at the parameters
    themselves. 16-bit parameters round p + rho * g / |g| to their dtype. Before the wrapped
    optimizer steps, and when a closure raises, the parameters are restored exactly.

    Batch normalisation sees both passes. To update the running statistics in the first pass only,
    begin the closure with `for m in norms: m.track_running_stats = not optimizer.perturbed`, where
    `norms` are the model's batch normalisation layers. Without tracking, a layer in training mode
    still normalises by its batch, but does not update its running statistics. torch.amp.GradScaler
    does not support closures: use bfloat16 autocast, which needs no scaler.

    Raises TypeError or ValueError for a bad argument, RuntimeError for a missing closure or a
    sparse gradient. A step that raises these errors has not changed the parameters.
    """

    rho: float
    adaptive: bool
    eta: float
    perturbed = False
    """Whether the closure's second call is running, at the worst point."""
    _options: ClassVar[dict[str, tuple[OptionType, str]]] = {
        "rho": (_NUMBER, "[0, inf)"),
        "adaptive": (_BOOL, "[0, 1]"),
        "eta": (_NUMBER, "[0, inf)"),
    }

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        rho: float = 0.05,
        adaptive: bool = False,
        eta: float = 0.01,
    ) -> None:
        super().__init__(optimizer, rho=rho, adaptive=adaptive, eta=eta)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step. The closure resets the gradients, computes the loss and its gradients, and
        returns the loss. step() returns the loss of the closure's first call.
        """
        if closure is None:
            raise RuntimeError(
                f"{type(self).__name__}: step() was called without a closure, expected a closure "
                "that computes the loss, calls backward() and returns the loss (it is called "
                "twice); GradScaler does not pass a closure on, so use bfloat16 autocast without "
                "GradScaler"
            )
        return self.optimizer.step(partial(self._sharp, closure))

    def _sharp(self, closure: Callable[[], Any]) -> Any:
        """Compute the gradients at the worst point, and leave them in `.grad`.

        Returns the loss at the parameters themselves.
        """
        with torch.enable_grad():
            loss = closure()
        params = [p for p in self._params() if p.grad is not None]
        if any(p.grad.layout is not torch.strided for p in params if p.grad is not None):
            raise RuntimeError(
                f"{type(self).__name__}: a sparse gradient was given, expected dense ones; make "
                "the layer with sparse=False"
            )
        with torch.no_grad():
            kept = [p.detach().clone() for p in params]
            try:
                if params:
                    self._perturb(params)
                self.perturbed = True
                self.zero_grad()
                with torch.enable_grad():
                    closure()
            finally:
                self.perturbed = False
                if params:
                    torch._foreach_copy_(params, kept)
        return loss

    def _perturb(self, params: list[Tensor]) -> None:
        move = _wide(p.grad for p in params if p.grad is not None)
        scale = []
        if self.adaptive:
            scale = torch._foreach_abs(_wide(params))
            torch._foreach_add_(scale, self.eta)
            move = torch._foreach_mul(move, scale)
        norm = float(get_total_norm(move))
        if not 0 < norm < float("inf"):
            return
        if self.adaptive:
            torch._foreach_mul_(move, scale)
        factor = min(self.rho / norm, _LARGEST_FACTOR)
        torch._foreach_add_(_real(params), move, alpha=factor)


class Lookahead(Wrapper):
    """k steps forward, 1 step back, around any optimizer. Zhang et al. 2019, arXiv:1907.08610.

    `Lookahead(steepest.AdamW(model.parameters()))`. The wrapped optimizer makes k steps; then the
    parameters go back to slow + alpha * (p - slow), where slow is their value before these k steps
    (Algorithm 1). The wrapped optimizer's states stay as they are, which is the paper's default.
    One copy of the parameters is kept.

    optimizer: any torch.optim.Optimizer object. k: steps in a cycle, at least 1. alpha: step size
    of the slow weights, in (0, 1]. k and alpha may be changed between steps. If a parameter is
    added in the middle of a cycle, its slow weight is its value at that time. The step count and
    the slow weights are in the state_dict. A step that torch.amp.GradScaler skips is not counted.

    Between cycles the parameters are the slow weights. To evaluate the slow weights in the middle
    of a cycle, as the paper does, write `with optimizer.slow(): evaluate(model)`.

    Differs from the paper: there the best k and alpha are searched for each task. The defaults for
    k and alpha are 6 and 0.5 here, 5 and 0.8 in the authors' code, and 5 and 0.5 in
    pytorch-optimizer.

    Raises TypeError or ValueError for a bad argument.
    """

    k: int
    alpha: float
    _options: ClassVar[dict[str, tuple[OptionType, str]]] = {
        "k": (_INTEGER, "[1, inf)"),
        "alpha": (_NUMBER, "(0, 1]"),
    }

    def __init__(self, optimizer: torch.optim.Optimizer, k: int = 6, alpha: float = 0.5) -> None:
        super().__init__(optimizer, k=k, alpha=alpha)
        self._count = 0
        self._slow: dict[Tensor, Tensor] = {}
        self._seen: list[Tensor] = []
        self._lent = False

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step the wrapped optimizer and return its result. Every k-th step is followed by the step
        back.
        """
        if self._lent:
            raise RuntimeError(
                f"{type(self).__name__}: step() was called inside of slow(), which undoes the step "
                "when it restores the fast weights; call step() after the block"
            )
        now = list(chain.from_iterable(group["params"] for group in self.param_groups))
        # looking up every parameter would cost as much as a step of small ones
        if not self._count or len(now) != len(self._seen) or not all(map(is_, now, self._seen)):
            self._remember()
            self._seen = now
        loss: Any = self.optimizer.step(closure)
        self._count += 1
        if self._count >= self.k:
            with torch.no_grad():
                params = self._params()
                slow = [self._slow[p] for p in params]
                torch._foreach_lerp_(_real(params), _real(slow), 1 - self.alpha)
            self._count = 0
        return loss

    @torch.no_grad()
    def _remember(self) -> None:
        """Save the slow weights.

        At the start of a cycle all parameters are saved; later only new parameters are saved.
        """
        params = self._params()
        if not self._count:  # not earlier, at the step back: a model may be loaded in between
            known = [p for p in params if p in self._slow]
            self._slow = {p: self._slow[p] for p in known}
            if known:
                torch._foreach_copy_([*self._slow.values()], known)
        self._slow |= {p: p.detach().clone() for p in params if p not in self._slow}

    @contextmanager
    def slow(self) -> Iterator[None]:
        """In the `with` block, the parameters are the slow weights.

        After the block, the parameters are exactly what they were before.
        """
        params = [p for p in self._params() if self._count and p in self._slow]
        lent, fast = self._lent, [p.detach().clone() for p in params]
        self._lent = True
        try:
            if params:
                with torch.no_grad():
                    torch._foreach_copy_(params, [self._slow[p] for p in params])
            yield
        finally:
            if params:
                with torch.no_grad():
                    torch._foreach_copy_(params, fast)
            self._lent = lent

    def __getstate__(self) -> dict[str, Any]:
        own = {"_count": self._count, "_slow": self._slow, "_seen": [], "_lent": False}
        return super().__getstate__() | own

    def _layer(self, saved: dict[str, Any]) -> dict[str, Any]:
        slow = {}
        if self._count:  # otherwise the slow weights are the parameters
            for group, own in zip(saved["param_groups"], self.param_groups, strict=True):
                for key, p in zip(group["params"], own["params"], strict=True):
                    slow[key] = self._slow.get(p, p.detach())
        return super()._layer(saved) | {"count": self._count, "slow": slow}

    def _read(self, layer: Mapping[str, Any], pairs: list[Pair]) -> dict[str, Any]:
        new, count = super()._read(layer, pairs), layer.get("count")
        slow: Any = layer.get("slow")

        def refuse(problem: str) -> None:
            raise ValueError(f"{type(self).__name__}: the checkpoint's {problem}; it is damaged")

        if type(count) is not int or not 0 <= count < new["k"]:
            refuse(f"count is {count!r}, expected a whole number in [0, {new['k']})")
        keys = {row.key for _, row, _ in pairs} if count else set()
        if not isinstance(slow, Mapping) or slow.keys() != keys:
            refuse(f"slow weights do not fit its {len(keys)} parameters after {count} steps")
        copies: dict[Tensor, Tensor] = {}
        for (p, _, label, _), row, _ in pairs if count else ():
            value = slow[row.key]
            if (
                not isinstance(value, Tensor)
                or value.layout is not torch.strided
                or value.shape != p.shape
                or value.is_complex() != p.is_complex()
            ):
                given = describe(value) if isinstance(value, Tensor) else repr(value)
                refuse(f"slow weight of {label} is {given}, expected {describe(p)}")
            copies[p] = torch.empty_like(p).detach().copy_(value)
        return new | {"_count": count, "_slow": copies, "_seen": []}


def _real(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Returns complex tensors as views of pairs of real numbers, and real tensors unchanged."""
    return [torch.view_as_real(x) if x.is_complex() else x for x in tensors]


def _wide(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Returns what `_real` returns, but copies 16-bit tensors to float32."""
    return [x.float() if x.itemsize < 4 else x for x in _real(tensors)]
