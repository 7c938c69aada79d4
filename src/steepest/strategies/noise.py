"""Gradient noise whose variance falls with the step."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from ..checks import mixed, number, saved, unwrapped, whole


class GradientNoise:
    """Add normal noise of variance eta / (1 + t)**gamma to every gradient before each step.

    Neelakantan et al. 2015, arXiv:1511.06807, equation 1; they take eta from {0.01, 0.3, 1.0} and
    gamma 0.55. t is 0 at the first step. eta is a variance, in squared units of the gradient.

    `noise = GradientNoise(optimizer)` is all: it is a step_pre_hook of that optimizer, and touches
    the gradients of its parameters alone. Clip before the step by clip_grad_norm_, so that the
    noise is not clipped; an optimizer's own clip_norm clips it too. With `step(closure)` the noise
    is added after each call of the closure, the same within a step. The noise of a step follows
    from (seed, t) alone and is drawn on the gradient's device, the global random state left alone.
    No gradient, no noise; a sparse gradient is coalesced and gets it where it has values; of a
    complex one, real and imaginary part get half the variance each. Where GradScaler leaves the
    gradients scaled (fused optimizers), the noise is scaled too.

    `remove()` takes it away again. Raises ValueError for eta below 0 and gamma below 0.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        eta: float = 0.01,
        gamma: float = 0.55,
        *,
        seed: int = 0,
    ) -> None:
        optimizer = unwrapped(optimizer)
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(
                f"GradientNoise: a {type(optimizer).__name__} was given, expected an optimizer "
                "that is made already"
            )
        self.eta = number("GradientNoise", "eta", eta, "[0, inf)")
        self.gamma = number("GradientNoise", "gamma", gamma, "[0, inf)")
        self.seed = whole("GradientNoise", "seed", seed, 0)
        self.t = 0
        self._hook = optimizer.register_step_pre_hook(self._before)

    @property
    def variance(self) -> float:
        """Of the next step's noise."""
        return self.eta / (1 + self.t) ** self.gamma

    def remove(self) -> None:
        """Leave the optimizer as it was."""
        self._hook.remove()

    def _before(
        self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        add = partial(self._add, optimizer, self.t, self.variance)
        self.t += 1
        # torch hands the optimizer in front of the arguments, or not, by the version of the hook
        at = next((k for k, a in enumerate(args) if callable(a) and a is not optimizer), None)
        closure = kwargs.get("closure") if at is None else args[at]
        if closure is None:
            add()
            return None

        def noisy(closure: Callable[[], Any] = closure) -> Any:
            with torch.enable_grad():
                loss = closure()
            add()
            return loss

        if at is None:
            return args, {**kwargs, "closure": noisy}
        return (*args[:at], noisy, *args[at + 1 :]), kwargs

    @torch.no_grad()
    def _add(self, optimizer: torch.optim.Optimizer, t: int, variance: float) -> None:
        scale = getattr(optimizer, "grad_scale", None)
        deviation = variance**0.5 * (1.0 if scale is None else float(scale))
        generators: dict[torch.device, torch.Generator] = {}
        params = {id(p): p for group in optimizer.param_groups for p in group["params"]}
        for p in params.values():
            if p.grad is None:
                continue
            if p.grad.is_sparse:
                p.grad = p.grad.coalesce()
            values = p.grad._values() if p.grad.is_sparse else p.grad
            device = values.device
            if device not in generators:
                generators[device] = torch.Generator(device)
                generators[device].manual_seed(mixed(self.seed, t))
            noise = torch.randn(
                values.shape, generator=generators[device], device=device, dtype=values.dtype
            )
            values.add_(noise, alpha=deviation)

    def state_dict(self) -> dict[str, Any]:
        """The step, and the settings."""
        return {"t": self.t, "eta": self.eta, "gamma": self.gamma, "seed": self.seed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a saved state; ValueError for one of something else."""
        self.__dict__.update(saved("GradientNoise", state, {"t", "eta", "gamma", "seed"}))
