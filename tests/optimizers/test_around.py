"""What people do around an optimizer: torch.compile, profilers, hooks, graphs, torch's state."""

import copy
import inspect
import os
import pickle

import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

import steepest
import steepest.full_batch


def param():
    p = nn.Parameter(torch.linspace(-1, 1, 5))
    p.grad = torch.linspace(2, -1, 5)
    return p


def torchs(name, steps, **options):
    p = param()
    made = getattr(torch.optim, name)([p], **options)
    for _ in range(steps):
        made.step()
    return made, p.detach()


# inside torch.compile


def compiled(function):
    torch._dynamo.reset()
    return torch.compile(function, backend="eager")


def test_an_optimizer_made_in_a_compiled_function_is_whole():
    p = param()

    def train(x):
        made = steepest.AdamW([p], lr=0.1)
        made.step()
        return made, x + 1

    made, _ = compiled(train)(torch.ones(1))
    made.step()
    torch.testing.assert_close(p.detach(), torchs("AdamW", 2, lr=0.1)[1])


COPIES = {
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "pickle": lambda made: pickle.loads(pickle.dumps(made)),
}


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.filterwarnings("ignore:Dynamo does not know how to trace:UserWarning")
def test_an_optimizer_copied_in_a_compiled_function_is_whole(way):
    made = steepest.AdamW([param()], lr=0.1)
    made.step()
    again, _ = compiled(lambda x: (COPIES[way](made), x + 1))(torch.ones(1))
    (q,) = again.param_groups[0]["params"]
    q.grad = param().grad
    again.step()
    torch.testing.assert_close(q.detach(), torchs("AdamW", 2, lr=0.1)[1])


@pytest.mark.parametrize("kind", ["SAM", "Lookahead", "AdamWScheduleFree", "Muon", "BFGS"])
def test_other_kinds_made_and_copied_in_a_compiled_function_are_whole(kind):
    def make(p):
        if kind in ("SAM", "Lookahead"):
            return getattr(steepest, kind)(steepest.SGD([p], lr=0.1))
        return getattr(steepest if kind != "BFGS" else steepest.full_batch, kind)([p], lr=0.1)

    def result(wrap):
        p = nn.Parameter(torch.linspace(-1, 1, 4).reshape(2, 2))
        made, _ = wrap(lambda x: (make(p), x + 1))(torch.ones(1))
        made, _ = wrap(lambda x: (copy.deepcopy(made), x + 1))(torch.ones(1))
        (q,) = made.param_groups[0]["params"]

        def closure():
            made.zero_grad()
            loss = (q**4).sum()
            if kind != "BFGS":  # which takes gradients itself
                loss.backward()
            return loss

        made.step(closure)
        made.step(closure)
        return q.detach()

    assert torch.equal(result(compiled), result(lambda function: function))


# torch's own state


@pytest.mark.parametrize("name", ["AdamW", "SGD", "Adagrad", "NAdam", "Rprop", "ASGD", "RMSprop"])
@pytest.mark.parametrize("fresh", [True, False])
def test_state_of_torchs_class_put_into_ours(name, fresh):
    theirs, _ = torchs(name, 2, lr=0.1)
    kind = getattr(steepest, name)
    ours = kind.__new__(kind) if fresh else kind([param()], lr=0.5, backend="foreach")
    ours.__setstate__(pickle.loads(pickle.dumps(theirs.__getstate__())))
    assert ours.backend == (None if fresh else "foreach")
    (q,) = ours.param_groups[0]["params"]
    q.grad = param().grad
    ours.step()
    torch.testing.assert_close(q.detach(), torchs(name, 3, lr=0.1)[1])
    assert ours.param_groups[0].keys() >= ours.family.arguments.keys()
    assert repr(ours).startswith(f"{name} (")
    again = copy.deepcopy(ours)
    again.add_param_group({"params": [param()]})
    again.step()


# hooks


def calls(kind, *given, **named):
    made, seen = kind([param()], lr=0.1), []
    hook = lambda optimizer, args, kwargs: seen.append((args[1:], dict(kwargs)))  # noqa: E731
    made.register_step_pre_hook(hook)
    made.register_step_post_hook(hook)
    everywhere = register_optimizer_step_post_hook(hook)
    made.step(*given, **named)
    everywhere.remove()
    return seen


