"""The bundled tasks of a race, and those on the user's data."""

import gzip
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import linalg
from torch import nn

from steepest import cli, tasks
from steepest.errors import BadCall
from steepest.race import driver, trials
from steepest.race.protocol import FRESH, Trial
from steepest.tasks import gan, images, tables, text
from tests.race.invented import InProcess


def trial(name, entry="momentum", steps=8, lr=0.05, data=None):
    return Trial(name, FRESH, entry, 0, 7, steps, {"lr": lr}, data)


# --- bundled


@pytest.mark.parametrize("name", tasks.TASKS)
def test_a_bundled_task_learns_and_the_seed_decides(name):
    task = tasks.TASKS[name]
    steps = {"digits-gan": 200, "text": 80}.get(name, 60)
    result = trials.run(trial(name, entry="adamw", steps=steps, lr=5e-3))
    again = trials.run(trial(name, entry="adamw", steps=steps, lr=5e-3))
    assert result.diverged is None
    assert (result.validation, result.test) == (again.validation, again.test)
    assert result.initial == again.initial
    assert result.tested
    assert task.better(result.validation[-1], result.validation[0])
    assert task.better(result.validation[-1], task.worst)
    assert len(task.data_hash()) == 64
    other = trials.run(replace(trial(name, entry="adamw", steps=1), seed=8))
    assert other.initial != result.initial


@pytest.mark.parametrize("entry", ["adamw", "momentum"])
def test_the_target_of_digits_is_within_reach_of_its_steps(entry):
    task = tasks.TASKS["digits"]
    rate = {"adamw": 5e-3, "momentum": 0.05}[entry]
    result = trials.run(trial("digits", entry=entry, steps=task.steps, lr=rate))
    assert result.validation[0] < task.target <= result.validation[-1]


def test_diabetes_is_standardised_by_its_training_part():
    data = tables.diabetes()
    assert [len(data[part][1]) for part in ("train", "validation", "test")] == [222, 110, 110]
    for values in data["train"]:
        assert torch.allclose(values.mean(0), torch.zeros(()), atol=1e-5)
        assert torch.allclose(values.std(0, correction=0), torch.ones(()), atol=1e-5)


def test_a_text_is_split_without_overlap_and_hashed():
    found = text.encode("abcdefghij" * 40)
    parts = [found.splits[name] for name in ("train", "validation", "test")]
    assert [len(p) for p in parts] == [360, 20, 20]
    assert "".join("abcdefghij"[i] for p in parts for i in p) == "abcdefghij" * 40
    assert found.characters == 10
    assert found.sha256 == text.encode("abcdefghij" * 40).sha256 != text.encode("a" * 400).sha256


def test_bits_per_character_of_a_model_that_knows_nothing():
    setup = tasks.TASKS["text"].build(0)
    for parameter in setup.model.parameters():
        nn.init.zeros_(parameter)
    bits = setup.evaluate(setup.model, "test")
    assert bits == pytest.approx(math.log2(text.topics().characters), rel=1e-5)


def test_the_frechet_distance_is_the_one_with_a_matrix_root():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(200, 5)), 2 + rng.normal(size=(300, 5)) @ rng.normal(size=(5, 5))
    first, second = np.cov(a.T), np.cov(b.T)
    root = np.asarray(linalg.sqrtm(first @ second)).real
    oracle = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(first + second - 2 * root)
    assert gan.frechet(a, b) == pytest.approx(oracle)
    assert gan.frechet(a, a) == pytest.approx(0, abs=1e-9)


def test_the_judge_knows_digits_from_noise_and_counts_modes():
    pixels, labels = images.digits()["test"]
    assert (gan.judge()(pixels).argmax(1) == labels).float().mean() > 0.9
    real, modes = gan.judged(pixels.flatten(1), "validation")
    noise, _ = gan.judged(torch.rand(597, 64), "validation")
    assert 0 < real < noise / 10
    assert modes == 1
    assert gan.judged(pixels[labels == 3].flatten(1), "validation")[1] <= 0.2
    assert math.isnan(gan.judged(torch.full((9, 64), math.nan), "test")[0])


# --- on the user's data


