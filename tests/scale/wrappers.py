"""Optimizers around the optimizer: ZeroRedundancyOptimizer and PostLocalSGDOptimizer."""

from __future__ import annotations

import copy
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager
from torch.optim.lr_scheduler import StepLR

import steepest
from tests.scale.models import OPTIMIZERS, Dots, assert_close, dots_steps, wrap

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "`torch.jit.* is deprecated", DeprecationWarning)
    from torch.distributed.optim import PostLocalSGDOptimizer, ZeroRedundancyOptimizer


def partitioned(name: str, as_view: bool, _: Path) -> None:
    """States partitioned by parameters, gathered, loaded into a new one: all equal to the bit."""
    called, options = OPTIMIZERS[name]
    kind = getattr(steepest, called)

    def divide(model: Any, **more: Any) -> Any:
        return ZeroRedundancyOptimizer(model.parameters(), optimizer_class=kind, **options, **more)

    one, many = Dots(), wrap("ddp", Dots())
    alone = kind(one.parameters(), **options)
    ours = divide(many, parameters_as_bucket_view=as_view)
    schedules = [StepLR(optimizer, 2, 0.5) for optimizer in (alone, ours)]
    for step in range(4):
        dots_steps(one, alone, range(step, step + 1), whole=True)
        dots_steps(many, ours, range(step, step + 1))
        for schedule in schedules:
            schedule.step()
    assert_close(one, many, 0.0)
    ours.consolidate_state_dict(to=0)
    saved = [ours.state_dict() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(saved)
    for k, state in alone.state_dict()["state"].items():
        assert saved[0]["state"][k].keys() == state.keys()
        for key, value in state.items():
            assert torch.equal(saved[0]["state"][k][key], value), key
    again = wrap("ddp", Dots())
    again.load_state_dict(many.state_dict())
    resumed = divide(again)
    resumed.load_state_dict(saved[0])
    dots_steps(one, alone, range(4, 6), whole=True)
    dots_steps(again, resumed, range(4, 6))
    assert_close(one, again, 0.0)


def averaged(name: str, _: Path) -> None:
    """Local steps and an average of the models after every second one, as with torch's class."""
    called, options = OPTIMIZERS[name]
    models = []
    for module in (steepest, torch.optim):
        model = Dots()
        inner = getattr(module, called)(model.parameters(), **options)
        ours = PostLocalSGDOptimizer(inner, PeriodicModelAverager(period=2, warmup_steps=0))
        dots_steps(model, ours, range(4))
        ours.load_state_dict(copy.deepcopy(ours.state_dict()))
        dots_steps(model, ours, range(4, 7))
        models.append(model)
    assert_close(*models, limit=1e-6)


CASES: dict[str, Any] = {}
for name, (called, _) in OPTIMIZERS.items():
    CASES[f"zero-{name}"] = partial(partitioned, name, False)
    CASES[f"zero-{name}-views"] = partial(partitioned, name, True)
    if hasattr(torch.optim, called):
        CASES[f"post-local-{name}"] = partial(averaged, name)
