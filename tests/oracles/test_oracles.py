"""Every rule against an implementation that we did not write: in float64 to 1e-12, in float32 to
the accuracy that the oracle itself has there. The table of oracles stands in
`steepest.oracles`.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import pytorch_optimizer
import torch
from torch import Tensor

import steepest
from steepest.oracles import CANCELLING, LIMIT, ORACLES, PRECISE, SETTINGS, Maker, Setting
from steepest.oracles.foreign import foreign
from steepest.oracles.trajectories import (
    SHAPES,
    STEPS,
    default_dtype,
    deviation,
    end_of,
    gradients,
    oracle,
    oracle_end,
    path_of,
    scheduled,
    starts,
)

BACKENDS = ("cpu", "foreach", "eager")
KINDS = {"torch", "package", "optax", "pytorch-optimizer", "transcription"}
FLOAT32 = torch.finfo(torch.float32).eps

pytestmark = pytest.mark.filterwarnings(r"ignore:AdaBelief\(amsgrad=True\) has no effect")


@pytest.fixture(autouse=True)
def _one_thread(_settings):
    torch.set_num_threads(1)  # small tensors: a second thread would only wait


def each(settings: Any) -> Any:
    return pytest.mark.parametrize("setting", settings, ids=map(str, settings))


# the table


def test_every_rule_has_an_oracle():
    assert set(ORACLES) == set(steepest.rules)
    assert {row.source for row in ORACLES.values()} == KINDS


@pytest.mark.parametrize("rule", ORACLES)
def test_every_rule_is_compared_with_decay_without_it_and_with_a_moving_rate(rule):
    own = [s for s in SETTINGS if s.rule == rule]
    made = own[0].made_by.ours([torch.zeros(1)], **own[0].hyper)
    decays = {bool(s.hyper.get("weight_decay", made.defaults.get("weight_decay"))) for s in own}
    assert decays == ({False, True} if "weight_decay" in made.defaults else {False})
    assert {s.scheduled for s in own} == {False, True}
    assert any(s.hyper.get("maximize") for s in own) or "maximize" not in made.defaults


@each(SETTINGS)
def test_a_setting_steps_the_rule_that_it_names(setting):
    made = setting.made_by.ours([torch.zeros(1)], **setting.hyper)
    assert made.family.rule(made.param_groups[0]).name == setting.rule


# float64


@pytest.mark.parametrize("backend", BACKENDS)
@each(SETTINGS)
def test_float64(setting, backend):
    """Parameter and all states, after each of 100 steps."""
    ours, theirs = path_of(setting.made_by.ours, setting, backend=backend), oracle(setting)
    # of Sutskever's transcription; Adan's, with a minus; NovoGrad's, under other names; SOAP's
    only_theirs = {"theta", "previous_grad", "grads_ema", "moments"}
    only_theirs |= {"precondition_frequency", "shampoo_beta"}
    if setting.hyper.get("amsgrad") and setting.hyper.get("rectify", setting.rule == "adabelief"):
        only_theirs = {"max_exp_avg_var"}  # kept by the package and read by nobody
    assert theirs.keys() - ours.keys() <= only_theirs
    # what packages keep by group
    only_ours = {"step", "last_grad", "lr_max", "weight_sum", "d", "d_max", "r", "moves", "k"}
    if setting.rule == "yellowfin":
        only_ours |= {*steepest.rules["yellowfin"].carried}
    if setting.made_by.source == "pytorch-optimizer":  # SOAP's, in lists
        only_ours |= {"covariances", "bases"}
    if setting.rule in ("lars", "novograd"):  # not kept by optax, or without lr; see only_theirs
        ours.pop("momentum_buffer", None), theirs.pop("momentum_buffer", None)
        only_ours |= {"exp_avg", "exp_avg_sq"}
    assert ours.keys() - theirs.keys() <= only_ours
    common = ours.keys() & theirs.keys()
    if setting.bound != LIMIT:  # a looser one holds where its reason does, and nowhere else
        assert setting.why
        worst = {key: deviation(ours[key], theirs[key]) for key in common}
        assert max(worst.values()) <= setting.bound, worst
        if setting is not CANCELLING:
            return  # test_a_variance_of_nothing
        some = without_gradient()
        theirs = {key: v[:, ~some] if v.shape[1:] == some.shape else v for key, v in theirs.items()}
        ours = {key: v[:, ~some] if v.shape[1:] == some.shape else v for key, v in ours.items()}
    worst = {key: deviation(ours[key], theirs[key]) for key in common}
    assert max(worst.values()) <= LIMIT, worst


def without_gradient() -> Tensor:
    """Which elements never have a gradient, so that weight decay is all that moves them."""
    flat = [torch.cat([x.reshape(-1) for x in row]) for row in gradients(SHAPES, torch.float64)]
    return (torch.stack(flat) == 0).all(0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_cancellation(backend):
    """Centered RMSprop on nearly constant gradients: the oracle is no nearer to the truth."""
    exact = rmsprop_in_long_double(CANCELLING)
    ours = path_of(CANCELLING.made_by.ours, CANCELLING, backend=backend)
    lost, theirs = (deviation(p["momentum_buffer"], exact) for p in (ours, oracle(CANCELLING)))
    assert lost <= 2 * theirs
    assert LIMIT < lost + theirs <= CANCELLING.bound  # else its bound should be that of all others


def rmsprop_in_long_double(setting: Setting) -> Tensor:
    """The momentum buffer of centered RMSprop after each step, in 64 bits of mantissa."""
    long, hyper = np.longdouble, setting.hyper
    flat = [
        torch.cat([x.reshape(-1) for x in row]).numpy() for row in gradients(SHAPES, torch.float64)
    ]
    p = torch.cat([x.reshape(-1) for x in starts(SHAPES, torch.float64)]).numpy().astype(long)
    alpha, momentum, decay = (long(hyper[k]) for k in ("alpha", "momentum", "weight_decay"))
    v, a, b = (np.zeros_like(p) for _ in range(3))
    made = []
    for t, row in enumerate(flat, start=1):
        g = -row.astype(long) + decay * p
        v = alpha * v + (1 - alpha) * g * g
        a = alpha * a + (1 - alpha) * g
        b = momentum * b + g / (np.sqrt(v - a * a) + long(1e-8))
        p = p - long(scheduled(0.01, t)) * b
        made.append(torch.from_numpy(b.astype(np.float64)))
    return torch.stack(made)


@pytest.mark.parametrize("backend", BACKENDS)
@each([s for s in SETTINGS if s.rule == "msvag"])
def test_a_variance_of_nothing(setting, backend):
    """M-SVAG's first variance is 0, and so it is with us."""
    long, hyper = np.longdouble, setting.hyper
    lr, beta = (long(hyper.get(k, d)) for k, d in (("lr", 0.01), ("beta", 0.9)))
    p, m, v = torch.cat([x.reshape(-1) for x in starts(SHAPES, torch.float64)]).numpy(), 0, 0
    made = []
    for t, row in enumerate(gradients(SHAPES, torch.float64), start=1):
        g = torch.cat([x.reshape(-1) for x in row]).numpy().astype(long)
        g = -g if hyper.get("maximize") else g
        rate = long(scheduled(float(lr), t)) if setting.scheduled else lr
        p = p * (1 - rate * long(hyper.get("weight_decay", 0.0)))
        m, v = beta * m + (1 - beta) * g, beta * v + (1 - beta) * g * g
        mean, square = m / (1 - beta**t), v / (1 - beta**t)
        rho = (1 - beta) ** 2 * (1 - beta ** (2 * t)) / ((1 - beta**t) ** 2 * (1 - beta**2))
        noise = rho * (square - mean * mean) / (1 - rho) if t > 1 else 0
        share = mean * mean / np.where(mean == 0, 1, mean * mean + noise)
        p = p - rate * np.clip(share, 0, 1) * mean
        made.append(torch.from_numpy(p.astype(np.float64)))
    ours = path_of(setting.made_by.ours, setting, backend=backend)
    assert deviation(ours["p"], torch.stack(made)) <= LIMIT