@pytest.mark.parametrize("kind", ["AdamW", "AdamWScheduleFree", "Lookahead", "SAM"])
def test_hooks_get_the_arguments_as_they_were_given(kind):
    def made(params, **options):
        inner = steepest.AdamW if kind in ("Lookahead", "SAM") else getattr(steepest, kind)
        inner = inner(params, **options)
        return getattr(steepest, kind)(inner) if kind in ("Lookahead", "SAM") else inner

    def closure():
        return torch.tensor(1.0)

    for given, named in (((), {}), ((closure,), {}), ((), {"closure": closure}), ((None,), {})):
        if kind == "SAM" and closure not in (*given, *named.values()):
            continue  # it takes two gradients
        expected = calls(torch.optim.AdamW, *given, **named)
        seen = calls(made, *given, **named)
        assert [x for x in seen if x == expected[0]][:3] == expected


def test_a_hook_may_change_the_arguments():
    made, losses = steepest.SGD([param()]), []

    def closure():
        losses.append(1)
        return torch.tensor(7.0)

    made.register_step_pre_hook(lambda optimizer, args, kwargs: (args, {"closure": closure}))
    assert made.step() == 7
    assert losses == [1]


def test_the_step_shows_its_argument():
    for kind in (steepest.AdamW, steepest.AdamWScheduleFree):
        assert [*inspect.signature(kind.step).parameters] == ["self", "closure"]
        assert "closure's loss" in (kind.step.__doc__ or "")
    with pytest.raises(TypeError, match=r"step\(\) .*argument 'loss'"):
        steepest.SGD([param()]).step(loss=1)


# profilers


def test_a_first_step_is_profiled_with_its_stack():
    @steepest.rule
    def never_traced(p, g, *, lr=1e-3):
        step = lr * g
        return p - step

    made = steepest.optimizer(never_traced, [param()], backend="foreach")
    cpu = torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[cpu], with_stack=True) as seen:
        made.step()
        torch.ones(3) + 1
    names = [event.key for event in seen.key_averages(group_by_stack_n=5)]
    assert any("Optimizer.step#" in name for name in names)
    assert "aten::add" in names  # after the trace, too


def test_variables_are_named_under_a_profiler_too():
    import sys

    @steepest.rule
    def labelled(p, g, m, *, lr=1e-3, beta=0.9):
        averaged = beta * m + (1 - beta) * g
        shifted = averaged + 1
        return p - lr * shifted, averaged

    seen = []
    watch = lambda frame, event, _: seen.append(event)  # noqa: E731
    sys.setprofile(watch)
    try:
        program = labelled.trace()
        assert sys.getprofile() is watch
    finally:
        sys.setprofile(None)
    assert {node.label for node in program.body} >= {"averaged", "shifted"}


# CUDA graphs


@pytest.mark.parametrize("name", ["cuda", "xpu"])
def test_a_step_under_capture_is_refused(name, monkeypatch):
    p, module = param(), getattr(torch, name)
    for made in (
        steepest.AdamW([p], capturable=True),
        steepest.Lookahead(steepest.SGD([p])),
        steepest.AdamWScheduleFree([p]),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(module, "is_initialized", lambda: True)
            patch.setattr(module, "is_current_stream_capturing", lambda: True)
            with pytest.raises(RuntimeError, match=r"during the capture of a graph.*after the cap"):
                made.step()
            assert torch.equal(p.detach(), param().detach())
            patch.setattr(module, "is_current_stream_capturing", lambda: False)
            made.step()
        assert not torch.equal(p.detach(), param().detach())
        p.data.copy_(param().detach())


def test_without_a_gpu_nothing_is_asked_of_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: 1 / 0)
    steepest.AdamW([param()]).step()


# a step inside the backward


def test_a_parameter_of_two_modules_steps_once_per_backward():
    # torch calls the hook once, after both shares have been added up
    def train(library):
        torch.manual_seed(0)
        first, second = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
        second.weight = first.weight
        model, steps = nn.Sequential(first, nn.Tanh(), second), []
        made = {p: library.AdamW([p], lr=0.1) for p in model.parameters()}

        def step(p):
            steps.append(p)
            made[p].step()
            made[p].zero_grad()

        for p in model.parameters():
            p.register_post_accumulate_grad_hook(step)
        for _ in range(3):
            model(torch.ones(2, 3)).square().sum().backward()
        assert len(steps) == 3
        assert first.weight.grad is None
        return first.weight.detach()

    torch.testing.assert_close(train(steepest), train(torch.optim))


