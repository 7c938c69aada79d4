"""Which folders may import which: a folder that others share must not know them."""

import ast
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
