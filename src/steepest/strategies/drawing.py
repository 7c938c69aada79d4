"""Which samples come in which batch, and what is random in them: the parts of a Loader."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler, Subset, TensorDataset, get_worker_info

from ..checks import mixed, whole

ANOTHER = (
    "Loader: an iteration went on after another one began or a state was loaded, expected one at a "
    "time; make a second Loader, or iterate anew"
)


class Rows:
    """Tensors of one length as a dataset that hands out whole batches."""

    def __init__(self, tensors: tuple[Tensor, ...]) -> None:
        lengths = [len(t) if t.dim() else None for t in tensors]
        if len({*lengths}) != 1 or lengths[0] is None:
            raise ValueError(
                f"Loader: tensors of lengths {lengths} were given, expected one length for all"
            )
        self.tensors = tensors

    def __len__(self) -> int:
        return len(self.tensors[0])

    def __getitem__(self, index: Any) -> tuple[Tensor, ...]:
        return tuple(t[index] for t in self.tensors)

    def __getitems__(self, indices: list[int]) -> Any:
        if type(indices) is Indices:
            return Whole(self.columns(indices))
        return [self[k] for k in indices]

    def columns(self, indices: list[int]) -> tuple[Tensor, ...]:
        """The batch of these samples."""
        return self[torch.tensor(indices)]


def as_it_is(batch: Any) -> Any:
    """A batch that is one already."""
    return batch


class Indices(list[int]):
    """The indices of a batch of a Loader, with the seed of what is random in it.

    A part of them, which accelerate takes for a process, has a seed of its own.
    """

    def __init__(self, indices: Iterable[int], seed: int) -> None:
        super().__init__(indices)
        self.seed = seed

    def __reduce__(self) -> tuple[Any, ...]:
        return Indices, ([*self], self.seed)

    def __getitem__(self, at: Any) -> Any:
        if not isinstance(at, slice):
            return super().__getitem__(at)
        start, stop, _ = at.indices(len(self))
        return Indices(super().__getitem__(at), mixed(self.seed, start, stop))

    def __add__(self, others: list[int]) -> Indices:  # type: ignore[override]
        return Indices([*self, *others], self.seed)

    def __radd__(self, others: list[int]) -> Indices:
        return Indices([*others, *self], self.seed)


class Whole:
    """A batch that is collated: what a Loader's data return for a Loader's `Indices`."""

    def __init__(self, batch: Any) -> None:
        self.batch = batch

    def __getitem__(self, _: Any) -> Any:
        raise TypeError(
            "Loader: another collate_fn was given to a DataLoader of a Loader's dataset and "
            "batch_sampler, expected the Loader's; give collate_fn=loader.collate_fn too"
        )


class Collate:
    """Collates samples, and hands out what is collated already."""

    def __init__(self, collate: Callable[[Any], Any], rows: bool) -> None:
        self.collate, self.rows = collate, rows

    def __call__(self, samples: Any) -> Any:
        if type(samples) is Whole:
            return samples.batch
        if self.rows:  # which take columns
            samples = tuple(map(torch.stack, zip(*samples, strict=True)))
        return self.collate(samples)


class Seeded(Dataset[Any]):
    """A dataset whose batches are loaded and collated under the seed of their indices.

    So they are the same in every process and after a resume. To all others it is `data`: they read
    and set its attributes, and get its samples.
    """

    def __init__(self, data: Any, collate: Callable[[Any], Any]) -> None:
        self.__dict__.update(data=data, collate=collate)

    def __reduce__(self) -> tuple[Any, ...]:
        return Seeded, (self.data, self.collate)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["data"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.data, name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self.data, name)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: Any) -> Any:
        return self.data[index]

    def __getitems__(self, indices: list[int]) -> Any:
        many = getattr(self.data, "__getitems__", None)
        load = many or (lambda indices: [self.data[k] for k in indices])
        if type(indices) is not Indices:
            return load(indices)
        load = self.data.columns if type(self.data) is Rows else load
        worker = get_worker_info() is not None  # nobody else draws there
        if worker:
            _seed(indices.seed)
        with nullcontext() if worker else _seeded(indices.seed):
            return Whole(self.collate(load([*indices])))


def _state(order: Any) -> dict[str, Any] | None:
    """What an order keeps, if anything."""
    return order.state_dict() if hasattr(order, "load_state_dict") else None


def still(data: Any) -> bool:
    """Whether nothing can be random in the data: they are tensors, or a list and its like."""
    while type(data) is Subset:
        data = data.dataset
    return type(data) in (Rows, TensorDataset, Tensor, np.ndarray, list, tuple, range)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """The global generators of Python, numpy and torch (its CPU's), afterwards as they were."""
    python, numpys, torchs = random.getstate(), np.random.get_state(), torch.get_rng_state()
    _seed(seed)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpys)
        torch.set_rng_state(torchs)


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the GPUs too


