"""Predict the next character: an LSTM on Python's own documentation, or on the user's text."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import torch
from torch import Tensor, nn

from steepest.errors import BadCall
from steepest.tasks.task import CPU, Setup, Task

EVALUATED = 16_384
"""An evaluation reads the first characters of the validation or test data, up to this many."""
LEAST = 20 * EVALUATED
"""A text must have at least this many characters, so that its validation and test data, a twentieth
of the text each, have EVALUATED characters or more."""


@dataclass(frozen=True)
class Text:
    """A text as numbers: the first 90 % for training, then 5 % validation and 5 % test data."""

    splits: dict[str, Tensor]
    characters: int
    """How many different characters there are."""
    sha256: str
    """sha256 of the text in UTF-8."""


def encode(text: str) -> Text:
    """Turn each character into a number: its index in the sorted list of the text's characters."""
    known = {character: i for i, character in enumerate(sorted(set(text)))}
    numbers = torch.tensor([known[character] for character in text])
    ends = (len(text) * 18 // 20, len(text) * 19 // 20)
    train, validation, test = numbers.tensor_split(ends)
    splits = {"train": train, "validation": validation, "test": test}
    return Text(splits, len(known), hashlib.sha256(text.encode()).hexdigest())


@lru_cache(maxsize=1)
def topics() -> Text:
    """The pages of documentation that `help()` shows, sorted by name and joined."""
    from pydoc_data.topics import topics as pages  # 0.7 MB

    return encode("\n".join(pages[name] for name in sorted(pages)))


class Characters(nn.Module):
    """Embedding, one LSTM layer, a linear layer: [batch, length] -> [batch, length, characters].

    At each position, the output holds a score for every character that may come next.
    """

    def __init__(self, characters: int, width: int, hidden: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(characters, width)
        self.lstm = nn.LSTM(width, hidden, batch_first=True)
        self.head = nn.Linear(hidden, characters)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(self.embedding(x))[0])


@dataclass(frozen=True)
class Size:
    """Sizes of the model and of its batches.

    width: width of the embedding. hidden: width of the LSTM. length: number of characters in a
    training window. batch: number of windows in a batch.
    """

    width: int
    hidden: int
    length: int
    batch: int


def _setup(read: Callable[[], Text], size: Size, seed: int, device: torch.device = CPU) -> Setup:
    torch.manual_seed(seed)
    text = read()
    splits = {name: numbers.to(device) for name, numbers in text.splits.items()}
    train = splits["train"]
    window = torch.arange(size.length + 1)  # on the CPU, like all indices

    def batches() -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        while True:
            starts = torch.randint(len(train) - size.length, (size.batch, 1), generator=generator)
            yield train[starts + window]

    def loss(model: nn.Module, rows: Tensor) -> Tensor:
        scores = model(rows[:, :-1])
        return nn.functional.cross_entropy(scores.flatten(0, 1), rows[:, 1:].flatten())

    @torch.no_grad()
    def evaluate(model: nn.Module, split: str) -> float:
        characters = splits[split]
        count = min(EVALUATED, len(characters) - 1) // size.length
        rows = characters[torch.arange(count)[:, None] * size.length + window]
        return loss(model, rows).item() / math.log(2)

    model = Characters(text.characters, size.width, size.hidden).to(device)
    return Setup(model, batches(), loss, evaluate)


def _task(name: str, read: Callable[[], Text], size: Size, steps: int, target: float) -> Task:
    return Task(
        name=name,
        metric="bits per character",
        maximize=False,
        worst=8.0,  # a byte for each character
        target=target,
        steps=steps,
        every=max(1, steps // 12),
        test_size=EVALUATED,
        proportion=False,
        build=partial(_setup, read, size),
        data_hash=lambda: read().sha256,
    )


TOPICS = _task("text", topics, Size(width=16, hidden=64, length=32, batch=16), 200, 4.0)


def shakespeare(path: Path) -> Task:
    """Make a task: predict the next character of the published input.txt.

    path: the file, or its folder.
    """
    file = path / "input.txt" if path.is_dir() else path
    if not file.is_file():
        raise BadCall(f"--data {path}: there is no input.txt; add the published text")
    try:
        text = file.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadCall(f"cannot read '{file}' ({error}): expected a text in UTF-8") from error
    if len(text) < LEAST:
        raise BadCall(f"'{file}' has {len(text):,} characters: expected {LEAST:,} or more")
    encoded = encode(text)
    size = Size(width=32, hidden=128, length=64, batch=32)
    return _task("tinyshakespeare", lambda: encoded, size, 600, 2.6)
