"""What docs/errata.md says is not so, shown: each test bears the name that the page gives it."""

import inspect
import math
import threading

import adabound
import numpy as np
import pytest
import torch
from adabelief_pytorch import AdaBelief as Published
from torch import nn

import steepest

# the packages' own deprecated signatures
pytestmark = pytest.mark.filterwarnings("ignore:This overload of:UserWarning")
RULES = steepest.rules


def belief(params, **options):
    return Published(params, print_change_log=False, **{"rectify": False, **options})


def path(make, gradients, start=1.0, **options):
    """The parameter after each step."""
    p = nn.Parameter(torch.tensor([start], dtype=torch.float64))
    optimizer, found = make([p], **options), []
    for g in gradients:
        p.grad = torch.tensor([g], dtype=torch.float64)
        optimizer.step()
        found.append(p.item())
    return found


def noise(count, seed=0):
    return np.random.default_rng(seed).standard_normal(count).tolist()


# AdaBelief


def test_the_eps_of_adabelief_does_not_grow_with_t():
    p, m, s, eps = 0.0, 0.0, 0.0, 1e-16
    for t in range(1, 20_001):
        p, m, s, _ = RULES["adabelief"](p, 0.0, m, s, 0.0, t=t, eps=eps, rectify=False)
        assert s / (1 - 0.999**t) == pytest.approx(eps / (1 - 0.999), rel=1e-9)
    assert s < 20_000 * eps / 19


def test_the_package_has_that_floor_too():
    p = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = belief([p], eps=1e-16)
    for t in range(1, 301):
        p.grad = torch.zeros_like(p)
        optimizer.step()
        s = optimizer.state[p]["exp_avg_var"].item()
        assert s / (1 - 0.999**t) == pytest.approx(1e-13, rel=1e-9)


def test_squaring_adams_eps_misses_by_a_root_of_a_thousand():
    # of a gradient so small that eps alone decides
    g, lr = 1e-12, 1e-3
    adam = -path(torch.optim.Adam, [g], start=0.0, lr=lr, eps=1e-8)[0]
    ours = -path(belief, [g], start=0.0, lr=lr, eps=1e-16)[0]
    assert adam / ours == pytest.approx(math.sqrt(1 / (1 - 0.999)), rel=0.05)


def test_beta1_zero_is_allowed_and_explodes():
    moved = path(belief, [1.0], start=0.0, lr=1e-3, betas=(0.0, 0.999))[0]
    assert moved == pytest.approx(-1e-3 / math.sqrt(1e-16 / (1 - 0.999)), rel=0.01)
    assert abs(moved) > 3000
    with pytest.raises(ValueError, match="beta1=0"):
        steepest.AdaBelief([nn.Parameter(torch.zeros(1))], betas=(0.0, 0.999))


def test_the_defaults_begin_as_momentum():
    assert inspect.signature(Published).parameters["rectify"].default is True
    gradients = noise(6)
    found = path(belief, gradients, lr=1e-3, rectify=True)
    p, m = 1.0, 0.0
    for t, g in enumerate(gradients[:5], start=1):
        m = 0.9 * m + 0.1 * g
        p -= 1e-3 * m / (1 - 0.9**t)
        assert found[t - 1] == pytest.approx(p, abs=1e-14)
    m = 0.9 * m + 0.1 * gradients[5]
    assert abs(found[5] - (p - 1e-3 * m / (1 - 0.9**6))) > 1e-6


def test_amsgrad_is_without_effect_under_rectify():
    gradients = [5.0, -5.0, *noise(100)]
    both = [path(belief, gradients, amsgrad=a, rectify=True) for a in (False, True)]
    assert both[0] == both[1]
    plain = [path(belief, gradients, amsgrad=a) for a in (False, True)]
    assert plain[0] != plain[1]


