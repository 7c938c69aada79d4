"""Every class against a transcription in NumPy by somebody who has not seen its rule.

200 steps in float64, two groups with options of their own, gradients from 1e-8 to 1e4 with exact
zeros and missing ones, of no to four dimensions.
"""

import math

import numpy as np
import pytest
import torch
from torch import nn

import steepest
from steepest.classes import classes
from tests.oracles.transcriptions import adam, belief, gradient, matrices, norms, searching, signs

STEPS, BOUND = 200, 1e-10
SHAPES = ((), (5,), (4, 3), (2, 3, 4), (2, 3, 2, 2), (1, 1))
DECAY, UP = {"weight_decay": 0.03}, {"maximize": True}
SHORT = {"betas": (0.5, 0.9)}
# class -> the transcription, then for each run the options of the first group and of the second
CASES = {
    "SGD": (
        gradient.SGD,
        [
            ({}, {"lr": 0.1, **DECAY}),
            ({"momentum": 0.9}, {"momentum": 0.5, "dampening": 0.3, **DECAY, **UP}),
            ({"momentum": 0.9, "nesterov": True}, DECAY),
        ],
    ),
    "Momentum": (gradient.Momentum, [({}, {"momentum": 0.5, "dampening": 0.3, **DECAY, **UP})]),
    "Nesterov": (gradient.Nesterov, [({}, {"momentum": 0.5, **DECAY, **UP})]),
    "ClassicalMomentum": (gradient.ClassicalMomentum, [({}, {"momentum": 0.5, **DECAY, **UP})]),
    "ClassicalNesterov": (gradient.ClassicalNesterov, [({}, {"momentum": 0.5, **DECAY, **UP})]),
    "ASGD": (
        gradient.ASGD,
        [({"t0": 20.0}, {"t0": 3.0, "lambd": 0.01, "alpha": 0.6, **DECAY, **UP})],
    ),
    "Rprop": (gradient.Rprop, [({}, {"etas": (0.3, 1.5), "step_sizes": (1e-3, 0.1), **UP})]),
    "Adagrad": (
        gradient.Adagrad,
        [({}, {"lr_decay": 0.1, "initial_accumulator_value": 0.7, **DECAY, **UP})],
    ),
    "Adadelta": (gradient.Adadelta, [({}, {"rho": 0.95, "eps": 1e-3, **DECAY, **UP})]),
    "RMSprop": (
        gradient.RMSprop,
        [({}, {"alpha": 0.9, **DECAY}), ({"centered": True}, {"momentum": 0.9, **UP})],
    ),
    "Adamax": (adam.Adamax, [({}, {**SHORT, "eps": 1e-3, **DECAY, **UP})]),
    "Adam": (
        adam.Adam,
        [
            ({}, {**SHORT, "eps": 1e-3, **DECAY, **UP}),
            ({"amsgrad": True}, {"decoupled_weight_decay": True, **DECAY}),
        ],
    ),
    "AdamW": (
        adam.AdamW,
        [({}, {**SHORT, "weight_decay": 0.1, **UP}), ({"amsgrad": True}, {"amsgrad": False})],
    ),
    "AMSGrad": (adam.AMSGrad, [({}, {**SHORT, "eps": 1e-3, **DECAY, **UP})]),
    "SparseAdam": (adam.SparseAdam, [({}, {**SHORT, "eps": 1e-3, **UP})]),
    "EAdam": (adam.EAdam, [({}, {**SHORT, "eps": 1e-3, **DECAY, **UP})]),
    "NAdam": (
        adam.NAdam,
        [
            ({}, {**SHORT, "momentum_decay": 0.1, **DECAY, **UP}),
            ({"decoupled_weight_decay": True, **DECAY}, {}),
        ],
    ),
    "RAdam": (
        adam.RAdam,
        [
            ({}, {"betas": (0.9, 0.5), **DECAY, **UP}),
            ({"decoupled_weight_decay": True, **DECAY}, {}),
        ],
    ),
    "AdaBelief": (
        belief.AdaBelief,
        [
            ({}, {**SHORT, "eps": 1e-8, **DECAY, **UP}),
            (
                {"rectify": False},
                {"rectify": False, "amsgrad": True, "weight_decouple": False, **DECAY},
            ),
            ({"degenerated_to_sgd": False}, {"fixed_decay": True, "weight_decay": 1e-3}),
        ],
    ),
    "AdaBound": (
        belief.AdaBound,
        [
            ({}, {"final_lr": 1e-3, "gamma": 0.05, **SHORT, **DECAY, **UP}),
            ({"amsbound": True, "gamma": 0.05}, DECAY),
        ],
    ),
    "AMSBound": (
        belief.AMSBound,
        [({}, {"final_lr": 1e-3, "gamma": 0.05, **SHORT, **DECAY, **UP})],
    ),
    "Yogi": (belief.Yogi, [({}, {**SHORT, "eps": 1e-2, **DECAY, **UP})]),
    "MSVAG": (belief.MSVAG, [({}, {"beta": 0.5, **DECAY, **UP})]),
    "ADOPT": (
        belief.ADOPT,
        [({}, {**SHORT, "clip": False, **DECAY, **UP}), ({"decouple": True, **DECAY}, {})],
    ),
    "Adan": (
        belief.Adan,
        [
            ({}, {"betas": (0.9, 0.5, 0.95), "eps": 1e-3, **DECAY, **UP}),
            ({"no_prox": True, **DECAY}, {}),
        ],
    ),
    "AdEMAMix": (
        belief.AdEMAMix,
        [
            ({}, {"betas": (0.8, 0.95, 0.99), "alpha": 5.0, **DECAY, **UP}),
            ({"alpha_warmup": 50.0, "beta3_warmup": 120.0}, {"alpha_warmup": 400.0}),
        ],
    ),
    "Signum": (signs.Signum, [({}, {"momentum": 0.5, **DECAY, **UP})]),
    "Lion": (signs.Lion, [({}, {**SHORT, **DECAY, **UP})]),
    "Grams": (signs.Grams, [({}, {**SHORT, "eps": 1e-3, **DECAY, **UP})]),
    "SGDScheduleFree": (
        signs.SGDScheduleFree,
        [
            ({"lr": 0.01}, {"lr": 0.1, "momentum": 0.5, **DECAY, **UP}),
            ({"lr": 0.01, "warmup_steps": 20.0, "r": 1.0}, {"weight_lr_power": 1.0}),
        ],
    ),
    "AdamWScheduleFree": (
        signs.AdamWScheduleFree,
        [
            ({}, {**SHORT, **DECAY, **UP}),
            ({"warmup_steps": 20.0, "r": 1.0}, {"weight_lr_power": 1.0}),
        ],
    ),
    "Fromage": (norms.Fromage, [({}, {"lr": 0.1, **DECAY, **UP})]),
    "LARS": (
        norms.LARS,
        [({"lr": 0.1}, {"momentum": 0.5, "trust_coefficient": 0.02, **DECAY, **UP})],
    ),
    "LAMB": (norms.LAMB, [({}, {**SHORT, "eps": 1e-3, **DECAY, **UP})]),
    "NovoGrad": (norms.NovoGrad, [({}, {**SHORT, "eps": 1e-3, **DECAY, **UP})]),
    "MARS": (norms.MARS, [({}, {**SHORT, "gamma": 0.1, **DECAY, **UP})]),
    "Adafactor": (
        norms.Adafactor,
        [({}, {"eps": (1e-5, 1e-2), "d": 1.5, "beta2_decay": -0.6, **DECAY, **UP})],
    ),
    "SWATS": (
        searching.SWATS,
        [({"lr": 0.01}, {**DECAY, **UP}), ({"lr": 0.01, "settled": 1e3}, {"lr": 0.02, **DECAY})],
    ),
    "Prodigy": (
        searching.Prodigy,
        [
            ({}, {**DECAY, **UP}),
            ({"d0": 1e-4, "growth_rate": 1.02}, {"d0": 1e-4, "growth_rate": 1.02, "eps": 1e-6}),
        ],
    ),
    "YellowFin": (
        searching.YellowFin,
        [({}, {**DECAY, **UP}), ({"beta": 0.9, "lr": 0.5}, {"beta": 0.9})],
    ),
    "Muon": (
        matrices.Muon,
        [
            ({}, {"lr": 0.01, "adamw_lr": 0.01, **SHORT}),
            ({"nesterov": False, "adjust_lr_fn": "match_rms_adamw"}, {"ns_steps": 3, **DECAY}),
        ],
    ),
    "SOAP": (matrices.SOAP, [({}, {**SHORT, "precondition_frequency": 3, **DECAY, **UP})]),
}
# what another bound is for, with its cause, which the tests named there measure
CAUSES = {"Prodigy": (1e-9, "p0 - p cancels to the last bits of p, which test_oracles measures")}
RUNS = [(name, run) for name, (_, runs) in CASES.items() for run in range(len(runs))]


