"""What others keep in `optimizer.state` is left alone, saved and loaded as it is; what another
optimizer has saved is refused.
"""

import copy
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import steepest
from steepest.classes import classes


def parameter(size=3):
    return nn.Parameter(torch.ones(size))


def stepped(made, steps=2):
    for _ in range(steps):
        for group in made.param_groups:
            for p in group["params"]:
                p.grad = torch.linspace(0.5, 1, p.numel()).reshape(p.shape)
        made.step()
    return made


def same(a, b):
    """Whether two nested values are equal, tensors with dtype, and share no tensor."""
    if isinstance(a, torch.Tensor):
        return a is not b and a.dtype is b.dtype and torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return a is not b and np.array_equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


BESIDE = {
    "an int": 3, "a float": 0.5, "text": "head", "nothing": None, "a flag": True,
    "slow weights": torch.ones(3), "of another shape": torch.ones(2, 2),
    "of another dtype": torch.ones(3, dtype=torch.bfloat16), "counts": torch.tensor(4),
    "a dict": {"slow": torch.ones(3), "k": 5}, "a list": [torch.ones(1), (1, 2)],
    "an array": np.arange(3.0),
}  # fmt: skip


@pytest.mark.parametrize("kind", ["AdamW", "SGD", "Lion", "Adagrad", "Prodigy", "LARS"])
@pytest.mark.parametrize("what", BESIDE)
def test_what_others_keep_beside_a_state_is_saved_and_loaded_as_it_is(kind, what):
    made = stepped(classes[kind]([parameter()], lr=0.1))
    p = made.param_groups[0]["params"][0]
    made.state[p]["lookahead"] = BESIDE[what]
    saved = made.state_dict()
    other = classes[kind]([parameter()], lr=0.1)
    other.load_state_dict(saved)
    q = other.param_groups[0]["params"][0]
    assert same(made.state[p]["lookahead"], other.state[q]["lookahead"])
    assert same(made.state[p], other.state[q])
    assert same(saved, other.state_dict())


@pytest.mark.parametrize("kind", ["AdamW", "SGD"])
@pytest.mark.parametrize(
    "value", [{"count": 1, "scale": torch.ones(2)}, {"s": torch.ones(1), "variance": torch.ones(1)},
              5, None, [torch.ones(1)]],
)  # fmt: skip
def test_an_entry_of_no_parameter_is_saved_and_loaded_as_in_torch(kind, value):
    for lib in (torch.optim, steepest):
        made = stepped(getattr(lib, kind)([parameter()], lr=0.1))
        made.state["adascale"] = copy.deepcopy(value)
        other = getattr(lib, kind)([parameter()], lr=0.1)
        other.load_state_dict(copy.deepcopy(made.state_dict()))
        assert same(value, other.state["adascale"]) or value in (5, None)
        assert "adascale" in other.state_dict()["state"]


def test_torchs_checkpoint_with_slow_weights_loads_and_steps_and_goes_back():
    theirs = stepped(torch.optim.AdamW([p := parameter()], lr=0.1))
    theirs.state[p]["slow_buffer"] = torch.full((3,), 7.0)
    ours = steepest.AdamW([q := nn.Parameter(p.detach().clone())], lr=0.1)
    ours.load_state_dict(theirs.state_dict())
    stepped(ours)
    stepped(theirs)
    torch.testing.assert_close(p, q)
    assert torch.equal(ours.state[q]["slow_buffer"], torch.full((3,), 7.0))
    theirs.load_state_dict(ours.state_dict())
    assert torch.equal(theirs.state[p]["slow_buffer"], torch.full((3,), 7.0))


def test_a_parameter_without_a_state_keeps_what_others_have_there():
    made = steepest.AdamW([p := parameter()])
    made.state[p]["slow"] = torch.ones(3)  # frozen so far
    other = steepest.AdamW([q := parameter()])
    assert other.load_state_dict(made.state_dict()).matched == ("parameter 0 of group 0",)
    assert same(other.state[q], {"slow": torch.ones(3)})


