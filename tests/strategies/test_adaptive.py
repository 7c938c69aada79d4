"""BA-SGD: its formula against scipy, its statistics against a loop over samples."""

import copy
import io
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats
from torch import nn

import steepest
from steepest.checks import _warn_once
from steepest.strategies import (
    AdaptiveBatch,
    Loader,
    best_batch,
    difficulty,
    expected_loss,
    per_sample,
)

LOSSES, GAINS = st.floats(0.01, 10), st.floats(1e-4, 20)
DEVIATIONS = st.floats(1e-2, 100)


def cross_entropy(model, batch):
    x, y = batch
    return nn.functional.cross_entropy(model(x), y)


def data(samples=240):
    random = torch.Generator().manual_seed(4)
    x = torch.randn(samples, 6, generator=random, dtype=torch.float64)
    return x, (x[:, 0] + x[:, 1] ** 2 > 1).long()


def network():
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2)).double()


def by_a_loop(model, loss, batch):
    """Losses [m] and gradients [m, all parameters] of the batch, one backward pass each."""
    losses, grads = [], []
    for k in range(len(batch[1])):
        model.zero_grad()
        value = loss(model, tuple(t[k : k + 1] for t in batch))
        value.backward()
        losses.append(value.item())
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad]))
    model.zero_grad()
    return np.array(losses), torch.stack(grads).numpy()


@settings(max_examples=60, deadline=None)
@given(LOSSES, GAINS, DEVIATIONS, st.integers(1, 10_000))
def test_the_expected_loss_is_the_integral_of_a_rebounding_normal(loss, gain, deviation, m):
    mean, spread = loss - gain, deviation / math.sqrt(m)
    ends = mean - 12 * spread, mean + 12 * spread
    expected, _ = integrate.quad(
        lambda s: abs(s) * stats.norm.pdf(s, mean, spread),
        *ends,
        points=sorted({min(max(x, ends[0]), ends[1]) for x in (0.0, mean)}),
        limit=200,
        epsabs=1e-12,
        epsrel=1e-12,
    )
    assert expected_loss(loss, gain, deviation, m) == pytest.approx(expected, rel=1e-9, abs=1e-11)


@settings(max_examples=150, deadline=None)
@given(LOSSES, GAINS, DEVIATIONS)
def test_the_best_batch_is_that_of_brute_force(loss, gain, deviation):
    largest = 5000
    m = np.arange(1, largest + 1)
    spread = deviation / np.sqrt(m)
    folded = stats.foldnorm.mean(abs(loss - gain) / spread, scale=spread)
    progress = (loss - folded) / m
    found = best_batch(loss, gain, deviation, largest)
    # two sizes may be as good as each other to all digits that folded has
    slack = 1e-12 * (loss + gain + deviation) / m.min()
    assert progress[found - 1] >= progress.max() - slack
    rises = np.diff(progress) > slack
    if rises.any() and not rises.all():  # one maximum: what the bisection rests on
        last = np.flatnonzero(rises)[-1]
        assert (np.diff(progress)[:last] > -slack).all()


def test_the_limits_of_the_best_batch():
    assert best_batch(1.0, 0.1, 0.0, 100) == 1  # no spread: the first sample tells all
    assert best_batch(1.0, 0.1, 1e-3, 100) == 1
    assert best_batch(1.0, 0.1, 1e9, 100) == 100
    assert best_batch(1.0, 0.0, 1.0, 100) == 100  # nothing but noise
    assert best_batch(1.0, 0.0, 0.0, 100) == 1  # a gradient of zero
    assert best_batch(1.0, 3.0, 0.0, 100) == 100  # past the minimum, whatever the batch
    for bad in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="expected a number in"):
            best_batch(bad, 0.1, 1.0, 100)
    with pytest.raises(ValueError, match="largest=0"):
        best_batch(1.0, 0.1, 1.0, 0)
    with pytest.raises(FloatingPointError, match="gain=nan"):
        best_batch(1.0, math.nan, 1.0, 100)


def convolutional():
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Unflatten(1, (1, 2, 3)), nn.Conv2d(1, 3, 2), nn.GroupNorm(1, 3), nn.ReLU(),
        nn.Flatten(), nn.Linear(6, 2),
    ).double()  # fmt: skip


