"""Many processes, compiled programs, and the wrappers that stand around model or optimizer.

Whatever needs two processes runs in one launch of torchrun, `scale/worker.py`; a test here asks
what became of one of its cases. What is compared, and how closely:

- exact: gradients that are small whole numbers, whose mean over the processes has no rounding. Then
  parameters and states of two processes and of one are equal to the bit.
- trained: a network. Two processes sum in another order than one, so gradients differ by some
  units of float32's roundoff, 6e-8, and parameters of size 1 are rounded at every step. 1e-5 is far
  above that, and a thousandth of one step: a forgotten average or a step made twice shows at once.
"""

from __future__ import annotations

import copy
import os
import shutil
import warnings

import filelock
import pytest
import torch
from torch import nn
from torch.distributed.checkpoint import state_dict as dsd

import steepest
from tests.blocks import ROOT, blocks, paste
from tests.scale import checkpoints, launch, worker
from tests.scale.models import BACKENDS, OPTIMIZERS, batch, make, network, train

MODULES = ("parallel", "sharded", "wrappers", "checkpoints")
NAMES = [name for module in MODULES for name in worker.cases(module)]
DOCS = ROOT / "docs" / "scale.md"
COMPILER = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")

pytestmark = [
    # what torch.distributed.checkpoint says in a single process
    pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
]


# two processes


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    """The folder that the one launch has left, whichever of pytest's processes asked first."""
    root = tmp_path_factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):
        root = root.parent
    folder = root / "scale"
    with filelock.FileLock(root / "scale.lock"):
        if not folder.exists():
            (folder / "results").mkdir(parents=True)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "torch.distributed is disabled")
                for name in OPTIMIZERS:
                    for kind in checkpoints.KINDS:
                        checkpoints.one_saves(name, kind, folder)
            code, log = launch.python(
                "-m", *launch.TORCHRUN, "-m", "tests.scale.worker", str(folder), *MODULES,
                cwd=folder,
            )  # fmt: skip
            (folder / "log").write_text(f"exit code {code}\n{log}")
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_two_processes(launched, name):
    for rank in range(2):
        result = launched / "results" / f"{name}.{rank}"
        if not result.exists():
            pytest.fail(
                f"rank {rank} did not end this case; {(launched / 'log').read_text()[-3000:]}"
            )
        if found := result.read_text():
            pytest.fail(f"rank {rank}: {found}")


def test_the_launch_ended_well_and_left_no_process(launched):
    assert (launched / "log").read_text().startswith("exit code 0\n")
    pids = [int(file.read_text()) for file in launched.glob("pid.*")]
    assert len(pids) == 2
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.parametrize("kind", checkpoints.KINDS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_one_process_goes_on_with_what_two_have_saved(launched, name, kind):
    checkpoints.one_loads(name, kind, launched)


@pytest.mark.parametrize("name", checkpoints.STATEFUL)
def test_one_process_takes_the_whole_state_dict_that_two_have_gathered(launched, name):
    checkpoints.one_takes_whole(name, launched)


# torch.distributed.checkpoint makes a state by a step with lr 0 and zero gradients


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "name", [n for n in steepest.__all__ if hasattr(getattr(steepest, n), "family")]
)
def test_making_a_state_for_a_checkpoint_moves_no_parameter(name, backend):
    kind = getattr(steepest, name)
    known = kind.family.arguments
    options = [{}, {"weight_decay": 0.1}, {"weight_decay": 0.1, "fixed_decay": True}]
    for given in (o for o in options if o.keys() <= known.keys()):
        model = nn.Linear(3, 2)
        before = copy.deepcopy(model.state_dict())
        optimizer = kind(model.parameters(), backend=backend, **given)
        groups = copy.deepcopy(optimizer.state_dict()["param_groups"])
        made = dsd.get_optimizer_state_dict(model, optimizer)
        for key, p in model.state_dict().items():
            assert torch.equal(p, before[key]), given
        for state in made["state"].values():
            assert all(torch.isfinite(v).all() for v in state.values())
        assert optimizer.state_dict()["param_groups"] == groups


