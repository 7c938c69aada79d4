"""The genetic algorithm, annealing and coordinate search, against scipy and plain loops."""

import functools
import math

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import nn

from steepest.full_batch import Annealing, CoordinateSearch, Genetic


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def beale(p):
    x, y = p[0], p[1]
    return (1.5 - x + x * y) ** 2 + (2.25 - x + x * y**2) ** 2 + (2.625 - x + x * y**3) ** 2


def rastrigin(p):
    cos = torch.cos if isinstance(p, torch.Tensor) else np.cos
    return 20 + (p**2).sum() - 10 * cos(2 * math.pi * p).sum()


# with half the width of the searched square, and the published minimum
SURFACES = {"beale": (beale, 4.5, [3.0, 0.5]), "rastrigin": (rastrigin, 5.12, [0.0, 0.0])}


@functools.cache
def scipys(method, surface):
    """The best of three runs of scipy's, for one may end in another hollow."""
    f, limit, published = SURFACES[surface]
    tried = [method(f, [(-limit, limit)] * 2, rng=seed) for seed in range(3)]
    found = min(tried, key=lambda result: result.fun).x
    np.testing.assert_allclose(found, published, atol=1e-4)
    return f, limit, torch.from_numpy(found)


def point(limit):
    return nn.Parameter(torch.full((2,), 0.6 * limit, dtype=torch.float64))


@pytest.mark.parametrize("surface", SURFACES)
def test_annealing_ends_where_dual_annealing_does(surface):
    """From two of four seeds or more: a walk may end in another hollow; scipy's starts anew."""
    f, limit, wanted = scipys(scipy.optimize.dual_annealing, surface)
    near = 0
    for seed in range(4):
        p = point(limit)
        options = {"sigma": limit / 2, "temperature": 10.0, "cooling": 0.99, "shrink": 0.996}
        made = Annealing([p], **options, seed=seed)
        for _ in range(1800):
            made.step(lambda p=p: f(p))
        near += (p.detach() - wanted).abs().max() < 0.03
    assert near >= 2


@pytest.mark.parametrize("surface", SURFACES)
@pytest.mark.parametrize(
    "options",
    [{}, {"selection": "truncation", "crossover": "arithmetic"}, {"selection": "roulette"}],
)
def test_the_genetic_algorithm_ends_where_differential_evolution_does(surface, options):
    f, limit, wanted = scipys(scipy.optimize.differential_evolution, surface)
    for seed in range(3):
        p = point(limit)
        made = Genetic(
            [p],
            population=100,
            sigma=1.0,
            decay=0.92,
            interval=(-limit, limit),
            seed=seed,
            **options,
        )
        for _ in range(70):
            made.step(losses=lambda s: torch.stack([f(row) for row in s[0]]))
        torch.testing.assert_close(p.detach(), wanted, rtol=0, atol=0.05)


def test_binary_coding_reaches_the_nearest_point_of_its_grid():
    p = point(5.12)
    made = Genetic([p], population=40, interval=(-5.12, 5.12), bits=10, mutation=0.05, elite=2)
    for _ in range(60):
        made.step(lambda: rastrigin(p))
    grid = -5.12 + 10.24 / 1023 * np.arange(1024)
    distance = np.abs(p.detach().numpy()[:, None] - grid)
    assert distance.min(1).max() < 1e-12
    assert p.abs().max().item() <= 10.24 / 1023 / 2 + 1e-9


def test_each_number_of_bits_codes_both_ends_and_the_first_genome_is_the_start():
    for bits in (1, 3, 8, 52):
        p, seen = nn.Parameter(torch.tensor([-1.0, 3.0, 1.0], dtype=torch.float64)), []
        made = Genetic([p], population=2, interval=(-1, 3), bits=bits)
        made.step(lambda seen=seen, p=p: seen.append(p.detach().clone()) or 0.0)
        assert seen[0][:2].tolist() == [-1, 3]
        assert abs(seen[0][2] - 1) <= 2 / (2**bits - 1)


def test_selection_prefers_low_losses_as_it_says():
    losses = torch.tensor([3.0, 1.0, math.inf, 2.0, 0.0, 5.0]).double()

    def counts(selection, contest=3):
        made = Genetic([nn.Parameter(torch.zeros(1))], 6, selection=selection, contest=contest)
        made._memory["losses"] = losses
        made._random = torch.Generator().manual_seed(0)
        return torch.bincount(made._select_parents(60_000), minlength=6) / 60_000

    weights = torch.tensor([2.0, 4, 0, 3, 5, 0])
    torch.testing.assert_close(counts("roulette"), weights / 14, atol=0.01, rtol=0)
    torch.testing.assert_close(
        counts("truncation"), torch.tensor([0, 0.5, 0, 0, 0.5, 0]), atol=0.01, rtol=0
    )
    ranks = torch.tensor([3, 1, 5, 2, 0, 4])
    wanted = ((6 - ranks) / 6) ** 3 - ((5 - ranks) / 6) ** 3
    torch.testing.assert_close(counts("tournament"), wanted, atol=0.01, rtol=0)