@pytest.mark.parametrize("make", [network, convolutional])
def test_per_sample_gradients_are_those_of_a_loop(make):
    model, batch = make(), tuple(t[:17] for t in data())
    frozen = next(iter(model.parameters()))
    frozen.requires_grad_(False)
    losses, grads = per_sample(model, cross_entropy, batch)
    assert "0.weight" not in grads
    flat = torch.cat([g.flatten(1) for g in grads.values()], 1).numpy()
    expected = by_a_loop(model, cross_entropy, batch)
    np.testing.assert_allclose(losses.numpy(), expected[0], rtol=1e-13)
    np.testing.assert_allclose(flat, expected[1], rtol=1e-11, atol=1e-14)


def test_dropout_differs_from_sample_to_sample():
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(64, 1, bias=False)).double()
    batch = torch.ones(4, 64, dtype=torch.float64)
    grads = per_sample(model, lambda m, x: m(x).sum(), batch)[1]["1.weight"]
    assert {*grads.unique().tolist()} == {0.0, 2.0}
    assert not torch.equal(grads[0], grads[1])


def direction(kind, g, buffer):
    """What torch's documentation of SGD subtracts, over lr, and its part that is of this g."""
    mu, dampening = kind.get("momentum", 0), kind.get("dampening", 0)
    if not mu:
        return g
    buffer = g if buffer is None else mu * buffer + (1 - dampening) * g
    return g + mu * buffer if kind.get("nesterov") else buffer


KINDS = {
    "plain": {},
    "momentum": {"momentum": 0.9},
    "nesterov": {"momentum": 0.8, "nesterov": True},
    "dampened": {"momentum": 0.9, "dampening": 0.5},
}


@pytest.mark.parametrize("make", [torch.optim.SGD, steepest.SGD], ids=["torch", "steepest"])
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_an_update_is_the_algorithm_written_as_a_loop(kind, make):
    model, rates = network(), (3.0, 5.0)

    def groups(model):
        return [
            {"params": layer.parameters(), "lr": lr}
            for layer, lr in zip((model[0], model[2]), rates, strict=True)
        ]

    twin = copy.deepcopy(model)
    loader = Loader(data(), 8, seed=1)
    adaptive = AdaptiveBatch(model, cross_entropy, make(groups(model), **kind), loader, 100)
    reference = torch.optim.SGD(groups(twin), **kind)
    sizes = [p.numel() for p in twin.parameters()]
    lr = np.repeat([rates[0], rates[0], rates[1], rates[1]], sizes)
    order = Loader(data(), "all", seed=1)
    rest = [batch for _ in range(4) for batch in order]
    epoch, seen = 0, 0
    used = []
    for _ in range(8):
        value = adaptive.step()
        rows = []
        losses, grads = np.zeros(0), np.zeros((0, sum(sizes)))
        while True:
            if seen == 240:
                epoch, seen = epoch + 1, 0
                if rows:
                    break
            batch = tuple(t[seen : seen + 8] for t in rest[epoch])
            seen += 8
            rows.append(batch)
            more = by_a_loop(twin, cross_entropy, batch)
            losses, grads = np.append(losses, more[0]), np.append(grads, more[1], 0)
            g, m = grads.mean(0), len(grads)
            states = [reference.state.get(p, {}).get("momentum_buffer") for p in twin.parameters()]
            buffer = None
            if states[0] is not None:
                buffer = np.concatenate([s.flatten().numpy() for s in states])
            gain = (lr * g * direction(kind, g, buffer)).sum()
            # how far one sample moves the step: the direction is linear in g
            slope = direction(kind, np.ones(1), buffer if buffer is None else np.zeros(1))
            spread = math.sqrt(((lr * slope * g) ** 2 * grads.var(0, ddof=1)).sum())
            each = np.arange(1, 101)
            folded = stats.foldnorm.mean(
                abs(losses.mean() - gain) / (spread / np.sqrt(each)), scale=spread / np.sqrt(each)
            )
            wanted = int(each[np.argmax((losses.mean() - folded) / each)])
            if m >= wanted:
                break
        assert (adaptive.batch_size, adaptive.wanted) == (m, wanted)
        assert value == pytest.approx(losses.mean(), rel=1e-12)
        whole = tuple(torch.cat(column) for column in zip(*rows, strict=True))
        reference.zero_grad()
        cross_entropy(twin, whole).backward()
        reference.step()
        for p, q in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-11, atol=1e-13)
        used.append(m)
    assert len({*used}) > 1
    assert adaptive.samples == sum(used)


