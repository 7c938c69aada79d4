"""Options as people give them: numbers of any kind, sequences of any kind, entries of others in a
group, generators; and what is refused at once.
"""

import array
import collections
import decimal
import fractions
import io
import json
import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, OneCycleLR

import steepest
from steepest.classes import classes
from steepest.schedules import NoamLR, RestartFromBest, WarmupLR

pytestmark = pytest.mark.filterwarnings(r"ignore:AdaBelief\(amsgrad=True\) has no effect")
few = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

KINDS = {
    "float32": np.float32, "float64": np.float64, "longdouble": np.longdouble,
    "array": lambda x: np.array(float(x)), "Decimal": lambda x: decimal.Decimal(float(x)),
    "Fraction": lambda x: fractions.Fraction(float(x)),
}  # fmt: skip
SEQUENCES = {
    "tuple": tuple, "list": list, "deque": collections.deque, "UserList": collections.UserList,
    "array": np.array, "array.array": lambda x: array.array("d", x),
    "tensor": lambda x: torch.tensor(x, dtype=torch.float64),
}  # fmt: skip


def parameter():
    return nn.Parameter(torch.linspace(-1, 1, 6).reshape(2, 3))


def stepped(made, p, steps=2):
    for k in range(steps):
        p.grad = torch.linspace(1, 2, 6).reshape(2, 3) * (k + 1)
        made.step()
    return made


def plainly(value):
    """Whether a value is of Python's own kinds alone."""
    if isinstance(value, (tuple, list)):
        return all(map(plainly, value))
    return type(value) in (int, float, bool, str, type(None))


def options_of(made):
    return {k: v for k, v in made.param_groups[0].items() if k != "params"}


def numeric():
    """(class, option, its value): every number that a class takes."""
    for name, kind in classes.items():
        for option, value in kind.family.arguments.items():
            if type(value) in (int, float) and math.isfinite(value):
                yield name, option, float(value)


NUMBERS = sorted(numeric())


@given(st.sampled_from(NUMBERS), st.sampled_from(sorted(KINDS)), st.booleans())
@few
def test_a_number_of_any_kind_steps_saves_and_loads_as_the_plain_one(case, kind, grouped):
    name, option, value = case
    value, ps = float(np.float32(value)), [parameter() for _ in range(4)]
    kept = KINDS[kind](value)

    def make(p, given):
        if grouped:
            return classes[name]([{"params": [p], option: given}])
        return classes[name]([p], **{option: given})

    plain, other = make(ps[0], value), make(ps[1], kept)
    assert plainly([*options_of(other).values()])
    assert options_of(other) == options_of(plain)
    assert type(other.defaults[option]) in (int, float)
    stepped(plain, ps[0])
    stepped(other, ps[1])
    assert torch.equal(ps[0], ps[1])
    assert str(plain.state_dict()) == str(other.state_dict())
    make(ps[2], kept).load_state_dict(other.state_dict())
    saved = other.state_dict()
    saved["param_groups"][0][option] = kept  # as a scheduler of somebody's may have left it
    last = classes[name]([ps[3]])
    last.load_state_dict(saved)
    assert options_of(last) == options_of(plain)
    assert plainly([*options_of(last).values()])


@pytest.mark.parametrize("kind", SEQUENCES)
@pytest.mark.parametrize(
    ("name", "option", "values"),
    [
        ("AdamW", "betas", (0.5, 0.75)), ("Rprop", "etas", (0.25, 1.5)),
        ("Rprop", "step_sizes", (0.5, 2.0)), ("Adafactor", "eps", (0.25, 0.5)),
        ("Muon", "ns_coefficients", (3.5, -4.75, 2.0)), ("Adan", "betas", (0.5, 0.75, 0.25)),
    ],
)  # fmt: skip
def test_a_sequence_of_any_kind_is_a_tuple_of_numbers(kind, name, option, values):
    given, p = SEQUENCES[kind](values), parameter()
    made = classes[name]([p], **{option: given})
    assert made.param_groups[0][option] == values
    assert plainly(made.param_groups[0][option])
    assert type(made.param_groups[0][option]) is type(made.defaults[option]) is tuple
    made.add_param_group({"params": [parameter()], option: given})
    assert made.param_groups[1][option] == values
    if kind == "tuple":
        return
    saved = stepped(made, p).state_dict()
    saved["param_groups"][0][option] = given
    other = classes[name]([{"params": [parameter()]}, {"params": [parameter()]}])
    other.load_state_dict(saved)
    assert other.param_groups[0][option] == values
    assert plainly(other.param_groups[0][option])