def coupled(gradients, decay, late):
    """AdaBelief with L2 decay added to the gradient before the averages, or after them."""
    p, m, s, found = 1.0, 0.0, 0.0, []
    for t, g in enumerate(gradients, start=1):
        g = g if late else g + decay * p
        m = 0.9 * m + 0.1 * g
        s = 0.999 * s + 0.001 * (g - m) ** 2 + 1e-16
        g = g + decay * p if late else g  # too late: nothing reads it any more
        p -= 1e-3 * (m / (1 - 0.9**t)) / (math.sqrt(s / (1 - 0.999**t)) + 1e-16)
        found.append(p)
    return found


def test_decay_after_the_averages_is_no_decay():
    gradients = noise(50)
    assert coupled(gradients, 0.5, late=True) == coupled(gradients, 0.0, late=True)
    now = path(belief, gradients, lr=1e-3, weight_decay=0.5, weight_decouple=False)
    assert coupled(gradients, 0.5, late=False) == pytest.approx(now, rel=1e-12)
    assert abs(now[-1] - coupled(gradients, 0.0, late=False)[-1]) > 1e-4


def test_a_checkpoint_forgets_how_it_decays():
    def run(resumed_with):
        p = nn.Parameter(torch.ones(1, dtype=torch.float64))
        optimizer = belief([p], lr=0.1, weight_decay=0.5, weight_decouple=True)
        p.grad = torch.ones_like(p)
        optimizer.step()
        saved = optimizer.state_dict()
        assert "weight_decouple" not in saved["param_groups"][0]
        resumed = belief([p], lr=0.1, weight_decay=0.5, weight_decouple=resumed_with)
        resumed.load_state_dict(saved)
        p.grad = torch.ones_like(p)
        resumed.step()
        return p.item()

    assert run(True) != run(False)
    mine = steepest.AdaBelief([nn.Parameter(torch.ones(1))], weight_decouple=False)
    assert mine.state_dict()["param_groups"][0]["weight_decouple"] is False


# AdaBound


def test_a_group_added_later_is_never_stepped():
    moved = {}
    for make in (adabound.AdaBound, steepest.AdaBound):
        first, later = (nn.Parameter(torch.ones(1)) for _ in range(2))
        optimizer = make([first])
        optimizer.add_param_group({"params": [later]})
        for p in (first, later):
            p.grad = torch.ones_like(p)
        optimizer.step()
        moved[make] = first.item() != 1, later.item() != 1
    assert moved == {adabound.AdaBound: (True, False), steepest.AdaBound: (True, True)}


def test_a_resumed_run_has_other_bounds():
    def run(make, resume):
        p = nn.Parameter(torch.ones(1, dtype=torch.float64))
        optimizer = make([p], lr=1e-2)
        for t in range(2):
            if t == 1:
                optimizer.param_groups[0]["lr"] = 1e-4  # as a schedule has it
                if resume:
                    saved, optimizer = optimizer.state_dict(), make([p], lr=1e-4)
                    optimizer.load_state_dict(saved)
            p.grad = torch.full_like(p, 1e3)
            optimizer.step()
        return p.item()

    assert run(adabound.AdaBound, True) != run(adabound.AdaBound, False)
    assert run(steepest.AdaBound, True) == run(steepest.AdaBound, False)


def test_a_warm_up_from_zero_divides_by_zero():
    with pytest.raises(ZeroDivisionError):
        path(adabound.AdaBound, [1.0], lr=0.0)
    assert path(steepest.AdaBound, [1.0], lr=0.0) == [1.0]


def test_the_bounds_that_make_it_adam_cannot_be_given():
    adabound.AdaBound([nn.Parameter(torch.ones(1))], gamma=0)  # accepted
    with pytest.raises(ZeroDivisionError):
        path(adabound.AdaBound, [1.0], gamma=0)
    gradients = noise(30)
    ours = path(steepest.AdaBound, gradients, gamma=0, eps=0.0)
    adam = path(torch.optim.Adam, gradients, eps=0.0)
    assert ours == pytest.approx(adam, rel=1e-12)


