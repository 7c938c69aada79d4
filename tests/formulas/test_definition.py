"""What `@rule` refuses, and how it says so: the rule, the argument and the cure."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import steepest
from steepest.definition import Rule, inside
from steepest.ops import Number, captured, carried, maximum, minimum, sign, sqrt, where


def refused(function, match, **about):
    with pytest.raises(TypeError, match=match) as caught:
        Rule(function, **about)
    assert function.__name__ in str(caught.value)


def test_a_mistake_in_a_rule_names_rule_argument_and_cure():
    def too_few(p, g, m, *, lr=1.0):
        return p - lr * g

    def forgotten(p, g, m, *, lr=1.0):
        return p - lr * g, g

    def swapped(p, g, m, v, *, lr=1.0):
        return p - lr * m, v + g, m + g * g

    def idle(p, g, m, *, lr=1.0):
        return p - lr * g, m

    def branches(p, g, m, *, lr=1.0):
        m = m + g
        return (p - m if lr > 0 else p), m

    def compares(p, g, *, lr=1.0):
        return p - lr * where(g > 0, 1, -1)

    def calls_math(p, g, *, lr=1.0):
        return p - math.sqrt(lr) * g

    def unset(p, g, *, lr):
        return p - lr * g

    def listed(p, g, *, lr=(1, 2)):
        return p - g

    def started(p, g, m=0, *, lr=1.0):
        return p - lr * g, m

    def starred(p, g, *states, lr=1.0):
        return p - lr * g

    def single(p, *, lr=1.0):
        return p

    def returns_text(p, g, *, lr=1.0):
        return "p"

    def heavy_carry(p, g, *, lr=1.0, product=carried(1)):
        return p - lr * g, product * g

    def captures(p, g, *, lr=1.0, base=captured("rate")):
        return p - lr * g

    refused(too_few, r"returns 1 values, expected 2; return the new \(p, m\)")
    refused(forgotten, r"'m' does not depend on the old one; .*forgets=\['m'\]")
    refused(swapped, "'m' does not depend on the old one; check the order")
    refused(idle, "'m' is never changed; return its new value or drop it")
    refused(branches, r"`if`.*where\(condition, a, b\).*bool or str argument")
    refused(compares, "a comparison of a traced value.*maximum, minimum or sign")
    refused(calls_math, "float.*of a traced value")
    refused(unset, "'lr' has no default; give a number")
    refused(listed, r"'lr' has the default \(1, 2\)")
    refused(started, r"'m' has a default.*where\(t > 1, m, start\)")
    refused(starred, r"\*states; write each tensor")
    refused(single, "takes 1 tensors; begin with the parameter and its gradient")
    refused(returns_text, "output 'p' is 'p'; return an expression")
    refused(heavy_carry, "'product' is made of tensors")
    refused(captures, r"captured\('rate'\); capture one of \['lr'\]")


def test_about_a_rule_only_known_names():
    def plain(p, g, *, lr=1.0):
        return p - lr * g

    for word in ("keys", "limits", "search"):
        refused(
            plain,
            f"{word} names 'm', which is not in the signature; use a name",
            **{word: {"m": "x"}},
        )
    refused(plain, "forgets names 'm'", forgets=["m"])
    refused(plain, "decay='l2'; say decay=", decay="l2")


def test_names_that_the_classes_have_are_refused():
    def steps(p, g, step, *, lr=1.0):
        return p - lr * g, step + g

    def pair(p, g, a, b, *, lr=1.0):
        return p - lr * g, a + g, b + g

    def taken(p, g, *, lr=1.0, backend=2.0):
        return p - lr * backend * g

    refused(steps, r"the keys \['step'\]; give each state another key")
    refused(pair, r"the keys \['a', 'a'\]", keys={"b": "a"})
    refused(taken, "a scalar is called 'backend'; rename it")


def test_where_is_about_scalars():
    assert where(2.0, 1.0, 0.0) == 1.0
    with pytest.raises(TypeError, match=r"where.. of a Tensor: .*maximum, minimum or sign"):
        where(torch.ones(2) > 0, 1.0, 0.0)


def test_an_exception_that_is_named_is_allowed():
    def last_gradient(p, g, before, *, lr=1.0):
        return p - lr * (g + before), g

    assert Rule(last_gradient, forgets=["before"]).states == ("before",)


def test_a_rule_is_registered_and_runs_as_it_stands():
    assert steepest.rules["adam"].name == "adam"
    p, m, v = steepest.rules["adam"](1.0, 0.5, 0.0, 0.0, t=1, lr=0.1)
    assert (p, m, v) == pytest.approx((0.9, 0.05, 0.00025), rel=1e-6)
    tensors = [torch.tensor(x, dtype=torch.float64) for x in (1.0, 0.5, 0.0, 0.0)]
    assert [float(x) for x in steepest.rules["adam"](*tensors, t=1, lr=0.1)] == pytest.approx(
        [p, m, v]
    )
    with pytest.raises(TypeError, match="adam takes the tensors"):
        steepest.rules["adam"](1.0, 0.5, t=1)


def test_a_second_rule_of_the_same_name_is_refused():
    def adam(p, g, *, lr=1.0):
        return p - lr * g

    with pytest.raises(TypeError, match="a rule of that name exists"):
        steepest.rule(adam)


def test_autograd_goes_through_a_rule():
    lr = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    p, g = (torch.tensor(x, dtype=torch.float64) for x in (1.0, 0.5))
    steepest.rules["sgd"](p, g, lr=lr).backward()
    assert float(lr.grad) == -0.5


@given(
    st.floats(allow_nan=True, allow_infinity=True), st.floats(allow_nan=True, allow_infinity=True)
)
def test_host_arithmetic_is_ieee(a, b):
    def same(x, y):
        assert isinstance(x, Number)
        assert x == pytest.approx(float(y), rel=3e-16, abs=0, nan_ok=True)

    x, y = (torch.tensor(v, dtype=torch.float64) for v in (a, b))
    same(Number(a) / b, x / y)
    same(a / Number(b), x / y)
    same(Number(a) * b - a, x * y - x)
    same(sqrt(Number(a)), x.sqrt())
    same(Number(maximum(a, b)), torch.maximum(x, y))
    same(Number(minimum(a, b)), torch.minimum(x, y))
    same(sign(a), x.sign())


@pytest.mark.parametrize(
    ("base", "exponent"),
    [
        (-8.0, 1 / 3),
        (-8.0, 3.0),
        (0.0, -1.0),
        (10.0, 400.0),
        (-10.0, 401.0),
        (0.0, 0.0),
        (2.0, 0.5),
    ],
)
def test_host_powers_are_ieee(base, exponent):
    want = float(torch.tensor(base, dtype=torch.float64) ** exponent)
    for got in (Number(base) ** exponent, base ** Number(exponent)):
        assert got == pytest.approx(want, nan_ok=True)


def test_intervals():
    assert inside("[0, 1)", 0)
    assert not inside("[0, 1)", 1)
    assert not inside("(0, 1)", 0)
    assert inside("[0, inf)", 1e300)
    assert not inside("[0, inf)", math.inf)
    assert not inside("[0, inf)", math.nan)