def test_a_parameter_without_state_is_left_out_and_begins_anew():
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(3, 2), nn.Linear(3, 2)

    model, again = Half(), Half()
    optimizer, resumed = (steepest.AdamW(m.parameters()) for m in (model, again))
    model.used(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    model.zero_grad()
    saved = dsd.get_optimizer_state_dict(model, optimizer)
    dsd.set_optimizer_state_dict(again, resumed, saved, options=dsd.StateDictOptions(strict=False))
    for p in again.parameters():
        p.grad = torch.ones_like(p)
    resumed.step()
    counts = [float(resumed.state[p]["step"]) for p in again.parameters()]
    assert counts == [2, 2, 1, 1]


# shared memory


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_two_processes_step_on_the_same_memory(method, tmp_path):
    code, log = launch.python(
        "-W", "error", "-W", "ignore:.*fork:DeprecationWarning", "-m", "tests.scale.hogwild",
        method, cwd=tmp_path, limit=60,
    )  # fmt: skip
    assert (code, log) == (0, "")


@pytest.mark.parametrize("rule", ["adabelief", "nadam", "momentum"])
def test_a_pickled_optimizer_shares_states_and_counts(rule, tmp_path):
    code, log = launch.python("-W", "error", "-m", "tests.scale.shared_optimizer", rule,
                              cwd=tmp_path, limit=60)  # fmt: skip
    assert (code, log) == (0, "")


# compiled programs


def _compiled(what: str, backend: str, kind=steepest.AdamW) -> list[torch.Tensor]:
    """The parameters after five steps under a schedule, with this much of the program compiled."""
    torch._dynamo.reset()
    model, (x, y) = network(), batch(0)
    optimizer = kind(model.parameters(), lr=0.05)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.3)
    forward = torch.compile(model, backend=backend) if what == "model" else model
    step = torch.compile(optimizer.step, backend=backend) if what == "step" else optimizer.step

    def body():
        optimizer.zero_grad()
        (forward(x) - y).square().mean().backward()
        step()

    run = torch.compile(body, backend=backend) if what == "train step" else body
    for _ in range(5):
        run()
        schedule.step()
    if what == "model":
        assert all(a is b for a, b in zip(forward.parameters(), model.parameters(), strict=True))
        assert all(n.startswith("_orig_mod.") for n, _ in forward.named_parameters())
    assert {float(s["step"]) for s in optimizer.state.values()} == {5}
    return [p.detach() for p in model.parameters()]


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("what", ["model", "train step", "step"])
def test_compiled_programs_step_the_same(what, backend):
    for got, expected in zip(_compiled(what, backend), _compiled("nothing", ""), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch's inductor, of torch
@pytest.mark.skipif(COMPILER is None, reason="torch's inductor needs a C++ compiler, none is here")
def test_a_train_step_compiled_by_inductor_steps_the_same():
    expected = _compiled("nothing", "", torch.optim.AdamW)
    for got, one in zip(_compiled("train step", "inductor"), expected, strict=True):
        torch.testing.assert_close(got, one, rtol=1e-5, atol=1e-6)


def test_a_compiled_step_calls_hooks_and_closure():
    model, (x, y), seen = network(), batch(0), []
    optimizer = steepest.AdamW(model.parameters())
    optimizer.register_step_pre_hook(lambda *_: seen.append("pre"))
    optimizer.register_step_post_hook(lambda *_: seen.append("post"))

    def closure():
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        seen.append("closure")
        return loss

    loss = torch.compile(lambda: optimizer.step(closure), backend="eager")()
    assert float(loss.detach()) > 0
    assert seen == ["pre", "closure", "post"]


# the step inside the backward


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_in_the_backward_equal_the_ordinary_loop(name, backend):
    ordinary, hooked = network(), network()
    train(ordinary, make(name, ordinary.parameters(), backend), range(5))
    own = {p: make(name, [p], backend) for p in hooked.parameters()}

    def step(p):
        own[p].step()
        own[p].zero_grad()

    for p in hooked.parameters():
        p.register_post_accumulate_grad_hook(step)
    for k in range(5):
        x, y = batch(10 * k)
        (hooked(x) - y).square().mean().backward()
        assert all(p.grad is None for p in hooked.parameters())
    for p, q in zip(ordinary.parameters(), hooked.parameters(), strict=True):
        assert torch.equal(p, q)


# accumulation, clipping, and what stands around a model


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_accumulated_and_clipped_steps_are_those_of_the_whole_batch(name):
    whole, parts = network(torch.float64), network(torch.float64)
    a, b = make(name, whole.parameters()), make(name, parts.parameters())
    for step in range(5):
        for model, pieces in ((whole, 1), (parts, 4)):
            model.zero_grad(set_to_none=False)  # as a loop does that keeps its gradients' memory
            x, y = batch(step, torch.float64)
            for u, v in zip(x.chunk(pieces), y.chunk(pieces), strict=True):
                ((model(u) - v).square().mean() / pieces).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        a.step()
        b.step()
    for p, q in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-11)


