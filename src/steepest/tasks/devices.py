"""`--device`: which devices there are, and tasks whose model and data are on one of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from inspect import signature
from typing import Any

import torch

from steepest.errors import BadCall
from steepest.tasks.task import CPU, Task


def found(name: str) -> torch.device:
    """The device called `name`, such as cpu, cuda, cuda:1 or mps; BadCall if it is not here."""
    counts = {"cpu": 1}
    if torch.accelerator.is_available() and (here := torch.accelerator.current_accelerator()):
        counts[here.type] = torch.accelerator.device_count()
    known = [*counts, *(f"{kind}:{i}" for kind, n in counts.items() if n > 1 for i in range(n))]
    try:
        device = torch.device(name)
    except RuntimeError:
        raise BadCall(
            f"--device {name!r} is no device of torch: expected one of those that torch finds on "
            f"this machine: {', '.join(known)}"
        ) from None
    if (device.index or 0) >= counts.get(device.type, 0):
        raise BadCall(
            f"--device {name}: torch finds no such device on this machine: expected one of "
            f"{', '.join(known)}; a build of torch supports one kind of accelerator"
        )
    return device


def on(task: Task, name: str | None) -> Task:
    """The task with its model and data on the device called `name`; the same task for None.

    Raises BadCall if there is no such device, or if the task takes none.
    """
    if name is None:
        return task
    device, function = found(name), task.build or task.train
    assert function
    if "device" not in signature(function).parameters:
        form = "task(seed, device)" if task.build else "train(make_optimizer, report, seed, device)"
        raise BadCall(
            f"--device {name}: {task.name} takes no device: expected a function {form} that puts "
            f"its model and its batches on `device`; or leave --device out"
        )
    bound = partial(function, device=device)
    return replace(task, build=bound) if task.build else replace(task, train=bound)


def given(function: Callable[..., Any], device: torch.device | None) -> dict[str, torch.device]:
    """`device` as an argument for a function of the user's, where it has such a parameter.

    device: what --device says; None: the parameter's default, or the CPU if it has none.
    """
    parameter = signature(function).parameters.get("device")
    if parameter is None or (device is None and parameter.default is not parameter.empty):
        return {}
    return {"device": device or CPU}


def title(name: str) -> str:
    """The name that the maker of a device gives to it."""
    device = found(name)
    return getattr(torch.get_device_module(device), "get_device_name", str)(device)
