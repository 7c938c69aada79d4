"""Checkpoints: matching by name and by order, what is refused, and what `convert` keeps."""

import copy
import io
import math
import threading
import warnings

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import steepest
from steepest.checkpoint import canonical
from steepest.conversion import Converted, convert
from steepest.loading import Loaded

TORCH = ["SGD", "ASGD", "Rprop", "Adagrad", "Adadelta", "RMSprop", "Adam", "AdamW", "Adamax", "NAdam", "RAdam"]  # fmt: skip  # noqa: E501
SHAPES = {"body.weight": (4, 3), "body.bias": (4,), "head.weight": (2, 4), "head.bias": (2,)}


def named(shapes=None, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    made = []
    for name, shape in (shapes or SHAPES).items():
        p = nn.Parameter(torch.randn(shape, generator=generator).to(dtype))
        p.grad = torch.randn(shape, generator=generator).to(dtype)
        made.append((name, p))
    return made


def bare(pairs):
    return [p for _, p in pairs]


def stepped(made, steps=2, seed=5):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for p in (p for g in made.param_groups for p in g["params"]):
            p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)
        made.step()
    return made


def saved(kind=steepest.AdamW, params=None, steps=2, **options):
    """A checkpoint as a file gives it back."""
    made = stepped(kind(named() if params is None else params, **options), steps)
    file = io.BytesIO()
    torch.save(made.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def by_name(checkpoint):
    return {
        name: checkpoint["state"].get(key, {})
        for group in checkpoint["param_groups"]
        for name, key in zip(group["param_names"], group["params"], strict=True)
    }


def same(a, b):
    """Equal states: the same keys, dtypes and bits."""
    return a.keys() == b.keys() and all(
        torch.as_tensor(a[k]).dtype == torch.as_tensor(b[k]).dtype
        and torch.equal(torch.as_tensor(a[k]), torch.as_tensor(b[k]))
        for k in a
    )


class Frozen:
    """All that an optimizer holds, to see whether anything of it has moved."""

    def __init__(self, made):
        self.made = made
        self.values, self.objects = self.look()
        self.values = copy.deepcopy(self.values)

    def look(self):
        made = self.made
        entries = [(i, k, v) for i, g in enumerate(made.param_groups) for k, v in g.items()]
        states = [(k, v) for s in made.state.values() for k, v in s.items()]
        flat = [v for *_, v in entries] + [v for _, v in states] + [*made.state]
        keys = [(i, k) for i, k, _ in entries] + [k for k, _ in states]
        return (keys, flat), [made.param_groups, *made.param_groups, made.state, *flat]

    def unchanged(self):
        (keys, flat), objects = self.look()
        return (
            keys == self.values[0]
            and len(objects) == len(self.objects)
            and all(a is b for a, b in zip(objects, self.objects, strict=True))
            and all(equal(a, b) for a, b in zip(flat, self.values[1], strict=True))
        )


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


# by name


def test_parameters_are_matched_by_name_in_any_order_and_grouping():
    checkpoint = saved()
    pairs = named(seed=1)
    made = steepest.AdamW([{"params": [pairs[i] for i in (3, 0)]}, {"params": pairs[2:0:-1]}])
    report = made.load_state_dict(checkpoint)
    want = by_name(checkpoint)
    for name, p in pairs:
        assert same(made.state[p], want[name]), name
    assert sorted(report.matched) == sorted(SHAPES)
    assert (report.missing, report.unexpected, report.reshaped) == ((), (), ())
    assert made.param_groups[0]["param_names"] == ["head.bias", "body.weight"]
    stepped(made)


def test_without_names_on_both_sides_order_decides_as_in_torch():
    checkpoint = saved()
    for source, target in ((checkpoint, bare(named())), (saved(params=bare(named())), named())):
        made, theirs = steepest.AdamW(target), torch.optim.AdamW(target)
        made.load_state_dict(source)
        theirs.load_state_dict(copy.deepcopy(source))
        for p in made.param_groups[0]["params"]:
            assert same(made.state[p], theirs.state[p])
        assert made.param_groups[0]["param_names"] == theirs.param_groups[0]["param_names"]


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("module.a.weight", "a.weight"),
        ("module._orig_mod.a.weight", "a.weight"),
        ("_orig_mod.module.a.weight", "a.weight"),
        ("a._orig_mod.b._checkpoint_wrapped_module.c", "a.b.c"),
        ("_fsdp_wrapped_module.a", "a"),
        ("a.module.weight", "a.module.weight"),
        ("a_orig_mod.weight", "a_orig_mod.weight"),
        ("module", "module"),
    ],
)
def test_wrappers_leave_no_trace_in_a_name(name, plain):
    assert canonical([name]) == [plain]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, of its compiler
def test_a_checkpoint_of_a_wrapped_model_loads_into_the_bare_one_and_back():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    compiled = torch.compile(model)
    assert all(n.startswith("_orig_mod.") for n, _ in compiled.named_parameters())
    wrapped = [(f"module.{n}", p) for n, p in compiled.named_parameters()]
    for there, here in ((wrapped, model.named_parameters()), (model.named_parameters(), wrapped)):
        checkpoint = saved(params=there)
        made = steepest.AdamW(reversed(list(here)))
        made.load_state_dict(checkpoint)
        states = by_name(checkpoint)
        want = dict(zip(canonical([*states]), states.values(), strict=True))
        for name, p in model.named_parameters():
            assert same(made.state[p], want[name])


def test_a_part_called_module_is_told_from_the_wrapper():
    shapes = {"module.weight": (3,), "weight": (3,)}
    checkpoint = saved(params=named(shapes))
    pairs = named(shapes)[::-1]
    made = steepest.AdamW(pairs)
    made.load_state_dict(checkpoint)
    for name, p in pairs:
        assert same(made.state[p], by_name(checkpoint)[name])


