"""A race in the formats of other tools, read back as those tools read it."""

import json
import re
import shutil
import subprocess
import sys
import types
from dataclasses import replace

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steepest import cli
from steepest.errors import BadCall
from steepest.race import driver, exports
from steepest.race.exports import Race
from steepest.race.protocol import FRESH, Plan, Result
from steepest.race.store import Store
from steepest.race.summary import summarise
from tests.blocks import blocks
from tests.race.invented import DIGITS, LOSS, PROVENANCE, pairs, race

PLAN = Plan("digits", ("adamw", "torch.optim:SGD+noise"), 3, 5, 400, 0)
LOST = [(FRESH, "adamw", 1), ("tuning", "adamw", 3)]


def made(plan=PLAN, task=DIGITS, lost=LOST, count=None):
    found = pairs(plan, task, lost=lost)[:count]
    return Race(task, plan, found, summarise(task, plan, found, PROVENANCE))


def stored(folder, found, plan=PLAN):
    """The folder of a race with these runs."""
    folder.mkdir()
    store = Store.create(folder, plan, PROVENANCE, DIGITS)
    for pair in found:
        store.add(*pair)
    return folder


# --- latex


ENVIRONMENT = re.compile(r"\\(begin|end)\{(\w+)\}")
PLAIN = r"[^\\{}$&#%_^~<>|]"


def checked(table):
    """The cells of a LaTeX table, row by row. AssertionError for what LaTeX would refuse or show
    otherwise: an environment, a brace or a $ without its end, a bare special character.
    """
    text = re.sub(r"(?m)^%.*\n", "", table)
    open_ = []
    for kind, name in ENVIRONMENT.findall(text):
        if kind == "begin":
            open_.append(name)
        else:
            assert open_.pop() == name
    assert not open_
    body = text.split("\\toprule")[1].split("\\bottomrule")[0].replace("\\midrule\n", "")
    columns = re.search(r"\\begin\{tabular\}\{(\w+)\}", text)[1]
    caption = re.search(r"(?m)^\\caption\{(.*)\}$", text)[1]
    lines = [line for line in body.strip().splitlines() if line]
    found = []
    for line in [*lines, caption]:
        depth, bare = 0, re.sub(r"\\[&%$#_{}]", "", line)
        for sign in bare:
            depth += (sign == "{") - (sign == "}")
            assert depth >= 0
        assert depth == 0
        assert bare.count("$") % 2 == 0
        words = re.sub(r"\\(shortstack|text\w+|pm)(?![a-z])|\\\\|\$|[{}&]", "", bare)
        assert re.fullmatch(f"{PLAIN}*", words), words
        if line is not caption:
            assert line.endswith(r" \\")
            assert not line.startswith(("[", "*"))
            cells = re.split(r"(?<!\\)&", line.removesuffix(r"\\"))
            assert len(cells) == len(columns)
            found.append([cell.strip() for cell in cells])
    return found


def latexed(table, folder):
    """Run pdflatex, where there is one."""
    if shutil.which("pdflatex"):
        document = r"\documentclass{article}\usepackage{booktabs}\begin{document}"
        (folder / "t.tex").write_text(f"{document}\n{table}\\end{{document}}\n", encoding="utf-8")
        call = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "t.tex"]
        done = subprocess.run(call, cwd=folder, capture_output=True, text=True, errors="replace")
        assert done.returncode == 0, done.stdout[-2000:]


@pytest.mark.parametrize("task", [DIGITS, LOSS])
def test_the_latex_table_has_the_numbers_of_the_field(task, tmp_path):
    found = made(task=task)
    table = exports.latex(found.summary)
    head, *body = checked(table)
    assert head[0] == r"\shortstack{entry}"
    assert {row[0] for row in body} == {"adamw", "torch.optim:SGD+noise"}
    assert any(" $\\pm$ " in cell for row in body for cell in row)
    assert "over n=5 fresh seeds" in table
    assert "ms/step" not in table
    latexed(table, tmp_path)