def test_betas_of_an_array_step_as_torch_and_go_there_and_back():
    betas = np.array([0.9, 0.95])
    ps = [parameter(), parameter()]
    ours, theirs = steepest.AdamW([ps[0]], betas=betas), torch.optim.AdamW([ps[1]], betas=betas)
    stepped(ours, ps[0])
    stepped(theirs, ps[1])
    torch.testing.assert_close(ps[0], ps[1])
    back = torch.optim.AdamW([ps[1]])
    back.load_state_dict(ours.state_dict())
    ours.load_state_dict(theirs.state_dict())
    assert ours.param_groups[0]["betas"] == (0.9, 0.95)
    json.dumps(ours.state_dict()["param_groups"])
    stepped(ours, ps[0])
    stepped(back, ps[1])
    torch.testing.assert_close(ps[0], ps[1])


def test_tensors_of_one_number_stay_tensors():
    lr, beta = torch.tensor(0.1, requires_grad=True), torch.tensor(0.5)
    made = steepest.AdamW([parameter()], lr=lr, betas=(beta, 0.9))
    assert made.param_groups[0]["lr"] is lr
    assert made.param_groups[0]["betas"][0] is beta


NOT_NUMBERS = [
    "1e-3", b"1", "", None, True, np.True_, np.str_("0.1"), math.nan, np.float32("nan"), 1j,
    np.complex64(1), torch.tensor(True), torch.tensor(1j), torch.tensor([]), torch.ones(2),
    torch.tensor(math.nan), torch.empty((), device="meta"), np.array([0.1, 0.2]), np.array("0.1"),
    [0.1], {"lr": 0.1}, 10**400, decimal.Decimal("NaN"), decimal.Decimal("sNaN"), object(), print,
]  # fmt: skip


@given(st.sampled_from(NUMBERS), st.sampled_from(NOT_NUMBERS))
@few
def test_what_is_no_number_is_refused_in_every_option_and_place(case, wrong):
    name, option, _ = case
    kind, words = classes[name], f"{name}: {option}=.* was given, expected"
    with pytest.raises((TypeError, ValueError), match=f"(?s){words}"):
        kind([parameter()], **{option: wrong})
    made = kind([parameter()])
    with pytest.raises((TypeError, ValueError), match=f"(?s){words}"):
        made.add_param_group({"params": [parameter()], option: wrong})
    assert len(made.param_groups) == 1
    saved = made.state_dict()
    saved["param_groups"][0][option] = wrong
    with pytest.raises(ValueError, match=f"(?s){name}: {option}=.*checkpoint's options for group"):
        made.load_state_dict(saved)
    assert plainly(made.param_groups[0][option])


@pytest.mark.parametrize("wrong", ["0.9", None, True, math.nan, 1j, torch.ones(2), torch.ones(0)])
@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize(
    ("name", "option", "pair"),
    [("AdamW", "betas", (0.9, 0.99)), ("Rprop", "etas", (0.5, 1.2)),
     ("Rprop", "step_sizes", (1e-6, 50)), ("Adafactor", "eps", (1e-30, 1e-3))],
)  # fmt: skip
def test_what_is_no_number_is_refused_in_a_pair(wrong, place, name, option, pair):
    given = (*pair[:place], wrong, *pair[place + 1 :])
    if (name, wrong, place) == ("Adafactor", None, 0):  # torch's default
        assert classes[name]([parameter()], eps=given).param_groups[0]["eps"] == given
        return
    with pytest.raises((TypeError, ValueError), match=f"(?s){name}: {option}=.* was given, expect"):
        classes[name]([parameter()], **{option: given})


