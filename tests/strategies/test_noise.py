"""Gradient noise: its distribution against scipy, and whose gradients it touches."""

import io
import math

import pytest
import torch
from scipy import stats
from torch import nn

import steepest
from steepest.strategies import GradientNoise


def leaf(n=20_000, dtype=torch.float64):
    return nn.Parameter(torch.zeros(n, dtype=dtype))


def steps(p, made, count, grad=0.0):
    """The gradients that the steps saw."""
    seen = []
    for _ in range(count):
        p.grad = torch.full_like(p, grad)
        made.step()
        seen.append(p.grad.clone())
    return seen


@pytest.mark.parametrize("make", [torch.optim.SGD, steepest.AdaBelief], ids=["torch", "steepest"])
@pytest.mark.parametrize(("eta", "gamma"), [(0.01, 0.55), (1.0, 0.55), (0.3, 2.0), (0.3, 0.0)])
def test_it_is_normal_with_the_papers_variance(eta, gamma, make):
    p = leaf()
    made = make([p], lr=0.01)
    noise = GradientNoise(made, eta, gamma, seed=3)
    for t, g in enumerate(steps(p, made, 12, grad=2.0)):
        scale = math.sqrt(eta / (1 + t) ** gamma)
        assert stats.kstest((g - 2).numpy() / scale, "norm").pvalue > 1e-4
        within = stats.chi2.interval(1 - 1e-5, len(g))
        assert within[0] < float(((g - 2) / scale).square().sum()) < within[1]
    assert noise.t == 12
    assert noise.variance == pytest.approx(eta / 13**gamma)


def test_steps_parameters_and_seeds_are_independent():
    def seen(seed):
        p, q = leaf(), leaf()
        made = torch.optim.SGD([p, q], lr=1.0)
        GradientNoise(made, 1.0, 0.0, seed=seed)
        out = []
        for _ in range(2):
            p.grad = q.grad = None
            p.grad, q.grad = torch.zeros_like(p), torch.zeros_like(q)
            made.step()
            out += [p.grad.clone(), q.grad.clone()]
        return out

    draws = seen(0) + seen(1)
    correlation = torch.corrcoef(torch.stack(draws)) - torch.eye(8, dtype=torch.float64)
    assert correlation.abs().max() < 5 / math.sqrt(20_000)
    assert all(map(torch.equal, seen(0), draws))


def test_only_gradients_of_that_optimizer_are_touched_and_the_random_state_is_not():
    ours, other, none = leaf(5), leaf(5), leaf(5)
    made = torch.optim.SGD([ours, none], lr=1.0)
    noise = GradientNoise(made)
    ours.grad, other.grad = torch.zeros(5).double(), torch.zeros(5).double()
    before = torch.get_rng_state()
    made.step()
    torch.optim.SGD([other], lr=1.0).step()
    assert torch.equal(torch.get_rng_state(), before)
    assert ours.grad.abs().min() > 0
    assert not other.grad.any()
    assert none.grad is None
    assert not none.any()
    noise.remove()
    assert not any(g.any() for g in steps(ours, made, 2))
    assert noise.t == 1


def test_sparse_gradients_stay_sparse():
    table = nn.Embedding(1000, 4, sparse=True)
    made = torch.optim.SparseAdam(table.parameters(), lr=0.1)
    GradientNoise(made, eta=1.0)
    before = table.weight.detach().clone()
    table(torch.tensor([3, 7, 3])).sum().backward()
    made.step()
    grad = table.weight.grad
    assert grad.is_sparse
    assert grad.coalesce().indices().tolist() == [[3, 7]]
    changed = (table.weight != before).any(1).nonzero().flatten().tolist()
    assert changed == [3, 7]
    noise = grad.coalesce().values() - torch.tensor([[2.0], [1.0]])
    assert noise.abs().min() > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.complex64])
def test_other_dtypes(dtype):
    p = leaf(dtype=dtype)
    made = torch.optim.SGD([p], lr=0.1)
    GradientNoise(made, eta=0.25)
    (g,) = steps(p, made, 1)
    assert g.dtype == dtype
    assert g.abs().square().mean().item() == pytest.approx(0.25, rel=0.05)
    if dtype.is_complex:
        assert g.real.square().mean().item() == pytest.approx(0.125, rel=0.05)


@pytest.mark.parametrize("keyword", [False, True])
@pytest.mark.parametrize("name", ["SGD", "LBFGS", "SAM", "AdaBelief"])
def test_a_closure_gets_the_noise_after_its_backward(name, keyword):
    p = leaf(200)
    made = {
        "SGD": lambda: torch.optim.SGD([p], lr=1.0),
        "LBFGS": lambda: torch.optim.LBFGS([p], lr=1.0, max_iter=1),
        "AdaBelief": lambda: steepest.AdaBelief([p], lr=1.0),
        "SAM": lambda: steepest.SAM(torch.optim.SGD([p], lr=1.0)),
    }[name]()
    inner = made.optimizer if name == "SAM" else made
    noise = GradientNoise(inner, eta=0.01)

    def closure():
        inner.zero_grad()
        loss = (3.0 * p).sum()
        loss.backward()
        return loss

    loss = made.step(closure=closure) if keyword else made.step(closure)
    assert loss.item() == 0
    assert 0.05 < (p.grad - 3).std() < 0.2
    assert noise.t == 1


def test_gradients_that_a_scaler_leaves_scaled_get_scaled_noise():
    p = leaf(dtype=torch.float32)
    made = torch.optim.SGD([p], lr=1.0, fused=True)
    GradientNoise(made, eta=0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale((p * 0.0).sum()).backward()
    scaler.step(made)
    assert p.detach().std().item() == pytest.approx(0.1, rel=0.05)


@pytest.mark.parametrize("make", [torch.optim.Adam, steepest.Adam], ids=["torch", "steepest"])
def test_fifty_and_fifty_steps_are_a_hundred(make):
    def fresh():
        p = leaf(30)
        made = make([p], lr=0.01)
        return p, made, GradientNoise(made, 0.3, seed=9)

    whole, first, second = fresh(), fresh(), fresh()
    steps(*whole[:2], 100, 0.1)
    steps(*first[:2], 50, 0.1)
    file = io.BytesIO()
    torch.save([first[0].detach(), first[1].state_dict(), first[2].state_dict()], file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    second = fresh()
    second[2].seed = second[2].t = 77  # seed and step come with the state
    second[0].data.copy_(saved[0])
    second[1].load_state_dict(saved[1])
    second[2].load_state_dict(saved[2])
    steps(*second[:2], 50, 0.1)
    assert torch.equal(second[0], whole[0])


def test_bad_input_is_refused():
    made = torch.optim.SGD([leaf(1)], lr=1.0)
    for bad in ({"eta": -1}, {"eta": math.nan}, {"eta": "x"}, {"gamma": -0.1}, {"seed": 0.5}):
        with pytest.raises(ValueError, match=f"GradientNoise: {next(iter(bad))}="):
            GradientNoise(made, **bad)
    with pytest.raises(TypeError, match="a Linear was given, expected an optimizer"):
        GradientNoise(nn.Linear(1, 1))
    assert not made._optimizer_step_pre_hooks
    with pytest.raises(ValueError, match="a state of"):
        GradientNoise(made).load_state_dict({})
