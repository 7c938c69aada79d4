"""Classify passages by topic from a bag of words. Gradients are sparse; most words are rare."""

from __future__ import annotations

import hashlib
import math
import re
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn

from steepest.tasks.task import CPU, Make, Reporter, Task, evaluating

LENGTH, BATCH = 12, 32
"""The number of words in a passage, and the number of passages in a batch."""
LEAST = 640
"""Topics with fewer words are left out, because a tenth of a topic must make a few passages."""
EVALUATED = 320
"""How many passages the validation data have. The test data have as many."""
EVERY = 25


@dataclass(frozen=True)
class Passages:
    """Passages of several topics. Each word is stored as a number."""

    splits: dict[str, tuple[Tensor, Tensor]]
    """Split -> (words [n, LENGTH], topics [n])."""
    words: int
    """The size of the vocabulary. Word 0 stands for all words that are not in the training data."""
    topics: int
    """How many topics there are."""
    sha256: str
    """sha256 of the text."""


@lru_cache(maxsize=1)
def documentation() -> Passages:
    """Python's own documentation. Each topic is 80 % training, 10 % validation and 10 % test data.

    A paragraph that is in several topics is used only in the first of these topics. The order of
    the paragraphs of a topic is random, but fixed.
    """
    from pydoc_data.topics import topics  # 0.7 MB

    random, seen = np.random.default_rng(0), set[str]()
    texts: list[list[str]] = []
    for name in sorted(topics):
        paragraphs = (
            " ".join(re.findall("[a-z_]+", x.lower())) for x in topics[name].split("\n\n")
        )
        new: list[str] = [x for x in dict.fromkeys(paragraphs) if x not in seen]
        seen.update(new)
        words = [w for i in random.permutation(len(new)) for w in new[i].split()]
        if len(words) >= LEAST:
            texts.append(words)
    known = sorted({w for words in texts for w in words[: len(words) * 8 // 10]})
    number = {w: i for i, w in enumerate(known, start=1)}
    rows: dict[str, list[Tensor]] = {"train": [], "validation": [], "test": []}
    for words in texts:
        ends = (len(words) * 8 // 10, len(words) * 9 // 10)
        parts = torch.tensor([number.get(w, 0) for w in words]).tensor_split(ends)
        for (split, row), part in zip(rows.items(), parts, strict=True):
            # only training passages overlap
            row.append(part.unfold(0, LENGTH, LENGTH // 2 if split == "train" else LENGTH))
    splits = {}
    for split, row in rows.items():
        passages = torch.cat(row)
        labels = torch.arange(len(row)).repeat_interleave(torch.tensor([len(r) for r in row]))
        count = None if split == "train" else EVALUATED
        chosen = torch.from_numpy(random.permutation(len(passages))[:count])
        splits[split] = (passages[chosen], labels[chosen])
    digest = hashlib.sha256("\n".join(map(" ".join, texts)).encode()).hexdigest()
    return Passages(splits, len(known) + 1, len(texts), digest)


def _model(data: Passages) -> nn.Module:
    """Multinomial logistic regression on a bag of words: [batch, LENGTH] -> [batch, topics]."""
    model = nn.EmbeddingBag(data.words, data.topics, mode="sum", sparse=True)
    nn.init.normal_(model.weight, std=0.01)
    return model


@torch.no_grad()
def evaluate(model: nn.Module, split: str) -> float:
    """The share of passages whose topic is predicted correctly; nan if a score is not finite."""
    device = next(model.parameters()).device
    words, topics = (each.to(device) for each in documentation().splits[split])
    scores = model(words)
    right = (scores.argmax(1) == topics).float().mean().item()
    return right if bool(scores.isfinite().all()) else math.nan


class Stepper:
    """Steps an optimizer on sparse gradients, or on dense gradients if it refuses sparse gradients.

    The first step tries sparse gradients. If the optimizer raises an error, the parameters and
    gradients are restored, the optimizer's state is cleared, and the step is repeated on dense
    gradients. All later steps use the kind of gradients that worked.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.sparse: bool | None = None  # not known before the first step
        self.params = [p for group in optimizer.param_groups for p in group["params"]]

    def step(self) -> None:
        if self.sparse is None:
            before = [p.detach().clone() for p in self.params]
            grads = [p.grad.clone() for p in self.params]
            try:
                self.optimizer.step()
                self.sparse = True
                return
            except Exception:  # each package has its own error; an unrelated error recurs below
                self.sparse = False
                self.optimizer.state.clear()
                with torch.no_grad():
                    for p, old, grad in zip(self.params, before, grads, strict=True):
                        p.copy_(old)
                        p.grad = grad
        if not self.sparse:
            for p in self.params:
                p.grad = p.grad.to_dense()
        self.optimizer.step()


def train(
    make_optimizer: Make, report: Reporter, seed: int, steps: int, device: torch.device = CPU
) -> None:
    """The training loop. It uses sparse gradients if the optimizer accepts them."""
    torch.manual_seed(seed)
    data = documentation()
    words, topics = (each.to(device) for each in data.splits["train"])
    model = _model(data).to(device)
    stepper = Stepper(make_optimizer(model))
    generator = torch.Generator().manual_seed(seed)
    for step in range(1, steps + 1):
        rows = torch.randint(len(words), (BATCH,), generator=generator)
        model.zero_grad()
        loss = nn.functional.cross_entropy(model(words[rows]), topics[rows])
        if not math.isfinite(loss.item()):
            raise FloatingPointError(f"training loss is {loss.item()} at step {step}")
        loss.backward()
        stepper.step()
        if step % EVERY == 0 or step == steps:
            splits = ("validation", "test") if step == steps else ("validation",)
            with evaluating(stepper.optimizer):
                metrics = {split: evaluate(model, split) for split in splits}
            if step == steps:
                metrics["sparse_gradients"] = float(bool(stepper.sparse))
            report(step, **metrics)


BAG = Task(
    name="bag-of-words",
    metric="accuracy",
    maximize=True,
    worst=46 / EVALUATED,  # the largest topic's share of these passages
    target=0.5,
    steps=300,
    every=EVERY,
    test_size=EVALUATED,
    proportion=True,
    train=train,
    data_hash=lambda: documentation().sha256,
)
