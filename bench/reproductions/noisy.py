"""Gradient noise on deep narrow networks."""

from __future__ import annotations

from itertools import pairwise

import torch
from results import Results, digits
from torch import Tensor, nn

import steepest
from steepest.strategies import GradientNoise

LAYERS, WIDTH, BATCH, CLASSES = 20, 20, 64, 10
LR, CLIP = 0.1, 10.0
STARTS = {"N(0, 0.1^2)": 0.1, "zeros": 0.0, "He": None}
ETAS = (0.0, 0.01, 0.3, 1.0)
LEARNED = 20.0
"""A network with a test accuracy (per cent) above this has learned something; chance is 10."""


class SideBySide(nn.Module):
    """Independent networks, one per seed, evaluated together: a layer is (seeds, in, out)."""

    def __init__(self, seeds: int, deviation: float | None) -> None:
        super().__init__()
        sizes = [64, *[WIDTH] * (LAYERS - 1), CLASSES]
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        generators = [torch.Generator().manual_seed(seed) for seed in range(seeds)]
        for fan, out in pairwise(sizes):
            scale = (2 / fan) ** 0.5 if deviation is None else deviation
            weights = [scale * torch.randn(fan, out, generator=g) for g in generators]
            self.weights.append(torch.stack(weights))
            self.biases.append(torch.zeros(seeds, 1, out))

    def forward(self, x: Tensor) -> Tensor:
        """Scores (seeds, batch, classes) of x (seeds, batch, 64)."""
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            x = torch.baddbmm(bias, x, weight).relu()
        return torch.baddbmm(self.biases[-1], x, self.weights[-1])


def clip(parameters: list[Tensor], limit: float) -> None:
    """Clip the gradient of each network to this norm."""
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
        # the mean over a network's batch, summed over networks: their gradients do not mix
        loss = nn.functional.cross_entropy(scores.flatten(0, 1), labels[rows].flatten())
        (loss * seeds).backward()
        clip(parameters, CLIP)
        optimizer.step()
    x, y = data["test"]
    with torch.no_grad():
        right = model(x.expand(seeds, -1, -1)).argmax(2) == y
    return (100 * right.double().mean(1)).tolist()


def noise_deviation(eta: float, steps: int) -> float:
    """Standard deviation of a weight that only the noise has moved."""
    return LR * sum(eta / (1 + t) ** 0.55 for t in range(steps)) ** 0.5


def noise(seeds: int = 10, steps: int = 1000) -> Results:
    """Annealed gradient noise from poor and good starts, Neelakantan et al. 2015.

    arXiv:1511.06807. 20 layers of width 20, ReLU, plain SGD at lr 0.1, gradients clipped to norm
    10 before the noise is added. Test accuracy in per cent; "learned" is 1 above LEARNED, else 0.
    "walked by eta": training without noise, from a normal start with the standard deviation that
    the noise alone would give the weights.
    """
    ways = {f"{s}, eta {eta:g}": (d, eta) for s, d in STARTS.items() for eta in ETAS}
    walks = {f"walked by eta {eta:g}": (noise_deviation(eta, steps), 0.0) for eta in ETAS[1:]}
    results = Results()
    for way, (deviation, eta) in (ways | walks).items():
        ends = accuracies(seeds, deviation, eta, steps)
        results.add(f"test accuracy: {way}", ends)
        results.add(f"learned: {way}", [float(end > LEARNED) for end in ends])
    noisy = {start: [f"{start}, eta {eta:g}" for eta in ETAS[1:]] for start in STARTS}
    for start, ways in noisy.items():
        results.compare("test accuracy", f"{start}, eta 0", ways)
    poor = [way for start, ways in noisy.items() if start != "He" for way in ways]
    results.compare("test accuracy", "He, eta 0", poor)
    for way, walk in zip(noisy["N(0, 0.1^2)"], walks, strict=True):
        results.compare("test accuracy", walk, [way])
    return results
