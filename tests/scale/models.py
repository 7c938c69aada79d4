"""The models, the optimizers and the loops that the cases share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

import steepest

WORLD = 2
OPTIMIZERS: dict[str, tuple[str, dict[str, Any]]] = {
    "adabelief": ("AdaBelief", {"lr": 1e-2}),
    "adabound": ("AdaBound", {"lr": 1e-2, "final_lr": 1.0}),  # its lower bound is felt at once
    "adagrad": ("Adagrad", {"lr": 1e-2, "initial_accumulator_value": 0.1}),
    "adamw": ("AdamW", {"lr": 1e-2, "weight_decay": 0.1}),
    "momentum": ("SGD", {"lr": 1e-2, "momentum": 0.9}),
    "nadam": ("NAdam", {"lr": 1e-2}),
    "radam": ("RAdam", {"lr": 1e-2}),
    "rmsprop": ("RMSprop", {"lr": 1e-2, "centered": True, "momentum": 0.5}),
    "sgd": ("SGD", {"lr": 1e-2}),
}
BACKENDS = (None, "foreach", "eager")
SHAPES = ((6, 5), (5,), (3, 2, 3), (1, 4), (1,), (130, 33))
"""Halves, remainders, and two whose only row leaves the second process an empty shard."""


def make(name: str, params: Any, backend: str | None = None, **more: Any) -> Any:
    """One of OPTIMIZERS."""
    kind, options = OPTIMIZERS[name]
    return getattr(steepest, kind)(params, backend=backend, **{**options, **more})


class Dots(nn.Module):
    """A model whose gradients are whatever it is called with, to the bit."""

    def __init__(self, shapes: tuple[tuple[int, ...], ...] = SHAPES) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(3)
        self.weights = nn.ParameterList([torch.randn(s, generator=random) for s in shapes])

    def forward(self, gradients: list[Tensor]) -> Tensor:
        pairs = zip(self.weights, gradients, strict=True)
        return torch.stack([(p * g).sum() for p, g in pairs]).sum()


def gradients(step: int, rank: int, shapes: tuple[tuple[int, ...], ...] = SHAPES) -> list[Tensor]:
    """Small whole numbers, whose mean over two processes is exact in float32."""
    random = torch.Generator().manual_seed(100 * step + rank)
    return [torch.randint(-9, 10, s, generator=random).float() for s in shapes]


def mean_gradients(step: int) -> list[Tensor]:
    """What the processes' gradients of a step average to."""
    each = [gradients(step, rank) for rank in range(WORLD)]
    return [sum(gs[1:], start=gs[0]) / WORLD for gs in zip(*each, strict=True)]


def dots_steps(model: nn.Module, optimizer: Any, steps: range, whole: bool = False) -> None:
    """Steps on a Dots, with the mean gradients or, in one of the processes, with its own."""
    for step in steps:
        optimizer.zero_grad()
        model(mean_gradients(step) if whole else gradients(step, dist.get_rank())).backward()
        optimizer.step()


def network(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """A small network; rows 5, 3 and 1 over two processes leave a remainder or nothing."""
    torch.manual_seed(0)
    hidden = nn.Linear(6, 5), nn.LayerNorm(5), nn.Tanh(), nn.Linear(5, 3), nn.Tanh()
    return nn.Sequential(*hidden, nn.Linear(3, 1)).to(dtype)


def batch(step: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Eight inputs and targets."""
    random = torch.Generator().manual_seed(step)
    x = torch.randn(8, 6, generator=random, dtype=torch.float64)
    return x.to(dtype), (x[:, :1] * x[:, 1:2] + x[:, 2:3]).to(dtype)


def wrap(kind: str, model: nn.Module) -> nn.Module:
    """As a user wraps a model: DDP around it, or each layer and the whole sharded."""
    if kind == "ddp":
        return DistributedDataParallel(model)
    for layer in model.children():
        if isinstance(layer, nn.Linear):
            fully_shard(layer)
    return fully_shard(model)


def train(
    model: nn.Module,
    optimizer: Any,
    steps: range,
    *,
    accumulate: int = 1,
    clip: float | None = None,
    share: slice = slice(None),
) -> None:
    """Ordinary steps: `accumulate` batches each, clipped, on a share of every batch."""
    dtype = next(model.parameters()).dtype
    for step in steps:
        optimizer.zero_grad()
        for k in range(accumulate):
            x, y = (t[share] for t in batch(10 * step + k, dtype))
            with synchronised(model, k == accumulate - 1):
                ((model(x) - y).square().mean() / accumulate).backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()


def synchronised(model: nn.Module, now: bool) -> Any:
    """The gradients are exchanged at the last of the accumulated batches only."""
    if isinstance(model, DistributedDataParallel):
        return nullcontext() if now else model.no_sync()
    if hasattr(model, "set_requires_gradient_sync"):
        model.set_requires_gradient_sync(now)  # type: ignore[operator]
    return nullcontext()


def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor, gathered where it is sharded."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach()


def states(model: nn.Module, optimizer: Any) -> Iterator[tuple[str, Tensor]]:
    """Every parameter and every state, whole, by name."""
    for name, p in model.named_parameters():
        name = name.removeprefix("module.")
        yield name, whole(p)
        for key, value in sorted(optimizer.state.get(p, {}).items()):
            yield f"{name}.{key}", whole(value)


def assert_same(left: Any, right: Any) -> None:
    """Every parameter and state of two (model, optimizer) equal, to the bit."""
    one, other = dict(states(*left)), dict(states(*right))
    assert one.keys() == other.keys(), (one.keys(), other.keys())
    for name, value in one.items():
        assert torch.equal(value, other[name]), f"{name}: {(value - other[name]).abs().max()}"


def assert_close(left: nn.Module, right: nn.Module, limit: float) -> None:
    """Every parameter of two models within an absolute limit."""
    for (name, p), q in zip(left.named_parameters(), right.parameters(), strict=True):
        deviation = float((whole(p) - whole(q)).abs().max())
        assert deviation <= limit, f"{name}: {deviation} > {limit}"


def set_gradients(model: nn.Module, given: list[Tensor]) -> None:
    """Whole gradients, placed like their parameters."""
    for p, g in zip(model.parameters(), given, strict=True):
        if isinstance(p, DTensor):
            p.grad = distribute_tensor(g, p.device_mesh, p.placements)
        else:
            p.grad = g.clone()
