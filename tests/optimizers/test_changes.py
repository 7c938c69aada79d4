"""What may change between two steps: dtypes, layouts, roundings, seeds, groups. Plans follow."""

import copy
import pickle

import pytest
import torch
from torch import nn

import steepest

BF16 = torch.bfloat16
BACKENDS = [None, "foreach", "eager"]


def param(count=4, value=1.0, dtype=BF16):
    p = nn.Parameter(torch.full((count,), value, dtype=dtype))
    p.grad = torch.ones_like(p)
    return p


def stepped(made, steps, gradient=None):
    for _ in range(steps):
        for group in made.param_groups:
            for k, p in enumerate(group["params"]):
                p.grad = torch.ones_like(p) if gradient is None else gradient(p, k)
        made.step()
    return made


def drawn(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return lambda p, k: torch.randn(p.shape, generator=generator).to(p.dtype)


# Kahan's second number


@pytest.mark.parametrize("wrong", ["expanded", "float32", "float16"])
def test_a_compensation_of_another_layout_or_dtype_is_made_fit(wrong):
    guard, p = torch.zeros(100, dtype=BF16), param(50)
    made = stepped(steepest.SGD([p], lr=1e-4, rounding="kahan"), 1)
    held = made.state[p]["compensation"]
    made.state[p]["compensation"] = {
        "expanded": guard[:1].expand(50), "float32": held.float(), "float16": held.half(),
    }[wrong]  # fmt: skip
    other, q = guard[:1].clone().expand(50) if wrong == "expanded" else held, param(50)
    expected = steepest.SGD([q], lr=1e-4, rounding="kahan")
    expected.state[q] = {"compensation": other.clone().contiguous()}
    stepped(made, 3)
    stepped(expected, 3)
    assert not guard[1:].any()
    assert torch.equal(made.state[p]["compensation"], expected.state[q]["compensation"])


@pytest.mark.parametrize("rounding", [None, "kahan"])
def test_a_checkpoint_goes_on_in_another_memory_format(rounding):
    ends = []
    for there in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        values = torch.randn(2, 3, 4, 4).to(BF16)
        p = nn.Parameter(values.clone())
        made = stepped(steepest.AdamW([p], lr=1e-4, rounding=rounding), 5, drawn(1))
        q = nn.Parameter(p.detach().clone().to(memory_format=there))
        other = steepest.AdamW([q], lr=1e-4, rounding=rounding)
        other.load_state_dict(copy.deepcopy(made.state_dict()))
        stepped(other, 20, drawn(2))
        ends.append(q.detach().contiguous())
    assert torch.equal(*ends)


def test_a_compensation_of_a_time_that_is_over_is_dropped():
    p = param()
    made = steepest.SGD([p], lr=1.0, rounding="kahan")
    stepped(made, 1, lambda p, k: torch.full_like(p, 0.003))
    made.param_groups[0]["rounding"] = None
    stepped(made, 1)
    assert "compensation" not in made.state[p]
    before = p.detach().clone()
    made.param_groups[0]["rounding"] = "kahan"
    stepped(made, 1, lambda p, k: torch.zeros_like(p))
    assert torch.equal(p.detach(), before)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_overflow_leaves_no_nan(backend):
    largest = torch.finfo(BF16).max
    p = param(value=largest)
    made = steepest.SGD([p], lr=1.0, rounding="kahan", backend=backend)
    stepped(made, 1, lambda p, k: torch.full_like(p, -8e35))
    stepped(made, 1, lambda p, k: torch.zeros_like(p))
    assert p.isposinf().all()
    assert not made.state[p]["compensation"].any()


# dtypes and shapes


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("first", "then"), [(BF16, torch.float32), (torch.float32, BF16),
                                             (torch.float32, torch.float64)])  # fmt: skip
