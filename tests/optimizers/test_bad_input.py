"""Random bad constructions, groups and gradients: an error in a sentence, or a step as usual; and
nothing is changed without a word.
"""

import math
from contextlib import suppress

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import steepest
from steepest.classes import classes

REFUSALS = (TypeError, ValueError, RuntimeError, OverflowError)
pytestmark = [
    pytest.mark.filterwarnings(r"ignore:AdaBelief\(amsgrad=True\) has no effect"),
    pytest.mark.filterwarnings("ignore:.*has the same parameter twice"),
    pytest.mark.filterwarnings("ignore:.*a group has the entry"),
    pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad=True to a scalar"),
]
many = settings(
    max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

junk = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 3), st.integers(10**30, 10**40), st.floats(),
    st.sampled_from(["", "0.1", "adam", b"x", (), [], {}, (0.9,), (0.9, 0.999, 1), (0.9, "a"),
                     (math.nan, 0.5), [0.5, 0.9], {"a": 1}, 1j, object(), np.float64(0.1),
                     np.float32("nan"), np.array([1.0, 2.0]), print, nn.Linear]),
    st.sampled_from([0.1, 1.0, [0.1], [0.1, 0.2], math.nan, 1j]).map(torch.tensor),
)  # fmt: skip
names = st.sampled_from(
    ["lr", "betas", "eps", "weight_decay", "momentum", "rectify", "amsgrad", "maximize", "foreach",
     "backend", "rounding", "seed", "differentiable", "nesterov", "final_lr", "beta1", "Lr", "rule",
     "params", "capturable", ""]
)  # fmt: skip
options = st.dictionaries(names, junk, min_size=1, max_size=3)


def tensors():
    return [nn.Parameter(torch.linspace(-1, 1, 6).reshape(2, 3)), nn.Parameter(torch.ones(()))]


params = st.one_of(
    junk,
    st.lists(st.one_of(junk, st.builds(lambda: tensors()[0])), max_size=3),
    st.just("good"), st.just("group"), st.just("groups"), st.just("named"),
    st.builds(lambda: torch.ones(3)),
    st.builds(lambda: [torch.ones(3, requires_grad=True) * 2]),
    st.builds(lambda: [nn.Parameter(torch.ones(3, dtype=torch.int32), requires_grad=False)]),
    st.builds(lambda: [{"params": tensors(), "extra": 1}, {"lr": 0.1}]),
    st.builds(lambda: [{"params": (p := tensors())}, {"params": p}]),
)  # fmt: skip


def check(error):
    """An error is a sentence: some words, and not the inside of a traceback."""
    text = str(error)
    assert len(text.split()) >= 4, repr(error)
    assert "object has no attribute" not in text, repr(error)


def huge(value):
    """Whether a number is among the options that may well take a parameter out of float32."""
    if isinstance(value, dict):
        return any(map(huge, value.values()))
    try:
        return abs(float(value)) > 1e3
    except (TypeError, ValueError, RuntimeError):
        return False


@given(name=st.sampled_from(sorted(classes)), ps=params, more=options)
@many
def test_a_bad_construction_is_an_error_in_a_sentence(name, ps, more):
    good = tensors()
    ps = {"good": good, "group": [{"params": good}], "named": [*zip("ab", good, strict=True)],
          "groups": [{"params": good[:1]}, {"params": good[1:]}]}.get(
              ps if isinstance(ps, str) else "", ps)  # fmt: skip
    more = {k: v for k, v in more.items() if k != "params"}
    try:
        made = classes[name](ps, **more)
    except REFUSALS as error:
        check(error)
        return
    stepped = [p for group in made.param_groups for p in group["params"]]
    for p in stepped:
        p.grad = torch.full_like(p, 0.5)
    before = [p.detach().clone() for p in stepped]
    try:
        made.step()
    except REFUSALS as error:  # a value that only the step reads
        check(error)
        assert all(map(torch.equal, before, stepped))
    else:
        assert huge(more) or all(p.isfinite().all() for p in stepped), (more, stepped)


@given(name=st.sampled_from(sorted(classes)), more=options, stepped=st.booleans())
@many
def test_a_bad_group_is_refused_and_the_optimizer_unchanged(name, more, stepped):
    ps, late = tensors(), nn.Parameter(torch.ones(4))
    made = classes[name](ps, lr=0.01)
    if stepped:
        for p in ps:
            p.grad = torch.ones_like(p)
        made.step()
    before = len(made.param_groups), len(made.state), [p.detach().clone() for p in ps]
    try:
        made.add_param_group({"params": [late], **more})
    except REFUSALS as error:
        check(error)
    else:
        late.grad = torch.ones(4)
        with suppress(*REFUSALS):
            made.step()
            return
        before = (before[0] + 1, *before[1:])
    assert (len(made.param_groups), len(made.state)) == before[:2]
    assert all(map(torch.equal, before[2], ps))