@pytest.mark.parametrize(
    "wrong",
    ["0.9", 0.9, None, {0.9, 0.99}, {0: 0.9, 1: 0.99}, (0.9,), np.array(0.9), np.ones((2, 2)),
     torch.ones(2, 2), torch.tensor(0.9), iter((0.9, 0.99)), list, torch.ones(2, device="meta")],
)  # fmt: skip
def test_what_is_no_pair_is_refused(wrong):
    with pytest.raises((TypeError, ValueError), match=r"(?s)AdamW: betas=.* was given, expected"):
        steepest.AdamW([parameter()], betas=wrong)


def test_text_says_how_a_number_is_written():
    with pytest.raises(TypeError, match=r"lr='1e-3' was given, expected a number; .*YAML 1\.0e-3"):
        steepest.AdamW([parameter()], lr="1e-3")
    made = steepest.AdamW([p := parameter()])
    made.param_groups[0]["lr"] = "1e-3"  # past every door
    p.grad = torch.ones(2, 3)
    with pytest.raises(TypeError, match="lr='1e-3' was given, expected a number"):
        made.step()


def test_text_in_a_group_after_a_step_says_how_a_number_is_written():
    made = stepped(steepest.AdamW([p := parameter()]), p)
    made.param_groups[0]["lr"] = "1e-3"
    with pytest.raises(TypeError, match=r"lr='1e-3' was given, expected a number; .*YAML"):
        stepped(made, p)
    assert made.state_dict()["param_groups"][0]["lr"] == "1e-3"


@pytest.mark.parametrize("large", [10**400, 10**5000], ids=["400", "5000"])
def test_a_number_of_hundreds_of_digits_is_not_written_out(large):
    with pytest.raises(TypeError, match=r"lr=.* digits.* was given, expected a number") as seen:
        steepest.AdamW([parameter()], lr=large)
    assert len(str(seen.value)) < 120


def test_an_eps_that_may_be_none_says_which():
    with pytest.raises(TypeError, match="expected a pair of numbers, the first of which may be N"):
        steepest.Adafactor([parameter()], eps=(1e-30, None))


def test_numbers_that_others_put_into_groups_are_saved_plain():
    rate = torch.tensor(0.5)
    made = stepped(steepest.AdamW([p := parameter()]), p)
    LambdaLR(made, lambda k: np.cos(k + np.float64(0)))
    group, read = made.param_groups[0], []
    for value in (np.float64(0.25), np.float32(0.25), np.array(0.25), decimal.Decimal("0.25")):
        group |= {"lr": value, "betas": np.array([0.5, 0.75]), "initial_lr": value}
        group |= {"weight_decay": rate, "amsgrad": np.False_}
        file = io.BytesIO()
        torch.save(made.state_dict(), file)
        file.seek(0)
        read.append(torch.load(file, weights_only=True)["param_groups"][0])
        assert group["lr"] is value  # what a user holds is his
    for one in read:
        assert (one["lr"], one["betas"], one["initial_lr"]) == (0.25, (0.5, 0.75), 0.25)
        assert plainly([v for k, v in one.items() if k not in ("params", "weight_decay")])
        assert torch.equal(one["weight_decay"], rate)


@pytest.mark.parametrize("flag", ["amsgrad", "maximize", "cautious", "differentiable"])
def test_flags_are_true_or_false(flag):
    for true in (np.True_, np.array(True), 1):
        made = steepest.AdamW([parameter()], **{flag: true})
        assert made.param_groups[0][flag] is True
        copied = steepest.AdamW([parameter()], **{flag: true})
        copied.load_state_dict(made.state_dict())
        assert copied.param_groups[0][flag] is True
    for nothing in ({flag: None}, {flag: False}, {flag: 0}):
        made = steepest.AdamW([parameter()], **nothing)
        made.add_param_group({"params": [parameter()], **nothing})
        assert [g.get(flag, False) for g in made.param_groups] == [False, False]
        assert None not in [g.get(flag, False) for g in made.state_dict()["param_groups"]]
    for wrong in ("false", "True", 2, 0.5, [], torch.tensor(True)):
        with pytest.raises(TypeError, match=f"(?s)AdamW: {flag}=.* expected True or False"):
            steepest.AdamW([parameter()], **{flag: wrong})