def test_crossover_mixes_the_parents_and_nothing_else():
    for crossover in ("uniform", "arithmetic", None):
        p = nn.Parameter(torch.zeros(50))
        made = Genetic([p], 2, crossover=crossover, sigma=0.0, elite=0)
        made.step(lambda: 0.0)
        made._memory["genomes"] = torch.stack([torch.zeros(50), torch.ones(50)]).double()
        made._random = torch.Generator().manual_seed(0)
        children = made._breed(40)
        kinds = {len(c.unique()) for c in children}
        values = children.unique()
        assert kinds <= ({1, 2} if crossover == "uniform" else {1})
        assert set(values.tolist()) == {0.0, 1.0} or crossover == "arithmetic"
        assert len(values) > 5 or crossover != "arithmetic"
        assert values.min() >= 0
        assert values.max() <= 1
        assert max(kinds) == (2 if crossover == "uniform" else 1)


def test_annealing_is_metropolis():
    """The same draws in a plain loop."""
    p = nn.Parameter(torch.tensor([2.0, -1.0], dtype=torch.float64))
    made = Annealing([p], sigma=0.5, temperature=2.0, cooling=0.95, shrink=0.98, seed=3)
    random = torch.Generator().manual_seed(3)
    x, heat, sigma = p.detach().clone(), 2.0, 0.5
    best = x
    for _ in range(100):
        lowest = made.step(lambda: rastrigin(p))
        y = x + sigma * torch.randn(2, generator=random, dtype=torch.float64)
        chance = torch.rand(1, generator=random, dtype=torch.float64).item()
        rise = (rastrigin(y) - rastrigin(x)).item()
        if rise <= 0 or chance < math.exp(-rise / heat):
            x = y
        best = min(best, x, key=lambda z: rastrigin(z).item())
        heat, sigma = heat * 0.95, sigma * 0.98
        assert torch.equal(p.detach(), best)
        assert lowest == rastrigin(best).item()


def test_coordinate_search_is_the_plain_loop_and_never_rises():
    p = nn.Parameter(torch.tensor([-1.2, 1.0, 0.3], dtype=torch.float64))

    def loss(x):
        return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum().item()

    x, sizes, losses = p.detach().clone(), [0.1] * 3, []
    made = CoordinateSearch([p], size=0.1, grow=3.0, shrink=0.5)
    for k in range(300):
        losses.append(made.step(lambda: loss(p.detach())))
        i, moved = k % 3, False
        for sign in (1, -1):
            y = x.clone()
            y[i] += sign * sizes[i]
            if not moved and loss(y) < loss(x):
                x, sizes[i], moved = y, sizes[i] * sign * 3, True
        sizes[i] *= 1 if moved else 0.5
        assert torch.equal(p.detach(), x)
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.1 * losses[0]


def test_coordinate_search_solves_a_separable_bowl():
    p = nn.Parameter(torch.tensor([5.0, -7.0, 0.0], dtype=torch.float64))
    made = CoordinateSearch([p])
    for _ in range(600):
        made.step(lambda: ((p - torch.tensor([1.0, 2, 3])) ** 2 * torch.tensor([1, 10, 0.1])).sum())
    torch.testing.assert_close(p.detach(), torch.tensor([1.0, 2, 3]).double(), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "make",
    [
        Annealing, CoordinateSearch, lambda p: Genetic(p, 4), lambda p: Genetic(p, 4, elite=0),
        lambda p: Genetic(p, 4, selection="roulette"),
    ],
)  # fmt: skip
def test_nan_is_the_worst_and_the_parameters_are_always_the_best(make):
    """Loss is nan in half of the plane and minus infinity in a corner of it."""
    p = nn.Parameter(torch.tensor([-0.05, 1.0]))
    made, seen = make([p]), []

    def loss():
        value = (p.sum() - 3).abs().item()
        value = -math.inf if p[1] < -1 else math.nan if p[0] < 0 else value
        seen.append((value, p.detach().clone()))
        return value

    for _ in range(12):
        before = p.detach().clone()
        lowest = made.step(loss)
        finite = [(v, x) for v, x in seen if math.isfinite(v)]
        if not finite:
            assert torch.equal(p, before)
            assert lowest == math.inf
            continue
        best = min(finite, key=lambda pair: pair[0])
        assert lowest == best[0]
        torch.testing.assert_close(p.detach(), best[1])
    assert finite


def test_losses_of_another_shape_are_refused_and_both_arguments_too():
    p = nn.Parameter(torch.zeros(3))
    made = Genetic([p], population=5)
    for bad, given in ((torch.zeros(4), r"\(4,\)"), (1.0, "float")):
        with pytest.raises(ValueError, match=f"losses returned {given}, expected a tensor of 5"):
            made.step(losses=lambda stacked, bad=bad: bad)
    with pytest.raises(TypeError, match="expected one of them"):
        made.step(lambda: 0.0, losses=lambda s: s)
