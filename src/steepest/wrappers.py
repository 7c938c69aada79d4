"""Optimizers around any torch.optim.Optimizer, ours or not: SAM and Lookahead."""

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
from .wrapper import Kind, Wrapper

# what an option may be: its type, that type in words, what it is saved as
_BOOL, _WHOLE, _NUMBER = (
    (bool, "True or False", bool), (Integral, "a whole number", int), (Real, "a number", float)
)  # fmt: skip
# a factor has to fit the float32 of the loop that multiplies by it
_LARGEST_FACTOR = 1e38


class SAM(Wrapper):
    """Sharpness-aware minimisation around any optimizer. Foret et al. 2021, arXiv:2010.01412.

    `SAM(steepest.AdamW(model.parameters()))`. Each step looks for the worst place within `rho` of
    the parameters, p + rho * g / |g| (equation 2, |g| over all parameters), and gives the wrapped
    optimizer the gradient from there. It costs two passes instead of one, and a copy of the
    parameters meanwhile.

    optimizer: any torch.optim.Optimizer, made already. rho: radius, in units of the parameters, at
    least 0. adaptive: ASAM (Kwon et al. 2021, arXiv:2102.11600), whose radius scales
    with each parameter: p + rho * T**2 * g / |T * g| with T = |p| + eta; its authors take eta 0.01
    and a ten times larger rho, and leave biases out (T = 1), which this does not. The attributes
    rho, adaptive and eta may be changed between steps.

    `step(closure)` calls the closure twice, with gradients reset in between, and returns the first
    loss. Where the first gradient is zero or not finite there is nothing to look for, and the
    wrapped optimizer gets the second gradient from the parameters as they are. 16-bit parameters
    lose what their dtype cannot hold of p + rho * g / |g|. After each step, and when a closure
    raises, the parameters are back exactly where they were.

    Batch normalisation sees both passes. To keep the running statistics of the first alone, let the
    closure begin with `for m in norms: m.track_running_stats = not optimizer.perturbed`, where
    norms are the model's layers of that kind: in training such a layer then uses its batch and
    leaves its statistics. torch.amp.GradScaler takes no closure: use bfloat16 autocast, which needs
    no scaler.

    Raises TypeError and ValueError for arguments, RuntimeError for a missing closure and for a
    sparse gradient; nothing has changed then.
    """

    rho: float
    adaptive: bool
    eta: float
    perturbed = False
    """Whether the parameters are at the worst place now: in the second call of the closure."""
    _options: ClassVar[dict[str, tuple[Kind, str]]] = {
        "rho": (_NUMBER, "[0, inf)"), "adaptive": (_BOOL, "[0, 1]"), "eta": (_NUMBER, "[0, inf)"),
    }  # fmt: skip

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        rho: float = 0.05,
        adaptive: bool = False,
        eta: float = 0.01,
    ) -> None:
        super().__init__(optimizer, rho=rho, adaptive=adaptive, eta=eta)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; closure resets the gradients, computes the loss and its gradients, and returns
        it. Returns the loss of the first call.
        """
        if closure is None:
            raise RuntimeError(
                f"{type(self).__name__}: step() was called without a closure, expected one that "
                "computes the loss, calls backward() and returns the loss, for it is called twice; "
                "GradScaler passes none on: use bfloat16 autocast without it"
            )
        return self.optimizer.step(partial(self._sharp, closure))

    def _sharp(self, closure: Callable[[], Any]) -> Any:
        """Leave the gradient from the worst place; the loss where the parameters are."""
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
    parameters go back to slow + alpha * (p - slow), where slow is what they were before those k
    steps (Algorithm 1). The wrapped optimizer's states stay as they are, which is the paper's
    default. One copy of the parameters is kept.

    optimizer: any torch.optim.Optimizer, made already. k: steps in a cycle, at least 1. alpha: step
    size of the slow weights, in (0, 1]. Both may be changed between steps. A parameter added in the
    middle of a cycle goes back to where it was then. The step count and the slow weights are in the
    state_dict. A step that torch.amp.GradScaler leaves out is not counted.

    Between cycles the parameters are the slow weights. To evaluate in the middle of one on the slow
    weights, as the paper does, write `with optimizer.slow(): evaluate(model)`.

    Differs from the paper: there the best k and alpha are searched for each task. Its authors' code
    has 5 and 0.8 by default, pytorch-optimizer 5 and 0.5; here they are 6 and 0.5.

    Raises TypeError and ValueError for arguments.
    """

    k: int
    alpha: float
    _options: ClassVar[dict[str, tuple[Kind, str]]] = {
        "k": (_WHOLE, "[1, inf)"), "alpha": (_NUMBER, "(0, 1]"),
    }  # fmt: skip

    def __init__(self, optimizer: torch.optim.Optimizer, k: int = 6, alpha: float = 0.5) -> None:
        super().__init__(optimizer, k=k, alpha=alpha)
        self._count = 0
        self._slow: dict[Tensor, Tensor] = {}
        self._seen: list[Tensor] = []
        self._lent = False

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of the wrapped optimizer, every k-th followed by the step back; its result."""
        if self._lent:
            raise RuntimeError(
                f"{type(self).__name__}: step() was called inside of slow(), whose end brings the "
                "other weights back; step after it"
            )
        now = list(chain.from_iterable(group["params"] for group in self.param_groups))
        # looking every parameter up at each step costs as much as a step where they are small
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
        """The slow weights of a new cycle, or in the middle of one those of new parameters."""
        params = self._params()
        if not self._count:  # here, and not at the step back: a model may be loaded in between
            known = [p for p in params if p in self._slow]
            self._slow = {p: self._slow[p] for p in known}
            if known:
                torch._foreach_copy_([*self._slow.values()], known)
        self._slow |= {p: p.detach().clone() for p in params if p not in self._slow}

    @contextmanager
    def slow(self) -> Iterator[None]:
        """Meanwhile the parameters are the slow weights; afterwards exactly what they were."""
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
        if self._count:  # else they are the parameters
            for group, own in zip(saved["param_groups"], self.param_groups, strict=True):
                for key, p in zip(group["params"], own["params"], strict=True):
                    slow[key] = self._slow.get(p, p.detach())
        return super()._layer(saved) | {"count": self._count, "slow": slow}

    def _read(self, layer: Mapping[str, Any], pairs: list[Pair]) -> dict[str, Any]:
        new, count = super()._read(layer, pairs), layer.get("count")
        slow: Any = layer.get("slow")

        def refuse(what: str) -> None:
            raise ValueError(f"{type(self).__name__}: the checkpoint's {what}; it is damaged")

        if type(count) is not int or not 0 <= count < new["k"]:
            refuse(f"count is {count!r}, expected a whole number in [0, {new['k']})")
        keys = {row.key for _, row, _ in pairs} if count else set()
        if not isinstance(slow, Mapping) or slow.keys() != keys:
            refuse(f"slow weights are not those of its {len(keys)} parameters after {count} steps")
        found: dict[Tensor, Tensor] = {}
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
            found[p] = torch.empty_like(p).detach().copy_(value)
        return new | {"_count": count, "_slow": found, "_seen": []}


def _real(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Complex tensors as pairs of real numbers, in the same memory."""
    return [torch.view_as_real(x) if x.is_complex() else x for x in tensors]


def _wide(tensors: Iterable[Tensor]) -> list[Tensor]:
    """The same, with copies in float32 of what has 16 bits."""
    return [x.float() if x.itemsize < 4 else x for x in _real(tensors)]