@pytest.mark.parametrize(
    ("name", "options"),
    [("Adam", {"amsgrad": None}), ("SGD", {"maximize": None, "nesterov": None}),
     ("RMSprop", {"centered": None}), ("AdamW", {"maximize": None, "fused": None}),
     ("NAdam", {"decoupled_weight_decay": None, "weight_decay": 0.5})],
)  # fmt: skip
def test_a_flag_of_none_is_off_as_in_torch(name, options):
    ps = [parameter() for _ in range(3)]
    theirs, _ = (
        stepped(getattr(lib, name)([p], **options), p)
        for lib, p in zip((torch.optim, steepest), ps, strict=False)
    )
    torch.testing.assert_close(ps[0], ps[1])
    with torch.no_grad():
        ps[2].copy_(ps[0])
    loaded = classes[name]([ps[2]])
    loaded.load_state_dict(theirs.state_dict())
    assert None not in [loaded.param_groups[0][k] for k in options if k != "fused"]
    stepped(theirs, ps[0])
    stepped(loaded, ps[2])
    torch.testing.assert_close(ps[0], ps[2])


def test_a_seed_and_a_clip_norm_of_numpy_are_plain():
    made = steepest.AdamW([parameter()], seed=np.int64(3), clip_norm=np.float32(0.5),
                          rounding="stochastic", capturable=np.False_)  # fmt: skip
    assert plainly([*options_of(made).values()])
    assert plainly([*made.defaults.values()])
    assert (made.param_groups[0]["seed"], made.param_groups[0]["clip_norm"]) == (3, 0.5)
    for wrong in (3.5, "3", True, np.float64(3), torch.tensor(3)):
        with pytest.raises(TypeError, match=r"seed=.* expected a whole number"):
            steepest.AdamW([parameter()], seed=wrong, rounding="stochastic")
    for wrong in ("1", True, math.nan, 1j, torch.ones(0)):
        with pytest.raises((TypeError, ValueError), match=r"(?s)clip_norm=.* expected a number"):
            steepest.AdamW([parameter()], clip_norm=wrong)


def test_an_option_that_the_chosen_rule_does_not_read_is_looked_at_too():
    for wrong in (math.nan, "0.5", None):
        with pytest.raises(TypeError, match=r"dampening=.* expected a number"):
            steepest.SGD([parameter()], dampening=wrong)
    made = steepest.AdaBound([parameter()], lr=np.float32(0.5))
    assert type(made.param_groups[0]["base_lr"]) is float


def test_the_rule_of_ones_own_takes_one_of_a_pair_alone():
    @steepest.rule
    def lone(p, g, m, *, lr=0.1, beta1=0.9):
        m = beta1 * m + g
        return p - lr * m, m

    p = nn.Parameter(torch.ones(1))
    made = steepest.optimizer(lone, [p], beta1=np.float64(0.5))
    for _ in range(2):
        p.grad = torch.ones(1)
        made.step()
    assert p.item() == pytest.approx(1 - 0.1 * 1 - 0.1 * 1.5)
    with pytest.raises(ValueError, match=r"beta1=1.5 was given, expected a number in \[0, 1\)"):
        steepest.optimizer(lone, [p], beta1=1.5)


def test_optimizer_by_name_takes_pairs_of_any_kind():
    made = steepest.optimizer("adamw", [parameter()], betas=np.array([0.5, 0.75]), beta2=0.25)
    assert made.param_groups[0]["betas"] == (0.5, 0.25)
    with pytest.raises(ValueError, match=r"betas=0.9 was given, expected a pair"):
        steepest.optimizer("adamw", [parameter()], betas=0.9, beta1=0.5)


