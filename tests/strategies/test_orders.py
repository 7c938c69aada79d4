"""Orders of the data: curricula against a plain loop, levels against the authors' program."""

import io
import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import nn
from torch.utils.data import Dataset

from steepest.strategies import Curriculum, Levels, Loader, Shuffled, difficulty, pacing

STARTS, STEPS = st.floats(0.01, 1), st.integers(1, 500)


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


# pacing


@settings(max_examples=60, deadline=None)
@given(STARTS, STEPS, st.floats(0.3, 5), st.floats(1.001, 10))
def test_a_pace_starts_at_its_start_never_falls_and_ends_at_all(start, steps, power, increase):
    late = math.ceil(math.log(1 / start) / math.log(increase)) * steps
    for pace, end in (
        (pacing.linear(start, steps), steps),
        (pacing.root(start, steps, power), steps),
        (pacing.single_step(start, steps), steps),
        (pacing.exponential(start, increase, steps), late),
    ):
        assert pace(0) == pytest.approx(start, rel=1e-12)
        points = [pace(t) for t in sorted({0, 1, steps // 2, steps - 1, steps, end, 10**9})]
        assert points == sorted(points)
        assert pace(end) == pytest.approx(1, rel=1e-9)
        assert 0 < points[0] <= points[-1] <= 1
        assert pace(10**9) == pytest.approx(1, rel=1e-9)


def test_paces_are_the_papers():
    # Platanios et al. 2019, equation 7: c(0)**2 grows by equal amounts
    pace = pacing.root(0.2, 100)
    assert [pace(t) ** 2 for t in range(0, 101, 25)] == pytest.approx([0.04, 0.28, 0.52, 0.76, 1])
    assert pacing.linear(0.2, 100)(50) == pytest.approx(0.6)
    # the settings of Hacohen and Weinshall's program: 100 / 2500, factor 1.9, every 100 steps
    pace, current = pacing.exponential(0.04, 1.9, 100), 0.04
    for t in range(1000):
        if t and t % 100 == 0:
            current = min(current * 1.9, 1)
        assert pace(t) == pytest.approx(current)
    pace = pacing.single_step(0.04, 100)
    assert [pace(t) for t in (0, 99, 100, 5000)] == [0.04, 0.04, 1, 1]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: pacing.linear(0, 10), "start=0"),
        (lambda: pacing.linear(1.1, 10), "start=1.1"),
        (lambda: pacing.linear(math.nan, 10), "start=nan"),
        (lambda: pacing.single_step(0.5, 0), "steps=0"),
        (lambda: pacing.root(0.5, 10, 0), "power=0"),
        (lambda: pacing.exponential(0.5, 1, 10), "increase=1"),
        (lambda: pacing.exponential(0.5, 2, 1.5), "steps=1.5"),
        (lambda: Shuffled(5, seed=-1), "seed=-1"),
        (lambda: Shuffled(5).set_epoch(-1), "epoch=-1"),
        (lambda: Shuffled(5).load_state_dict({"seed": 1}), "a state of"),
        (lambda: Curriculum([], pacing.linear(1, 1), 1), r"scores of shape \[0\]"),
        (lambda: Curriculum([[1.0]], pacing.linear(1, 1), 1), r"scores of shape \[1, 1\]"),
        (lambda: Curriculum([1.0, math.nan], pacing.linear(1, 1), 1), "one finite number"),
        (lambda: Curriculum([1.0], pacing.linear(1, 1), 0), "batch_size=0"),
        (lambda: Curriculum([1.0], pacing.linear(1, 1), 2), "expected at most 1, the number of"),
        (lambda: Curriculum([1.0], pacing.linear(1, 1), 1, first="x"), "one of easy, hard, random"),
        (lambda: [*Curriculum([1.0], lambda t: 0.0, 1)], r"pace\(0\)=0.0"),
        (lambda: [*Curriculum([1.0], lambda t: math.nan, 1)], r"pace\(0\)=nan"),
        (lambda: Levels([]), r"levels of shape \[0\]"),
        (lambda: Levels([0.5]), "expected one whole number"),
        (lambda: Levels([0, 2]), r"expected 0, 1, 2, \.\.\. without a gap"),
        (lambda: Levels([-1, 0]), "without a gap"),
        (lambda: Levels([0], "hard"), "one of baseline, naive, mix, combined"),
        (lambda: setattr(Levels([0, 1]), "level", 2), "expected at most 1"),
        (lambda: Levels([0, 1]).report(1.5, 0), "validation=1.5"),
        (lambda: Levels([0, 1]).report(0.5, -1), "training=-1"),
        (lambda: Levels([0, 1]).load_state_dict({"seed": 1, "epoch": 0}), "a state of"),
    ],
)
def test_bad_input_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_pace_that_is_no_function_is_refused():
    with pytest.raises(TypeError, match="expected a function of the step"):
        Curriculum([1.0], 0.5, 1)


