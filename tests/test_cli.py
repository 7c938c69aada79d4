"""The command line: exit codes, one helpful line for a bad call, examples in every help."""

import ast
import inspect
import io
import json
import re
import subprocess
import sys
import tomllib

import pytest

import steepest
from steepest import cli
from tests.blocks import ROOT
from tests.race import invented

# call -> what its one line must name: what was given, or what to do
BAD = {
    "": ("Missing command",),
    "rac digits": ("rac", "race"),
    "race": ("TASK", "steepest race"),
    "race digit": ("'digit'", "did you mean 'digits'"),
    "race zzz": ("'zzz'", "expected one of digits"),
    "race digits --optimizers adamwx": ("'adamwx'", "did you mean 'adamw'"),
    "race digits --optimizers zzzzzzz": ("'zzzzzzz'", "adabelief"),
    "race digits --optimizers adam,,adamw": ("'adam,,adamw'", "empty", "separated by commas"),
    "race digits --optimizers adamw,": ("'adamw,'", "empty", "separated by commas"),
    "race digits --trials 10000 --seeds 10000": ("900,090,000 runs", "100,000", "--trials"),
    "race digits --budget 1e300h": ("'1e300h'", "at most a year"),
    "race digits --optimizers adam,adam": ("'adam'", "more than once"),
    "race digits --trials 0": ("--trials 0", "1 or more"),
    "race digits --trials many": ("--trials many", "integer"),
    "race digits --seeds -3": ("--seeds -3", "1 or more"),
    "race digits --steps 0": ("--steps 0", "1 or more"),
    "race digits --jobs 0": ("--jobs 0", "1 or more"),
    "race digits --budget soon": ("'soon'", "60s"),
    "race digits --budget 0s": ("'0s'", "60s"),
    "race digits --budget 60s --trials 3": ("--budget 60s", "--trials 3", "one of them"),
    "race digits --search adamw.lr": ("'adamw.lr'", "ENTRY.KNOB=LOW:HIGH"),
    "race digits --search adamw.lr=1e-4:1 --search lionn.lr=1:2": (
        "lionn.lr does not begin with an entry of the race",
    ),
    "race digits --baseline adamwx": ("'adamwx'", "did you mean 'adamw'"),
    "race digits --nonsense": ("--nonsense",),
    "race digits --out": ("--out",),
    "race digits more": ("more",),
    "race digits --trials 100001": ("--trials 100001", "100,000"),
    "race digits --seeds 9999999999999": ("--seeds 9999999999999", "100,000"),
    "race digits --steps 100001": ("--steps 100001", "100,000"),
    "race digits --optimizers AdamW": ("'AdamW'", "did you mean 'adamw'"),
    "race digits --resume": ("no race in 'race-digits' to continue", "leave --resume out"),
    "show": ("NAME",),
    "show adamx": ("'adamx'", "adam"),
    "show adam --backend gpu": ("'gpu'", "cpu", "foreach", "eager"),
    "list more": ("more",),
    "list --jso": ("--jso",),
    "bench --set resnet": ("--set resnet", "resnet50", "300x64"),
    "bench --seconds 0": ("--seconds 0", "above 0"),
    "bench --seconds nan": ("--seconds nan", "above 0"),
    "bench --threads 0": ("--threads 0", "1 or more"),
    "report": ("DIR",),
    "report nowhere": ("nowhere", "study.db"),
    "export nowhere --to latex": ("nowhere", "study.db"),
    "export nowhere --to excel": ("--to excel", "tensorboard, wandb"),
}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def bad(capsys, *words):
    """The one line that a bad call prints; it must leave with 2 and print nothing else."""
    assert cli.main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("steepest: ")
    assert err.count("\n") == 1
    return err


@pytest.mark.parametrize("call", BAD)
def test_a_bad_call_gets_one_helpful_line_and_exit_code_2(call, capsys, elsewhere):
    line = bad(capsys, *call.split())
    assert all(word in line for word in BAD[call]), line
    assert list(elsewhere.iterdir()) == []


def test_an_unwritable_folder(capsys, elsewhere):
    (elsewhere / "file").touch()
    line = bad(capsys, "race", "digits", "--out", "file/below")
    assert "cannot write to 'file/below'" in line
    assert "--out" in line


def test_a_file_without_its_ending_is_suggested(capsys, elsewhere):
    (elsewhere / "digit.py").touch()
    assert "did you mean 'digit.py'" in bad(capsys, "race", "digit")


def test_a_page_that_cannot_be_written(capsys, elsewhere):
    for task in ("one", "two"):
        (elsewhere / task).mkdir()
        text = json.dumps({**invented.race(seeds=5, trials=1), "task": task})
        (elsewhere / task / "summary.json").write_text(text)
    line = bad(capsys, "profile", "one", "two", "--out", "nowhere/x.html")
    assert "cannot write 'nowhere/x.html'" in line
    assert "--out" in line


