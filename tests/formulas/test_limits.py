"""Every hyperparameter of every rule has the limits of its meaning, and holds them."""

import inspect
import math

import pytest
import torch
from torch import nn

import steepest
from steepest.families import family_of
from steepest.options import PAIRS

TABLE = [
    (name, scalar, *rule.limits.get(scalar, ("", "")))
    for name, rule in steepest.rules.items()
    for scalar in rule.defaults
]


def made(name, scalar, value):
    """The rule's class, with one number of an option replaced."""
    family = family_of(name)
    key, index = PAIRS.get(scalar, (scalar, None))
    held = family.arguments.get(key)
    if index is not None and isinstance(held, (tuple, list)):
        value = tuple(value if k == index else x for k, x in enumerate(held))
    p = nn.Parameter(torch.linspace(0.5, 1.5, 12, dtype=torch.float64).reshape(4, 3))
    return p, steepest.optimizer(name, [p], **{key if held is not None else scalar: value})


def ends(interval):
    low, high = (float(x) for x in interval[1:-1].split(","))
    return low, high


@pytest.mark.parametrize(("name", "scalar", "interval", "why"), TABLE)
def test_what_is_outside_is_refused(name, scalar, interval, why):
    assert interval, f"{name}: {scalar} has no limits"
    low, high = ends(interval)
    outside = [math.nan]
    outside += [-math.inf] * (interval[0] == "(" or low > -math.inf)
    outside += [math.inf] * (interval[-1] == ")" or high < math.inf)
    if low > -math.inf:
        outside += [low - 1, math.nextafter(low, -math.inf)] + [low] * (interval[0] == "(")
    if high < math.inf:
        outside += [high + 1, math.nextafter(high, math.inf)] + [high] * (interval[-1] == ")")
    for value in outside:
        with pytest.raises((ValueError, TypeError), match=r"was given, expected"):
            made(name, scalar, value)


@pytest.mark.parametrize(("name", "scalar", "interval", "why"), TABLE)
def test_what_is_inside_is_taken_and_steps(name, scalar, interval, why):
    low, high = ends(interval)
    inside = [low] * (interval[0] == "[") + [high] * (interval[-1] == "]")
    default = steepest.rules[name].defaults[scalar]
    inside += [None if scalar == "eps1" else default]
    if low > -math.inf and scalar != "ns_a":  # the three coefficients converge together
        inside += [min(low + 1e-3, (low + high) / 2)]
        inside += [(low + high) / 2 if high < math.inf else low + 2.0]
    for value in inside:
        p, optimizer = made(name, scalar, value)
        for _ in range(3):
            p.grad = torch.full_like(p, 0.1)
            optimizer.step()
        assert bool(p.detach().isfinite().all()), value


@pytest.mark.parametrize("name", ["AdaBound", "Muon"])
@pytest.mark.parametrize("value", [-1.0, math.inf, math.nan, "one"])
def test_a_captured_constant_has_the_limits_of_its_source(name, value):
    p = nn.Parameter(torch.ones(2, 2))
    with pytest.raises((ValueError, TypeError), match=r"base_lr=.* was given, expected"):
        getattr(steepest, name)([{"params": [p], "base_lr": value}])


def test_none_stands_for_a_number_in_adafactor_alone():
    p = nn.Parameter(torch.ones(2, 2))
    assert steepest.Adafactor([p], eps=(None, 1e-3)).param_groups[0]["eps"] == (None, 1e-3)
    with pytest.raises(ValueError, match=r"eps\[0\]=-0\.5 was given"):
        steepest.Adafactor([p], eps=(-0.5, 1e-3))
    with pytest.raises(TypeError, match=r"betas=\(None, 0\.9\) was given"):
        steepest.AdamW([p], betas=(None, 0.9))


NARROWER = {
    "RMSprop.alpha": "an average with a share above 1 grows without end",
    "Muon.momentum": "a share, which torch's class does not check",
    "Muon.eps": "a norm is divided by no less, which torch's class does not check",
    "Muon.ns_coefficients": "at 1e30 all is inf after one iteration",
    "Muon.ns_steps": "a count: a whole number of 1 or more",
    "Rprop.step_sizes": "a least step below 0, or a largest that is 0, moves nothing or backwards",
}
WIDER = {"SparseAdam.lr": "a rate of 0 moves nothing", "SparseAdam.eps": "0, as Adam takes it"}
VALUES = (-1.0, 0.0, 0.5, 1.0, 2.0, 1e30)


@pytest.mark.parametrize("name", sorted({*torch.optim.__all__} & {*steepest.__all__}))
def test_what_torchs_class_takes_and_refuses_is_taken_and_refused(name):
    def takes(lib, key, value):
        try:
            getattr(lib, name)([nn.Parameter(torch.ones(2, 2))], **{key: value})
        except (ValueError, RuntimeError, TypeError):
            return False
        return True

    odd = set()
    for key, given in inspect.signature(getattr(torch.optim, name)).parameters.items():
        held = given.default
        if type(held) is tuple:
            tried = [(*held[:i], v, *held[i + 1 :]) for i in range(len(held)) for v in VALUES]
        else:
            tried = VALUES if type(held) in (int, float) else ()
        taken = [(takes(torch.optim, key, v), takes(steepest, key, v)) for v in tried]
        odd |= {(f"{name}.{key}", ours) for theirs, ours in taken if ours != theirs}
    known = {(key, False) for key in NARROWER} | {(key, True) for key in WIDER}
    assert odd == {(key, wider) for key, wider in known if key.startswith(f"{name}.")}
