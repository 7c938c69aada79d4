"""The trials of a race in `study.db`: one Optuna study, written by the parent process alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
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
from steepest.race.tasks import get

STUDY = "race"


class Store:
    """The plan, the provenance and the finished trials of one race folder."""

    def __init__(self, folder: Path) -> None:
        path = folder / "study.db"
        if not path.is_file():
            raise BadCall(f"no study.db in '{folder}': expected the folder of a race")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._path = path
        try:
            self._study = optuna.load_study(study_name=STUDY, storage=_storage(path))
            attributes = self._study.user_attrs
            stored = attributes["plan"]
        except Exception as error:  # sqlalchemy, sqlite or optuna: not a race's database
            raise BadCall(
                f"'{path}' is not the store of a race ({type(error).__name__}): expected a "
                f"study.db that `steepest race` wrote"
            ) from error
        self.plan = Plan(**{**stored, "entries": tuple(stored["entries"])})
        self.provenance: dict[str, Any] = attributes["provenance"]

    @staticmethod
    def create(folder: Path, plan: Plan, provenance: dict[str, Any]) -> Store:
        """A new store. It takes its name when it is whole: a kill leaves no half of one."""
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        unfinished = folder / "study.db.new"
        for leftover in folder.glob("study.db.new*"):  # SQLite's journal among them
            leftover.unlink()
        direction = "maximize" if get(plan.task).maximize else "minimize"
        with _writing(unfinished):
            storage = _storage(unfinished)
            study = optuna.create_study(study_name=STUDY, storage=storage, direction=direction)
            study.set_user_attr("provenance", provenance)
            study.set_user_attr("plan", asdict(plan))
            storage.remove_session()
            storage.engine.dispose()
        os.replace(unfinished, folder / "study.db")
        return Store(folder)

    def add(self, trial: Trial, result: Result) -> None:
        """Keep one finished trial; its Optuna value is the last validation metric."""
        ranges = {
            knob: (low, high)
            for knob, (low, high) in entries.space(trial.entry).items()
            if low <= trial.hyper[knob] <= high  # a default may lie outside of the search range
        }
        kept = create_trial(
            value=final(get(trial.task), result),
            params={knob: trial.hyper[knob] for knob in ranges},
            distributions={k: FloatDistribution(*ranges[k], log=True) for k in ranges},
            intermediate_values=dict(zip(result.steps, result.validation, strict=True)),
            user_attrs={"trial": asdict(trial), "result": asdict(result)},
        )
        with _writing(self._path):
            self._study.add_trial(kept)

    def results(self) -> list[tuple[Trial, Result]]:
        """All finished trials: tuning first, then by entry and index."""
        pairs = [
            (Trial(**t.user_attrs["trial"]), Result(**t.user_attrs["result"]))
            for t in self._study.get_trials(deepcopy=False)
        ]
        order = {entry: i for i, entry in enumerate(self.plan.entries)}
        return sorted(
            pairs, key=lambda pair: (-ord(pair[0].phase[0]), order[pair[0].entry], pair[0].index)
        )


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """A full or failing disk as one line; what was stored before stays valid."""
    try:
        yield
    except (StorageInternalError, SQLAlchemyError) as error:
        cause = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise OSError(
            f"cannot write '{path}' ({cause}): make room, then run the same command with --resume"
        ) from error


def _storage(path: Path) -> RDBStorage:
    return RDBStorage(f"sqlite:///{path}")
