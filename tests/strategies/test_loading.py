"""The loader: torch's batches, a size that changes while workers run, resuming within an epoch."""

import io
import itertools
import os
import pickle
import random

import numpy as np
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


def test_every_iteration_is_a_new_epoch_and_a_state_goes_on():
    loader = Loader((ROWS,), 10)
    epochs = [rows(loader) for _ in range(6)]
    loader, places = Loader((ROWS,), 10), []
    for expected, stop in zip(epochs, (4, 11, 1, 11, 10, 11), strict=True):
        batches = [b.tolist() for (b,) in itertools.islice(loader, stop)]
        assert batches == expected[:stop]
        places.append((loader.epoch, loader.position))
    # an epoch ends as its last batch is handed out
    assert places == [(0, 40), (2, 0), (2, 10), (4, 0), (4, 100), (6, 0)]
    loader.load_state_dict({**loader.state_dict(), "epoch": 2, "position": 70})
    assert rows(loader) == epochs[2][7:]
    assert rows(loader) == epochs[3]  # and that was told once


LOOPS = {  # what stops before the iterator has said that it ends
    "zip": lambda loader: [b for _, b in zip(range(len(loader)), loader, strict=False)],
    "islice": lambda loader: [*itertools.islice(loader, len(loader))],
    "next": lambda loader: [next(it) for it in [iter(loader)] for _ in range(len(loader))],
    "break": lambda loader: [*until_the_last(loader)],
    "twice": lambda loader: (iter(loader), [*loader])[1],  # an iterator that nobody asks
}


def until_the_last(loader):
    for k, batch in enumerate(loader, 1):
        yield batch
        if k == len(loader):
            break


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("options", WORKERS, ids=["no-worker", "worker"])
@pytest.mark.parametrize("loop", LOOPS)
def test_no_epoch_is_empty_however_it_is_gone_through(loop, options, drop_last):
    def make():
        return Loader((ROWS,), 10, drop_last=drop_last, **options)

    whole, loader = make(), make()
    for epoch in range(3):
        seen = [batch.tolist() for (batch,) in LOOPS[loop](loader)]
        assert len(seen) == 11 - drop_last
        assert seen == rows(whole)
        assert (loader.epoch, loader.position) == (epoch + 1, 0)


def test_a_place_without_a_batch_behind_it_is_the_next_epoch():
    for drop_last, position in ((False, 101), (True, 100), (True, 101)):
        loader = Loader((ROWS,), 10, drop_last=drop_last)
        loader.load_state_dict({**loader.state_dict(), "position": position})
        assert len(rows(loader)) == len(loader)
        assert loader.epoch == 2


def test_an_iterator_that_is_at_its_end_stays_there():
    loader = Loader((ROWS,), 60)
    first = iter(loader)
    assert len([next(first), next(first)]) == 2
    next(iter(loader))
    assert next(first, None) is None


class Short(Shuffled):
    """A sampler with fewer samples than it says."""

    def __iter__(self):
        return iter([*super().__iter__()][:55])


def test_a_sampler_that_is_shorter_than_it_says_ends_its_epochs():
    loader = Loader((ROWS,), 10, sampler=Short(101))
    assert [len(b) for b in rows(loader)] == [10] * 5 + [5]
    assert (loader.epoch, loader.position) == (1, 0)


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
    loader.load_state_dict(loader.state_dict())
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
    with pytest.raises(RuntimeError, match="expected one iteration at a time"):
        next(first)
    going = iter(loader)
    next(going)
    loader.load_state_dict(loader.state_dict())
    with pytest.raises(RuntimeError, match="a state was loaded"):
        next(going)
    assert sum(len(b) for b in rows(loader)) == 101 - 10


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


class Random(Dataset):
    """Its sample k is k, and draws from all global generators."""

    def __len__(self):
        return 40

    def __getitem__(self, k):
        return k, torch.rand(()), np.random.rand(), random.random()


class AtOnce(Random):
    def __getitems__(self, indices):
        assert type(indices) is list
        return [self[k] for k in indices]


def noisy(samples):
    """A collate_fn that draws too, as those of language models do."""
    return [*torch.utils.data.default_collate(samples), torch.rand(3)]


def drawn(loader, batches=None):
    return [[c.tolist() for c in b] for b in itertools.islice(loader, batches)]


