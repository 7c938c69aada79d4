"""Published search spaces against the files that they are from, and knobs like `1-beta1`."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import steepest
from steepest.training import spaces
from steepest.training.recipe import Recipe

# tuning_search_space.json of AlgoPerf's baselines, as published: what belongs to the optimizer
HEAVY_BALL = {
    "learning_rate": {"min": 2e-2, "max": 5.0, "scaling": "log"},
    "one_minus_beta1": {"min": 5e-3, "max": 0.3, "scaling": "log"},
    "weight_decay": {"min": 1e-7, "max": 5e-5, "scaling": "log"},
}
PUBLISHED = {
    "adamw": {
        "learning_rate": {"min": 1e-4, "max": 1e-2, "scaling": "log"},
        "one_minus_beta1": {"min": 2e-2, "max": 0.5, "scaling": "log"},
        "weight_decay": {"min": 5e-3, "max": 1.0, "scaling": "log"},
    },
    "lamb": {
        "learning_rate": {"min": 1e-4, "max": 1e-2, "scaling": "log"},
        "one_minus_beta1": {"min": 5e-2, "max": 0.3, "scaling": "log"},
        "weight_decay": {"min": 1e-3, "max": 1.0, "scaling": "log"},
    },
    "momentum": HEAVY_BALL,
    "nesterov": HEAVY_BALL,
}
THEIRS = {"lr": "learning_rate", "weight_decay": "weight_decay"}


@pytest.mark.parametrize("rule", steepest.rules)
def test_algoperf_has_the_published_numbers_and_no_others(rule):
    space = spaces.named("algoperf", rule, {"lr": (1.0, 2.0)})
    if rule not in PUBLISHED:
        assert space is None
        return
    found = {
        THEIRS.get(knob, "one_minus_beta1"): {"min": low, "max": high, "scaling": "log"}
        for knob, (low, high) in space.items()
    }
    assert found == PUBLISHED[rule]
    assert next(iter(space)) == "lr"  # coordinate 0 of the points, as in every entry


@pytest.mark.parametrize("rule", PUBLISHED)
def test_a_published_point_arrives_in_the_optimizer_as_in_their_code(rule):
    hyper = {k: low for k, (low, _) in spaces.named("algoperf", rule, {}).items()}
    parameter = torch.nn.Parameter(torch.ones(2, 2))
    (group,) = Recipe.read(rule).optimizer([parameter], hyper).param_groups
    want = {ours: PUBLISHED[rule][theirs]["min"] for ours, theirs in THEIRS.items()}
    first = 1.0 - PUBLISHED[rule]["one_minus_beta1"]["min"]
    if rule in ("adamw", "lamb"):
        want["betas"] = (first, 0.999)
    else:
        want["momentum"] = first
    assert {name: group[name] for name in want} == want


def test_lr_only_is_the_declared_range_of_lr_and_nothing_else():
    declared = {"lr": (1e-5, 0.1), "final_lr": (1e-3, 10.0)}
    assert spaces.named("lr-only", "adabound", declared) == {"lr": (1e-5, 0.1)}
    assert spaces.named("lr-only", "newton", {"damping": (1e-4, 10.0)}) is None


@given(st.floats(0.5, 1.0, exclude_max=True))
def test_one_minus_a_default_gives_the_default_back_exactly(value):
    """Both differences are exact from 0.5 to 1 (Sterbenz)."""
    assert spaces.options({"1-beta1": 1 - value, "lr": 0.1}) == {"beta1": value, "lr": 0.1}


@pytest.mark.parametrize(
    ("knob", "option", "twin"), [("beta1", "beta1", "1-beta1"), ("1-beta1", "beta1", "beta1")]
)
def test_two_knobs_set_one_option(knob, option, twin):
    assert (spaces.option_of(knob), spaces.twin(knob)) == (option, twin)
    assert spaces.twin(twin) == knob


@pytest.mark.parametrize("entry", ["adam+noise", "momentum+polynomial+clip"])
def test_a_part_whose_knob_is_not_tuned_has_its_default(entry):
    for part in Recipe.read(entry).parts:
        for knob, span in part.knobs.items():
            assert part.value({}, knob) == span.default
            assert part.value({f"{part.name}.{knob}": 0.25}, knob) == 0.25
