"""A pointer is used only if all of its tensor was seen in this step, and nothing is held between
steps.
"""

import collections
import gc
import math
import os
import subprocess
import sys
import weakref
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

import steepest
from steepest.backends import memory
from steepest.backends.compiler import load_integers

BACKENDS = ("cpu", "foreach", "eager")


def made(n=20, size=1000, backend=None, kind="AdamW", **options):
    params = [nn.Parameter(torch.ones(size)) for _ in range(n)]
    for p in params:
        p.grad = torch.ones(size)
    return params, getattr(steepest, kind)(params, backend=backend, **options)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seed", "steps", "backend"),
    [(1, 2600, "cpu"), (2, 2600, "cpu"), (3, 400, "foreach"), (4, 300, "eager")],
)
def test_whatever_others_change(seed, steps, backend):
    script = Path(__file__).parent / "fuzz_memory.py"
    call = [sys.executable, "-X", "faulthandler", str(script), str(seed), str(steps), backend]
    environment = {**os.environ, "MALLOC_PERTURB_": "165"}
    done = subprocess.run(call, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    stepped, refused = map(int, done.stdout.split())
    assert stepped + refused == steps
    assert min(stepped, refused) > steps / 20


@pytest.mark.parametrize("native", [True, False], ids=["native", "python"])
@pytest.mark.parametrize(
    "change",
    {
        "storage away and back": lambda p, s: away_and_back(s["exp_avg"]),
        "storage in part": lambda p, s: s["exp_avg"].untyped_storage().resize_(5000),
        "another tensor": lambda p, s: s.update(exp_avg=s["exp_avg"].clone()),
        "other memory": lambda p, s: setattr(s["exp_avg"], "data", s["exp_avg"].clone()),
        "another dtype": lambda p, s: s.update(exp_avg=s["exp_avg"].double()),
        "another shape": lambda p, s: s.update(exp_avg=torch.ones(500)),
        "strides": lambda p, s: setattr(p, "data", p.data.expand(1000)[::1].flip(0)),
        "a parameter's memory": lambda p, s: setattr(p, "data", p.data.clone()),
        "a parameter's dtype": lambda p, s: setattr(p, "data", p.data.double()),
        "shared memory": lambda p, s: s["step"].share_memory_(),
        "the order": lambda p, s: s.update(exp_avg=s.pop("exp_avg")),
        "a new entry": lambda p, s: s.update(tag=1),
        "an entry less": lambda p, s: s.pop("step"),
        "an empty state": lambda p, s: s.clear(),
    }.items(),
    ids=lambda x: x[0],
)
def test_every_change_is_seen(change, native, monkeypatch):
    if not native:
        monkeypatch.setattr("steepest.backends.native.available", lambda: None)
    (p, *_), optimizer = made(3)
    optimizer.step()
    groups, state = [optimizer.param_groups[0]["params"]], optimizer.state
    seen = memory.Snapshot(groups, state)
    assert (seen.native is not None) is native
    assert seen.matches(groups, state)
    state[p]["exp_avg"].mul_(2)  # values are not looked at
    assert seen.matches(groups, state)
    change[1](p, state[p])
    assert not seen.matches(groups, state)


def away_and_back(x):
    kept, size = x.clone(), x.untyped_storage().nbytes()
    x.untyped_storage().resize_(0)
    held = [torch.ones_like(kept) for _ in range(3)]  # which takes its memory
    x.untyped_storage().resize_(size)
    x.copy_(kept)
    return held


def test_python_steps_where_torch_cannot_be_asked(monkeypatch):
    monkeypatch.setattr("steepest.backends.native.available", lambda: None)
    params, optimizer = made(5)
    others = [nn.Parameter(torch.ones(1000)) for _ in params]
    theirs = torch.optim.AdamW(others)
    for step in range(4):
        for p, q in zip(params, others, strict=True):
            p.grad = torch.randn(1000)
            q.grad = p.grad.clone()
        params[1].grad = others[1].grad = None if step == 2 else params[1].grad
        if step == 3:
            params[2].grad = params[2].grad.flip(0).flip(0)[::1]
            away_and_back(optimizer.state[params[3]]["exp_avg"])
        optimizer.step()
        theirs.step()
    for p, q in zip(params, others, strict=True):
        torch.testing.assert_close(p, q)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("how", ["clear", "another", "pop", "group"])
def test_what_is_moved_away_is_freed(backend, how):
    params, optimizer = made(3, backend=backend)
    optimizer.step()
    optimizer.step()
    of_states = [weakref.ref(x) for s in optimizer.state.values() for x in s.values()]
    if how == "clear":
        optimizer.state.clear()
    elif how == "pop":
        for p in params:
            optimizer.state.pop(p)
    elif how == "another":
        for s in optimizer.state.values():
            s.update((k, x.to("meta")) for k, x in s.items())
    else:
        of_states = [weakref.ref(p) for p in params]
        optimizer.state.clear()
        optimizer.param_groups.clear()
        del params
    gc.collect()
    assert not [x for x in of_states if x() is not None]


@pytest.mark.parametrize("shape", [(20, 50), (4, 4)])
def test_a_gradient_of_transposed_shape(shape):
    p = nn.Parameter(torch.zeros(shape))
    optimizer = steepest.SGD([p], lr=1.0)
    for _ in range(3):
        p.grad = torch.ones(shape)
        optimizer.step()
    before = p.detach().clone()
    p.grad.data = g = torch.arange(float(p.numel())).reshape(shape[::-1])
    if shape[0] == shape[1]:
        optimizer.step()
        assert torch.equal(p.detach(), before - g)
    else:
        with pytest.raises(
            RuntimeError, match=r"shape \(50, 20\).* expected one like .*\(20, 50\)"
        ):
            optimizer.step()
        assert torch.equal(p.detach(), before)


def test_height_and_width_exchanged_in_place():
    p = nn.Parameter(torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last))
    q = nn.Parameter(p.detach().clone())
    ours, theirs = steepest.AdamW([p], lr=0.1), torch.optim.AdamW([q], lr=0.1)
    for step in range(4):
        g = torch.randn(2, 3, 4, 4)
        p.grad, q.grad = g.clone(), g.clone()
        if step == 2:
            for x in (p, q):
                x.data = x.data.transpose(2, 3)
        ours.step()
        theirs.step()
    torch.testing.assert_close(p, q)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("what", ["parameter", "gradient", "exp_avg", "step"])
