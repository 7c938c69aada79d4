"""differentiable=True: autograd goes through all that a step depends on. The oracles are
torch.optim's own gradients, and finite differences: of torch.optim's steps where it has the class.
"""

import warnings
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import steepest
from steepest.families import family_of
from steepest.options import PAIRS

RULES = sorted({*steepest.rules} - {"muon"})
OF_MATRICES = ("adafactor", "soap")


@pytest.fixture(autouse=True)
def _float64():
    torch.set_default_dtype(torch.float64)  # else torch keeps some of its scalars in float32
    yield
    torch.set_default_dtype(torch.float32)


def numbers(*values):
    return [torch.tensor(v, requires_grad=True) for v in values]


def end(kind, start, grads, options, names=(), values=()):
    """Where the steps on these gradients lead; a None among them is a step without one."""
    options, pairs = dict(options), {}
    for name, value in zip(names, values, strict=True):
        key, index = name.split(".") if "." in name else (name, None)
        if index is None:
            options[key] = value
        else:
            pairs.setdefault(key, [*options[key]])[int(index)] = value
    options |= {key: tuple(pair) for key, pair in pairs.items()}
    p, other = start.clone(), torch.ones(2)
    made = kind([p, other], **options)
    for g in grads:
        p.grad, other.grad = None if g is None else g * 1, torch.tensor([0.5, -0.2])
        made.step()
    return p


def slope(function, values, k, size=1e-5):
    """The derivative of a number by one of its tensors, along itself, tilted, by differences."""
    x = values[k].detach()
    step = size * x * torch.linspace(0.5, 1.5, x.numel()).reshape(x.shape)
    ways = [[*values[:k], x + s, *values[k + 1 :]] for s in (step, -step)]
    return (function(ways[0]) - function(ways[1])).item() / 2, step


def assert_slopes(function, values, others=None):
    """Autograd through `function` finds what differences of `others` (or of itself) do."""
    found = torch.autograd.grad(function(values), values, allow_unused=True)
    for k, (x, mine) in enumerate(zip(values, found, strict=True)):
        change, step = slope(others or function, values, k)
        got = 0.0 if mine is None else (mine * step).sum().item()
        assert got == pytest.approx(change, rel=1e-4, abs=1e-14), (k, tuple(x.shape))


# torch.optim's own gradients

THROUGH = {
    "SGD": ({"weight_decay": 0.1}, "lr weight_decay"),  # it detaches its first momentum
    "Adam": ({"betas": (0.8, 0.9), "eps": 1e-3, "weight_decay": 0.1},
             "lr weight_decay betas.0 betas.1"),
    "AdamW": ({"betas": (0.8, 0.9), "eps": 1e-3}, "lr weight_decay betas.0 betas.1"),
    "RAdam": ({"betas": (0.8, 0.9)}, "lr"),
    "NAdam": ({}, ""), "RMSprop": ({"momentum": 0.5}, ""), "Adagrad": ({}, ""),
    "Adadelta": ({"weight_decay": 0.1}, ""),
}  # fmt: skip
"""Class -> options, and those that torch lets autograd through as tensors, beside the gradients."""


@pytest.mark.parametrize("name", THROUGH)
def test_gradients_are_torchs_own(name):
    options, hyper = THROUGH[name]
    hyper = hyper.split()
    start, *grads = numbers([0.5, -1.0], [1.0, -0.7], [-0.3, -0.9], [0.4, 0.6])
    given = {"lr": 0.05, "weight_decay": 0.1, "betas.0": 0.8, "betas.1": 0.9}
    tensors = numbers(*(given[h] for h in hyper))
    found = []
    for lib in (torch.optim, steepest):
        kind = getattr(lib, name)
        p = end(kind, start, grads, {**options, "differentiable": True}, hyper, tensors)
        loss = (p * torch.tensor([1.0, 2.0])).sum()
        found.append(torch.autograd.grad(loss, [start, *grads, *tensors]))
    torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-12)


# finite differences of torch.optim's plain steps, by every number that a class takes

