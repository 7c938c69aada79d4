"""Early stopping: torch's plateau as an oracle, the best weights back."""

import io
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from steepest.strategies import EarlyStopping

METRICS = st.lists(st.floats(-10, 10) | st.just(math.nan), min_size=1, max_size=40)


class Weights(nn.Module):
    """A parameter and a buffer that say which evaluation they are of."""

    def __init__(self):
        super().__init__()
        self.p = nn.Parameter(torch.zeros(2))
        self.register_buffer("b", torch.zeros(1))

    def be(self, k):
        self.p.data.fill_(k)
        self.b.fill_(-k)


@settings(max_examples=100, deadline=None)
@given(METRICS, st.integers(1, 6), st.floats(0, 3), st.sampled_from(["min", "max"]))
def test_it_stops_where_torchs_plateau_reduces(metrics, patience, least, mode):
    model = Weights()
    stopping = EarlyStopping(model, patience, least=least, mode=mode)
    oracle = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
    plateau = ReduceLROnPlateau(
        oracle, mode, 0.5, patience=patience - 1, threshold=least, threshold_mode="abs"
    )
    for k, metric in enumerate(metrics, 1):
        model.be(k)
        plateau.step(metric)
        stop = stopping.step(metric)
        assert stop == (oracle.param_groups[0]["lr"] < 1)
        if stop:
            break
    if stopping.best is None:
        assert math.isinf(plateau.best)
        return
    assert stopping.best == plateau.best
    stopping.restore()
    at = stopping.best_at
    assert metrics[at - 1] == stopping.best
    assert model.p.tolist() == [at, at]
    assert model.b.tolist() == [-at]


def test_a_metric_that_is_not_finite_is_never_the_best():
    model = Weights()
    stopping = EarlyStopping(model, 3)
    for k, metric in enumerate((math.nan, -math.inf)):
        model.be(k)
        assert not stopping.step(metric)
    with pytest.raises(RuntimeError, match="after 2 evaluations without a finite metric"):
        stopping.restore()
    assert model.p.tolist() == [1, 1]
    assert stopping.step(math.nan)
    model.be(9)
    assert not stopping.step(torch.tensor([5.0]))
    model.be(10)
    stopping.step(-math.inf)
    stopping.restore()
    assert model.p.tolist() == [9, 9]


def trained():
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 1)).double()
    return model, torch.optim.SGD(model.parameters(), 0.3), EarlyStopping(model, 20)


def run(model, optimizer, stopping, first, last):
    stops = []
    for k in range(first, last):
        x = torch.randn(16, 4, generator=torch.Generator().manual_seed(k), dtype=torch.float64)
        loss = (model(x) - x[:, :1]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        stops.append(stopping.step(loss))
    return stops


def test_fifty_and_fifty_evaluations_are_a_hundred():
    torch.set_num_threads(1)  # two wait for each other on a busy machine; conftest sets it back
    whole, first, second = trained(), trained(), trained()
    expected = run(*whole, 0, 100)
    found = run(*first, 0, 50)
    file = io.BytesIO()
    torch.save([part.state_dict() for part in first], file)
    file.seek(0)
    states = torch.load(file, weights_only=True)
    for part, state in zip(second, states, strict=True):
        part.load_state_dict(state)
    states[-1]["weights"]["0.weight"].zero_()  # what was loaded is its own
    found += run(*second, 50, 100)
    assert found == expected
    for parts in (whole, second):
        parts[-1].restore()
    assert second[-1].best_at == whole[-1].best_at
    state = whole[0].state_dict()
    assert all(torch.equal(v, state[k]) for k, v in second[0].state_dict().items())
    assert int(state["1.num_batches_tracked"]) == whole[-1].best_at


def test_bad_input_is_refused():
    for bad in (
        {"patience": 0}, {"patience": 1.5}, {"least": -1}, {"least": math.nan}, {"mode": "low"}
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"EarlyStopping: {next(iter(bad))}="):
            EarlyStopping(Weights(), **bad)
    with pytest.raises(ValueError, match="a state of"):
        EarlyStopping(Weights()).load_state_dict({"best": 1})
