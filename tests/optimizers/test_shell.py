"""The shell: constructor, groups, checkpoints, hooks, and the ways an executor goes stale."""

import copy
import inspect
import io
import math
import pickle
import subprocess
import sys
import warnings

import pytest
import torch
from torch import nn

import steepest
from steepest.executor import Executor

TORCH = ["SGD", "ASGD", "Rprop", "Adagrad", "Adadelta", "RMSprop", "Adam", "AdamW", "Adamax", "NAdam", "RAdam"]  # fmt: skip  # noqa: E501
OPTIONS = {
    "SGD": {"momentum": 0.9},
    "RMSprop": {"momentum": 0.9, "centered": True},
    "Adam": {"amsgrad": True},
}


def params(*shapes, dtype=torch.float32):
    made = [nn.Parameter(torch.randn(shape, dtype=dtype)) for shape in shapes or [(4, 3), (5,)]]
    for p in made:
        p.grad = torch.randn_like(p)
    return made


def values(ps):
    return [p.detach().clone() for p in ps]


def unchanged(ps, before):
    return all(torch.equal(p, b) for p, b in zip(ps, before, strict=True))


# construction


@pytest.mark.parametrize("name", TORCH)
def test_arguments_and_groups_are_those_of_torch(name):
    theirs, ours = getattr(torch.optim, name), getattr(steepest, name)
    shown = inspect.signature(ours).parameters
    for argument, parameter in inspect.signature(theirs).parameters.items():
        assert shown[argument].default == parameter.default, argument
    ps = params()
    got, want = ours(ps).param_groups[0], theirs(ps).param_groups[0]
    assert {k: v for k, v in got.items() if k != "params"} == {
        k: v for k, v in want.items() if k != "params"
    }


@pytest.mark.parametrize(
    ("package", "kind", "quiet"),
    [("adabelief_pytorch", "AdaBelief", {"print_change_log": False}), ("adabound", "AdaBound", {})],
)
def test_arguments_are_those_of_the_authors_packages(package, kind, quiet):
    theirs = getattr(pytest.importorskip(package), kind)
    shown = inspect.signature(getattr(steepest, kind)).parameters
    for argument, parameter in inspect.signature(theirs).parameters.items():
        assert shown[argument].default == parameter.default, argument
    getattr(steepest, kind)(params(), **quiet).step()


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda ps: steepest.Adam(ps, lr=-1), ValueError, r"Adam: lr=-1.0 was given, .*\[0, inf\)"),
        (lambda ps: steepest.Adam(ps, lr="fast"), TypeError, "Adam: lr='fast' was given, expected"),
        (lambda ps: steepest.Adam(ps, lr=None), TypeError, "lr=None was given"),
        (lambda ps: steepest.Adam(ps, lr=math.nan), TypeError, "lr=nan was given"),
        (lambda ps: steepest.Adam(ps, betas=(1.0, 0.9)), ValueError, r"betas\[0\]=1.0 .*\[0, 1\)"),
        (lambda ps: steepest.Adam(ps, betas=(0.9, -0.1)), ValueError, r"betas\[1\]=-0.1"),
        (lambda ps: steepest.Adam(ps, betas=0.9), ValueError, "betas=0.9 was .* a pair"),
        (lambda ps: steepest.Adam(ps, beta=(0.9, 0.9)), TypeError, "no argument 'beta'.*'betas'"),
        (lambda ps: steepest.Adam(ps, weight_decay=-1), ValueError, "weight_decay=-1.0"),
        (lambda ps: steepest.Adam(ps, 1, (0.9, 0.9), 1, 1, lr=2), TypeError, "got 'lr' twice"),
        (lambda ps: steepest.Adam(ps, backend="gpu"), ValueError, "backend='gpu'.*foreach"),
        (lambda ps: steepest.Adam([]), ValueError, "params is empty.*model.parameters"),
        (lambda ps: steepest.Adam(iter([])), ValueError, "params is empty.*new generator"),
        (lambda ps: steepest.Adam([1]), TypeError, "can only optimize Tensors"),
        (lambda ps: steepest.Adam(ps[0]), TypeError, "iterable of Tensors"),
        (lambda ps: steepest.Adam(nn.Linear(1, 1)), TypeError, "a Linear.*model.parameters"),
        (lambda ps: steepest.Adam([{"lr": 1}]), ValueError, '"params"'),
        (lambda ps: steepest.Adam([{"params": ps, "lr": "1"}]), TypeError, "lr='1' was given"),
        (lambda ps: steepest.Adam([{"params": ps, "lr": -1}]), ValueError, "lr=-1"),
        (lambda ps: steepest.Adam([p * 2 for p in ps]), ValueError, "leaf"),
        (lambda ps: steepest.SGD(ps, nesterov=True), ValueError, "momentum > 0 and dampening 0"),
        (lambda ps: steepest.AdaBelief(ps, betas=(0, 0.9)), ValueError, "belief g - m is zero"),
        (lambda ps: steepest.AdaBound(ps, gamma=1), ValueError, "gamma=1.0"),
        (lambda ps: steepest.Rprop(ps, etas=(1.5, 0.5)), ValueError, r"etas\[0\]"),
        (lambda ps: steepest.optimizer("adabelif", ps), ValueError, "did you mean 'adabelief'"),
        (lambda ps: steepest.optimizer("zzz", ps), ValueError, "expected one of: adabelief"),
        (lambda ps: steepest.optimizer(print, ps), TypeError, "decorate the function"),
    ],
)  # fmt: skip
def test_a_bad_call_says_what_was_given_and_what_was_expected(make, kind, message):
    with pytest.raises(kind, match=message):
        make(params())


