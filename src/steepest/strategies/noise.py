"""Gradient noise with a variance that decays over the steps."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from ..checks import mixed, number, saved, unwrapped, whole
from .hooks import on_gradients


class GradientNoise:
    """Add normal noise of variance eta / (1 + t)**gamma to every gradient before each step.

    Neelakantan et al. 2015, arXiv:1511.06807, equation 1. The authors choose eta from
    {0.01, 0.3, 1.0} and gamma 0.55. t is 0 at the first step. eta is a variance, in squared units
    of the gradient.

    `noise = GradientNoise(optimizer)` is all you need. It registers a step_pre_hook, which changes
    only the gradients of this optimizer's parameters. To clip the gradients before the noise is
    added, call clip_grad_norm_ before the step. An optimizer's own clip_norm clips the noise too.
    With `step(closure)` the noise is added after each call of the closure. All calls within a step
    get the same noise.

    The noise depends on (seed, t) only. It is drawn on the gradient's device; the global random
    state does not change. Parameters without a gradient get no noise. A sparse gradient is
    coalesced, and only its stored values get noise. For a complex gradient, the real part and the
    imaginary part each get half the variance. If GradScaler leaves the gradients scaled, as it does
    for fused optimizers, the noise is scaled too.

    `remove()` removes the hook. Raises ValueError if eta or gamma is below 0. Raises TypeError if
    `optimizer` is not an optimizer.
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
                "object"
            )
        self.eta = number("GradientNoise", "eta", eta, "[0, inf)")
        self.gamma = number("GradientNoise", "gamma", gamma, "[0, inf)")
        self.seed = whole("GradientNoise", "seed", seed, 0)
        self.t = 0
        self._optimizer = optimizer
        self._hook = on_gradients(optimizer, self._begin)

    @property
    def variance(self) -> float:
        """The variance of the next step's noise."""
        return self.eta / (1 + self.t) ** self.gamma

    def remove(self) -> None:
        """Remove the hook. Later steps get no noise."""
        self._hook.remove()

    def _begin(self) -> Callable[[], None]:
        add_noise = partial(self._add_noise, self._optimizer, self.t, self.variance)
        self.t += 1
        return add_noise

    @torch.no_grad()
    def _add_noise(self, optimizer: torch.optim.Optimizer, t: int, variance: float) -> None:
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
        """The number of steps t, and the settings eta, gamma and seed."""
        return {"t": self.t, "eta": self.eta, "gamma": self.gamma, "seed": self.seed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load what state_dict() returned. Raises ValueError for anything else."""
        self.__dict__.update(saved("GradientNoise", state, {"t", "eta", "gamma", "seed"}))
