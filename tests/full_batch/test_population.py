"""A population of models: both ways against members one by one."""

import pytest
import torch
from torch import nn

from steepest.full_batch import Genetic, Population

LOSS = nn.functional.cross_entropy
X, Y = torch.randn(12, 6, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 3


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def same(a, b):
    """Two checkpoints, to the bit."""
    for part in ("params", "buffers"):
        torch.testing.assert_close(a[part], b[part], rtol=0, atol=0)
    assert a["ways"] == b["ways"]


def mlp(k=0):
    torch.manual_seed(k)
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))


def normed(k=0):
    torch.manual_seed(k)
    return nn.Sequential(nn.Linear(6, 5, bias=False), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))


class Branch(nn.Module):
    """What vmap cannot follow: a branch by the parameters' values."""

    def __init__(self):
        super().__init__()
        self.line = nn.Linear(6, 3)

    def forward(self, x):
        return self.line(x) if self.line.weight.sum() > 0 else -self.line(x)


class Last(nn.Module):
    """The last state of a recurrent layer."""

    def __init__(self):
        super().__init__()
        self.inner = nn.RNN(2, 4, batch_first=True)
        self.outer = nn.Linear(4, 3)

    def forward(self, x):
        return self.outer(self.inner(x.view(-1, 3, 2))[0][:, -1])


def recurrent(k=0):
    torch.manual_seed(k)
    return Last()


@pytest.mark.parametrize("way", ["vmap", "loop", None])
@pytest.mark.parametrize("make", [mlp, normed])
@pytest.mark.parametrize("rule", ["SGD", "Adam"])
def test_trained_together_or_alone_is_the_same(way, make, rule):
    population = Population(make, 4, way=way)
    together = getattr(torch.optim, rule)(population.parameters(), lr=0.05)
    alone = [make(k) for k in range(4)]
    optimizers = [getattr(torch.optim, rule)(m.parameters(), lr=0.05) for m in alone]
    for step in range(5):
        x, y = X[: 12 - step], Y[: 12 - step]
        found = population.backward(LOSS, x, y)
        together.step()
        wanted = []
        for model, optimizer in zip(alone, optimizers, strict=True):
            optimizer.zero_grad()
            loss = LOSS(model(x), y)
            loss.backward()
            optimizer.step()
            wanted.append(loss.detach())
        torch.testing.assert_close(found, torch.stack(wanted), rtol=1e-6, atol=1e-6)
    population.eval()
    for k, model in enumerate(alone):
        member = population.member(k)
        torch.testing.assert_close(
            dict(member.state_dict()), dict(model.state_dict()), rtol=2e-5, atol=1e-5
        )
        wanted = LOSS(model.eval()(X), Y)
        torch.testing.assert_close(population.losses(LOSS, X, Y)[k], wanted, rtol=1e-5, atol=1e-5)


def test_a_model_that_vmap_does_not_take_goes_one_by_one():
    population = Population(lambda k: Branch(), 3)
    found = population.backward(LOSS, X, Y)
    assert set(population.state_dict()["ways"].values()) == {"loop"}
    wanted = torch.stack([LOSS(population.member(k)(X), Y) for k in range(3)])
    torch.testing.assert_close(found, wanted)
    with pytest.raises(RuntimeError):
        population.losses(LOSS, X[:, :2], Y)  # the model's own error


def test_recurrent_members():
    population = Population(recurrent, 3)
    found = population.backward(LOSS, X, Y)
    grads = [p.grad.clone() for p in population.parameters()]
    for k in range(3):
        model = recurrent(k)
        LOSS(model(X), Y).backward()
        for g, p in zip(grads, model.parameters(), strict=True):
            torch.testing.assert_close(g[k], p.grad, rtol=1e-5, atol=1e-6)
    assert found.shape == (3,)


def test_measuring_draws_nothing_and_updates_no_buffer():
    def dropped(k):
        return nn.Sequential(nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 3))

    def run(way):
        torch.manual_seed(5)
        population = Population(dropped, 3, way=way)
        torch.manual_seed(6)
        losses = population.backward(LOSS, X, Y)
        return losses, population.state_dict(), torch.rand(1)

    measured = run(None)
    (way,) = measured[1]["ways"].values()
    losses, saved, after = run(way)
    assert torch.equal(measured[0], losses)
    torch.testing.assert_close(measured[1]["buffers"], saved["buffers"], rtol=0, atol=0)
    assert torch.equal(measured[2], after)
    assert saved["buffers"]["0.num_batches_tracked"].tolist() == [1, 1, 1]
    assert len(losses.unique()) == 3  # each member drops others