@pytest.mark.parametrize("rounding", [None, "stochastic", "kahan"])
def test_a_model_that_changes_its_dtype_goes_on_as_a_reloaded_one(first, then, rounding, backend):
    torch.manual_seed(0)
    model = nn.Linear(6, 5, bias=False).to(first)
    options = {"lr": 1e-4, "rounding": rounding, "backend": backend}
    made = stepped(steepest.AdamW(model.parameters(), **options), 3, drawn(1))
    model.to(then)
    other = copy.deepcopy(model)
    fresh = steepest.AdamW(other.parameters(), **options)
    fresh.load_state_dict(copy.deepcopy(made.state_dict()))
    for each in (made, fresh):
        stepped(each, 5, drawn(2))
    assert torch.equal(model.weight, other.weight)
    wide = torch.float64 if then is torch.float64 else torch.float32
    assert made.state[model.weight]["exp_avg"].dtype == wide


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_parameter_of_another_shape_is_refused_before_anything_moves(backend):
    a, b = param(3, dtype=torch.float32), param(3, dtype=torch.float32)
    made = stepped(steepest.AdamW([a, b], backend=backend), 1)
    before, count = a.detach().clone(), float(made.state[a]["step"])
    b.data = torch.ones(2, 3)
    b.grad = torch.ones(2, 3)
    with pytest.raises(RuntimeError, match="expected one like its parameter"):
        made.step()
    assert torch.equal(a, before)
    assert made.state[a]["step"] == count


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_16_bit_states_of_torch_are_widened(backend):
    def gradient(p, k):
        return torch.full_like(p, 0.1)

    p = param()
    theirs = stepped(torch.optim.AdamW([p], lr=1e-3), 3, gradient)
    assert theirs.state[p]["exp_avg_sq"].dtype == BF16
    made = steepest.AdamW([p], lr=1e-3, backend=backend)
    made.load_state_dict(theirs.state_dict())
    v = float(made.state[p]["exp_avg_sq"][0])
    stepped(made, 300, gradient)
    g = float(torch.tensor(0.1, dtype=BF16))
    wanted = v * 0.999**300 + g * g * (1 - 0.999**300)
    torch.testing.assert_close(
        made.state[p]["exp_avg_sq"].double(), torch.full((4,), wanted).double(), rtol=1e-4, atol=0
    )


def test_a_state_that_is_no_tensor_is_named():
    p = param(dtype=torch.float32)
    made = stepped(steepest.AdamW([p]), 1)
    made.state[p]["exp_avg"] = 0.5
    with pytest.raises(RuntimeError, match=r"'exp_avg' is 0.5, expected a tensor"):
        made.step()


def test_gradients_of_another_dtype_are_refused_where_torch_lets_them_in():
    p = nn.Parameter(torch.ones(3))
    made = stepped(steepest.SGD([p]), 2)
    q = nn.Parameter(torch.ones(3))
    q.grad_dtype = None
    other = stepped(steepest.SGD([q]), 2)
    q.grad = torch.ones(3, dtype=torch.int32)
    before = q.detach().clone()
    with pytest.raises(RuntimeError, match=r"torch\.int32"):
        other.step()
    assert torch.equal(q, before)
    assert made.state == {}


# rules, seeds and roundings of groups


def test_a_rule_may_be_given_as_the_rule_itself_and_be_copied():
    p, q = param(dtype=torch.float32), param(dtype=torch.float32)
    made = steepest.AdamW([{"params": [p], "rule": steepest.rules["sgd"]}], lr=0.1)
    assert made.param_groups[0]["rule"] == "sgd"
    other = copy.deepcopy(made)
    stepped(other, 1)
    other.load_state_dict(pickle.loads(pickle.dumps(made.state_dict())))
    assert type(steepest.optimizer("sgd", [q])) is steepest.SGD


def test_a_rule_set_later_is_refused_in_a_sentence():
    made = stepped(steepest.AdaBelief([param(dtype=torch.float32)]), 1)
    made.param_groups[0]["rule"] = "sgd"
    with pytest.raises(ValueError, match="lacks the options"):
        made.step()


def test_a_rounding_set_later_is_checked():
    made = stepped(steepest.AdamW([param()]), 1)
    made.param_groups[0]["rounding"] = "stocastic"
    with pytest.raises(ValueError, match="rounding='stocastic' was given"):
        made.step()


