"""Many models at once: the gradients of each model alone, by autograd, or a refusal."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from steepest.errors import BadCall
from steepest.tasks.task import Setup
from steepest.training import stack
from steepest.training.stack import Stack


def squares(model, batch):
    return nn.functional.mse_loss(model(batch[0]).flatten(1), batch[1])


def setups(make, count=3, loss=squares):
    made = []
    for seed in range(count):
        torch.manual_seed(seed)
        made.append(Setup(make(), [], loss, lambda *_: 0.0))
    return made


def batches(count=3, shape=(5, 4), out=2):
    torch.manual_seed(9)
    return [(torch.randn(*shape), torch.randn(shape[0], out)) for _ in range(count)]


def alone(given, data):
    """Losses and gradients of copies, by autograd."""
    losses, grads = [], []
    for setup, batch in zip(given, data, strict=True):
        model = copy.deepcopy(setup.model)
        for p in model.parameters():
            p.grad = None
        loss = setup.loss(model, batch)
        loss.backward()
        losses.append(loss.item())
        grads.append([p.grad for p in model.parameters()])
    return losses, grads


def agree(given, data, made):
    losses, grads = alone(given, data)
    assert made.gradients(data) == pytest.approx(losses, rel=1e-5)
    for setup, expected in zip(given, grads, strict=True):
        for p, grad in zip(setup.model.parameters(), expected, strict=True):
            assert (p.grad is None) == (grad is None)
            if grad is not None:
                torch.testing.assert_close(p.grad, grad, rtol=1e-4, atol=1e-6)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.there, self.back = nn.Linear(4, 4), nn.Linear(4, 4)
        self.back.weight = self.there.weight
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.back(self.there(x).tanh()))


def frozen():
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
    model[0].weight.requires_grad_(False)
    return model


@settings(max_examples=20, deadline=None)
@given(count=st.integers(1, 6), rows=st.integers(1, 7), width=st.integers(1, 5))
def test_gradients_are_those_of_each_model_alone(count, rows, width):
    given = setups(
        lambda: nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 2)), count
    )
    data = batches(count, (rows, 4))
    made = Stack(given)
    made.check(data)
    agree(given, data, made)


@pytest.mark.parametrize("make", [Tied, frozen], ids=["tied", "frozen"])
def test_tied_and_frozen_parameters(make):
    given, data = setups(make), batches()
    made = Stack(given)
    made.check(data)
    agree(given, data, made)


def test_a_loss_may_use_the_whole_model():
    def loss(model, batch):
        return squares(model, batch) + sum(p.square().sum() for p in model.parameters())

    given, data = setups(lambda: nn.Linear(4, 2), loss=loss), batches()
    made = Stack(given)
    made.check(data)
    agree(given, data, made)


def test_each_optimizer_steps_its_own_model():
    given, data = setups(lambda: nn.Linear(4, 2)), batches()
    twins = copy.deepcopy([setup.model for setup in given])
    made = Stack(given)

    def optimizers(models):
        return [
            torch.optim.Adam(models[0].parameters(), 0.1),
            torch.optim.SGD(models[1].parameters(), 1e30),  # its model is lost at once
            torch.optim.SGD(models[2].parameters(), 0.1, momentum=0.9),
        ]

    ours, theirs = optimizers([setup.model for setup in given]), optimizers(twins)
    for _ in range(4):
        made.gradients(data)
        for optimizer, model, other, batch in zip(ours, twins, theirs, data, strict=True):
            optimizer.step()
            other.zero_grad()
            squares(model, batch).backward()
            other.step()
    for k in (0, 2):
        for p, q in zip(given[k].model.parameters(), twins[k].parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)
    assert not all(p.isfinite().all() for p in given[1].model.parameters())


def test_an_optimizer_may_give_a_parameter_other_memory():
    given, data = setups(lambda: nn.Linear(4, 2)), batches()
    made = Stack(given)
    made.gradients(data)
    for setup in given:
        for p in setup.model.parameters():
            p.data = p.data - 0.5 * p.grad
            p.grad = None
    agree(given, data, made)


def test_batches_of_unequal_shapes_are_computed_one_by_one():
    given, data = setups(lambda: nn.Linear(4, 2)), batches()
    data[1] = tuple(x[:2] for x in data[1])
    made = Stack(given)
    agree(given, data, made)
    with pytest.raises(BadCall, match="equal shapes"):
        made.check(data)


def test_checking_changes_no_model():
    given, data = setups(lambda: nn.Linear(4, 2)), batches()
    before = [p.clone() for setup in given for p in setup.model.parameters()]
    Stack(given).check(data)
    after = [p for setup in given for p in setup.model.parameters()]
    assert all(map(torch.equal, before, after))


class Branch(nn.Linear):
    def forward(self, x):
        return super().forward(x) * (2 if x.sum() > 0 else 1)


class Unregistered(nn.Linear):
    """Its state is no parameter, and differs from model to model."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.scale = torch.rand(())

    def forward(self, x):
        return super().forward(x) * self.scale


class Unused(nn.Linear):
    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.idle = nn.Linear(3, 3)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: Branch(4, 2), "data-dependent"),
        (lambda: Unregistered(4, 2), "other losses or gradients"),
        (lambda: Unused(4, 2), "no gradient"),
        (lambda: nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 2)), "random"),
        (lambda: nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 2)), "buffers"),
        (lambda: nn.Linear(4, 2) if torch.rand(()) < 0.6 else nn.Linear(4, 2, False), "different"),
    ],
)
def test_models_that_would_train_otherwise_are_refused(make, why):
    with pytest.raises(BadCall, match=why):
        Stack(setups(make)).check(batches())


def test_large_models_are_refused(monkeypatch):
    monkeypatch.setattr(stack, "LARGEST", 9)
    with pytest.raises(BadCall, match="more than 9 parameters"):
        Stack(setups(lambda: nn.Linear(4, 2)))


def test_a_loss_that_depends_on_the_seed_is_refused():
    def of(k):
        return lambda model, batch: k * squares(model, batch)

    given = setups(lambda: nn.Linear(4, 2))
    given = [Setup(s.model, [], of(k + 1), s.evaluate) for k, s in enumerate(given)]
    with pytest.raises(BadCall, match="other losses"):
        Stack(given).check(batches())


@pytest.mark.parametrize("odd", [["text"] * 3, [None] * 3, [{"x": torch.ones(2), "n": 1}] * 3])
def test_batches_that_are_no_tensors_are_refused(odd):
    with pytest.raises(BadCall, match="equal shapes"):
        Stack(setups(lambda: nn.Linear(4, 2))).check(odd)
