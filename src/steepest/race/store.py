"""The trials of a race in `study.db`: one Optuna study, written by the parent process alone."""

from __future__ import annotations

import errno
import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import FloatDistribution
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from optuna.trial import create_trial
from sqlalchemy.exc import SQLAlchemyError

from steepest.race import BadCall, entries
from steepest.race.protocol import Plan, Result, Trial, final
from steepest.race.tasks import Task, facts, get

STUDY = "race"
FORMAT = 2
"""Of what is stored; one higher whenever an older store can no longer be read."""


class Store:
    """The plan, the provenance and the finished trials of one race folder."""

    def __init__(self, folder: Path) -> None:
        path = folder / "study.db"
        if not path.is_file():
            raise BadCall(f"no study.db in '{folder}': expected the folder of a race")
        _look(path)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._path = path
        try:
            self._study = optuna.load_study(study_name=STUDY, storage=_storage(path))
        except Exception as error:  # optuna refuses tables of another version of itself
            why = str(error).strip().partition("\n")[0] or type(error).__name__
            raise BadCall(f"optuna {optuna.__version__} cannot read '{path}': {why}") from error
        attributes = self._study.user_attrs
        stored = attributes["plan"]
        self.plan = Plan(**{**stored, "entries": tuple(stored["entries"])})
        self.task = Task(**attributes["task"])
        """Without its code: nothing of the user's is needed to read a race."""
        self.spaces: dict[str, dict[str, tuple[float, float]]] = {
            entry: {knob: (low, high) for knob, (low, high) in ranges.items()}
            for entry, ranges in attributes["spaces"].items()
        }
        """Search ranges, as the entries declared them."""
        self.provenance: dict[str, Any] = attributes["provenance"]

    @staticmethod
    def create(
        folder: Path, plan: Plan, provenance: dict[str, Any], task: Task | None = None
    ) -> Store:
        """A new store; `task` as a pilot run has completed it.

        It takes its name when it is whole: a kill leaves no half of one.
        """
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        unfinished = folder / "study.db.new"
        for leftover in folder.glob("study.db.new*"):  # SQLite's journal among them
            leftover.unlink()
        task = task or get(plan.task, plan.data)
        direction = "maximize" if task.maximize else "minimize"
        with _writing(unfinished, "run the same command again"):
            storage = _storage(unfinished)
            study = optuna.create_study(study_name=STUDY, storage=storage, direction=direction)
            study.set_user_attr("format", FORMAT)
            study.set_user_attr("provenance", provenance)
            study.set_user_attr("task", facts(task))
            spaces = {entry: entries.space(entry) for entry in plan.entries}
            study.set_user_attr("spaces", spaces)
            study.set_user_attr("plan", asdict(plan))
            storage.remove_session()
            storage.engine.dispose()
        os.replace(unfinished, folder / "study.db")
        return Store(folder)

    def add(self, trial: Trial, result: Result) -> None:
        """Keep one finished trial; its Optuna value is the last validation metric."""
        ranges = {
            knob: (low, high)
            for knob, (low, high) in self.spaces[trial.entry].items()
            if low <= trial.hyper[knob] <= high  # a default may lie outside of the search range
        }
        kept = create_trial(
            value=final(self.task, result),
            params={knob: trial.hyper[knob] for knob in ranges},
            distributions={k: FloatDistribution(*ranges[k], log=True) for k in ranges},
            intermediate_values=dict(zip(result.steps, result.validation, strict=True)),
            user_attrs={"trial": asdict(trial), "result": asdict(result)},
        )
        with _writing(self._path, "run the same command with --resume"):
            self._study.add_trial(kept)

    def results(self) -> list[tuple[Trial, Result]]:
        """All finished trials, each once: tuning first, then by entry and index."""
        pairs: dict[tuple[str, str, int], tuple[Trial, Result]] = {}
        for kept in self._study.get_trials(deepcopy=False):
            trial = Trial(**kept.user_attrs["trial"])
            pairs.setdefault(trial.key, (trial, Result(**kept.user_attrs["result"])))
        order = {entry: i for i, entry in enumerate(self.plan.entries)}
        return sorted(
            pairs.values(),
            key=lambda pair: (-ord(pair[0].phase[0]), order[pair[0].entry], pair[0].index),
        )


@contextmanager
def _writing(path: Path, again: str) -> Iterator[None]:
    """A full or failing disk as one line; what was stored before stays valid."""
    try:
        yield
    except (StorageInternalError, SQLAlchemyError) as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        full = getattr(cause, "errno", None) == errno.ENOSPC or "full" in str(cause)
        remedy = "make room" if full else "mend that"
        raise OSError(f"cannot write '{path}' ({cause}): {remedy}, then {again}") from error


def _look(path: Path) -> None:
    """BadCall unless `path` is a store of this format. A foreign file is not written to.

    Optuna would add its tables first and then miss the study.
    """
    # a kill in the middle of a write leaves a journal, which a read-only connection cannot undo
    mode = "rw" if path.with_name(path.name + "-journal").exists() else "ro"
    query = (
        "select value_json from studies join study_user_attributes using (study_id) "
        "where study_name = ? and key = ?"
    )
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode={mode}", uri=True)) as found:
            plan, version = (found.execute(query, (STUDY, key)).fetchone() for key in _NEEDED)
    except sqlite3.Error as error:
        raise BadCall(_NO_STORE.format(path, error)) from error
    if plan is None:
        raise BadCall(_NO_STORE.format(path, f"no study named {STUDY!r} in it"))
    number = json.loads(version[0]) if version else None
    if number != FORMAT:
        raise BadCall(
            f"'{path}' is of format {number}, written by another version of steepest: expected "
            f"format {FORMAT}; read it with the version that wrote it, or start a new race"
        )


_NEEDED = ("plan", "format")
_NO_STORE = "'{}' is not the store of a race ({}): expected a study.db that `steepest race` wrote"


def _storage(path: Path) -> RDBStorage:
    # opened by path, not by URL: in a URL the signs ?, %, # and {} of a folder mean something
    def connect() -> sqlite3.Connection:
        return sqlite3.connect(path, check_same_thread=False)

    return RDBStorage("sqlite:///study.db", engine_kwargs={"creator": connect})
