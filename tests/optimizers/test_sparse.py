"""Sparse gradients: what torch.optim takes is taken alike, the rest is refused in a sentence."""

import pytest
import torch
from torch import nn

import steepest

ROWS, WIDTH = 12, 3
# of torch's own Adagrad
pytestmark = pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly disabled")


def embedding(dtype=torch.float64, sparse=True):
    torch.manual_seed(0)
    return nn.Embedding(ROWS, WIDTH, sparse=sparse, dtype=dtype)


def train(model, made, steps=12, first=None):
    generator = torch.Generator().manual_seed(2)
    for step in range(steps):
        indices = torch.randint(ROWS, (5,), generator=generator)  # some twice: uncoalesced
        if first is not None and step == 0:
            indices = first
        made.zero_grad()
        model(indices).pow(3).sum().backward()
        made.step()
    return model.weight.detach()


TAKEN = [
    ("SGD", {"lr": 0.05}),
    ("SGD", {"lr": 0.05, "maximize": True}),
    ("SGD", {"lr": 0.05, "momentum": 0.9}),
    ("Adagrad", {"lr": 0.1}),
    ("SparseAdam", {"lr": 0.1}),
    ("SparseAdam", {"lr": 0.1, "betas": (0.5, 0.9), "maximize": True}),
    ("Adagrad", {"lr": 0.1, "lr_decay": 0.01, "initial_accumulator_value": 0.3}),
]


@pytest.mark.parametrize("backend", [None, "foreach", "eager"])
@pytest.mark.parametrize(("name", "options"), TAKEN)
def test_sparse_gradients_as_torch_takes_them(name, options, backend):
    ours, theirs = embedding(), embedding()
    made = getattr(steepest, name)(ours.parameters(), backend=backend, **options)
    found = train(ours, made)
    wanted = train(theirs, getattr(torch.optim, name)(theirs.parameters(), **options))
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-14)


# the lazy one is no other Adam where a row has no gradient
@pytest.mark.parametrize(("name", "options"), [x for x in TAKEN if x[0] != "SparseAdam"])
def test_sparse_equals_dense(name, options):
    sparse, dense = embedding(), embedding(sparse=False)
    found = train(sparse, getattr(steepest, name)(sparse.parameters(), **options))
    wanted = train(dense, getattr(steepest, name)(dense.parameters(), **options))
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-14)


def test_rows_without_gradient_are_not_even_read():
    model = embedding()
    made = steepest.Adagrad(model.parameters(), lr=0.1)
    train(model, made, steps=1)
    with torch.no_grad():
        model.weight[7] = torch.nan
    for _ in range(3):
        train(model, made, steps=1, first=torch.tensor([1, 2]))
    assert made.state[model.weight]["sum"].isfinite().all()


def test_a_gradient_may_turn_dense_and_back():
    weights = []
    for kinds in ((True, False, True), (False, False, False)):
        p = nn.Parameter(torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(4, 3))
        made = steepest.Adagrad([p], lr=0.1)
        for step, sparse in enumerate(kinds):
            g = torch.zeros_like(p)
            g[step] = 1.0 + step
            p.grad = g.to_sparse(1) if sparse else g
            made.step()
        assert made.state[p]["step"] == 3
        weights.append(p.detach())
    torch.testing.assert_close(*weights, rtol=1e-14, atol=0)


@pytest.mark.parametrize("dimensions", [1, 2])
def test_every_element_may_be_sparse(dimensions):
    p = nn.Parameter(torch.ones(4, 3, dtype=torch.float64))
    made = steepest.SGD([p], lr=0.5)
    g = torch.zeros_like(p)
    g[1, 2] = 2.0
    for _ in range(2):
        p.grad = g.to_sparse(dimensions)
        made.step()
    assert p[1, 2] == -1
    assert p.sum() == 11 - 1


def test_an_empty_sparse_gradient_changes_nothing_but_the_count():
    p = nn.Parameter(torch.ones(4, 3))
    made = steepest.Adagrad([p])
    for _ in range(2):
        p.grad = torch.zeros_like(p).to_sparse(1)
        made.step()
    assert torch.equal(p.detach(), torch.ones(4, 3))
    assert made.state[p]["step"] == 2


@pytest.mark.parametrize("rounding", [None, "stochastic", "kahan"])
def test_rows_of_bfloat16(rounding):
    model = embedding(torch.bfloat16)
    before = model.weight.detach().clone()
    made = steepest.Adagrad(model.parameters(), lr=0.1, rounding=rounding)
    train(model, made, first=torch.arange(5))
    exact = embedding(torch.float64)
    with torch.no_grad():
        exact.weight.copy_(before)
    wanted = train(exact, torch.optim.Adagrad(exact.parameters(), lr=0.1), first=torch.arange(5))
    torch.testing.assert_close(model.weight.detach().double(), wanted, rtol=0.05, atol=0.05)


TWO_KINDS = [("AdamW", {}), ("AdaBelief", {}), ("SGD", {"weight_decay": 0.1}),
             ("Adagrad", {"weight_decay": 0.1}), ("Rprop", {})]  # fmt: skip


@pytest.mark.parametrize(("name", "options"), TWO_KINDS)
def test_the_rest_is_refused_and_nothing_changed(name, options):
    model, other = embedding(), nn.Parameter(torch.ones(3, dtype=torch.float64))
    made = getattr(steepest, name)([other, model.weight], **options)
    other.grad = torch.ones_like(other)
    model(torch.tensor([1, 1])).sum().backward()
    before = model.weight.detach().clone()
    with pytest.raises(RuntimeError, match=r"layout torch.sparse_coo.*sparse=False"):
        made.step()
    assert torch.equal(model.weight.detach(), before)
    assert torch.equal(other.detach(), torch.ones(3, dtype=torch.float64))
    assert not made.state


@pytest.mark.parametrize("shape", [(5, 3), (4, 2)])
def test_a_sparse_gradient_of_another_shape_is_refused(shape):
    p = nn.Parameter(torch.ones(4, 3))
    made = steepest.SGD([p])
    p.grad = torch.ones(4, 3).to_sparse(1)
    p.grad.data = torch.ones(shape).to_sparse(1)
    with pytest.raises(RuntimeError, match="expected one like its parameter"):
        made.step()
    assert torch.equal(p.detach(), torch.ones(4, 3))