@each([s for s in SETTINGS if s.rule == "prodigy" and s.bound != LIMIT])
def test_a_last_bit_of_the_parameter_moves_prodigy(setting):
    """As far as we are from the oracle, it is from itself: d begins with p0 - p, of length d0."""

    def nudged(params: list[Tensor], **hyper: Any) -> Any:
        made = setting.made_by.oracle(params, **hyper)
        plain, random = made.step, torch.Generator().manual_seed(0)

        def step() -> None:
            plain()
            for p in params:
                bits = torch.randint(-1, 2, p.shape, generator=random)
                p.data *= 1 + 2.0**-53 * bits.double()

        made.step = step
        return made

    moved, theirs = path_of(nudged, setting), oracle(setting)
    worst = max(deviation(moved[key], theirs[key]) for key in ("p", "s", "exp_avg"))
    assert worst > LIMIT
    ours = path_of(setting.made_by.ours, setting)
    assert max(deviation(ours[key], theirs[key]) for key in ("p", "s", "exp_avg")) <= 10 * worst


@pytest.mark.parametrize(
    ("name", "apart"), [("SOAP", 1e-5), ("MSVAG", 2e-11)], ids=["soap", "msvag"]
)
def test_what_pytorch_optimizer_rounds(name, apart):
    """SOAP's eigenvectors to float32; MSVAG divides the rounding of its first variance by 1e-4.

    The oracles leave out these two, and nothing else, and then agree to the limit.
    """
    setting = next(s for s in SETTINGS if s.rule == name.lower())
    plain = path_of(foreign("pytorch_optimizer", name, foreach=False), setting)
    assert LIMIT < deviation(plain["p"], oracle(setting)["p"]) < apart