def test_strict_names_that_differ_are_listed():
    checkpoint = saved()
    made = stepped(steepest.AdamW(named({**SHAPES, "new.weight": (2,)})[1:]))
    before = Frozen(made)
    with pytest.raises(ValueError, match=r"lacks new\.weight and has body\.weight, which this"):
        made.load_state_dict(checkpoint)
    with pytest.raises(ValueError, match=r"two parameters of the checkpoint have the same name"):
        made.load_state_dict(
            {**checkpoint, "param_groups": [{**checkpoint["param_groups"][0],
                                             "param_names": ["a", "a", "b", "c"]}]}
        )  # fmt: skip
    assert before.unchanged()


def test_what_does_not_match_is_reported_and_begins_anew():
    checkpoint = saved()
    shapes = {"body.weight": (4, 3), "body.bias": (4,), "head.weight": (5, 4), "extra": (2,)}
    pairs = named(shapes)
    made = stepped(steepest.AdamW(pairs))
    report = made.load_state_dict(checkpoint, strict=False)
    assert report == Loaded(
        ("body.weight", "body.bias"), ("extra",), ("head.bias",), ("head.weight",)
    )
    assert str(report).splitlines() == [
        "2 parameters matched",
        "1 missing (not in the checkpoint, or after a reshaped parameter; starts empty): extra",
        "1 unexpected (only in the checkpoint): head.bias",
        "1 reshaped (another shape in the checkpoint; starts empty): head.weight",
    ]
    for name, p in pairs:
        want = by_name(checkpoint)[name] if name.startswith("body") else {}
        assert same(made.state.get(p, {}), want), name
    stepped(made, 1)
    assert [int(made.state[p]["step"]) for _, p in pairs] == [3, 3, 1, 1]


def test_a_report_of_many_names_is_short():
    report = Loaded(missing=tuple(f"layer{i}" for i in range(300)))
    assert str(report).endswith("layer9 and 290 more")


# without names


def test_without_names_a_new_head_begins_anew_and_what_follows_a_misfit_too():
    checkpoint = saved(params=bare(named()))
    pairs = named({**SHAPES, "head.weight": (5, 4)})  # its bias would fit: is it still the bias?
    made = steepest.AdamW(bare(pairs))
    with pytest.raises(ValueError, match=r"parameter 2 of group 0 is .*\(5, 4\)"):
        made.load_state_dict(checkpoint)
    report = made.load_state_dict(checkpoint, strict=False)
    assert report.matched == ("parameter 0 of group 0", "parameter 1 of group 0")
    assert report.reshaped == ("parameter 2 of group 0",)
    assert report.missing == ("parameter 3 of group 0",)
    assert [p in made.state for _, p in pairs] == [True, True, False, False]


@pytest.mark.parametrize("count", [3, 5])
def test_without_names_another_number_of_parameters_is_never_guessed(count):
    shapes = {f"p{i}": (3,) for i in range(4)}
    checkpoint = saved(params=bare(named(shapes)))
    made = steepest.AdamW(bare(named({f"p{i}": (3,) for i in range(count)})))
    for strict in (True, False):
        with pytest.raises(ValueError, match=r"parameters, expected .*named_parameters"):
            made.load_state_dict(checkpoint, strict=strict)


# options of groups


def split(pairs, **second):
    return [{"params": pairs[:2], "lr": 0.1}, {"params": pairs[2:], "lr": 0.2, **second}]


def test_a_group_takes_the_options_that_its_parameters_had():
    checkpoint = saved(params=split(named(), weight_decay=0.5))
    pairs = named()
    made = steepest.AdamW([{"params": pairs[3:]}, {"params": pairs[:1]}, {"params": pairs[1:3:2]},
                           {"params": [pairs[2]]}])  # fmt: skip
    made.load_state_dict(checkpoint)
    got = [(g["lr"], g["weight_decay"]) for g in made.param_groups]
    assert got == [(0.2, 0.5), (0.1, 0.01), (0.1, 0.01), (0.2, 0.5)]


def test_groups_whose_options_differ_do_not_merge_silently():
    checkpoint = saved(params=split(named()))
    made = stepped(steepest.AdamW(named(), lr=0.7, eps=1e-3))
    before = Frozen(made)
    with pytest.raises(ValueError, match=r"groups 0, 1, which differ in lr; group them"):
        made.load_state_dict(checkpoint)
    assert before.unchanged()
    with pytest.warns(UserWarning, match=r"differ in lr; this optimizer's values are kept"):
        made.load_state_dict(checkpoint, strict=False)
    assert made.param_groups[0]["lr"] == 0.7
    assert made.param_groups[0]["eps"] == 1e-8  # on which they agree


def test_groups_of_equal_options_merge():
    checkpoint = saved(params=split(named(), lr=0.1))
    made = steepest.AdamW(named())
    made.load_state_dict(checkpoint)
    assert made.param_groups[0]["lr"] == 0.1


def test_a_group_without_matches_keeps_its_own_options():
    pairs = named({**SHAPES, "new": (2,)})
    made = steepest.AdamW([{"params": pairs[:4]}, {"params": pairs[4:], "lr": 0.3}])
    made.load_state_dict(saved(lr=0.1), strict=False)
    assert [g["lr"] for g in made.param_groups] == [0.1, 0.3]


def test_options_from_after_the_checkpoint_keep_their_values_here():
    checkpoint = saved(steepest.AdaBelief)
    for key in ("rectify", "degenerated_to_sgd", "maximize", "fixed_decay"):
        del checkpoint["param_groups"][0][key]
    made = steepest.AdaBelief(named(), rectify=False)
    made.load_state_dict(checkpoint)
    assert made.param_groups[0]["rectify"] is False
    stepped(made)