def through_a_file(*states):
    file = io.BytesIO()
    torch.save(states, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_fifty_and_fifty_updates_are_a_hundred():
    torch.set_num_threads(1)  # two wait for each other on a busy machine; conftest sets it back

    def make():
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), 2.0, momentum=0.9)
        loader = Loader(data(), 8)
        return model, optimizer, loader, AdaptiveBatch(model, cross_entropy, optimizer, loader, 64)

    whole = make()
    expected = [whole[-1].step() for _ in range(100)]
    first, second = make(), make()
    found = [first[-1].step() for _ in range(50)]
    for part, state in zip(second, through_a_file(*(p.state_dict() for p in first)), strict=True):
        part.load_state_dict(state)
    found += [second[-1].step() for _ in range(50)]
    assert found == expected
    assert all(map(torch.equal, second[0].parameters(), whole[0].parameters()))
    assert second[-1].state_dict() == whole[-1].state_dict()


def test_an_update_ends_with_the_epoch():
    model = network()
    loader = Loader(data(30), 8)
    optimizer = torch.optim.SGD(model.parameters(), 1e3)  # past any minimum: it wants all
    adaptive = AdaptiveBatch(model, cross_entropy, optimizer, loader)
    for k in range(1, 4):
        adaptive.step()
        assert (adaptive.batch_size, adaptive.wanted) == (30, 30)
        assert adaptive.samples == 30 * k


def test_batch_normalisation_in_training_is_refused():
    x, y = data(16)
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 2)).double()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="batch normalisation '1' in training mode was given"):
        per_sample(model, cross_entropy, (x, y))
    assert all(map(torch.equal, model.state_dict().values(), before.values()))
    model.eval()
    per_sample(model, cross_entropy, (x, y))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.layer, self.out = nn.GRU(2, 3, batch_first=True), nn.Linear(3, 2)
        self.unused = nn.Parameter(torch.ones(2))
        self.double()

    def forward(self, x):
        return self.out(self.layer(x.reshape(len(x), 3, 2))[0][:, -1])


def reads(model, batch):
    """A loss that looks at a number, which vmap has not."""
    return cross_entropy(model, batch) * (1 if batch[0].sum().item() > 0 else 2)


@pytest.mark.parametrize("loss", [cross_entropy, reads])
@pytest.mark.parametrize("make", [network, Recurrent])
def test_what_vmap_does_not_take_goes_sample_by_sample(make, loss):
    model, batch = make(), data(16)
    losses, grads = per_sample(model, loss, batch)
    assert [*grads] == [name for name, _ in model.named_parameters()]
    flat = torch.cat([g.flatten(1) for g in grads.values()], 1).numpy()
    for p in model.parameters():
        p.grad = torch.zeros_like(p)  # which a parameter without use has not
    values, rows = [], []
    for k in range(16):
        value = loss(model, tuple(t[k : k + 1] for t in batch))
        found = torch.autograd.grad(value, [*model.parameters()], materialize_grads=True)
        values.append(value.item())
        rows.append(torch.cat([g.flatten() for g in found]))
    np.testing.assert_allclose(losses.numpy(), values, rtol=1e-13)
    np.testing.assert_allclose(flat, torch.stack(rows).numpy(), rtol=1e-11, atol=1e-14)
    assert all(not p.grad.any() for p in model.parameters())  # nothing is added to


def test_a_recurrent_model_trains_with_a_batch_of_its_own():
    model = Recurrent()
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    adaptive = AdaptiveBatch(model, cross_entropy, optimizer, Loader(data(60), 20))
    first = adaptive.step()
    for _ in range(20):
        last = adaptive.step()
    assert last < first