HOSTILE = r"\input{x} a_b & 50% $x$ #1 {y} ^~<>|[*]±" + "\n\x00end"


def test_names_of_the_user_are_escaped(tmp_path):
    summary = race(("adamw", "adam"))
    entries = {HOSTILE: summary["entries"]["adamw"], "*[b]": summary["entries"]["adam"]}
    for entry in entries.values():
        entry["difference"] = None
    summary |= {"task": HOSTILE, "metric": HOSTILE, "entries": entries, "baseline": HOSTILE}
    table = exports.latex(summary)
    checked(table)
    assert r"\input" not in table
    assert r"\textbackslash{}input\{x\} a\_b \& 50\% \$x\$ \#1 \{y\}" in table
    latexed(table, tmp_path)


@given(st.text())
def test_any_text_is_balanced_and_on_one_line(text):
    escaped = exports.escape(text)
    assert len(escaped.splitlines()) <= 1
    bare = re.sub(r"\\[&%$#_{}]", "", escaped)
    assert bare.count("{") == bare.count("}")
    assert bare.count("$") % 2 == 0
    assert not re.search(r"[&%#_^~<>|]", bare)


@pytest.mark.parametrize(
    ("text", "shown"), [("-0.34 [-1, 2]", "$-$0.34 {[}$-$1, 2{]}"), ("a-1", "a-1"), ("x-y", "x-y")]
)
def test_a_minus_is_one(text, shown):
    assert exports.escape(text) == shown


def test_a_race_without_a_run_and_an_unfinished_one_have_a_table():
    checked(exports.latex(made(count=0).summary))
    table = exports.latex(made(count=7).summary)
    assert "Unfinished, 7 of 40 runs." in table


# --- weights & biases


class Recorded:
    """What stands in for `wandb`: a run that keeps what it was given."""

    def __init__(self, **given):
        self.given, self.rows, self.summary = given, [], {}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def log(self, row, step):
        self.rows.append((step, row))


def test_the_script_of_the_docs_loads_every_run(tmp_path, monkeypatch):
    (script,) = [block for block in blocks("docs/protocol.md") if "import json, wandb" in block]
    runs = []

    def init(**given):
        runs.append(Recorded(**given))
        return runs[-1]

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    monkeypatch.chdir(tmp_path)
    found = made()
    (tmp_path / "my-race").mkdir()
    assert exports.export(found, "wandb", tmp_path / "my-race", None).name == "wandb.jsonl"
    exec(script, {})
    assert len(runs) == len(found.pairs) == 40
    for run, (trial, result) in zip(runs, found.pairs, strict=True):
        assert run.given["group"] == trial.entry
        assert run.given["config"]["hyper"] == trial.hyper
        assert [step for step, _ in run.rows] == result.steps
        assert [row["validation/accuracy"] for _, row in run.rows] == result.validation
        assert all("_step" not in row for _, row in run.rows)
        assert ("test/accuracy" in run.summary) == (trial.phase == FRESH)
        assert run.summary["diverged"] == result.diverged
    assert len({run.given["name"] for run in runs}) == 40


def test_a_number_that_json_has_not_is_null():
    trial, result = pairs(PLAN)[0]
    bad = Result(**{**vars(result), "validation": [float("nan")] * 20, "diverged": "loss is nan",
                    "measures": {"norm": float("inf")}})  # fmt: skip
    (line,) = exports.wandb_runs(Race(DIGITS, PLAN, [(trial, bad)], {})).splitlines()
    run = json.loads(line, parse_constant=lambda text: pytest.fail(text))
    assert run["summary"]["measure/norm"] is None
    assert run["summary"]["validation/accuracy"] == 0.0  # as the race counts it


# --- tensorboard