class Ours(int):
    """An epoch that a sampler was told by us, as against one that it was told by the user."""


class Batches(Sampler[list[int]]):
    """Lists of indices, each as long as `batch_size` says at the moment that it is drawn.

    `epoch` and `position` are those of the next batch that is to be handed out. An iteration begins
    there if a state was loaded or the last epoch has ended, else with the epoch behind. To go
    through it draws batches, as any loader does: it begins an epoch, and ends a running iteration.

    Raises TypeError where Lightning makes another one around another order.
    """

    def __init__(
        self, order: Any, drop_last: bool, seed: int | None = None, batch_size: Any = None
    ) -> None:
        if seed is None:
            raise TypeError(
                f"Loader: the order {type(order).__name__} was to take the place of its own, which "
                "only its constructor may set; in Lightning predict with a DataLoader, overfit "
                "with shuffle=False, and on several devices give "
                "Loader(..., sampler=DistributedSampler(...)) or use_distributed_sampler=False"
            )
        self.order, self.drop_last, self.seed = order, drop_last, seed
        self.batch_size, self.epoch, self.position = 1, 0, 0
        self.ready = True  # whether the next iteration begins at this place, not an epoch later
        self.loaded = False  # whether this place is from a state, and no epoch that is told counts
        self.told = 0  # the next iteration is of this epoch or a later one
        self.heard: int | None = None  # what set_epoch was called with last
        epoch = getattr(order, "epoch", 0)
        self.mark: Any = epoch if type(epoch) is Ours else 0  # what it says if nobody told it
        self.turn: object = None  # the iteration that may go on
        self.ours = False  # whether it is the Loader that makes an iterator now
        self.ahead = 0  # batches that workers have drawn before they are needed
        self.sent: deque[int] = deque()  # sizes of batches that are drawn, and not handed out yet
        self.drawn: tuple[int, int] | None = None  # the place behind what another loader drew

    @property
    def sampler(self) -> Batches:
        """Where accelerate and Lightning look for the `set_epoch` of what is in a batch sampler."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Let the next iteration be of that epoch, from 0, or of a later one: no order comes twice.

        Trainers call it before each epoch with a count of their own, which may differ from ours
        after a state was loaded. So the same number again and the next one change nothing, and
        neither does a call between load_state_dict and the iteration behind it.
        """
        epoch = whole("Loader", "epoch", epoch, 0)
        usual = () if self.heard is None else (self.heard, self.heard + 1)
        if not self.loaded and epoch not in usual:
            self.told = epoch
        self.heard = epoch

    def resize(self, size: Any) -> None:
        """Take over a size; ValueError for what is none."""
        most = len(self.order)
        if isinstance(size, str) and size != "all":
            raise ValueError(
                f"Loader: batch_size={size!r} was given, expected a whole number or 'all'"
            )
        size = most if size == "all" else whole("Loader", "batch_size", size, 1)
        self.batch_size = min(size, most)

    def go(self, epoch: int, position: int) -> None:
        """Let the next iteration begin there; one that runs has ended."""
        self.epoch, self.position, self.ready = epoch, position, True
        self.turn, self.drawn, self.told, self.loaded = None, None, 0, True

    def place(self) -> Callable[[], None]:
        """What goes back to where this was called."""
        names = ("epoch", "position", "ready", "loaded", "told", "heard", "batch_size")
        kept = {name: getattr(self, name) for name in names}
        state, epoch = _state(self.order), getattr(self.order, "epoch", None)

        def back() -> None:
            self.__dict__.update(kept, turn=None, drawn=None)
            if state is not None:
                self.order.load_state_dict(state)
            if epoch is not None:
                self.order.set_epoch(epoch)
            self.mark = mark

        mark = self.mark
        return back

    def begin(self) -> object:
        """An iteration; returns what `turn` is while there is no other one."""
        if not self.ready or (self.position and self._over()):
            self.epoch, self.position = self.epoch + 1, 0
        epoch = getattr(self.order, "epoch", None)
        if self.loaded:
            pass
        elif isinstance(epoch, int) and epoch >= 0 and self._told(epoch):
            self.epoch, self.position = int(epoch), 0
        elif self.told > self.epoch:
            self.epoch, self.position = self.told, 0
        self.ready, self.loaded, self.told = False, False, 0
        self.turn, self.drawn = object(), None
        if hasattr(self.order, "set_epoch"):
            self.order.set_epoch(Ours(self.epoch))
            self.mark = getattr(self.order, "epoch", None)
        return self.turn

    def _told(self, epoch: int) -> bool:
        """Whether the order has its epoch from the user; for one that keeps no `Ours`, another."""
        return epoch is not self.mark if type(self.mark) is Ours else epoch != self.mark

    def hand(self, size: int) -> bool:
        """Count a batch that is handed out; whether the epoch ends with it."""
        self.position += size
        if self._over():
            self.end()
        return self.ready

    def end(self) -> None:
        """Go to the beginning of the next epoch."""
        self.epoch, self.position, self.ready = self.epoch + 1, 0, True

    def _over(self) -> bool:
        rest = len(self.order) - self.position
        return rest <= 0 or (self.drop_last and rest < self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        return self.draw() if self.ours else _Elsewhere(self)

    def draw(self) -> Iterator[list[int]]:
        """The batches from here to the end of the epoch."""
        self.sent.clear()
        epoch, position = self.epoch, self.position
        indices = islice(self.order, position, None)
        while batch := [*islice(indices, self.batch_size)]:
            if self.drop_last and len(batch) < self.batch_size:
                return
            batch = Indices(batch, mixed(self.seed, epoch, position))
            position += len(batch)
            self.sent.append(len(batch))
            yield batch

    def __len__(self) -> int:
        whole_ones, rest = divmod(len(self.order), self.batch_size)
        return whole_ones + bool(rest and not self.drop_last)

    def state_dict(self) -> dict[str, Any]:
        """Where the next batch is drawn: what torchdata's StatefulDataLoader saves of a sampler."""
        epoch, position = self.drawn or (self.epoch, self.position)
        return {"epoch": epoch, "position": position, "batch_size": self.batch_size}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on there."""
        self.resize(state["batch_size"])
        self.go(state["epoch"], state["position"])


class _Elsewhere:
    """The batches for a DataLoader that is not ours: accelerate makes its own of our parts.

    What it hands out is not seen here, only what it asks for. A loader without workers asks for a
    batch as it hands it out; with workers it has asked for `ahead` more. accelerate's holds back
    one: it has to know which is the last. So a batch counts as handed out when so many others were
    asked for behind it.
    """

    def __init__(self, batches: Batches) -> None:
        self.batches = batches
        self.drawn: Iterator[list[int]] | None = None  # torch makes two, and asks one
        self.asked = self.found = 0

    def __iter__(self) -> Iterator[list[int]]:
        return self

    def __next__(self) -> list[int]:
        batches = self.batches
        if self.drawn is None:
            self.turn, self.epoch = batches.begin(), batches.epoch
            self.at = batches.position
            self.drawn = batches.draw()
        elif batches.turn is not self.turn:
            raise RuntimeError(ANOTHER)
        batch = next(self.drawn, None)
        self.asked += 1
        if batch is not None:
            self.found += 1
            self.at += len(batch)
            batches.drawn = self.epoch, self.at
        if self.asked > batches.ahead + 1 and batches.sent:
            batches.hand(batches.sent.popleft())
        if batch is not None:
            return batch
        # workers: it has the last batch, and asks no more
        if batches.ahead and batches.sent and self.asked == batches.ahead + self.found:
            batches.hand(batches.sent.popleft())
        if not batches.sent and not batches.ready:  # an order that was shorter than it says
            batches.end()
        raise StopIteration