PLAIN = {
    "SGD": {"lr": 0.05, "momentum": 0.9, "dampening": 0.1, "weight_decay": 0.1},
    "ASGD": {"lr": 0.05, "lambd": 0.01, "alpha": 0.6, "t0": 1.5, "weight_decay": 0.1},
    "Rprop": {"lr": 0.05, "etas": (0.4, 1.3), "step_sizes": (1e-6, 50.0)},
    "Adagrad": {"lr": 0.05, "lr_decay": 0.1, "weight_decay": 0.1, "eps": 1e-2,
                "initial_accumulator_value": 0.2},
    "Adadelta": {"lr": 0.5, "rho": 0.8, "eps": 1e-2, "weight_decay": 0.1},
    "RMSprop": {"lr": 0.05, "alpha": 0.8, "eps": 1e-2, "weight_decay": 0.1, "momentum": 0.5},
    "Adam": {"lr": 0.05, "betas": (0.8, 0.9), "eps": 1e-2, "weight_decay": 0.1},
    "AdamW": {"lr": 0.05, "betas": (0.8, 0.9), "eps": 1e-2, "weight_decay": 0.1},
    "Adamax": {"lr": 0.05, "betas": (0.8, 0.9), "eps": 1e-2, "weight_decay": 0.1},
    "NAdam": {"lr": 0.05, "betas": (0.8, 0.9), "eps": 1e-2, "weight_decay": 0.1,
              "momentum_decay": 0.01},
    "RAdam": {"lr": 0.05, "betas": (0.8, 0.9), "eps": 1e-2, "weight_decay": 0.1},
    "Adafactor": {"lr": 0.05, "beta2_decay": -0.8, "eps": (1e-3, 1e-3), "d": 1.5,
                  "weight_decay": 0.1},
}  # fmt: skip


@pytest.mark.parametrize("name", PLAIN)
def test_every_number_of_torchs_classes_has_its_gradient(name):
    hyper = []
    for key, value in PLAIN[name].items():
        pair = [(f"{key}.{i}", v) for i, v in enumerate(value)] if type(value) is tuple else []
        hyper += pair or [(key, value)]
    names = [n for n, _ in hyper]
    values = numbers([0.5, -1.0, 0.8], [1.0, -0.7, 0.3], [-0.3, -0.9, 0.5], [0.4, 0.6, -0.8],
                     *(v for _, v in hyper))  # fmt: skip
    weights = torch.tensor([1.0, 2.0, -0.5])

    def ours(values):
        start, *rest = values
        options = {**PLAIN[name], "differentiable": True}
        p = end(getattr(steepest, name), start, rest[:3], options, names, rest[3:])
        return (weights * (p - start)).sum()

    def theirs(values):
        start, *rest = (x.detach() for x in values)
        plain = [x.item() for x in rest[3:]]
        p = end(getattr(torch.optim, name), start, rest[:3], PLAIN[name], names, plain)
        return (weights * (p - start)).sum()

    assert theirs(values).item() == pytest.approx(ours(values).item(), rel=1e-12)
    assert_slopes(ours, values, theirs)


# every rule

FINE = {"lr": 0.05, "wd": 0.1, "beta2": 0.9, "beta1": 0.8, "d0": 0.1, "d": 1.5, "momentum": 0.7,
        "growth_rate": 1.5, "dampening": 0.2, "eps": 1e-2, "eps1": 1e-2, "beta3_warmup": 5.0,
        "alpha_warmup": 4.0, "warmup_steps": 4.5, "t0": 1.5, "initial_accumulator_value": 0.2,
        "adamw_lr": 0.05, "r": 0.3}  # fmt: skip
COUNTS = {"precondition_frequency", "step_min", "step_max"}


def of_a_rule(rule, tensors=True, **more):
    """The function (parameter, gradients, numbers) -> a number, and the numbers' values."""
    made = steepest.rules[rule]
    takes = family_of(rule).arguments
    found: dict[str, Any] = {n: FINE.get(n, v) for n, v in made.defaults.items() if n not in COUNTS}
    if "weight_decay" in takes and "wd" not in found:
        found["weight_decay"] = 0.1

    def run(values, differentiable=True):
        start, *rest = values
        numbers = rest[len(rest) - len(found) :]
        options, pairs = {}, {}
        for name, value in zip(found, numbers, strict=True):
            value = value if tensors else float(value)
            key, index = PAIRS.get(name, (name, None))
            if index is None or key not in takes:
                options[name if key not in takes else key] = value
            else:
                pairs.setdefault(key, [*takes[key]])[index] = value
        options |= {k: tuple(v) for k, v in pairs.items()} | more
        p = start.clone()
        both = [p, torch.ones(2)]
        optimizer = steepest.optimizer(rule, both, differentiable=differentiable, **options)
        for g in rest[: len(rest) - len(found)]:
            p.grad, both[1].grad = g * 1, torch.tensor([0.5, -0.2])
            optimizer.step()
        if hasattr(optimizer, "eval"):
            optimizer.eval()
        moved = p - start
        return (moved * torch.linspace(0.5, 1.5, p.numel()).reshape(p.shape)).sum()

    return run, [float(v) for v in found.values()]


