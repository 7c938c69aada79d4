"""The pages: generated ones are up to date, commands are taken, code runs, links lead somewhere."""

import importlib.util
import re
import shlex
from pathlib import Path

import pytest

import steepest
from steepest import cli
from steepest.errors import BadCall
from steepest.race import driver, field, planning, trials
from steepest.race.protocol import FRESH, Trial
from tests.blocks import ROOT

DOCS = ROOT / "docs"
CHOOSE = (DOCS / "how-to-choose.md").read_text(encoding="utf-8")
ERRATA = (DOCS / "errata.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^\$ (steepest race .*)$", CHOOSE, re.MULTILINE)
FILES = dict(re.findall(r"`(\w+\.py)`:\n\n```python\n(.*?)```", CHOOSE, re.DOTALL))


def generator():
    spec = importlib.util.spec_from_file_location("pages", ROOT / "scripts" / "pages.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


pages = generator()


def test_the_generated_pages_are_up_to_date():
    assert [file.name for file in pages.stale()] == [], "run python scripts/pages.py --write"


def test_every_rule_has_its_page_and_its_row():
    names = {f.stem for f in (DOCS / "optimizers").glob("*.md")} - {"README"}
    assert names == {*steepest.rules}
    table = (DOCS / "optimizers" / "README.md").read_text(encoding="utf-8")
    rows = [line for line in table.splitlines() if line.startswith("| [`")]
    assert len(rows) == len(names)
    assert len({row.replace("\\|", "").count("|") for row in rows}) == 1


@pytest.mark.parametrize("edit", ["change", "remove", "add"])
def test_a_page_out_of_date_is_noticed(edit, tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "FOLDER", tmp_path)
    for file, text in pages.pages().items():
        file.write_text(text, encoding="utf-8")
    assert pages.stale() == []
    file = tmp_path / ("gone.md" if edit == "add" else "adam.md")
    if edit == "remove":
        file.unlink()
    else:
        file.write_text("other", encoding="utf-8")
    assert pages.stale() == [file]


def test_a_page_has_formula_defaults_states_and_passport():
    text = pages.page(steepest.rules["adabelief"])
    assert "```math\n\\begin{aligned}\nm_{t} &=" in text
    assert "With `rectify=False`:" in text
    eps = "| `eps` | keeps a denominator away from 0 | $`\\epsilon`$"
    assert f"{eps} | `1e-16` | `adabelief_pytorch.AdaBelief` | [0, inf) |" in text
    assert "`exp_avg_var` ($`s_{t-1}`$); 8 bytes" in text
    assert "Oracle (package): adabelief-pytorch==0.2.1, " in text
    assert ("Measured races" in text) == bool(pages.races("adabelief"))
    adam = pages.page(steepest.rules["adam"])
    assert f"{eps} | `1e-08` | `torch.optim.Adam` | [0, inf) |" in adam


def test_a_rule_that_was_never_examined_says_so():
    def fresh(p, g, *, lr=0.1):
        """Fresh."""
        return p - lr * g

    text = pages.page(steepest.rule(fresh))
    assert "Not examined yet" in text
    words = "| `lr` | learning rate: multiplies the step | $`\\alpha`$"
    assert f"{words} | `0.1` | its formula | [0, inf) |" in text


def test_measured_races_are_linked_when_there_are_some(tmp_path):
    file = tmp_path / "findings.md"
    assert pages.races("adam", file) == []
    file.write_text(
        "# Findings\n\nAbout `sgd`.\n\n## Digits, 20 seeds\n\n`adam` wins.\n\n## Text\n\n`adamw`.\n"
    )
    assert pages.races("adam", file) == ["- [Digits, 20 seeds](../findings.md#digits-20-seeds)"]
    assert pages.races("sgd", file) == ["- [Findings](../findings.md#findings)"]
    assert pages.races("nadam", file) == []


@pytest.mark.parametrize("file", sorted(DOCS.rglob("*.md")), ids=lambda f: f.name)
def test_links_lead_somewhere(file):
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", file.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (file.parent / target).exists(), target


def test_every_piece_of_advice_has_its_command_and_what_it_showed():
    parts = CHOOSE.split("\n## ")[1:]
    assert len(parts) >= 6
    for part in parts:
        assert "$ steepest race" in part, part.splitlines()[0]
        assert re.search(r"\bn ?= ?\d+", part), part.splitlines()[0]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_taken_as_it_stands(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.items():
        Path(name).write_text(text, encoding="utf-8")
    ran = []

    def race(request, *rest, **options):
        request.check()
        field.parse(request.optimizers)
        ran.append(request.task)
        raise BadCall("far enough")

    monkeypatch.setattr(driver, "race", race)
    monkeypatch.setattr(planning, "forecast", race)
    assert cli.main(shlex.split(command)[1:]) == 2
    assert "far enough" in capsys.readouterr().err
    assert len(ran) == 1


@pytest.mark.parametrize("name", FILES)
def test_a_task_of_the_page_learns(name, tmp_path):
    assert any(name in command for command in COMMANDS)
    (tmp_path / name).write_text(FILES[name], encoding="utf-8")
    task = driver.tasks.get(str(tmp_path / name))
    trial = Trial(str(tmp_path / name), FRESH, "adamw", 0, 7, task.steps, {"lr": 5e-3})
    result = trials.run(trial)
    assert result.diverged is None
    assert result.test > 0.7


def test_every_erratum_has_its_test_and_every_test_its_erratum():
    source = (ROOT / "tests" / "oracles" / "test_errata.py").read_text(encoding="utf-8")
    tests = {*re.findall(r"^def (test_\w+)\(", source, re.MULTILINE)}
    assert {*re.findall(r"`(test_\w+)`", ERRATA)} == tests
    for part in ERRATA.split("\n### ")[1:]:
        words = [part.index(f"\n{word}") for word in ("Said: ", "So: ", "Shown by ")]
        assert words == sorted(words), part.splitlines()[0]