def test_every_class_has_a_transcription():
    assert {*CASES} == {*classes}


def draws(name, seed):
    """For each group a list of starts, and for each step lists of gradients or None."""
    random = np.random.default_rng(seed)
    # eigenvectors of a covariance are as good as its condition: normal gradients, nearly square
    soap = name == "SOAP"
    shapes = ((), (5,), (4, 4), (3, 4), (2, 3, 4), (2, 2, 3, 2)) if soap else SHAPES
    starts = [[random.standard_normal(s) * (k % 2) for k, s in enumerate(shapes)] for _ in range(2)]
    if name in ("LARS", "LAMB", "Fromage", "Adafactor"):  # a share of the parameter's norm
        starts = [[random.standard_normal(s) for s in shapes] for _ in range(2)]
    steps = []
    for t in range(STEPS):
        made = []
        for group in range(2):
            row = []
            for k, shape in enumerate(shapes):
                g = random.standard_normal(shape)
                if not soap:
                    g = np.sign(g) * 10 ** random.uniform(-8, 4, shape)
                    g = np.where(random.uniform(size=shape) < 0.2, 0.0, g)
                # the first group leads where a rule has one rate for all
                missing = group == 1 and k % 2 == 0 and random.uniform() < 0.1 and t != 0
                late = group == 1 and k == 1 and t < 7
                row.append(None if missing or late else np.asarray(g))
            made.append(row)
        steps.append(made)
    return starts, steps


