"""What runs around a step: threads, processes, loss scaling, other devices."""

from __future__ import annotations

import multiprocessing
import threading
from typing import Any

import torch

from ..examination import examination
from ..needs import accelerator, fork, plain
from .helpers import differences, drive, flat


@examination(
    "grad-scaler", "torch.amp.GradScaler: steps whose gradients hold inf or NaN are skipped", plain
)
def grad_scaler(make: Any) -> None:
    """GradScaler skips a step with an infinite gradient entirely, and unscales other gradients."""
    p, plain = torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(2, 2))
    one, two = make([p]), make([plain])
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    for t in range(4):
        before = flat([p, one.state_dict()["state"]])
        g = torch.tensor([[1.0, -0.5], [0.25, 2.0]]) + t
        p.grad, plain.grad = g * scaler.scale(torch.tensor(1.0)), g.clone()
        if t == 2:
            p.grad[0, 0] = float("inf")
        scaler.step(one)
        scaler.update()
        if t == 2:
            different = differences(flat([p, one.state_dict()["state"]]), before)
            assert not different, f"the skipped step changed {different[0]}"
        else:
            two.step()
    torch.testing.assert_close(p, plain)


@examination("two-threads", "torch.optim: optimizers of separate parameters are independent", plain)
def two_threads(make: Any) -> None:
    """Two optimizers that step in two threads at once give the same results as in one thread."""
    params = [torch.nn.Parameter(torch.ones(64, 64)) for _ in range(4)]
    optimizers = [make([p]) for p in params]
    for p, optimizer in zip(params[:2], optimizers[:2], strict=True):
        drive(optimizer, [p], 10)
    threads = [
        threading.Thread(target=drive, args=(optimizer, [p], 10), daemon=True)
        for p, optimizer in zip(params[2:], optimizers[2:], strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert not any(thread.is_alive() for thread in threads), "a thread did not end within 10 s"
    different = differences(flat(params[2:]), flat(params[:2]))
    assert not different, different[0]


@examination(
    "forked-child", "torch.multiprocessing: fork, as for evaluation and search workers", plain, fork
)
def forked_child(make: Any) -> None:
    """A forked child makes the same steps as its parent, even after the parent has stepped."""
    p = torch.nn.Parameter(torch.ones(3, 2))
    optimizer = make([p])
    drive(optimizer, [p], 2)
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def work() -> None:
        drive(optimizer, [p], 2, start=2)
        sender.send(p.tolist())

    child = context.Process(target=work, daemon=True)
    child.start()
    answered = receiver.poll(20)
    result = receiver.recv() if answered else None
    child.join(5)
    if child.is_alive():
        child.kill()
    assert answered, "the child did not step within 20 s"
    drive(optimizer, [p], 2, start=2)
    assert result == p.tolist(), f"the child went to {result}, the parent to {p.tolist()}"


@examination("data-loader", "torch.utils.data.DataLoader: num_workers", plain, fork)
def data_loader(make: Any) -> None:
    """Forked workers of a DataLoader do not affect the steps between its batches."""
    p, plain = torch.nn.Parameter(torch.ones(3, 2)), torch.nn.Parameter(torch.ones(3, 2))
    one, two = make([p]), make([plain])
    drive(one, [p], 1)
    loader: Any = torch.utils.data.DataLoader(
        [1, 2, 3],  # type: ignore[arg-type]
        num_workers=1,
        multiprocessing_context="fork",
        timeout=20,
    )
    for batch in loader:
        drive(one, [p], 1, start=int(batch))
    drive(two, [plain], 4)
    different = differences(flat(p), flat(plain))
    assert not different, different[0]


@examination("mixed-devices", "torch.optim: parameters on several devices", plain, accelerator)
def mixed_devices(make: Any) -> None:
    """Parameters on the CPU and an accelerator, in one group, step as in separate optimizers."""
    device = torch.accelerator.current_accelerator()
    joint: Any
    joint, alone = (
        [torch.nn.Parameter(torch.ones(3, 2, device=d)) for d in ("cpu", device)] for _ in "ab"
    )
    both, single = make(joint), [make([p]) for p in alone]
    for t in range(4):
        for k in range(2):
            joint[k].grad = torch.full((3, 2), 1.0 + k - t, device=joint[k].device)
            alone[k].grad = joint[k].grad.clone()
        both.step()
        single[0].step()
        single[1].step()
    for actual, expected in zip(joint, alone, strict=True):
        torch.testing.assert_close(actual, expected)


@examination("accelerator", "torch.optim: parameters live on any device", plain, accelerator)
def on_accelerator(make: Any) -> None:
    """A parameter on the accelerator steps like its copy on the CPU, also after a resume."""
    device = torch.accelerator.current_accelerator()
    there = torch.nn.Parameter(torch.ones(3, 2, device=device))
    here = torch.nn.Parameter(torch.ones(3, 2))
    one, two = make([there]), make([here])
    for t in range(6):
        g = torch.tensor([[1.0, -0.5], [0.25, 2.0], [3.0, -1.0]]) - t
        there.grad, here.grad = g.to(device), g.clone()
        one.step()
        two.step()
        if t == 2:
            saved = one.state_dict()
            one = make([there])
            one.load_state_dict(saved)
    torch.testing.assert_close(there.cpu(), here)
