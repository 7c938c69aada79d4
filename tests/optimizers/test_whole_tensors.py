"""Rules that look at a whole tensor, at a matrix, or at all parameters of a group together."""

import copy
import math

import pytest
import torch
from torch import nn

import steepest
from steepest.backends import threads
from steepest.backends.cpu.work import CHUNK
from steepest.oracles.foreign import foreign

REDUCING = [n for n, r in steepest.rules.items() if r.trace().reductions and not r.trace().matrix]
SPANNING = [n for n in REDUCING if steepest.rules[n].trace().spans]
LARGE = 3 * CHUNK + 7
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
    assert made.stepped_by() == {"cpu"}
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

    # two backends add up apart: p0 - p of Prodigy and YellowFin's variance magnify a last bit
    for p, q in zip(end(False), end(True), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9 if rule == "swats" else 1e-7, atol=0)


def test_a_norm_of_what_a_norm_made_is_refused():
    from steepest.ops import norm

    with pytest.raises(TypeError, match="twice: a norm of a value that depends on another norm"):

        @steepest.rule
        def twice(p, g, *, lr=0.1):
            return p - lr * g / norm(g / norm(g))


def test_a_choice_by_elements_is_refused():
    from steepest.ops import where

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
    with pytest.raises(RuntimeError, match=f"{rule}: .*complex64.*in a group with another rule"):
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


SHAPES = [(6, 6), (6, 4, 3, 3), (6, 5, 1, 1), (5, 4, 3), (7, 1, 3), (2, 3, 2, 3, 2), (0, 3), (9,)]


@pytest.mark.parametrize("largest", [10_000, 4])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("oracle", ["pytorch-optimizer", "transcription"])
def test_soap_has_a_basis_for_each_dimension(oracle, shape, largest, monkeypatch):
    """As its authors' code; a dimension above the limit has no covariance and keeps its axes."""
    from steepest import definition
    from steepest.backends.eager import operations as eager
    from steepest.oracles import ORACLES, SECOND

    if oracle == "transcription" and (largest == 4 or 0 in shape):
        pytest.skip("the transcription has no limit, and no empty parameter")
    for room in (definition, eager):
        monkeypatch.setattr(room, "LARGEST", largest)
    random = torch.Generator().manual_seed(0)
    start, mean = (torch.randn(shape, generator=random, dtype=torch.float64) for _ in range(2))
    p, q = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    row = ORACLES["soap"] if oracle == "pytorch-optimizer" else SECOND["soap"]
    more = {"max_precondition_dim": largest} if oracle == "pytorch-optimizer" else {}
    ours, theirs = steepest.SOAP([p], lr=0.01), row.oracle([q], lr=0.01, **more)
    for _ in range(60):
        noise = torch.randn(shape, generator=random, dtype=torch.float64)
        p.grad, q.grad = mean + noise, mean + noise
        ours.step()
        theirs.step()
    torch.testing.assert_close(p, q, rtol=1e-11, atol=1e-12)
    if len(shape) > 1:
        size = sum(n * n for n in shape if n <= largest)
        assert ours.state[p]["bases"].shape == (size,)


def test_soap_whose_dimensions_are_all_too_large_is_adam(monkeypatch):
    from steepest import definition
    from steepest.backends.eager import operations as eager

    for room in (definition, eager):
        monkeypatch.setattr(room, "LARGEST", 2)
    p, q = nn.Parameter(torch.ones(3, 4)), nn.Parameter(torch.ones(12))
    ones, twos = steepest.SOAP([p]), steepest.SOAP([q])
    for t in range(15):
        p.grad = torch.full((3, 4), 0.1 * (t + 1))
        q.grad = p.grad.flatten().clone()
        ones.step()
        twos.step()
    torch.testing.assert_close(p.flatten(), q)
    assert ones.state[p]["bases"].shape == (0,)


