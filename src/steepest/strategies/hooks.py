"""Hooks on the gradients of a step, with and without a closure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.hooks import RemovableHandle


def on_gradients(
    optimizer: torch.optim.Optimizer, begin: Callable[[], Callable[[], None]]
) -> RemovableHandle:
    """Change the gradients of each step before the optimizer uses them.

    begin: is called once for each step, and returns the function that changes the gradients. With
    `step()`, that function runs before the step. With `step(closure)`, it runs after each call of
    the closure, because the closure computes the gradients. If several such hooks are registered,
    they change the gradients in the order of their registration.
    """

    def before_step(
        _: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        change = begin()
        # args begins with the optimizer itself in some versions of torch
        index = next((k for k, a in enumerate(args) if callable(a) and a is not optimizer), None)
        closure = kwargs.get("closure") if index is None else args[index]
        if closure is None:
            change()
            return None

        def changed(closure: Callable[[], Any] = closure) -> Any:
            with torch.enable_grad():
                loss = closure()
            change()
            return loss

        if index is None:
            return args, {**kwargs, "closure": changed}
        return (*args[:index], changed, *args[index + 1 :]), kwargs

    return optimizer.register_step_pre_hook(before_step)
