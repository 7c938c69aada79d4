"""Dataset wrappers for a Loader: for whole batches of tensors, and for reproducible randomness."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset, get_worker_info

from .batches import Indices


class Rows:
    """A dataset made of tensors of equal length. A whole batch can be indexed at once."""

    def __init__(self, tensors: tuple[Tensor, ...]) -> None:
        lengths = [len(t) if t.dim() else None for t in tensors]
        if len({*lengths}) != 1 or lengths[0] is None:
            raise ValueError(
                f"Loader: tensors of lengths {lengths} were given, expected equal lengths"
            )
        self.tensors = tensors

    def __len__(self) -> int:
        return len(self.tensors[0])

    def __getitem__(self, index: Any) -> tuple[Tensor, ...]:
        return tuple(t[index] for t in self.tensors)

    def __getitems__(self, indices: list[int]) -> Any:
        if type(indices) is Indices:
            return Collated(self.columns(indices))
        return [self[k] for k in indices]

    def columns(self, indices: list[int]) -> tuple[Tensor, ...]:
        """The batch of the samples with these indices: one tensor per column."""
        return self[torch.tensor(indices)]


def identity(batch: Any) -> Any:
    """Return the batch unchanged, for batches that are already collated."""
    return batch


class Collated:
    """A batch that is already collated. A Loader's dataset returns it for a Loader's `Indices`."""

    def __init__(self, batch: Any) -> None:
        self.batch = batch

    def __getitem__(self, _: Any) -> Any:
        raise TypeError(
            "Loader: a DataLoader was given the dataset and the batch_sampler of a Loader, but "
            "another collate_fn; give collate_fn=loader.collate_fn too"
        )


class Collate:
    """A collate_fn that also accepts a batch that is already collated."""

    def __init__(self, collate: Callable[[Any], Any], rows: bool) -> None:
        self.collate, self.rows = collate, rows

    def __call__(self, samples: Any) -> Any:
        if type(samples) is Collated:
            return samples.batch
        if self.rows:  # the user's function expects columns, as Rows returns them
            samples = tuple(map(torch.stack, zip(*samples, strict=True)))
        return self.collate(samples)


class Seeded(Dataset[Any]):
    """A dataset that seeds the random generators before it loads and collates each batch.

    The seed comes from the batch's `Indices`, so the batch is the same in every process and after a
    resume. Attributes and single samples are those of `data`. Setting an attribute on this object
    sets it on `data`.
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
        get_many = getattr(self.data, "__getitems__", None)
        load = get_many or (lambda indices: [self.data[k] for k in indices])
        if type(indices) is not Indices:
            return load(indices)
        load = self.data.columns if type(self.data) is Rows else load
        # in a worker nothing else uses the global generators
        worker = get_worker_info() is not None
        if worker:
            _seed(indices.seed)
        with nullcontext() if worker else _seeded(indices.seed):
            return Collated(self.collate(load([*indices])))


def is_deterministic(data: Any) -> bool:
    """Whether loading is never random: True for tensors, arrays, lists, tuples and ranges."""
    while type(data) is Subset:
        data = data.dataset
    return type(data) in (Rows, TensorDataset, Tensor, np.ndarray, list, tuple, range)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the global generators of Python, numpy and torch (CPU). Restore their states on exit."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    torch_state = torch.get_rng_state()
    _seed(seed)
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)  # not torch.manual_seed, which seeds GPUs too