def test_a_storage_that_is_away_is_named(what, backend):
    (p, *rest), optimizer = made(3, backend=backend)
    optimizer.step()
    before = [x.detach().clone() for x in rest]
    x = {"parameter": p, "gradient": p.grad}.get(what)
    x = optimizer.state[p][what] if x is None else x
    if what == "gradient" and backend != "cpu":
        pytest.skip("torch's own operations look at gradients there")
    x.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match=r"of shape \(.*\) on cpu has a storage of 0 bytes"):
        optimizer.step()
    assert all(map(torch.equal, before, [x.detach() for x in rest]))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["Adam", "NAdam"])
@pytest.mark.parametrize("shape", [(), (1,)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64, torch.int32])
def test_counts_that_others_put_there_are_counted_in(backend, kind, shape, dtype):
    params, optimizer = made(2, 3, backend, kind)
    counts = [torch.zeros(shape, dtype=dtype) for _ in params]
    for p, count in zip(params, counts, strict=True):
        optimizer.state[p].update(
            step=count, exp_avg=torch.zeros(3), exp_avg_sq=torch.zeros(3)
        )  # fmt: skip
        if kind == "NAdam":
            optimizer.state[p]["mu_product"] = torch.ones(())
    for _ in range(3):
        optimizer.step()
    assert [float(x) for x in counts] == [3, 3]
    counts[0].add_(5)  # another process
    optimizer.step()
    assert [float(x) for x in counts] == [9, 4]
    assert all(optimizer.state[p]["step"] is x for p, x in zip(params, counts, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_count_goes_on_beyond_the_end_of_float32(backend):
    (p, q), optimizer = made(2, 3, backend)
    optimizer.step()
    optimizer.state[p]["step"].fill_(2**24 - 1)
    optimizer.state[q]["step"].fill_(2**24).share_memory_()
    for expected in (2**24, 2**24 + 1, 2**24 + 2, 2**24 + 3):
        optimizer.step()
        assert float(optimizer.state[p]["step"]) == expected
    # another process counts in the same memory: it cannot be put in another place
    assert optimizer.state[q]["step"].is_shared()
    assert float(optimizer.state[q]["step"]) == 2**24


@pytest.mark.parametrize("backend", ["cpu", "foreach"])
def test_noise_beyond_the_end_of_float32(backend):
    p = nn.Parameter(torch.ones(4000, dtype=torch.bfloat16))
    optimizer = steepest.SGD([p], lr=1e-4, rounding="stochastic", backend=backend)
    p.grad = torch.ones_like(p)
    optimizer.step()
    optimizer.state[p]["step"].fill_(2.0**24)
    p.data.fill_(1.0)
    for _ in range(40):
        p.grad = torch.ones_like(p)
        optimizer.step()
    # a coin of odds 1e-4 / 2**-8 (below 1): the same noise every time would move all or none
    moved = (1 - p.detach().float()) / 40e-4
    assert float(moved.mean()) == pytest.approx(1, abs=6 * (2**-8 / 40e-4 / 4000) ** 0.5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_16_bit_parameter_with_a_float32_gradient(backend):
    g = torch.randn(50) * 1e-3
    p, q = (nn.Parameter(torch.ones(50, dtype=torch.bfloat16)) for _ in range(2))
    q.data = q.data.float()
    ours, theirs = steepest.AdamW([p], lr=0.1, backend=backend), torch.optim.AdamW([q], lr=0.1)
    for step in range(3):
        p.grad_dtype = None  # whatever comes
        p.grad, q.grad = (g * (step + 1)).clone(), (g * (step + 1)).clone()
        ours.step()
        theirs.step()
        q.data = p.detach().float()
        # no bit of the gradient is lost
        torch.testing.assert_close(ours.state[p]["exp_avg"], theirs.state[q]["exp_avg"])
    p.grad = torch.ones(50, dtype=torch.bfloat16)
    ours.step()


def test_a_small_language():
    source = """
def twice(x):
    return 2 * x

def f(job):
    total = 0
    for k in range(job[1]):
        if k != 2 and twice(k) < 8 or k == 5:
            total += job[2 + k]
        else:
            total = total | 64
    while total > 1000:
        total = total - 1000
    if total > 5:
        job[0] = -total
        return
    job[0] = 1 << 3
"""
    import numpy as np

    job = np.array([0, 6, 1000, 20, 300, 5, 6, 7], np.int64)
    load_integers("f", source)(job.ctypes.data)
    total = 1000 + 20
    total = (total | 64) + 5
    total = (total | 64) + 7
    while total > 1000:
        total -= 1000
    assert job[0] == -total


@pytest.mark.parametrize("make", [collections.OrderedDict, partial(collections.defaultdict, int)])
def test_a_state_in_another_mapping_is_looked_at(make):
    (p, _), optimizer = made(2)
    optimizer.step()
    optimizer.state[p] = make(optimizer.state[p])
    optimizer.step()
    old, fresh = optimizer.state[p]["exp_avg"], torch.zeros(1000)
    kept = old.clone()
    optimizer.state[p]["exp_avg"] = fresh
    optimizer.step()
    assert torch.equal(old, kept)
    torch.testing.assert_close(fresh, torch.full((1000,), 0.1))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_parameter_in_two_groups_is_stepped_in_both(backend):
    ends = []
    for library, options in ((torch.optim, {}), (steepest, {"backend": backend})):
        p, q = nn.Parameter(torch.ones(50)), nn.Parameter(torch.ones(7))
        optimizer = library.AdamW([{"params": [p]}, {"params": [q]}], lr=0.1, **options)
        optimizer.param_groups[1]["params"].append(p)
        for _ in range(3):
            p.grad, q.grad = torch.full((50,), 0.5), torch.ones(7)
            optimizer.step()
        ends.append((p.detach(), q.detach(), float(optimizer.state[p]["step"])))
    torch.testing.assert_close(ends[0], ends[1])


def test_two_parameters_with_one_dict_of_states():
    (p, q), optimizer = made(2)
    optimizer.step()
    optimizer.state[q] = optimizer.state[p]
    before = p.detach().clone()
    with pytest.raises(
        RuntimeError, match=r"the same dict in optimizer\.state as another parameter"
    ):
        optimizer.step()
    assert torch.equal(p.detach(), before)


def test_states_are_held_while_a_step_runs(monkeypatch):
    (p,), optimizer = made(1)
    optimizer.step()
    of_state = weakref.ref(optimizer.state[p]["exp_avg"])
    run = optimizer._executor.groups[0].buckets[0].work.run

    def replaced(totals):  # as another thread may do it
        optimizer.state[p]["exp_avg"] = torch.zeros(1000)
        gc.collect()
        assert of_state() is not None
        return run(totals)

    monkeypatch.setattr(optimizer._executor.groups[0].buckets[0].work, "run", replaced)
    optimizer.step()
    gc.collect()
    assert of_state() is None


@pytest.mark.parametrize("backend", BACKENDS)
def test_views_whose_values_are_not_in_memory(backend):
    (p,), optimizer = made(1, 5, backend, "SGD", lr=1.0, momentum=0.9)
    optimizer.step()
    optimizer.state[p]["momentum_buffer"] = (-optimizer.state[p]["momentum_buffer"])._neg_view()
    optimizer.step()
    torch.testing.assert_close(p.detach(), torch.full((5,), 1 - 1.0 - 1.9))
    p.data = p.data._neg_view()
    with pytest.raises(RuntimeError, match=r"of shape \(5,\) .* is a negated or conjugated view"):
        optimizer.step()


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_expanded_state_gets_memory_of_its_own(backend):
    (p,), optimizer = made(1, 5, backend)
    optimizer.step()
    optimizer.state[p]["exp_avg"] = torch.zeros(1).expand(5)
    optimizer.step()
    torch.testing.assert_close(optimizer.state[p]["exp_avg"], torch.full((5,), 0.1))


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_count_for_two_parameters_counts_each_step_once(backend):
    params, optimizer = made(2, 3, backend)
    optimizer.step()
    optimizer.state[params[1]]["step"] = optimizer.state[params[0]]["step"]
    optimizer.step()
    assert [float(optimizer.state[p]["step"]) for p in params] == [2, 2]


@pytest.mark.parametrize("count", [-1.0, math.nan, math.inf])
def test_a_count_that_is_none(count):
    (p,), optimizer = made(1, 3)
    optimizer.step()
    optimizer.state[p]["step"] = torch.tensor(count)
    before = p.detach().clone()
    with pytest.raises(RuntimeError, match=r"the step count in optimizer\.state is"):
        optimizer.step()
    assert torch.equal(p.detach(), before)


def test_a_large_count_as_a_number_of_python():
    (p,), optimizer = made(1, 3)
    optimizer.step()
    optimizer.state[p]["step"] = 2**24 + 3
    optimizer.step()
    assert float(optimizer.state[p]["step"]) == 2**24 + 4


def test_a_state_and_a_backend_of_another_kind():
    (p,), optimizer = made(1, 3)
    optimizer.step()
    optimizer.state = {}
    optimizer.step()
    assert float(optimizer.state[p]["step"]) == 1
    optimizer.backend = "eager"
    optimizer.step()
    assert optimizer.stepped_by() == {"eager"}


def test_a_step_in_inference_mode_and_one_after_it():
    for backend in BACKENDS:
        (p,), optimizer = made(1, 4, backend)
        with torch.inference_mode():
            optimizer.step()
        optimizer.step()
        assert float(optimizer.state[p]["step"]) == 2