def test_the_way_is_measured_once_for_each_shape():
    population = Population(mlp(), 3)
    calls = []

    def loss(output, y):
        calls.append(len(y))
        return LOSS(output, y)

    population.losses(loss, X, Y)
    first = len(calls)
    population.losses(loss, X, Y)
    way = population.state_dict()["ways"]
    assert len(way) == 1
    assert len(calls) - first == (1 if "vmap" in way.values() else 3)
    assert first == 3 * (1 + 3) + (len(calls) - first)
    population.losses(loss, X[:5], Y[:5])
    population.backward(loss, X, Y)
    assert len(population.state_dict()["ways"]) == 3


def test_fifty_and_fifty_are_a_hundred(tmp_path):
    def go(population, optimizer, steps):
        for k in range(steps):
            population.backward(LOSS, X[k % 3 :], Y[k % 3 :])
            optimizer.step()

    population = Population(normed, 3)
    optimizer = torch.optim.Adam(population.parameters())
    go(population, optimizer, 50)
    torch.save([population.state_dict(), optimizer.state_dict()], tmp_path / "half")
    go(population, optimizer, 50)
    fresh = Population(normed, 3)
    other = torch.optim.Adam(fresh.parameters())
    halves = torch.load(tmp_path / "half", weights_only=True)
    fresh.load_state_dict(halves[0])
    other.load_state_dict(halves[1])
    go(fresh, other, 50)
    same(fresh.state_dict(), population.state_dict())


@pytest.mark.parametrize("way", ["vmap", "loop"])
def test_frozen_and_tied_parameters(way):
    def tied(k):
        model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3))
        model[1].weight = model[0].weight
        model[2].bias.requires_grad_(False)
        return model

    population = Population(tied, 2, way=way)
    models = [population.member(k) for k in range(2)]
    population.backward(LOSS, X, Y)
    for k, model in enumerate(models):
        LOSS(model(X), Y).backward()
        for stacked, p in zip(population.parameters(), model.parameters(), strict=True):
            if p.grad is None:
                assert stacked.grad is None
            else:
                torch.testing.assert_close(stacked.grad[k], p.grad, rtol=1e-5, atol=1e-6)


def test_a_member_has_memory_of_its_own():
    population = Population(normed, 3)
    before = population.state_dict()
    member = population.member(1)
    for value in member.state_dict().values():
        value.add_(1)
    same(population.state_dict(), before)
    assert all(v.untyped_storage().nbytes() == v.nbytes for v in member.state_dict().values())


def test_genetic_with_a_population_is_genetic_alone():
    model, other = mlp(1).double(), mlp(1).double()
    population = Population(other, 8)
    together = Genetic(other.parameters(), population=8, sigma=0.2, elite=2)
    alone = Genetic(model.parameters(), population=8, sigma=0.2, elite=2)
    for _ in range(10):
        a = together.step(losses=population.losses_of(LOSS, X.double(), Y))
        b = alone.step(lambda: LOSS(model(X.double()), Y))
        assert a == pytest.approx(b, rel=1e-6)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-6)
    assert together.evaluations == alone.evaluations


def test_what_is_refused():
    for n in (0, -1, 2.0, True):
        with pytest.raises(ValueError, match="expected a whole number"):
            Population(mlp(), n)
    with pytest.raises(ValueError, match="way='fast'"):
        Population(mlp(), 2, way="fast")
    with pytest.raises(TypeError, match="different types or shapes"):
        Population(lambda k: nn.Linear(2, 2 + k), 2)
    with pytest.raises(TypeError, match="different types or shapes"):
        Population(lambda k: 3, 2)
    population = Population(mlp(), 2)
    before = population.state_dict()
    with pytest.raises(ValueError, match="different population"):
        population.load_state_dict(Population(mlp(3), 3).state_dict())
    with pytest.raises(ValueError, match="expected"):
        population.assign([torch.zeros(2)])
    same(population.state_dict(), before)
