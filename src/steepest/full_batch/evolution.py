"""The genetic algorithm on all parameters as one genome."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..checks import plain, several
from .closures import Randomly


class Genetic(Randomly):
    """A genetic algorithm: Holland 1975; Goldberg 1989, Genetic Algorithms in Search.

    A step is one generation. Its fitness is -loss. The `elite` best live on unchanged; the others
    are children: two parents by selection, crossover, mutation. The first population is the
    parameters themselves and, around them, parameters + spread N(0, I), or points drawn uniformly
    from `interval`, if one is given. With selection="truncation", crossover=None, elite=1 it is the
    algorithm of Such et al. 2017, arXiv:1712.06567.

    population: genomes, each a vector of all P parameters in float64.
    selection: "tournament" (the best of `contest` drawn ones), "truncation" (any of the best
    1/`contest` of the population), "roulette" (with a probability proportional to the worst loss
    minus its own; uniform if all are equal).
    crossover: "uniform" (each gene from either parent), "arithmetic" (a x + (1 - a) y, a uniform in
    [0, 1] per pair), None (a copy of the first parent).
    sigma: mutation adds sigma N(0, 1) to each gene with the probability `mutation`; sigma *= decay
    per generation.
    interval: (low, high), the limits of every gene.
    bits: codes each parameter by so many bits over `interval`, low + k (high - low) / (2^bits - 1);
    then mutation flips each bit with the probability `mutation`, and crossover is "uniform" or
    None.
    seed: of everything that is drawn.

    After each step the parameters are the best genome met so far, with elite=0 too; what is written
    into them between steps is lost. `step` returns its loss, the lowest so far. A loss that is not
    finite counts as the worst; until one is finite, the parameters are what they were.

    `step(closure)` calls the closure for each genome, without gradients and without backward().
    `step(losses=function)` hands the function the whole generation: a list of tensors (n, *shape),
    one for each parameter; it returns n losses (Population.losses_of makes such a function).
    The elite is not computed again, so the loss has to be that of the whole data.
    """

    _limits: ClassVar = {
        "population": "[2, inf)", "selection": ("tournament", "truncation", "roulette"),
        "contest": "[1, inf)", "crossover": ("uniform", "arithmetic", None), "elite": "[0, inf)",
        "mutation": "[0, 1]", "sigma": "[0, inf)", "decay": "(0, 1]", "spread": "[0, inf)",
    }  # fmt: skip
    _whole: ClassVar = frozenset({"population", "contest", "elite"})
    _keeps: ClassVar = ("generator", "sigma", "genomes", "losses", "best", "lowest")

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
            "population": population, "selection": selection, "contest": contest,
            "crossover": crossover, "elite": elite, "mutation": mutation, "sigma": sigma,
            "decay": decay, "spread": spread, "interval": interval, "bits": bits,
        }  # fmt: skip
        super().__init__(params, options)
        self._seeded(seed)
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
                f"elite={options['elite']} was given, expected fewer than the population's "
                f"{options['population']}"
            )

    def step(  # type: ignore[override]
        self,
        closure: Callable[[], Any] | None = None,
        *,
        losses: Callable[[list[Tensor]], Tensor] | None = None,
    ) -> float:
        """One generation; exactly one of closure and losses."""
        if closure is not None and losses is not None:
            self._refuse("closure and losses were given, expected one of them", TypeError)
        if losses is None:
            return self._guarded(closure, lambda c: self._generation(lambda v: self._each(c, v)))
        return self._guarded(losses, lambda f: self._generation(lambda v: self._together(f, v)))

    def _each(self, closure: Callable[[], Any], vectors: Tensor) -> Tensor:
        return vectors.new_tensor([self._loss_at(closure, v) for v in vectors])

    def _together(self, losses: Callable[[list[Tensor]], Tensor], vectors: Tensor) -> Tensor:
        self._memory["thirds"] += len(vectors)
        params = self._params()
        stacked = [v.to(p.dtype) for v, p in zip(self._split(vectors), params, strict=True)]
        with torch.no_grad():
            found = losses(stacked)
        if not isinstance(found, Tensor) or found.shape != (len(vectors),):
            given = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            self._refuse(f"losses returned {given}, expected a tensor of {len(vectors)} losses")
        return found.detach().to(vectors)

    @torch.no_grad()
    def _generation(self, evaluate: Callable[[Tensor], Tensor]) -> float:
        now, count = self._memory, self._option("population")
        start = self._flat()
        if now["genomes"] is None:
            genomes, kept = self._first(start, count), start.new_empty(0)
        else:
            order = now["losses"].argsort(stable=True)[: self._option("elite")]
            children = self._children(count - len(order))
            genomes, kept = torch.cat([now["genomes"][order], children]), now["losses"][order]
            now["sigma"] *= self._option("decay")
        vectors = self._decoded(genomes)
        new = evaluate(vectors[len(kept) :])
        losses = torch.cat([kept, torch.where(new.isfinite(), new, math.inf)])
        now |= {"genomes": genomes, "losses": losses}
        k = int(losses.argmin())
        if float(losses[k]) < now["lowest"]:
            now |= {"best": vectors[k].clone(), "lowest": float(losses[k])}
        self._write(start if now["best"] is None else now["best"])
        return now["lowest"]

    def _first(self, start: Tensor, count: int) -> Tensor:
        interval, bits = self._option("interval"), self._option("bits")
        if interval is None:
            others = start + self._option("spread") * self._normal(count - 1, len(start))
            return torch.cat([start[None], others])
        low, high = interval
        drawn = low + (high - low) * self._uniform(count - 1, len(start))
        vectors = torch.cat([start.clamp(low, high)[None], drawn])
        if bits is None:
            return vectors
        whole = ((vectors - low) / (high - low) * (2**bits - 1)).round().long()
        places = torch.arange(bits, device=start.device)
        return (whole[..., None] >> places & 1).bool().flatten(1)

    def _decoded(self, genomes: Tensor) -> Tensor:
        bits = self._option("bits")
        if bits is None:
            return genomes
        low, high = self._option("interval")
        values = 2.0 ** torch.arange(bits, dtype=torch.float64, device=genomes.device)
        whole = genomes.unflatten(1, (-1, bits)).double() @ values
        return low + whole * ((high - low) / (2**bits - 1))

    def _children(self, count: int) -> Tensor:
        genomes = self._memory["genomes"]
        mother, father = genomes[self._parents(count)], genomes[self._parents(count)]
        crossover = self._option("crossover")
        if crossover == "uniform":
            mother = torch.where(self._uniform(*mother.shape) < 0.5, mother, father)
        elif crossover == "arithmetic":
            mother = father + self._uniform(count, 1) * (mother - father)
        changed = self._uniform(*mother.shape) < self._option("mutation")
        if mother.dtype == torch.bool:
            return mother ^ changed
        children = mother + changed * self._memory["sigma"] * self._normal(*mother.shape)
        if (interval := self._option("interval")) is not None:
            children = children.clamp(*interval)
        return children

    def _parents(self, count: int) -> Tensor:
        """The numbers of so many parents."""
        losses, contest = self._memory["losses"], self._option("contest")
        selection = self._option("selection")
        if selection == "roulette":
            finite = losses[losses.isfinite()]
            worst = finite.max() if len(finite) else losses.new_zeros(())
            weights = torch.where(losses.isfinite(), worst - losses, 0)
            if not weights.any():  # all alike, or all of no finite loss
                weights = losses.isfinite().double() if len(finite) else torch.ones_like(losses)
            ends = (weights / weights.max()).cumsum(0)
            drawn = torch.searchsorted(ends, self._uniform(count) * ends[-1], right=True)
            return drawn.clamp_(max=len(losses) - 1)
        if selection == "truncation":
            best = losses.argsort(stable=True)[: max(1, len(losses) // contest)]
            return best[(self._uniform(count) * len(best)).long()]
        drawn = (self._uniform(count, contest) * len(losses)).long()
        return drawn.gather(1, losses[drawn].argmin(1, keepdim=True))[:, 0]
