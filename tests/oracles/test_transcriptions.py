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
CASES = {
    name: case
    for module in (adam, belief, gradient, matrices, norms, searching, signs)
    for name, case in module.CASES.items()
}
"""Class -> its transcription, and for each run the options of the first group and of the second."""
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