@pytest.mark.parametrize("shape", [(), (1,), (4,)])
def test_what_muon_hands_to_adamw_decays_at_its_rate(shape):
    p, q = (nn.Parameter(torch.ones(shape, dtype=torch.float64)) for _ in range(2))
    ours = steepest.Muon([p], lr=0.02, weight_decay=0.1, adamw_lr=3e-4)
    theirs = torch.optim.AdamW([q], 3e-4, (0.9, 0.95), 1e-10, 0.1)
    for t in range(200):
        p.grad, q.grad = torch.zeros_like(p), torch.zeros_like(q)
        if t == 100:  # a schedule moves the decay with the rate
            ours.param_groups[0]["lr"], theirs.param_groups[0]["lr"] = 0.002, 3e-5
        ours.step()
        theirs.step()
    torch.testing.assert_close(p, q, rtol=1e-14, atol=0)


def test_muon_made_at_lr_0_moves_nothing_until_it_has_a_rate():
    p, q = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3, 2))
    made = steepest.Muon([p, q], lr=0.0)
    for x in (p, q):
        x.grad = torch.ones_like(x)
    made.step()
    assert p.tolist() == [1.0] * 3
    assert torch.equal(q, torch.ones(3, 2))
    made.param_groups[0]["lr"] = 0.01
    made.step()
    assert float((p.detach() - 1).abs().max()) > 1e-4


@pytest.mark.parametrize("shape", [(3, 8), (8, 3), (6, 6)])
def test_muons_singular_values_are_where_its_docstring_has_them(shape):
    from steepest.backends.eager import operations as eager

    random = torch.Generator().manual_seed(0)
    least, most = math.inf, 0.0
    for _ in range(300):
        x = torch.randn(shape, generator=random)
        step = eager._orthogonal(x, 3.4445, -4.775, 2.0315, 1e-7, 5)
        values, before = torch.linalg.svdvals(step.float()), torch.linalg.svdvals(x)
        reached = before > 0.002 * before.norm()  # what is smaller is not yet there
        least, most = min(least, float(values[reached].min())), max(most, float(values.max()))
    assert 0.67 < least < 0.72
    assert 1.1 < most < 1.21


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(8, 6), (9,), (3, 4, 2)])
@pytest.mark.parametrize("backend", [None, "eager"])
def test_adafactors_smallest_divisor_is_of_the_dtype_that_is_stored(dtype, shape, backend):
    """Gradients so small that eps1 is all that is divided by: torch's step, of one dtype alone."""
    p = nn.Parameter(torch.full(shape, 1.0, dtype=dtype))
    q = nn.Parameter(torch.full(shape, 1.0, dtype=torch.float64))
    ours = steepest.Adafactor([p], lr=0.05, backend=backend)
    theirs = torch.optim.Adafactor([q], lr=0.05, eps=(torch.finfo(dtype).eps, 1e-3))
    torch.manual_seed(0)
    for _ in range(20):
        p.grad = (1e-3 * torch.randn(shape)).to(dtype)
        q.grad = p.grad.double()
        ours.step()
        theirs.step()
    moved, wanted = (p.detach().double() - 1).norm(), (q.detach() - 1).norm()
    torch.testing.assert_close(moved, wanted, rtol=0.15 if p.element_size() == 2 else 1e-4, atol=0)


@pytest.mark.parametrize("rounding", ["kahan", "stochastic"])
def test_a_rounding_changes_no_step_of_adafactor(rounding):
    """What it keeps of the last bits is near the step with the divisor of bfloat16."""
    p, q = nn.Parameter(torch.ones(40, 30).bfloat16()), nn.Parameter(torch.ones(40, 30).double())
    ours = steepest.Adafactor([p], rounding=rounding)
    theirs = torch.optim.Adafactor([q], eps=(torch.finfo(torch.bfloat16).eps, 1e-3))
    for _ in range(20):
        p.grad = (1e-3 + 1e-3 * torch.randn(40, 30)).bfloat16()
        q.grad = p.grad.double()
        ours.step()
        theirs.step()
    value = p.detach().double()
    value += ours.state[p]["compensation"].double() if rounding == "kahan" else 0
    torch.testing.assert_close(value.mean() - 1, q.detach().mean() - 1, rtol=0.1, atol=0)