def test_flags_of_torch_are_accepted_without_effect():
    for options in ({"foreach": True}, {"fused": True}, {"capturable": True}):
        ps, qs = params(), None
        qs = copy.deepcopy(ps)
        for q, p in zip(qs, ps, strict=True):
            q.grad = p.grad.clone()
        steepest.AdaBelief(ps, **options).step()
        steepest.AdaBelief(qs).step()
        assert unchanged(ps, qs)


def test_amsgrad_under_rectify_warns_once():
    with pytest.warns(UserWarning, match="pass rectify=False") as seen:
        optimizer = steepest.AdaBelief(params(), amsgrad=True)
    optimizer.step()
    assert len(seen) == 1
    steepest.AdaBelief(params(), amsgrad=True, rectify=False).step()


def test_optimizer_by_name_takes_models_and_single_betas():
    model = nn.Linear(3, 2)
    made = steepest.optimizer("adabelief", model, beta1=0.5)
    assert made.param_groups[0]["betas"] == (0.5, 0.999)
    assert len(made.param_groups[0]["params"]) == 2
    assert type(steepest.optimizer("AdaBound", model)) is steepest.AdaBound
    assert type(steepest.optimizer(steepest.rules["adam"], model)) is steepest.Adam


def test_a_rule_of_the_users_own():
    def four_lines(p, g, m, *, t, lr=0.1, beta=0.9):
        m = beta * m + (1 - beta) * g
        return p - lr * m / (1 - beta**t), m

    try:
        mine = steepest.rule(four_lines)
        p = nn.Parameter(torch.ones(3))
        made = steepest.optimizer(mine, [p], lr=0.5, weight_decay=0.1)
        p.grad = torch.ones(3)
        made.step()
        assert torch.allclose(p, torch.full((3,), 1 - 0.5 * 0.1 - 0.5))
        again = pickle.loads(pickle.dumps(made))
        assert again.param_groups[0]["lr"] == 0.5
    finally:
        steepest.rules.pop("four_lines", None)
    with pytest.raises(ValueError, match="rule 'four_lines', which is not defined here"):
        pickle.loads(pickle.dumps(made))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("backend", ["foreach", "eager"])
