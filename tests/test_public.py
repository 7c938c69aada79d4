"""The public names, and the house's own rules."""

import ast
import importlib
import importlib.util
import inspect
import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import steepest
from steepest import bench, catalogue, families
from steepest.options import WITHOUT_EFFECT

SOURCE = Path(steepest.__file__).parent
EXTRAS = {"optuna", "rich", "scipy", "sklearn", "jinja2", "matplotlib"}


def modules():
    return [
        m.name
        for m in pkgutil.walk_packages([str(SOURCE)], "steepest.")
        if "__main__" not in m.name
    ]


def test_public_names_keep_their_types_after_every_submodule_is_imported():
    for name in modules():
        importlib.import_module(name)
    assert callable(steepest.rule)
    assert callable(steepest.optimizer)
    assert isinstance(steepest.rules, dict)
    for name in steepest.__all__:
        assert hasattr(steepest, name), name
        if name[0].isupper() and name != "Rule":
            assert issubclass(getattr(steepest, name), torch.optim.Optimizer)
    public = {n for n in vars(steepest) if not n.startswith("_")}
    assert public - set(steepest.__all__) <= {m.split(".")[1] for m in modules()}


def test_every_rule_has_a_class_of_its_own_or_torchs():
    for name in steepest.rules:
        made = steepest.optimizer(name, [torch.nn.Parameter(torch.ones(2))])
        assert name in [r.name for r in made.family.members]


def test_whatever_torch_optim_has_is_here():
    found = {n: k for n, k in vars(torch.optim).items() if isinstance(k, type)}
    for name, kind in found.items():
        if issubclass(kind, torch.optim.Optimizer) and kind is not torch.optim.Optimizer:
            taken = inspect.signature(getattr(steepest, name)).parameters
            assert {*inspect.signature(kind).parameters} <= {*taken, *WITHOUT_EFFECT}, name
    made = steepest.optimizer("lbfgs", torch.nn.Linear(2, 1), line_search_fn="strong_wolfe")
    assert type(made) is steepest.LBFGS is torch.optim.LBFGS