def test_a_tensor_with_a_history_is_loaded_without_it():
    made = stepped(steepest.AdamW([p := parameter()]))
    made.state[p]["slow"] = torch.ones(3, requires_grad=True) * 2
    made.state["all"] = {"x": [torch.ones(1, requires_grad=True) * 2]}
    other = steepest.AdamW([q := parameter()])
    other.load_state_dict(made.state_dict())
    assert not other.state[q]["slow"].requires_grad
    assert torch.equal(other.state["all"]["x"][0], torch.full((1,), 2.0))


def test_wrappers_save_and_load_what_others_keep():
    made = steepest.Lookahead(stepped(steepest.AdamW([p := parameter()])), k=5)
    made.state[p]["tag"] = 3
    made.state["whole"] = {"count": 1}
    other = steepest.Lookahead(steepest.AdamW([q := parameter()]), k=5)
    other.load_state_dict(made.state_dict())
    assert other.state[q]["tag"] == 3
    assert other.state["whole"] == {"count": 1}


ADAM = {"step": torch.tensor(5.0), "exp_avg": torch.zeros(3), "exp_avg_sq": torch.zeros(3)}
FACTORED = {"step": 5, "exp_avg_sq_row": torch.zeros(3), "RMS": 0.0}


@pytest.mark.parametrize(
    ("kind", "state", "words"),
    [
        ("SGD", ADAM, "by another optimizer, see steepest.convert"),
        ("Lion", ADAM, "by another optimizer"),
        ("SGD", {k: v for k, v in ADAM.items() if k != "exp_avg"}, "by another optimizer"),
        ("SGD", {k: v for k, v in ADAM.items() if k != "step"}, "by another optimizer"),
        ("SGD", {**ADAM, "slow": torch.zeros(3)}, "by another optimizer"),
        ("AdamW", {**ADAM, "exp_avg_var": torch.zeros(3)}, "by another optimizer"),
        ("AdaBelief", ADAM, "by another optimizer"),
        ("AdamW", {"step": 5, "unheard_of": torch.zeros(3)}, "by another optimizer, which is"),
        ("AdamW", FACTORED, "by transformers' Adafactor, which is not known here, so start a"),
        ("Adafactor", FACTORED, "by transformers' Adafactor"),
        ("SGD", FACTORED, "by transformers' Adafactor"),
        ("Lion", {"step": 5, "state1": torch.zeros(3)}, "by an optimizer of bitsandbytes, wh"),
        ("AdamW", {"step": 5, "state1": torch.zeros(3), "state2": torch.zeros(3)}, "bitsandbytes"),
    ],
)  # fmt: skip
def test_the_state_of_another_optimizer_is_refused_and_nothing_moves(kind, state, words):
    made = stepped(classes[kind]([parameter()]))
    saved, before = copy.deepcopy(made.state_dict()), str(made.state_dict())
    saved["state"][0] = state
    for strict in (True, False):
        with pytest.raises(ValueError, match=words):
            made.load_state_dict(saved, strict=strict)
    assert str(made.state_dict()) == before


# from -> into what it loads, but itself: the same keys, and no option that only others have
ADAMS = {"ADOPT", "AdaBound", "Adam", "AdamW", "EAdam", "Grams", "LAMB", "RAdam", "Yogi"}
ALLOWED = {
    "Adam": {"AdamW"}, "AdamW": {"Adam"}, "RAdam": {"Adam", "AdamW"}, "SparseAdam": ADAMS,
    "EAdam": ADAMS, "Grams": ADAMS, "LAMB": ADAMS,
    "AMSGrad": {"AMSBound", "AdaBound", "Adam", "AdamW"}, "AMSBound": {"AdaBound"},
    "Momentum": {"Nesterov", "SGD"}, "Nesterov": {"Momentum", "SGD"},
    "Signum": {"LARS", "Momentum", "Nesterov", "SGD"},
    "ClassicalMomentum": {"ClassicalNesterov"}, "ClassicalNesterov": {"ClassicalMomentum"},
    "Fromage": {*classes},  # it has no state
}  # fmt: skip
KEYS = {"SGD": {"momentum": 0.9}, "RMSprop": {"momentum": 0.9}}