# of short gradients, and of those whose squares are beyond float32


@pytest.mark.parametrize("backend", ["cpu", "eager"])
@pytest.mark.parametrize("scale", [1e-6, 0.1, 10.0])
def test_mars_begins_from_a_gradient_of_zero(scale, backend):
    from steepest.oracles import ORACLES

    random = torch.Generator().manual_seed(0)
    p, q = (nn.Parameter(torch.zeros(5, 4, dtype=torch.float64)) for _ in range(2))
    options = {"lr": 0.01, "eps": 1e-30, "gamma": 0.1}
    ours = steepest.MARS([p], backend=backend, **options)
    theirs = ORACLES["mars"].oracle([q], **options)
    for _ in range(20):
        p.grad = scale * torch.randn(5, 4, generator=random, dtype=torch.float64)
        q.grad = p.grad.clone()
        ours.step()
        theirs.step()
    torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("backend", ["cpu", "foreach", "eager"])
def test_swats_goes_on_with_the_schedule_after_its_switch(backend):
    """A path of SGD with momentum, whose rate is the switch's times lr over the switch's lr."""
    p = nn.Parameter(torch.ones(3, dtype=torch.float64))
    made = steepest.SWATS([p], lr=0.01, settled=10.0, backend=backend)
    b, q = torch.zeros(3, dtype=torch.float64), None
    for t in range(12):
        lr = made.param_groups[0]["lr"] = (0.01, 0.0, 0.03, 0.005)[t // 3]
        p.grad = p.detach().clone()
        before = p.detach().clone()
        made.step()
        state = made.state[p]
        if q is None and float(state["sgd"]) > 0:
            rate, switched = float(state["exp_avg2"]), lr
            assert float(state["sgd"]) == lr / 0.01
            q = p.detach().clone()
        elif q is not None:
            b = 0.9 * b + before
            q = q - 0.1 * rate * lr / switched * b
            torch.testing.assert_close(p.detach(), q, rtol=1e-12, atol=0)
            assert torch.equal(p, before) == (lr == 0)
    assert switched == 0.01


@pytest.mark.parametrize("backend", ["cpu", "foreach", "eager"])
@pytest.mark.parametrize("scale", [1e-25, 1e-23, 1.0, 1e18, 1e20, 1e25])
@pytest.mark.parametrize("name", ["fromage", "lars", "novograd", "mars", "clip", "mean"])
def test_squares_beyond_float32_are_no_loss(name, scale, backend):
    """In float32 as in float64, where the squares have room."""
    from steepest.ops import mean, sqrt

    if name == "mean":

        @steepest.rule
        def scaled_by_its_size(p, g, *, lr=0.1):
            return p - lr * g / sqrt(mean(g**2))

        made = lambda ps: steepest.optimizer(scaled_by_its_size, ps, backend=backend)  # noqa: E731
    elif name == "clip":
        made = lambda ps: steepest.SGD(ps, lr=0.1, clip_norm=scale, backend=backend)  # noqa: E731
    else:
        more = {"eps": 1e-30} if name == "novograd" else {}
        made = lambda ps: steepest.optimizer(name, ps, lr=0.1, backend=backend, **more)  # noqa: E731
    ends = []
    for dtype in (torch.float32, torch.float64):
        random = torch.Generator().manual_seed(0)
        size = scale if name in ("clip", "fromage", "lars") else 1.0
        params = [nn.Parameter(size * torch.ones(s, dtype=dtype)) for s in ((4, 3), (5,), ())]
        optimizer = made(params)
        for _ in range(3):
            for p in params:
                p.grad = (scale * (1 + torch.rand(p.shape, generator=random))).to(dtype)
            optimizer.step()
        ends.append(torch.cat([p.detach().flatten().double() / size for p in params]))
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-4, atol=1e-5)