def test_halves_are_stepped_in_float32(dtype, backend):
    # in fp16 eps=1e-16 is zero, and so is the square of this gradient
    p = nn.Parameter(torch.ones(3).to(dtype))
    p.grad = torch.tensor([1e-5, 0.0, 1.0]).to(dtype)
    made = steepest.AdaBelief([p], lr=0.1, rectify=False, backend=backend)
    made.step()
    assert made.state[p]["exp_avg_var"].dtype == torch.float32
    assert p.dtype == dtype
    assert p.tolist() == pytest.approx([1 - 0.1 / 0.9, 1.0, 1 - 0.1 / 0.9], rel=5e-3)


# groups


def test_later_groups_are_stepped_and_keep_their_own_base():
    # the package adabound 0.0.5 skips them in silence
    first, second = params((3,), (3,))
    made = steepest.AdaBound([first], lr=1e-3)
    made.add_param_group({"params": [second], "lr": 1e-2})
    before = values([first, second])
    made.step()
    assert not torch.equal(second, before[1])
    assert [g["base_lr"] for g in made.param_groups] == [1e-3, 1e-2]


def test_resuming_under_a_decayed_rate_keeps_the_bounds():
    ps = params((50,))
    whole = steepest.AdaBound(ps, lr=1e-3)
    whole.step()
    whole.param_groups[0]["lr"] = 1e-4
    other = [nn.Parameter(p.detach().clone()) for p in ps]
    resumed = steepest.AdaBound(other, lr=1e-4)
    resumed.load_state_dict(whole.state_dict())
    other[0].grad = ps[0].grad
    whole.step()
    resumed.step()
    assert torch.equal(ps[0], other[0])


def test_adabound_made_at_lr_0_stands_still_then_moves():
    (p,) = params((3,))
    made, before = steepest.AdaBound([p], lr=0.0), p.detach().clone()
    made.step()
    assert torch.equal(p, before)
    made.param_groups[0]["lr"] = 1e-3
    made.step()
    assert torch.isfinite(p).all()
    assert not torch.equal(p, before)


def test_a_parameter_given_twice_is_stepped_once_and_said_so():
    (p,) = params((3,))
    with pytest.warns(UserWarning, match="stepped once"):
        made = steepest.SGD([p, p], lr=1.0)
    before = p.detach().clone()
    made.step()
    assert torch.equal(p, before - p.grad)


def test_a_group_of_options_is_checked_before_it_is_added():
    made = steepest.Adam(params())
    with pytest.raises(ValueError, match="eps"):
        made.add_param_group({"params": params(), "eps": -1})
    assert len(made.param_groups) == 1
    with pytest.raises(TypeError, match="expected a dict"):
        made.add_param_group(params())


def test_options_may_change_between_steps():
    ours, theirs = params((4,)), None
    theirs = [nn.Parameter(ours[0].detach().clone())]
    theirs[0].grad = ours[0].grad.clone()
    a, b = steepest.SGD(ours, lr=0.1), torch.optim.SGD(theirs, lr=0.1)
    changes = [{"momentum": 0.9}, {"momentum": 0.5}, {"weight_decay": 0.1}, {"weight_decay": 0.2},
               {"maximize": True}, {"lr": torch.tensor(0.3)}, {"nesterov": True},
               {"momentum": 0}]  # fmt: skip
    for change in changes:
        if change == {"momentum": 0}:
            change = {"momentum": 0, "nesterov": False}
        for optimizer in (a, b):
            optimizer.param_groups[0].update(change)
            optimizer.step()
        assert torch.allclose(ours[0], theirs[0], atol=1e-6), change


# the step


def test_closure_and_hooks():
    (p,) = params((3,))
    made = steepest.Adam([p])
    calls = []
    made.register_step_pre_hook(lambda *a: calls.append("pre"))
    made.register_step_post_hook(lambda *a: calls.append("post"))

    def closure():
        assert torch.is_grad_enabled()
        made.zero_grad()
        loss = (p**2).sum()
        loss.backward()
        return loss

    with torch.no_grad():
        loss = made.step(closure)
    assert float(loss.detach()) > 0
    assert calls == ["pre", "post"]
    before = p.detach().clone()
    made.step()
    assert not torch.equal(p, before)


