"""The final loss of a character LSTM with bfloat16 parameters, compared with float32.

The text is the help topics of Python's pydoc. A seed draws weights and batches, the same for all
four variants. Prints mean and standard deviation over the seeds.
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
from collections.abc import Iterator
from pydoc_data.topics import topics

import torch
from torch import Tensor, nn

import steepest

LENGTH, BATCH, WIDTH, LAST = 24, 16, 48, 20
VARIANTS = {
    "float32": (torch.float32, None),
    "bfloat16, to the nearest": (torch.bfloat16, None),
    "bfloat16, stochastic": (torch.bfloat16, "stochastic"),
    "bfloat16, kahan": (torch.bfloat16, "kahan"),
}


class CharLSTM(nn.Module):
    """Next-character logits (batch, length, characters) from indices (batch, length)."""

    def __init__(self, characters: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(characters, 16)
        self.lstm = nn.LSTM(16, WIDTH, batch_first=True)
        self.head = nn.Linear(WIDTH, characters)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(self.embedding(x))[0])


def text() -> tuple[Tensor, int]:
    """The text as indices of characters, and the number of different characters."""
    joined = "".join(topics[name] for name in sorted(topics))[:200_000]
    alphabet = sorted(set(joined))
    return torch.tensor([alphabet.index(c) for c in joined]), len(alphabet)


def batches(numbers: Tensor, seed: int, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        starts = torch.randint(len(numbers) - LENGTH - 1, (BATCH, 1), generator=generator)
        chunks = numbers[starts + torch.arange(LENGTH + 1)]
        yield chunks[:, :-1], chunks[:, 1:]


def final_loss(
    seed: int, dtype: torch.dtype, rounding: str | None, rule: str, lr: float, steps: int
) -> float:
    """The mean loss of the last steps."""
    numbers, characters = text()
    torch.manual_seed(seed)
    model = CharLSTM(characters).to(torch.bfloat16).to(dtype)  # all variants start the same
    optimizer = steepest.optimizer(rule, model, lr=lr, rounding=rounding, seed=seed)
    losses = []
    for x, y in batches(numbers, seed, steps):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x).float().flatten(0, 1), y.flatten())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return statistics.fmean(losses[-LAST:])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rule", default="adamw")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()
    digest = hashlib.sha256("".join(topics[name] for name in sorted(topics)).encode()).hexdigest()
    print(f"{args.rule}, lr {args.lr:g}, {args.steps} steps, n={args.seeds}, text {digest[:12]}")
    for name, (dtype, rounding) in VARIANTS.items():
        losses = [
            final_loss(seed, dtype, rounding, args.rule, args.lr, args.steps)
            for seed in range(args.seeds)
        ]
        mean, sd = statistics.fmean(losses), statistics.stdev(losses)
        print(f"{name:26}{mean:8.4f} +- {sd:.4f}", flush=True)