def test_without_tensorboard_the_command_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(BadCall, match=r"pip install 'steepest\[tensorboard\]'"):
        exports.export(made(), "tensorboard", tmp_path, None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_event_files_have_every_run(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = made(task=replace(DIGITS, test_data=True))
    out = exports.export(found, "tensorboard", tmp_path, tmp_path / "events")
    folders = sorted({file.parent for file in out.rglob("events.out.*")})
    assert len(folders) == len(found.pairs)
    for trial, result in found.pairs:
        entry = trial.entry.replace(":", ".")
        events = EventAccumulator(str(out / entry / f"{trial.phase}-{trial.index:03}"))
        events.Reload()
        scalars = events.Scalars("validation/accuracy")
        assert [event.step for event in scalars] == result.steps
        assert [event.value for event in scalars] == pytest.approx(result.validation)
        assert [event.wall_time for event in scalars] == pytest.approx(result.seconds)
        assert "_hparams_/session_start_info" in events.PluginTagToContent("hparams")
        final = "final test/accuracy"
        assert (final in events.Tags()["scalars"]) == (trial.phase == FRESH)
    with pytest.raises(BadCall, match="is not empty, and TensorBoard would show its old runs too"):
        exports.export(found, "tensorboard", tmp_path, out)


# --- the verb


def test_the_verb_writes_into_the_folder_or_elsewhere(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    stored(tmp_path / "my race", made().pairs)
    assert cli.main(["export", "my race", "--to", "latex"]) == 0
    assert capsys.readouterr().out == "my race/table.tex\n"
    assert cli.main(["export", "my race", "--to", "wandb", "--out", "größe.jsonl"]) == 0
    assert len((tmp_path / "größe.jsonl").read_text(encoding="utf-8").splitlines()) == 40
    assert sorted(p.name for p in (tmp_path / "my race").iterdir()) == ["study.db", "table.tex"]
    checked((tmp_path / "my race" / "table.tex").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (["--to", "csv"], "--to csv: expected one of latex, tensorboard, wandb"),
        ([], "Missing option '--to'"),
        (["--to", "latex", "--out", "nowhere/x.tex"], "cannot write 'nowhere/x.tex'"),
        (["--to", "wandb", "--out", "."], "cannot write '.'"),
    ],
)
def test_a_bad_call_is_one_line(call, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    stored(tmp_path / "mine", [])
    assert cli.main(["export", "mine", *call]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert err.count("\n") == 1
    assert cli.main(["export", "nowhere", "--to", "latex"]) == 2
    assert "no study.db in 'nowhere'" in capsys.readouterr().err


# --- the study, as Optuna and its dashboard open it


@pytest.mark.parametrize("count", [0, 1, 20, 40])
def test_optuna_loads_the_study_in_every_state_of_a_race(count, tmp_path):
    found = made().pairs[:count]
    folder = stored(tmp_path / "mine", found)
    study = optuna.load_study(study_name="race", storage=f"sqlite:///{folder}/study.db")
    assert study.direction == optuna.study.StudyDirection.MAXIMIZE
    trials = study.get_trials()
    assert len(trials) == count
    for trial, (planned, result) in zip(trials, found, strict=True):
        assert trial.state == optuna.trial.TrialState.COMPLETE
        assert trial.value == (0.0 if result.diverged else result.validation[-1])
        assert trial.params == planned.hyper
        assert trial.distributions.keys() == planned.hyper.keys()
        assert all(d.log and d.low < d.high for d in trial.distributions.values())
        assert trial.intermediate_values == dict(zip(result.steps, result.validation, strict=True))
        assert (trial.user_attrs["entry"], trial.user_attrs["phase"]) == (
            planned.entry, planned.phase,
        )  # fmt: skip
        json.dumps(trial.user_attrs, allow_nan=False)  # what a dashboard sends to a browser
    if count:
        assert study.best_trial.value == max(trial.value for trial in trials)
    assert driver.load(folder).summary["runs"]["finished"] == count