@pytest.mark.parametrize("lib", [steepest, torch.optim])
def test_no_class_takes_the_state_of_another_but_of_those_that_mean_the_same(lib):
    for source in classes:
        if not hasattr(lib, source):
            continue
        made = getattr(lib, source)([p := parameter((2, 3))], **KEYS.get(source, {}))
        p.grad = torch.ones(2, 3).to_sparse() if source == "SparseAdam" else torch.ones(2, 3)
        made.step()
        saved = made.state_dict()
        for target, kind in classes.items():
            other = kind([parameter((2, 3))])
            if target == source or target in ALLOWED.get(source, ()):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    other.load_state_dict(saved)
                continue
            before = str(other.state_dict())
            with pytest.raises((ValueError, TypeError), match=f"{target}: "):
                other.load_state_dict(saved)
            assert str(other.state_dict()) == before


def test_what_an_optimizer_carries_tells_whose_state_it_is():
    for source, key in (("NAdam", "mu_product"), ("SWATS", "exp_avg2"), ("Prodigy", "d")):
        saved = stepped(classes[source]([parameter()])).state_dict()
        own = {k: v for k, v in saved["state"][0].items() if k in (*ADAM, key)}
        saved["state"][0] = own
        for target in ("Adam", "AdamW", "RAdam", "Yogi", "Grams"):
            with pytest.raises(ValueError, match=f"a state '{key}' .* by another optimizer, see"):
                classes[target]([parameter()]).load_state_dict(saved)


@pytest.mark.parametrize("kind", ["AdamW", "Adagrad", "Lion", "SGD", "SWATS", "Fromage"])
@pytest.mark.parametrize("lib", [steepest, torch.optim])
def test_an_entry_called_as_a_rule_calls_its_own_is_somebodys_all_the_same(kind, lib):
    if not hasattr(lib, kind):
        return
    for name in ("last_grad", "prev", "sum", "z", "slow", "momentum_buffer", "k", "v", "d", "RMS"):
        made = stepped(getattr(lib, kind)([p := parameter()]))
        if name in classes[kind].family.keys:
            continue
        made.state[p][name] = torch.full((3,), 7.0)
        other = classes[kind]([q := parameter()])
        other.load_state_dict(made.state_dict())
        assert torch.equal(other.state[q][name], torch.full((3,), 7.0))
        stepped(other)


def test_a_class_without_states_keeps_a_count_and_an_average_of_others():
    for lib in (steepest, torch.optim):
        made = lib.SGD([p := parameter()])
        made.state[p] = {"step": 3, "ema": torch.ones(3)}
        other = steepest.SGD([q := parameter()])
        other.load_state_dict(made.state_dict())
        assert same(other.state[q], {"step": 3, "ema": torch.ones(3)})
        stepped(other)


@pytest.mark.parametrize(
    "own", [FACTORED, {"step": 5, "state1": torch.zeros(3)}, {**ADAM, "RMS": 0.5}]
)
def test_an_optimizer_from_elsewhere_is_named_whatever_its_options_are(own):
    saved = {"state": {0: own}, "param_groups": [{"params": [0], "lr": None, "eps": (1e-30, 1e-3)}]}
    for name in ("Adafactor", "AdamW", "SGD", "Lion"):
        with pytest.raises(
            ValueError, match=r"saved by (transf|an opt).*not known here, so start a"
        ):
            classes[name]([parameter()]).load_state_dict(copy.deepcopy(saved))
    with pytest.raises(ValueError, match=r"not known here, so start a new"):
        steepest.convert(saved, "adamw", source="adamw")