# float32


@pytest.mark.parametrize("backend", ["cpu", "foreach"])
@each([s for s in PRECISE if s.rule != "prodigy"])  # on noise its d grows beyond float32, in both
def test_float32_is_as_precise_as_the_oracle(setting, backend):
    """Errors against the oracle in float64, next to those of the oracle's own run in float32."""
    exact, rough = (oracle_end(setting, dtype) for dtype in (torch.float64, torch.float32))
    ours = end_of(setting.made_by.ours, setting, torch.float32, backend=backend)
    found = {}
    for key in ours.values.keys() & exact.values.keys():
        # relative to the largest value that the element had: a first moment may be near zero
        peak = exact.peaks[key].clamp_min(torch.finfo(torch.float32).tiny)
        mine, own = ((run.values[key] - exact.values[key]).abs() / peak for run in (ours, rough))
        if not own.any():
            own = own + FLOAT32
        mean, tail = mine.mean() / own.mean(), mine.quantile(0.999) / own.quantile(0.999)
        found[key] = round(float(mean), 2), round(float(tail), 2)
    # optax adds the decay to the step, and so rounds the parameter once
    most = 1.6 if setting.made_by.source == "optax" else 1.5
    worst = {key: pair for key, pair in found.items() if not (pair[0] <= most and pair[1] <= 4)}
    assert not worst, f"(mean, 99.9 % quantile) of our error in units of the oracle's: {worst}"


# numbers at the edge


EDGES = [0.0, -0.0, 1e-42, -1e-30, 1e-20, 1.0, -1e18, 1e25, 3e38, math.inf, -math.inf, math.nan]


WHOLE = {name for name, r in steepest.rules.items() if r.trace().reductions or r.trace().matrix}


