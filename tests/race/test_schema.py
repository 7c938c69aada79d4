"""The typed summary: the keys and values of stored races, and what a type checker sees."""

import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, NotRequired, get_args, get_origin, get_type_hints, is_typeddict

import pytest

from steepest.profiles import Profile, profile
from steepest.race.protocol import Plan
from steepest.race.schema import DifferenceRecord, PlanRecord, Summary
from steepest.statistics.inference import Difference
from tests.race.invented import race

STORED = json.loads(Path(__file__).with_name("summary.json").read_text())
"""Of an earlier version, without its sentences."""
LOST = [("fresh", "adam", 1), ("tuning", "momentum", 3)]
NAMES = ("adamw", "momentum", "adam")


def flat(value, at=""):
    """Path -> value of everything in a JSON text that has no parts."""
    if isinstance(value, dict) and value:
        return {k: v for key in value for k, v in flat(value[key], f"{at}/{key}").items()}
    if isinstance(value, list) and value:
        return {k: v for i, each in enumerate(value) for k, v in flat(each, f"{at}/{i}").items()}
    return {at: value}


def test_a_summary_keeps_every_key_and_value():
    found = race(NAMES, trials=5, seeds=5, evaluations=3, lost=LOST)
    assert found.pop("verdict")
    assert all(finding.pop("text") for finding in found["lint"])
    found, stored = flat(json.loads(json.dumps(found))), flat(STORED)
    assert found.keys() >= stored.keys()
    for at, value in stored.items():
        assert type(found[at]) is type(value), at
        assert found[at] == (pytest.approx(value) if isinstance(value, float) else value), at


def wrong(value, kind, at="summary"):
    """The places at which a value is not of an annotated type."""
    if get_origin(kind) is NotRequired:
        return wrong(value, *get_args(kind), at)
    if is_typeddict(kind):
        if not isinstance(value, dict):
            return [at]
        hints = get_type_hints(kind, include_extras=True)
        missing = [k for k in hints if k not in value and get_origin(hints[k]) is not NotRequired]
        return [
            *(f"{at}: no {key}" for key in missing),
            *(f"{at}: {key} is not declared" for key in value if key not in hints),
            *(w for k in value if k in hints for w in wrong(value[k], hints[k], f"{at}.{k}")),
        ]
    if get_origin(kind) is UnionType:
        return min((wrong(value, each, at) for each in get_args(kind)), key=len)
    if get_origin(kind) is list:
        (of,) = get_args(kind)
        bad = [] if isinstance(value, list) else [at]
        return bad or [w for each in value for w in wrong(each, of, f"{at}[]")]
    if get_origin(kind) is dict:
        bad = [] if isinstance(value, dict) else [at]
        return bad or [w for k in value for w in wrong(value[k], get_args(kind)[1], f"{at}[{k}]")]
    if kind is Any:
        return []
    fits = isinstance(value, (int, float) if kind is float else kind or NoneType)
    return [] if fits and (kind is bool or not isinstance(value, bool)) else [at]


@pytest.mark.parametrize(
    "more", [{}, {"lost": LOST}, {"trials": 1, "seeds": 1, "evaluations": 2}, {"names": ("adamw",)}]
)
def test_a_summary_is_what_its_types_say(more):
    found = race(**{"names": NAMES, "trials": 3, "seeds": 5} | more)
    bad = [line for line in wrong(found, Summary) if not line.startswith("summary.provenance: no")]
    assert bad == []
    found["entries"]["adamw"]["failled"] = 1
    found["runs"]["planned"] = "many"
    assert {"summary.entries[adamw]: failled is not declared", "summary.runs.planned"} < {
        *wrong(found, Summary)
    }


def test_a_profile_is_what_its_types_say():
    two = [race(NAMES), {**race(NAMES), "task": "another"}]
    assert wrong(profile(two), Profile, "profile") == []


@pytest.mark.parametrize(("made", "record"), [(Difference, DifferenceRecord), (Plan, PlanRecord)])
def test_a_record_has_the_fields_of_what_it_records(made, record):
    hints = get_type_hints(made)
    known = {field.name: hints[field.name] for field in fields(made)}
    # tuples, which JSON has not
    known |= {"entries": list[str], "looks": list[int]} if made is Plan else {}
    assert get_type_hints(record) == known


def test_a_type_checker_catches_a_misspelt_field(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from steepest.race.schema import EntrySummary, Summary\n"
        "def count(summary: Summary) -> int:\n"
        "    entry: EntrySummary = summary['entries']['adamw']\n"
        "    return entry['failed'] + entry['diverged']['fresh'] + summary['plan']['seeds']\n"
        "def wrong(summary: Summary) -> int:\n"
        "    a = summary['entrys']\n"
        "    b = summary['entries']['adamw']['failled']\n"
        "    c = summary['plan']['seed_count']\n"
        "    d: str = summary['runs']['finished']\n"
        "    return a + b + c + d\n"
    )
    call = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "--outputjson", file]
    done = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    errors = json.loads(done.stdout)["generalDiagnostics"]
    lines = {d["range"]["start"]["line"] + 1 for d in errors if d["severity"] == "error"}
    assert lines >= {6, 7, 8, 9}, errors
    assert not lines & {1, 2, 3, 4, 5}, errors
