"""The memory of parameters and states, on which other code relies."""

from __future__ import annotations

from typing import Any

import torch

from ..examination import examination
from ..needs import halves, plain
from .helpers import differences, drive, flat


@examination(
    "memory-kept",
    "torch.optim: parameters are changed in place; views, shared memory and wrappers rely on it",
    plain,
    cases={name: {"dtype": f"torch.{name}"} for name in ("float32", "bfloat16", "float16")},
    case_needs={"float16": halves},
)
def memory_kept(make: Any, dtype: Any) -> None:
    """The parameter is the same object in the same memory after a step."""
    p = torch.nn.Parameter(torch.ones(2, 2, dtype=dtype))
    view, address = p.detach().view(-1), p.data_ptr()
    optimizer = make([p])
    drive(optimizer, [p], 2)
    assert optimizer.param_groups[0]["params"][0] is p, "the group holds another tensor"
    assert p.data_ptr() == address, "the parameter is in other memory than before"
    assert torch.equal(view, p.detach().view(-1)), "a view of the parameter kept the old values"


@examination("shared-memory", "torch.multiprocessing: Tensor.share_memory_", plain)
def shared_memory(make: Any) -> None:
    """A parameter in shared memory stays there during steps."""
    p = torch.nn.Parameter(torch.ones(2, 2)).share_memory_()
    drive(make([p]), [p], 2)
    assert p.is_shared(), "the parameter is no longer in shared memory"


@examination("version-counter", "torch autograd: in-place correctness checks", plain)
def version_counter(make: Any) -> None:
    """backward() raises an error if a step has changed a parameter of the graph."""
    p = torch.nn.Parameter(torch.ones(2, 2))
    optimizer = make([p])
    loss = p.square().sum()
    p.grad = torch.ones(2, 2)
    optimizer.step()
    try:
        loss.backward()
        raised = ""
    except RuntimeError as error:
        raised = str(error)
    outcome = raised or f"no error, and gave {p.grad.tolist()}"
    assert "modified by an inplace operation" in raised, (
        f"backward raised {outcome}, expected the error of an inplace change"
    )


@examination("no-graph", "torch.optim.Optimizer.step: not tracked by autograd", plain)
def no_graph(make: Any) -> None:
    """A step on a gradient with a graph leaves no graph on the parameter and its state."""
    p = torch.nn.Parameter(torch.ones(2, 2))
    optimizer = make([p])
    for _ in range(2):
        (p.grad,) = torch.autograd.grad(p.pow(3).sum(), p, create_graph=True)
        optimizer.step()
    for key, value in {"p": p, **optimizer.state[p]}.items():
        if isinstance(value, torch.Tensor):
            assert value.grad_fn is None, f"{key} has a graph"
            assert value is p or not value.requires_grad, f"{key} requires a gradient"
    assert p.requires_grad, "the parameter no longer requires a gradient"


@examination(
    "parameter-replaced",
    "torch.nn.Module.to and load_state_dict change parameters between steps",
    plain,
    cases={
        "copied-into": {"write": "lambda p: p.data.copy_(torch.full((2, 2), 3.0))"},
        "data-set": {"write": "lambda p: setattr(p, 'data', torch.full((2, 2), 3.0))"},
    },
)
def parameter_replaced(make: Any, write: Any, slow: Any) -> None:
    """A step starts from the values that were written into the parameter before the step."""
    p = torch.nn.Parameter(torch.ones(2, 2))
    optimizer = make([p], **slow)
    drive(optimizer, [p], 2)
    write(p)
    drive(optimizer, [p], 1, start=2)
    distance = (p.detach() - 3).abs().max().item()
    assert 0 < distance < 1, (
        f"one step from 3.0 led to {p.tolist()}, expected a change above 0 and below 1"
    )


@examination(
    "state-replaced", "torch.optim: it is common to move the tensors of optimizer.state", plain
)
def state_replaced(make: Any) -> None:
    """After a state tensor is replaced by a copy, steps read and write the copy."""
    ends = []
    for replaced in (False, True):
        p = torch.nn.Parameter(torch.ones(2, 2))
        optimizer = make([p])
        drive(optimizer, [p], 2)
        if replaced:
            for key, value in optimizer.state[p].items():
                if isinstance(value, torch.Tensor):
                    optimizer.state[p][key] = value.clone()
        drive(optimizer, [p], 2, start=2)
        ends.append(flat([p, optimizer.state[p]]))
    different = differences(*ends)
    assert not different, different[0]
