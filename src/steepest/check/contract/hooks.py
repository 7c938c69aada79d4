"""The hooks of torch.optim.Optimizer."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch.optim.optimizer import (  # noqa: F401  the cases below name them
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from ..examination import examination
from ..needs import plain
from .helpers import differences, drive, flat

HOOKS = "torch.optim.Optimizer.register_"


@examination(
    "hook",
    HOOKS + "step_pre_hook, step_post_hook, and register_optimizer_step_pre_hook, ..._post_hook",
    plain,
    cases={
        "step-pre": {"register": "lambda o, hook: o.register_step_pre_hook(hook)"},
        "step-post": {"register": "lambda o, hook: o.register_step_post_hook(hook)"},
        "global-step-pre": {"register": "lambda o, hook: register_optimizer_step_pre_hook(hook)"},
        "global-step-post": {"register": "lambda o, hook: register_optimizer_step_post_hook(hook)"},
    },
)
def step_hook(make: Any, register: Any) -> None:
    """Each step calls the hook once, with optimizer, args and kwargs, until the hook is removed."""
    p = torch.nn.Parameter(torch.ones(2, 2))
    optimizer = make([p])
    calls = []
    handle = register(optimizer, lambda *args: calls.append(args))
    try:
        drive(optimizer, [p], 2)
    finally:
        handle.remove()
    drive(optimizer, [p], 1)
    assert len(calls) == 2, f"two steps called the hook {len(calls)} times, expected 2"
    args = calls[0]
    assert args[0] is optimizer, f"the hook got {args[0]!r} first, expected the optimizer"
    assert len(args) == 3, f"the hook got {len(args)} values, expected 3"


@examination(
    "hook-order", HOOKS + "step_pre_hook: before the step; step_post_hook: after it", plain
)
def hook_order(make: Any) -> None:
    """Pre-hooks see the parameter before the step, post-hooks after it."""
    p = torch.nn.Parameter(torch.ones(2, 2))
    optimizer = make([p])
    p.grad = torch.ones(2, 2)
    seen = {}
    optimizer.register_step_pre_hook(lambda *_: seen.update(before=p.detach().clone()))
    optimizer.register_step_post_hook(lambda *_: seen.update(after=p.detach().clone()))
    optimizer.step()
    assert torch.equal(seen["before"], torch.ones(2, 2)), "the pre-hook saw a stepped parameter"
    assert torch.equal(seen["after"], p), "the post-hook saw a parameter that was not yet stepped"


@examination("hook-arguments", HOOKS + "step_pre_hook: may return new args and kwargs", plain)
def hook_arguments(make: Any) -> None:
    """If a pre-hook returns new arguments, step() uses these."""
    p = torch.nn.Parameter(torch.ones(2, 2))
    optimizer = make([p])

    def closure() -> torch.Tensor:
        p.grad = torch.ones(2, 2)
        return torch.tensor(7.0)

    optimizer.register_step_pre_hook(lambda o, args, kwargs: ((o, closure), {}))
    loss = optimizer.step()
    assert loss is not None, "the closure that the hook returned was not called"
    assert float(loss) == 7.0, f"step returned {float(loss)}, expected the new closure's 7.0"


@examination("hook-state-dict", HOOKS + "state_dict_pre_hook, ..._post_hook", plain)
def hook_state_dict(make: Any) -> None:
    """state_dict() calls its pre-hook, and returns the dict that its post-hook returns."""
    p = torch.nn.Parameter(torch.ones(2, 2))
    optimizer = make([p])
    called = []
    optimizer.register_state_dict_pre_hook(lambda o: called.append(o))
    optimizer.register_state_dict_post_hook(lambda o, saved: {**saved, "note": "added"})
    saved = optimizer.state_dict()
    assert called == [optimizer], f"the pre-hook was called with {called}, expected one call"
    assert saved.get("note") == "added", (
        f"the keys are {sorted(saved)}, expected 'note', which the post-hook added"
    )


@examination("hook-load-state-dict", HOOKS + "load_state_dict_pre_hook, ..._post_hook", plain)
def hook_load_state_dict(make: Any) -> None:
    """load_state_dict loads what its pre-hook returns, and calls its post-hook afterwards."""
    p, q = (torch.nn.Parameter(torch.ones(2, 2)) for _ in range(2))
    optimizer, other = make([p]), make([q])
    drive(other, [q], 3)
    replaced, seen = copy.deepcopy(other.state_dict()), []
    optimizer.register_load_state_dict_pre_hook(lambda o, loaded: replaced)
    optimizer.register_load_state_dict_post_hook(lambda o: seen.append(flat(o.state_dict())))
    optimizer.load_state_dict(make([p]).state_dict())
    assert len(seen) == 1, f"the post-hook was called {len(seen)} times, expected 1"
    different = differences(seen[0], flat(other.state_dict()))
    assert not different, f"what the pre-hook returned was not loaded: {different[0]}"
