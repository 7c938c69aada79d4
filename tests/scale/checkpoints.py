"""Checkpoints of torch.distributed.checkpoint, saved by two processes or one, loaded by others."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)

from tests.scale.models import (
    OPTIMIZERS,
    Dots,
    dots_steps,
    make,
    mean_gradients,
    set_gradients,
    states,
    wrap,
)

STATEFUL = [name for name in OPTIMIZERS if name != "sgd"]
"""torch cannot spread a whole state_dict without any state, of its own SGD either."""
KINDS = ("named", "flattened")
OPTIONS = {
    kind: StateDictOptions(flatten_optimizer_state_dict=kind == "flattened") for kind in KINDS
}
WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)
BEFORE, AFTER = range(4), range(4, 8)
"""The steps before the checkpoint is written, and those after it."""
DECAYED = 3e-3
"""The learning rate by then: AdaBound still needs the one that it began with."""


def save(model: nn.Module, optimizer: Any, kind: str, folder: Path) -> None:
    """Both state_dicts into a folder, by all processes together."""
    with_optimizer = get_state_dict(model, optimizer, options=OPTIONS[kind])
    saved = dict(zip(("model", "optim"), with_optimizer, strict=True))
    dcp.save(saved, checkpoint_id=folder, no_dist=not dist.is_initialized())


def load(model: nn.Module, optimizer: Any, kind: str, folder: Path) -> None:
    """Take over what `save` wrote, in whatever number of processes."""
    with_optimizer = get_state_dict(model, optimizer, options=OPTIONS[kind])
    found = dict(zip(("model", "optim"), with_optimizer, strict=True))
    dcp.load(found, checkpoint_id=folder, no_dist=not dist.is_initialized())
    set_state_dict(
        model, optimizer, model_state_dict=found["model"], optim_state_dict=found["optim"],
        options=OPTIONS[kind],
    )  # fmt: skip


def put(model: nn.Module, optimizer: Any, found: tuple[Any, Any]) -> None:
    """Take over whole state_dicts that rank 0 has."""
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=dist.is_initialized())
    # set_state_dict takes an empty one, as the other ranks have, for nothing to load
    set_model_state_dict(model, found[0], options=options)
    set_optimizer_state_dict(model, optimizer, found[1], options=options)


def other() -> Dots:
    """A model of the same shapes that has not been trained."""
    model = Dots()
    for p in model.parameters():
        nn.init.constant_(p, 0.25)
    return model


def one_saves(name: str, kind: str, folder: Path) -> None:
    """In one process: a checkpoint after four steps, and what four more make of it."""
    model = Dots()
    optimizer = make(name, model.parameters())
    dots_steps(model, optimizer, BEFORE, whole=True)
    optimizer.param_groups[0]["lr"] = DECAYED
    save(model, optimizer, kind, folder / f"one-{name}-{kind}")
    if kind == "named":
        torch.save(get_state_dict(model, optimizer, options=WHOLE), folder / f"one-{name}.full")
    dots_steps(model, optimizer, AFTER, whole=True)
    torch.save(dict(states(model, optimizer)), folder / f"one-{name}-{kind}.pt")


def two_save(name: str, kind: str, folder: Path) -> None:
    """In two processes: the same; rank 0 keeps what came out."""
    model = wrap("fsdp", Dots())
    optimizer = make(name, model.parameters())
    dots_steps(model, optimizer, BEFORE)
    optimizer.param_groups[0]["lr"] = DECAYED
    save(model, optimizer, kind, folder / f"two-{name}-{kind}")
    if kind == "named":
        full = get_state_dict(model, optimizer, options=WHOLE)
        if dist.get_rank() == 0:
            torch.save(full, folder / f"two-{name}.full")
    dots_steps(model, optimizer, AFTER)
    after = dict(states(model, optimizer))
    if dist.get_rank() == 0:
        torch.save(after, folder / f"two-{name}-{kind}.pt")


def assert_equal(model: nn.Module, optimizer: Any, path: Path) -> None:
    """Every parameter and state as in the file, to the bit."""
    expected = torch.load(path)
    found = dict(states(model, optimizer))
    assert found.keys() == expected.keys(), (sorted(found), sorted(expected))
    for name, value in expected.items():
        assert torch.equal(found[name], value), f"{name}: {(found[name] - value).abs().max()}"


def two_load(name: str, kind: str, folder: Path) -> None:
    """What one process saved, two go on with."""
    model = wrap("fsdp", other())
    optimizer = make(name, model.parameters(), lr=0.5)
    load(model, optimizer, kind, folder / f"one-{name}-{kind}")
    dots_steps(model, optimizer, AFTER)
    assert_equal(model, optimizer, folder / f"one-{name}-{kind}.pt")


def one_loads(name: str, kind: str, folder: Path) -> None:
    """What two processes saved, one goes on with."""
    model = other()
    optimizer = make(name, model.parameters(), lr=0.5)
    load(model, optimizer, kind, folder / f"two-{name}-{kind}")
    dots_steps(model, optimizer, AFTER, whole=True)
    assert_equal(model, optimizer, folder / f"two-{name}-{kind}.pt")


def one_takes_whole(name: str, folder: Path) -> None:
    """The whole state_dict that two processes have gathered, in one."""
    model = other()
    optimizer = make(name, model.parameters(), lr=0.5)
    put(model, optimizer, torch.load(folder / f"two-{name}.full"))
    dots_steps(model, optimizer, AFTER, whole=True)
    assert_equal(model, optimizer, folder / f"two-{name}-named.pt")


def two_take_whole(name: str, folder: Path) -> None:
    """The whole state_dict of one process, read by rank 0 and sent out to the shards."""
    model = wrap("fsdp", other())
    optimizer = make(name, model.parameters(), lr=0.5)
    put(
        model,
        optimizer,
        torch.load(folder / f"one-{name}.full") if not dist.get_rank() else ({}, {}),
    )
    dots_steps(model, optimizer, AFTER)
    assert_equal(model, optimizer, folder / f"one-{name}-named.pt")


CASES: dict[str, Any] = {}
for name in OPTIMIZERS:
    for kind in KINDS:
        CASES[f"dcp-two-save-{name}-{kind}"] = partial(two_save, name, kind)
        CASES[f"dcp-one-to-two-{name}-{kind}"] = partial(two_load, name, kind)
    if name in STATEFUL:
        CASES[f"dcp-whole-to-two-{name}"] = partial(two_take_whole, name)


def while_stepping(folder: Path) -> None:
    """A checkpoint written in the background holds what was true when it was asked for."""
    model = wrap("fsdp", Dots())
    optimizer = make("adamw", model.parameters())
    dots_steps(model, optimizer, BEFORE)
    before = {key: value.clone() for key, value in states(model, optimizer)}
    saved = dict(zip(("model", "optim"), get_state_dict(model, optimizer), strict=True))
    writing = dcp.async_save(
        saved, checkpoint_id=folder / "background", process_group=dist.new_group()
    )
    for step in AFTER:
        set_gradients(model, mean_gradients(step))
        optimizer.step()
    writing.result()
    load(model, optimizer, "named", folder / "background")
    for key, value in states(model, optimizer):
        assert torch.equal(value, before[key]), key


CASES["dcp-in-the-background"] = while_stepping
