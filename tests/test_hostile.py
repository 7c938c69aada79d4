"""What a hostile reading has found, once: each of these was wrong."""

import copy
import pickle

import numpy as np
import pytest
import torch
from scipy import optimize
from torch import nn
from torch.optim.lr_scheduler import StepLR

import steepest
from steepest import full_batch
from steepest.schedules import NoamLR, WarmupLR, range_test
from steepest.strategies import Curriculum, Loader, pacing


def double(*values):
    return nn.Parameter(torch.tensor(values, dtype=torch.float64))


@pytest.mark.parametrize("offset", [1.0, 2020.1, 1e8])
def test_a_constant_column_is_no_rank(offset):
    random = torch.Generator().manual_seed(0)
    x = torch.randn(100, 3, generator=random, dtype=torch.float64)
    x[:, 2] = offset
    y = x[:, 0] + torch.randn(100, generator=random, dtype=torch.float64)
    pieces = zip(x.split(9), y.split(9), strict=True)
    for found in (full_batch.least_squares(x, y), full_batch.least_squares(pieces)):
        wanted, *_ = np.linalg.lstsq(
            (x - x.mean(0)).numpy()[:, :2], (y - y.mean()).numpy(), rcond=None
        )
        assert found.rank == 2
        np.testing.assert_allclose(found.coefficients, [*wanted, 0], atol=1e-9)


def test_lists_are_read_in_float64_and_a_forgotten_y_is_named():
    found = full_batch.least_squares([[1.0], [2.0], [3.0]], [0.1, 0.2, 0.3], intercept=False)
    assert float(found.coefficients) == pytest.approx(0.1, rel=1e-15)
    with pytest.raises(ValueError, match="X was given without y"):
        full_batch.least_squares(np.eye(2))


@pytest.mark.parametrize("easy", [0, 40, 150, 800])
def test_damping_comes_back_after_easy_steps(easy):
    p = double(1.0)
    newton = full_batch.Newton([p], damping=1.0, line_search=False)
    for k in range(easy):
        newton.step(lambda k=k: ((p - k) ** 2).sum())
    with torch.no_grad():
        p.fill_(3.0)
    for _ in range(50):
        newton.step(lambda: (1 + p**2).sqrt().sum())
    assert float(p.detach()) == pytest.approx(0, abs=1e-6)
    q = double(1.0)
    made = full_batch.LevenbergMarquardt([q])
    for k in range(easy):
        made.step(lambda k=k: q - k)
    with torch.no_grad():
        q.fill_(3.0)
    for _ in range(50):
        made.step(lambda: torch.atan(q))
    assert float(q.detach()) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("way", ["loop", "vmap"])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copied_population_is_one(way, copied):
    x, y = torch.ones(4, 2), torch.ones(4, 1)
    loss = nn.functional.mse_loss
    made = copied(full_batch.Population(nn.Linear(2, 1), 3, way=way))
    before = made.losses(loss, x, y)
    with torch.no_grad():
        for p in made.parameters():
            p.add_(5)
    after = made.losses(loss, x, y)
    assert (after - before).abs().min() > 1


def test_a_range_test_leaves_a_loader_where_it_was():
    x, y = torch.randn(16, 2), torch.randn(16, 1)
    loader, model = Loader((x, y), 4, seed=1), nn.Linear(2, 1)
    next(iter(loader))
    optimizer = steepest.AdamW(model.parameters())
    loss = lambda m, b: nn.functional.mse_loss(m(b[0]), b[1])  # noqa: E731
    first = range_test(model, optimizer, loss, loader, steps=12, seeds=3)
    assert (loader.epoch, loader.position) == (0, 4)
    assert range_test(model, optimizer, loss, loader, steps=12, seeds=3).losses == first.losses


def test_two_clipped_groups_are_two_norms_and_a_warning():
    model = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))
    groups = steepest.param_groups(model, weight_decay=0.1)
    with pytest.warns(UserWarning, match="clip_norm clips each group separately"):
        steepest.AdamW(groups, clip_norm=1.0)


def test_muon_says_what_it_can_adjust():
    p = nn.Parameter(torch.ones(2, 2))
    with pytest.raises(ValueError, match=r"adjust_lr_fn='match_rms_adam' was given, expected 'ori"):
        steepest.Muon([p], adjust_lr_fn="match_rms_adam")


def test_a_list_of_tensors_is_a_dataset():
    data = [torch.full((3,), float(i)) for i in range(5)]
    (batch, *_) = Loader(data, 2, shuffle=False)
    assert torch.equal(batch, torch.tensor([[0.0] * 3, [1.0] * 3]))


def test_looking_at_a_rate_changes_none():
    p = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([p], lr=1.0)
    schedule = WarmupLR(StepLR(optimizer, 2, 0.5), 1)
    for _ in range(3):
        optimizer.step()
        schedule.step()
    before = optimizer.param_groups[0]["lr"]
    for _ in range(3):
        schedule.get_lr()
    assert optimizer.param_groups[0]["lr"] == before


def test_bfgs_computes_no_gradient_twice():
    start, calls = [-1.2, 1.0, -1.2, 1.0], 0
    p = double(*start)

    def rosenbrock():
        nonlocal calls
        calls += 1
        return (100 * (p[1:] - p[:-1] ** 2) ** 2 + (1 - p[:-1]) ** 2).sum()

    made = full_batch.BFGS([p])
    steps = 0
    while float(made.step(rosenbrock)) > 1e-16:
        steps += 1
    theirs = optimize.minimize(optimize.rosen, start, jac=optimize.rosen_der, method="BFGS")
    assert made.evaluations == calls
    assert calls <= steps + 10 <= 1.5 * theirs.nfev
    assert made.evaluations <= 1.2 * theirs.nfev


def test_a_group_that_is_refused_is_not_there():
    made = full_batch.BFGS([double(1.0)], max_parameters=5)
    with pytest.raises(ValueError, match="11 parameters were given, expected at most 5"):
        made.add_param_group({"params": [nn.Parameter(torch.ones(10))]})
    assert len(made.param_groups) == 1
    with pytest.raises(ValueError, match=r"max_parameters=2\.5"):
        full_batch.Newton([double(1.0)], max_parameters=2.5)


def test_a_number_of_numpy_is_a_number():
    p = nn.Parameter(torch.ones(2))
    NoamLR(torch.optim.SGD([p], lr=0.1), np.int64(512))
    full_batch.Genetic([p], population=np.int64(5), seed=np.int64(3))
    full_batch.Population(nn.Linear(2, 1), np.int64(2))
    full_batch.Newton([p], lr=np.float32(0.5))
    full_batch.least_squares(torch.eye(3), torch.ones(3), ridge=np.float32(0.1))


def test_a_curriculum_goes_to_another_process():
    for pace in (
        pacing.linear(0.2, 10),
        pacing.root(0.2, 10),
        pacing.exponential(0.2, 2.0, 3),
        pacing.single_step(0.2, 5),
    ):
        sampler = Curriculum(torch.arange(20.0), pace, 4)
        assert [*pickle.loads(pickle.dumps(sampler))] == [*sampler]


def test_the_bytes_of_a_matrix_rule_are_those_of_a_matrix():
    from steepest import catalogue

    found = {f["name"]: f["bytes_per_parameter"] for f in catalogue.listing()}
    assert found["adafactor"] == pytest.approx(2 * 4 / 1024, abs=0.005)
    assert found["soap"] == 24