def test_groups_of_a_model_hold_plain_numbers():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    groups = steepest.param_groups(
        model, weight_decay=decimal.Decimal("0.5"), lr=fractions.Fraction(1, 4),
        layer_decay=np.float32(0.5),
        rules=[{"rule": "sgd", "where": "0", "lr": np.float32(0.5), "momentum": np.array(0.5)}],
    )  # fmt: skip
    for group in groups:
        assert plainly([v for k, v in group.items() if k != "params"])
    assert {g["lr"] for g in groups} == {0.25}  # a layer below the top: half of 0.5
    with pytest.raises(ValueError, match=r"weight_decay='0.1' was given, expected a number"):
        steepest.param_groups(
            model, weight_decay=0.1, rules=[{"where": "0", "weight_decay": "0.1"}]
        )


def test_options_of_a_rule_in_groups_of_a_model_are_looked_at():
    model = nn.Linear(2, 2)

    def groups(**entry):
        return steepest.param_groups(model, weight_decay=0.1, rules=[{"where": "bias", **entry}])

    for rule in ({"rule": "adamw"}, {}):
        assert groups(betas=np.array([0.5, 0.75]), **rule)[1]["betas"] == (0.5, 0.75)
    for entry in ({"momentum": "0.9"}, {"nesterov": "yes"}, {"dampening": [1]}):
        with pytest.raises(TypeError, match=r"SGD: .* was given in rules\[0\], expected"):
            groups(rule="sgd", **entry)


