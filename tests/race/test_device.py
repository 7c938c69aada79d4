"""Races with `--device`: the plan keeps it, clocks wait for it, and the numbers stay the same."""

import types
from dataclasses import replace

import pytest
import torch

from steepest import tasks
from steepest.errors import BadCall
from steepest.race import driver, measured, planning, protocol, report, trials
from steepest.race.protocol import FRESH, Plan, Trial
from steepest.race.request import Request
from steepest.race.store import Store
from steepest.race.summary import reproduce, summarise
from steepest.tasks import devices, randomness
from steepest.training import pairing
from steepest.training.randomness import OwnRandomness
from tests.race.invented import DIGITS, PROVENANCE, pairs

ASKED = Request("digits", "adamw,momentum", trials=2, seeds=5, steps=20)


@pytest.fixture
def gpu(monkeypatch):
    """A machine with a CUDA device on which nothing is run; its random state is a list."""
    state = [torch.zeros(1)]
    module = types.SimpleNamespace(
        get_rng_state=lambda: state[0].clone(),
        set_rng_state=lambda new: state.__setitem__(0, new.clone()),
        get_device_name=lambda device: f"the fastest {device}",
    )
    generator = torch.Generator
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setattr(torch, "get_device_module", lambda device: module)
    monkeypatch.setattr(torch, "Generator", lambda device="cpu": generator())
    return state


@pytest.mark.parametrize("name", tasks.TASKS)
def test_the_numbers_are_the_same_with_device_cpu(name):
    untimed = {"seconds": [], "step_seconds": 0, "train_seconds": 0, "wall_seconds": 0}
    untimed["warm_seconds"] = 0
    trial = Trial(name, FRESH, "adam", 0, 7, 8, {"lr": 1e-2})
    plain, asked = (trials.run(replace(trial, device=device)) for device in (None, "cpu"))
    assert replace(asked, **untimed) == replace(plain, **untimed)
    assert plain.validation
    assert not plain.diverged


@pytest.mark.usefixtures("gpu")
def test_plan_trials_summary_and_command_have_the_device():
    plan = planning.make_plan(replace(ASKED, device="cuda:1"), 1, None, 0.0)
    drawn = protocol.tuning(plan)
    chosen = {entry: [drawn[0]] * plan.seeds for entry in plan.entries}
    assert {trial.device for trial in (*drawn, *protocol.fresh(plan, chosen))} == {"cuda:1"}
    assert {trial.device for trial in planning._pilot_trials(plan, ["adamw"], 2)} == {"cuda:1"}
    summary = summarise(DIGITS, plan, pairs(plan), PROVENANCE)
    assert summary["plan"]["device"] == "cuda:1"
    assert " --device cuda:1 " in summary["reproduce"]
    assert "one thread, with the model on cuda:1;" in report.page(summary)
    made = driver.provenance(replace(ASKED, device="cuda:1"))
    assert made["machine"]["device"] == "the fastest cuda:1"
    assert "--device cuda:1" in made["command"]


def test_a_race_without_a_device_is_as_before():
    plan = planning.make_plan(ASKED, 1, None, 0.0)
    assert "--device" not in reproduce(plan)
    assert "device" not in driver.provenance(ASKED)["machine"]
    old = {k: v for k, v in plan.record().items() if k != "device"}
    assert Plan(**{**old, "entries": plan.entries}) == plan
    assert Trial("digits", FRESH, "adam", 0, 7, 8, {}, None).device is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"device": "tpu"}, "--device 'tpu' is no device of torch"),
        ({"device": "cuda:9"}, "--device cuda:9: torch finds no such device"),
        ({"device": "cpu"}, None),
    ],
)
def test_a_wrong_device_is_refused_before_anything_runs(changes, said):
    request = replace(ASKED, **changes)
    if said is None:
        request.check()
        return
    with pytest.raises(BadCall, match=said):
        request.check()