def spoilt(shape, dtype):
    """Gradients that do not fit a parameter of that shape and dtype, and some that do."""
    return st.sampled_from([
        lambda: None,
        lambda: torch.ones(shape, dtype=dtype),
        lambda: torch.full(shape, math.nan, dtype=dtype),
        lambda: torch.full(shape, math.inf, dtype=dtype),
        lambda: torch.ones((*shape, 2), dtype=dtype)[..., 0],
        lambda: torch.ones((), dtype=dtype).expand(shape),
        lambda: torch.ones((*shape, 1), dtype=dtype),
        lambda: torch.ones(shape[:-1], dtype=dtype),
        lambda: torch.ones(0, dtype=dtype),
        lambda: torch.ones(shape, dtype=torch.float64),
        lambda: torch.ones(shape, dtype=torch.float16),
        lambda: torch.ones(shape, dtype=torch.complex64),
        lambda: torch.ones(shape, dtype=torch.int64),
        lambda: torch.ones(shape, dtype=dtype, device="meta"),
        lambda: torch.ones(shape, dtype=dtype).to_sparse(),
        lambda: torch.ones(shape, dtype=dtype).to_sparse(1),
        lambda: torch.ones(shape, dtype=dtype).t() if len(shape) == 2 else torch.ones(shape),
        lambda: torch.ones(shape, dtype=dtype, requires_grad=True),
    ])  # fmt: skip


def smuggled(p, gradient):
    """torch refuses most of these as p.grad; some get past its door by p.grad.data."""
    try:
        p.grad = gradient
    except (RuntimeError, TypeError):
        p.grad = torch.zeros_like(p)
        with suppress(RuntimeError, TypeError):
            p.grad.data = gradient


@given(
    name=st.sampled_from(sorted(classes)),
    backend=st.sampled_from([None, "foreach", "eager"]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
    data=st.data(),
    late=st.booleans(),
    again=st.booleans(),
)
@many
def test_a_bad_gradient_is_an_error_and_nothing_moves(name, backend, dtype, data, late, again):
    shape = (2, 3)
    ps = [nn.Parameter(torch.linspace(-1, 1, 6).reshape(shape).to(dtype)) for _ in range(3)]
    made = classes[name](ps, backend=backend)
    if late:
        for p in ps:
            p.grad = torch.ones_like(p)
        made.step()
    at = data.draw(st.integers(0, 2))
    for p in ps:
        p.grad = torch.ones_like(p)
    smuggled(ps[at], data.draw(spoilt(shape, dtype))())
    if late and not again:  # a new plan: what keeps its bytes is seen at its first step alone
        made.load_state_dict(made.state_dict())
    before = [p.detach().clone() for p in ps]
    states = [{k: torch.as_tensor(v).clone() for k, v in made.state[p].items()}
              for p in ps if p in made.state]  # fmt: skip
    try:
        made.step()
    except REFUSALS as error:
        check(error)
        assert all(map(torch.equal, before, ps))
        after = [made.state[p] for p in ps if p in made.state]
        assert len(states) == len(after)
        for old, new in zip(states, after, strict=True):
            assert all(torch.equal(v, torch.as_tensor(new[k])) for k, v in old.items())
        return
    if any(m.trace().spans for m in made.family.members):
        return  # its sums are of all parameters: one nan is everywhere
    grads = [p.grad for p in ps]
    for p, old, g in zip(ps, before, grads, strict=True):
        if g is None:
            assert torch.equal(p, old)
        else:  # a nan or inf where the gradient has one, and nowhere else
            dense = g.to_dense() if g.layout is not torch.strided else g
            same = dense.shape == p.shape and dense.dtype == p.dtype
            assert same or (late and again and dense.nbytes == p.nbytes)
            assert not same or (p.isfinite() | ~dense.isfinite()).all()


def test_three_betas_are_three_numbers():
    p = torch.nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match=r"betas=\(0.9, 0.99\) was given, expected 3 numbers"):
        steepest.Adan([p], betas=(0.9, 0.99))
    with pytest.raises(ValueError, match=r"betas=\(0.9, 0.9, 0.9\) was given, expected a pair of"):
        steepest.AdamW([p], betas=(0.9, 0.9, 0.9))
    made = steepest.optimizer("ademamix", [p], beta3=0.5)
    assert made.param_groups[0]["betas"] == (0.9, 0.999, 0.5)
    with pytest.raises(
        ValueError, match=r"betas\[2\]=1.0 was given, expected a number in \[0, 1\)"
    ):
        steepest.optimizer("adan", [p], beta3=1.0)


def test_a_rule_that_decays_by_itself_is_given_the_weight_decay():
    ends = []
    for hyper in ({"weight_decay": 0.5}, {"wd": 0.5}, {}):
        p = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))
        p.grad = torch.zeros_like(p)
        steepest.optimizer("adan", [p], lr=0.1, **hyper).step()
        ends.append(p[0].item())
    assert ends == pytest.approx([1 / 1.05, 1 / 1.05, 1])
    with pytest.raises(
        ValueError, match=r"weight_decay=-1.0 was given, expected a number in \[0, inf"
    ):
        steepest.Adan([p], weight_decay=-1)
