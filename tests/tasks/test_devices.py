"""`--device`: which devices are known, and that all tensors of a task are on it."""

import numpy as np
import pytest
import torch

from steepest import tasks
from steepest.errors import BadCall
from steepest.tasks import devices


@pytest.fixture
def two_gpus(monkeypatch):
    """A machine on which torch finds two CUDA devices."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)


@pytest.fixture
def on_meta(monkeypatch):
    """Lets a task run on the device "meta", whose tensors have no numbers: all look like 0.

    Operations refuse to mix it with tensors on the CPU, as they do with an accelerator. Yields the
    devices of the tensors whose numbers were asked for.
    """
    asked = []

    def instead(name, answer):
        real = getattr(torch.Tensor, name)

        def method(tensor):
            asked.append(tensor.device.type)
            return answer(tensor) if tensor.is_meta else real(tensor)

        monkeypatch.setattr(torch.Tensor, name, method)

    monkeypatch.setattr(devices, "found", torch.device)
    instead("item", lambda tensor: 0.0)
    instead("__bool__", lambda tensor: True)
    instead("cpu", lambda tensor: torch.zeros(tensor.shape, dtype=tensor.dtype))
    return asked


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("cpu", None),
        ("cpu:0", None),
        ("cpu:1", "--device cpu:1: torch finds no such device on this machine: expected one of c"),
        ("meta", "--device meta: torch finds no such device"),
        ("gpu", "--device 'gpu' is no device of torch: expected one of cpu"),
        ("", "--device '' is no device of torch"),
        ("Größe", "--device 'Größe' is no device of torch"),
        ("cuda:-1", "--device 'cuda:-1' is no device of torch"),
        ("cuda:x", "--device 'cuda:x' is no device of torch"),
    ],
)
def test_a_device_is_found_or_refused_in_one_line(name, said):
    if said is None:
        assert devices.found(name).type == "cpu"
        return
    with pytest.raises(BadCall, match=said) as error:
        devices.found(name)
    assert "\n" not in str(error.value)


def test_a_device_that_this_machine_lacks_is_refused(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    with pytest.raises(BadCall, match=r"--device cuda: torch finds no such device .* of cpu;"):
        tasks.get("digits", device="cuda")


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    ("name", "known"), [("cuda", True), ("cuda:1", True), ("cuda:2", False), ("mps", False)]
)
def test_devices_of_an_accelerator_are_counted(name, known):
    if known:
        assert devices.found(name) == torch.device(name)
        return
    with pytest.raises(BadCall, match=f"--device {name}: .*one of cpu, cuda, cuda:0, cuda:1; a b"):
        devices.found(name)


@pytest.mark.parametrize("name", [n for n, task in tasks.TASKS.items() if task.build])
def test_all_tensors_of_a_bundled_setup_are_on_the_device(name, on_meta):
    task = tasks.get(name, device="meta")
    setup = task.build(0, **dict.fromkeys(task.switches, 0.5))
    model, batch = setup.model, next(iter(setup.batches))
    tensors = [*model.parameters(), *model.buffers()]
    tensors += setup.samples.data if setup.samples else []
    tensors += [batch] if isinstance(batch, torch.Tensor) else batch
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = setup.loss(model, batch)
    loss.backward()
    optimizer.step()
    tensors += [loss, *(p.grad for p in model.parameters())]
    if setup.residuals:
        tensors.append(setup.residuals(model, batch))
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    for split in ("validation", "test"):
        setup.evaluate(model.eval(), split)
    assert set(on_meta) == {"meta"}


@pytest.mark.parametrize("name", [n for n, task in tasks.TASKS.items() if task.train])
def test_all_tensors_of_a_bundled_loop_are_on_the_device(name, on_meta):
    made, reports = [], []

    class Still(torch.optim.SGD):
        def step(self):
            """ "meta" cannot step by sparse gradients."""

    def make(model):
        made.extend(model.parameters())
        return Still(model.parameters(), lr=0.1)

    tasks.get(name, device="meta").train(make, lambda step, **m: reports.append(step), 0, 2)
    assert {parameter.device.type for parameter in made} == {"meta"}
    assert all(parameter.grad.device.type == "meta" for parameter in made)
    assert reports == [2]
    assert set(on_meta) >= {"meta"}


@pytest.mark.parametrize("name", ["digits", "diabetes", "text"])
def test_the_initial_weights_are_those_of_the_cpu(name):
    plain, asked = tasks.get(name).build(7), tasks.get(name, device="cpu").build(7)
    for here, there in zip(plain.model.parameters(), asked.model.parameters(), strict=True):
        assert torch.equal(here, there)


def test_a_share_of_right_answers_is_the_quotient_of_two_counts():
    setup = tasks.get("digits").build(3)
    images, labels = tasks.images.digits()["test"]
    right = (setup.model(images).argmax(1) == labels).numpy()
    assert setup.evaluate(setup.model, "test") == np.mean(right)


MINE = """
import torch
from torch import nn
from torch.utils.data import DataLoader
MINIMIZE = "loss"
SEEN = []

def task({signature}):
    SEEN.append(locals().get("device"))
    model = nn.Linear(2, 1)
    loss = lambda model, batch: model(batch).square().mean()
    return model, loss, DataLoader(torch.ones(8, 2), batch_size=4), lambda model: 1.0
"""
LOOP = """
MINIMIZE = "loss"
SEEN = []

def train({signature}):
    SEEN.append(locals().get("device"))
"""


def seen(path, device):
    task = tasks.get(str(path), device=device)
    if task.build:
        task.build(0)
    else:
        task.train(None, None, 0, 1)
    return tasks.user_file.module_of(path).SEEN[-1]


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    ("source", "before"), [(MINE, "seed"), (LOOP, "make_optimizer, report, seed")]
)
def test_a_function_of_a_file_gets_the_device(source, before, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(source.format(signature=f"{before}, device"))
    assert seen(path, None) == torch.device("cpu")
    assert seen(path, "cpu") == torch.device("cpu")
    assert seen(path, "cuda:1") == torch.device("cuda:1")
    path.write_text(source.format(signature=f"{before}, device='mine'"))
    assert seen(path, None) == "mine"  # as before there was --device
    assert seen(path, "cuda") == torch.device("cuda")
    path.write_text(source.format(signature=f"{before}, *, device=None"))
    assert seen(path, "cuda") == torch.device("cuda")


@pytest.mark.parametrize(
    ("source", "before", "form"),
    [
        (MINE, "seed", r"task\(seed, device\)"),
        (LOOP, "make_optimizer, report, seed", r"train\(make_optimizer, report, seed, device\)"),
    ],
)
def test_a_file_without_the_parameter_is_refused(source, before, form, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(source.format(signature=before))
    assert seen(path, None) is None
    with pytest.raises(BadCall, match=f"--device cpu: mine takes no device: .*{form}"):
        tasks.get(str(path), device="cpu")