@pytest.mark.parametrize("backend", ["cpu", "foreach"])
@each([s for s in PRECISE if s.rule not in WHOLE])  # there one element reaches all others
def test_tiny_huge_and_non_finite_gradients(setting, backend):
    """In float32: where the oracle is finite we are near it, where it is not we are not either.

    Whether an average that was infinite is inf or nan one step later is a matter of how it is
    written: m + w (g - m) or (1 - w) m + w g.
    """
    mine, reference = ([torch.linspace(-1, 1, len(EDGES)).requires_grad_()] for _ in range(2))
    ours = setting.made_by.ours(mine, **setting.hyper, backend=backend)
    theirs = setting.made_by.oracle(reference, **setting.hyper)
    for k in range(4):
        for p in (*mine, *reference):
            p.grad = torch.tensor(EDGES) if k == 1 else torch.ones(len(EDGES))
        ours.step()
        theirs.step()
        found, wanted = (p.detach() + 0 * p.detach() for p in (*mine, *reference))  # inf is nan
        rtol = 1e-5 if setting.bound == LIMIT or setting is CANCELLING else 1e-3
        torch.testing.assert_close(found, wanted, rtol=rtol, atol=1e-6, equal_nan=True)


# checkpoints: what torch saved is stepped on by us, and the other way round


@pytest.mark.parametrize("backend", ["cpu", "foreach"])
@pytest.mark.parametrize("from_torch", [True, False], ids=["from-torch", "to-torch"])
@pytest.mark.parametrize(
    "rule",
    # torch's Muon keeps options of its iteration in the groups, which ours has no use for
    [name for name, row in ORACLES.items() if row.source == "torch" and name != "muon"],
)
def test_a_run_moves_between_torch_and_us(rule, from_torch, backend):
    setting = next(s for s in reversed(SETTINGS) if s.rule == rule and s is not CANCELLING)
    hyper, row, shape = setting.hyper, ORACLES[rule], (6, 5)
    if setting.row is not None:
        setting = next(s for s in SETTINGS if s.rule == rule)
        hyper = setting.hyper

    def ours(params: list[Tensor], **more: Any) -> Any:
        return row.ours(params, backend=backend, **more)

    first, second = (row.oracle, ours) if from_torch else (ours, row.oracle)
    stay, move = (starts([shape], torch.float64)[0].requires_grad_() for _ in range(2))
    with default_dtype(torch.float64):
        stays, moves = row.oracle([stay], **hyper), first([move], **hyper)
        for t, (g,) in enumerate(gradients((shape,), torch.float64)):
            if t == STEPS // 2:
                saved = copy.deepcopy(moves.state_dict())
                moves = second([move], **hyper)
                moves.load_state_dict(saved)
            stay.grad, move.grad = g.clone(), g.clone()
            stays.step()
            moves.step()
            difference = (stay - move).detach().abs().max() / stay.detach().abs().max()
            # torch's SparseAdam counts in ints, and corrects in float32 by a count that is a tensor
            loses = rule == "sparse_adam" and not from_torch
            assert float(difference) <= (1e-9 if loses else LIMIT), t


# a second opinion: pytorch-optimizer, where it has one of our rules


def _second(rule: str, foreach: bool) -> Maker:
    def make(params: list[Tensor], **hyper: Any) -> Any:
        if rule == "adabelief":
            hyper = {"rectify": True, **hyper, "ams_bound": hyper.get("amsgrad", False)}
            hyper.pop("amsgrad", None)
            return pytorch_optimizer.AdaBelief(params, foreach=foreach, **hyper)
        if rule in ("adabound", "amsbound"):
            bound = {"ams_bound": rule == "amsbound", "weight_decouple": False}
            return pytorch_optimizer.AdaBound(params, foreach=foreach, **bound, **hyper)
        if rule == "radam":
            decoupled = {"weight_decouple": hyper.pop("decoupled_weight_decay", False)}
            return pytorch_optimizer.RAdam(
                params, foreach=foreach, degenerated_to_sgd=True, **decoupled, **hyper
            )
        if rule == "adamax":
            return pytorch_optimizer.AdaMax(params, foreach=foreach, **{"lr": 2e-3, **hyper})
        return pytorch_optimizer.AdaDelta(params, foreach=foreach, **hyper)

    return make


SECOND = [
    s
    for s in SETTINGS
    if s.rule in ("adabelief", "adabound", "amsbound", "radam", "adamax", "adadelta")
]


