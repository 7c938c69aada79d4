"""Schedule-Free's two points: what `train()` and `eval()` put in the place of the parameters."""

import copy

import pytest
import schedulefree
import torch
from torch import nn

import steepest

NAMES = ["SGDScheduleFree", "AdamWScheduleFree"]
BACKENDS = ["cpu", "foreach", "eager"]


def leaf(dtype=torch.float64):
    return nn.Parameter(torch.linspace(-1, 1, 8, dtype=torch.float64).to(dtype))


def go_on(p, made, first=0, steps=10):
    for k in range(first, first + steps):
        p.grad = torch.cos(p.detach() * (k + 1))
        made.step()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", NAMES)
def test_both_points_are_those_of_the_authors_package(name, backend):
    p, q = leaf(), leaf()
    ours = getattr(steepest, name)([p], lr=0.1, backend=backend)
    theirs = getattr(schedulefree, name)([q], lr=0.1)
    theirs.train()
    for first in range(0, 40, 10):
        go_on(p, ours, first)
        go_on(q, theirs, first)
        y = p.detach().clone()
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14)
        for made in (ours, theirs):
            made.eval()
            made.eval()  # twice is once
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14)
        assert not torch.allclose(p, y)
        for made in (ours, theirs):
            made.train()
            made.train()
        torch.testing.assert_close(p.detach(), y, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("name", NAMES)
def test_x_is_the_weighted_mean_of_all_z(name):
    p = leaf()
    made = getattr(steepest, name)([p], lr=0.1)
    points = []
    for k in range(30):
        go_on(p, made, k, 1)
        points.append(made.state[p]["z"].clone())
    made.eval()
    torch.testing.assert_close(p.detach(), torch.stack(points).mean(0), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("train", [True, False], ids=["saved-training", "saved-evaluating"])
@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_of_either_mode_goes_on_exactly(name, train):
    p = leaf()
    made = getattr(steepest, name)([p], lr=0.1)
    go_on(p, made)
    if not train:
        made.eval()
    saved = copy.deepcopy(made.state_dict()), p.detach().clone()
    made.train()
    go_on(p, made, 10)
    q = nn.Parameter(saved[1])
    resumed = getattr(steepest, name)([q], lr=0.1)
    resumed.load_state_dict(saved[0])
    assert resumed.param_groups[0]["train_mode"] is train
    resumed.train()
    go_on(q, resumed, 10)
    assert torch.equal(p, q)


@pytest.mark.parametrize("name", NAMES)
def test_a_step_on_the_average_is_refused(name):
    p = leaf()
    made = getattr(steepest, name)([p])
    made.eval()  # nothing to switch yet
    p.grad = torch.ones_like(p)
    before = p.detach().clone()
    handle = made.register_step_pre_hook(lambda *_: None)  # the step takes another way then
    with pytest.raises(RuntimeError, match=r"call optimizer.train\(\) before"):
        made.step()
    handle.remove()
    with pytest.raises(RuntimeError, match=r"call optimizer.train\(\) before"):
        made.step()
    assert torch.equal(p, before)
    made.train()
    made.step()
    made.eval()
    made.add_param_group({"params": [leaf()]})
    assert [g["train_mode"] for g in made.param_groups] == [False, False]


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_and_complex_parameters_switch_too(name):
    for dtype in (torch.bfloat16, torch.complex128):
        p = leaf(dtype)
        made = getattr(steepest, name)([p], lr=0.01)
        go_on(p, made, 0, 5)
        y = p.detach().clone()
        made.eval()
        x = p.detach().clone()
        made.train()
        assert not torch.equal(x, y)
        torch.testing.assert_close(p.detach(), y)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("damage", ["shape", "freed", "number"])
def test_a_damaged_state_switches_nothing(name, damage):
    params = [nn.Parameter(torch.ones(2, 3)), nn.Parameter(torch.ones(3, 2))]
    optimizer = getattr(steepest, name)([{"params": [p]} for p in params], lr=0.1)
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()
    before, z = [p.detach().clone() for p in params], optimizer.state[params[1]]["z"]
    if damage == "freed":
        z.untyped_storage().resize_(0)
    else:
        optimizer.state[params[1]]["z"] = z[:2] if damage == "shape" else 3.0
    with pytest.raises(RuntimeError, match=r"state 'z' is .*restore both"):
        optimizer.eval()
    assert all(torch.equal(p, old) for p, old in zip(params, before, strict=True))
    assert all(group["train_mode"] for group in optimizer.param_groups)
