"""What tests of tasks in the user's file share."""

import sys

import pytest

from steepest.race import driver, trials
from steepest.tasks import user_file
from tests.race.invented import InProcess


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """An empty working folder; races that work in this process, without warming up."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(driver, "Pool", InProcess)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(trials, "_warm_up", lambda _: None)
    yield tmp_path
    sys.modules.pop(user_file.MODULE, None)
