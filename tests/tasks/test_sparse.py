"""The sparse task: who steps sparse gradients, who gets them dense, and that it is the same."""

import pytest
import torch
from torch import nn

import steepest
from steepest.race import trials
from steepest.race.protocol import FRESH, TUNING, Trial
from steepest.tasks import sparse

# of torch's own Adagrad
pytestmark = pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly disabled")
SPARSE = [name for name, rule in steepest.rules.items() if rule.sparse]
DENSE = [name for name, rule in steepest.rules.items() if not rule.sparse]


def trial(entry, steps=30, lr=0.05, phase=FRESH):
    return Trial("bag-of-words", phase, entry, 0, 7, steps, {"lr": lr})


def test_the_passages_are_of_their_topics_and_of_one_split():
    data = sparse.documentation()
    assert data.topics > 10
    seen = {}
    for split, (words, topics) in data.splits.items():
        assert words.shape == (len(topics), sparse.LENGTH)
        assert words.min() >= 0
        assert words.max() < data.words
        assert {*topics.tolist()} <= {*range(data.topics)}
        seen[split] = {tuple(row) for row in words.tolist() if 0 not in row}
    assert {*data.splits["train"][1].tolist()} == {*range(data.topics)}
    assert (data.splits["train"][0] > 0).all()  # a word that is not known is not learned
    for other in ("validation", "test"):
        assert len(data.splits[other][0]) == sparse.EVALUATED
        assert not seen["train"] & seen[other]
    # most words are rare: that is what the task is for
    _, counts = data.splits["train"][0].unique(return_counts=True)
    assert (counts <= 8).float().mean() > 0.5


@pytest.mark.parametrize("entry", ["sgd", "adagrad", "sparse_adam", "torch.optim:SparseAdam"])
def test_what_takes_sparse_gradients_gets_them(entry):
    result = trials.run(trial(entry, lr=0.3))
    assert result.measures["sparse_gradients"] == 1
    assert result.validation[-1] > 0.2
    assert result.test is not None


@pytest.mark.parametrize("entry", ["adamw", "torch.optim:AdamW", "pytorch_optimizer:Lamb"])
def test_what_refuses_them_gets_the_same_as_dense_ones(entry):
    result = trials.run(trial(entry))
    assert result.measures["sparse_gradients"] == 0
    assert result.diverged is None
    assert result.validation[-1] > 0.2


@pytest.mark.parametrize("name", ["sgd", "momentum", "adagrad"])
def test_sparse_and_dense_gradients_give_one_run(name, monkeypatch):
    found = trials.run(trial(name, lr=0.3))

    class Refusing(sparse.Stepper):
        def __init__(self, optimizer):
            super().__init__(optimizer)
            self.sparse = False

    monkeypatch.setattr(sparse, "Stepper", Refusing)
    dense = trials.run(trial(name, lr=0.3))
    assert (found.measures["sparse_gradients"], dense.measures["sparse_gradients"]) == (1, 0)
    assert dense.validation == pytest.approx(found.validation, abs=2 / sparse.EVALUATED)


@pytest.mark.parametrize("name", [*SPARSE, *DENSE])
def test_every_rule_can_be_raced_here(name):
    lr = steepest.rules[name].defaults.get("lr", 0.1)
    result = trials.run(trial(name, steps=3, lr=lr))
    assert result.diverged is None
    assert result.measures["sparse_gradients"] == (name in SPARSE)


class Clumsy(torch.optim.Optimizer):
    """Notices a sparse gradient only when half the work is done."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr})
        self.calls = 0

    @torch.no_grad()
    def step(self, closure=None):
        self.calls += 1
        for p in self.param_groups[0]["params"]:
            self.state[p]["seen"] = self.state[p].get("seen", 0) + 1
            p.add_(1)
            if p.grad.is_sparse:
                raise ValueError("no sparse gradients")
            p.sub_(1).sub_(p.grad, alpha=self.param_groups[0]["lr"])


def one_step(made):
    p = made.param_groups[0]["params"][0]
    p.grad = torch.sparse_coo_tensor([[1, 1]], [[1.0, 2.0], [3.0, 4.0]], (3, 2))
    stepper = sparse.Stepper(made)
    stepper.step()
    return stepper, p


def test_what_a_refused_step_has_half_done_is_put_back():
    stepper, p = one_step(Clumsy([nn.Parameter(torch.ones(3, 2))], lr=0.5))
    assert stepper.sparse is False
    assert stepper.optimizer.state[p]["seen"] == 1
    expected = torch.ones(3, 2)
    expected[1] -= torch.tensor([2.0, 3.0])  # a row that came twice counts twice
    assert torch.equal(p.detach(), expected)


def test_an_error_that_is_no_refusal_is_raised():
    class Broken(Clumsy):
        def step(self, closure=None):
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        one_step(Broken([nn.Parameter(torch.ones(3, 2))]))


def test_a_run_that_explodes_is_a_result():
    result = trials.run(trial("sgd", lr=1e38))
    assert result.diverged
    assert result.test is None  # it counts as the worst that any run of the race had


def test_test_data_is_not_looked_at_while_tuning():
    result = trials.run(trial("adagrad", phase=TUNING))
    assert result.test is None