def drawn(seed, shape, count=3):
    random = torch.Generator().manual_seed(seed)
    tensors = [torch.randn(shape, generator=random) for _ in range(count + 1)]
    return [x + 0.2 * x.sign() for x in tensors]


SHAPES = st.sampled_from([(), (3,), (3, 2)])


@pytest.mark.parametrize("rule", RULES)
@given(seed=st.integers(0, 999), shape=SHAPES, cautious=st.booleans())
@settings(max_examples=2, deadline=None, derandomize=True, database=None)
def test_finite_differences_through_every_rule(rule, seed, shape, cautious):
    more = {} if rule.startswith("schedule_free") else {"cautious": cautious}
    run, hyper = of_a_rule(rule, **more)
    values = [x.requires_grad_() for x in drawn(seed, shape)] + numbers(*hyper)
    assert_slopes(run, values)
    plain, _ = of_a_rule(rule, tensors=False, **more)
    with torch.no_grad():
        expected = plain(values, differentiable=False)
    assert run(values).item() == pytest.approx(expected.item(), rel=1e-11, abs=1e-14)


@pytest.mark.parametrize("rule", ["adam", "lars", "lamb", "novograd", "prodigy", "nadam"])
def test_gradcheck_of_the_whole_jacobian(rule):
    run, hyper = of_a_rule(rule)
    values = [x.requires_grad_() for x in drawn(1, (2,), 2)] + numbers(*hyper)
    assert torch.autograd.gradcheck(lambda *v: 10 * run(v), values, atol=1e-7, rtol=1e-4)


def test_novograd_carries_the_history_of_its_scalar():
    """By differences of the closed form, written here."""
    (w,) = numbers([1.0, 2.0])
    p = torch.tensor([0.3, 0.7], requires_grad=True).clone()
    made = steepest.NovoGrad([p], lr=0.1, differentiable=True)
    for t in (1, 2):
        p.grad = w * t
        made.step()

    def closed(w):
        v1 = w.norm() ** 2
        v2 = 0.98 * v1 + 0.02 * 4 * v1
        m1 = w / (v1.sqrt() + 1e-8)
        m2 = 0.95 * m1 + 2 * w / (v2.sqrt() + 1e-8)
        return -0.1 * (m1 + m2).sum()

    (found,) = torch.autograd.grad(p.sum(), w)
    (expected,) = torch.autograd.grad(closed(w), w)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    assert found.tolist() == pytest.approx([-0.0696, 0.0348], abs=1e-4)


def test_clipping_over_a_group_is_gone_through():
    def run(values):
        a, b, *grads, clip = values
        ps = [a.clone(), b.clone()]
        made = steepest.Adam(ps, lr=0.1, eps=0.1, clip_norm=clip, differentiable=True)
        for ga, gb in (grads[:2], grads[2:]):
            ps[0].grad, ps[1].grad = ga * 1, gb * 1
            made.step()
        return ps[0].sum() + 2 * ps[1].sum()

    values = numbers([0.5, -1.0], [0.3], [1.0, -0.7], [2.0], [0.1, 0.4], [-0.9], 0.8)
    assert_slopes(run, values)


def test_a_step_without_gradient_and_complex_numbers():
    for rule in ("adam", "lamb", "novograd", "prodigy"):

        def run(values, rule=rule):
            start, one, three = (torch.view_as_complex(x.requires_grad_() * 1) for x in values)
            p, other = start.clone(), torch.ones(2)
            p.retain_grad()  # else torch warns where the gradient is missing
            made = steepest.optimizer(rule, [p, other], lr=0.1, differentiable=True)
            for g in (one, None, three):
                p.grad, other.grad = g, torch.ones(2)
                made.step()
            return (torch.view_as_real(p) - values[0]).flatten() @ torch.arange(1.0, 5)

        assert_slopes(run, numbers([[1.0, 2], [3, -1]], [[0.5, 1], [-1, 2]], [[1.0, -2], [1, 1]]))


def test_two_groups_have_a_tensor_each():
    def run(values):
        lr, other, w = values
        ps = [w.clone(), w.clone(), w.clone()]
        groups = [{"params": ps[:1]}, {"params": ps[1:2], "lr": other},
                  {"params": ps[2:], "rule": "lamb", "lr": other}]  # fmt: skip
        made = steepest.AdamW(groups, lr=lr, differentiable=True)
        for t in (1, 2):
            for p in ps:
                p.grad = w.cos() * t
            made.step()
        return torch.stack(ps).sum(1) @ torch.tensor([1.0, 2.0, 3.0])

    assert_slopes(run, numbers(0.1, 0.2, [0.4, -0.8]))


