"""Which of the user's own batches say what they are made of, and what entries make of that."""

import sys

import pytest
import torch

from steepest import tasks
from steepest.errors import BadCall
from steepest.race import trials
from steepest.race.protocol import FRESH, Trial
from steepest.race.request import Request
from steepest.training.recipe import Recipe

HEAD = """
import torch
from torch import nn
from torch.utils.data import *
MINIMIZE, STEPS, WORST = "squares", 8, 9.0
X = torch.randn(21, 3, generator=torch.Generator().manual_seed(0))
Y = X.sum(1)
SEEN = []
def loss(model, batch):
    x, y = batch
    SEEN.append(x.detach())
    return (model(x)[:, 0] - y).square().mean()
def evaluate(model):
    return loss(model, (X, Y)).item() if SEEN.append(None) is None else 0
def task(seed):
    return MODEL, loss, BATCHES, evaluate
"""
PAIRS = "DataLoader(TensorDataset(X, Y), 8, shuffle=True)"
DICTS = """
def loss(model, batch):
    SEEN.append(batch["x"].detach())
    return (model(batch["x"])[:, 0] - batch["y"]).square().mean()
def evaluate(model):
    SEEN.extend([None, X])
    return (model(X)[:, 0] - Y).square().mean()
def pack(rows):
    return {"x": torch.stack([r["x"] for r in rows]), "y": torch.stack([r["y"] for r in rows])}
ROWS = [{"x": x, "y": y} for x, y in zip(X, Y)]
"""
COLUMNS = """
TABLE = [torch.cat([x, y[None]]) for x, y in zip(X, Y)]
def pack(rows):
    table = torch.stack(rows)
    return table[:, :3], table[:, 3]
"""


@pytest.fixture
def wrote(tmp_path):
    def write(batches, model="nn.Linear(3, 1)", more=""):
        text = HEAD + more
        text = text.replace("BATCHES,", batches + ",").replace("MODEL,", model + ",")
        file = tmp_path / "mine.py"
        file.write_text(text)
        return str(file)

    return write


def run(file, entry, steps=8, seed=3):
    hyper = Recipe.read(entry).defaults | ({"lr": 0.05} if entry.startswith("momentum") else {})
    result = trials.run(Trial(file, FRESH, entry, 0, seed, steps, hyper))
    assert result.diverged is None
    return result


def training(file, entry, monkeypatch, **options):
    """The batches that a run trained on."""
    monkeypatch.setattr(trials, "_warm_up", lambda _: None)
    tasks.get(file)
    seen = sys.modules["steepest_task"].SEEN
    seen.clear()
    run(file, entry, **options)
    evaluated = {i + 1 for i, x in enumerate(seen) if x is None}
    return [x for i, x in enumerate(seen) if x is not None and i not in evaluated]


LOADERS = {
    "pairs": (PAIRS, ""),
    "in order": ("DataLoader(TensorDataset(X, Y), 8)", ""),
    "of its own generator": (
        "DataLoader(TensorDataset(X, Y), 8, True, generator=torch.Generator().manual_seed(seed))",
        "",
    ),
    "dicts": ("DataLoader(ROWS, 8, shuffle=True, collate_fn=pack)", DICTS),
    "a list of tensors": ("DataLoader(TABLE, 8, shuffle=True, collate_fn=pack)", COLUMNS),
    "incomplete batches left out": (
        "DataLoader(TensorDataset(X, Y), 8, shuffle=True, drop_last=True)", ""
    ),
    "single samples": ("DataLoader(TensorDataset(X, Y), 1, shuffle=True)", ""),
    "larger than the data": ("DataLoader(TensorDataset(X, Y), 50, shuffle=True)", ""),
}  # fmt: skip
ENTRIES = (
    "momentum+batch-growth", "momentum+adaptive-batch", "momentum+full-batch",
    "momentum+one-sample", "momentum+curriculum", "momentum+random-curriculum", "newton-cg",
    "bfgs", "lbfgs", "genetic", "annealing", "greedy", "newton",
)  # fmt: skip