@pytest.mark.parametrize("more", [[], ["--resume"]])
def test_a_folder_that_holds_something_else_is_left_alone(more, capsys, elsewhere):
    (elsewhere / "mine").mkdir()
    (elsewhere / "mine" / "thesis.txt").touch()
    line = bad(capsys, "race", "digits", "--out", "mine", *more)
    assert "mine" in line
    assert [path.name for path in (elsewhere / "mine").iterdir()] == ["thesis.txt"]


def test_resume_in_an_empty_folder_starts_nothing(capsys, elsewhere):
    (elsewhere / "study.db.new").touch()  # as after a kill before the first trial
    assert "leave --resume out" in bad(capsys, "race", "digits", "--out", ".", "--resume")
    assert [path.name for path in elsewhere.iterdir()] == ["study.db.new"]


def test_list_names_every_rule(capsys):
    assert cli.main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(steepest.rules)
    assert cli.main(["list", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [rule["name"] for rule in found] == list(steepest.rules)


@pytest.mark.parametrize("backend", [None, "eager", "foreach", "cpu"])
def test_show_prints_python(backend, capsys):
    assert cli.main(["show", "adam", *(["--backend", backend] if backend else [])]) == 0
    source = capsys.readouterr().out
    ast.parse(source)
    written = inspect.getsource(steepest.rules["adam"].function)
    assert (source == written) == (backend in (None, "eager"))


def test_help_of_show_names_every_backend(capsys):
    assert cli.main(["show", "--help"]) == 0
    assert "cpu, foreach or eager" in " ".join(capsys.readouterr().out.replace("│", "").split())


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_bench_prints_what_was_found(more, capsys, monkeypatch):
    from steepest import bench

    two = {k: v for k, v in bench.contenders().items() if k.startswith("torch AdamW, f")}
    monkeypatch.setattr(bench, "contenders", lambda: two)
    call = "bench --set 300x64 --seconds 0.05 --threads 1"
    assert cli.main([*call.split(), *more]) == 0
    out = capsys.readouterr().out
    assert "300x64" in out
    if more:
        json.loads(out)


def test_an_output_that_cannot_show_every_sign_is_no_crash(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    monkeypatch.setattr(cli, "app", lambda **_: print("0.9 ± 0.1"))
    assert cli.main([]) == 0
    sys.stdout.flush()
    assert sys.stdout.buffer.getvalue() == b"0.9 ? 0.1\n"


def test_what_a_race_imports_is_declared_and_looked_for():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    def modules(lines):
        names = [re.split("[<>=]", line)[0] for line in lines]
        return {{"scikit-learn": "sklearn", "pillow": "PIL"}.get(name, name) for name in names}

    base = modules(project["dependencies"])
    extra = modules(project["optional-dependencies"]["race"])
    assert set(cli.race.RACE_MODULES) == extra
    for path in (ROOT / "src" / "steepest" / "race").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            found = {name.split(".")[0] for name in names} - sys.stdlib_module_names
            assert found <= {"steepest", *base, *extra}, path


def test_a_store_that_is_none(capsys, elsewhere):
    (elsewhere / "study.db").write_text("not a database")
    assert "not the store of a race" in bad(capsys, "report", ".")


def test_a_missing_extra_is_named_with_its_command(capsys, monkeypatch):
    monkeypatch.setattr(cli.race, "find_spec", lambda name: None if name == "optuna" else object())
    for call in (["race", "digits"], ["report", "."]):
        line = bad(capsys, *call)
        assert "optuna" in line
        assert "pip install 'steepest[race]'" in line


@pytest.mark.parametrize("verb", ["race", "report", "export", "list", "show", "bench", "check"])
def test_every_help_has_an_example(verb, capsys):
    assert cli.main([verb, "--help"]) == 0
    assert f"Example: steepest {verb} " in capsys.readouterr().out


def test_a_race_prints_table_verdict_and_paths(capsys, elsewhere):
    call = "race digits --optimizers adam,adamw --trials 1 --seeds 2 --steps 40 --jobs 1"
    assert cli.main(call.split()) == 0
    out, err = capsys.readouterr()
    assert "difference to" in out
    assert "Not enough seeds: n=2" in out
    assert "race-digits/report.html" in out
    assert "race-digits/summary.json" in out
    assert err.strip() == ""  # a bar only on a terminal
    before = (elsewhere / "race-digits" / "report.html").read_bytes()
    assert cli.main(["report", "race-digits"]) == 0
    assert "Not enough seeds: n=2" in capsys.readouterr().out
    assert (elsewhere / "race-digits" / "report.html").read_bytes() == before


def test_starting_the_command_line_imports_nothing_of_a_race():
    heavy = "{'optuna', 'scipy', 'sklearn', 'matplotlib', 'rich.progress'}"
    code = f"import sys, steepest.cli; print({heavy} & set(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "set()"