@pytest.mark.parametrize("kind", ["SGD", "RMSprop"])
def test_a_decay_and_a_momentum_of_zero_have_gradients_too(kind):
    names, start, g = ["weight_decay", "momentum"], torch.tensor([0.5, -1.0]), torch.ones(2)
    zeros = numbers(0.0, 0.0)
    made = getattr(steepest, kind)
    p = end(made, start, [g, 2 * g, -g], {"lr": 0.1, "differentiable": True}, names, zeros)
    found = torch.autograd.grad(p.sum(), zeros)
    theirs = getattr(torch.optim, kind)
    for k, name in enumerate(names):
        # one-sided, extrapolated: torch takes no negative ones
        at = [end(theirs, start, [g, 2 * g, -g], {"lr": 0.1, name: h}).sum().item()
              for h in (0.0, 1e-4, 2e-4)]  # fmt: skip
        change = (4 * at[1] - at[2] - 3 * at[0]) / 2e-4
        assert found[k].item() == pytest.approx(change, rel=1e-5)


def test_of_a_side_not_taken_no_nan_comes_back():
    """RAdam's factor is nan at first, AdEMAMix divides by its warm-up, Prodigy may grow by inf."""
    g, beta, warm, growth = numbers([1.0, 0.5], 0.999, 0.0, float("inf"))
    for kind, name, value, more in (
        (steepest.RAdam, "betas.1", beta, {"betas": (0.9, 0.999)}),
        (steepest.AdEMAMix, "beta3_warmup", warm, {}),
        (steepest.Prodigy, "growth_rate", growth, {}),
    ):
        options = {**more, "differentiable": True}
        p = end(kind, torch.ones(2), [g, g, g], options, [name], [value])
        found = torch.autograd.grad(p.sum(), [g, value], allow_unused=True)
        assert found[0].isfinite().all(), kind
        assert found[1] is None or found[1] == 0, kind


# learning to learn


def test_inner_steps_of_gradient_descent_have_the_derivative_of_the_closed_form():
    """Of k x^2 / 2 they make (1 - lr k)^n x."""
    lr, x = numbers(0.1, [2.0, -1.0])
    k, n, p = torch.tensor([1.0, 3.0]), 5, x.clone()
    made = steepest.SGD([p], lr=lr, differentiable=True)
    for _ in range(n):
        p.grad = k * p
        made.step()
    found = torch.autograd.grad(p.sum(), [lr, x])
    torch.testing.assert_close(found[0], (-n * k * (1 - lr * k) ** (n - 1) * x).sum())
    torch.testing.assert_close(found[1], (1 - lr * k) ** n)


@pytest.mark.parametrize("name", ["SGD", "AdamW", "NAdam", "Adagrad"])
def test_a_learnt_rate_and_start_have_the_slopes_of_torchs_inner_loop(name):
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    y = x @ torch.tensor([1.0, -2.0]) + 0.5

    def outer(values, lib, **options):
        lr, decay, *start = values
        ps = [s.clone() for s in start]
        made = getattr(lib, name)(ps, lr=lr, weight_decay=decay, **options)
        for _ in range(4):
            loss = ((x @ ps[0] + ps[1]).tanh() - y).square().mean()
            grads = torch.autograd.grad(loss, ps, create_graph=True)
            for p, g in zip(ps, grads, strict=True):
                p.grad = g if options else g.detach()
            made.step()
        return (x @ ps[0] + ps[1] - y).square().mean()

    def theirs(values):
        lr, decay, *start = values
        # a view of a leaf, so that the inner gradient can be asked for
        start = [s.detach().requires_grad_() for s in start]
        with torch.enable_grad():
            ps = [torch.nn.Parameter(s.detach().clone()) for s in start]
            made = getattr(torch.optim, name)(ps, lr=lr.item(), weight_decay=decay.item())
            for _ in range(4):
                made.zero_grad()
                ((x @ ps[0] + ps[1]).tanh() - y).square().mean().backward()
                made.step()
        return (x @ ps[0] + ps[1] - y).square().mean().detach()

    values = numbers(0.05, 0.1, [0.3, 0.2], [0.1])
    assert_slopes(lambda v: outer(v, steepest, differentiable=True), values, theirs)