def test_options_of_nobody_are_named_once_and_kept():
    checkpoint = saved()
    checkpoint["param_groups"][0] |= {"rho": 0.05, "nus": (0.7, 1.0), "lookahead": True}
    made = steepest.AdamW(named())
    with pytest.warns(UserWarning, match=r"have rho, nus, lookahead, which this") as caught:
        made.load_state_dict(checkpoint)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert made.param_groups[0]["nus"] == (0.7, 1.0)
    stepped(made)


def test_entries_of_schedulers_and_users_pass_without_a_word():
    made = steepest.AdamW([{"params": named(), "name": "all", "lr_scale": 0.5}])
    torch.optim.lr_scheduler.OneCycleLR(made, max_lr=0.1, total_steps=9)
    checkpoint = copy.deepcopy(made.state_dict())
    checkpoint["param_groups"][0] |= {"swa_lr": 0.1, "capturable": True, "fused": None}
    other = steepest.AdamW([{"params": named(), "lr_scale": 1.0}])
    other.load_state_dict(checkpoint)
    group = other.param_groups[0]
    assert (group["name"], group["lr_scale"], group["max_lr"]) == ("all", 0.5, 0.1)


def test_adam_goes_on_decoupled_in_adamw_as_in_torch():
    checkpoint = saved(torch.optim.Adam, bare(named()), weight_decay=0.5)
    ours, theirs = bare(named(seed=1)), bare(named(seed=1))
    a, b = steepest.AdamW(ours), torch.optim.AdamW(theirs)
    for made in (a, b):
        made.load_state_dict(copy.deepcopy(checkpoint))
        stepped(made)
    for p, q in zip(ours, theirs, strict=True):
        assert torch.allclose(p, q, rtol=1e-5, atol=1e-7)


def test_rates_that_are_tensors_are_copied():
    checkpoint = copy.deepcopy(steepest.AdamW(named(), lr=torch.tensor(0.5)).state_dict())
    lr = torch.ones((), requires_grad=True) * 0.5  # torch's own copy refuses one with a history
    checkpoint["param_groups"][0]["lr"] = lr
    made = steepest.AdamW(named())
    made.load_state_dict(checkpoint)
    got = made.param_groups[0]["lr"]
    assert float(got.detach()) == 0.5
    assert not got.requires_grad
    assert got.data_ptr() != lr.data_ptr()


def test_groups_with_a_rule_of_their_own():
    def made(rule="sgd", seed=0):
        pairs = named(seed=seed)
        return steepest.AdamW(
            [{"params": pairs[:2]}, {"params": pairs[2:], "rule": rule, "momentum": 0.9}]
        )

    checkpoint = copy.deepcopy(stepped(made()).state_dict())
    other = made(seed=1)
    other.load_state_dict(checkpoint)
    assert same(other.state_dict()["state"][2], checkpoint["state"][2])
    assert {*checkpoint["state"][2]} == {"momentum_buffer"}
    for wrong in (made("rmsprop"), steepest.AdamW(named())):
        before = Frozen(wrong)
        with pytest.raises(ValueError, match=r"rule 'sgd'|differ in"):
            wrong.load_state_dict(checkpoint)
        assert before.unchanged()


# hooks, schedulers


def test_hooks_see_what_torch_shows_them():
    checkpoint, seen = saved(), []
    made = steepest.AdamW(named(seed=1))

    def rename(_, loaded):
        seen.append("first")
        groups = [{**g, "param_names": [n.replace("old.", "") for n in g["param_names"]]}
                  for g in loaded["param_groups"]]  # fmt: skip
        return {**loaded, "param_groups": groups}

    def after(optimizer):
        p = optimizer.param_groups[0]["params"][0]
        seen.append((float(optimizer.state[p]["step"]), optimizer.param_groups[0]["lr"]))

    checkpoint["param_groups"][0] |= {"param_names": [f"old.{n}" for n in SHAPES], "lr": 0.25}
    handles = [made.register_load_state_dict_pre_hook(rename),
               made.register_load_state_dict_pre_hook(lambda o, s: seen.append("last")),
               made.register_load_state_dict_pre_hook(lambda o, s: seen.append("zeroth"), True),
               made.register_load_state_dict_post_hook(after)]  # fmt: skip
    made.load_state_dict(checkpoint)
    assert seen == ["zeroth", "first", "last", (2.0, 0.25)]
    assert checkpoint["param_groups"][0]["param_names"][0] == "old.body.weight"
    for handle in handles:
        handle.remove()
    with pytest.raises(ValueError, match=r"lacks body\.weight"):
        made.load_state_dict(checkpoint)


def test_a_post_hook_finds_states_in_their_own_dtype():
    checkpoint = saved(params=named(dtype=torch.bfloat16))
    made, seen = steepest.AdamW(named(dtype=torch.bfloat16)), []
    made.register_load_state_dict_post_hook(
        lambda o: seen.extend(s["exp_avg"].dtype for s in o.state.values())
    )
    made.load_state_dict(checkpoint)
    assert seen == [torch.float32] * 4


def test_a_schedule_goes_on_where_it_stood():
    def run(made, scheduler, steps):
        rates = []
        for _ in range(steps):
            stepped(made, 1)
            scheduler.step()
            rates.append(made.param_groups[0]["lr"])
        return rates

    def begin(kind=steepest.AdamW):
        made = kind(named(), lr=0.1)
        return made, torch.optim.lr_scheduler.CosineAnnealingLR(made, 10)

    whole = run(*begin(torch.optim.AdamW), 8)
    made, scheduler = begin()
    first = run(made, scheduler, 4)
    states = copy.deepcopy((made.state_dict(), scheduler.state_dict()))
    other, again = begin()
    other.load_state_dict(states[0])
    again.load_state_dict(states[1])
    assert other.param_groups[0]["initial_lr"] == 0.1
    assert first + run(other, again, 4) == whole


