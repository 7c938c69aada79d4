"""The loader: torch's batches, a size that changes while workers run, resuming within an epoch."""

import io
import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import (
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    TensorDataset,
)

from steepest.strategies import Curriculum, Levels, Loader, Shuffled, pacing

ROWS = torch.arange(101)
WORKERS = [{}, {"num_workers": 1, "prefetch_factor": 4}]


class Numbered(Dataset):
    """Its sample k is (k, the process that loaded it); `bad` raises as often as it says."""

    def __init__(self, length=101):
        self.length, self.bad = length, {}

    def __len__(self):
        return self.length

    def __getitem__(self, k):
        if self.bad.get(k):
            self.bad[k] -= 1
            raise OSError("the disk is away")
        return k, os.getpid()


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def rows(loader, epochs=1):
    return [batch[0].tolist() for _ in range(epochs) for batch in loader]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 45), st.booleans())
def test_without_shuffling_the_batches_are_torchs(samples, size, drop_last):
    data = TensorDataset(torch.arange(samples))
    ours = Loader(data, size, shuffle=False, drop_last=drop_last)
    theirs = DataLoader(data, min(size, samples), drop_last=drop_last)  # more than all are all
    assert rows(ours) == rows(theirs)
    assert len(ours) == len(theirs)
    tensors = Loader((torch.arange(samples),), size, shuffle=False, drop_last=drop_last)
    assert rows(tensors) == rows(theirs)


def test_three_frameworks_of_descent_are_one_setting():
    for size, count in (("all", 1), (1, 101), (20, 6)):
        loader = Loader((ROWS, -ROWS), size)
        seen = [*loader]
        assert len(seen) == len(loader) == count
        x, y = (torch.cat(column) for column in zip(*seen, strict=True))
        assert torch.equal(x.sort().values, ROWS)
        assert torch.equal(x, -y)
        assert not torch.equal(x, ROWS)


def test_an_order_follows_from_seed_and_epoch_alone():
    loader = Loader((ROWS,), 10, seed=3)
    epochs = [rows(loader) for _ in range(4)]
    assert len({str(e) for e in epochs}) == 4
    late = Loader((ROWS,), 10, seed=3)
    late.load_state_dict({**late.state_dict(), "epoch": 3})
    assert rows(late) == epochs[3]
    # seed + epoch alone would make these one order
    assert rows(Loader((ROWS,), 10, seed=4)) != epochs[1]


@pytest.mark.parametrize("options", WORKERS, ids=["no-worker", "worker"])
def test_a_new_size_holds_from_the_very_next_batch_and_workers_stay(options):
    loader = Loader(Numbered(), 4, seed=1, **options)
    order = [k for batch in rows(Loader((ROWS,), "all", seed=1)) for k in batch]
    sizes, seen, processes = {3: 7, 4: 2, 9: 30, 10: 1, 12: 5}, [], set()
    for k, (batch, process) in enumerate(loader):
        seen.append(batch.tolist())
        processes |= {*process.tolist()}
        if k in sizes:
            loader.batch_size = sizes[k]
    expected, size, first = [], 4, 0
    while first < len(order):  # a plain loop
        expected.append(order[first : first + size])
        first += size
        size = sizes.get(len(expected) - 1, size)
    assert seen == expected
    for _, process in loader:  # the next epoch too
        processes |= {*process.tolist()}
    assert len(processes) == 1
    assert (processes == {os.getpid()}) == (not options)


@pytest.mark.parametrize("options", WORKERS, ids=["no-worker", "worker"])
def test_fifty_and_fifty_batches_are_a_hundred(options):
    def run(loader, first, last, out):
        k = first
        while True:
            for (batch,) in loader:
                out.append(batch.tolist())
                k += 1
                if k % 7 == 0:
                    loader.batch_size = 1 + k % 5
                if k == last:
                    return loader.state_dict()

    data = TensorDataset(ROWS)
    whole, halves = [], []
    run(Loader(data, 3, seed=5, **options), 0, 100, whole)
    state = run(Loader(data, 3, seed=5, **options), 0, 50, halves)
    assert 0 < state["position"] < 101
    fresh = Loader(data, 8, seed=6)  # size and seed come with the state
    fresh.load_state_dict(through_a_file(state))
    run(fresh, 50, 100, halves)
    assert halves == whole


def test_a_break_goes_on_and_a_finished_epoch_is_not_repeated():
    whole = rows(Loader((ROWS,), 10), 2)
    loader, seen = Loader((ROWS,), 10), []
    for stop in (4, 11, 12, 22):
        for (batch,) in loader:
            seen.append(batch.tolist())
            if len(seen) == stop:
                break
    assert seen == whole
    # the last batch was handed out, and the epoch is not complete before the loop is
    assert (loader.epoch, loader.position) == (1, 101)
    assert [*loader] == []
    assert (loader.epoch, loader.position) == (2, 0)