@pytest.mark.parametrize("which", LOADERS)
def test_a_data_loader_can_have_any_entry(which, wrote):
    batches, more = LOADERS[which]
    file = wrote(batches, more=more)
    Request(file, ",".join(ENTRIES)).check()
    for entry in ENTRIES:
        run(file, entry, steps=3)


@pytest.mark.parametrize("which", [*LOADERS][:5])
def test_batches_of_another_size_have_the_loaders_own_order(which, wrote, monkeypatch):
    file = wrote(LOADERS[which][0], more=LOADERS[which][1])
    plain = torch.cat(training(file, "momentum", monkeypatch, steps=9))
    single = torch.cat(training(file, "momentum+one-sample", monkeypatch, steps=60))
    assert torch.equal(plain[:60], single)
    assert len({tuple(row.tolist()) for row in single[:21]}) == 21  # an epoch


def test_incomplete_batches_stay_left_out(wrote, monkeypatch):
    file = wrote(LOADERS["incomplete batches left out"][0])
    for entry in ("momentum", "momentum+curriculum", "momentum+batch-growth"):
        sizes = [len(x) for x in training(file, entry, monkeypatch) if len(x) > 1]
        assert min(sizes) == 8, entry
    assert set(sizes) == {8, 21}  # 40 are more than there are


NO_SAMPLES = {
    "a list": "[(X, Y)]",
    "a generator": "((X, Y) for _ in range(99))",
    "a part of the data": (
        "DataLoader(TensorDataset(X, Y), 8, sampler=SubsetRandomSampler(range(9)))"
    ),
    "weights": "DataLoader(TensorDataset(X, Y), 8, sampler=WeightedRandomSampler([1.0] * 21, 21))",
    "with replacement": (
        "DataLoader(TensorDataset(X, Y), 8, "
        "sampler=RandomSampler(X, replacement=True, num_samples=21))"
    ),
    "fewer": "DataLoader(TensorDataset(X, Y), 8, sampler=RandomSampler(X, num_samples=9))",
    "batches of its own": (
        "DataLoader(TensorDataset(X, Y), batch_sampler=[[0, 1], [2, 3]])"
    ),
}  # fmt: skip


@pytest.mark.parametrize("which", NO_SAMPLES)
@pytest.mark.parametrize("entry", ["adam+batch-growth", "adam+curriculum", "bfgs"])
def test_other_batches_are_raced_as_they_are_and_no_otherwise(which, entry, wrote):
    file = wrote(NO_SAMPLES[which])
    run(file, "momentum+cosine+early-stopping", steps=2)
    with pytest.raises(BadCall, match=r"mine gives only batches, but \S+ needs samples: exp"):
        Request(file, entry).check()


def test_what_a_model_cannot_have_is_said_before_the_race(wrote, capfd):
    file = wrote(PAIRS, "nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 1))", "print('loud')\n")
    Request(file, "momentum+curriculum,bfgs").check()
    with pytest.raises(BadCall, match=r"batch normalisation, and \+adaptive-batch needs"):
        Request(file, "adam+adaptive-batch").check()
    with pytest.raises(BadCall, match=r"'newton' cannot be made .*at most 2,000"):
        Request(
            wrote(PAIRS, "nn.Sequential(nn.Linear(3, 900), nn.Linear(900, 1))"), "newton"
        ).check()
    with pytest.raises(BadCall, match="levenberg-marquardt needs the residuals"):
        Request(wrote(PAIRS), "levenberg-marquardt").check()


def test_a_loss_that_no_adaptive_batch_can_have_is_one_line(wrote):
    branch = "def loss(model, batch):\n    x, y = batch\n    s = (model(x)[:, 0] - y).square()\n"
    # a loss that asks for a number goes sample by sample
    assert run(wrote(PAIRS, more=f"{branch}    return s.mean() if s.sum().item() else s.sum()\n"),
               "momentum+adaptive-batch").validation  # fmt: skip
    below = f"{branch}    return s.mean() - 1e6\n"
    with pytest.raises(BadCall, match=r"\+adaptive-batch.*loss=.* expected a number in \[0, inf\)"):
        run(wrote(PAIRS, more=below), "momentum+adaptive-batch")
