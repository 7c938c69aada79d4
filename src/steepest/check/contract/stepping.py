"""The step: direction, learning rates, groups, decay, closures."""

from __future__ import annotations

import copy
from typing import Any

import torch

from ..examination import examination
from ..needs import (
    argument,
    dense,
    descending,
    grouped,
    lr_tensor_taken,
    plain,
    scheduled,
    separate,
)
from .helpers import differences, drive, flat

GROUPS = "torch.optim, per-parameter options: "
STEP = "torch.optim.Optimizer.step: "


@examination("direction", "torch.optim: a step follows the gradient downhill", plain, descending)
def direction(make: Any, fast: Any) -> None:
    """The loss of a small regression falls."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(8, 3, generator=random)
    weight = torch.nn.Parameter(torch.arange(1.0, 7).reshape(3, 2))
    optimizer = make([weight], **fast)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = (x @ weight).square().mean()
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    assert losses[-1] < losses[0], (
        f"the loss went from {losses[0]} to {losses[-1]}, expected a fall"
    )


@examination("direction-closure", STEP + "closure reevaluates the model", dense, descending)
def direction_closure(make: Any) -> None:
    """The loss falls when each step gets a closure. A resumed run has the same losses."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(8, 3, generator=random)
    weight = torch.nn.Parameter(torch.arange(1.0, 7).reshape(3, 2))
    optimizer = make([weight])

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (x @ weight).square().mean()
        loss.backward()
        return loss

    # 12 steps, because some classes do not move at first
    losses = [float(optimizer.step(closure)) for _ in range(12)]
    saved, start = copy.deepcopy(optimizer.state_dict()), weight.detach().clone()
    losses += [float(optimizer.step(closure)) for _ in range(3)]
    assert losses[-1] < losses[0], (
        f"the loss went from {losses[0]} to {losses[-1]}, expected a fall"
    )
    weight = torch.nn.Parameter(start)
    optimizer = make([weight])
    optimizer.load_state_dict(saved)
    resumed = [float(optimizer.step(closure)) for _ in range(3)]
    assert resumed == losses[12:], f"after loading the losses are {resumed}, expected {losses[12:]}"


_SCHEDULERS = {
    "LambdaLR": "LambdaLR(o, lambda t: 0.9**t)",
    "MultiplicativeLR": "MultiplicativeLR(o, lambda t: 0.9)",
    "StepLR": "StepLR(o, step_size=3)",
    "MultiStepLR": "MultiStepLR(o, milestones=[3, 6])",
    "ConstantLR": "ConstantLR(o, total_iters=4)",
    "LinearLR": "LinearLR(o, total_iters=4)",
    "ExponentialLR": "ExponentialLR(o, gamma=0.9)",
    "PolynomialLR": "PolynomialLR(o, total_iters=8)",
    "CosineAnnealingLR": "CosineAnnealingLR(o, T_max=8)",
    "CosineAnnealingWarmRestarts": "CosineAnnealingWarmRestarts(o, T_0=4)",
    "CyclicLR": "CyclicLR(o, 1e-3, 0.02, step_size_up=3, "
    "cycle_momentum=bool({'momentum', 'betas'} & o.defaults.keys()))",
    "OneCycleLR": "OneCycleLR(o, max_lr=0.02, total_steps=12, "
    "cycle_momentum=bool({'momentum', 'betas'} & o.defaults.keys()))",
    "SequentialLR": "SequentialLR(o, [torch.optim.lr_scheduler.ConstantLR(o), "
    "torch.optim.lr_scheduler.ExponentialLR(o, 0.9)], milestones=[3])",
    "ChainedScheduler": "ChainedScheduler([torch.optim.lr_scheduler.ConstantLR(o), "
    "torch.optim.lr_scheduler.ExponentialLR(o, 0.9)])",
    "ReduceLROnPlateau": "ReduceLROnPlateau(o, patience=2)",
}