def rate(t):
    return 1 + 0.5 * math.sin(0.3 * t)


def apart(name, run, seed=0):
    """The largest deviation of a displacement, of what the element was displaced by so far."""
    transcription, runs = CASES[name]
    starts, steps = draws(name, seed)
    params = [[nn.Parameter(torch.from_numpy(np.array(p))) for p in group] for group in starts]
    groups = [{"params": ps, **o} for ps, o in zip(params, runs[run], strict=True)]
    ours = getattr(steepest, name)(groups)
    theirs = transcription(
        [{"params": ps, **o} for ps, o in zip(starts, runs[run], strict=True)]
    )  # fmt: skip
    usual = [group["lr"] for group in ours.param_groups]
    assert usual == [group["lr"] for group in theirs.groups]
    peaks = [[np.zeros_like(p) for p in group] for group in starts]
    worst = 0.0
    for t, grads in enumerate(steps, start=1):
        for made, group, lr in zip(ours.param_groups, theirs.groups, usual, strict=True):
            made["lr"] = group["lr"] = lr * rate(t)
        for ps, gs in zip(params, grads, strict=True):
            for p, g in zip(ps, gs, strict=True):
                p.grad = None if g is None else torch.from_numpy(g.copy())
        ours.step()
        theirs.step(grads)
        for i, ps in enumerate(params):
            for j, p in enumerate(ps):
                moved = theirs.groups[i]["params"][j] - starts[i][j]
                peaks[i][j] = np.maximum(peaks[i][j], np.abs(moved))
                off = np.abs(p.detach().numpy() - theirs.groups[i]["params"][j])
                # a parameter's own last bits, each step's
                off = np.maximum(0, off - 1e-15 * t * np.abs(theirs.groups[i]["params"][j]))
                with np.errstate(invalid="ignore"):
                    share = np.where(off > 0, off / peaks[i][j], 0.0)
                assert np.isfinite(share).all(), (name, run, t, i, j)
                worst = max(worst, float(share.max()))
    return worst