def write_idx(path, array, kind=8):
    head = bytes([0, 0, kind, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    raw = head + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)


@pytest.fixture
def idx(tmp_path, monkeypatch):
    """A folder with a small Fashion-MNIST in which the class is the brightness."""
    monkeypatch.setattr(images, "IDX_VALIDATION", 100)
    rng = np.random.default_rng(0)
    folder = tmp_path / "data"
    folder.mkdir()
    for part, count, end in (("train", 400, ".gz"), ("t10k", 100, "")):
        labels = rng.integers(0, 10, count)
        pixels = 25 * labels[:, None, None] + rng.integers(0, 20, (count, 28, 28))
        write_idx(folder / f"{part}-images-idx3-ubyte{end}", pixels)
        write_idx(folder / f"{part}-labels-idx1-ubyte{end}", labels)
    tasks._make_data_task.cache_clear()
    yield folder
    tasks._make_data_task.cache_clear()


def test_a_task_on_published_files(idx):
    task = tasks.get("fashion-mnist", str(idx))
    assert task.test_size == 100
    setup = task.build(0)
    pixels, labels = next(iter(setup.batches))
    assert pixels.shape == (64, 1, 28, 28)
    assert 0 <= pixels.min() < pixels.max() <= 1
    assert torch.allclose((pixels.mean(dim=(1, 2, 3)) * 255 - 9.5) / 25, labels.float(), atol=0.1)
    assert 90_000 < sum(p.numel() for p in setup.model.parameters()) < 110_000
    digest = task.data_hash()
    raw = gzip.decompress((idx / "train-labels-idx1-ubyte.gz").read_bytes())
    (idx / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(raw, 1))
    tasks._make_data_task.cache_clear()
    assert tasks.get("fashion-mnist", str(idx)).data_hash() == digest  # of what is in it
    result = trials.run(trial("mnist", steps=3, data=str(idx)))
    assert 0 <= result.test <= 1


def test_a_race_on_published_files(idx, tmp_path, monkeypatch):
    monkeypatch.setattr(driver, "Pool", InProcess)
    asked = driver.Request("mnist", "adamw", trials=1, seeds=1, steps=2, data=str(idx))
    assert driver.race(asked, tmp_path / "out", jobs=1)[0]["complete"]


def cut(path):
    path.write_bytes(path.read_bytes()[:999])


@pytest.mark.parametrize(
    ("name", "spoil", "said"),
    [
        ("train-images-idx3-ubyte.gz", Path.unlink, r"no train-images-idx3-ubyte\.gz \(or train-"),
        ("t10k-labels-idx1-ubyte", Path.unlink, r"no t10k-labels-idx1-ubyte\.gz"),
        ("train-images-idx3-ubyte.gz", lambda p: p.write_bytes(b"no gzip"), "cannot read"),
        ("train-images-idx3-ubyte.gz", cut, "cannot read"),
        ("t10k-images-idx3-ubyte", cut, "cut short"),
        ("t10k-images-idx3-ubyte", lambda p: p.write_bytes(b""), r"cut short \(0 bytes\)"),
        ("t10k-images-idx3-ubyte", lambda p: p.write_bytes(b"\0\0\x08\x03"), "cut short"),
        ("t10k-images-idx3-ubyte", lambda p: write_idx(p, np.zeros((9, 2)), 13), "not an IDX"),
        ("t10k-images-idx3-ubyte", lambda p: write_idx(p, np.zeros((9, 28, 28))), "as many labels"),
        ("t10k-images-idx3-ubyte", lambda p: write_idx(p, np.zeros((100, 9, 9))), "of 28 x 28"),
        ("t10k-labels-idx1-ubyte", lambda p: write_idx(p, np.full(100, 12)), "from 0 to 9"),
        ("t10k-labels-idx1-ubyte", lambda p: write_idx(p, np.zeros((100, 1))), "has the shape"),
    ],
)
def test_a_missing_or_broken_file_is_named(name, spoil, said, idx):
    spoil(idx / name)
    with pytest.raises(BadCall, match=said):
        tasks.get("fashion-mnist", str(idx))


def test_shakespeare_or_any_text(tmp_path):
    task = "tinyshakespeare"
    with pytest.raises(BadCall, match=r"no input\.txt"):
        tasks.get(task, str(tmp_path))
    (tmp_path / "input.txt").write_text("short")
    with pytest.raises(BadCall, match=r"5 characters: expected 327,680"):
        tasks.get(task, str(tmp_path))
    (tmp_path / "input.txt").write_bytes(b"\xff" * 400_000)
    with pytest.raises(BadCall, match="expected a text in UTF-8"):
        tasks.get(task, str(tmp_path))
    (tmp_path / "input.txt").write_text("to be or not to be; " * 20_000)
    result = trials.run(trial(task, steps=2, data=str(tmp_path)))
    assert result.tested
    assert tasks.get(task, str(tmp_path / "input.txt")).data_hash()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("fashion-mnist", "expected --data DIR"),
        ("digits --data here", "reads no files: leave --data out"),
        ("fashion-mnist --data nowhere", "no train-images-idx3-ubyte.gz"),
        ("digit", "did you mean 'digits'"),
    ],
)
def test_a_bad_call_of_a_task(words, said, capfd):
    assert cli.main(["race", *words.split()]) == 2
    assert said in capfd.readouterr().err