@pytest.mark.parametrize("data", [Random(), AtOnce()], ids=["single", "at once"])
def test_what_is_random_in_a_batch_follows_from_its_place(data):
    def make(**options):
        return Loader(data, 6, seed=2, collate_fn=noisy, **options)

    first = make()
    whole = [drawn(first) for _ in range(2)]
    flat = [x for epoch in whole for _, *columns in epoch for column in columns for x in column]
    assert len({*flat}) == len(flat) == 2 * (3 * 40 + 3 * 7)
    for options in ({"num_workers": 1}, {"num_workers": 2, "prefetch_factor": 3}):
        loader = make(**options)
        head = drawn(loader, 3)
        state = through_a_file(loader.state_dict())
        for again in (make(num_workers=1), make()):
            again.load_state_dict(state)
            assert head + drawn(again) == whole[0]
            assert drawn(again) == whole[1]
    other = Loader(data, 6, seed=3, collate_fn=noisy)
    assert not {*flat} & {x for _, *cs in drawn(other) for c in cs for x in c}
    other.load_state_dict(make().state_dict())  # the seed comes with the state
    assert drawn(other) == whole[0]


def test_random_columns_of_tensors_follow_too():
    def make():
        return Loader((ROWS,), 20, collate_fn=lambda b: [*b, torch.rand(2)])

    whole, loader = drawn(make()), make()
    head = drawn(loader, 2)
    again = make()
    again.load_state_dict(loader.state_dict())
    assert head + drawn(again) == whole


def test_the_generators_of_the_program_are_left_alone_and_do_not_matter():
    def draws():
        return torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()

    def seed(number):
        torch.manual_seed(number), np.random.seed(number), random.seed(number)

    seed(1)
    expected = draws()
    seed(1)
    found = drawn(Loader(Random(), 6))
    assert draws() == expected
    assert drawn(Loader(Random(), 6)) == found

    class Broken(Random):
        def __getitem__(self, k):
            raise OSError(f"{super().__getitem__(k)}")

    seed(1)
    with pytest.raises(OSError, match="tensor"):
        drawn(Loader(Broken(), 6))
    assert draws() == expected


def test_the_data_are_to_be_had_through_the_loader():
    data = Numbered()
    loader = Loader(data, 10)
    assert loader.dataset.data is data
    assert loader.dataset.bad is data.bad
    assert len(loader.dataset) == 101
    assert loader.dataset[7] == data[7]
    assert not hasattr(loader.dataset, "nothing of that name")
    pickled = pickle.loads(pickle.dumps(loader.dataset))
    assert pickled[7] == data[7]


def test_the_size_of_the_last_batch_is_known():
    loader = Loader((ROWS,), 40)
    assert loader.handed == 0
    assert [loader.handed for _ in loader] == [40, 40, 21]


def test_a_state_from_before_the_seed_was_saved_is_taken():
    loader = Loader((ROWS,), 10, seed=4)
    old = loader.state_dict()
    del old["seed"]
    loader.load_state_dict(old)
    assert loader.state_dict()["seed"] == 4


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
        (lambda: Loader((ROWS,), 1, in_order=False), "leave in_order out"),
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


class Stepped(Numbered):
    """Its sample k is k, through a transform that may be set later."""

    transform = None

    def __getitem__(self, k):
        return self.transform(k) if self.transform else k


def tenfold(k):
    return 10 * k


MADE = {
    "dataset": lambda: Loader(Stepped(12), 3, seed=1),
    "at once": lambda: Loader(AtOnce(), 3, seed=1),
    "collate": lambda: Loader(TensorDataset(ROWS[:12]), 3, collate_fn=noisy, seed=1),
    "tensors": lambda: Loader((ROWS[:36].view(12, 3), ROWS[:24].view(12, 2)), 3, seed=1),
    "equal tensors": lambda: Loader((ROWS[:36].view(12, 3), ROWS[:36].view(12, 3)), 3, seed=1),
}


@pytest.mark.parametrize("name", MADE)
def test_the_data_of_a_loader_are_data_for_other_loaders(name):
    data = MADE[name]().dataset
    plainly = [data[k] for k in range(4)]
    for other in (data, torch.utils.data.Subset(data, range(4))):
        first = next(iter(DataLoader(other, 4)))
        expected = torch.utils.data.default_collate(plainly)
        if name == "dataset":
            assert torch.equal(first, expected)
        else:  # what is drawn is another time something else
            assert torch.equal(first[0], expected[0])
            assert len(first) == len(expected)
    again = next(iter(Loader(data, 4, shuffle=False)))
    if name == "dataset":
        assert torch.equal(again, expected)
    else:
        assert torch.equal(again[0], expected[0])


