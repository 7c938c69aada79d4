"""Rules that look at a whole tensor, at a matrix, or at all parameters of a group together."""

import copy

import pytest
import torch
from torch import nn

import steepest
from steepest.backends import cpu, threads
from steepest.check.foreign import foreign

REDUCING = [n for n, r in steepest.rules.items() if r.trace().reductions and not r.trace().matrix]
SPANNING = [n for n in REDUCING if steepest.rules[n].trace().spans]
LARGE = 3 * cpu.CHUNK + 7
"""Elements of a tensor of several chunks."""


def run(rule, shapes, *, steps=4, dtype=torch.float64, backend=None, skip=lambda k, t: False):
    random = torch.Generator().manual_seed(0)
    params = [
        nn.Parameter(torch.randn(s, generator=random, dtype=torch.float64).to(dtype))
        for s in shapes
    ]
    made = steepest.optimizer(rule, params, backend=backend)
    for t in range(steps):
        for k, p in enumerate(params):
            g = torch.randn(p.shape, generator=random, dtype=torch.float64).to(dtype)
            p.grad = None if skip(k, t) else g
        made.step()
    return params, made


@pytest.mark.parametrize("rule", REDUCING)
def test_the_loop_does_both_passes(rule):
    shapes = [(3, 4), (LARGE,), (), (5,)]
    found, made = run(rule, shapes, skip=lambda k, t: k == 3 and t < 2)
    wanted, _ = run(rule, shapes, backend="eager", skip=lambda k, t: k == 3 and t < 2)
    assert made.stepped_by() == {"CompiledPart"}
    for p, q in zip(found, wanted, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("rule", REDUCING)
def test_the_bits_are_the_same_at_any_number_of_threads(rule, monkeypatch):
    monkeypatch.setattr(threads, "ENOUGH", 1)
    ends = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        params, _ = run(rule, [(LARGE,), (40_000,), (7,)], dtype=torch.float32)
        ends.append(torch.cat([p.detach() for p in params]))
    assert torch.equal(ends[0], ends[1])
    assert torch.equal(ends[0], ends[2])


@pytest.mark.parametrize("rule", SPANNING)
def test_one_estimate_for_all_parameters_whatever_their_layout(rule):
    def end(strided):
        torch.manual_seed(0)
        a, b = torch.randn(6, 4).double(), torch.randn(5).double()
        a = torch.stack([a, a])[0] if not strided else torch.stack([a, a], -1)[..., 0]
        params = [nn.Parameter(a), nn.Parameter(b)]
        made = steepest.optimizer(rule, params, lr=0.1)
        for t in range(5):
            for k, p in enumerate(params):
                p.grad = torch.full_like(p, 0.1 * (t + 1) * (-1) ** k)
            made.step()
        scalars = {k: float(v) for k, v in made.state[params[0]].items() if v.numel() == 1}
        assert scalars == {k: float(v) for k, v in made.state[params[1]].items() if k in scalars}
        return [p.detach().clone() for p in params]

    for p, q in zip(end(False), end(True), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=0)


def test_a_norm_of_what_a_norm_made_is_refused():
    from steepest.formulas.words import norm

    with pytest.raises(TypeError, match="rule twice: a norm of what is made of another norm"):

        @steepest.rule
        def twice(p, g, *, lr=0.1):
            return p - lr * g / norm(g / norm(g))


def test_a_choice_by_elements_is_refused():
    from steepest.formulas.words import where

    with pytest.raises(TypeError, match="where"):

        @steepest.rule
        def masked(p, g, *, lr=0.1):
            return p - where(g, lr, 0) * g


@pytest.mark.parametrize("rule", REDUCING)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_shows(rule, bad):
    p = nn.Parameter(torch.ones(4))
    made = steepest.optimizer(rule, [p])
    p.grad = torch.tensor([1.0, bad, 1.0, 1.0])
    made.step()
    made.step()
    assert not torch.isfinite(p).all()


# matrices


def test_muon_steps_as_torchs_to_the_last_bit():
    """From the same state: later, a last bit of the momentum may turn a rounding to bfloat16."""
    torch.manual_seed(0)
    start = torch.randn(6, 4, dtype=torch.float64)
    for nesterov, adjust in ((True, None), (False, "match_rms_adamw"), (True, "original")):
        mine, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
        options = {"lr": 0.02, "nesterov": nesterov, "adjust_lr_fn": adjust}
        ours, reference = steepest.Muon([mine], **options), torch.optim.Muon([theirs], **options)
        for _ in range(20):
            mine.grad = torch.randn(6, 4, dtype=torch.float64)
            theirs.grad = mine.grad.clone()
            ours.step()
            reference.step()
            torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-14)
            with torch.no_grad():
                mine.copy_(theirs)
                buffer = reference.state[theirs]["momentum_buffer"]
                ours.state[mine]["momentum_buffer"].copy_(buffer)


