"""The examples: each runs as its first lines say, learns, and goes on exactly where it stopped."""

import os
import re
import shlex
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from tests.blocks import ROOT

EXAMPLES = ROOT / "examples"
SECONDS = 120

# what a run leaves at its end: file -> the entries to compare, all where there are none
LEFT = {
    "averaging.py": {"checkpoint-12.pt": [], "averaged.pt": []},
    "plain.py": {"checkpoint-100.pt": []},
    "images.py": {"checkpoint-8.pt": []},
    "lightning_module.py": {
        "checkpoints/epoch=9.ckpt": ["state_dict", "optimizer_states", "lr_schedulers", "epoch"]
    },
    "trainer.py": {
        f"out/checkpoint-60/{name}": []
        for name in ("model.safetensors", "optimizer.pt", "scheduler.pt")
    },
    "accelerated.py": {
        f"state-4/{name}": [] for name in ("model.safetensors", "optimizer.bin", "scheduler.bin")
    },
}

# Of the frameworks themselves; the message's beginning and the category. Lightning uses a class
# that torch has deprecated, and warns of the folder that a resumed run writes to.
WARNINGS = {
    "lightning_module.py": [
        "`isinstance(treespec, LeafSpec)` is deprecated:FutureWarning",
        "Checkpoint directory:UserWarning",
    ]
}

NO_NETWORK = """
import os, sys

def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname"):
        with open(os.environ["NETWORK_LOG"], "a") as log:
            print(event, arguments[-1], file=log)
        raise OSError(f"{event}: this test has no network")

sys.addaudithook(refuse)
"""


def commands(name):
    """The command lines in an example's first lines, as lists of arguments."""
    head = (EXAMPLES / name).read_text().split('"""')[1]
    return [shlex.split(line)[1:] for line in re.findall(r"^ *(python .*)$", head, re.MULTILINE)]


def run(name, arguments, folder):
    """The losses that an example prints, run in `folder` offline, every warning an error."""
    hooks = folder.parent / "hooks"
    hooks.mkdir(exist_ok=True)
    (hooks / "sitecustomize.py").write_text(NO_NETWORK)
    path = os.pathsep.join(filter(None, [str(hooks), os.environ.get("PYTHONPATH")]))
    log = folder.parent / "network.log"
    settings = {
        "PYTHONPATH": path, "NETWORK_LOG": str(log), "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(folder.parent / "hub"), "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    ignored = [f"-Wignore:{warning}" for warning in WARNINGS.get(name, [])]
    done = subprocess.run(
        [sys.executable, "-Werror", *ignored, EXAMPLES / name, *arguments],
        cwd=folder, env={**os.environ, **settings}, timeout=SECONDS, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert not log.exists(), log.read_text()
    assert not list((folder.parent / "hub").rglob("*.safetensors"))
    return [float(loss) for loss in re.findall(r": loss ([\d.]+)$", done.stdout, re.MULTILINE)]


def load(file, entries):
    if file.suffix == ".safetensors":
        return load_file(file)
    saved = torch.load(file, weights_only=True)
    return {key: saved[key] for key in entries} if entries else saved


def assert_same(one, other, where=""):
    """Bit for bit, through dicts and lists."""
    assert type(one) is type(other), where
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype, where
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for index, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_same(a, b, f"{where}[{index}]")
    else:
        assert one == other, where


def test_every_example_is_tested_and_of_a_size_to_copy():
    files = {file.name for file in EXAMPLES.iterdir() if file.is_file()}
    # a task for a race is no program: tests/tasks/ runs those
    assert {name for name in files if not name.startswith("race_")} == set(LEFT)
    for name in LEFT:
        lines = [x for x in (EXAMPLES / name).read_text().splitlines() if x.strip()]
        assert 25 <= len(lines) <= 60, name
        assert len(commands(name)) == 2, name


@pytest.mark.slow
@pytest.mark.parametrize("name", LEFT)
def test_an_example_learns_and_resumes_exactly(name, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    before = {f.name: f.stat().st_mtime_ns for f in EXAMPLES.iterdir()}
    whole, resume = commands(name)
    losses = run(name, whole[1:], folder)
    assert losses[-1] < 0.75 * losses[0]

    finished = {file: load(folder / file, entries) for file, entries in LEFT[name].items()}
    for file in LEFT[name]:
        (folder / file).unlink()
    again = run(name, resume[1:], folder)
    assert again[-1] == losses[-1]
    if name != "trainer.py":  # which prints the losses before the checkpoint too
        assert len(again) < len(losses)
    for file, entries in LEFT[name].items():
        assert_same(load(folder / file, entries), finished[file], file)
    assert {f.name: f.stat().st_mtime_ns for f in EXAMPLES.iterdir()} == before