def test_wrappers_and_schedules_keep_plain_numbers():
    made = steepest.SGD([parameter()], lr=0.5)
    sam = steepest.SAM(made, rho=decimal.Decimal("0.5"), adaptive=np.True_, eta=np.array(0.25))
    assert (sam.rho, sam.adaptive, sam.eta) == (0.5, True, 0.25)
    assert plainly([sam.rho, sam.adaptive, sam.eta])
    ahead = steepest.Lookahead(made, k=np.array(3), alpha=fractions.Fraction(1, 2))
    assert plainly([ahead.k, ahead.alpha])
    steepest.Lookahead(made, k=np.int8(3)).load_state_dict(ahead.state_dict())
    for wrong in ("0.5", None, True, math.nan, 1j, np.ones(2)):
        with pytest.raises(ValueError, match=r"(?s)rho=.* was given, expected a number"):
            steepest.SAM(made, rho=wrong)
    for wrong in ("true", 1, None):
        with pytest.raises(ValueError, match=r"adaptive=.* was given, expected True or False"):
            steepest.SAM(made, adaptive=wrong)
    noam = NoamLR(made, np.array(4), warmup=np.int64(2), factor=np.array([0.5]))
    assert plainly([noam.width, noam.warmup, noam.factors])
    assert plainly(NoamLR(made, 4, factor=decimal.Decimal("0.5")).factors)
    warm = WarmupLR(CosineAnnealingLR(made, 9), steps=np.int64(3), start=np.float32(0.5))
    assert plainly([warm.steps, warm.start])
    best = RestartFromBest(made, nn.Linear(1, 1), factor=np.float32(0.5), restarts=np.int64(2))
    assert plainly([best.factor, best.restarts])
    for refused in (
        lambda: NoamLR(made, 4, factor="0.5"), lambda: NoamLR(made, "4"),
        lambda: WarmupLR(CosineAnnealingLR(made, 9), 3, start="0.5"),
        lambda: RestartFromBest(made, nn.Linear(1, 1), factor="0.5"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="was given, expected"):
            refused()


def test_adafactor_clips_as_torch_by_no_threshold_too():
    ps = [parameter(), parameter()]
    for kind, p in zip((steepest.Adafactor, torch.optim.Adafactor), ps, strict=True):
        stepped(kind([p], lr=0.1, d=math.inf, eps=(None, 1e-3)), p, 3)
    torch.testing.assert_close(ps[0], ps[1])
    for wrong in ((-1.0, 1e-3), (1e-30, -1e-3), (math.nan, 1e-3)):
        with pytest.raises((TypeError, ValueError), match=r"eps.* was given, expected a"):
            steepest.Adafactor([ps[0]], eps=wrong)
        if wrong[0] == wrong[0]:
            with pytest.raises(ValueError, match=r"[Ee]psilon"):
                torch.optim.Adafactor([ps[0]], eps=wrong)


# entries of others in a group


@pytest.mark.parametrize("lib", [torch.optim, steepest])
def test_a_group_is_made_anew_of_one_that_a_scheduler_has_written_to(lib):
    made = lib.SGD([parameter()], lr=0.1, momentum=0.9)
    OneCycleLR(made, 0.1, total_steps=9)
    made.add_param_group({**made.param_groups[0], "params": [parameter()]})
    assert made.param_groups[1]["max_momentum"] == made.param_groups[0]["max_momentum"]


def test_entries_of_users_are_kept_without_a_word():
    mine = {
        "weight_decay_mult": 0.5, "layer_decay": 0.5, "lr_mult": 2, "lr_scale": 2, "lr_scales": 1,
        "group_name": "x", "weight_decay_end": 0, "momentum_start": 0, "role": "head", "seeds": 1,
        "base_momentum": 0.5, "max_momentum": 0.5, "swa_lr": 0.5, "foreach": None,
    }  # fmt: skip
    for name in ("AdamW", "SGD", "Adagrad", "RMSprop", "AdaBound"):
        made = classes[name]([{"params": [parameter()], **mine}])
        assert mine.items() <= made.param_groups[0].items()
        saved = made.state_dict()
        again = classes[name]([{"params": [parameter()], **mine}])
        again.load_state_dict(saved)
        assert mine.items() <= again.param_groups[0].items()


@pytest.mark.parametrize(
    ("entry", "meant"),
    [("weight_deacy", "weight_decay"), ("weightdecay", "weight_decay"), ("LR", "lr"),
     ("weight-decay", "weight_decay"), ("beta", "betas"), ("maximise", "maximize")],
)  # fmt: skip
def test_a_slip_of_the_pen_is_named_and_kept(entry, meant):
    with pytest.warns(UserWarning, match=f"{entry!r}; did you mean {meant!r}") as seen:
        made = steepest.AdamW([{"params": [parameter()], entry: 0.5}])
    assert seen[0].filename == __file__
    assert made.param_groups[0][entry] == 0.5


# generators


def net():
    return nn.Linear(3, 2)


@pytest.mark.parametrize(
    "given",
    [lambda m: m.parameters(), lambda m: filter(lambda p: True, m.parameters()),
     lambda m: map(nn.Parameter.requires_grad_, m.parameters()), lambda m: iter([*m.parameters()]),
     lambda m: m.named_parameters(), lambda m: zip("ab", m.parameters(), strict=True),
     lambda m: dict(m.named_parameters()).values()],
)  # fmt: skip
@pytest.mark.parametrize("later", [False, True])
def test_a_group_with_a_generator_makes_a_second_optimizer_too(given, later):
    model = net()
    group = {"params": given(model)}

    def make(kind):
        if not later:
            return kind([group], lr=0.5)
        made = kind([parameter()] if "param_names" not in group else [("z", parameter())], lr=0.5)
        made.add_param_group(group)
        return made

    if later and isinstance(next(iter(given(model))), tuple):
        group["params"] = [p for _, p in group["params"]]
    first, second, theirs = make(steepest.SGD), make(steepest.SGD), make(torch.optim.SGD)
    wanted = [*model.parameters()]
    for made in (first, second, theirs):
        found = made.param_groups[-1]["params"]
        assert len(found) == 2
        assert all(a is b for a, b in zip(found, wanted, strict=True))
    names = [m.param_groups[-1].get("param_names") for m in (first, second, theirs)]
    assert names[0] == names[1] == names[2]


def test_a_row_of_params_that_is_no_pair_is_named():
    with pytest.raises(TypeError, match=r"params has \(0.9,\), expected tensors or \(name, tensor"):
        steepest.SGD([(0.9,)])


def test_a_used_up_generator_is_named():
    model = net()
    used = model.parameters()
    list(used)
    with pytest.raises(ValueError, match="generator that was used up; pass a list"):
        steepest.SGD([{"params": used}])
    made = steepest.SGD([parameter()])
    with pytest.raises(ValueError, match="generator that was used up"):
        made.add_param_group({"params": used})
    with pytest.warns(UserWarning, match="a filter that gave no tensors; if it was used before"):
        steepest.SGD([{"params": filter(None, [])}])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        steepest.SGD([{"params": []}])  # as torch