def _against_torch(body, kind="AdamW", steps=5, **options) -> None:
    """The same loop with ours and with torch's, within float32's rounding of some steps."""
    results = []
    for module in (steepest, torch.optim):
        torch.manual_seed(0)
        model = network()
        made = body(model, lambda ps, m=module: getattr(m, kind)(ps, lr=1e-2, **options), steps)
        results.append([p.detach() for p in (made or model).parameters()])
        assert not all(
            torch.equal(p, q) for p, q in zip(results[-1], network().parameters(), strict=False)
        )
    for p, q in zip(*results, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


def test_functional_call():
    def body(model, maker, steps):
        params = {n: p.detach().clone().requires_grad_() for n, p in model.named_parameters()}
        optimizer = maker(params.values())
        for step in range(steps):
            x, y = batch(step)
            optimizer.zero_grad()
            (torch.func.functional_call(model, params, (x,)) - y).square().mean().backward()
            optimizer.step()
        model.load_state_dict(params)

    _against_torch(body)


def test_gradients_of_torch_func():
    def body(model, maker, steps):
        optimizer, params = maker(model.parameters()), dict(model.named_parameters())

        def loss(values, x, y):
            return (torch.func.functional_call(model, values, (x,)) - y).square().mean()

        for step in range(steps):
            for name, g in torch.func.grad(loss)(params, *batch(step)).items():
                params[name].grad = g.detach()
            optimizer.step()

    _against_torch(body)


def test_parametrized_weights():
    def body(model, maker, steps):
        nn.utils.parametrizations.weight_norm(model[0])
        nn.utils.parametrizations.orthogonal(model[3])
        optimizer = maker(model.parameters())
        train(model, optimizer, range(steps))
        assert len(optimizer.state) == len(list(model.parameters())) == 9
        nn.utils.parametrize.remove_parametrizations(model[0], "weight")
        nn.utils.parametrize.remove_parametrizations(model[3], "weight")

    _against_torch(body)


@pytest.mark.parametrize("average", ["equal", "exponential"])
def test_averaged_models(average):
    from torch.optim import swa_utils

    def body(model, maker, steps):
        optimizer = maker(model.parameters())
        how = {} if average == "equal" else {"multi_avg_fn": swa_utils.get_ema_multi_avg_fn(0.9)}
        averaged = swa_utils.AveragedModel(model, **how)
        schedule = swa_utils.SWALR(optimizer, swa_lr=0.005, anneal_epochs=2)
        for step in range(steps):
            train(model, optimizer, range(step, step + 1))
            averaged.update_parameters(model)
            schedule.step()
        return averaged

    _against_torch(body)


def test_autocast_with_a_scaler_skips_an_overflow():
    def body(model, maker, steps):
        optimizer, scaler = maker(model.parameters()), torch.amp.GradScaler("cpu", init_scale=8.0)
        for step in range(steps):
            x, y = batch(step)
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = (model(x).float() - y).square().mean()
            scaler.scale(loss).backward()
            if step == 2:
                model[0].weight.grad[0, 0] = float("inf")
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            before = [p.detach().clone() for p in model.parameters()]
            scaler.step(optimizer)
            scaler.update()
            stood = all(map(torch.equal, before, model.parameters()))
            assert stood == (step == 2)
        assert scaler.get_scale() == 4.0

    _against_torch(body)


# the page


BLOCKS = blocks("docs/scale.md")
SCRIPTS = {b.split()[1]: b for b in BLOCKS if b.startswith("# ")}


@pytest.mark.parametrize("block", [b for b in BLOCKS if b not in SCRIPTS.values()])
def test_a_block_of_the_page_runs(block):
    paste(block, str(DOCS))


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_of_the_page_runs(name, tmp_path):
    (tmp_path / name).write_text(SCRIPTS[name])
    how = (
        ["-m", *launch.TORCHRUN]
        if f"torchrun --nproc-per-node 2 {name}" in DOCS.read_text()
        else []
    )
    code, log = launch.python(*how, name, cwd=tmp_path, limit=60)
    assert code == 0, log
    assert "Error" not in log