@pytest.mark.parametrize("options", WORKERS, ids=["no-worker", "worker"])
def test_a_sample_that_fails_once_is_not_lost(options):
    data = Numbered()
    data.bad = {50: 1}
    whole = rows(Loader(Numbered(), 10))
    # torch waits 5 seconds for a persistent worker to end that has sent an error
    loader, seen = Loader(data, 10, persistent_workers=False, **options), []

    def go_on():
        seen.extend(batch.tolist() for batch, _ in loader)

    with pytest.raises(OSError, match="the disk is away"):
        go_on()
    assert len(seen) < 11
    data.bad = {}  # a worker has its own copy
    go_on()
    assert seen == whole


def test_the_global_random_state_is_left_alone():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    rows(Loader(TensorDataset(ROWS), 10), 2)
    assert torch.equal(torch.get_rng_state(), before)


def test_one_iteration_at_a_time():
    loader = Loader((ROWS,), 10)
    first = iter(loader)
    next(first)
    next(iter(loader))
    with pytest.raises(RuntimeError, match="expected one at a time"):
        next(first)
    going = iter(loader)
    next(going)
    loader.load_state_dict(loader.state_dict())
    with pytest.raises(RuntimeError, match="a state was loaded"):
        next(going)
    assert sum(len(b) for b in rows(loader)) == 101 - 30


def test_torchs_distributed_sampler_shares_the_data_out():
    data = TensorDataset(ROWS)
    shares = []
    for rank in range(2):
        sampler = DistributedSampler(data, num_replicas=2, rank=rank, seed=1)
        loader = Loader(data, 8, sampler=sampler)
        epochs = [[k for batch in rows(loader) for k in batch] for _ in range(2)]
        assert epochs[0] != epochs[1]
        shares += epochs[1]
    assert {*shares} == {*range(101)}


def test_an_order_that_changes_counts_from_the_next_batch_with_a_worker_too():
    levels = Levels([0] * 50 + [1] * 50, "naive")
    loader = Loader(Numbered(100), 5, sampler=levels, num_workers=1, prefetch_factor=4)
    seen = []
    for batch, _ in loader:
        seen.append({k // 50 for k in batch.tolist()})
        if len(seen) == 6:
            levels.harder()
    assert seen == [{0}] * 6 + [{1}] * 14


def test_a_curriculum_resumes_within_an_epoch():
    def make():
        order = Curriculum(ROWS.double(), pacing.linear(0.1, 15), 10, seed=2)
        return Loader((ROWS,), 10, sampler=order)

    whole, loader = rows(make(), 2), make()
    seen = [b.tolist() for _, (b,) in zip(range(4), loader, strict=False)]
    fresh = make()
    fresh.load_state_dict(through_a_file(loader.state_dict()))
    assert seen + rows(fresh, 2) == whole


class Endless(IterableDataset):
    def __iter__(self):
        yield 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Loader((ROWS,), 0), "batch_size=0 was given, expected a whole number of 1"),
        (lambda: Loader((ROWS,), -1), "batch_size=-1"),
        (lambda: Loader((ROWS,), 2.5), "batch_size=2.5"),
        (lambda: Loader((ROWS,), float("nan")), "batch_size=nan"),
        (lambda: Loader((ROWS,), True), "batch_size=True"),
        (lambda: Loader((ROWS,), "half"), "expected a whole number or 'all'"),
        (lambda: Loader((ROWS[:0],), 1), "data of length 0"),
        (lambda: Loader((), 1), "data of length 0"),
        (lambda: Loader((ROWS, ROWS[1:]), 1), r"lengths \[101, 100\]"),
        (lambda: Loader((torch.tensor(1),), 1), r"lengths \[None\]"),
        (lambda: Loader(Endless(), 1), "expected a map-style dataset"),
        (lambda: Loader(7, 1), "a int was given, expected a map-style dataset"),
        (lambda: Loader((ROWS,), 1, seed=-1), "seed=-1"),
        (lambda: Loader((ROWS,), 1, sampler=RandomSampler(ROWS)), "cannot be resumed"),
        (lambda: Loader((ROWS,), 1, in_order=False), "expected batches in order"),
        (lambda: Loader((ROWS,), 1).load_state_dict({}), "load what Loader.state_dict"),
        (lambda: Loader((ROWS,), 1).load_state_dict([1]), "a state of list was given"),
        (lambda: Shuffled(0), "samples=0"),
    ],
)
def test_bad_input_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_refused_size_or_state_changes_nothing():
    loader = Loader((ROWS,), 10)
    next(iter(loader))
    before = loader.state_dict()
    with pytest.raises(ValueError, match="expected a whole number"):
        loader.batch_size = 0
    for bad in ({"samples": 7}, {"epoch": -1}, {"position": 0.5}, {"batch_size": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(bad.values()))}"):
            loader.load_state_dict({**before, **bad})
    assert loader.state_dict() == before


def test_more_than_there_are_is_all_of_them():
    loader = Loader((ROWS,), 1000, drop_last=True)
    assert loader.batch_size == 101
    assert [len(b) for b in rows(loader)] == [101]
    loader.batch_size = "all"
    assert loader.batch_size == 101
