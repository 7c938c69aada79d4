"""Where other packages differ from a paper, from its authors, or from each other."""

import numpy as np
import pytest
import torch
from torch import nn

import steepest
from steepest.oracles.foreign import Optax, foreign
from tests.oracles.test_oracles import LIMIT, SETTINGS, deviation, oracle, path_of


def path(rule, make, k=0):
    """Of another maker, in the k-th setting of a rule."""
    return path_of(make, [s for s in SETTINGS if s.rule == rule][k])


def first(rule, k=0):
    return oracle([s for s in SETTINGS if s.rule == rule][k])


def moves(make, gradients, start=1.0):
    """The changes of one parameter, step by step."""
    p = nn.Parameter(torch.tensor([start], dtype=torch.float64))
    made, found = make([p]), []
    for g in gradients:
        before = p.detach().clone()
        p.grad = torch.full_like(p, g)
        made.step()
        found.append(float(p.detach() - before))
    return found


def optax(name, keys=None, **hyper):
    return lambda params, **more: Optax(params, name, keys or {}, **{**hyper, **more})


def test_optax_weighs_the_differences_of_adan_by_one_minus_beta2():
    """The paper's weight is 1 - beta2 of its own beta2, which is b2 in optax and authors' code."""
    theirs = optax("adan", {"exp_avg": "m", "exp_avg_diff": "v"}, lr=1e-3, eps_root=0.0)
    found, wanted = path("adan", theirs), first("adan")
    for same in ("exp_avg", "exp_avg_diff"):
        assert deviation(found[same], wanted[same]) <= LIMIT
    assert deviation(found["p"], wanted["p"]) > 1e-3
    # by hand, two steps of 1 and 2 with lr 1: m = 0.0596, difference 0.08, n of (g + b d)^2
    b1, b2, b3 = 0.98, 0.92, 0.99
    m = (b1 * 0.02 + 0.02 * 2) / (1 - b1**2)
    d = 0.08 / (1 - b2**2)
    for make, weight in ((optax("adan", lr=1.0, eps_root=0.0), 1 - b2), (ours("Adan"), b2)):
        n = (b3 * 0.01 + 0.01 * (2 + weight) ** 2) / (1 - b3**2)
        step = -(m + weight * d) / (np.sqrt(n) + 1e-8)
        assert moves(make, [1.0, 2.0])[1] == pytest.approx(step, rel=1e-12)


def ours(name):
    return lambda params: getattr(steepest, name)(params, lr=1.0)


@pytest.mark.parametrize(
    "make",
    [optax("yogi"), foreign("pytorch_optimizer", "Yogi")],
    ids=["optax", "pytorch-optimizer"],
)
def test_yogi_elsewhere_moves_without_a_gradient(make):
    """They start the first moment at 1e-6, the paper at 0."""
    assert all(moves(make, [0.0, 0.0]))
    assert not any(moves(ours("Yogi"), [0.0, 0.0]))


def test_pytorch_optimizer_clips_adopt_one_step_later():
    """Its limit is t^(1/4), where the authors count from the first step that moves."""
    theirs = foreign("pytorch_optimizer", "ADOPT", lr=1.0, betas=(0.0, 0.9), foreach=False)
    authors = foreign("adopt", "ADOPT", lr=1.0, betas=(0.0, 0.9))
    jax = optax("contrib.adopt", lr=1.0, betas=(0.0, 0.9))
    gradients = [1.0, 100.0, 1000.0]
    for make, offset in ((theirs, 0), (authors, 1), (jax, 1)):
        limits = [-((t - offset) ** 0.25) for t in (2, 3)]
        assert moves(make, gradients) == pytest.approx([0, *limits], abs=1e-12)


def test_adopt_of_its_authors_decays_from_the_second_step_on():
    authors = foreign("adopt", "ADOPT", lr=0.1, weight_decay=0.1, decouple=True)
    theirs = foreign(
        "pytorch_optimizer", "ADOPT", lr=0.1, weight_decay=0.1, weight_decouple=True, foreach=False
    )
    assert moves(authors, [0.0, 0.0]) == pytest.approx([0, -0.01])
    assert moves(theirs, [0.0, 0.0]) == pytest.approx([-0.01, -0.0099])


def test_pytorch_optimizer_adds_the_eps_of_grams_after_the_correction():
    """As the paper; their package adds it before, so that it counts 1 / sqrt(1 - b^t) times."""
    theirs = foreign("pytorch_optimizer", "Grams", lr=1.0, eps=1e-3)
    authors = foreign("grams", "Grams", lr=1.0, eps=1e-3)
    assert moves(theirs, [1.0]) == pytest.approx([-1 / 1.001])
    assert moves(authors, [1.0]) == pytest.approx([-1 / (1 + 1e-3 / np.sqrt(1e-3))])


@pytest.mark.parametrize("name", ["Lion", "SignSGD"])
def test_a_nan_freezes_an_element_of_pytorch_optimizer(name):
    """Without a word; in optax and here the parameter is nan."""
    theirs = foreign("pytorch_optimizer", name, lr=0.1)
    assert moves(theirs, [1.0, float("nan"), 1.0, 1.0]) == pytest.approx([-0.1, 0, 0, 0])
    here = ours({"SignSGD": "Signum"}.get(name, name))
    assert np.isnan(moves(here, [1.0, float("nan")])[1])