@examination(
    "scheduler",
    "torch.optim.lr_scheduler: every scheduler drives any optimizer that has an lr",
    plain,
    descending,
    argument("lr"),
    cases={
        name: {"schedule": f"lambda o: torch.optim.lr_scheduler.{call}"}
        for name, call in _SCHEDULERS.items()
    },
)
def scheduler(make: Any, schedule: Any) -> None:
    """The loss falls with a scheduler, and the group's lr equals the scheduler's."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(8, 3, generator=random, dtype=torch.float64)
    weight = torch.nn.Parameter(torch.arange(1.0, 7, dtype=torch.float64).reshape(3, 2))
    optimizer = make([weight], lr=0.01)
    scheduler = schedule(optimizer)
    plateau = isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        loss = (x @ weight).square().mean()
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
        scheduler.step(loss) if plateau else scheduler.step()
        lr, given = optimizer.param_groups[0]["lr"], scheduler.get_last_lr()[0]
        assert lr == given, f"the group's lr is {lr}, expected the scheduler's {given}"
    assert losses[-1] < losses[0], (
        f"the loss went from {losses[0]} to {losses[-1]}, expected a fall"
    )


@examination("lr-scheduled", "torch.optim, adjusting the learning rate", plain, scheduled)
def lr_scheduled(make: Any) -> None:
    """A new value of group["lr"] affects later steps, as schedulers need."""
    ends = []
    for changed in (False, True):
        p = torch.nn.Parameter(torch.ones(2, 2, dtype=torch.float64))
        optimizer = make([p], lr=0.1)
        drive(optimizer, [p], 2)
        if changed:
            optimizer.param_groups[0]["lr"] = 0.01
        drive(optimizer, [p], 12, start=2)
        ends.append(p.detach())
    assert not torch.equal(*ends), "a new lr did not affect later steps"


@examination("lr-tensor", "torch.optim: lr is a float or a Tensor", plain, lr_tensor_taken)
def lr_tensor(make: Any) -> None:
    """lr=torch.tensor(0.1) steps like lr=0.1."""
    ends = []
    for lr in (0.1, torch.tensor(0.1, dtype=torch.float64)):
        p = torch.nn.Parameter(torch.ones(2, 2, dtype=torch.float64))
        drive(make([p], lr=lr), [p], 5)
        ends.append(p.detach())
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-6, atol=1e-9)


@examination("lr-zero", "torch.optim: lr >= 0; warm-ups start at 0", plain, argument("lr"))
def lr_zero(make: Any) -> None:
    """With lr=0 the parameter moves by at most 1e-5. When lr is set to 0.1, the parameter moves."""
    p = torch.nn.Parameter(torch.ones(2, 2))
    optimizer = make([p], lr=0.0)
    drive(optimizer, [p], 2)
    moved = (p.detach() - 1).abs().max().item()
    assert moved <= 1e-5, f"with lr=0 the parameter moved by {moved}"
    optimizer.param_groups[0]["lr"] = 0.1
    drive(optimizer, [p], 12, start=2)
    assert torch.isfinite(p).all(), (
        f"when lr was set to 0.1 the parameter became {p.tolist()}, expected finite values"
    )
    assert not torch.equal(p, torch.ones(2, 2)), "when lr was set to 0.1 the parameter did not move"


@examination("group-lr", GROUPS + "lr", plain, separate, argument("lr"))
def group_lr(make: Any) -> None:
    """Two groups with different lr step like two optimizers with these lr."""
    joint, alone = (
        [torch.nn.Parameter(torch.ones(2, 2, dtype=torch.float64)) for _ in range(2)]
        for _ in range(2)
    )
    drive(make([{"params": [joint[0]]}, {"params": [joint[1]], "lr": 0.1}], lr=0.01), joint, 5)
    one, two = make(alone[:1], lr=0.01), make(alone[1:], lr=0.1)
    for t in range(5):
        drive(one, alone, 1, start=t)
        two.step()
    torch.testing.assert_close(joint[0], alone[0], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(joint[1], alone[1], rtol=1e-9, atol=1e-12)


@examination(
    "group-weight-decay", GROUPS + "weight_decay", plain, separate, argument("weight_decay")
)
def group_weight_decay(make: Any) -> None:
    """Two groups with different weight decay step like two optimizers with these decays."""
    joint, alone = (
        [torch.nn.Parameter(torch.ones(2, 2, dtype=torch.float64)) for _ in range(2)]
        for _ in range(2)
    )
    groups = [{"params": [joint[0]]}, {"params": [joint[1]], "weight_decay": 0.3}]
    drive(make(groups, weight_decay=0.0), joint, 5)
    one, two = make(alone[:1], weight_decay=0.0), make(alone[1:], weight_decay=0.3)
    for t in range(5):
        drive(one, alone, 1, start=t)
        two.step()
    torch.testing.assert_close(joint[0], alone[0], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(joint[1], alone[1], rtol=1e-9, atol=1e-12)


_GROUP_OPTIONS: dict[str, tuple[Any, Any]] = {
    "betas": ((0.9, 0.999), (0.5, 0.6)),
    "eps": (1e-8, 1e-2),
    "momentum": (0.9, 0.5),
    "alpha": (0.99, 0.5),
    "rho": (0.9, 0.5),
}


@examination(
    "group-options",
    GROUPS + "any option of the constructor",
    plain,
    cases={
        name: {"name": repr(name), "one": repr(one), "two": repr(two)}
        for name, (one, two) in _GROUP_OPTIONS.items()
    },
    case_needs={name: grouped(name, *values) for name, values in _GROUP_OPTIONS.items()},
)
def group_options(make: Any, name: Any, one: Any, two: Any) -> None:
    """Two groups with different values of an option step like two optimizers with these values."""
    joint, alone = (
        [torch.nn.Parameter(torch.ones(2, 2, dtype=torch.float64)) for _ in range(2)]
        for _ in range(2)
    )
    groups = [{"params": [joint[0]]}, {"params": [joint[1]], name: two}]
    drive(make(groups, **{name: one}), joint, 5)
    first, second = make(alone[:1], **{name: one}), make(alone[1:], **{name: two})
    for t in range(5):
        drive(first, alone, 1, start=t)
        second.step()
    torch.testing.assert_close(joint[0], alone[0], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(joint[1], alone[1], rtol=1e-9, atol=1e-12)


@examination("group-added-later", "torch.optim.Optimizer.add_param_group", plain, separate)
def group_added_later(make: Any) -> None:
    """A group added after some steps begins at its own step 1. The older group does not change."""
    joint, alone = (
        [torch.nn.Parameter(torch.ones(2, 2, dtype=torch.float64)) for _ in range(2)]
        for _ in range(2)
    )
    optimizer, one, two = make(joint[:1]), make(alone[:1]), make(alone[1:])
    for t in range(6):
        if t == 3:
            optimizer.add_param_group({"params": [joint[1]]})
        drive(optimizer, joint, 1, start=t)
        drive(one, alone, 1, start=t)
        if t >= 3:
            two.step()
    torch.testing.assert_close(joint[0], alone[0], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(joint[1], alone[1], rtol=1e-9, atol=1e-12)


@examination("weight-decay-acts", "torch.optim: weight_decay", plain, argument("weight_decay"))
def weight_decay_acts(make: Any) -> None:
    """If the gradient is zero, weight decay pulls the parameter towards zero."""
    p = torch.nn.Parameter(torch.tensor([[1.0, -2.0], [3.0, -4.0]], dtype=torch.float64))
    start = p.detach().clone()
    optimizer = make([p], weight_decay=0.1)
    for _ in range(8):
        p.grad = torch.zeros_like(p)
        optimizer.step()
    assert (p.abs() < start.abs()).all(), f"{start.tolist()} became {p.tolist()}, expected smaller"


@examination("maximize", "torch.optim: maximize", plain, argument("maximize"))
def maximize(make: Any) -> None:
    """maximize=True steps like minimizing with the negative gradient."""
    one, two = (torch.nn.Parameter(torch.ones(2, 2, dtype=torch.float64)) for _ in range(2))
    up, down = make([one], maximize=True), make([two], maximize=False)
    for t in range(5):
        g = torch.tensor([[1.0, -0.5], [0.25, 2.0]], dtype=torch.float64) * (1 - 0.4 * t)
        one.grad, two.grad = g.clone(), -g
        up.step()
        down.step()
    torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-12)


@examination("deterministic", "torch: notes on reproducibility", plain)
def deterministic(make: Any) -> None:
    """Two runs on the same gradients end with the same parameters and state, bit for bit."""
    ends = []
    for _ in range(2):
        torch.manual_seed(0)
        p = torch.nn.Parameter(torch.ones(3, 2))
        optimizer = make([p])
        drive(optimizer, [p], 5)
        ends.append(flat([p, optimizer.state_dict()["state"]]))
    different = differences(*ends)
    assert not different, different[0]


@examination("closure", STEP + "closure reevaluates the model and returns the loss", dense)
def closure(make: Any) -> None:
    """The closure is called with autograd on, its gradients are used, and its loss is returned."""
    start = torch.arange(1.0, 5).reshape(2, 2)
    p = torch.nn.Parameter(start.clone())
    optimizer = make([p])
    grad_mode = []

    @torch.enable_grad()
    def backward() -> torch.Tensor:
        optimizer.zero_grad()
        loss = p.square().sum()
        loss.backward()
        return loss

    def closure() -> torch.Tensor:
        grad_mode.append(torch.is_grad_enabled())
        return backward()

    with torch.no_grad():
        loss = optimizer.step(closure)
    assert grad_mode, "the closure was not called"
    assert all(grad_mode), "the closure was called with autograd off"
    assert loss is not None, "step(closure) returned None"
    assert float(loss) == 30.0, f"step(closure) returned {float(loss)}, expected the loss 30.0"
    for _ in range(12):
        optimizer.step(closure)
    assert not torch.equal(p, start), "the closure's gradients were not used"


@examination("no-closure", STEP + "without a closure it returns None", plain)
def no_closure(make: Any) -> None:
    """Without a closure step() returns None."""
    p = torch.nn.Parameter(torch.ones(2, 2))
    p.grad = torch.ones(2, 2)
    result = make([p]).step()
    assert result is None, f"step() returned {result!r}, expected None"


@examination("zero-grad", "torch.optim.Optimizer.zero_grad: set_to_none")
def zero_grad(make: Any) -> None:
    """zero_grad() sets the gradients to None, and to zero with set_to_none=False."""
    p = torch.nn.Parameter(torch.ones(2, 2))
    optimizer = make([p])
    p.grad = torch.ones(2, 2)
    optimizer.zero_grad(set_to_none=False)
    assert torch.equal(p.grad, torch.zeros(2, 2)), f"the gradient is {p.grad}, expected zeros"
    optimizer.zero_grad()
    assert p.grad is None, f"the gradient is {p.grad}, expected None"


@examination(
    "post-accumulate-hook", "torch tutorial: the optimizer step in backward", plain, separate
)
def post_accumulate_hook(make: Any) -> None:
    """One optimizer per parameter, stepped during backward, gives the ordinary loop's result."""
    joint, alone = (
        [torch.nn.Parameter(torch.full((2, 2), 1.0 + k)) for k in range(2)] for _ in range(2)
    )
    optimizer, own = make(joint), {q: make([q]) for q in alone}

    def step(q: Any) -> None:
        own[q].step()
        own[q].zero_grad()

    for q in alone:
        q.register_post_accumulate_grad_hook(step)
    for _ in range(3):
        optimizer.zero_grad()
        (joint[0] @ joint[1]).sum().backward()
        optimizer.step()
        (alone[0] @ alone[1]).sum().backward()
    different = differences(flat(alone), flat(joint))
    assert not different, different[0]