# what is refused


def put(*path, value):
    def spoil(checkpoint):
        place = checkpoint
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value

    return spoil


def cut(*path):
    def spoil(checkpoint):
        place = checkpoint
        for key in path[:-1]:
            place = place[key]
        del place[path[-1]]

    return spoil


STEP, MEAN, GROUP = ("state", 0, "step"), ("state", 0, "exp_avg"), ("param_groups", 0)
SPOILT = {
    "nan count": (put(*STEP, value=math.nan), r"'step' of body\.weight is nan, expected a count"),
    "negative count": (put(*STEP, value=torch.tensor(-1.0)), "expected a count"),
    "half a count": (put(*STEP, value=1.5), r"is 1\.5, expected a count"),
    "endless count": (put(*STEP, value=10**400), "expected a count"),
    "count of words": (put(*STEP, value="2"), "is 2, expected a count"),
    "flag for a count": (put(*STEP, value=True), "is True, expected a count"),
    "many counts": (put(*STEP, value=torch.ones(3)), r"shape \(3,\) on cpu, expected a count"),
    "no count": (cut(*STEP), r"lacks \['step'\]"),
    "no mean": (cut(*MEAN), r"state of body\.weight lacks \['exp_avg'\]"),
    "mean None": (put(*MEAN, value=None), r"lacks \['exp_avg'\]"),
    "scalar mean": (put(*MEAN, value=torch.tensor(1.0)), r"'exp_avg' is .*\(\).*body.weight"),
    "number as mean": (put(*MEAN, value=0.5), "is a float, expected a tensor"),
    "complex mean": (put(*MEAN, value=torch.ones(4, 3) + 0j), "is torch.complex64"),
    "whole mean": (put(*MEAN, value=torch.ones(4, 3, dtype=torch.int8)), "is torch.int8"),
    "sparse mean": (put(*MEAN, value=torch.ones(4, 3).to_sparse()), "has no dense memory"),
    "meta mean": (put(*MEAN, value=torch.ones(4, 3, device="meta")), "has no dense memory"),
    "unknown state": (put("state", 0, "exp_avg_var", value=torch.ones(4, 3)), "by another optim"),
    "state a list": (put("state", 0, value=[]), "expected a dict"),
    "stray state": (put("state", 9, value={}), "has the parameters 9 in no group"),
    "states a list": (put("state", value=[]), "expected an optimizer's state_dict"),
    "groups a dict": (put("param_groups", value={}), "expected an optimizer's state_dict"),
    "group a list": (put(*GROUP, value=[]), "expected an optimizer's state_dict"),
    "no params": (cut(*GROUP, "params"), "expected an optimizer's state_dict"),
    "params a number": (put(*GROUP, "params", value=4), "params that are not a list"),
    "params of tensors": (put(*GROUP, "params", value=[torch.ones(1)] * 4), "params that are no"),
    "a param twice": (put(*GROUP, "params", value=[0, 1, 2, 0]), "in no group"),
    "few names": (put(*GROUP, "param_names", value=["a"]), "param_names that are not a list"),
    "odd option": (put(*GROUP, 7, value=1), "has the option 7 in group 0"),
    "lr of words": (put(*GROUP, "lr", value="1e-3"), "lr='1e-3' was given in the checkpoint's"),
    "lr None": (put(*GROUP, "lr", value=None), "lr=None was given"),
    "lr nan": (put(*GROUP, "lr", value=math.nan), "lr=nan was given"),
    "lr negative": (put(*GROUP, "lr", value=-1.0), r"lr=-1\.0 was given, expected a number in"),
    "lr of many": (put(*GROUP, "lr", value=torch.ones(3)), "expected a number"),
    "lr on meta": (put(*GROUP, "lr", value=torch.ones((), device="meta")), "expected a number"),
    "one beta": (put(*GROUP, "betas", value=(0.9,)), "expected a pair of numbers"),
    "betas of words": (put(*GROUP, "betas", value=("a", "b")), "expected a pair of numbers"),
    "flag of words": (put(*GROUP, "amsgrad", value="yes"), "expected True or False"),
    "rounding": (put(*GROUP, "rounding", value=torch.ones(2)), "expected a str or None"),
    "amsgrad without its state": (put(*GROUP, "amsgrad", value=True), r"\['max_exp_avg_sq'\]"),
    "rule": (put(*GROUP, "rule", value="sgd"), "the rule 'sgd' in the checkpoint"),
    "unknown rule": (put(*GROUP, "rule", value="sgdd"), "did you mean"),
}  # fmt: skip


@pytest.mark.parametrize("case", SPOILT)
def test_a_damaged_checkpoint_is_refused_by_a_sentence_and_nothing_moves(case):
    spoil, message = SPOILT[case]
    checkpoint = saved()
    made = stepped(steepest.AdamW(named(seed=1)))
    before = Frozen(made)
    spoil(checkpoint)
    for strict in (True, False):
        with pytest.raises((ValueError, TypeError), match=message):
            made.load_state_dict(checkpoint, strict=strict) if strict or "scalar" not in case \
                else made.load_state_dict(checkpoint)  # fmt: skip
    assert before.unchanged()


def test_carried_numbers_are_checked_too():
    checkpoint = saved(steepest.NAdam)
    made = steepest.NAdam(named())
    for value in (math.nan, "1", torch.ones(2), None):
        checkpoint["state"][1]["mu_product"] = value
        with pytest.raises(ValueError, match=r"'mu_product' of body\.bias"):
            made.load_state_dict(checkpoint)
    del checkpoint["state"][1]["mu_product"]
    with pytest.raises(ValueError, match=r"lacks \['mu_product'\]"):
        made.load_state_dict(checkpoint)