@pytest.mark.parametrize("kind", ["SWATS", "YellowFin"])
def test_a_checkpoint_from_before_a_state_was_new_says_what_it_lacks(kind):
    saved = stepped(classes[kind]([parameter()])).state_dict()
    del saved["state"][0]["k"]
    with pytest.raises(ValueError, match=r"lacks \['k'\], which this optimizer needs") as seen:
        classes[kind]([parameter()]).load_state_dict(saved)
    assert "damaged" not in str(seen.value)


def test_the_state_of_a_parameter_in_no_group_is_no_entry_of_others():
    made = stepped(steepest.AdamW([("a", parameter()), ("b", parameter())]))
    for astray in (9, "9", "x"):
        saved = made.state_dict()
        saved["state"][astray] = ADAM
        with pytest.raises(ValueError, match=r"has the parameters .* in no group"):
            made.load_state_dict(saved)
    saved = made.state_dict()  # as torch.distributed.checkpoint has them
    saved["state"] = {"a": saved["state"][0], "c": saved["state"][1]}
    saved["param_groups"][0]["params"] = ["a", "b"]
    with pytest.raises(ValueError, match="the parameters 'c' in no group"):
        made.load_state_dict(saved)


# a count that nobody reads


UNREAD = [name for name, kind in classes.items() if kind.family.members[0].states
          and not any(m.counted or m.carried for m in kind.family.members)]  # fmt: skip


@pytest.mark.parametrize("kind", UNREAD)
def test_a_count_that_the_rule_never_reads_need_not_be_saved(kind):
    assert {"Lion", "Signum", "LARS", "RMSprop", "Adadelta"} <= {*UNREAD}
    ps = [parameter((2, 2)), parameter((2, 2))]
    made, other = (classes[kind]([p], lr=0.1) for p in ps)
    saved = copy.deepcopy(stepped(made).state_dict())
    saved["state"][0].pop("step", None)
    with torch.no_grad():
        ps[1].copy_(ps[0])
    other.load_state_dict(saved)
    stepped(made)
    stepped(other)
    assert torch.equal(*ps)
    stepped(classes[kind]([parameter((2, 2))])).load_state_dict(other.state_dict())


def test_a_count_that_is_read_is_still_asked_for():
    saved = stepped(steepest.AdamW([parameter()])).state_dict()
    del saved["state"][0]["step"]
    with pytest.raises(ValueError, match=r"lacks \['step'\]"):
        steepest.AdamW([parameter()]).load_state_dict(saved)


# conversion


@pytest.mark.parametrize("to", ["adamw", "adabelief", "eadam", "sgd"])
def test_what_others_keep_goes_through_a_conversion(to):
    made = stepped(steepest.AdamW([p := parameter()]))
    made.state[p]["slow"] = torch.full((3,), 7.0)
    made.state["whole"] = {"count": 1}
    converted, report = steepest.convert(made.state_dict(), to)
    other = steepest.optimizer(to, [q := parameter()])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other.load_state_dict(converted)
    assert torch.equal(other.state[q]["slow"], torch.full((3,), 7.0))
    assert other.state["whole"] == {"count": 1}
    if to != "adamw":
        assert "slow of 1 parameters: stored there by other code" in str(report)
        assert "'whole': stored by other code, not for a parameter" in str(report)


@pytest.mark.parametrize("own", [FACTORED, {"step": 5, "state1": torch.zeros(3)}])
@pytest.mark.parametrize("source", [None, "adamw"])
def test_a_conversion_of_an_unknown_optimizer_says_so(own, source):
    saved = {"state": {0: own}, "param_groups": [{"params": [0], "lr": 1e-3}]}
    with pytest.raises(ValueError, match=r"which is not known here.* start a new"):
        steepest.convert(saved, "adamw", source=source)
