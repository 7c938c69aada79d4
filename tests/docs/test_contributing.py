"""CONTRIBUTING.md: its steps add an optimizer, and the way of one trial names what exists."""

import importlib
import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from tests.blocks import ROOT

PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")

RULE = """

@rule(keys={"m": "momentum_buffer"}, limits={"beta": "[0, 1)"}, search=_SMALL)
def half_sign(p, g, m, *, lr=1e-3, beta=0.5):
    \"\"\"HalfSign. Nobody 2026, a made-up rule.

    Signum, with half of the average itself in the step. Use it in a test.
    \"\"\"
    m = beta * m + (1 - beta) * g
    return p - lr * (sign_or_nan(m) + m) / 2, m
"""
ORACLE = """

class Transcribed(torch.optim.Optimizer):
    def __init__(self, params, lr=1e-3, beta=0.5, weight_decay=0.0, maximize=False):
        given = {"lr": lr, "beta": beta, "weight_decay": weight_decay, "maximize": maximize}
        super().__init__(params, given)

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                g = -p.grad if group["maximize"] else p.grad
                state = self.state[p]
                m = state.get("momentum_buffer", torch.zeros_like(p))
                state["momentum_buffer"] = m = m.lerp(g, 1 - group["beta"])
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.sub_(m.sign().add(m), alpha=group["lr"] / 2)


compare(
    "half_sign",
    Row("transcription", Transcribed, steepest.HalfSign),
    {},
    {"beta": 0.9, **DECAY},
    {"lr": 0.01, **DECAY, **ASCENT},
)
"""
TRANSCRIPTION = """

class HalfSign(Transcription):
    defaults: ClassVar[Options] = {
        "lr": 1e-3, "beta": 0.5, "weight_decay": 0.0, "maximize": False
    }

    def update(self, p, g, state, o):
        g = -g if o["maximize"] else g
        m = state["m"] = o["beta"] * state.get("m", 0 * g) + (1 - o["beta"]) * g
        return p * (1 - o["lr"] * o["weight_decay"]) - o["lr"] * (np.sign(m) + m) / 2


CASES["HalfSign"] = (HalfSign, [({}, {"beta": 0.9, **DECAY, **UP})])
"""
ADDED = {
    "src/steepest/formulas/signs.py": RULE,
    "src/steepest/oracles/signs.py": ORACLE,
    "tests/oracles/transcriptions/signs.py": TRANSCRIPTION,
}
"""What is written by hand: file -> text at its end."""


def run(folder, *words):
    done = subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{folder / 'src'}{os.pathsep}{folder}"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of the project with the rule in it, as the page says."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("src", "tests", "scripts", "docs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, folder)
    for name, text in ADDED.items():
        path = folder / name
        before = path.read_text(encoding="utf-8")
        if name.startswith("src/steepest/oracles"):
            before = before.replace("from .foreign", "import torch\n\nfrom .foreign", 1)
        path.write_text(before + text, encoding="utf-8")
    return folder


@pytest.mark.slow
def test_an_optimizer_is_a_function_an_oracle_and_a_transcription(tree):
    for script in ("stub", "pages"):
        run(tree, f"scripts/{script}.py", "--write")
    assert "class HalfSign" in (tree / "src/steepest/__init__.pyi").read_text(encoding="utf-8")
    page = (tree / "docs/optimizers/half_sign.md").read_text(encoding="utf-8")
    assert "made-up rule" in page
    listed = json.loads(run(tree, "-m", "steepest", "list", "--json"))
    assert "half_sign" in json.dumps(listed)
    assert "half_sign" in run(tree, "-m", "steepest", "show", "half_sign", "--backend", "cpu")
    run(tree, "-m", "steepest", "check", "half_sign")


@pytest.mark.slow
def test_its_oracle_and_its_transcription_are_run(tree):
    options = ("-q", "-p", "no:cacheprovider", "-k", "half_sign or HalfSign")
    said = run(
        tree, "-m", "pytest", *options,
        "tests/oracles/test_oracles.py", "tests/oracles/test_transcriptions.py",
    )  # fmt: skip
    passed = re.search(r"(\d+) passed", said) or re.search(r"^(\.+)", said, re.MULTILINE)
    assert passed, said


@pytest.mark.slow
def test_a_wrong_rule_is_found(tree):
    path = tree / "src/steepest/formulas/signs.py"
    right = path.read_text(encoding="utf-8")
    path.write_text(right.replace("(sign_or_nan(m) + m) / 2, m\n", "(sign_or_nan(m) + m) / 3, m\n"))
    try:
        with pytest.raises(AssertionError, match="half_sign"):
            run(
                tree, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider",
                "-k", "float64 and half_sign", "tests/oracles/test_oracles.py",
            )  # fmt: skip
    finally:
        path.write_text(right, encoding="utf-8")


def names(section):
    """The dotted names in a section of the page."""
    text = PAGE.split(f"## {section}\n")[1].split("\n## ")[0]
    return [
        name.split("(")[0]
        for name in re.findall(r"`([A-Za-z_]+\.[A-Za-z_.]+(?:\([^`]*\))?)`", text)
    ]


def resolved(name):
    """The object of a dotted name, looked up as code in the package would write it."""
    rooms = (
        "steepest",
        "steepest.race",
        "steepest.training",
        "steepest.training.recipe",
        "steepest.statistics",
    )
    for room in (*rooms, "steepest.race.request", "steepest.race.trials"):
        parts = name.split(".")
        try:
            found = importlib.import_module(room)
            for part in parts:
                try:
                    found = getattr(found, part)
                except AttributeError:
                    found = importlib.import_module(f"{found.__name__}.{part}")
        except (ImportError, AttributeError):
            continue
        return found
    return None


@pytest.mark.parametrize("name", names("The way of one trial"))
def test_the_way_of_one_trial_names_what_exists(name):
    assert resolved(name) is not None, name


def test_a_name_that_does_not_exist_is_seen():
    assert len(names("The way of one trial")) >= 15
    assert resolved("trials.nothing_of_this_name") is None