# curriculum

SCORES = np.random.default_rng(8).permutation(200) / 7


def batches(sampler, epochs=1, size=10):
    out = []
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        drawn = [*sampler]
        assert len(drawn) == len(sampler)
        out += [drawn[k : k + size] for k in range(0, len(drawn), size)]
    return out


@pytest.mark.parametrize("first", ["easy", "hard"])
def test_a_batch_is_drawn_from_the_open_part(first):
    pace = pacing.linear(0.03, 45)
    seen = batches(Curriculum(SCORES, pace, 10, first=first, seed=1), 3)
    assert len(seen) == 60
    ranked = sorted(range(200), key=lambda k: SCORES[k], reverse=first == "hard")
    widest = 0
    for step, batch in enumerate(seen):
        opened = max(10, math.ceil(pace(step) * 200))
        assert {*batch} <= {*ranked[:opened]}
        assert len({*batch}) == 10
        widest = max(widest, max(map(ranked.index, batch)))
    assert widest > 190
    assert batches(Curriculum(SCORES, pace, 10, first=first, seed=1), 3) == seen
    assert batches(Curriculum(SCORES, pace, 10, first=first, seed=2), 3) != seen


def test_within_the_open_part_every_sample_is_as_likely():
    sampler = Curriculum(SCORES, lambda step: 0.25, 5)
    drawn = np.concatenate(batches(sampler, 50, 5))
    counts = np.bincount(drawn, minlength=200)[np.argsort(SCORES)]
    assert not counts[50:].any()
    assert stats.chisquare(counts[:50]).pvalue > 1e-4


def test_the_random_control_knows_nothing_of_the_scores():
    def make(scores):
        return batches(Curriculum(scores, lambda step: 0.1, 10, first="random"), 10)

    assert make(SCORES) == make(-SCORES)
    assert len({k for batch in make(SCORES) for k in batch}) == 20  # one tenth, the same always
    opened = [*{k for batch in make(SCORES) for k in batch}]
    assert stats.kstest(SCORES[opened] / SCORES.max(), "uniform").pvalue > 1e-4


def test_equal_scores_keep_the_order_of_the_data_and_batches_may_not_divide_it():
    sampler = Curriculum(torch.zeros(23), lambda step: 0.2, 4)
    assert len(sampler) == 20
    assert {k for batch in batches(sampler, 9, 4) for k in batch} == {*range(5)}


def test_difficulty_is_the_loss_of_each_sample_alone():
    torch.manual_seed(1)
    x, y = torch.randn(50, 4), torch.randint(3, (50,))
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
    model[1].running_mean.fill_(0.3)
    model[2].eval()  # a mode of its own
    loss = nn.functional.cross_entropy
    scores = difficulty(model, lambda m, batch: loss(m(batch[0]), batch[1]), (x, y), 16)
    assert [m.training for m in model] == [True, True, False, True]
    assert model.training
    assert not scores.requires_grad
    assert model[1].num_batches_tracked == 0
    model.eval()
    with torch.no_grad():
        expected = loss(model(x), y, reduction="none")
    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-6)
    model.train()
    with pytest.raises(RuntimeError, match="boom"):
        difficulty(model, boom, (x, y))
    assert model.training
    assert Curriculum(scores, pacing.linear(0.1, 9), 5).ranking()[0] == expected.argmin()


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.layer, self.out = nn.GRU(4, 3, batch_first=True), nn.Linear(3, 2)

    def forward(self, x):
        return self.out(self.layer(x)[0][:, -1])


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.out = nn.Linear(4, 2)

    def forward(self, x):
        return self.out(x.mean(1) if x.sum().item() > 0 else x[:, 0])