def test_a_complex_parameter_takes_a_complex_state_alone():
    pairs = named({"a": (3,)}, dtype=torch.complex64)
    checkpoint = saved(params=pairs)
    made = steepest.AdamW(pairs)
    conjugate = checkpoint["state"][0]["exp_avg"].conj()
    checkpoint["state"][0]["exp_avg"] = conjugate
    made.load_state_dict(checkpoint)
    assert torch.equal(made.state[pairs[0][1]]["exp_avg"], conjugate)
    stepped(made)
    checkpoint["state"][0]["exp_avg"] = torch.ones(3)
    with pytest.raises(ValueError, match=r"'exp_avg' is torch\.float32"):
        made.load_state_dict(checkpoint)


def test_tied_parameters_stay_tied():
    (_, p), (_, q) = named({"a": (3,), "b": (3,)})
    with pytest.warns(UserWarning, match="same parameter twice"):
        tied = steepest.AdamW([p, p])
    checkpoint = copy.deepcopy(stepped(tied).state_dict())
    tied.load_state_dict(checkpoint)
    assert int(tied.state[p]["step"]) == 2
    with pytest.raises(ValueError, match="tie the parameters as when"):
        steepest.AdamW([p, q]).load_state_dict(checkpoint)
    with pytest.raises(ValueError, match="tie the parameters as when"):
        tied.load_state_dict(stepped(steepest.AdamW([p, q])).state_dict())


def test_a_state_with_a_history_is_loaded_without_it():
    checkpoint = saved()
    checkpoint["state"][0]["exp_avg"] = torch.ones(4, 3, requires_grad=True) * 2
    made = steepest.AdamW(named())
    made.load_state_dict(checkpoint)
    p = made.param_groups[0]["params"][0]
    assert not made.state[p]["exp_avg"].requires_grad
    stepped(made)


def test_what_is_loaded_is_a_copy_also_of_the_optimizers_own():
    made = stepped(steepest.AdamW(named()))
    saved = made.state_dict()  # of torch's kind: it refers to the states themselves
    made.load_state_dict(saved)
    for key, p in enumerate(made.param_groups[0]["params"]):
        for name, value in made.state[p].items():
            assert value.data_ptr() != saved["state"][key][name].data_ptr()


def test_a_state_that_is_not_finite_is_the_users_own():
    checkpoint = saved()
    checkpoint["state"][0]["exp_avg_sq"].fill_(math.inf)  # a run that met an infinite gradient
    made = steepest.AdamW(named())
    made.load_state_dict(checkpoint)
    assert same(made.state_dict()["state"][0], checkpoint["state"][0])


def test_names_for_parameters_as_distributed_checkpoints_have_them():
    checkpoint = saved()
    (group,) = checkpoint["param_groups"]
    keys = dict(zip(group["params"], SHAPES, strict=True))
    # such a loader puts the names into the order of the loading group, and other entries not
    group["params"] = list(SHAPES)[::-1]
    checkpoint["state"] = {keys[k]: s for k, s in checkpoint["state"].items()}
    pairs = named()[::-1]
    made = steepest.AdamW(pairs)
    made.load_state_dict(checkpoint)
    for name, p in pairs:
        assert same(made.state[p], checkpoint["state"][name])


@pytest.mark.parametrize("names", [False, True])
@pytest.mark.parametrize("flat", [False, True])
def test_a_distributed_checkpoint_loads_here(names, flat):
    from torch.distributed.checkpoint import state_dict as dcp

    options = dcp.StateDictOptions(flatten_optimizer_state_dict=flat)
    models = [nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)) for _ in range(2)]
    made = []
    for model in models:
        ps = list(model.named_parameters() if names else model.parameters())
        made.append(steepest.NAdam([{"params": ps[::3], "lr": 0.1}, {"params": ps[1:3]}]))
    stepped(made[0])
    whole = dcp.get_optimizer_state_dict(models[0], made[0], options=options)
    dcp.set_optimizer_state_dict(models[1], made[1], whole, options=options)
    for p, q in zip(*(m.parameters() for m in models), strict=True):
        assert same(made[1].state[q], made[0].state[p])
    assert [g["lr"] for g in made[1].param_groups] == [0.1, 2e-3]


# mutations at random

KINDS = {
    "adamw": {}, "sgd": {"momentum": 0.9}, "adabelief": {}, "nadam": {}, "asgd": {},
    "adabound": {}, "rmsprop": {"momentum": 0.9}, "rprop": {}, "amsgrad": {"rounding": "kahan"},
    "classical_momentum": {"rounding": "stochastic"},
}  # fmt: skip


def history():
    return torch.ones((), requires_grad=True) * 2


JUNK = [
    lambda: None, lambda: "x", lambda: "", lambda: b"x", lambda: math.nan, lambda: math.inf,
    lambda: -math.inf, lambda: -1, lambda: 0, lambda: 0.5, lambda: 1, lambda: 10**400,
    lambda: 1j, lambda: True, lambda: False, lambda: [], lambda: {}, lambda: (), lambda: [0],
    lambda: (0.9, 0.9), lambda: [[1]], lambda: {"params": [0]}, lambda: {0: {}}, lambda: object(),
    lambda: (x for x in ()), lambda: threading.Lock(), lambda: {1, 2}, lambda: torch.ones(()),
    lambda: torch.ones(2), lambda: torch.tensor(math.nan), lambda: torch.ones(1).to_sparse(),
    lambda: torch.ones((), device="meta"), lambda: torch.ones((), dtype=torch.complex64), history,
    lambda: torch.tensor(True), lambda: torch.tensor(3), lambda: torch.ones(4, 3).to_sparse(),
    lambda: torch.ones(4, 3, device="meta"), lambda: torch.ones(4, 3, dtype=torch.complex64),
    lambda: torch.ones(4, 3, dtype=torch.int32), lambda: torch.ones(4, 3).half(),
    lambda: torch.ones(1).expand(4), lambda: torch.empty(0), lambda: torch.float32, lambda: nn.ReLU,
]  # fmt: skip


