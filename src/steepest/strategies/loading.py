"""A DataLoader whose batch size can change during a run. It can resume within an epoch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, SequentialSampler, default_collate

from ..checks import mixed, saved, whole
from .batches import SECOND_ITERATION, Batches, LoaderEpoch
from .datasets import Collate, Rows, Seeded, identity, is_deterministic
from .orders import Shuffled


class Loader(DataLoader[Any]):
    """A torch DataLoader whose `batch_size` may be changed at any time.

    `loader.batch_size = 64` applies from the next batch on, for any number of workers. The workers
    keep running. They may have prepared up to `prefetch_factor * num_workers` batches of the old
    size. These batches are dropped, and their samples are loaded again, so change the size rarely
    if loading is expensive. The batches do not depend on `num_workers`.

    data: a map-style dataset, or a tuple of tensors of equal length. Tensors are indexed once per
    batch, not once per sample.
    batch_size: "all" (batch gradient descent), 1 (stochastic gradient descent) or a whole number
    (mini-batches). A number above the number of samples means all samples.
    shuffle: draw a new order for each epoch. The order depends on (seed, epoch) only.
    sampler: a sampler to use instead of shuffle, such as `Curriculum`, `Levels` or torch's
    DistributedSampler. It must have `set_epoch(epoch)`, because a resumed run asks for the same
    order again. The loader itself calls `set_epoch`. To choose the epoch of the next pass, call
    `loader.sampler.set_epoch(epoch)` between two passes.
    drop_last and all other options are those of DataLoader. Worker processes are kept between
    epochs unless `persistent_workers=False`.

    `for batch in loader` starts a new epoch, as with any DataLoader, even after a `break` or an
    error. But after `load_state_dict` the next loop continues the saved epoch. So
    `loader.load_state_dict(loader.state_dict())` lets the next loop continue after a `break`.
    `epoch` is the epoch of the next batch, counted from 0. `position` is the number of samples of
    this epoch that were handed out. When the last batch of an epoch is handed out, `epoch` grows by
    1 and `position` becomes 0. `len(loader)` is the number of batches in an epoch at the current
    size.

    Random draws in the data or in `collate_fn` depend on (seed, epoch, position) only, if they come
    from the global generators of Python, numpy and torch (on the CPU). So these draws are the same
    for any number of workers, and after a resume. The global generators of your process keep their
    states. Without workers, each batch saves and restores these three states. Generators that
    belong to the data are not saved.

    If the data or `collate_fn` may draw random numbers, `loader.dataset` wraps your data: it has
    the same samples and attributes, and `loader.dataset.data` is the data itself.

    `accelerate.prepare(loader)` makes a new DataLoader from the parts of this loader. The new
    DataLoader also advances `epoch` and `position` of this loader. If `load_state_dict` is called
    on this loader before an epoch, the new DataLoader continues from the loaded position. With
    several processes, `position` may be up to one batch per process ahead. accelerate may fill up a
    batch with repeated samples, so that all processes get equally many samples. The random draws in
    such a batch are not reproducible.

    Iterating over `loader.batch_sampler` also begins an epoch.

    Raises ValueError for empty data, unequal lengths, a size below 1, or a sampler without
    set_epoch. Raises RuntimeError if an iterator is used after a newer iterator began or a state
    was loaded.
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
                f"Loader: sampler={type(sampler).__name__} was given, expected a sampler with a "
                "length and set_epoch(epoch), or None; other samplers cannot be resumed"
            )
        if options.get("in_order") is False:
            raise ValueError(
                "Loader: in_order=False was given, but resuming counts the batches in order; leave "
                "in_order out"
            )
        self._batches = Batches(sampler, drop_last, whole("Loader", "seed", seed, 0))
        self._batches.resize(batch_size)
        self._handed = 0
        collate = options.pop("collate_fn", None)
        deterministic = collate is None and is_deterministic(data)
        collate = collate or (identity if rows else default_collate)
        if not deterministic:
            data = Seeded(data, collate)
        options.setdefault("persistent_workers", options.get("num_workers", 0) > 0)
        # our own generator, because torch draws from it for each iterator, and a resumed run has
        # more iterators
        self._random = torch.Generator()
        super().__init__(
            data,  # type: ignore[arg-type]
            batch_sampler=self._batches,
            collate_fn=Collate(collate, bool(rows)),
            generator=self._random,
            **options,
        )
        self._batches.prefetched = self.num_workers * (self.prefetch_factor or 0)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "sampler":  # with a batch sampler, torch does not use `sampler`
            value = self._batches.order
        if name != "batch_size":
            super().__setattr__(name, value)
        elif value is not None:  # with a batch sampler, torch sets None
            self._batches.resize(value)

    @property
    def batch_size(self) -> int:  # type: ignore[override]
        """The number of samples in the next batch; set it to a whole number or "all"."""
        return self._batches.batch_size

    @property
    def epoch(self) -> int:
        """The epoch of the next batch, counted from 0."""
        return self._batches.epoch

    @property
    def position(self) -> int:
        """The number of samples of `epoch` that were handed out."""
        return self._batches.position

    @property
    def handed(self) -> int:
        """The number of samples in the last batch that was handed out."""
        return self._handed

    def _read_setting(self) -> tuple[Any, ...]:
        """What the next batch depends on: the batch size and the state of the order."""
        state = getattr(self._batches.order, "state_dict", dict)
        return self.batch_size, state()

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        batches = self._batches
        token, ended = batches.begin_iteration(), False
        while not ended:
            self._random.manual_seed(mixed(batches.seed, self.epoch))
            setting = self._read_setting()
            batches.called_by_loader = True
            try:
                iterator = super().__iter__()
            finally:
                batches.called_by_loader = False
            for batch in iterator:
                self._handed = batches.pending_sizes.popleft()
                ended = batches.count_batch(self._handed)
                yield batch
                if ended:
                    return
                if batches.token is not token:
                    raise RuntimeError(SECOND_ITERATION)
                if self.num_workers and self._read_setting() != setting:
                    break  # the prefetched batches have the old setting: draw them again
            else:  # the order gave fewer samples than its length
                batches.end_epoch()
                return

    def state_dict(self) -> dict[str, Any]:
        """Epoch, position, batch size, seed, number of samples, and the state of the order."""
        order = getattr(self._batches.order, "state_dict", dict)
        return {
            "epoch": self.epoch,
            "position": self.position,
            "batch_size": self.batch_size,
            "seed": self._batches.seed,
            "samples": len(self._batches.order),
            "order": {k: int(v) if type(v) is LoaderEpoch else v for k, v in order().items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where the state was saved, with the same batches.

        Raises ValueError, and changes nothing, if the state is not that of a Loader, or if it was
        saved with another number of samples.
        """
        batches, seed = self._batches, self._batches.seed
        if isinstance(state, dict) and state:  # early versions did not save the seed
            state = {"seed": seed, **state}
        keys = {"epoch", "position", "batch_size", "seed", "samples", "order"}
        new = saved("Loader", state, keys)
        samples = len(batches.order)
        if new["samples"] != samples:
            raise ValueError(
                f"Loader: a state for {new['samples']} samples was given, expected {samples}; use "
                "the same data as when the state was saved"
            )
        for key in ("epoch", "position", "seed"):
            whole("Loader", key, new[key], 0)
        whole("Loader", "batch_size", new["batch_size"], 1)
        if load := getattr(batches.order, "load_state_dict", None):
            load(new["order"])
        batches.seed = new["seed"]
        batches.resize(new["batch_size"])
        batches.move_to(new["epoch"], new["position"])