def imports(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (a.name.split(".")[0] for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")


def test_the_rooms_keep_to_themselves():
    for file in (SOURCE / "formulas").glob("*.py"):
        inner = {"..ops", ".meanings", "..definition", ".scaled", ".adam", "."}
        allowed = inner | ({"typing", "warnings", ".."} if file.name == "words.py" else set())
        assert set(imports(file)) <= allowed, file.name
    for file in (SOURCE / "backends").rglob("*.py"):
        text = file.read_text()
        assert not any(f'"{name}"' in text for name in steepest.rules), file.name


@pytest.mark.parametrize("name", steepest.rules)
def test_a_docstring_gives_source_and_differences(name):
    facts = catalogue.facts(steepest.rules[name])
    assert facts["year"], name
    assert facts["class"], name
    words = (
        "arXiv",
        "doi",
        "JMLR",
        "PMLR",
        "ICLR",
        "NeurIPS",
        "Coursera",
        "kellerjordan.github.io",
    )
    assert any(word in facts["paper"] for word in words)


def test_the_list_counts_states():
    found = {f["name"]: f for f in catalogue.listing()}
    assert found["sgd"]["bytes_per_parameter"] == 0
    assert found["adabelief"]["states"] == ["exp_avg", "exp_avg_var"]
    assert found["amsgrad"]["bytes_per_parameter"] == 12
    assert found["momentum"]["class"] == "Momentum"


def test_show_prints_rule_and_loops():
    rule = steepest.rules["adabelief"]
    assert "def adabelief(" in catalogue.shown(rule)
    assert "for i in range(" in catalogue.shown(rule, "cpu")
    assert "torch._foreach_" in catalogue.shown(rule, "foreach")
    with pytest.raises(ValueError, match="expected one of cpu, foreach, eager"):
        catalogue.shown(rule, "gpu")


def test_the_bench_knows_resnet50_and_measures_everyone():
    shapes = bench.resnet50()
    assert len(shapes) == 161
    assert sum(torch.Size(s).numel() for s in shapes) == 25_557_032
    found = bench.run(["300x64"], seconds=0.01)
    steps = found["sets"]["300x64"]["steps"]
    assert {"steepest AdaBelief", "torch AdamW, fused", "adabelief-pytorch AdaBelief"} <= set(steps)
    assert all(row["median"] > 0 and row["n"] >= 5 for row in steps.values())
    text = bench.table(found)
    assert "300x64: 19,200 parameters in 300 tensors" in text
    assert "/ fused" in text


def test_the_stub_is_what_the_script_writes():
    path = SOURCE.parent.parent / "scripts" / "stub.py"
    script = importlib.util.spec_from_file_location("stub", path)
    made = importlib.util.module_from_spec(script)
    script.loader.exec_module(made)
    assert made.STUB.read_text() == made.stub(), "python scripts/stub.py --write"


def test_type_checkers_know_the_signatures(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "import torch, steepest\n"
        "ps = torch.nn.Linear(2, 2).parameters()\n"
        "steepest.AdamW(ps, lr=1e-3, betas=(0.9, 0.99), weight_decay=torch.tensor(0.1))\n"
        "steepest.optimizer('adabelief', torch.nn.Linear(2, 2)).step()\n"
        "steepest.schedules.WarmupLR\n"
        "a: torch.optim.Optimizer = steepest.AdaBelief(ps, 1e-3, backend='cpu')\n"
        "r: steepest.Rule = steepest.rule(lambda p, g: p - g)\n"
        "steepest.Adamm(ps)\n"
        "steepest.AdamW(ps, lr='fast')\n"
        "steepest.AdamW(ps, nonsense=3)\n"
        "steepest.AdamW(ps, backend='gpu')\n"
    )
    call = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "--outputjson", file]
    done = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    found = json.loads(done.stdout)["generalDiagnostics"]
    assert {d["range"]["start"]["line"] + 1 for d in found} == {8, 9, 10, 11}, found


def test_rooms_are_imported_when_they_are_asked_for():
    code = (
        "import sys, steepest\n"
        "assert 'steepest.schedules' not in sys.modules and 'schedules' in dir(steepest)\n"
        "steepest.schedules.WarmupLR, steepest.strategies.Loader, steepest.check\n"
        "try: steepest.nothing\n"
        "except AttributeError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "module 'steepest' has no attribute 'nothing'\n"


@pytest.mark.parametrize("name", sorted(families.families))
def test_help_lists_every_argument_with_its_meaning(name):
    text = inspect.getdoc(getattr(steepest, name))
    for argument, default in families.families[name].arguments.items():
        if argument not in WITHOUT_EFFECT:
            lines = text.partition(f"\n{argument} = {default!r}")[2].splitlines()
            assert len(lines[1]) > 12, argument
            assert lines[1].startswith("    "), argument


def sources():
    """Module -> its file, and whether it is a package."""
    found = {}
    for file in SOURCE.rglob("*.py"):
        parts = ["steepest", *file.relative_to(SOURCE).with_suffix("").parts]
        package = parts[-1] == "__init__"
        found[".".join(parts[: -1 if package else None])] = file, package
    return found


def imported_at_once(name, known):
    """The modules of this package that a module imports as it is imported itself."""
    file, package = known[name]
    bodies = [ast.parse(file.read_text()).body]
    while bodies:
        for node in bodies.pop():
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                continue
            if isinstance(node, (ast.If, ast.Try, ast.With, ast.ClassDef)):
                bodies += [node.body, getattr(node, "orelse", []), getattr(node, "finalbody", [])]
            elif isinstance(node, ast.Import):
                yield from (a.name for a in node.names if a.name in known)
            elif isinstance(node, ast.ImportFrom):
                home = name.split(".")[: None if package else -1]
                home = home[: len(home) - node.level + 1] if node.level else []
                module = ".".join([*home, *([node.module] if node.module else [])])
                names = {f"{module}.{a.name}" for a in node.names}
                yield from (names & {*known}) or ({module} & {*known})


def test_no_imports_go_round_in_a_circle():
    known = sources()
    left = {name: {*imported_at_once(name, known)} - {name} for name in known}
    while free := {name for name, needs in left.items() if not needs & left.keys()}:
        left = {name: needs for name, needs in left.items() if name not in free}
    assert not left


def test_each_module_is_imported_alone():
    """With a bare package for steepest/__init__, whose order of imports is gone then."""
    code = (
        "import importlib, sys, types\n"
        "for name in sys.argv[2:]:\n"
        "    for key in [k for k in sys.modules if k.split('.')[0] == 'steepest']:\n"
        "        del sys.modules[key]\n"
        "    bare = sys.modules['steepest'] = types.ModuleType('steepest')\n"
        "    bare.__path__, bare.__version__ = [sys.argv[1]], '0'\n"
        "    importlib.import_module(name)\n"
    )
    names = [name for name in sources() if name not in ("steepest", "steepest.__main__")]
    assert len(names) > 100
    call = [sys.executable, "-c", code, str(SOURCE), *names]
    done = subprocess.run(call, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]


def test_old_names_go_on_with_a_warning():
    with pytest.warns(DeprecationWarning, match="use steepest.ops"):
        from steepest.formulas.words import sqrt
    assert sqrt is steepest.ops.sqrt