def test_what_is_wrong_with_a_loss_is_what_the_loss_says():
    model, batch = network(), data(4)

    def broken(model, batch):
        raise KeyError("of the loss's own")

    with pytest.raises(KeyError, match="of the loss's own"):
        per_sample(model, broken, batch)
    with pytest.raises(ValueError, match=r"a tensor of shape \[1, 2\], expected the mean"):
        per_sample(model, lambda m, b: m(b[0]), batch)


def test_a_loss_that_is_not_finite_changes_nothing():
    model = network()
    x, y = data(32)
    x[20] = math.nan
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    adaptive = AdaptiveBatch(model, cross_entropy, optimizer, Loader((x, y), 32))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(FloatingPointError, match="the mean loss is nan"):
        adaptive.step()
    assert all(map(torch.equal, model.state_dict().values(), before.values()))
    assert not optimizer.state
    adaptive.loss = lambda model, batch: -cross_entropy(model, batch)
    adaptive.loader = Loader(data(32), 32)
    adaptive._batches = iter(adaptive.loader)
    with pytest.raises(ValueError, match="loss=-"):
        adaptive.step()


def test_bad_arguments_are_refused():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for size, largest, message in (
        (1, None, "batch_size=1 was given, expected a whole number of 2"),
        (8, 7, "largest=7 was given, expected a whole number of 8"),
        (8, 0, "largest=0"),
        (8, 10.5, "largest=10.5"),
    ):
        with pytest.raises(ValueError, match=message):
            AdaptiveBatch(model, cross_entropy, optimizer, Loader(data(), size), largest)
    risen = torch.optim.SGD(model.parameters(), 0.1, maximize=True)
    with pytest.raises(ValueError, match="maximize=True"):
        AdaptiveBatch(model, cross_entropy, risen, Loader(data(), 8))
    made = AdaptiveBatch(model, cross_entropy, optimizer, Loader(data(), 8))
    with pytest.raises(ValueError, match="a state of"):
        made.load_state_dict({"samples": 1})


class Centred(nn.Module):
    """It keeps a mean of what it has seen, in place or not, and takes it off."""

    def __init__(self, inplace):
        super().__init__()
        self.inplace, self.out = inplace, nn.Linear(6, 2).double()
        self.register_buffer("seen", torch.zeros(6, dtype=torch.float64))

    def forward(self, x):
        if self.inplace:
            self.seen.mul_(0.9).add_(0.1 * x.detach().mean(0))
        else:
            self.seen = 0.9 * self.seen + 0.1 * x.detach().mean(0)
        return self.out(x - self.seen)


@pytest.mark.parametrize("inplace", [True, False])
def test_a_model_that_keeps_what_it_has_seen_is_refused(inplace):
    model, batch = Centred(inplace), data(8)
    buffer = model.seen
    with pytest.raises(ValueError, match="per_sample: the model changes its buffer 'seen'"):
        per_sample(model, cross_entropy, batch)
    with pytest.raises(ValueError, match="difficulty: the model changes its buffer 'seen'"):
        difficulty(model, cross_entropy, batch)
    assert model.seen is buffer
    assert not buffer.any()


@pytest.mark.parametrize("error", [
    torch.OutOfMemoryError("CUDA out of memory"), MemoryError(),
    RuntimeError("DefaultCPUAllocator: can't allocate memory"),
])  # fmt: skip
def test_too_little_memory_is_no_reason_for_the_slow_loop(error):
    calls = []

    def loss(model, batch):
        calls.append(1)
        raise error

    model, batch = network(), data(8)
    for call in (lambda: per_sample(model, loss, batch), lambda: difficulty(model, loss, batch)):
        calls.clear()
        with pytest.raises(type(error)) as raised:
            call()
        assert raised.value is error
        assert len(calls) == 1


def test_the_slow_loop_is_said_once(caplog):
    _warn_once.cache_clear()
    model, batch = network(), data(8)
    for _ in range(2):
        per_sample(model, reads, batch)
    assert [record.name for record in caplog.records] == ["steepest"]
    assert "processed one at a time" in caplog.text
