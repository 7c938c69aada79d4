"""The old name, steepest.whole: it imports, it warns, and what was pickled under it loads."""

import importlib
import io
import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn

import steepest
from steepest import full_batch

WARNING = "steepest.whole is steepest.full_batch now"
MODULES = {
    "BFGS": "quasi", "Annealing": "searches", "CoordinateSearch": "searches",
    "Genetic": "evolution", "LevenbergMarquardt": "residuals", "LinearFit": "linear",
    "Newton": "curvature", "NewtonCG": "curvature", "Population": "members",
    "least_squares": "linear",
}  # fmt: skip


def test_each_way_to_import_it_goes_on_with_a_warning():
    with pytest.warns(DeprecationWarning, match=WARNING) as caught:
        from steepest.whole import Newton
    assert len(caught) == 1
    assert caught[0].filename == __file__
    with pytest.warns(DeprecationWarning, match=WARNING) as caught:
        assert steepest.whole.Newton is Newton is full_batch.Newton
    assert len(caught) == 1
    import steepest.whole as old

    for name in full_batch.__all__:
        with pytest.warns(DeprecationWarning, match=WARNING):
            assert getattr(old, name) is getattr(full_batch, name)
    with pytest.raises(AttributeError, match="nothing"):
        _ = old.nothing


def test_a_script_shows_one_warning_per_line():
    code = (
        "import steepest; assert {'full_batch'} == {'full_batch', 'whole'} & {*dir(steepest)}\n"
        "import steepest.whole\n"
        "from steepest.whole import BFGS, Newton\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.count("DeprecationWarning") == 1
    assert f"<string>:3: DeprecationWarning: {WARNING}" in done.stderr


@pytest.mark.parametrize("name", MODULES)
def test_pickles_by_the_old_module_names_load_in_a_fresh_process(name):
    old = f"csteepest.whole.{MODULES[name]}\n{name}\n."
    code = (
        f"import pickle; found = pickle.loads({old.encode()!r})\n"
        f"import steepest; assert found is steepest.full_batch.{name}\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def named_as_before(monkeypatch):
    """Classes that pickle as they did: by the module names under steepest.whole."""
    importlib.import_module("steepest.whole")

    def named(cls):
        monkeypatch.setattr(cls, "__module__", cls.__module__.replace("full_batch", "whole"))

    return named


def test_an_optimizer_that_was_pickled_by_the_old_name_goes_on(named_as_before, monkeypatch):
    p = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    made = full_batch.BFGS([p])
    made.step(lambda: (p**4).sum())
    named_as_before(full_batch.BFGS)
    file = io.BytesIO()
    torch.save({"optimizer": made, "params": made.param_groups[0]["params"]}, file)
    assert b"steepest.whole.quasi" in file.getvalue()
    monkeypatch.undo()
    saved = torch.load(io.BytesIO(file.getvalue()), weights_only=False)
    (q,), other = saved["params"], saved["optimizer"]
    assert type(other) is full_batch.BFGS
    for _ in range(3):
        made.step(lambda: (p**4).sum())
        other.step(lambda: (q**4).sum())
    assert torch.equal(p, q)
    assert other.evaluations == made.evaluations


def test_weights_only_takes_the_old_name_where_it_is_allowed(named_as_before, monkeypatch):
    fit = full_batch.least_squares(torch.eye(3), torch.ones(3))
    named_as_before(full_batch.LinearFit)
    file = io.BytesIO()
    torch.save(fit, file)
    monkeypatch.undo()
    with pytest.raises(pickle.UnpicklingError, match=r"steepest\.whole\.linear\.LinearFit"):
        torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    allowed = [(full_batch.LinearFit, "steepest.whole.linear.LinearFit")]
    with torch.serialization.safe_globals(allowed):
        loaded = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    assert type(loaded) is full_batch.LinearFit
    assert torch.equal(loaded.coefficients, fit.coefficients)


def test_a_state_dict_holds_no_module_name():
    """So weights_only loads those of before and of now alike; their keys are the same."""
    made = full_batch.Newton([nn.Parameter(torch.ones(2))])
    file = io.BytesIO()
    torch.save(made.state_dict(), file)
    assert b"steepest" not in file.getvalue()
    memory = torch.load(io.BytesIO(file.getvalue()), weights_only=True)["whole"]
    assert memory == {"kind": "Newton", "thirds": 0, "steps": 0, "size": None, "damping": 0.0}