# in other modes


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "RMSprop", "NAdam"])
@pytest.mark.parametrize("backend", [None, "foreach", "eager"])
def test_without_differentiable_a_tensor_is_its_value(name, backend):
    ends = []
    for lib, more in ((torch.optim, {}), (steepest, {"backend": backend})):
        lr = torch.tensor(0.1, requires_grad=True)
        p = torch.ones(3, requires_grad=True)
        made = getattr(lib, name)([p], lr=lr, **more)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for t in (1, 2):
                p.grad = torch.full((3,), float(t))
                made.step()
        assert p.is_leaf
        assert made.param_groups[0]["lr"] is lr
        ends.append(p.detach())
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-12, atol=0)


def test_what_has_no_slope_is_refused():
    with pytest.raises(ValueError, match=r"Muon: differentiable=True was given.*bfloat16"):
        steepest.Muon([torch.ones(2, 2)], differentiable=True)
    with pytest.raises(ValueError, match="Muon: differentiable=True"):
        steepest.SGD([{"params": [torch.ones(2, 2)], "rule": "muon"}], differentiable=True)
    with pytest.raises(ValueError, match="rounding='stochastic' was given with differentiable"):
        steepest.Adam([torch.ones(2)], differentiable=True, rounding="stochastic")
    leaf = torch.ones(2, requires_grad=True)
    leaf.grad = torch.ones(2)
    with torch.no_grad(), pytest.raises(RuntimeError, match=r"p\.clone\(\) for p in"):
        steepest.Adam([leaf], differentiable=True).step()


@pytest.mark.parametrize("lib", [torch.optim, steepest])
def test_wrappers_refuse_what_they_would_cut(lib):
    made = lib.SGD([torch.ones(2)], lr=0.1, differentiable=True)
    for wrapper in (steepest.SAM, steepest.Lookahead):
        with pytest.raises(
            ValueError, match=f"{wrapper.__name__}: .*differentiable=True was given"
        ):
            wrapper(made)


def test_a_sparse_gradient_is_refused_and_nothing_lost():
    p = torch.ones(3, 2)
    made = steepest.Adagrad([p], differentiable=True)
    p.grad = torch.ones(3, 2)
    made.step()
    before, state = p.clone(), {k: v.clone() for k, v in made.state[p].items()}
    p.grad = torch.eye(3)[:, :2].to_sparse(1)
    with pytest.raises(RuntimeError, match=r"sparse.*differentiable=True.*to_dense"):
        made.step()
    assert torch.equal(p, before)
    assert all(torch.equal(made.state[p][k], v) for k, v in state.items())


@pytest.mark.parametrize("shape", [(4, 2), (1, 3)])
def test_eigenvectors_that_rounding_decides_are_refused(shape):
    p = torch.ones(shape)
    g = torch.randn(shape, requires_grad=True)
    made = steepest.SOAP([p], differentiable=True)
    p.grad = g * 1
    with pytest.raises(RuntimeError, match=r"eigenvalues that are equal or zero.*detach"):
        made.step()
    p.grad = g.detach()  # as it says
    steepest.SOAP([p], differentiable=True).step()


def test_soap_refines_its_basis_in_the_graph():
    run, hyper = of_a_rule("soap", precondition_frequency=1)
    values = [x.requires_grad_() for x in drawn(3, (3, 3), 4)] + numbers(*hyper)
    assert_slopes(run, values)


def test_states_keep_their_kind_and_plain_steps_go_on_after():
    lr = torch.tensor(0.1, requires_grad=True)
    for shape in ((), (2,)):
        p = torch.ones(shape, dtype=torch.float32)
        made = steepest.NAdam([p], lr=lr, betas=(lr * 5, 0.9), differentiable=True)
        for _ in range(2):
            p.grad = torch.ones_like(p)
            made.step()
        state = made.state[p]
        assert {state[k].dtype for k in ("exp_avg", "exp_avg_sq")} == {torch.float32}
        assert state["exp_avg"].shape == p.shape
        assert state["mu_product"].requires_grad
        other = torch.ones(shape, dtype=torch.float32)
        plain = steepest.NAdam([other], lr=0.1, betas=(0.5, 0.9))
        for _ in range(2):
            other.grad = torch.ones_like(other)
            plain.step()
        torch.testing.assert_close(p.detach(), other)
        # from a checkpoint it goes on without the history
        plain.load_state_dict(made.state_dict())
        assert not any(x.requires_grad for x in plain.state[other].values())
