"""Gradient noise on deep narrow networks."""

from __future__ import annotations

from itertools import pairwise

import torch
from found import Found, digits
from torch import Tensor, nn

import steepest
from steepest.strategies import GradientNoise

LAYERS, WIDTH, BATCH, CLASSES = 20, 20, 64, 10
LR, CLIP = 0.1, 10.0
STARTS = {"N(0, 0.1^2)": 0.1, "zeros": 0.0, "He": None}
ETAS = (0.0, 0.01, 0.3, 1.0)
LEARNED = 20.0
"""Per cent of test images beyond which a network has learned at all; chance is 10."""


class SideBySide(nn.Module):
    """Networks that share nothing, one per seed: a layer is one tensor (seeds, in, out)."""

    def __init__(self, seeds: int, deviation: float | None) -> None:
        super().__init__()
        sizes = [64, *[WIDTH] * (LAYERS - 1), CLASSES]
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        generators = [torch.Generator().manual_seed(seed) for seed in range(seeds)]
        for fan, out in pairwise(sizes):
            scale = (2 / fan) ** 0.5 if deviation is None else deviation
            drawn = [scale * torch.randn(fan, out, generator=g) for g in generators]
            self.weights.append(torch.stack(drawn))
            self.biases.append(torch.zeros(seeds, 1, out))

    def forward(self, x: Tensor) -> Tensor:
        """Scores (seeds, batch, classes) of x (seeds, batch, 64)."""
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            x = torch.baddbmm(bias, x, weight).relu()
        return torch.baddbmm(self.biases[-1], x, self.weights[-1])


def clip(parameters: list[Tensor], limit: float) -> None:
    """Clip the gradient of each network by its norm."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norms = torch.stack([g.flatten(1).norm(dim=1) for g in gradients]).norm(dim=0)
    for g in gradients:
        g.mul_((limit / norms).clamp(max=1)[:, None, None].nan_to_num(1.0))


def accuracies(seeds: int, deviation: float | None, eta: float, steps: int) -> list[float]:
    """Test accuracy in per cent of one network per seed, after plain SGD."""
    data = digits(0, 1200)
    images, labels = data["train"]
    model = SideBySide(seeds, deviation)
    parameters = [*model.parameters()]
    optimizer = steepest.SGD(parameters, lr=LR)
    GradientNoise(optimizer, eta)
    generators = [torch.Generator().manual_seed(seed) for seed in range(seeds)]
    for _ in range(steps):
        rows = torch.stack([torch.randint(len(labels), (BATCH,), generator=g) for g in generators])
        optimizer.zero_grad()
        scores = model(images[rows])
        # the mean over a network's batch, the sum over networks: each has its own gradient
        loss = nn.functional.cross_entropy(scores.flatten(0, 1), labels[rows].flatten())
        (loss * seeds).backward()
        clip(parameters, CLIP)
        optimizer.step()
    x, y = data["test"]
    with torch.no_grad():
        right = model(x.expand(seeds, -1, -1)).argmax(2) == y
    return (100 * right.double().mean(1)).tolist()


def walked(eta: float, steps: int) -> float:
    """Standard deviation of a weight that nothing but the noise has moved."""
    return LR * sum(eta / (1 + t) ** 0.55 for t in range(steps)) ** 0.5


def noise(seeds: int = 10, steps: int = 1000) -> Found:
    """Annealed gradient noise from poor and good starts, Neelakantan et al. 2015.

    arXiv:1511.06807. 20 layers of width 20, ReLU, plain SGD at lr 0.1, gradients clipped to norm
    10 before the noise. Test accuracy in per cent; "learned": 1 beyond LEARNED, else 0. "walked by
    eta": without noise, from a normal start as wide as that noise alone would make the weights.
    """
    ways = {f"{s}, eta {eta:g}": (d, eta) for s, d in STARTS.items() for eta in ETAS}
    walks = {f"walked by eta {eta:g}": (walked(eta, steps), 0.0) for eta in ETAS[1:]}
    found = Found()
    for way, (deviation, eta) in (ways | walks).items():
        ends = accuracies(seeds, deviation, eta, steps)
        found.add(f"test accuracy: {way}", ends)
        found.add(f"learned: {way}", [float(end > LEARNED) for end in ends])
    noisy = {start: [f"{start}, eta {eta:g}" for eta in ETAS[1:]] for start in STARTS}
    for start, ways in noisy.items():
        found.compare("test accuracy", f"{start}, eta 0", ways)
    poor = [way for start, ways in noisy.items() if start != "He" for way in ways]
    found.compare("test accuracy", "He, eta 0", poor)
    for way, walk in zip(noisy["N(0, 0.1^2)"], walks, strict=True):
        found.compare("test accuracy", walk, [way])
    return found