def test_rounding_and_seed_reach_every_group():
    a, b, c = param(), param(), param()
    made = steepest.AdamW(
        [{"params": [a]}, {"params": [b], "rule": "sgd"}, {"params": [c], "rounding": "kahan"}],
        rounding="stochastic", seed=7,
    )  # fmt: skip
    assert [g["rounding"] for g in made.param_groups] == ["stochastic", "stochastic", "kahan"]
    assert [g["seed"] for g in made.param_groups] == [7, 7, 7]
    late = steepest.AdamW([{"params": [a], "rounding": "stochastic"}], seed=9)
    assert late.param_groups[0]["seed"] == 9
    assert steepest.AdamW([{"params": [a], "rounding": "stochastic"}]).param_groups[0]["seed"] == 0


# the numbers of elements


@pytest.mark.parametrize("backend", ["cpu", "foreach"])
def test_two_parameters_have_noise_of_their_own(backend):
    a, b = param(1000), param(1000)
    stepped(steepest.SGD([a, b], lr=1e-3, rounding="stochastic", backend=backend), 3)
    assert not torch.equal(a, b)


@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (5, 7)])
def test_the_backends_number_elements_alike_in_any_layout(shape):
    ends = []
    for backend in ("cpu", "foreach", "eager"):
        torch.manual_seed(0)
        x = torch.randn(shape).to(BF16)
        x = x.to(memory_format=torch.channels_last) if x.dim() == 4 else x.t()
        p = nn.Parameter(x)
        made = steepest.SGD([p], lr=1e-4, rounding="stochastic", backend=backend)
        stepped(made, 5, drawn(3))
        ends.append(p.detach())
    assert torch.equal(ends[0], ends[1])
    assert torch.equal(ends[0], ends[2])


def test_the_noise_of_a_sparse_row_is_its_own():
    ends = []
    for others in ([], [0, 2]):
        p = nn.Parameter(torch.ones(6, 50, dtype=BF16))
        made = steepest.SGD([p], lr=1e-3, rounding="stochastic")
        for _ in range(3):
            g = torch.zeros(6, 50, dtype=BF16)
            g[[4, *others]] = 1
            p.grad = g.to_sparse(1)
            made.step()
        ends.append(p.detach()[4])
    assert (ends[0] != 1).any()
    assert torch.equal(*ends)


@pytest.mark.parametrize("rounding", ["stochastic", "kahan"])
def test_small_steps_on_sparse_rows_are_not_lost(rounding):
    p = nn.Parameter(torch.ones(10, 2000, dtype=BF16))
    made = steepest.SGD([p], lr=1e-4, rounding=rounding)
    for _ in range(200):
        g = torch.zeros(10, 2000, dtype=BF16)
        g[3] = 1
        p.grad = g.to_sparse(1)
        made.step()
    value = p.detach().double()
    if rounding == "kahan":
        value += made.state[p]["compensation"].double()
    assert value[3].mean() - 1 == pytest.approx(-0.02, rel=0.05)
    assert (value[[0, 9]] == 1).all()


def test_noise_does_not_depend_on_when_a_plan_was_made():
    ends = []
    for rebuilt in (False, True):
        a, b, late = param(7), param(1000), param(5)
        made = steepest.SGD([{"params": [a]}, {"params": [b]}], lr=1e-3, rounding="stochastic")
        stepped(made, 2)
        made.param_groups[0]["params"].append(late)
        if rebuilt:
            made.load_state_dict(made.state_dict())
        stepped(made, 3)
        ends.append(b.detach())
    assert torch.equal(*ends)


# copies


def test_a_subclass_of_the_users_own_stays_one():
    made = stepped(Mine([param(dtype=torch.float32)], lr=0.1), 1)
    for other in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert type(other) is Mine
        assert other.state_dict()["state"][0]["step"] == 1
        stepped(other, 1)


class Mine(steepest.AdamW):
    """With a hyperparameter less."""