def places(tree, path=()):
    """Every place of a nested dict or list: (its container, its key)."""
    rows = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in list(rows):
        yield tree, key
        if isinstance(value, (dict, list)):
            yield from places(value)


@st.composite
def mutated(draw, checkpoint):
    checkpoint = copy.deepcopy(checkpoint)
    for _ in range(draw(st.integers(1, 3))):
        found = list(places(checkpoint))
        if not found:
            break
        container, key = found[draw(st.integers(0, len(found) - 1))]
        way = draw(st.sampled_from(["put", "put", "put", "cut", "rename", "double", "swap"]))
        other, place = found[draw(st.integers(0, len(found) - 1))]
        if way == "cut":
            del container[key]
        elif way == "rename" and isinstance(container, dict):
            names = ["x", "lr", "step", "exp_avg", "params", "rule", "rounding", "initial_lr", 0, 7]
            container[draw(st.sampled_from(names))] = container.pop(key)
        elif way == "double" and isinstance(container, list):
            container.append(container[key])
        elif way == "swap" and not isinstance(other[place], (dict, list)):
            container[key] = other[place]
        else:
            container[key] = draw(st.sampled_from(JUNK))()
    return checkpoint


@settings(
    max_examples=600, deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)  # fmt: skip
@given(st.data())
def test_a_mutated_checkpoint_is_refused_and_nothing_moves_or_it_steps(data):
    name = data.draw(st.sampled_from(sorted(KINDS)))
    options = KINDS[name]
    dtype = torch.bfloat16 if "rounding" in options else torch.float32
    own = named(dtype=dtype) if data.draw(st.booleans()) else bare(named(dtype=dtype))
    made = stepped(steepest.optimizer(name, split(own), backend="foreach", **options))
    checkpoint = data.draw(mutated(made.state_dict()))
    before = Frozen(made)
    strict = data.draw(st.booleans())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            made.load_state_dict(checkpoint, strict=strict)
        except (ValueError, TypeError) as error:
            sentence = str(error)
            assert len(sentence) > 10
            assert before.unchanged()
            return
    for group in made.param_groups:
        endless = any(isinstance(v, float) and math.isinf(v) for v in group.values())
        growing = name == "rmsprop" and float(group["alpha"]) > 1  # torch's limits let it
        if group["differentiable"] or endless or growing:
            return  # a leaf is not stepped so; and an infinite option is within the limits
    states = [made.state.get(p, {}) for g in made.param_groups for p in g["params"]]
    squares = [v for s in states for k, v in s.items() if isinstance(v, torch.Tensor)
               and k.endswith(("_sq", "_avg", "_var", "sum")) and k != "exp_avg"]  # fmt: skip
    if any((v < 0).any() for v in squares):
        return  # another state of the same shape in its place: elements are not looked at
    stepped(made, 1)
    assert all(p.isfinite().all() for g in made.param_groups for p in g["params"])


# saving while training goes on


def test_a_snapshot_is_written_while_training_goes_on():
    made = stepped(steepest.NAdam(named()))
    snapshot = copy.deepcopy(made.state_dict())
    want, file, done = copy.deepcopy(snapshot), io.BytesIO(), threading.Event()
    writer = threading.Thread(target=lambda: (done.wait(10), torch.save(snapshot, file)))
    writer.start()
    stepped(made, 20)
    done.set()
    writer.join(20)
    file.seek(0)
    got = torch.load(file, weights_only=True)
    for key in want["state"]:
        assert same(got["state"][key], want["state"][key])
    assert int(made.state_dict()["state"][0]["step"]) == 22


# convert


def grads(steps, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return [[torch.randn(s, generator=generator, dtype=torch.float64) for s in SHAPES.values()]
            for _ in range(steps)]  # fmt: skip


def run(made, steps=7, seed=3):
    """Steps by gradients that do not depend on the parameters: so the states do not either."""
    for row in grads(steps, seed):
        for p, g in zip((p for x in made.param_groups for p in x["params"]), row, strict=True):
            p.grad = g.clone()
        made.step()
    return made


def fresh():
    return bare(named(dtype=torch.float64))


def close(a, b, rtol=1e-9):
    assert a.keys() == b.keys()
    for key in a:
        x, y = (torch.as_tensor(s[key], dtype=torch.float64) for s in (a, b))
        assert torch.allclose(x, y, rtol=rtol, atol=1e-12), key


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (("Adam", {}), ("RAdam", {})),
        (("AdamW", {"weight_decay": 0.0}), ("NAdam", {})),
        (("NAdam", {}), ("Adam", {})),
        (("AdamW", {"weight_decay": 0.0}), ("RMSprop", {"alpha": 0.999})),
        (("RAdam", {"betas": (0.8, 0.95)}), ("SGD", {"momentum": 0.8})),
        (("Adam", {"amsgrad": True}), ("AdamW", {"amsgrad": True, "weight_decay": 0.0})),
    ],
    ids=lambda x: x[0],
)
def test_a_converted_state_is_what_the_other_would_have_made_of_the_same_gradients(source, target):
    (a, given), (b, wanted) = source, target
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # torch keeps mu_product in it
    try:
        old = run(getattr(torch.optim, a)(fresh(), **given)).state_dict()
        want = run(getattr(torch.optim, b)(fresh(), **wanted)).state_dict()
    finally:
        torch.set_default_dtype(before)
    new, _ = convert(old, to=b.lower(), source=a)
    for key in want["state"]:
        close(new["state"][key], want["state"][key])
    for option in wanted:
        assert new["param_groups"][0][option] == wanted[option]


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("back", [False, True])
def test_the_rate_inside_the_buffer_moves_on_alike(nesterov, back):
    names = ("sgd", f"classical_{'nesterov' if nesterov else 'momentum'}")
    options = {"momentum": 0.8, "weight_decay": 0.1}
    kinds = [options | ({"nesterov": nesterov} if n == "sgd" else {}) for n in names]
    if back:
        names, kinds = names[::-1], kinds[::-1]
    ps = fresh()
    made = run(steepest.optimizer(names[0], ps, lr=0.3, **kinds[0]))
    made.param_groups[0]["lr"] = 0.05  # the rates so far do not matter, the one to come does
    qs = [nn.Parameter(p.detach().clone()) for p in ps]
    other = steepest.optimizer(names[1], qs)
    other.load_state_dict(convert(made.state_dict(), names[1], source=names[0])[0])
    for x in (made, other):
        run(x, seed=9)
    for p, q in zip(ps, qs, strict=True):
        assert torch.allclose(p, q, rtol=1e-10, atol=1e-12)


