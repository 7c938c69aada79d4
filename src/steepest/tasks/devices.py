"""`--device`: finds the devices of this machine, and puts a task's model and data on one."""

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
    """Return the device `name`, such as cuda or cuda:1. Raises BadCall if this machine has none."""
    counts = {"cpu": 1}
    if torch.accelerator.is_available() and (here := torch.accelerator.current_accelerator()):
        counts[here.type] = torch.accelerator.device_count()
    known = [*counts, *(f"{kind}:{i}" for kind, n in counts.items() if n > 1 for i in range(n))]
    try:
        device = torch.device(name)
    except RuntimeError:
        raise BadCall(
            f"--device {name!r} is no device of torch: expected one of {', '.join(known)}, which "
            f"torch finds on this machine"
        ) from None
    if (device.index or 0) >= counts.get(device.type, 0):
        raise BadCall(
            f"--device {name}: torch finds no such device on this machine: expected one of "
            f"{', '.join(known)}; a build of torch supports one kind of accelerator"
        )
    return device


def on(task: Task, name: str | None) -> Task:
    """Return the task with its model and data on the device `name`; for None, the same task.

    Raises BadCall if there is no such device, or if the task's function takes no device.
    """
    if name is None:
        return task
    device, function = found(name), task.build or task.train
    assert function
    if "device" not in signature(function).parameters:
        form = "task(seed, device)" if task.build else "train(make_optimizer, report, seed, device)"
        raise BadCall(
            f"--device {name}: {task.name} takes no device: define {form} and put the model and "
            f"the batches on `device`, or leave --device out"
        )
    bound = partial(function, device=device)
    return replace(task, build=bound) if task.build else replace(task, train=bound)


def given(function: Callable[..., Any], device: torch.device | None) -> dict[str, torch.device]:
    """Return the argument `device` for a user's function; {} if it has no such parameter.

    device: the value of --device. If it is None, the function gets the parameter's default, or the
    CPU if the parameter has no default.
    """
    parameter = signature(function).parameters.get("device")
    if parameter is None or (device is None and parameter.default is not parameter.empty):
        return {}
    return {"device": device or CPU}


def title(name: str) -> str:
    """The product name of a device; its name in torch if it has no product name."""
    device = found(name)
    return getattr(torch.get_device_module(device), "get_device_name", str)(device)