def test_the_profiler_sees_the_step():
    made = steepest.Adam(params())
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        made.step()
    assert any("Optimizer.step#Adam.step" in event.key for event in seen.key_averages())


@pytest.mark.parametrize("scheduler", ["StepLR", "OneCycleLR", "CosineAnnealingLR", "CyclicLR"])
def test_schedulers_of_torch(scheduler):
    options = {
        "StepLR": {"step_size": 2}, "OneCycleLR": {"max_lr": 0.1, "total_steps": 8},
        "CosineAnnealingLR": {"T_max": 4},
        "CyclicLR": {"base_lr": 0.01, "max_lr": 0.1, "step_size_up": 2},
    }[scheduler]  # fmt: skip
    results = []
    for module in (steepest, torch.optim):
        torch.manual_seed(1)
        (p,) = params((6,), dtype=torch.float64)
        made = module.SGD([p], lr=0.1, momentum=0.9)
        schedule = getattr(torch.optim.lr_scheduler, scheduler)(made, **options)
        for _ in range(8):
            made.step()
            schedule.step() if schedule.last_epoch < 7 else None
        results.append(p.detach())
    assert torch.allclose(*results, rtol=1e-12)


@pytest.mark.parametrize("backend", ["cpu", "foreach", "eager"])
def test_a_step_that_raises_has_changed_nothing(backend):
    dense, embedding = params((3,))[0], nn.Embedding(4, 2, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    made = steepest.AdaBelief(
        [{"params": [dense]}, {"params": embedding.parameters()}], backend=backend
    )
    before = values([dense, embedding.weight])
    with pytest.raises(RuntimeError, match=r"layout torch\.sparse_coo.*sparse=False"):
        made.step()
    assert unchanged([dense, embedding.weight], before)
    assert not made.state
    embedding.weight.grad = embedding.weight.grad.to_dense()
    made.step()
    assert [float(made.state[p]["step"]) for p in (dense, embedding.weight)] == [1, 1]
    state, after = copy.deepcopy(made.state_dict()), values([dense, embedding.weight])
    dense.data = torch.zeros(7)
    with pytest.raises(RuntimeError, match=r"of shape \(3,\) on cpu.*, expected one like"):
        made.step()
    dense.data = after[0].clone()
    assert unchanged([dense, embedding.weight], after)
    assert str(made.state_dict()) == str(state)


def test_a_bad_rate_at_the_step_changes_nothing():
    ps = params()
    made = steepest.Adam(ps)
    made.step()
    before = values(ps)
    made.param_groups[0]["lr"] = None
    with pytest.raises(TypeError, match="lr=None was given, expected a number"):
        made.step()
    assert unchanged(ps, before)
    assert float(made.state[ps[0]]["step"]) == 1


def test_gradients_are_left_alone():
    ps = params()
    grads = [p.grad.clone() for p in ps]
    steepest.Adam(ps, weight_decay=0.1, maximize=True).step()
    assert all(torch.equal(p.grad, g) for p, g in zip(ps, grads, strict=True))


@pytest.mark.parametrize("backend", ["cpu", "foreach", "eager"])
def test_a_backward_through_a_stepped_parameter_is_an_error(backend):
    p = nn.Parameter(torch.ones(3))
    made = steepest.SGD([p], backend=backend)
    loss = (p * p).sum()
    p.grad = torch.ones(3)
    made.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_differentiable_steps_let_autograd_through():
    start = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)

    def after(p0):
        p = p0.clone()
        p.grad = p0 * 3
        made = steepest.Adam.__new__(steepest.Adam)
        made.__init__(
            [torch.zeros(2, dtype=torch.float64, requires_grad=True)], lr=0.1, differentiable=True
        )
        made.param_groups[0]["params"] = [p]
        made.step()
        p.grad = p0**2
        made.step()
        return p

    assert torch.autograd.gradcheck(after, (start,))


def test_steps_beyond_the_first_gradient_are_the_parameters_own():
    early, late = params((3,), (3,))
    late.grad = None
    made = steepest.Adam([early, late])
    made.step()
    assert late not in made.state
    late.grad = torch.ones(3)
    made.step()
    assert [float(made.state[p]["step"]) for p in (early, late)] == [2, 1]