# shared memory


def _hogwild(library, steps, **options):
    """One step in a forked child, then `steps` in this process, on the same memory."""
    ps = [nn.Parameter(torch.linspace(-1, 1, n)).share_memory_() for n in (5, 3)]
    made = library.Adagrad(ps, lr=0.1, **options)
    made.share_memory()
    for p in ps:
        p.grad = torch.linspace(2, -1, p.numel())
    assert all(made.state[p]["sum"].is_shared() for p in ps)

    child = torch.multiprocessing.get_context("fork").Process(target=made.step, daemon=True)
    child.start()
    child.join(60)
    assert child.exitcode == 0
    for _ in range(steps):
        made.step()
    return [p.detach() for p in ps], [made.state[p]["sum"] for p in ps]


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("start", [0.0, 0.5])
def test_adagrad_shares_its_states_before_the_first_step(start):
    ours = _hogwild(steepest, 2, initial_accumulator_value=start)
    theirs = _hogwild(torch.optim, 2, initial_accumulator_value=start)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64, torch.float64])
@pytest.mark.parametrize("before", [0, 1])
def test_sharing_changes_no_step(dtype, before):
    def result(share):
        a, b = (nn.Parameter(torch.linspace(-1, 1, n).to(dtype)) for n in (5, 3))
        made = steepest.Adagrad([a], lr=0.1, initial_accumulator_value=0.5, lr_decay=0.1)
        for k in range(3):
            if share and k == before:
                made.share_memory()
            if k == 1:  # without a state yet
                made.add_param_group({"params": [b]})
            for p in (a, b):
                p.grad = torch.linspace(2, -1, p.numel()).to(dtype)
            made.step()
        return [a, b, *(v for p in (a, b) for v in made.state[p].values())]

    for one, other in zip(result(True), result(False), strict=True):
        assert torch.equal(one, other)


# other default devices


@pytest.mark.parametrize("device", ["meta", "cpu"])
@pytest.mark.parametrize("name", ["AdamW", "SGD", "RMSprop", "Rprop", "Adadelta", "Adagrad"])
def test_a_default_device_is_of_no_account_for_what_is_made_already(device, name):
    p = param()
    with torch.device(device):
        made = getattr(steepest, name)([p], lr=0.1)
        made.step()
        made.load_state_dict(made.state_dict())
        made.step()
    torch.testing.assert_close(p.detach(), torchs(name, 2, lr=0.1)[1])


@pytest.mark.parametrize("name", ["AdamW", "SGD", "Adagrad", "AdaBelief", "NAdam", "Lion"])
def test_a_model_on_the_meta_device_is_stepped(name):
    with torch.device("meta"):
        model = nn.Linear(4, 3)
        made = getattr(steepest, name)(model.parameters(), lr=0.1)
        for _ in range(2):
            made.zero_grad()
            model(torch.ones(2, 4)).sum().backward()
            made.step()
    for p in model.parameters():
        sized = [v for v in made.state[p].values() if v.dim()]
        assert {(v.shape, v.device.type) for v in sized} <= {(p.shape, "meta")}
    assert {float(s["step"]) for s in made.state.values() if "step" in s} <= {2.0}


@pytest.mark.parametrize(
    "name", ["AdamW", "SGD", "Adagrad", "AdaBelief", "NAdam", "AdamWScheduleFree", "Muon", "ASGD"]
)
def test_fake_tensors_are_stepped(name):
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        model = nn.Linear(4, 3)
        made = getattr(steepest, name)(model.parameters(), lr=0.1)
        for _ in range(2):
            made.zero_grad()
            model(torch.ones(2, 4)).sum().backward()
            made.step()
        for p in model.parameters():  # a memory estimate sees what a real run has
            real = nn.Parameter(torch.empty(p.shape, device="meta"))
            real.grad = torch.empty_like(real)
            like = getattr(steepest, name)([real], lr=0.1)
            like.step()
            expected = {n: (v.shape, v.dtype) for n, v in like.state[real].items()}
            assert {n: (v.shape, v.dtype) for n, v in made.state[p].items()} == expected
