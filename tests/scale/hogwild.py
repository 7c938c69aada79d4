"""Two processes that step on the same memory: `python -m tests.scale.hogwild fork|spawn`.

First they take turns, so that the outcome is known to the bit; then they run freely. Ends in an
assertion or in silence.
"""

from __future__ import annotations

import copy
import signal
import sys
import time
from typing import Any

import torch
import torch.multiprocessing as mp
from torch import Tensor, nn

from tests.scale.models import Dots, gradients, make

NAMES = ("adabelief", "adamw", "momentum")
TURNS, FREE = 6, 60
LIMIT = 50
"""Seconds until a process ends itself."""


def distance(model: nn.Module) -> Tensor:
    """The squared distance from the origin."""
    return torch.stack([(p * p).sum() for p in model.parameters()]).sum()


def turn(model: nn.Module, optimizer: Any, step: int) -> None:
    """One step with known gradients."""
    for p, g in zip(model.parameters(), gradients(step, 0), strict=True):
        p.grad = g
    optimizer.step()


def work(rank: int, models: nn.ModuleDict, inherited: Any, gate: Any, told: Any) -> None:
    """One of the two processes; tells whether the parameters are where they were."""
    signal.alarm(LIMIT)  # a thread that watches would not live in a forked child
    torch.set_num_threads(1)
    before = [p.data_ptr() for p in models.parameters()]
    optimizers = {name: make(name, models[name].parameters(), lr=1e-3) for name in NAMES}
    if inherited is not None:
        optimizers["adamw"] = inherited
    for step in range(TURNS):
        gate.wait()
        if step % 2 == rank:
            for name in NAMES:
                turn(models[name], optimizers[name], step)
    gate.wait()
    for _ in range(FREE):
        optimizers["momentum"].zero_grad()
        distance(models["momentum"]).backward()
        optimizers["momentum"].step()
    stayed = before == [p.data_ptr() for p in models.parameters()]
    told.put(stayed and all(p.is_shared() for p in models.parameters()))


def main(method: str) -> None:
    """Start two processes, and compare with two optimizers that take turns in this one."""
    signal.alarm(LIMIT)
    torch.set_num_threads(1)
    context = mp.get_context(method)
    models = nn.ModuleDict({name: Dots() for name in NAMES}).share_memory()
    expected = copy.deepcopy(models)
    own = [{n: make(n, expected[n].parameters(), lr=1e-3) for n in NAMES} for _ in range(2)]
    inherited = None
    if method == "fork":  # an optimizer that has a plan already; pickling would share its states
        inherited = make("adamw", models["adamw"].parameters(), lr=1e-3)
        turn(models["adamw"], inherited, 100)
        expected["adamw"].load_state_dict(models["adamw"].state_dict())
        for each in own:
            each["adamw"].load_state_dict(inherited.state_dict())
    for step in range(TURNS):
        for name in NAMES:
            turn(expected[name], own[step % 2][name], step)

    gate, told = context.Barrier(3), context.Queue()
    started = [
        context.Process(target=work, args=(rank, models, inherited, gate, told), daemon=True)
        for rank in range(2)
    ]
    for process in started:
        process.start()
    for _ in range(TURNS):
        gate.wait()
    while gate.n_waiting < len(started):  # their turns are through; the gate is still shut
        time.sleep(0.002)
    for (name, p), q in zip(models.named_parameters(), expected.parameters(), strict=True):
        assert torch.equal(p, q), f"{method}, {name}: {float((p - q).abs().max())}"
    start = float(distance(models["momentum"]).detach())
    gate.wait()
    assert [told.get() for _ in started] == [True, True]
    for process in started:
        process.join()
        assert process.exitcode == 0
    end = float(distance(models["momentum"]).detach())
    assert end < 0.5 * start, f"{method}: from {start} to {end}"


if __name__ == "__main__":
    main(sys.argv[1])
