"""What is peculiar to DTensor parameters: placements, empty shards, mixtures, other dtypes."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import steepest
from tests.scale.models import (
    BACKENDS,
    Dots,
    assert_close,
    assert_same,
    dots_steps,
    gradients,
    make,
    mean_gradients,
    network,
    set_gradients,
    train,
    whole,
    wrap,
)

SCALARS = {"step", "mu_product"}
SOME = ("adabelief", "adagrad", "nadam", "rmsprop")
"""One to three states, a first value other than zero, a carried scalar, a late rectification."""


def mesh() -> Any:
    """All processes in a row."""
    return init_device_mesh("cpu", (dist.get_world_size(),))


def pair(name: str, one: nn.Module, many: nn.Module, backend: str | None) -> tuple[Any, Any]:
    """The same optimizer for both."""
    return make(name, one.parameters(), backend), make(name, many.parameters(), backend)


def states_are_sharded(backend: str | None, _: Path) -> None:
    """A state is placed as its parameter, counts are plain; all processes hold the same order.

    The order: gathering a state_dict exchanges tensor after tensor, in the order that it has.
    """
    for name in SOME:
        model = wrap("fsdp", Dots())
        optimizer = make(name, model.parameters(), backend)
        dots_steps(model, optimizer, range(2))
        assert list(map(id, optimizer.state)) == list(map(id, model.parameters())), name
        for p, state in optimizer.state.items():
            for key in state.keys() & SCALARS:
                assert type(state[key]) is Tensor
                assert (state[key].device.type, state[key].shape) == ("cpu", ())
            assert float(state["step"]) == 2
            for key in state.keys() - SCALARS:
                value = state[key]
                assert isinstance(value, DTensor), key
                assert (value.placements, value.device_mesh) == (p.placements, p.device_mesh)
                assert (value.shape, value.dtype) == (p.shape, p.dtype)
                assert value.to_local().shape == p.to_local().shape


def a_step_exchanges_nothing(backend: str | None, _: Path) -> None:
    """No communication in the step itself."""
    for name in SOME:
        model = wrap("fsdp", Dots())
        optimizer = make(name, model.parameters(), backend, weight_decay=0.1)
        for step in range(2):
            model(gradients(step, dist.get_rank())).backward()
            with CommDebugMode() as seen:
                optimizer.step()
            assert seen.get_total_counts() == 0, name


def some_are_whole(backend: str | None, _: Path) -> None:
    """Sharded and whole parameters in one group."""
    for name in SOME:
        one, many = Dots(), Dots()
        fully_shard(many, ignored_params={many.weights[0], many.weights[3]})
        alone, ours = pair(name, one, many, backend)
        for step in range(7):
            set_gradients(one, mean_gradients(step))
            set_gradients(many, mean_gradients(step))
            alone.step()
            ours.step()
        assert_same((one, alone), (many, ours))


def by_columns(backend: str | None, _: Path) -> None:
    """Shards of the second dimension."""
    shapes = ((6, 4), (3, 8, 2))
    for name in SOME:
        one, many = Dots(shapes), Dots(shapes)
        fully_shard(many, shard_placement_fn=lambda p: Shard(1))
        alone, ours = pair(name, one, many, backend)
        for step in range(7):
            set_gradients(one, gradients(step, 0, shapes))
            alone.step()
            ours.zero_grad()
            many(gradients(step, 0, shapes)).backward()
            ours.step()
        assert_same((one, alone), (many, ours))


def placed_otherwise(backend: str | None, _: Path) -> None:
    """A gradient of another placement than its parameter's counts as the tensor that it is."""
    over, start = mesh(), Dots(((6, 5),)).weights[0].detach()
    (g,) = gradients(0, 0, ((6, 5),))
    placements = [
        (Shard(0), Replicate()), (Replicate(), Shard(0)), (Shard(0), Shard(1)),
        (Replicate(), Partial()), (Shard(0), Partial()),
    ]  # fmt: skip
    for mine, its in placements:
        p, q = nn.Parameter(start.clone()), nn.Parameter(distribute_tensor(start, over, [mine]))
        p.grad, q.grad = g.clone(), distribute_tensor(g, over, [its])
        if its == Partial():  # 1/4 and 3/4 of small whole numbers: their sum has no rounding
            q.grad = DTensor.from_local(g * (1 + 2 * dist.get_rank()) / 4, over, [its])
        alone, ours = make("adamw", [p], backend), make("adamw", [q], backend)
        alone.step()
        ours.step()
        assert torch.equal(whole(q), p), (mine, its)


def of_dtype(dtype: torch.dtype, backend: str | None, _: Path) -> None:
    """Parameters of another dtype, whose states are in float32 if it has 16 bits."""
    for name in SOME:
        one, many = Dots().to(dtype), wrap("fsdp", Dots().to(dtype))
        alone, ours = pair(name, one, many, backend)
        for step in range(7):
            for model, optimizer in ((one, alone), (many, ours)):
                set_gradients(model, [g.to(dtype) for g in mean_gradients(step)])
                optimizer.step()
        assert_same((one, alone), (many, ours))