def test_muon_takes_a_convolution_as_a_matrix_and_hands_the_rest_to_adamw():
    conv = nn.Conv2d(3, 8, 3)
    made = steepest.Muon(conv.parameters(), lr=0.02, adamw_lr=0.01, weight_decay=0.0)
    flat = nn.Parameter(conv.weight.detach().flatten(1).clone())
    bias = nn.Parameter(conv.bias.detach().clone())
    matrix = torch.optim.Muon([flat], lr=0.02, weight_decay=0.0)
    vector = torch.optim.AdamW([bias], lr=0.01, betas=(0.9, 0.95), eps=1e-10, weight_decay=0.0)
    conv.weight.grad, conv.bias.grad = torch.randn(8, 3, 3, 3), torch.randn(8)
    flat.grad, bias.grad = conv.weight.grad.flatten(1), conv.bias.grad.clone()
    for optimizer in (made, matrix, vector):
        optimizer.step()
    torch.testing.assert_close(conv.weight.flatten(1), flat)
    torch.testing.assert_close(conv.bias, bias)


def test_a_schedule_moves_both_of_muons_rates():
    model = nn.Linear(3, 4)
    made = steepest.Muon(model.parameters(), lr=0.02, adamw_lr=0.01, weight_decay=0.0)
    made.param_groups[0]["lr"] = 0.002
    before = model.bias.detach().clone()
    model.bias.grad = torch.ones(4)
    made.step()
    torch.testing.assert_close(before - model.bias.detach(), torch.full((4,), 0.001))


def test_states_of_rows_and_columns():
    p = nn.Parameter(torch.ones(5, 3))
    made = steepest.Adafactor([p])
    p.grad = torch.ones(5, 3)
    made.step()
    shapes = {k: tuple(v.shape) for k, v in made.state[p].items()}
    assert shapes == {"row_var": (5, 1), "col_var": (1, 3), "step": ()}
    saved = copy.deepcopy(made.state_dict())
    saved["state"][0]["row_var"] = torch.ones(3, 1)
    with pytest.raises(ValueError, match=r"'row_var' is .*parameter 0"):
        made.load_state_dict(saved)
    assert tuple(made.state[p]["row_var"].shape) == (5, 1)


@pytest.mark.parametrize("rule", ["muon", "adafactor"])
def test_complex_matrices_are_refused(rule):
    p = nn.Parameter(torch.ones(2, 2, dtype=torch.complex64))
    p.grad = torch.ones_like(p)
    with pytest.raises(RuntimeError, match=f"{rule}: .*complex64.*hand it to another rule"):
        steepest.optimizer(rule, [p]).step()


@pytest.mark.parametrize(("shape", "apart"), [((4, 4), False), ((8, 1), True)])
def test_soap_is_rounding_where_the_first_gradient_does_not_reach(shape, apart):
    """Of an 8 x 1 gradient seven eigenvectors of the rows are of nothing; so it is with others'."""
    for make in (steepest.SOAP, foreign("pytorch_optimizer", "SOAP", foreach=False)):
        ends = []
        for change in (0.0, 1e-15):
            p = torch.nn.Parameter(torch.ones(shape, dtype=torch.float64))
            optimizer = make([p], lr=0.03)
            random = torch.Generator().manual_seed(3)
            for _ in range(9):  # before the first refinement, which one of them rounds to float32
                p.grad = torch.randn(shape, generator=random, dtype=torch.float64) * (1 + change)
                optimizer.step()
            ends.append(p.detach())
        assert (float((ends[0] - ends[1]).abs().max()) > 1e-6) is apart


def test_soap_leaves_a_large_side_alone(monkeypatch):
    """A dimension above the limit has no covariance, and the step is in the other's basis alone."""
    from steepest import definition
    from steepest.backends import eager

    for room in (definition, eager):
        monkeypatch.setattr(room, "LARGEST", 4)
    p = torch.nn.Parameter(torch.ones(3, 6, dtype=torch.float64))
    q = torch.nn.Parameter(torch.ones(3, 6, dtype=torch.float64))
    ours = steepest.SOAP([p], lr=0.03)
    theirs = foreign("pytorch_optimizer", "SOAP", max_precondition_dim=4, foreach=False)(
        [q], lr=0.03
    )
    for t in range(30):
        random = torch.Generator().manual_seed(t)
        p.grad = torch.randn(3, 6, generator=random, dtype=torch.float64)
        q.grad = p.grad.clone()
        ours.step()
        theirs.step()
    assert ours.state[p]["col_basis"].shape == (1, 1)
    torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


def test_soap_takes_a_convolution_as_a_matrix():
    p = torch.nn.Parameter(torch.ones(3, 2, 2, dtype=torch.float64))
    q = torch.nn.Parameter(torch.ones(3, 4, dtype=torch.float64))
    ones, twos = steepest.SOAP([p], lr=0.03), steepest.SOAP([q], lr=0.03)
    for t in range(25):
        random = torch.Generator().manual_seed(t)
        p.grad = torch.randn(3, 2, 2, generator=random, dtype=torch.float64)
        q.grad = p.grad.flatten(1).clone()
        ones.step()
        twos.step()
    torch.testing.assert_close(p.flatten(1), q, rtol=0, atol=0)
