"""A genetic algorithm; the genome is the vector of all parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..checks import plain, several
from .closures import RandomizedOptimizer


class Genetic(RandomizedOptimizer):
    """A genetic algorithm: Holland 1975; Goldberg 1989, Genetic Algorithms in Search.

    A step is one generation, and fitness is -loss. The best genomes survive unchanged; `elite` is
    their number. All other genomes are children: two parents are selected and crossed over, and the
    result mutates. In the first population, one genome is the present parameters. All other genomes
    are parameters + spread N(0, I), or uniform draws from `interval` if `interval` is set. With
    selection="truncation", crossover=None and elite=1, this is the algorithm of Such et al. 2017,
    arXiv:1712.06567.

    population: the number of genomes, each a vector of all P parameters in float64.
    selection: how a parent is chosen. "tournament" takes the best of several random genomes, whose
    number is `contest`. "truncation" takes a random one of the best n / `contest` genomes, where n
    is `population`. "roulette" takes a genome with a probability proportional to the worst finite
    loss minus the genome's own loss; if all finite losses are equal, all these genomes are equally
    likely.
    crossover: "uniform" (each number comes from a random one of the two parents), "arithmetic"
    (a x + (1 - a) y for the parents x and y; each pair draws its own `a` uniformly from [0, 1]),
    None (a copy of the first parent).
    mutation, sigma: each number of a child changes with probability `mutation`, by sigma N(0, 1).
    decay: sigma *= decay per generation.
    interval: (low, high), the limits of every parameter.
    bits: if set, the genome has this many bits per parameter. These bits encode an integer k, and
    the parameter is low + k (high - low) / (2^bits - 1), with (low, high) from `interval`. Mutation
    then flips each bit with probability `mutation`, and crossover must be "uniform" (per bit) or
    None.
    seed: the seed of all random draws.

    After each step the parameters are the best genome so far, even with elite=0. Changes made to
    the parameters between steps are lost. `step` returns the lowest loss so far, which is the loss
    of the parameters. A loss that is not finite counts as inf. The parameters do not change until a
    loss is finite.

    `step(closure)` calls the closure once per new genome. The closure runs with gradients disabled,
    and must not call backward(). `step(losses=function)` passes all n new genomes to the function
    at once, as a list with one tensor (n, *p.shape) for each parameter p. The function returns n
    losses; Population.losses_of makes such a function.

    The elite is not evaluated again. Its old losses are compared with the new losses of the
    children, so every loss must be computed on all data: losses on different batches are not
    comparable.
    """

    _limits: ClassVar = {
        "population": "[2, inf)",
        "selection": ("tournament", "truncation", "roulette"),
        "contest": "[1, inf)",
        "crossover": ("uniform", "arithmetic", None),
        "elite": "[0, inf)",
        "mutation": "[0, 1]",
        "sigma": "[0, inf)",
        "decay": "(0, 1]",
        "spread": "[0, inf)",
    }
    _integers: ClassVar = frozenset({"population", "contest", "elite"})
    _saved: ClassVar = ("generator", "sigma", "genomes", "losses", "best", "lowest")

    def __init__(
        self,
        params: Iterable[Any],
        population: int = 50,
        selection: str = "tournament",
        contest: int = 3,
        crossover: str | None = "uniform",
        elite: int = 1,
        mutation: float = 1.0,
        sigma: float = 0.1,
        decay: float = 1.0,
        spread: float = 1.0,
        interval: tuple[float, float] | None = None,
        bits: int | None = None,
        seed: int = 0,
    ) -> None:
        options = {
            "population": population,
            "selection": selection,
            "contest": contest,
            "crossover": crossover,
            "elite": elite,
            "mutation": mutation,
            "sigma": sigma,
            "decay": decay,
            "spread": spread,
            "interval": interval,
            "bits": bits,
        }
        super().__init__(params, options)
        self._set_seed(seed)
        self._memory |= {"sigma": float(sigma), "lowest": math.inf}

    def _check(self, options: dict[str, Any]) -> None:
        super()._check(options)
        interval, bits = options["interval"], plain(options["bits"])
        options["bits"] = bits
        if interval is not None:
            ends: Any = several(interval, 2) or ()
            if len(ends) != 2 or not all(isinstance(e, (int, float)) for e in ends):
                self._refuse(f"interval={interval!r} was given, expected (low, high)")
            options["interval"] = ends
            if not -math.inf < ends[0] < ends[1] < math.inf:
                self._refuse(f"interval={interval!r} was given, expected low < high, both finite")
        if bits is not None:
            if type(bits) is not int or not 1 <= bits <= 52:
                self._refuse(f"bits={bits!r} was given, expected a whole number in [1, 52]")
            if interval is None or options["crossover"] == "arithmetic":
                self._refuse(
                    "bits was given without an interval, or with arithmetic crossover; expected "
                    "interval=(low, high) and crossover='uniform' or None"
                )
        if options["elite"] >= options["population"]:
            self._refuse(
                f"elite={options['elite']} was given, expected fewer than the population of "
                f"{options['population']}"
            )

    def step(  # type: ignore[override]
        self,
        closure: Callable[[], Any] | None = None,
        *,
        losses: Callable[[list[Tensor]], Tensor] | None = None,
    ) -> float:
        """Run one generation. Pass either `closure` or `losses`.

        Returns the lowest loss so far. Raises TypeError if both are passed.
        """
        if closure is not None and losses is not None:
            self._refuse("closure and losses were given, expected one of them", TypeError)
        evaluate = self._evaluate_each if losses is None else self._evaluate_together
        function = closure if losses is None else losses
        return self._run_step(function, lambda f: self._run_generation(partial(evaluate, f)))

    def _evaluate_each(self, closure: Callable[[], Any], vectors: Tensor) -> Tensor:
        return vectors.new_tensor([self._compute_loss_at(closure, v) for v in vectors])

    def _evaluate_together(
        self, function: Callable[[list[Tensor]], Tensor], vectors: Tensor
    ) -> Tensor:
        self._memory["thirds"] += len(vectors)
        params = self._trainable()
        stacked = [v.to(p.dtype) for v, p in zip(self._split(vectors), params, strict=True)]
        with torch.no_grad():
            losses = function(stacked)
        if not isinstance(losses, Tensor) or losses.shape != (len(vectors),):
            returned = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
            self._refuse(f"losses returned {returned}, expected a tensor of {len(vectors)} losses")
        return losses.detach().to(vectors)

    @torch.no_grad()
    def _run_generation(self, evaluate: Callable[[Tensor], Tensor]) -> float:
        state, count = self._memory, self._option("population")
        start = self._flatten()
        if state["genomes"] is None:
            genomes, elite_losses = self._make_first(start, count), start.new_empty(0)
        else:
            elite = state["losses"].argsort(stable=True)[: self._option("elite")]
            children = self._breed(count - len(elite))
            genomes = torch.cat([state["genomes"][elite], children])
            elite_losses = state["losses"][elite]
            state["sigma"] *= self._option("decay")
        vectors = self._decode(genomes)
        new = evaluate(vectors[len(elite_losses) :])
        losses = torch.cat([elite_losses, torch.where(new.isfinite(), new, math.inf)])
        state |= {"genomes": genomes, "losses": losses}
        k = int(losses.argmin())
        if float(losses[k]) < state["lowest"]:
            state |= {"best": vectors[k].clone(), "lowest": float(losses[k])}
        self._write(start if state["best"] is None else state["best"])
        return state["lowest"]

    def _make_first(self, start: Tensor, count: int) -> Tensor:
        """Make the first population. `count`: the number of genomes."""
        interval, bits = self._option("interval"), self._option("bits")
        if interval is None:
            others = start + self._option("spread") * self._draw_normal(count - 1, len(start))
            return torch.cat([start[None], others])
        low, high = interval
        drawn = low + (high - low) * self._draw_uniform(count - 1, len(start))
        vectors = torch.cat([start.clamp(low, high)[None], drawn])
        if bits is None:
            return vectors
        codes = ((vectors - low) / (high - low) * (2**bits - 1)).round().long()
        positions = torch.arange(bits, device=start.device)
        return (codes[..., None] >> positions & 1).bool().flatten(1)

    def _decode(self, genomes: Tensor) -> Tensor:
        """Decode the genomes into vectors of parameters, shape (n, P)."""
        bits = self._option("bits")
        if bits is None:
            return genomes
        low, high = self._option("interval")
        values = 2.0 ** torch.arange(bits, dtype=torch.float64, device=genomes.device)
        codes = genomes.unflatten(1, (-1, bits)).double() @ values
        return low + codes * ((high - low) / (2**bits - 1))

    def _breed(self, count: int) -> Tensor:
        """Make children of the current population. `count`: the number of children."""
        genomes = self._memory["genomes"]
        mother, father = genomes[self._select_parents(count)], genomes[self._select_parents(count)]
        crossover = self._option("crossover")
        if crossover == "uniform":
            mother = torch.where(self._draw_uniform(*mother.shape) < 0.5, mother, father)
        elif crossover == "arithmetic":
            mother = father + self._draw_uniform(count, 1) * (mother - father)
        changed = self._draw_uniform(*mother.shape) < self._option("mutation")
        if mother.dtype == torch.bool:
            return mother ^ changed
        children = mother + changed * self._memory["sigma"] * self._draw_normal(*mother.shape)
        if (interval := self._option("interval")) is not None:
            children = children.clamp(*interval)
        return children

    def _select_parents(self, count: int) -> Tensor:
        """Select parents, and return their indices. `count`: the number of parents."""
        losses, contest = self._memory["losses"], self._option("contest")
        selection = self._option("selection")
        if selection == "roulette":
            finite = losses[losses.isfinite()]
            worst = finite.max() if len(finite) else losses.new_zeros(())
            weights = torch.where(losses.isfinite(), worst - losses, 0)
            if not weights.any():  # all finite losses are equal, or none is finite
                weights = losses.isfinite().double() if len(finite) else torch.ones_like(losses)
            ends = (weights / weights.max()).cumsum(0)
            drawn = torch.searchsorted(ends, self._draw_uniform(count) * ends[-1], right=True)
            return drawn.clamp_(max=len(losses) - 1)
        if selection == "truncation":
            best = losses.argsort(stable=True)[: max(1, len(losses) // contest)]
            return best[(self._draw_uniform(count) * len(best)).long()]
        drawn = (self._draw_uniform(count, contest) * len(losses)).long()
        return drawn.gather(1, losses[drawn].argmin(1, keepdim=True))[:, 0]
