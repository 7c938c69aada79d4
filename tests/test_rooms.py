"""Which folders may import which: a folder that others share must not know them."""

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import steepest

SOURCE = Path(steepest.__file__).parent


def rooms_of(text):
    """The folders and files at the top of the package that a source text imports, anywhere in it.

    `steepest` itself is "".
    """
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative imports hide the folder: write steepest.x"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            head, _, rest = name.partition(".")
            if head == "steepest":
                yield rest.partition(".")[0]


def offenders(room, allowed):
    return {
        f"{file.relative_to(SOURCE)}: {name}"
        for file in (SOURCE / room).rglob("*.py")
        for name in rooms_of(file.read_text())
        if name not in allowed
    }


@pytest.mark.parametrize(
    ("text", "rooms"),
    [
        ("import torch, steepest.race.store", ["race"]),
        ("def f():\n    from steepest import race, errors", ["race", "errors"]),
        ("from steepest.race.store import Store", ["race"]),
        ("import steepest", [""]),
        ("from steepesto import race", []),
    ],
)
def test_every_form_of_import_is_seen(text, rooms):
    assert list(rooms_of(text)) == rooms


def test_a_report_knows_no_other_folder():
    assert offenders("report", {"report"}) == set()


def test_a_report_computes_no_statistics():
    for file in (SOURCE / "report").glob("*.py"):
        assert "import statistics" not in file.read_text(), file.name
        assert "scipy" not in file.read_text(), file.name


def test_a_task_knows_errors_and_other_tasks_only():
    assert offenders("tasks", {"errors", "tasks"}) == set()


def test_statistics_know_no_other_folder():
    assert offenders("statistics", {"statistics"}) == set()


def test_no_file_and_no_folder_grows_too_large():
    sizes = {f: len(f.read_text().splitlines()) for f in SOURCE.rglob("*.py")}
    assert [str(f) for f, size in sizes.items() if size > 400] == []
    folders = {f.relative_to(SOURCE).parts[0] for f in sizes if f.parent != SOURCE}
    for folder in folders:
        size = sum(n for f, n in sizes.items() if f.is_relative_to(SOURCE / folder))
        assert size < 0.22 * sum(sizes.values()), folder


XOR = """
import torch
from torch import nn
from steepest.tasks.task import Samples, Setup, Task

CORNERS = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
TRUTH = torch.tensor([[0.0], [1.0], [1.0], [0.0]])


def build(seed):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))
    loss = lambda model, batch: nn.functional.mse_loss(model(batch[0]), batch[1])
    samples = Samples((CORNERS, TRUTH), 2)
    evaluate = lambda model, split: loss(model, (CORNERS, TRUTH)).item()
    return Setup(model, samples.batched(seed), loss, evaluate, samples=samples)


XOR = Task("xor", "error", False, worst=0.25, target=0.1, steps=20, every=5, test_size=4,
           proportion=False, build=build)
"""


@pytest.mark.slow
def test_a_new_task_is_one_file_and_its_name_in_the_list(tmp_path):
    shutil.copytree(SOURCE, tmp_path / "steepest", ignore=shutil.ignore_patterns("__pycache__"))
    folder = tmp_path / "steepest" / "tasks"
    (folder / "xor.py").write_text(XOR)
    listed = (folder / "__init__.py").read_text()
    for old, new in ((", user_file", ", user_file, xor"), ("sparse.BAG)", "sparse.BAG, xor.XOR)")):
        assert listed.count(old) == 1
        listed = listed.replace(old, new)
    (folder / "__init__.py").write_text(listed)
    call = ["race", "xor", "--optimizers", "adamw,momentum+warmup", "--trials", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "steepest", *call, "--seeds", "2", "--jobs", "1", "--out", "out"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["task"], summary["complete"]) == ("xor", True)
    assert list(summary["entries"]) == ["adamw", "momentum+warmup"]