@pytest.mark.parametrize("name", MADE)
def test_the_parts_of_a_loader_make_a_loader(name):
    loader, whole = MADE[name](), MADE[name]()
    parts = {"batch_sampler": loader.batch_sampler, "collate_fn": loader.collate_fn}
    for ours, theirs in zip(whole, DataLoader(loader.dataset, **parts), strict=True):
        if name == "dataset":
            assert torch.equal(ours, theirs)
        else:
            assert len(ours) == len(theirs)
            assert all(map(torch.equal, map(torch.as_tensor, ours), theirs))
    with pytest.raises(TypeError, match="give collate_fn=loader"):
        next(iter(DataLoader(loader.dataset, batch_sampler=loader.batch_sampler)))


def worker_sets(_):
    torch.utils.data.get_worker_info().dataset.transform = tenfold


@pytest.mark.parametrize("options", WORKERS, ids=["no-worker", "worker"])
def test_what_is_set_on_the_data_through_the_loader_holds(options):
    data = Stepped(12)
    loader = Loader(data, 3, shuffle=False, **options)
    loader.dataset.transform = tenfold
    assert data.transform is tenfold
    assert torch.cat([*loader]).tolist() == [10 * k for k in range(12)]
    del loader.dataset.transform
    assert data.transform is None


def test_what_a_worker_sets_on_its_data_holds():
    loader = Loader(Stepped(12), 3, shuffle=False, num_workers=1, worker_init_fn=worker_sets)
    assert torch.cat([*loader]).tolist() == [10 * k for k in range(12)]


def test_a_part_of_a_batch_keeps_a_seed():
    loader = Loader(Random(), 8, seed=2)
    batch = next(iter(loader.batch_sampler))
    halves = batch[:4], batch[4:]
    load = [loader.collate_fn(loader.dataset.__getitems__(half)) for half in halves * 2]
    for a, b in ((0, 2), (1, 3)):  # twice the same
        assert all(torch.equal(x, y) for x, y in zip(load[a], load[b], strict=True))
    assert not {*load[0][1].tolist()} & {*load[1][1].tolist()}
    one = [1]
    for longer in (batch + one, one + batch, pickle.loads(pickle.dumps(batch))):
        assert longer.seed == batch.seed


def shares_of(told, peeks):
    """What two ranks train on, epoch by epoch; the first looks at a batch before epoch `peeks`."""
    data, epochs = TensorDataset(ROWS[:40]), [[], []]
    for rank in range(2):
        sampler = DistributedSampler(data, num_replicas=2, rank=rank, seed=1)
        loader = Loader(data, 8, sampler=sampler)
        for epoch in range(4):
            if rank == 0 and epoch == peeks:
                next(iter(loader))
            told(loader, sampler, epoch)
            epochs[rank].append([k for batch in rows(loader) for k in batch])
    return epochs


@pytest.mark.parametrize("peeks", [None, 0, 2])
@pytest.mark.parametrize("told", [
    lambda loader, sampler, epoch: sampler.set_epoch(epoch),
    lambda loader, sampler, epoch: loader.sampler.set_epoch(epoch),
])  # fmt: skip
def test_an_epoch_that_a_sampler_is_told_is_the_epoch(told, peeks):
    plain = DistributedSampler(range(40), num_replicas=2, rank=0, seed=1)
    first, second = shares_of(told, peeks)
    for epoch, (mine, other) in enumerate(zip(first, second, strict=True)):
        plain.set_epoch(epoch)
        assert mine == [*plain]
        assert {*mine, *other} == {*range(40)}


class Converting(Shuffled):
    """A sampler that keeps its epoch in a way of its own."""

    def set_epoch(self, epoch):
        self.epoch = int(str(epoch))


@pytest.mark.parametrize("make", [Shuffled, Converting])
def test_a_sampler_that_is_told_nothing_is_counted_on(make):
    loader = Loader((ROWS,), 50, sampler=make(101))
    assert len({str(rows(loader)) for _ in range(4)}) == 4
    assert loader.epoch == 4
    loader.load_state_dict(through_a_file({**loader.state_dict(), "epoch": 300}))
    assert len({str(rows(loader)) for _ in range(3)}) == 3
    assert loader.epoch == 303
    loader.sampler.set_epoch(7)
    assert rows(loader) == rows(Loader((ROWS,), 50, sampler=at(make(101), 7)))
    assert loader.epoch == 8


def at(sampler, epoch):
    sampler.set_epoch(epoch)
    return sampler


def test_a_state_that_was_loaded_says_more_than_a_sampler_that_is_told():
    def make():
        return Loader((ROWS,), 10, sampler=DistributedSampler(ROWS, num_replicas=1, rank=0))

    loader = make()
    expected = [rows(loader) for _ in range(3)]
    again = make()
    again.load_state_dict({**loader.state_dict(), "epoch": 1, "position": 40})
    for epoch, batches in ((1, expected[1][4:]), (2, expected[2])):
        again.sampler.set_epoch(epoch)
        assert rows(again) == batches