@pytest.mark.slow
@pytest.mark.parametrize(("name", "run"), RUNS)
def test_displacements(name, run):
    bound, _ = CAUSES.get(name, (BOUND, ""))
    assert apart(name, run) < bound


def test_the_comparison_can_fail(monkeypatch):
    class Off(adam.Adam):
        def update(self, p, g, state, o):
            new = super().update(p, g, state, o)
            return new + 1e-9 * (new - p)

    monkeypatch.setitem(CASES, "Adam", (Off, CASES["Adam"][1]))
    assert apart("Adam", 0) > BOUND


def averages_from(z, y, state, group):
    """Schedule-Free's x is what z and the rounded y say: y = (1 - beta) z + beta x."""
    beta = group["momentum"] if "momentum" in group else group["betas"][0]
    state["z"] = z.double().numpy().copy()
    state["x"] = (y - (1 - beta) * state["z"]) / beta


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", [n for n in CASES if n not in ("SOAP", "Muon")])
def test_other_dtypes(name, dtype):
    """30 steps, each from the same point: the transcription's parameter is ours before the step."""
    transcription, runs = CASES[name]
    starts, steps = draws(name, 1)
    params = [[nn.Parameter(torch.from_numpy(np.array(p)).to(dtype)) for p in g] for g in starts]
    groups = [{"params": ps, **o} for ps, o in zip(params, runs[0], strict=True)]
    ours = getattr(steepest, name)(groups)
    held = [[p.detach().double().numpy() for p in ps] for ps in params]
    theirs = transcription([{"params": ps, **o} for ps, o in zip(held, runs[0], strict=True)])
    if name == "Adafactor":
        for group in theirs.groups:
            group["dtype_eps"] = torch.finfo(dtype).eps
    ulp, t = torch.finfo(dtype).eps, 0
    for t, grads in enumerate(steps[:30], start=1):
        rounded = [
            [None if g is None else torch.from_numpy(g.copy()).to(dtype) for g in gs]
            for gs in grads
        ]
        before = [[p.detach().double().numpy() for p in ps] for ps in params]
        for i, (ps, gs) in enumerate(zip(params, rounded, strict=True)):
            for j, (p, g) in enumerate(zip(ps, gs, strict=True)):
                p.grad = g
                theirs.groups[i]["params"][j] = p.detach().double().numpy().copy()
                if "z" in (mine := ours.state.get(p, {})):
                    averages_from(mine["z"], before[i][j], theirs.state[i, j], ours.param_groups[i])
        ours.step()
        theirs.step([[None if g is None else g.double().numpy() for g in gs] for gs in rounded])
        for i, ps in enumerate(params):
            for j, p in enumerate(ps):
                want = theirs.groups[i]["params"][j]
                moved = np.abs(want - before[i][j])
                # the new value is rounded once; the step itself is float32's, to a part in 1,000
                room = ulp * np.abs(want) + 1e-3 * moved + 1e-30
                off = np.abs(p.detach().double().numpy() - want)
                assert (off <= room).all(), (t, i, j, off / room)