@pytest.mark.parametrize(("began", "other"), [("cuda", "cpu"), (None, "cpu"), ("cpu", "cuda:1")])
@pytest.mark.usefixtures("gpu")
def test_resume_on_another_device_is_refused(began, other, tmp_path, monkeypatch):
    asked = replace(ASKED, device=began)
    plan = planning.make_plan(asked, 1, None, 0.0)
    Store.create(tmp_path, plan, driver.provenance(asked))
    monkeypatch.setattr(driver, "_run", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    how = f"with {began}" if began else "without --device"
    with pytest.raises(BadCall, match=f"--resume with --device {other}: .* started {how};"):
        driver.race(replace(ASKED, device=other), tmp_path, jobs=1, resume=True)
    assert driver.race(Request("digits"), tmp_path, jobs=1, resume=True)[1]


@pytest.mark.usefixtures("gpu")
def test_a_race_cannot_go_on_where_its_device_is_missing(tmp_path, monkeypatch, capsys):
    asked = replace(ASKED, device="cuda")
    Store.create(tmp_path, planning.make_plan(asked, 1, None, 0.0), driver.provenance(asked))
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    with pytest.raises(BadCall, match="--device cuda: torch finds no such device"):
        driver.race(Request("digits"), tmp_path, jobs=1, resume=True)


def test_waiting_is_for_an_accelerator_only(monkeypatch):
    waited = []
    monkeypatch.setattr(torch.accelerator, "synchronize", waited.append)
    measured.synchronizer([torch.ones(1)])()
    assert waited == []
    measured.synchronizer([torch.ones(1), torch.ones(1, device="meta")])()
    assert waited == [torch.device("meta")]


@pytest.mark.parametrize("closure", [False, True])
def test_the_clock_waits_for_work_that_is_still_going_on(closure, monkeypatch):
    """A device that works while the program goes on: 7 s for a gradient, 2 s for a step."""
    now, left = [0.0], [0.0]

    def wait():
        now[0] += left[0]
        left[0] = 0.0

    def gradient():
        left[0] += 7.0
        return torch.tensor(1.0)

    class Slow(torch.optim.SGD):
        def step(self, closure=None):
            if closure:
                closure()
            left[0] += 2.0

    def train(make, report, seed, steps):
        optimizer = make([torch.nn.Parameter(torch.ones(1))])
        for step in range(1, steps + 1):
            optimizer.step(gradient) if closure else (gradient(), optimizer.step())
            report(step, validation=1.0)

    monkeypatch.setattr(measured, "perf_counter", lambda: now[0])
    monkeypatch.setattr(measured, "synchronizer", lambda parameters: wait)
    monkeypatch.setattr(
        measured.Recipe, "optimizer", lambda self, params, hyper, seed: Slow(params, lr=0.1)
    )
    task = replace(tasks.get("digits"), build=None, train=train, proportion=False)
    result = measured.measure(Trial("digits", FRESH, "sgd", 0, 1, 4, {}), task, None)
    assert result.step_seconds == 2.0
    assert result.train_seconds == 9.0
    assert result.seconds == [9.0, 18.0, 27.0, 36.0]


def test_draws_of_an_optimizer_leave_the_state_of_the_device(gpu):
    class Draws(torch.optim.SGD):
        pass

    optimizer = Draws([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    own = OwnRandomness(optimizer, 5, "cuda:1")
    for turn in range(2):
        with own.active():
            inside = gpu[0].clone()
            gpu[0] = torch.full((1,), float(turn + 1))  # as a draw changes it
        assert torch.equal(gpu[0], torch.zeros(1))
    assert torch.equal(inside, torch.ones(1))  # of the second turn: it goes on from the first
    before = pairing.states(device="cuda")
    gpu[0] = torch.ones(1)
    assert pairing.states(device="cuda") != before
    assert pairing.states() == pairing.states(device="cpu")
    with randomness.put_back("cuda"):
        gpu[0] = torch.full((1,), 9.0)
    assert torch.equal(gpu[0], torch.ones(1))


IGNORES = """
import torch
from torch import nn
from torch.utils.data import DataLoader
MINIMIZE = "loss"

def task(seed, device):
    loss = lambda model, batch: model(batch).square().mean()
    return nn.Linear(2, 1), loss, DataLoader(torch.ones(8, 2), batch_size=4), lambda model: 1.0
"""


def test_a_model_that_is_not_on_the_device_is_refused(gpu, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(IGNORES)
    trial = Trial(str(path), FRESH, "sgd", 0, 1, 4, {}, device="cuda")
    said = "--device cuda, but a parameter of the model is on cpu: put the whole model on"
    with pytest.raises(BadCall, match=said):
        measured.measure(trial, tasks.get(str(path), device="cuda"), None)
    trials.run(replace(trial, device="cpu"))
    trials.run(replace(trial, device="cpu:0"))


def test_the_device_of_an_index_becomes_the_current_one(gpu, monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.accelerator, "set_device_index", chosen.append)
    task = tasks.get("digits")
    for device in ("cuda:1", "cuda", "cpu", None):
        with pytest.raises(BadCall) if device and "cuda" in device else _nothing():
            measured.measure(Trial("digits", FRESH, "sgd", 0, 1, 4, {}, None, device), task, None)
    assert chosen == [1]


def _nothing():
    from contextlib import nullcontext

    return nullcontext()


def test_a_name_is_shown_where_the_device_has_one(gpu):
    assert devices.title("cuda") == "the fastest cuda"