def test_final_lr_is_a_tenth_of_what_sgd_calls_so():
    # a constant gradient, bounds that are closed, and averages that have settled
    gradients = [1.0] * 400
    moves = {}
    for name, found in {
        "bound": path(adabound.AdaBound, gradients, final_lr=0.1, gamma=0.999),
        "sgd": path(torch.optim.SGD, gradients, lr=0.1, momentum=0.9),
        "tenth": path(torch.optim.SGD, gradients, lr=0.01, momentum=0.9),
    }.items():
        moves[name] = found[-2] - found[-1]
    assert moves["sgd"] / moves["bound"] == pytest.approx(10, rel=0.01)
    assert moves["tenth"] == pytest.approx(moves["bound"], rel=0.01)


def test_adabound_is_nearly_sgd_after_three_epochs():
    def bounds(t, gamma=1e-3):
        p = [adabound_rate(t, gamma, v) for v in (1e-30, 1e30)]
        return min(p), max(p)

    def adabound_rate(t, gamma, v):
        """What the rule multiplies the average by, for a tiny or huge second moment."""
        made = RULES["adabound"](0.0, 0.0, 1.0, v, t=t, gamma=gamma, beta1=0.5, beta2=0.999)
        return -made[0] / made[1]

    low, high = bounds(3 * 391)  # steps of an epoch of CIFAR-10 at batch 128
    assert 0.05 < low < 0.1 < high < 0.2
    low, high = bounds(1)
    assert high / low > 1e5


# the overviews


def test_hogwild_shares_every_coordinate():
    random = np.random.default_rng(0)
    size, examples = 40, 400
    truth = random.standard_normal(size)
    rows = [random.choice(size, 3, replace=False) for _ in range(examples)]
    values = [random.standard_normal(3) for _ in rows]
    targets = [v @ truth[r] for r, v in zip(rows, values, strict=True)]
    x, wrote = np.zeros(size), [set[int](), set[int]()]

    def work(which):
        own = np.random.default_rng(which + 1)
        for i in own.integers(examples, size=20_000):  # of all examples, not of a share
            r, v = rows[i], values[i]
            wrote[which].update(r.tolist())
            x[r] -= 0.1 * (v @ x[r] - targets[i]) * v  # no lock

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrote[0] == wrote[1] == {*range(size)}
    assert abs(x - truth).max() < 1e-3


def test_batch_norm_acts_in_the_forward_pass():
    norm = nn.BatchNorm1d(3).double()
    before = {k: v.clone() for k, v in norm.state_dict().items()}
    y = norm(torch.randn(64, 3, dtype=torch.float64) * 5 + 2)
    assert y.mean(0).abs().max() < 1e-12
    assert (y.var(0, correction=0) - 1).abs().max() < 1e-5
    forward = {k: v.clone() for k, v in norm.state_dict().items()}
    assert not torch.equal(before["running_mean"], forward["running_mean"])
    y.pow(2).sum().backward()  # which changes nothing any more
    assert all(torch.equal(v, forward[k]) for k, v in norm.state_dict().items())


def test_d_model_is_the_width():
    def rate(d_model, t, warmup=4000):
        return d_model**-0.5 * min(t**-0.5, t * warmup**-1.5)

    model = nn.Transformer(d_model=512, batch_first=True, device="meta")
    count = sum(p.numel() for p in model.parameters())
    assert rate(512, 4000) == pytest.approx(7.0e-4, rel=0.01)
    assert rate(count, 4000) < 7.0e-4 / 200  # nothing would be learned at that


def test_descent_is_stuck_on_a_saddle_only_where_it_starts_on_the_ridge():
    def height(offset):
        x = nn.Parameter(torch.tensor([1.0, offset], dtype=torch.float64))
        optimizer = steepest.SGD([x], lr=0.05)
        for _ in range(200):
            optimizer.zero_grad()
            (x[0] ** 2 - x[1] ** 2).backward()
            optimizer.step()
        return (x[0] ** 2 - x[1] ** 2).item()

    assert abs(height(0.0)) < 1e-6
    assert height(1e-6) < -1
