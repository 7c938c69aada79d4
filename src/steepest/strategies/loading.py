"""A DataLoader whose batch size changes while it runs, and that resumes within an epoch."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sized
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, Sampler, SequentialSampler

from ..checks import mixed, saved, whole
from .orders import Shuffled


class _Rows:
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

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, ...]:
        return self[torch.tensor(indices)]


def _as_it_is(batch: Any) -> Any:
    return batch


class _Batches(Sampler[list[int]]):
    """Lists of indices, each as long as `batch_size` says at the moment that it is drawn."""

    def __init__(self, order: Any, drop_last: bool) -> None:
        self.order, self.drop_last = order, drop_last
        self.batch_size, self.epoch, self.position = 1, 0, 0
        self.sent: deque[int] = deque()  # sizes of batches that are drawn, and not handed out yet

    def resize(self, size: Any) -> None:
        most = len(self.order)
        if isinstance(size, str) and size != "all":
            raise ValueError(
                f"Loader: batch_size={size!r} was given, expected a whole number or 'all'"
            )
        size = most if size == "all" else whole("Loader", "batch_size", size, 1)
        self.batch_size = min(size, most)

    def __iter__(self) -> Iterator[list[int]]:
        self.sent.clear()
        indices = islice(self.order, self.position, None)
        while batch := list(islice(indices, self.batch_size)):
            if self.drop_last and len(batch) < self.batch_size:
                return
            self.sent.append(len(batch))
            yield batch

    def __len__(self) -> int:
        whole_ones, rest = divmod(len(self.order), self.batch_size)
        return whole_ones + bool(rest and not self.drop_last)


class Loader(DataLoader[Any]):
    """A torch DataLoader whose `batch_size` may be changed at any time.

    `loader.batch_size = 64` holds from the very next batch on, whatever the number of workers. They
    keep running: the up to `prefetch_factor * num_workers` batches that they have prepared in the
    old size are dropped and drawn again, so change it rarely where loading is dear. The batches do
    not depend on `num_workers`.

    data: a map-style dataset, or a tuple of tensors of one length, which are indexed without going
    through single samples. batch_size: "all" (batch gradient descent), 1 (stochastic gradient
    descent) or a whole number (mini-batches); more than there are samples means all of them.
    shuffle: a new order in each epoch, from (seed, epoch) alone. sampler: an order of its own, with
    `set_epoch(epoch)` (`Curriculum`, `Levels`, torch's DistributedSampler), for resuming asks for
    the same order again; it takes the place of shuffle. drop_last, and all other options: those of
    DataLoader; workers persist unless `persistent_workers=False`.

    `for batch in loader` is the rest of the present epoch: after a `break`, an error or
    `load_state_dict` it goes on with the batch that is next. `epoch` counts complete epochs,
    `position` the samples handed out in the present one. `len(loader)` is the number of batches of
    a whole epoch at the present size. The global random state is left alone.

    Raises ValueError for no data, unequal lengths, a size below 1, a sampler without set_epoch;
    RuntimeError when an iteration goes on after another one began or a state was loaded.
    """

    def __init__(
        self,
        data: Any,
        batch_size: int | str,
        *,
        shuffle: bool = True,
        seed: int = 0,
        sampler: Iterable[int] | None = None,
        drop_last: bool = False,
        **options: Any,
    ) -> None:
        if isinstance(data, tuple) and data and all(isinstance(t, Tensor) for t in data):
            data = _Rows(tuple(data))
            options.setdefault("collate_fn", _as_it_is)
        if isinstance(data, IterableDataset) or not isinstance(data, Sized):
            raise ValueError(
                f"Loader: a {type(data).__name__} was given, expected a map-style dataset with a "
                "length, or a tuple of tensors"
            )
        if not len(data):
            raise ValueError("Loader: data of length 0 were given, expected one sample or more")
        if sampler is None:
            sampler = Shuffled(len(data), seed) if shuffle else SequentialSampler(data)
        elif not hasattr(sampler, "set_epoch") or not isinstance(sampler, Sized):
            raise ValueError(
                f"Loader: a {type(sampler).__name__} was given, expected a sampler with a length "
                "and set_epoch(epoch), or none: an order drawn anew each time cannot be resumed"
            )
        if options.get("in_order") is False:
            raise ValueError(
                "Loader: in_order=False was given, expected batches in order: they are counted"
            )
        self._seed = whole("Loader", "seed", seed, 0)
        self._batches = _Batches(sampler, drop_last)
        self._batches.resize(batch_size)
        self._turn: object = None
        options.setdefault("persistent_workers", options.get("num_workers", 0) > 0)
        # a generator of its own: torch draws from it for each iterator, and a resumed run has more
        self._random = torch.Generator()
        super().__init__(
            data,  # type: ignore[arg-type]
            batch_sampler=self._batches,
            generator=self._random,
            **options,
        )

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "batch_size":
            super().__setattr__(name, value)
        elif value is not None:  # torch sets None, for there is a batch sampler
            self._batches.resize(value)

    @property
    def batch_size(self) -> int:  # type: ignore[override]
        """Samples in the next batch; set it to a whole number or "all"."""
        return self._batches.batch_size

    @property
    def epoch(self) -> int:
        """Epochs that are complete."""
        return self._batches.epoch

    @property
    def position(self) -> int:
        """Samples of the present epoch that were handed out."""
        return self._batches.position

    def _setting(self) -> tuple[Any, ...]:
        """What the next batch depends on: the size, and whatever the order keeps."""
        state = getattr(self._batches.order, "state_dict", dict)
        return self.batch_size, state()

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        batches, turn = self._batches, object()
        self._turn = turn
        complete = False
        while not complete:
            self._random.manual_seed(mixed(self._seed, self.epoch))
            if hasattr(batches.order, "set_epoch"):
                batches.order.set_epoch(self.epoch)
            setting = self._setting()
            for batch in super().__iter__():
                batches.position += batches.sent.popleft()
                yield batch
                if self._turn is not turn:
                    raise RuntimeError(
                        "Loader: an iteration went on after another one began or a state was "
                        "loaded, expected one at a time; make a second Loader, or iterate anew"
                    )
                if self.num_workers and self._setting() != setting:
                    break  # what is prefetched is of the old setting
            else:
                complete = True
        batches.epoch, batches.position = batches.epoch + 1, 0

    def state_dict(self) -> dict[str, Any]:
        """Epoch, position, batch size, number of samples, and the state of the order."""
        order = getattr(self._batches.order, "state_dict", dict)
        return {
            "epoch": self.epoch, "position": self.position, "batch_size": self.batch_size,
            "samples": len(self._batches.order), "order": order(),
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the state was saved, with the very same batches.

        Raises ValueError for a state of something else or of other data; nothing has changed then.
        """
        new = saved("Loader", state, {"epoch", "position", "batch_size", "samples", "order"})
        samples = len(self._batches.order)
        if new["samples"] != samples:
            raise ValueError(
                f"Loader: a state of {new['samples']} samples was given, expected {samples}; load "
                "it with the data that it was saved with"
            )
        for key in ("epoch", "position"):
            whole("Loader", key, new[key], 0)
        whole("Loader", "batch_size", new["batch_size"], 1)
        if load := getattr(self._batches.order, "load_state_dict", None):
            load(new["order"])
        self._batches.epoch, self._batches.position = new["epoch"], new["position"]
        self._batches.resize(new["batch_size"])
        self._turn = None
