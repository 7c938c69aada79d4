"""Search without gradients from one point: simulated annealing, one coordinate at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch

from .closures import Randomly, WholeLoss


class Annealing(Randomly):
    """Simulated annealing. Kirkpatrick, Gelatt & Vecchi 1983; Metropolis et al. 1953.

    A step proposes theta + sigma N(0, I) and goes there if the loss does not rise, or else with the
    probability exp(-rise / temperature); then temperature *= cooling and sigma *= shrink. The walk
    is kept apart: after each step the parameters are the best point met so far, and what is written
    into them between steps is lost.

    sigma: standard deviation of a move, in the parameters' unit. temperature: in the loss's unit; 0
    never goes up. cooling, shrink: factors per step. seed: of the moves.

    `step(closure)` returns the lowest loss so far, that of the parameters. A loss that is not
    finite is never gone to; until there is a finite one, the parameters are what they were. The
    closure is called without gradients and without backward(), once a step, and once more in the
    first.
    """

    _limits: ClassVar = {
        "sigma": "(0, inf)", "temperature": "[0, inf)", "cooling": "(0, 1]", "shrink": "(0, 1]"
    }  # fmt: skip
    _keeps: ClassVar = ("generator", "temperature", "sigma", "walker", "loss", "best", "lowest")

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
        self._seeded(seed)
        self._memory |= {"temperature": float(temperature), "sigma": float(sigma)}

    def _step(self, closure: Callable[[], Any]) -> float:
        now = self._memory
        if now["walker"] is None:
            start, loss = self._flat(), _finite(self._loss(closure))
            now |= {"walker": start, "loss": loss, "best": start, "lowest": loss}
        proposal = now["walker"] + now["sigma"] * self._normal(len(now["walker"]))
        chance = float(self._uniform(1))
        value = _finite(self._loss_at(closure, proposal))
        rise, heat = value - now["loss"], now["temperature"]
        # inf - inf is nan: a walk that has met no finite loss yet stays where it is
        if rise <= 0 or (heat and chance < math.exp(-rise / heat)):
            now |= {"walker": proposal, "loss": value}
        if value < now["lowest"]:
            now |= {"best": proposal, "lowest": value}
        now["temperature"] *= self._option("cooling")
        now["sigma"] *= self._option("shrink")
        self._write(now["best"])
        return now["lowest"]


class CoordinateSearch(WholeLoss):
    """Greedy search along one coordinate after the other: Hooke & Jeeves 1961, the exploratory
    moves, with a step for each coordinate as in Rosenbrock 1960.

    A step takes the next coordinate x, tries x + s, then x - s, and stays where the loss is lower:
    s is multiplied by `grow` then, keeping the sign that helped, otherwise by `shrink`. The loss
    never rises. What is written into the parameters between steps is lost.

    size: each coordinate's first step, in the parameters' unit. grow, shrink: Rosenbrock's 3 and
    1/2.

    `step(closure)` returns the loss of the parameters as it leaves them, inf while none was finite.
    A loss that is not finite counts as the worst. The closure is called without gradients and
    without backward(), once or twice a step, and once more in the first.
    """

    _limits: ClassVar = {"size": "(0, inf)", "grow": "[1, inf)", "shrink": "(0, 1)"}
    _keeps: ClassVar = ("steps_of", "next", "point", "loss")

    def __init__(
        self, params: Iterable[Any], size: float = 0.1, grow: float = 3.0, shrink: float = 0.5
    ) -> None:
        super().__init__(params, {"size": size, "grow": grow, "shrink": shrink})

    def _step(self, closure: Callable[[], Any]) -> float:
        now = self._memory
        if now["point"] is None:
            start = self._flat()
            sizes = torch.full_like(start, self._option("size"))
            loss = _finite(self._loss(closure))
            now |= {"point": start, "steps_of": sizes, "next": 0, "loss": loss}
        k, sizes = now["next"], now["steps_of"].clone()
        for sign in (1.0, -1.0):
            point = now["point"].clone()
            point[k] += sign * sizes[k]
            value = _finite(self._loss_at(closure, point))
            if value < now["loss"]:
                sizes[k] *= sign * self._option("grow")
                now |= {"point": point, "loss": value}
                break
        else:
            sizes[k] *= self._option("shrink")
        now |= {"steps_of": sizes, "next": (k + 1) % len(sizes)}
        self._write(now["point"])
        return now["loss"]


def _finite(loss: float) -> float:
    return loss if math.isfinite(loss) else math.inf