def test_a_compiled_training_step_steps_the_same():
    results = []
    for compiled in (False, True):
        torch.manual_seed(0)
        model, x = nn.Linear(4, 4), torch.randn(8, 4)
        made = steepest.Adam(model.parameters(), lr=0.1)

        def train(model=model, made=made, x=x):
            made.zero_grad()
            loss = model(x).square().mean()
            loss.backward()
            made.step()

        run = torch.compile(train, backend="eager") if compiled else train
        for _ in range(4):
            run()
        results.append(model.weight.detach())
    assert torch.equal(*results)


def test_nothing_to_do_is_no_error():
    ps = params()
    for p in ps:
        p.grad = None
    made = steepest.Adam(ps)
    made.step()
    assert not made.state


# plans that go stale


def test_a_replaced_state_is_used():
    ps, made = params((5,)), None
    made = steepest.Adam(ps, lr=0.1)
    made.step()
    for key in ("exp_avg", "exp_avg_sq"):
        made.state[ps[0]][key] = made.state[ps[0]][key].clone().fill_(1.0)
    made.state[ps[0]]["step"] = torch.tensor(6.0)
    before = ps[0].detach().clone()
    ps[0].grad.fill_(1.0)
    made.step()
    unbias = (1 - 0.999**7) ** 0.5 / (1 - 0.9**7)
    assert torch.allclose(ps[0], before - 0.1 * unbias, atol=1e-6)
    assert float(made.state[ps[0]]["step"]) == 7


@pytest.mark.parametrize("shape", [(), (1,), (5,)])
def test_an_equal_copy_of_a_state_is_used(shape):
    (p,) = params(shape)
    made = steepest.Adam([p])
    made.step()
    copied = made.state[p]["exp_avg"] = made.state[p]["exp_avg"].clone()
    before = copied.clone()
    made.step()
    assert not torch.equal(copied, before)


def test_a_cleared_state_begins_anew():
    (p,) = params((5,))
    made = steepest.Adam([p], lr=0.1)
    for _ in range(3):
        made.step()
    made.state.clear()
    made.step()
    assert float(made.state[p]["step"]) == 1


def test_replaced_data_is_followed():
    (p,) = params((5,))
    made = steepest.SGD([p], lr=1.0)
    made.step()
    old = p.data
    kept = old.clone()
    p.data = torch.zeros(5)
    made.step()
    assert torch.equal(p, -p.grad)
    assert torch.equal(old, kept)
    p.data = torch.zeros(5, dtype=torch.float64)
    p.grad = torch.ones(5, dtype=torch.float64)
    made.step()
    assert torch.equal(p, -torch.ones(5, dtype=torch.float64))


def test_a_parameter_that_grew_is_refused_until_its_state_did():
    (p,) = params((5,))
    made = steepest.Adam([p])
    made.step()
    p.data, p.grad = torch.zeros(7), torch.ones(7)
    with pytest.raises(RuntimeError, match=r"state 'exp_avg' is .*\(5,\).*\(7,\)"):
        made.step()
    made.state.clear()
    made.step()


def test_the_idiom_of_growing_models():
    # replace a parameter in its group and carry the state over, as point-cloud renderers do
    (p,) = params((5,))
    made = steepest.Adam([p])
    made.step()
    stored = made.state.pop(p)
    stored["exp_avg"] = torch.cat([stored["exp_avg"], torch.zeros(2)])
    stored["exp_avg_sq"] = torch.cat([stored["exp_avg_sq"], torch.zeros(2)])
    grown = nn.Parameter(torch.cat([p.detach(), torch.zeros(2)]))
    made.param_groups[0]["params"][0] = grown
    made.state[grown] = stored
    grown.grad = torch.ones(7)
    before = p.detach().clone()
    made.step()
    assert torch.equal(p, before)
    assert float(made.state[grown]["step"]) == 2
    assert not torch.equal(grown[:5], before)


