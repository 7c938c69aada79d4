"""An optimizer that steps here and in a spawned process by turns: its states and counts are shared.

`python -m tests.scale.shared_optimizer RULE`; ends in an assertion or in silence.
"""

from __future__ import annotations

import signal
import sys
from typing import Any

import torch
import torch.multiprocessing as mp

from tests.scale.models import Dots, gradients, make

LIMIT = 50
"""Seconds until a process ends itself."""


def turn(optimizer: Any, params: Any, step: int) -> None:
    """One step with known gradients."""
    for p, g in zip(params, gradients(step, 0), strict=True):
        p.grad = g
    optimizer.step()


def work(model: Any, optimizer: Any, steps: list[int]) -> None:
    """The spawned process's turns."""
    signal.alarm(LIMIT)
    params = [p for group in optimizer.param_groups for p in group["params"]]
    assert all(
        a.data_ptr() == b.data_ptr() for a, b in zip(model.parameters(), params, strict=True)
    )
    for step in steps:
        turn(optimizer, params, step)


def main(rule: str) -> None:
    """Four steps by turns equal four steps in one process."""
    signal.alarm(LIMIT)
    expected, model = Dots(), Dots()
    model.load_state_dict(expected.state_dict())
    model.share_memory()
    alone, shared = (make(rule, m.parameters(), lr=1e-3) for m in (expected, model))
    context = mp.get_context("spawn")
    for step in range(4):
        turn(alone, list(expected.parameters()), step)
    turn(shared, list(model.parameters()), 0)
    child = context.Process(target=work, args=(model, shared, [1, 2]), daemon=True)
    child.start()
    child.join()
    assert child.exitcode == 0
    turn(shared, list(model.parameters()), 3)
    for p, q in zip(model.parameters(), expected.parameters(), strict=True):
        assert torch.equal(p, q), f"{rule}: {float((p - q).abs().max())}"
        for key, value in alone.state[q].items():
            assert torch.equal(shared.state[p][key], value), f"{rule}: {key}"


if __name__ == "__main__":
    main(sys.argv[1])