def test_eadam_has_adams_average_and_the_eps_that_it_adds():
    old = run(torch.optim.Adam(fresh(), eps=1e-3)).state_dict()
    new, report = convert(old, "eadam", source="adam")
    eps, b = new["param_groups"][0]["eps"], 0.999
    v = torch.zeros(4, 3, dtype=torch.float64)
    for row in grads(7):
        v = b * v + (1 - b) * row[0] ** 2 + eps
    assert torch.allclose(new["state"][0]["exp_avg_sq"], v, rtol=1e-10)
    back, _ = convert(new, "adam", source="eadam")
    assert torch.allclose(back["state"][0]["exp_avg_sq"], old["state"][0]["exp_avg_sq"], rtol=1e-9)
    assert eps == 1e-8
    assert any(what.startswith("eps=") for what, _ in report.invented)


def test_adamw_goes_to_ours_and_back_bit_for_bit():
    old = saved(torch.optim.AdamW)
    there, report = convert(old, to="adamw")
    back, _ = convert(there, to="adamw")
    assert (report.source, report.dropped, report.invented) == ("AdamW", (), ())
    made = steepest.AdamW(named())
    made.load_state_dict(there)
    theirs = torch.optim.AdamW(named(seed=1))
    theirs.load_state_dict(copy.deepcopy(made.state_dict()))
    for end in (back, theirs.state_dict()):
        assert end["param_groups"] == old["param_groups"]
        assert all(same(end["state"][k], old["state"][k]) for k in old["state"])


def test_adabelief_begins_anew_from_adamw_and_says_so():
    old = saved(torch.optim.AdamW, lr=0.02, betas=(0.8, 0.99), weight_decay=0.3)
    new, report = convert(old, to="adabelief")
    assert new["state"] == {}
    made = steepest.AdaBelief(named())
    made.load_state_dict(new)
    group = made.param_groups[0]
    assert (group["lr"], group["betas"], group["weight_decay"]) == (0.02, (0.8, 0.99), 0.3)
    assert group["weight_decouple"] is True
    assert group["eps"] == 1e-16  # Adam's is of another kind
    (what, why) = report.dropped[0]
    assert what == "step, exp_avg, exp_avg_sq of 4 parameters"
    assert "needs exp_avg_var" in why
    assert "eps=1e-16" in str(report)
    stepped(made)


def test_decay_keeps_its_kind_or_is_given_up():
    coupled = saved(torch.optim.Adam, weight_decay=0.3)
    group = convert(coupled, "adabelief")[0]["param_groups"][0]
    assert (group["weight_decay"], group["weight_decouple"]) == (0.3, False)
    new, report = convert(coupled, "adamw")
    assert new["param_groups"][0]["weight_decay"] == 0.01
    assert any("in another way" in why for _, why in report.invented)
    assert any("had the L2 term" in why for _, why in report.kept)
    group = convert(saved(torch.optim.AdamW, weight_decay=0.3), "nadam")[0]["param_groups"][0]
    assert (group["weight_decay"], group["decoupled_weight_decay"]) == (0.3, True)


def test_a_rate_of_gradients_is_none_of_lengths():
    made = steepest.SGD(named(), lr=0.5, momentum=0.9)
    torch.optim.lr_scheduler.StepLR(made, 2)
    new, report = convert(stepped(made).state_dict(), "adamw")
    assert new["param_groups"][0]["lr"] == 1e-3
    assert "initial_lr" not in new["param_groups"][0]
    assert any(what == "initial_lr" for what, _ in report.dropped)
    made = steepest.AdamW(named(), lr=0.5)
    torch.optim.lr_scheduler.StepLR(made, 2)
    new, _ = convert(stepped(made).state_dict(), "adabound")
    group = new["param_groups"][0]
    assert (group["lr"], group["initial_lr"], group["base_lr"]) == (0.5, 0.5, 0.5)


def test_a_dampened_sum_is_an_average_of_nobody():
    old = saved(torch.optim.SGD, momentum=0.9, dampening=0.5)
    assert convert(old, "classical_momentum")[0]["state"] == {}
    new, _ = convert(old, "momentum")
    assert torch.equal(new["state"][0]["momentum_buffer"], old["state"][0]["momentum_buffer"])
    assert new["param_groups"][0]["dampening"] == 0.5