def rounded(how: str, backend: str | None, _: Path) -> None:
    """bfloat16 with a codec: the noise is an element's own, in whatever process it lives."""
    one, many = Dots().to(torch.bfloat16), wrap("fsdp", Dots().to(torch.bfloat16))
    options = {"rounding": how, "lr": 1e-4}
    alone = make("adamw", one.parameters(), backend, **options)
    ours = make("adamw", many.parameters(), backend, **options)
    for step in range(7):
        for model, optimizer in ((one, alone), (many, ours)):
            set_gradients(model, [g.bfloat16() for g in mean_gradients(step)])
            optimizer.step()
    assert_same((one, alone), (many, ours))


def tensor_parallel(backend: str | None, _: Path) -> None:
    """Columns of one layer, rows of the next, a third one whole."""
    plan = {"0": ColwiseParallel(), "1": RowwiseParallel()}

    def layers() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3), nn.Linear(3, 1))

    for name in SOME:
        one, many = layers(), parallelize_module(layers(), mesh(), plan)
        alone, ours = pair(name, one, many, backend)
        train(one, alone, range(4))
        train(many, ours, range(4))
        assert_close(one, many, 1e-5)


def late_and_frozen(backend: str | None, _: Path) -> None:
    """No gradient at all, at first or at last."""
    one, many = Dots(), Dots()
    for model in (one, many):
        model.weights[1].requires_grad_(False)
    fully_shard(many)
    alone, ours = pair("adamw", one, many, backend)
    for step in range(4):
        alone.zero_grad()
        ours.zero_grad()
        one(mean_gradients(step)).backward()
        many(gradients(step, dist.get_rank())).backward()
        for model in (one, many):
            if step < 2:
                model.weights[3].grad = None
            if step == 3:
                model.weights[0].grad = None
        alone.step()
        ours.step()
    assert_same((one, alone), (many, ours))
    assert [float(ours.state[p]["step"]) for p in (many.weights[0], many.weights[3])] == [3, 2]


def own_files(backend: str | None, folder: Path) -> None:
    """Each process saves its own shards, without torch.distributed.checkpoint."""
    model = wrap("fsdp", Dots())
    optimizer = make("nadam", model.parameters(), backend)
    dots_steps(model, optimizer, range(2))
    path = folder / f"own-{backend}-{dist.get_rank()}.pt"
    torch.save([model.state_dict(), optimizer.state_dict()], path)
    dots_steps(model, optimizer, range(2, 4))
    again = wrap("fsdp", Dots())
    resumed = make("nadam", again.parameters(), backend, lr=0.5)
    saved = torch.load(path)
    again.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    dots_steps(again, resumed, range(2, 4))
    assert_same((model, optimizer), (again, resumed))


def new_memory(backend: str | None, _: Path) -> None:
    """The model's shards are replaced between two steps, as to() and to_empty() do."""
    one, many = Dots(), wrap("fsdp", Dots())
    alone, ours = pair("adamw", one, many, backend)
    dots_steps(one, alone, range(2), whole=True)
    dots_steps(many, ours, range(2))
    many._apply(torch.clone)
    dots_steps(one, alone, range(2, 4), whole=True)
    dots_steps(many, ours, range(2, 4))
    assert_same((one, alone), (many, ours))


def in_bf16(_: Path) -> None:
    """Computed in bfloat16 on float32 shards: as torch's own class steps them."""
    models = []
    for kind in (steepest.AdamW, torch.optim.AdamW):
        model = network()
        fully_shard(model, mp_policy=MixedPrecisionPolicy(torch.bfloat16, torch.float32))
        train(model, kind(model.parameters(), lr=1e-2), range(6))
        models.append(model)
    assert_close(*models, limit=1e-5)


def scaled(_: Path) -> None:
    """An overflow in one process's shard skips the step in both."""
    models = []
    for kind in (steepest.AdamW, torch.optim.AdamW):
        model = wrap("fsdp", Dots())
        optimizer, scaler = kind(model.parameters(), lr=1e-2), torch.amp.GradScaler("cpu", 4.0)
        for step in range(4):
            optimizer.zero_grad()
            scaler.scale(model(gradients(step, dist.get_rank()))).backward()
            if step == 2 and dist.get_rank() == 0:
                model.weights[0].grad.to_local()[0, 0] = float("inf")
            scaler.step(optimizer)
            scaler.update()
        assert scaler.get_scale() == 2.0
        assert float(optimizer.state[model.weights[0]]["step"]) == 3
        models.append(model)
    assert_close(*models, limit=1e-6)


CASES: dict[str, Any] = {"fsdp-in-bf16": in_bf16, "fsdp-scaled": scaled}
_EACH: dict[str, Any] = {
    "states-are-sharded": states_are_sharded,
    "a-step-exchanges-nothing": a_step_exchanges_nothing,
    "some-are-whole": some_are_whole,
    "by-columns": by_columns,
    "placed-otherwise": placed_otherwise,
    "of-bfloat16": partial(of_dtype, torch.bfloat16),
    "of-float16": partial(of_dtype, torch.float16),
    "of-float64": partial(of_dtype, torch.float64),
    "rounded-stochastic": partial(rounded, "stochastic"),
    "rounded-kahan": partial(rounded, "kahan"),
    "tensor-parallel": tensor_parallel,
    "late-and-frozen": late_and_frozen,
    "own-files": own_files,
    "new-memory": new_memory,
}
for backend in BACKENDS:
    for name, case in _EACH.items():
        CASES[f"dtensor-{name}-{backend or 'default'}"] = partial(case, backend)
