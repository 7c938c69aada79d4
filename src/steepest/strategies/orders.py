"""Samplers that order the data: shuffled, by a curriculum, or by levels of difficulty."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torch.utils.data import Sampler

from ..checks import choice, number, quietly, saved, slowly, unmoved, whole


class Order(Sampler[int]):
    """A sampler whose order depends only on (seed, epoch) and on the rest of its `state_dict`.

    `set_epoch(epoch)` sets the epoch, as for torch's DistributedSampler; a `Loader` calls it.
    """

    def __init__(self, seed: int) -> None:
        self.seed, self.epoch = whole(type(self).__name__, "seed", seed, 0), 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration, counted from 0."""
        whole(type(self).__name__, "epoch", epoch, 0)
        self.epoch = epoch  # not as an int, because a Loader recognises its own LoaderEpoch object

    def __len__(self) -> int:
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """The seed and the epoch. It does not hold the data."""
        return {"seed": self.seed, "epoch": int(self.epoch)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load what state_dict() returned. Raises ValueError for anything else."""
        self.__dict__.update(saved(type(self).__name__, state, {*self.state_dict()}))


class Shuffled(Order):
    """Yields every index once per epoch, in a new random order. samples: the number of samples."""

    def __init__(self, samples: int, seed: int = 0) -> None:
        super().__init__(seed)
        self.samples = whole("Shuffled", "samples", samples, 1)

    def __iter__(self) -> Iterator[int]:
        yield from np.random.default_rng((self.seed, self.epoch)).permutation(self.samples).tolist()

    def __len__(self) -> int:
        return self.samples


class Curriculum(Order):
    """Mini-batches from the easiest part of the data. This part grows from step to step.

    Hacohen and Weinshall 2019, arXiv:1904.03626, Algorithm 1: step t draws batch_size different
    samples uniformly from the first pace(t) * n of the sorted data. As in the paper, batches are
    drawn independently: a sample may come twice in an epoch, or not at all.

    scores: the difficulty of each sample, shape [n], finite. A low score means easy. `difficulty`
    computes scores from a model's losses.
    pace: a function from the step to a fraction in (0, 1]; see `pacing`. Steps are counted from 0
    over all epochs.
    batch_size: samples per step. If pace(t) * n is smaller, a step draws from the first batch_size
    samples of the sorted data. An epoch has n // batch_size steps. A Loader with another batch size
    gets the same samples in the same order.
    first: which samples are used first: "easy", "hard" (the paper's anti-curriculum) or "random"
    (the paper's control, a random order drawn from the seed).

    Raises ValueError if `scores` is empty or not finite, or if batch_size exceeds n. Iteration
    raises ValueError if `pace` returns a fraction outside (0, 1].
    """

    def __init__(
        self,
        scores: Sequence[float] | Tensor,
        pace: Callable[[int], float],
        batch_size: int,
        *,
        first: str = "easy",
        seed: int = 0,
    ) -> None:
        super().__init__(seed)
        values = torch.as_tensor(scores, dtype=torch.float64).detach().cpu().numpy()
        if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
            raise ValueError(
                f"Curriculum: scores of shape {[*values.shape]} were given, expected one finite "
                "number for each sample"
            )
        if not callable(pace):
            raise TypeError(
                f"Curriculum: pace={pace!r} was given, expected a function of the step, such as "
                "pacing.linear(0.2, 1000)"
            )
        self.batch_size = whole("Curriculum", "batch_size", batch_size, 1)
        if self.batch_size > len(values):
            raise ValueError(
                f"Curriculum: batch_size={batch_size} was given, expected at most {len(values)}, "
                "the number of samples"
            )
        self.pace = pace
        self.first = choice("Curriculum", "first", first, ("easy", "hard", "random"))
        self.scores = -values if first == "hard" else values

    def ranking(self) -> np.ndarray:
        """The indices of all samples, shape [n], in the order in which `pace` adds them."""
        if self.first == "random":
            # three numbers, so that this seed differs from the seeds of the steps, which have two
            return np.random.default_rng((self.seed, 0, 1)).permutation(len(self.scores))
        return np.argsort(self.scores, kind="stable")

    def __iter__(self) -> Iterator[int]:
        steps, ranking = len(self) // self.batch_size, self.ranking()
        for step in range(self.epoch * steps, (self.epoch + 1) * steps):
            fraction = number("Curriculum", f"pace({step})", self.pace(step), "(0, 1]")
            # rounded up, as in the authors' code; minus 1e-9, because 0.07 * 100 is just above 7
            available = max(self.batch_size, math.ceil(fraction * len(ranking) - 1e-9))
            generator = np.random.default_rng((self.seed, step))
            chosen = generator.choice(available, self.batch_size, replace=False)
            yield from ranking[chosen].tolist()

    def __len__(self) -> int:
        return len(self.scores) // self.batch_size * self.batch_size


class Levels(Order):
    """Samples drawn by level of difficulty. Zaremba and Sutskever 2014, arXiv:1410.4615, section 5.

    levels: the level of each sample, a whole number from 0 (easiest), shape [n]; no level may be
    empty. For two kinds of difficulty, such as length and nesting, give each pair (length, nesting)
    a level of its own. The authors sort these pairs by nesting first, then by length.
    strategy: "baseline" draws from the hardest level, "naive" from the current level, "mix" from a
    level drawn uniformly. "combined" draws a sample like "mix" with probability 1/5, and otherwise
    like "naive". All samples of a level are equally likely. An epoch has n samples.

    `level` is the current level, and may be set. The authors' rule, after each evaluation:

        if levels.report(validation, training) and not levels.harder():
            ...  # at the hardest level; the authors multiply the learning rate by 0.8

    Raises ValueError if `levels` is empty, has a negative number, or skips a number.
    """

    STRATEGIES = ("baseline", "naive", "mix", "combined")
    MIXED = 1 / 5  # probability of "mix" in "combined"
    TARGET = 0.95  # validation accuracy above which a level is learned
    BACK = 5  # training accuracy is compared with the one this many evaluations earlier

    def __init__(
        self, levels: Sequence[int] | Tensor, strategy: str = "combined", *, seed: int = 0
    ) -> None:
        super().__init__(seed)
        values = torch.as_tensor(levels).detach().cpu().numpy()
        if values.ndim != 1 or not len(values) or values.dtype.kind not in "iu":
            raise ValueError(
                f"Levels: levels of shape {[*values.shape]} and type {values.dtype} were given, "
                "expected one whole number for each sample"
            )
        if [*np.unique(values)] != [*range(int(values.max()) + 1)]:
            raise ValueError(
                f"Levels: the levels {[*np.unique(values)]} were given, expected 0, 1, 2, ... "
                "without a gap"
            )
        self.strategy = choice("Levels", "strategy", strategy, self.STRATEGIES)
        self._members = [np.flatnonzero(values == k) for k in range(int(values.max()) + 1)]
        self._level = 0
        self._accuracies: list[float] = []

    @property
    def level(self) -> int:
        """The current level."""
        return self._level

    @level.setter
    def level(self, level: int) -> None:
        if whole("Levels", "level", level, 0) >= len(self._members):
            raise ValueError(
                f"Levels: level={level} was given, expected at most {len(self._members) - 1}"
            )
        self._level = int(level)

    def report(self, validation: float, training: float) -> bool:
        """Report an evaluation at the current level. Returns whether the next level is due.

        The next level is due if the validation accuracy is above 0.95, or if the training accuracy
        is below the training accuracy of five evaluations earlier. When the next level is due, the
        accuracies of earlier calls are forgotten. Accuracies are in [0, 1]; a nan never makes a
        level due.
        """
        for name, value in (("validation", validation), ("training", training)):
            if value == value:
                number("Levels", name, value, "[0, 1]")
        before = self._accuracies
        due = validation > self.TARGET or (
            len(before) >= self.BACK and training < before[-self.BACK]
        )
        self._accuracies = [*([] if due else before[1 - self.BACK :]), float(training)]
        return due

    def harder(self) -> bool:
        """Move to the next level and return True. At the hardest level, stay and return False."""
        if self.level + 1 == len(self._members):
            return False
        self.level += 1
        return True

    def __iter__(self) -> Iterator[int]:
        # always three numbers per sample, so that a sample does not depend on earlier samples
        draws = np.random.default_rng((self.seed, self.epoch)).random((len(self), 3)).tolist()
        for mix, which, member in draws:
            level = self.level
            if self.strategy == "baseline":
                level = len(self._members) - 1
            elif self.strategy == "mix" or (self.strategy == "combined" and mix < self.MIXED):
                level = int(which * len(self._members))
            members = self._members[level]
            yield int(members[int(member * len(members))])

    def __len__(self) -> int:
        return sum(map(len, self._members))

    def state_dict(self) -> dict[str, Any]:
        """The seed, the epoch, the level, and the accuracies that `report` still needs."""
        return {**super().state_dict(), "level": self.level, "accuracies": [*self._accuracies]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load what state_dict() returned. Raises ValueError for anything else."""
        new = saved("Levels", state, {*self.state_dict()})
        self.level = new.pop("level")
        self._accuracies = [*new.pop("accuracies")]
        self.__dict__.update(new)


def difficulty(
    model: nn.Module, loss: Callable[[nn.Module, Any], Tensor], data: Any, batch_size: int = 256
) -> Tensor:
    """The loss of each sample under a trained model, shape [n], in the order of the data.

    The result can be the scores of a `Curriculum`. Hacohen and Weinshall 2019, arXiv:1904.03626,
    section 2.1, use a network trained on other data ("transfer") or on the same data without a
    curriculum ("bootstrapping", also called self-taught scores).

    loss(model, batch): a number, the mean over a batch. Here each batch is one sample.
    torch.func.vmap runs many samples together. If vmap does not support the model, the loss or the
    data, the samples run one by one.
    data: as for `Loader`.

    The model is in evaluation mode during the call. Afterwards all its modules have their old mode
    again. Raises ValueError if the loss is not a single number, or if the model changes a buffer
    even in evaluation mode. Raises torch's error if memory runs out.
    """
    from .loading import Loader

    modes = [(module, module.training) for module in model.modules()]
    model.eval()

    @torch.func.vmap
    def sample_losses(sample: Any) -> Tensor:
        return loss(model, tree_map(lambda t: t.unsqueeze(0), sample))

    try:
        with torch.no_grad(), unmoved("difficulty", model):
            try:
                with quietly():
                    losses = [sample_losses(b) for b in Loader(data, batch_size, shuffle=False)]
            except Exception as error:  # of any type; the loop raises the model's own errors again
                slowly("difficulty", error)
                losses = [loss(model, b) for b in Loader(data, 1, shuffle=False)]
    finally:
        for module, mode in modes:
            module.training = mode
    scores = torch.cat([torch.as_tensor(x).reshape(-1) for x in losses])
    samples = len(Loader(data, 1).dataset)  # type: ignore[arg-type]
    if len(scores) != samples:
        raise ValueError(
            f"difficulty: the loss returned {len(scores)} numbers for {samples} samples, expected "
            "one for each sample; return the mean over the batch"
        )
    return scores
