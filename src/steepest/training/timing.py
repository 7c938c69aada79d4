"""Waiting for an accelerator before a clock is read."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import torch


def synchronizer(parameters: Iterable[torch.Tensor]) -> Callable[[], None]:
    """Return a function that waits until the parameters' accelerator has done its work.

    An accelerator works while the program goes on, so a clock that does not wait stops too early.
    On the CPU the function does nothing.
    """
    device = next((p.device for p in parameters if p.device.type != "cpu"), None)
    return partial(torch.accelerator.synchronize, device) if device else lambda: None