def disagreement(setting: Setting) -> str:
    """Where pytorch-optimizer 4.1.0 is known to differ, or nothing."""
    if setting.rule == "radam" and setting.hyper.get("weight_decay"):
        return "" if setting.hyper.get("decoupled_weight_decay") else "drops"
    if setting.rule == "adabelief" and setting.hyper.get("amsgrad"):
        return "maximum" if setting.hyper.get("rectify", True) else ""
    if setting.rule in ("adabound", "amsbound") and "final_lr" not in setting.hyper:
        return "inside"
    return ""


@pytest.mark.parametrize("foreach", [True, False], ids=["foreach", "loop"])
@each([s for s in SECOND if not disagreement(s)])
def test_second_opinion(setting, foreach):
    first, second = oracle(setting), path_of(_second(setting.rule, foreach), setting)
    assert second.keys() >= first.keys() - {"step"}
    assert max(deviation(second[key], first[key]) for key in first.keys() - {"step"}) <= LIMIT


@each([s for s in SECOND if disagreement(s) == "drops"])
def test_pytorch_optimizer_drops_the_coupled_decay_of_radam(setting):
    """It passes its decay no gradient, so weight_decouple=False means no decay; torch decays."""
    free = Setting(setting.rule, {**setting.hyper, "weight_decay": 0.0}, setting.scheduled)
    theirs = path_of(_second("radam", True), setting)
    assert deviation(theirs["p"], oracle(free)["p"]) <= LIMIT
    assert deviation(theirs["p"], oracle(setting)["p"]) > 0.1


@each([s for s in SECOND if disagreement(s) == "maximum"])
def test_pytorch_optimizer_reads_the_maximum_under_rectify(setting):
    """The authors' package computes the maximum there and then ignores it, and so do we."""
    theirs = path_of(_second("adabelief", True), setting)
    assert deviation(theirs["p"], oracle(setting)["p"]) > 1e-6
    plain = Setting(setting.rule, {**setting.hyper, "amsgrad": False}, setting.scheduled)
    assert deviation(oracle(plain)["p"], oracle(setting)["p"]) == 0


@each([s for s in SECOND if disagreement(s) == "inside"])
def test_pytorch_optimizer_adds_to_the_root_of_adabound(setting):
    """It adds 1e-15 inside the root, too; neither the paper nor its authors' package do."""
    theirs, authors = path_of(_second(setting.rule, True), setting), oracle(setting)
    states = [key for key in authors if key not in ("p", "step")]
    assert all(deviation(theirs[key], authors[key]) <= LIMIT for key in states)
    assert 1e-10 < deviation(theirs["p"], authors["p"]) < 1e-6
    # one step by hand: m / (sqrt(v + 1e-15) + 1e-8), where v is so small that it shows
    p, g = torch.zeros(1, dtype=torch.float64, requires_grad=True), 2e-4
    p.grad = torch.full_like(p, g)
    _second(setting.rule, True)([p]).step()
    m, v = 0.1 * g, 0.001 * g * g
    step = 1e-3 * math.sqrt(0.001) / 0.1 * m / (math.sqrt(v + 1e-15) + 1e-8)
    assert float(p.detach()) == pytest.approx(-step, rel=1e-9)


# Sutskever's Nesterov where the gradient depends on the parameter


@pytest.mark.parametrize("backend", BACKENDS)
def test_classical_nesterov_stores_the_look_ahead_point(backend):
    curvature, mu, lr = np.array([0.1, 1.0, 7.0]), 0.9, 0.05
    theta, v = np.array([1.0, -2.0, 3.0]), np.zeros(3)
    p = torch.tensor(theta, requires_grad=True)
    made = steepest.ClassicalNesterov([p], lr=lr, momentum=mu, backend=backend)
    for _ in range(50):
        made.zero_grad()
        (torch.tensor(curvature) * p**2 / 2).sum().backward()
        made.step()
        v = mu * v - lr * curvature * (theta + mu * v)
        theta = theta + v
        np.testing.assert_allclose(p.detach().numpy(), theta + mu * v, rtol=0, atol=1e-13)
        np.testing.assert_allclose(made.state[p]["v"].numpy(), v, rtol=0, atol=1e-13)
