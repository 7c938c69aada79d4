"""DDP and FSDP2 over two processes against one process on the whole batch."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from tests.scale.models import (
    BACKENDS,
    OPTIMIZERS,
    Dots,
    assert_close,
    assert_same,
    dots_steps,
    gradients,
    make,
    mean_gradients,
    network,
    states,
    train,
    wrap,
)

LIMIT = 1e-5
"""On a parameter of a network after eight steps of 1e-2; test_scale.py has the reasons."""
WAYS = {"plain": {}, "clipped": {"clip": 0.3}, "accumulated": {"accumulate": 2, "clip": 0.3}}


def exact(kind: str, name: str, backend: str | None, _: Path) -> None:
    """Equal to the bit, states and parameters, where the mean gradients are exact."""
    one, many = Dots(), wrap(kind, Dots())
    alone, ours = make(name, one.parameters(), backend), make(name, many.parameters(), backend)
    dots_steps(one, alone, range(8), whole=True)
    dots_steps(many, ours, range(8))
    assert_same((one, alone), (many, ours))


def trained(kind: str, name: str, way: str, _: Path) -> None:
    """A network: within the rounding of another order of summation."""
    one, many = network(), wrap(kind, network())
    alone, ours = make(name, one.parameters()), make(name, many.parameters())
    train(one, alone, range(8), **WAYS[way])
    train(
        many, ours, range(8), **WAYS[way], share=slice(dist.get_rank(), None, dist.get_world_size())
    )
    assert_close(one, many, LIMIT)
    if kind == "ddp":
        assert_replicas_are_equal(many, ours)


def assert_replicas_are_equal(model: torch.nn.Module, optimizer: Any) -> None:
    """Both processes hold the same bits, of parameters and of states."""
    for name, value in states(model, optimizer):
        first = value.clone()
        dist.broadcast(first, src=0)
        assert torch.equal(value, first), name


def options(name: str, _: Path) -> None:
    """Gradients that are views of DDP's buckets, new ones or the same memory at every step."""
    for given in ({"gradient_as_bucket_view": True}, {"static_graph": True}):
        one, many = Dots(), DistributedDataParallel(Dots(), **given)
        alone, ours = make(name, one.parameters()), make(name, many.parameters())
        dots_steps(one, alone, range(3), whole=True)
        dots_steps(many, ours, range(3))
        for step in range(3, 5):
            alone.zero_grad(set_to_none=False)
            ours.zero_grad(set_to_none=False)
            one(mean_gradients(step)).backward()
            many(gradients(step, dist.get_rank())).backward()
            alone.step()
            ours.step()
        assert_same((one, alone), (many, ours))


CASES: dict[str, Any] = {}
for name in OPTIMIZERS:
    for kind in ("ddp", "fsdp"):
        for backend in BACKENDS:
            case = partial(exact, kind, name, backend)
            CASES[f"{kind}-exact-{name}-{backend or 'default'}"] = case
        for way in WAYS:
            CASES[f"{kind}-trained-{name}-{way}"] = partial(trained, kind, name, way)
    CASES[f"ddp-options-{name}"] = partial(options, name)