def test_missing_states_are_named():
    (p,) = params((5,))
    made = steepest.Adam([p])
    made.step()
    made.param_groups[0]["amsgrad"] = True
    with pytest.raises(
        RuntimeError, match=r"has made 1 steps, but its state lacks \['max_exp_avg_sq'\]"
    ):
        made.step()


# checkpoints


@pytest.mark.parametrize("name", TORCH)
def test_a_checkpoint_of_torch_continues_here_and_back(name):
    options = OPTIONS.get(name, {})
    theirs, ours = params((4, 3), (5,), dtype=torch.float64), None
    ours = [nn.Parameter(p.detach().clone()) for p in theirs]
    a = getattr(torch.optim, name)(theirs, **options)
    b = getattr(steepest, name)(ours, **options)
    for _ in range(3):
        a.step()
    for p, q in zip(ours, theirs, strict=True):
        p.data.copy_(q.data)
    saved = a.state_dict()
    b.load_state_dict(saved)
    assert str(b.state_dict()) == str(saved)

    def both():
        for p, q in zip(ours, theirs, strict=True):
            q.grad = torch.randn_like(q)
            p.grad = q.grad.clone()
        a.step()
        b.step()
        for p, q in zip(ours, theirs, strict=True):
            assert torch.allclose(p, q, rtol=1e-6, atol=1e-9)  # torch keeps some scalars in float32

    both()
    back = copy.deepcopy(b.state_dict())  # torch would share the memory of what it loads
    if name != "SGD":
        assert {type(v) for s in back["state"].values() for v in s.values()} == {torch.Tensor}
    assert back["state"][0].keys() == saved["state"][0].keys()
    a.load_state_dict(back)
    both()


def test_a_checkpoint_of_the_authors_package_continues_here():
    theirs = pytest.importorskip("adabelief_pytorch").AdaBelief
    ps = params((4,), dtype=torch.float64)
    qs = [nn.Parameter(ps[0].detach().clone())]
    a = theirs(ps, print_change_log=False)
    a.step()
    qs[0].data.copy_(ps[0].data)
    b = steepest.AdaBelief(qs)
    b.load_state_dict(a.state_dict())
    for _ in range(8):
        ps[0].grad = torch.randn_like(ps[0])
        qs[0].grad = ps[0].grad.clone()
        a.step()
        b.step()
    assert torch.allclose(ps[0], qs[0], rtol=1e-12)


def saved_and_loaded(made):
    file = io.BytesIO()
    torch.save(made.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("name", steepest.rules)
@pytest.mark.parametrize("way", ["file", "deepcopy", "pickle"])
def test_a_resumed_run_continues_bit_for_bit(name, way):
    ps = params((4, 3), (5,))
    made = steepest.optimizer(name, ps)
    for _ in range(3):
        made.step()
    if way == "file":
        qs = [nn.Parameter(p.detach().clone()) for p in ps]
        other = steepest.optimizer(name, qs)
        other.load_state_dict(saved_and_loaded(made))
    else:
        other = copy.deepcopy(made) if way == "deepcopy" else pickle.loads(pickle.dumps(made))
        qs = other.param_groups[0]["params"]
    for _ in range(3):
        for p, q in zip(ps, qs, strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        made.step()
        other.step()
    assert unchanged(ps, qs)


def test_a_loaded_state_shares_no_memory_with_the_checkpoint():
    ps = params()
    made = steepest.Adam(ps)
    made.step()
    saved = copy.deepcopy(made.state_dict())
    kept = copy.deepcopy(saved)
    made.load_state_dict(saved)
    made.step()
    assert str(saved) == str(kept)


def test_a_loaded_state_keeps_its_dtype():
    p = nn.Parameter(torch.randn(6).bfloat16())
    p.grad = torch.randn(6).bfloat16()
    made = steepest.Adam([p])
    made.step()
    saved = made.state_dict()
    for key in ("exp_avg", "exp_avg_sq"):
        saved["state"][0][key] = torch.full((6,), 0.1234567)
    made.load_state_dict(saved)
    assert made.state[p]["exp_avg"].dtype == torch.float32
    assert torch.equal(made.state[p]["exp_avg"], torch.full((6,), 0.1234567))


def test_a_checkpoint_from_before_an_option_takes_its_default():
    ps = params()
    made = steepest.AdaBound(ps)
    made.step()
    saved = made.state_dict()
    for key in ("gamma", "base_lr", "maximize"):
        del saved["param_groups"][0][key]
    made.load_state_dict(saved)
    made.step()
    assert made.param_groups[0]["gamma"] == 1e-3
    assert made.param_groups[0]["base_lr"] == 1e-3


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda s: s["state"][0].update(exp_avg_var=torch.ones(4, 3)), "has a state 'exp_avg_var'"),
        (lambda s: s["state"][0].update(exp_avg=torch.ones(2)), r"'exp_avg' is .*\(2,\).*\(4, 3\)"),
        (lambda s: s.pop("state"), "expected an optimizer's state_dict"),
        (lambda s: s["param_groups"].append(s["param_groups"][0]), "has 2 groups, expected 1"),
        (lambda s: s["param_groups"][0]["params"].pop(), "parameters, expected"),
    ],
)
def test_a_foreign_checkpoint_is_refused_and_nothing_lost(spoil, message):
    ps = params()
    made = steepest.Adam(ps)
    made.step()
    saved, before = copy.deepcopy(made.state_dict()), str(made.state_dict())
    spoil(saved)
    with pytest.raises(ValueError, match=message):
        made.load_state_dict(saved)
    assert str(made.state_dict()) == before
    with pytest.raises(ValueError, match="list was given"):
        made.load_state_dict([1])


