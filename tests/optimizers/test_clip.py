"""`clip_norm`: torch's clip_grad_norm_ in the same loop as the step."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import steepest

BACKENDS = ["cpu", "foreach", "eager"]
LOOPS = [name for name, rule in steepest.rules.items() if rule.trace().elementwise]
WHOLES = [name for name in steepest.rules if name not in LOOPS]


def pairs(dtype=torch.float64, shapes=((7, 5), (70_000,), ())):
    made = [torch.randn(s, dtype=torch.float64).to(dtype) for s in shapes]
    return [nn.Parameter(x.clone()) for x in made], [nn.Parameter(x.clone()) for x in made]


def fill(ours, theirs, t, size):
    for k, (p, q) in enumerate(zip(ours, theirs, strict=True)):
        random = torch.Generator().manual_seed(10 * t + k)
        g = size * torch.randn(p.shape, generator=random, dtype=torch.float64)
        p.grad, q.grad = g.to(p.dtype, copy=True), g.to(p.dtype, copy=True)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", LOOPS)
def test_it_is_torchs_clipping_before_the_step(name, backend):
    """Large gradients are cut, small ones are not; weight decay comes after."""
    ours, theirs = pairs()
    options = {"backend": backend, "weight_decay": 0.1}
    if name in ("sparse_adam", "rprop"):
        del options["weight_decay"]
    one = steepest.optimizer(name, ours, clip_norm=2.0, **options)
    two = steepest.optimizer(name, theirs, **options)
    for t in range(6):
        fill(ours, theirs, t, 1e-3 if t % 2 else 1.0)
        before = [p.grad.clone() for p in ours]
        norm = torch.nn.utils.clip_grad_norm_(theirs, 2.0)
        assert (norm > 2) == (t % 2 == 0)
        one.step()
        two.step()
        assert all(torch.equal(p.grad, g) for p, g in zip(ours, before, strict=True))
        for p, q in zip(ours, theirs, strict=True):
            # a sum in another order may turn a last bit, which M-SVAG's first variance divides by
            torch.testing.assert_close(p, q, rtol=1e-8, atol=1e-9)
    if backend == "cpu":
        assert one.stepped_by() == {"cpu"}


@pytest.mark.parametrize("name", ["AdamW", "SGD"])
def test_against_torchs_optimizers(name):
    ours, theirs = pairs()
    one = getattr(steepest, name)(ours, lr=0.01, weight_decay=0.1, clip_norm=2.0)
    two = getattr(torch.optim, name)(theirs, lr=0.01, weight_decay=0.1)
    for t in range(30):
        fill(ours, theirs, t, 10.0 ** (t % 5 - 3))
        torch.nn.utils.clip_grad_norm_(theirs, 2.0)
        one.step()
        two.step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-13)


@settings(max_examples=40, deadline=None)
@given(norm=st.floats(1e-3, 1e3), scale=st.floats(1e-6, 1e6))
def test_no_step_of_sgd_is_longer(norm, scale):
    p = nn.Parameter(torch.zeros(50, dtype=torch.float64))
    p.grad = scale * torch.linspace(-1, 2, 50, dtype=torch.float64)
    steepest.SGD([p], lr=1.0, clip_norm=norm).step()
    wanted = min(norm, float(p.grad.norm()))
    assert float(p.detach().norm()) == pytest.approx(wanted, rel=1e-5, abs=2e-6)


def test_a_group_is_clipped_by_itself_and_others_are_not():
    a, b = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(3))
    made = steepest.SGD([{"params": [a], "clip_norm": 1.0}, {"params": [b]}], lr=1.0)
    a.grad, b.grad = torch.full((3,), 10.0), torch.full((3,), 10.0)
    made.step()
    assert float(a.detach().norm()) == pytest.approx(1.0)
    assert b.tolist() == [-10.0] * 3
    made.param_groups[0]["clip_norm"] = 2.0  # as a schedule might
    made.step()
    assert float(a.detach().norm()) == pytest.approx(3.0)


def test_sixteen_bits_a_missing_gradient_an_empty_tensor_and_strides():
    shapes = [(4, 6), (5,), (0,)]
    ours, theirs = pairs(torch.bfloat16, shapes)
    one = steepest.AdamW(ours, lr=0.1, clip_norm=1.0, rounding="kahan")
    for t in range(3):
        fill(ours, theirs, t, 3.0)
        ours[0].grad = ours[0].grad.t().contiguous().t()
        ours[1].grad = None if t == 1 else ours[1].grad
        one.step()
    assert all(p.isfinite().all() for p in ours)


def test_a_nan_is_everywhere_and_an_infinity_stops_what_is_finite():
    p = nn.Parameter(torch.zeros(3))
    p.grad = torch.tensor([1.0, float("nan"), 1.0])
    steepest.SGD([p], lr=1.0, clip_norm=1.0).step()
    assert p.isnan().all()
    q = nn.Parameter(torch.zeros(3))
    q.grad = torch.tensor([1.0, float("inf"), 1.0])
    steepest.SGD([q], lr=1.0, clip_norm=1.0).step()
    r = nn.Parameter(torch.zeros(3))
    r.grad = q.grad.clone()
    torch.nn.utils.clip_grad_norm_([r], 1.0)
    assert torch.equal(q.detach().isnan(), r.grad.isnan())


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), "one", [1.0]])
def test_what_is_no_bound_is_refused(value):
    p = nn.Parameter(torch.zeros(3))
    with pytest.raises((ValueError, TypeError), match=r"clip_norm=.* was given, expected a number"):
        steepest.AdamW([p], clip_norm=value)


@pytest.mark.parametrize("name", WHOLES)
def test_rules_that_look_at_whole_tensors_say_what_to_do(name):
    p = nn.Parameter(torch.zeros(3, 3))
    with pytest.raises(ValueError, match=r"call torch\.nn\.utils\.clip_grad_norm_ before the step"):
        steepest.optimizer(name, [p], clip_norm=1.0)


def test_a_sparse_gradient_is_refused_in_one_sentence():
    layer = nn.Embedding(4, 3, sparse=True)
    layer(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match=r"with weight decay or clipping: a gradient of layout"):
        steepest.SGD(layer.parameters(), clip_norm=1.0).step()


def test_it_is_saved_and_resumed(tmp_path):
    ours, theirs = pairs(shapes=((9,),))
    make = lambda ps: steepest.AdamW(ps, lr=0.1, clip_norm=0.5)  # noqa: E731
    one, two = make(ours), make(theirs)
    for t in range(8):
        fill(ours, theirs, t, 2.0)
        one.step()
        two.step()
        if t == 3:
            torch.save(two.state_dict(), tmp_path / "saved")
            two = steepest.AdamW(theirs, lr=0.1)
            two.load_state_dict(torch.load(tmp_path / "saved", weights_only=True))
            assert two.param_groups[0]["clip_norm"] == 0.5
    assert torch.equal(ours[0], theirs[0])
