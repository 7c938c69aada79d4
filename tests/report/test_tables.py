"""runs.csv and curves.csv: read back by another reader, and safe to open in a spreadsheet."""

import csv
import io
from dataclasses import replace

import pytest

from steepest.race import tables
from steepest.race.protocol import Plan, Result, Trial
from tests.race.invented import DIGITS, LOSS, pairs

PLAN = Plan("digits", ("adamw", "adabound"), 3, 5, 100, 0)


def read(text):
    return list(csv.DictReader(io.StringIO(text, newline="")))


def one(**changes):
    result = Result([5, 10], [0.9, 0.5], [0.25, 0.5], 0.75, None, 1e-4, 1e-3, 80, 10)
    return Trial("digits", "fresh", "adam", 3, 42, 10, {"lr": 0.1}), replace(result, **changes)


def test_every_run_is_a_row_with_its_hyperparameters():
    runs = pairs(PLAN)
    rows = read(tables.runs(DIGITS, PLAN, runs))
    assert len(rows) == 2 * 5 * (3 + 1)
    for row, (trial, result) in zip(rows, runs, strict=True):
        assert (row["phase"], row["entry"]) == (trial.phase, trial.entry)
        assert (int(row["index"]), int(row["seed"])) == (trial.index, trial.seed)
        assert int(row["unit"]) == trial.index // (3 if trial.phase == "tuning" else 1)
        assert float(row["hyper.lr"]) == trial.hyper["lr"]  # to the last bit
        assert float(row["final_validation"]) == result.validation[-1]
        assert row["test"] == ("" if trial.phase == "tuning" else str(result.test))
        assert (row["hyper.final_lr"] == "") == (trial.entry == "adamw")


def test_a_run_by_hand():
    target = replace(DIGITS, target=0.85)
    (row,) = read(
        tables.runs(target, PLAN, [one(measures={"modes": 3.0}, backends=["cpu", "foreach"])])
    )
    assert row == {
        "phase": "fresh", "entry": "adam", "index": "3", "seed": "42", "hyper.lr": "0.1",
        "unit": "3", "final_validation": "0.5", "best_validation": "0.9", "test": "0.75",
        "diverged": "",
        "steps_to_target": "5", "seconds_to_target": "0.25", "steps": "10",
        "training_seconds": "0.5", "step_seconds": "0.0001", "train_step_seconds": "0.001",
        "wall_seconds": "0.0", "state_bytes": "80", "parameters": "10", "backends": "cpu foreach",
        "measure.modes": "3.0",
    }  # fmt: skip
    (row,) = read(tables.runs(replace(LOSS, target=0.6), PLAN, [one()]))
    assert (row["best_validation"], row["steps_to_target"]) == ("0.5", "10")
    (row,) = read(tables.runs(replace(DIGITS, target=None), PLAN, [one()]))
    assert row["steps_to_target"] == row["seconds_to_target"] == ""


def test_a_diverged_run_has_its_reason_and_the_worst_metric():
    (row,) = read(tables.runs(DIGITS, PLAN, [one(diverged="loss is nan, at step 7", test=0.0)]))
    assert row["diverged"] == "loss is nan, at step 7"
    assert (row["final_validation"], row["steps_to_target"]) == ("0.0", "")
    (row,) = read(
        tables.runs(DIGITS, PLAN, [one(steps=[], validation=[], seconds=[], diverged="nan")])
    )
    assert (row["steps"], row["training_seconds"], row["best_validation"]) == ("0", "", "")


def test_curves_have_a_row_for_each_evaluation():
    runs = pairs(PLAN, evaluations=4, lost=[("fresh", "adamw", 2)])
    rows = read(tables.curves(runs))
    assert len(rows) == sum(len(result.steps) for _, result in runs) == 40 * 4 - 2
    found = [(int(r["step"]), float(r["seconds"]), float(r["validation"])) for r in rows[:4]]
    first = runs[0][1]
    assert found == list(zip(first.steps, first.seconds, first.validation, strict=True))


def test_nothing_run_yet_is_a_head():
    assert read(tables.runs(DIGITS, PLAN, [])) == read(tables.curves([])) == []
    assert tables.runs(DIGITS, PLAN, []).startswith("phase,entry,index,seed,unit,final_validation")


@pytest.mark.parametrize(
    "name",
    ['=HYPERLINK("x")', "+1+1", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "plain", ' "=",'],
)
def test_no_cell_is_a_formula_and_every_text_survives(name):
    trial, result = one(diverged=name, measures={name: -1.5}, backends=[name])
    text = tables.runs(DIGITS, PLAN, [(replace(trial, entry=name, hyper={name: -0.5}), result)])
    assert text.count("\r\n") >= 2  # RFC 4180
    (row,) = read(text)
    for cell in (row["entry"], row["diverged"], row["backends"]):
        assert cell.removeprefix("'") == name
        assert cell[0] not in "=+-@\t\r\n"
    assert not any(head[0] in "=+-@\t\r\n" for head in row)
    assert row[f"hyper.{name}"] == "-0.5"  # a number stays a number
    assert row[f"measure.{name}"] == "-1.5"