def test_hooks_on_state_dicts():
    made, calls = steepest.Adam(params()), []
    made.register_state_dict_post_hook(lambda o, s: calls.append("save"))
    made.register_load_state_dict_pre_hook(lambda o, s: calls.append("load"))
    made.load_state_dict(made.state_dict())
    assert calls == ["save", "load"]


def test_named_parameters_and_repr():
    model = nn.Linear(2, 2)
    made = steepest.AdamW(model.named_parameters())
    assert made.param_groups[0]["param_names"] == ["weight", "bias"]
    assert repr(made).startswith("AdamW (")


def test_importing_says_nothing_and_warns_of_nothing(capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        steepest.AdaBelief(params(), print_change_log=True).step()
    assert capsys.readouterr() == ("", "")


# what was once found broken


def test_rules_are_traced_under_a_profiler():
    code = "import cProfile; cProfile.run('import steepest')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], with_stack=True):
        steepest.rules["rmsprop"].trace(centered=True, heavy=True)


@pytest.mark.parametrize("shape", [(5,), (3000,)])
@pytest.mark.parametrize("how", ["share_memory_", "data", "resize_"])
def test_states_whose_memory_moved_are_followed(shape, how):
    (p,) = params(shape)
    made = steepest.Adam([p])
    made.step()
    for value in made.state[p].values():
        if how == "data":
            value.data = value.data.clone()
        elif how == "share_memory_":
            value.share_memory_()
        elif value.dim():
            value.resize_(10 * shape[0]).resize_(shape)
    before = made.state[p]["exp_avg"].clone()
    made.step()
    assert float(made.state[p]["step"]) == 2
    assert not torch.equal(made.state[p]["exp_avg"], before)


def test_memory_of_a_parameter_is_not_taken_for_another_of_its_address():
    (p,) = params((100_000,))
    made = steepest.SGD([p])
    made.step()
    address, kept = p.data_ptr(), p.grad
    p.data = p.data.clone()
    others = [torch.zeros(99_000) for _ in range(20)]
    p.data, p.grad = next((x for x in others if x.data_ptr() == address), others[0]), None
    p.grad = kept[:99_000].clone()
    made.step()
    assert torch.equal(p, -1e-3 * p.grad)


def test_a_transposed_parameter_in_the_same_memory_is_followed():
    (p,) = params((4, 4))
    made = steepest.SGD([p], lr=1.0)
    made.step()
    p.data, p.grad = p.data.t(), torch.arange(16.0).reshape(4, 4)
    want = p.detach() - p.grad
    made.step()
    assert torch.equal(p, want)


def test_a_group_that_was_removed_leaves_no_plan():
    a, b = params((3,), (3,))
    made = steepest.Adam([{"params": [a]}, {"params": [b]}])
    made.step()
    made.param_groups.pop()
    made.param_groups[0]["params"].append(b)
    for _ in range(3):
        made.step()
    made.param_groups[0]["params"].pop()
    made.add_param_group({"params": [b]})
    made.step()
    assert float(made.state[b]["step"]) == 5


def test_what_a_hook_makes_of_a_checkpoint_is_loaded():
    ps = params((3,), (3,))
    made = steepest.Adam(ps)
    made.step()
    saved = copy.deepcopy(made.state_dict())

    def swap(_, loaded):
        return {**loaded, "state": {0: loaded["state"][1], 1: loaded["state"][0]}}

    made.register_load_state_dict_pre_hook(swap)
    made.load_state_dict(saved)
    assert torch.equal(made.state[ps[0]]["exp_avg"], saved["state"][1]["exp_avg"])


@pytest.mark.parametrize("backend", ["cpu", "foreach", "eager"])
def test_an_expanded_parameter_is_refused_before_anything_moves(backend):
    a, b = params((3,))[0], nn.Parameter(torch.zeros(1).expand(3))
    b.grad = torch.ones(3)
    made, before = steepest.SGD([a, b], backend=backend), a.detach().clone()
    with pytest.raises(RuntimeError, match="expected one whose elements do not share memory"):
        made.step()
    assert torch.equal(a, before)


def test_an_interrupted_step_does_not_lose_the_state(monkeypatch):
    (p,) = params((3,))
    made = steepest.Adam([p])
    with monkeypatch.context() as patch:
        interrupt = lambda executor: (_ for _ in ()).throw(KeyboardInterrupt)  # noqa: E731
        patch.setattr(Executor, "_store_states", interrupt)
        with pytest.raises(KeyboardInterrupt):
            made.step()
    made.step()
    assert float(made.state[p]["step"]) == 1


def test_a_conjugate_gradient():
    p = nn.Parameter(torch.ones(2, dtype=torch.complex64))
    (p.conj() * torch.tensor([1 + 2j, 3j])).sum().real.backward()
    assert p.grad.is_conj()
    before, step = p.detach().clone(), p.grad.resolve_conj().clone()
    steepest.SGD([p], lr=1.0).step()
    assert torch.allclose(p, before - step)


def test_options_that_are_tensors_may_change_in_place():
    p = nn.Parameter(torch.ones(1))
    p.grad = torch.zeros(1)
    decay = torch.tensor(0.0)
    made = steepest.SGD([p], lr=0.1, weight_decay=decay)
    made.step()
    decay.fill_(1.0)
    made.step()
    assert float(p.detach()) == pytest.approx(0.9)


def test_groups_may_carry_entries_of_others():
    ps = params()
    made = steepest.Adam(
        [{"params": ps, "initial_lr": 0.1, "name": "all", "lr_scale": 0.5}], lr=0.1
    )
    torch.optim.lr_scheduler.StepLR(made, 2, last_epoch=3)
    theirs = torch.optim.Adam(ps)
    torch.optim.lr_scheduler.StepLR(theirs, 2)
    steepest.Adam(theirs.param_groups).step()


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        ({"state": {}, "param_groups": [{}]}, "expected an optimizer's state_dict"),
        ({"state": {0: 5}, "param_groups": [{"params": [0, 1]}]}, "expected a dict"),
        ({"state": {}, "param_groups": [{"params": [0, 1], "lr": -5}]}, "lr=-5.0 was given"),
        ({"state": {}, "param_groups": [{"params": [0, 1], "betas": 7}]}, "betas=7 was given"),
    ],
)
def test_a_malformed_checkpoint_is_refused(saved, message):
    made = steepest.Adam(params())
    before = str(made.state_dict())
    with pytest.raises(ValueError, match=message):
        made.load_state_dict(saved)
    assert str(made.state_dict()) == before