class Named(Dataset):
    """Samples with a text, which is no tensor."""

    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.x)

    def __getitem__(self, k):
        return {"x": self.x[k], "y": self.y[k], "name": f"sample {k}"}


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("make", [Recurrent, Branching])
def test_difficulty_of_what_vmap_does_not_take_goes_one_by_one(make, named):
    torch.manual_seed(2)
    model, x, y = make(), torch.randn(30, 5, 4), torch.randint(2, (30,))
    data = Named(x, y) if named else (x, y)

    def loss(model, batch):
        x, y = (batch["x"], batch["y"]) if named else batch
        return nn.functional.cross_entropy(model(x), y)

    scores = difficulty(model, loss, data, 7)
    with torch.no_grad():
        expected = [nn.functional.cross_entropy(model(x[k, None]), y[k, None]) for k in range(30)]
    torch.testing.assert_close(scores, torch.stack(expected), rtol=1e-5, atol=1e-6)
    assert model.training


def test_a_loss_that_is_no_number_is_said():
    x = torch.randn(6, 2)
    with pytest.raises(ValueError, match="returned 12 numbers for 6 samples, expected one for"):
        difficulty(nn.Linear(2, 2), lambda m, b: m(b[0]), (x,))


def boom(model, batch):
    raise RuntimeError("boom")


# levels

LEVELS = np.repeat([0, 1, 2, 3], [400, 100, 900, 600])


def shares(strategy, level, epochs=5):
    sampler = Levels(LEVELS, strategy, seed=3)
    sampler.level = level
    drawn = np.concatenate([*batches(sampler, epochs, 2000)])
    return drawn, np.bincount(LEVELS[drawn], minlength=4)


def test_the_four_strategies_draw_the_levels_they_name():
    assert shares("baseline", 1)[1].tolist() == [0, 0, 0, 10_000]
    assert shares("naive", 1)[1].tolist() == [0, 10_000, 0, 0]
    assert stats.chisquare(shares("mix", 1)[1]).pvalue > 1e-4
    # the present level with 4/5, and a fourth of the fifth that is mixed
    expected = 10_000 * np.array([0.05, 0.85, 0.05, 0.05])
    drawn, counts = shares("combined", 1)
    assert stats.chisquare(counts, expected).pvalue > 1e-4
    within = np.bincount(drawn, minlength=2000)[400:500]
    assert stats.chisquare(within).pvalue > 1e-4


def test_the_rule_is_that_of_the_authors_program():
    """Their main loop, as their program has it: accuracies of this level only, the last not yet."""
    chance = random.Random(4)
    for _ in range(40):
        levels = Levels([0, 1, 2])
        level, train_accs, lr, ours = 0, [], 0.5, 0.5
        for _ in range(60):
            validation = chance.choice([chance.random() * 0.96, math.nan, 0.95])
            training = chance.choice([chance.random(), 0.5])
            if validation > 0.95 or (len(train_accs) >= 5 and train_accs[-5] > training):
                if level < 2:
                    level += 1
                else:
                    lr *= 0.8
                train_accs = []
            train_accs.append(training)
            if levels.report(validation, training) and not levels.harder():
                ours *= 0.8
            assert (levels.level, ours) == (level, lr)
            levels.load_state_dict(through_a_file(levels.state_dict()))
        assert level == 2


@pytest.mark.parametrize("strategy", Levels.STRATEGIES)
def test_fifty_and_fifty_batches_are_a_hundred(strategy):
    rows = torch.arange(len(LEVELS))

    def make(seed=6):
        return Loader((rows,), 60, sampler=Levels(LEVELS, strategy, seed=seed))

    def run(loader, first, last):
        out, k = [], first
        while True:
            for (batch,) in loader:
                out.append(batch.tolist())
                k += 1
                levels = loader._batches.order
                if levels.report(0.96 if k in (20, 70) else 0.5, 0.5):
                    levels.harder()
                if k == last:
                    return out, loader.state_dict()

    whole, _ = run(make(), 0, 100)
    head, state = run(make(), 0, 50)
    loader = make(7)
    loader.load_state_dict(through_a_file(state))
    assert head + run(loader, 50, 100)[0] == whole
    assert state["order"]["level"] == 1


def test_levels_do_not_share_their_state():
    levels, other = Levels([0, 1]), Levels([0, 1])
    levels.report(0.5, 0.5)
    state = levels.state_dict()
    other.load_state_dict(state)
    state["accuracies"].append(0.1)
    other.report(0.5, 0.7)
    assert levels.state_dict()["accuracies"] == [0.5]
    assert other.state_dict()["accuracies"] == [0.5, 0.7]


def test_difficulty_of_a_tuple_of_samples():
    samples = tuple((torch.tensor([float(k)]), torch.tensor(0.0)) for k in range(5))
    scores = difficulty(nn.Identity(), lambda m, b: (m(b[0])[:, 0] - b[1]).mean(), samples)
    assert scores.tolist() == [0, 1, 2, 3, 4]
