"""The batch sampler of a Loader, which chooses the samples of each batch."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

from torch.utils.data import Sampler

from ..checks import mixed, whole

SECOND_ITERATION = (
    "Loader: an iteration continued after another iteration began or a state was loaded, expected "
    "one iteration at a time; make a second Loader, or start a new iteration"
)


class Indices(list[int]):
    """The sample indices of one batch, with a seed for the randomness in the batch.

    Each slice gets a different seed, because accelerate gives each process a slice.
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


class LoaderEpoch(int):
    """An epoch number. Its type shows that a Loader, not the user, set it on the sampler."""


class Batches(Sampler[list[int]]):
    """A batch sampler that knows its position. Its `batch_size` may change at any time.

    `epoch` and `position` are those of the next batch to hand out. An iteration begins at this
    position if a state was loaded or the last epoch has ended. Otherwise it begins the next epoch.
    Any DataLoader iterates over this object to draw batches. A new iteration ends the iteration
    that is running.

    Raises TypeError if no seed is given. Lightning gives no seed when it tries to replace the
    order.
    """

    def __init__(
        self, order: Any, drop_last: bool, seed: int | None = None, batch_size: Any = None
    ) -> None:
        if seed is None:
            raise TypeError(
                f"Loader: a {type(order).__name__} was given as a replacement for the Loader's own "
                "sampler, which a Loader does not allow; in Lightning predict with a DataLoader, "
                "overfit with shuffle=False, and on several devices use "
                "Loader(..., sampler=DistributedSampler(...)) or use_distributed_sampler=False"
            )
        self.order, self.drop_last, self.seed = order, drop_last, seed
        self.batch_size, self.epoch, self.position = 1, 0, 0
        # whether the next iteration begins at `position`, not at the next epoch
        self.starts_here = True
        # whether a state was loaded since the last iteration; if so, set_epoch has no effect
        self.just_loaded = False
        # the next iteration is this epoch or a later one
        self.requested_epoch = 0
        # the argument of the last set_epoch
        self.last_set_epoch: int | None = None
        # the value of order.epoch if the user does not set it
        epoch = getattr(order, "epoch", 0)
        self.default_epoch: Any = epoch if type(epoch) is LoaderEpoch else 0
        # identifies the only iteration that may continue
        self.token: object = None
        # whether the Loader itself is making an iterator
        self.called_by_loader = False
        # how many batches the workers draw ahead
        self.prefetched = 0
        # sizes of the batches that are drawn but not handed out yet
        self.pending_sizes: deque[int] = deque()
        # (epoch, position) after the last batch that a foreign loader drew
        self.foreign_position: tuple[int, int] | None = None

    @property
    def sampler(self) -> Batches:
        """This object, because accelerate and Lightning call `batch_sampler.sampler.set_epoch`."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration, counted from 0.

        An epoch that has begun already is ignored, so that no order is repeated. Trainers call
        this method before each epoch with an epoch number of their own. After a state was loaded,
        the trainer's number may differ from the loaded number. So a call changes nothing if its
        `epoch` equals that of the last call or is one more. A call between load_state_dict and the
        next iteration changes nothing either.
        """
        epoch = whole("Loader", "epoch", epoch, 0)
        last = self.last_set_epoch
        regular = last is not None and epoch in (last, last + 1)
        if not self.just_loaded and not regular:
            self.requested_epoch = epoch
        self.last_set_epoch = epoch

    def resize(self, size: Any) -> None:
        """Set the batch size, a whole number or "all". Raises ValueError for anything else."""
        samples = len(self.order)
        if isinstance(size, str) and size != "all":
            raise ValueError(
                f"Loader: batch_size={size!r} was given, expected a whole number or 'all'"
            )
        size = samples if size == "all" else whole("Loader", "batch_size", size, 1)
        self.batch_size = min(size, samples)

    def move_to(self, epoch: int, position: int) -> None:
        """Let the next iteration begin at this epoch and position. A running iteration ends."""
        self.epoch, self.position, self.starts_here = epoch, position, True
        self.token, self.foreign_position = None, None
        self.requested_epoch, self.just_loaded = 0, True

    def save_position(self) -> Callable[[], None]:
        """Return a function that restores the present position, batch size and order."""
        names = (
            "epoch",
            "position",
            "starts_here",
            "just_loaded",
            "requested_epoch",
            "last_set_epoch",
            "batch_size",
            "default_epoch",
        )
        saved = {name: getattr(self, name) for name in names}
        state, epoch = _save_order(self.order), getattr(self.order, "epoch", None)

        def restore() -> None:
            self.__dict__.update(saved, token=None, foreign_position=None)
            if state is not None:
                self.order.load_state_dict(state)
            if epoch is not None:
                self.order.set_epoch(epoch)

        return restore

    def begin_iteration(self) -> object:
        """Begin an iteration, and return a new `token` for it.

        The iteration may continue only until another iteration replaces this token.
        """
        if not self.starts_here or (self.position and self._epoch_is_over()):
            self.epoch, self.position = self.epoch + 1, 0
        epoch = getattr(self.order, "epoch", None)
        if self.just_loaded:
            pass
        elif isinstance(epoch, int) and epoch >= 0 and self._user_set_epoch(epoch):
            self.epoch, self.position = int(epoch), 0
        elif self.requested_epoch > self.epoch:
            self.epoch, self.position = self.requested_epoch, 0
        self.starts_here, self.just_loaded, self.requested_epoch = False, False, 0
        self.token, self.foreign_position = object(), None
        if hasattr(self.order, "set_epoch"):
            self.order.set_epoch(LoaderEpoch(self.epoch))
            self.default_epoch = getattr(self.order, "epoch", None)
        return self.token

    def _user_set_epoch(self, epoch: int) -> bool:
        """Whether the user has set the order's epoch.

        If the order does not keep our `LoaderEpoch` object, the user's epoch is noticed only if its
        number differs from ours.
        """
        if type(self.default_epoch) is LoaderEpoch:
            return epoch is not self.default_epoch
        return epoch != self.default_epoch

    def count_batch(self, size: int) -> bool:
        """Count a batch that is handed out. Returns whether this batch ends the epoch."""
        self.position += size
        if self._epoch_is_over():
            self.end_epoch()
        return self.starts_here

    def end_epoch(self) -> None:
        """Move to the beginning of the next epoch."""
        self.epoch, self.position, self.starts_here = self.epoch + 1, 0, True

    def _epoch_is_over(self) -> bool:
        rest = len(self.order) - self.position
        return rest <= 0 or (self.drop_last and rest < self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        return self.draw_batches() if self.called_by_loader else _ForeignIterator(self)

    def draw_batches(self) -> Iterator[list[int]]:
        """Yield the batches from `position` to the end of the epoch."""
        self.pending_sizes.clear()
        epoch, position = self.epoch, self.position
        indices = islice(self.order, position, None)
        while batch := [*islice(indices, self.batch_size)]:
            if self.drop_last and len(batch) < self.batch_size:
                return
            batch = Indices(batch, mixed(self.seed, epoch, position))
            position += len(batch)
            self.pending_sizes.append(len(batch))
            yield batch

    def __len__(self) -> int:
        full, rest = divmod(len(self.order), self.batch_size)
        return full if self.drop_last or not rest else full + 1

    def state_dict(self) -> dict[str, Any]:
        """The position of the next batch to draw, for torchdata's StatefulDataLoader."""
        epoch, position = self.foreign_position or (self.epoch, self.position)
        return {"epoch": epoch, "position": position, "batch_size": self.batch_size}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at the position that state_dict() returned."""
        self.resize(state["batch_size"])
        self.move_to(state["epoch"], state["position"])


class _ForeignIterator:
    """Batches for a DataLoader that is not a Loader, such as the one that accelerate makes.

    This class sees which batches the loader requests, but not which batches the loader hands out.
    Without workers, a loader requests a batch when it hands that batch out. With workers, it
    requests batches ahead; `prefetched` is their number. accelerate's loader requests one more
    batch ahead, to know which batch is the last. So a batch counts as handed out once
    prefetched + 1 later batches were requested.
    """

    def __init__(self, batches: Batches) -> None:
        self.batches = batches
        # None before the first request, because torch makes two iterators and uses only one
        self.indices: Iterator[list[int]] | None = None
        self.requested = self.produced = 0

    def __iter__(self) -> Iterator[list[int]]:
        return self

    def __next__(self) -> list[int]:
        batches = self.batches
        if self.indices is None:
            self.token, self.epoch = batches.begin_iteration(), batches.epoch
            self.position = batches.position
            self.indices = batches.draw_batches()
        elif batches.token is not self.token:
            raise RuntimeError(SECOND_ITERATION)
        batch = next(self.indices, None)
        self.requested += 1
        if batch is not None:
            self.produced += 1
            self.position += len(batch)
            batches.foreign_position = self.epoch, self.position
        pending, prefetched = batches.pending_sizes, batches.prefetched
        if self.requested > prefetched + 1 and pending:
            batches.count_batch(pending.popleft())
        if batch is not None:
            return batch
        # with workers, this is the last request, so the loader has received the last batch
        if prefetched and pending and self.requested == prefetched + self.produced:
            batches.count_batch(pending.popleft())
        if not pending and not batches.starts_here:  # the order gave fewer samples than its length
            batches.end_epoch()
        raise StopIteration


def _save_order(order: Any) -> dict[str, Any] | None:
    """The state of the order; None if the order cannot load a state."""
    return order.state_dict() if hasattr(order, "load_state_dict") else None
