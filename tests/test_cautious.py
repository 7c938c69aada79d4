"""`cautious=True`: a step that is against its gradient, or none."""

import pytest
import torch
from torch import nn

import steepest
from steepest.check.foreign import foreign

BACKENDS = ["cpu", "foreach", "eager"]


def pair(dtype=torch.float64):
    start = torch.linspace(-1, 1, 40, dtype=torch.float64).to(dtype)
    return nn.Parameter(start.clone()), nn.Parameter(start.clone())


def drawn(p, t):
    random = torch.Generator().manual_seed(t)
    g = torch.randn(p.shape, generator=random, dtype=torch.float64)
    g[0] = 0
    return g.to(p.dtype)


OPTIONS = {
    "AdamW": {"lr": 0.01, "weight_decay": 0.1},
    "SGD": {"lr": 0.01, "momentum": 0.9},
    "NAdam": {"lr": 0.01},
    "RMSprop": {"lr": 0.01, "momentum": 0.9, "centered": True},
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", OPTIONS)
def test_it_is_torchs_step_with_a_mask(name, backend):
    """Gradients are drawn, so the averages do not see the mask."""
    p, q = pair()
    options = OPTIONS[name]
    ours = getattr(steepest, name)([p], cautious=True, backend=backend, **options)
    theirs = getattr(torch.optim, name)([q], **options)
    stopped = 0
    for t in range(30):
        p.grad = q.grad = drawn(p, t)
        before, other = p.detach().clone(), q.detach().clone()
        ours.step()
        theirs.step()
        shrunk = 1 - options["lr"] * options.get("weight_decay", 0.0)
        step = shrunk * other - q.detach()
        mask = step * p.grad > 0
        stopped += int((~mask).sum())
        torch.testing.assert_close(p.detach(), shrunk * before - mask * step)
    assert stopped > 50


@pytest.mark.parametrize("backend", BACKENDS)
def test_it_is_pytorch_optimizers_without_its_scale(backend):
    p, q = pair()
    ours = steepest.Lion([p], lr=0.01, cautious=True, backend=backend)
    theirs = foreign("pytorch_optimizer", "Lion", lr=0.01, cautious=True)([q])
    for t in range(30):
        p.grad, q.grad = drawn(p, t), drawn(p, t)
        before, other = p.detach().clone(), q.detach().clone()
        ours.step()
        theirs.step()
        step = p.detach() - before
        scale = step.numel() / (int((step != 0).sum()) + 1)
        torch.testing.assert_close(q.detach() - other, scale * step, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", steepest.rules)
def test_every_rule_takes_it(name):
    ends = []
    for backend in BACKENDS:
        p, _ = pair(torch.float32)
        if name.startswith("schedule_free"):
            with pytest.raises(ValueError, match="expected False; a masked y"):
                steepest.optimizer(name, [p], cautious=True)
            return
        made = steepest.optimizer(name, [p], cautious=True, backend=backend)
        made.param_groups[0].update(
            {"weight_decay": 0.0} if "weight_decay" in made.defaults else {}
        )
        for t in range(5):
            p.grad = drawn(p, t)
            before = p.detach().clone()
            made.step()
            assert bool(((before - p.detach()) * p.grad >= 0).all())
        ends.append(p.detach())
    torch.testing.assert_close(ends[0], ends[2], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ends[1], ends[2], rtol=1e-5, atol=1e-6)


def test_it_stands_in_a_group_only_if_given_and_may_change():
    p, q = pair()
    assert "cautious" not in steepest.AdamW([p]).param_groups[0]
    made = steepest.AdamW([{"params": [p], "cautious": True}, {"params": [q]}], lr=0.1)
    assert [g.get("cautious") for g in made.param_groups] == [True, None]
    p.grad = torch.ones_like(p)
    made.step()
    p.grad = -0.1 * torch.ones_like(p)  # against the average
    before = p.detach().clone()
    made.param_groups[0]["weight_decay"] = 0.0
    made.step()
    assert torch.equal(p, before)
    other = steepest.AdamW([{"params": [p]}, {"params": [q]}])
    other.load_state_dict(made.state_dict())
    other.param_groups[0]["cautious"] = False
    other.step()
    assert not torch.equal(p, before)


def test_an_ascent_is_cautious_too():
    p, q = pair()
    up = steepest.AdamW([p], lr=0.1, cautious=True, maximize=True)
    down = steepest.AdamW([q], lr=0.1, cautious=True)
    for t in range(10):
        p.grad, q.grad = -drawn(p, t), drawn(p, t)
        up.step()
        down.step()
    torch.testing.assert_close(p, q)
