"""Search without gradients from one point: simulated annealing and coordinate search."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch

from .closures import FullBatchOptimizer, RandomizedOptimizer


class Annealing(RandomizedOptimizer):
    """Simulated annealing. Kirkpatrick, Gelatt & Vecchi 1983; Metropolis et al. 1953.

    The walker is a point that moves at random. A step proposes walker + sigma N(0, I). The walker
    moves there if the loss does not rise. If the loss rises, the walker moves with probability
    exp(-rise / temperature). Then temperature *= cooling and sigma *= shrink. After each step the
    parameters are the best point so far, not the walker. Changes made to the parameters between
    steps are lost.

    sigma: standard deviation of a move, in the parameters' unit. temperature: in the loss's unit;
    with temperature=0 the walker's loss never rises. cooling, shrink: each step multiplies the
    temperature by `cooling`, and sigma by `shrink`. seed: the seed of all random draws.

    `step(closure)` returns the lowest loss so far, which is the loss of the parameters. The walker
    never moves to a loss that is not finite. The parameters do not change until a loss is finite.
    The closure is called once per step, and twice in the first step. It runs with gradients
    disabled, and must not call backward().
    """

    _limits: ClassVar = {
        "sigma": "(0, inf)",
        "temperature": "[0, inf)",
        "cooling": "(0, 1]",
        "shrink": "(0, 1]",
    }
    _saved: ClassVar = ("generator", "temperature", "sigma", "walker", "loss", "best", "lowest")

    def __init__(
        self,
        params: Iterable[Any],
        sigma: float = 0.1,
        temperature: float = 1.0,
        cooling: float = 0.99,
        shrink: float = 1.0,
        seed: int = 0,
    ) -> None:
        options = {"sigma": sigma, "temperature": temperature, "cooling": cooling, "shrink": shrink}
        super().__init__(params, options)
        self._set_seed(seed)
        self._memory |= {"temperature": float(temperature), "sigma": float(sigma)}

    def _step(self, closure: Callable[[], Any]) -> float:
        state = self._memory
        if state["walker"] is None:
            start, loss = self._flatten(), _nan_to_inf(self._compute_loss(closure))
            state |= {"walker": start, "loss": loss, "best": start, "lowest": loss}
        proposal = state["walker"] + state["sigma"] * self._draw_normal(len(state["walker"]))
        uniform = float(self._draw_uniform(1))
        value = _nan_to_inf(self._compute_loss_at(closure, proposal))
        rise, temperature = value - state["loss"], state["temperature"]
        # inf - inf is nan: the walker does not move before the first finite loss
        if rise <= 0 or (temperature and uniform < math.exp(-rise / temperature)):
            state |= {"walker": proposal, "loss": value}
        if value < state["lowest"]:
            state |= {"best": proposal, "lowest": value}
        state["temperature"] *= self._option("cooling")
        state["sigma"] *= self._option("shrink")
        self._write(state["best"])
        return state["lowest"]


class CoordinateSearch(FullBatchOptimizer):
    """Greedy search along one coordinate after the other.

    The moves are the exploratory moves of Hooke & Jeeves 1961. Each coordinate has its own step
    size s, as in Rosenbrock 1960. A step takes the next coordinate x and tries x + s, then x - s.
    The first value that lowers the loss is kept, and s is multiplied by `grow`; if x - s was kept,
    s also changes its sign. If neither value lowers the loss, s is multiplied by `shrink`. The loss
    never rises. Changes made to the parameters between steps are lost.

    size: the initial s of each coordinate, in the parameters' unit. grow, shrink: the defaults are
    Rosenbrock's.

    `step(closure)` returns the loss after the step, or inf if no loss was finite so far. A loss
    that is not finite counts as inf. The closure is called once or twice per step, and once more in
    the first step. It runs with gradients disabled, and must not call backward().
    """

    _limits: ClassVar = {"size": "(0, inf)", "grow": "[1, inf)", "shrink": "(0, 1)"}
    _saved: ClassVar = ("steps_of", "next", "point", "loss")

    def __init__(
        self, params: Iterable[Any], size: float = 0.1, grow: float = 3.0, shrink: float = 0.5
    ) -> None:
        super().__init__(params, {"size": size, "grow": grow, "shrink": shrink})

    def _step(self, closure: Callable[[], Any]) -> float:
        state = self._memory
        if state["point"] is None:
            start = self._flatten()
            sizes = torch.full_like(start, self._option("size"))
            loss = _nan_to_inf(self._compute_loss(closure))
            state |= {"point": start, "steps_of": sizes, "next": 0, "loss": loss}
        k, sizes = state["next"], state["steps_of"].clone()
        for sign in (1.0, -1.0):
            point = state["point"].clone()
            point[k] += sign * sizes[k]
            value = _nan_to_inf(self._compute_loss_at(closure, point))
            if value < state["loss"]:
                sizes[k] *= sign * self._option("grow")
                state |= {"point": point, "loss": value}
                break
        else:
            sizes[k] *= self._option("shrink")
        state |= {"steps_of": sizes, "next": (k + 1) % len(sizes)}
        self._write(state["point"])
        return state["loss"]


def _nan_to_inf(loss: float) -> float:
    return loss if math.isfinite(loss) else math.inf