@pytest.mark.parametrize("target", [*TORCH, "AdaBelief", "AdaBound", "EAdam", "ClassicalNesterov"])
@pytest.mark.parametrize("kind", TORCH)
def test_every_conversion_loads_and_steps_in_torch_too(kind, target):
    hyper = {"SGD": {"momentum": 0.9, "lr": 0.1}, "RMSprop": {"momentum": 0.9, "centered": True}}
    old = saved(getattr(torch.optim, kind), **hyper.get(kind, {}))
    before = copy.deepcopy(old)
    new, report = convert(old, to=target)
    assert str(old) == str(before)
    assert (report.source, report.target) == (kind, target)
    assert isinstance(report, Converted)
    said = str(report)
    for key in {k for s in old["state"].values() for k in s} - {"step"}:
        assert kind == target or key in said
    for library in (steepest, torch.optim):
        if hasattr(library, target):
            made = getattr(library, target)(named())
            made.load_state_dict(copy.deepcopy(new))
            stepped(made)
            assert all(p.isfinite().all() for p in made.param_groups[0]["params"])


def test_the_authors_packages_are_recognised():
    belief = pytest.importorskip("adabelief_pytorch").AdaBelief
    bound = pytest.importorskip("adabound").AdaBound
    old = belief(bare(named()), print_change_log=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        new, report = convert(stepped(old).state_dict(), to="adamw")
        assert report.source == "AdaBelief"
        assert new["param_groups"][0]["betas"] == (0.9, 0.999)
        new, report = convert(stepped(bound(bare(named()))).state_dict(), to="adam")
    assert report.source == "AdaBound"
    made = steepest.Adam(bare(named()))
    with pytest.warns(UserWarning, match="base_lrs") if "base_lrs" in new["param_groups"][0] \
            else warnings.catch_warnings():  # fmt: skip
        made.load_state_dict(new)
    assert int(made.state[made.param_groups[0]["params"][0]]["step"]) == 2


def test_a_source_that_cannot_be_told_is_asked_for():
    old = saved(torch.optim.AdamW)
    del old["param_groups"][0]["decoupled_weight_decay"]  # as before torch 2.7
    with pytest.raises(
        ValueError, match=r"Adam or AdamW may have saved the checkpoint; pass as source="
    ):
        convert(old, "adabelief")
    assert convert(old, "adabelief", source="adamw")[1].source == "AdamW"
    with pytest.raises(ValueError, match="ClassicalMomentum or ClassicalNesterov may have saved"):
        convert(saved(steepest.ClassicalNesterov), "sgd")
    old["state"][0]["unheard_of"] = torch.ones(4, 3)
    with pytest.raises(ValueError, match="no optimizer known here has the checkpoint"):
        convert(old, "sgd")
    with pytest.raises(ValueError, match="did you mean"):
        convert(old, "adamm")
    with pytest.raises(ValueError, match="expected an optimizer's state_dict"):
        convert({"model": {}}, "adam")
    with pytest.raises(ValueError, match="lacks"):
        convert(saved(steepest.Adam) | {"state": {0: {"step": 3}}},
                "adamw", source="adam")  # fmt: skip


def test_each_group_is_converted_from_its_own_rule():
    pairs = named()
    made = stepped(steepest.AdamW([{"params": pairs[:2]},
                                   {"params": pairs[2:], "rule": "sgd", "momentum": 0.9}]))  # fmt: skip  # noqa: E501
    new, report = convert(made.state_dict(), "adam")
    assert report.source == "AdamW and SGD"
    assert sorted(new["state"]) == [0, 1]
    assert all("rule" not in g for g in new["param_groups"])
    steepest.Adam(split(named())).load_state_dict(new)


def test_a_compensation_belongs_to_the_parameter():
    pairs = named(dtype=torch.bfloat16)
    made = stepped(steepest.AdamW(pairs, rounding="kahan"))
    for target in ("adam", "adabelief", "sgd"):
        new, _ = convert(made.state_dict(), target)
        other = steepest.optimizer(target, named(dtype=torch.bfloat16))
        other.load_state_dict(new)
        for (_, p), q in zip(pairs, other.param_groups[0]["params"], strict=True):
            assert torch.equal(other.state[q]["compensation"], made.state[p]["compensation"])
        assert other.param_groups[0]["rounding"] == "kahan"
        stepped(other)


def test_a_model_with_a_part_called_module_goes_through_ddp():
    plain = {"w": (3,), "module.w": (3,)}
    there = named({f"module.{n}": s for n, s in plain.items()})
    checkpoint = saved(params=there)
    here = named(plain)
    made = steepest.AdamW(here)
    made.load_state_dict(checkpoint)
    for name, p in here:
        assert same(made.state[p], by_name(checkpoint)[f"module.{name}"])


@pytest.mark.parametrize(("size", "kept"), [(1e-6, False), (1e-2, True)])
def test_a_second_moment_that_drowns_in_eadams_eps_is_not_invented(size, kept):
    p = nn.Parameter(torch.ones(4))
    made = steepest.EAdam([p])
    for _ in range(50):
        p.grad = torch.full((4,), size)
        made.step()
    converted, report = convert(made.state_dict(), "adam", source="eadam")
    assert bool(converted["state"]) is kept, str(report)
    if kept:
        torch.testing.assert_close(
            converted["state"][0]["exp_avg_sq"], torch.full((4,), size**2 * (1 - 0.999**50)),
            rtol=1e-3, atol=0,
        )  # fmt: skip


def test_what_nadam_carries_is_had_for_any_count():
    checkpoint = saved(steepest.Adam)
    for state in checkpoint["state"].values():
        state["step"] = torch.tensor(1e7)
    converted, _ = convert(checkpoint, "nadam")
    assert all(float(s["mu_product"]) < 1e-300 for s in converted["state"].values())
