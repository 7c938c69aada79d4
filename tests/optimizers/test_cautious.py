"""`cautious=True`: a step that is against its gradient, or none."""

import pytest
import torch
from torch import nn

import steepest
from steepest.oracles.foreign import foreign

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
            with pytest.raises(ValueError, match="expected False, because y would no longer be"):
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


SHRUNK = {
    "adan": lambda lr, decay: 1 / (1 + lr * decay),
    "prodigy": lambda lr, decay: 1 - 1e-6 * lr * decay,  # its rate is d * lr
}
COUPLED = {name for name, rule in steepest.rules.items() if rule.decay == "coupled"}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "name",
    [n for n in steepest.rules if n not in COUPLED and not n.startswith(("schedule", "rprop"))],
)
def test_decay_is_never_masked(name, backend):
    """Where the gradient is 0 or against the step, the decay is all that is left."""
    p = nn.Parameter(torch.linspace(0.5, 1.5, 12, dtype=torch.float64).reshape(4, 3))
    lr, decay = 0.01, 0.2
    options = {"muon": {"adamw_lr": lr}}.get(name, {})
    made = steepest.optimizer(
        name, [p], lr=lr, weight_decay=decay, cautious=True, backend=backend, **options
    )
    for t in range(4):
        random = torch.Generator().manual_seed(t)
        p.grad = torch.randn(p.shape, generator=random, dtype=torch.float64)
        p.grad[0] = 0
        before = p.detach().clone()
        made.step()
        if name == "soap" and t == 0:
            continue  # its first step moves nothing
        share = p.detach()[0] / before[0]
        if name in ("lars", "lamb"):  # a rate of its own for each tensor
            assert bool((share < 1).all())
            torch.testing.assert_close(share, share[:1].expand(3), rtol=1e-12, atol=0)
            continue
        wanted = SHRUNK.get(name, lambda lr, decay: 1 - lr * decay)(lr, decay)
        wanted = wanted / (1 + lr**2) ** 0.5 if name == "fromage" else wanted
        torch.testing.assert_close(share, torch.full_like(share, wanted), rtol=1e-9, atol=0)
        # no coordinate moves along its gradient, but for the decay
        step = wanted * before - p.detach()
        assert bool((step * p.grad >= -1e-15).all())


@pytest.mark.parametrize("backend", BACKENDS)
def test_nor_is_that_of_a_rule_of_ones_own(backend):
    @steepest.rule
    def shrinking_momentum(p, g, b, *, lr=0.1, wd=0.0):
        b = 0.9 * b + g
        return (p - lr * b) * (1 - lr * wd), b

    p = nn.Parameter(torch.ones(2, dtype=torch.float64))
    made = steepest.optimizer(
        shrinking_momentum, [p], weight_decay=0.5, cautious=True, backend=backend
    )
    p.grad = torch.ones_like(p)
    made.step()
    torch.testing.assert_close(p.detach(), torch.full_like(p, 0.9 * 0.95))
    p.grad = torch.tensor([-0.1, 1.0]).double()  # against the momentum; along it
    made.step()
    wanted = torch.tensor([0.855 * 0.95, (0.855 - 0.19) * 0.95]).double()
    torch.testing.assert_close(p.detach(), wanted)


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
