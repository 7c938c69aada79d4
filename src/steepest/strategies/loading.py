"""A DataLoader whose batch size changes while it runs, and that resumes within an epoch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, SequentialSampler, default_collate

from ..checks import mixed, saved, whole
from .drawing import ANOTHER, Batches, Collate, Ours, Rows, Seeded, as_it_is, still
from .orders import Shuffled


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
    the same order again; it takes the place of shuffle. An epoch that it was told since the last
    iteration, by `loader.sampler.set_epoch(epoch)`, is the next one; otherwise the loader counts.
    drop_last, and all other options: those of
    DataLoader; workers persist unless `persistent_workers=False`.

    `for batch in loader` is a new epoch, as with any DataLoader: also after a `break` or an error,
    whose epoch is over then. Only after `load_state_dict` is it the rest of the epoch that was
    saved, so `loader.load_state_dict(loader.state_dict())` goes on behind a `break`. `epoch` is the
    number of the epoch that the next batch is of, from 0, `position` how many of its samples were
    handed out: with the last batch of an epoch they are (epoch + 1, 0). `len(loader)` is the number
    of batches of a whole epoch at the present size.

    What is random in the data or in `collate_fn` follows from (seed, epoch, position), as far as it
    is drawn from the global generators of Python, numpy and torch (on the CPU): so it is the same
    for every number of workers, and after a resume. These generators are left alone, which takes
    three copies of their states for each batch without workers. A generator that the data keep for
    themselves is theirs to save. Where anything can be random, `dataset` is a wrapper: it gives the
    samples of your data, and reads and sets their attributes; `dataset.data` is the data.

    `accelerate.prepare(loader)`, which makes a DataLoader of its own of the parts, advances the
    order and counts here too, and `load_state_dict` here, before an epoch begins, is where that
    one goes on. In several processes `position` may be up to a batch per process ahead, and a
    batch that is made up of repeated samples, to make the processes even, is drawn anew each time.
    To go through `loader.batch_sampler` begins an epoch, as to go through the loader does.

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
        rows = isinstance(data, tuple) and data and all(isinstance(t, Tensor) for t in data)
        if rows:
            data = Rows(tuple(data))
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
        self._batches = Batches(sampler, drop_last, whole("Loader", "seed", seed, 0))
        self._batches.resize(batch_size)
        self._handed = 0
        collate = options.pop("collate_fn", None)
        known = collate is None and still(data)
        collate = collate or (as_it_is if rows else default_collate)
        if not known:  # something may be random in it
            data = Seeded(data, collate)
        options.setdefault("persistent_workers", options.get("num_workers", 0) > 0)
        # a generator of its own: torch draws from it for each iterator, and a resumed run has more
        self._random = torch.Generator()
        super().__init__(
            data,  # type: ignore[arg-type]
            batch_sampler=self._batches,
            collate_fn=Collate(collate, bool(rows)),
            generator=self._random,
            **options,
        )
        self._batches.ahead = self.num_workers * (self.prefetch_factor or 0)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "sampler":  # torch's own, which nobody asks: there is a batch sampler
            value = self._batches.order
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
        """Which epoch the next batch is of, from 0."""
        return self._batches.epoch

    @property
    def position(self) -> int:
        """Samples of that epoch that were handed out."""
        return self._batches.position

    @property
    def handed(self) -> int:
        """Samples in the batch that was handed out last."""
        return self._handed

    def _setting(self) -> tuple[Any, ...]:
        """What the next batch depends on: the size, and whatever the order keeps."""
        state = getattr(self._batches.order, "state_dict", dict)
        return self.batch_size, state()

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        batches = self._batches
        turn, ended = batches.begin(), False
        while not ended:
            self._random.manual_seed(mixed(batches.seed, self.epoch))
            setting = self._setting()
            batches.ours = True
            try:
                drawn = super().__iter__()
            finally:
                batches.ours = False
            for batch in drawn:
                self._handed = batches.sent.popleft()
                ended = batches.hand(self._handed)
                yield batch
                if ended:
                    return
                if batches.turn is not turn:
                    raise RuntimeError(ANOTHER)
                if self.num_workers and self._setting() != setting:
                    break  # what is prefetched is of the old setting
            else:  # an order that was shorter than it says
                batches.end()
                return

    def state_dict(self) -> dict[str, Any]:
        """Epoch, position, batch size, seed, number of samples, and the state of the order."""
        order = getattr(self._batches.order, "state_dict", dict)
        return {
            "epoch": self.epoch, "position": self.position, "batch_size": self.batch_size,
            "seed": self._batches.seed, "samples": len(self._batches.order),
            "order": {k: int(v) if type(v) is Ours else v for k, v in order().items()},
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the state was saved, with the very same batches.

        Raises ValueError for a state of something else or of other data; nothing has changed then.
        """
        batches, seed = self._batches, self._batches.seed
        if isinstance(state, dict) and state:  # there was a time when the seed was not saved
            state = {"seed": seed, **state}
        keys = {"epoch", "position", "batch_size", "seed", "samples", "order"}
        new = saved("Loader", state, keys)
        samples = len(batches.order)
        if new["samples"] != samples:
            raise ValueError(
                f"Loader: a state of {new['samples']} samples was given, expected {samples}; load "
                "it with the data that it was saved with"
            )
        for key in ("epoch", "position", "seed"):
            whole("Loader", key, new[key], 0)
        whole("Loader", "batch_size", new["batch_size"], 1)
        if load := getattr(batches.order, "load_state_dict", None):
            load(new["order"])
        batches.seed = new["seed"]
        batches.resize(new["batch_size"])
        batches.go(new["epoch"], new["position"])
