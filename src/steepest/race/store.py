"""The trials of a race: one Optuna study, in the folder's `study.db` or in a database.

Written by the parent processes alone, each trial in one transaction.
"""

from __future__ import annotations

import json
import os
import weakref
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import FloatDistribution
from optuna.exceptions import DuplicatedStudyError, StorageInternalError
from optuna.study import StudyDirection
from optuna.trial import create_trial
from sqlalchemy import insert
from sqlalchemy.exc import SQLAlchemyError

from steepest.errors import BadCall
from steepest.race import place
from steepest.race.claims import AGAIN, Alone, Claims
from steepest.race.place import ATTRIBUTES, NO_STORE, Place
from steepest.race.protocol import Plan, Result, Trial, final
from steepest.race.schema import Provenance
from steepest.tasks import Task, facts, get

FORMAT = 3
"""Of what is stored; one higher whenever an older store can no longer be read."""


class Store:
    """The plan, the provenance and the finished trials of one race."""

    def __init__(self, where: Path | Place) -> None:
        self.place = where if isinstance(where, Place) else place.of(where)
        attributes = self.place.attributes()
        if attributes is None or "plan" not in attributes:
            raise BadCall(
                NO_STORE.format(self.place.name, f"no study named {self.place.study!r} in it")
            )
        if attributes.get("format") != FORMAT:
            raise BadCall(
                f"'{self.place.name}' is of format {attributes.get('format')}, written by another "
                f"version of steepest: expected format {FORMAT}; read it with the version that "
                f"wrote it, or start a new race"
            )
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            self._storage = self.place.storage()
            self._study = optuna.load_study(study_name=self.place.study, storage=self._storage)
        except Exception as error:  # optuna refuses tables of another version of itself
            why = str(error).strip().partition("\n")[0] or type(error).__name__
            raise BadCall(
                f"optuna {optuna.__version__} cannot read '{self.place.name}': {why}"
            ) from error
        weakref.finalize(self, self._storage.engine.dispose)  # no connection outlives it
        self._number = self._storage.get_study_id_from_name(self.place.study)
        stored = attributes["plan"]
        self.plan = Plan(**{**stored, "entries": tuple(stored["entries"])})
        self.task = Task(**attributes["task"])
        """Without its code: nothing of the user's is needed to read a race."""
        self.spaces: dict[str, dict[str, tuple[float, float]]] = {
            entry: {knob: (low, high) for knob, (low, high) in ranges.items()}
            for entry, ranges in attributes["spaces"].items()
        }
        """Search ranges, as the entries declared them."""
        self.provenance: Provenance = attributes["provenance"]

    @staticmethod
    def create(
        folder: Path,
        plan: Plan,
        provenance: Provenance,
        task: Task | None = None,
        where: Place | None = None,
    ) -> Store:
        """A new store; `task` as a pilot run has completed it.

        It is whole or it is not there, also after a kill. In a database another process may have
        been quicker: then this is its race.
        """
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        task = task or get(plan.task, plan.data)
        kept = {
            "format": FORMAT,
            "provenance": provenance,
            "task": facts(task),
            "spaces": {entry: plan.space(entry) for entry in plan.entries},
            "plan": asdict(plan),
        }
        way = StudyDirection.MAXIMIZE if task.maximize else StudyDirection.MINIMIZE
        where = where or place.own(folder)
        unfinished = where.path and where.path.with_name(where.path.name + ".new")
        made = replace(where, path=unfinished)
        for leftover in folder.glob(place.FILE + ".new*"):  # SQLite's journal among them
            leftover.unlink()
        with made.guarded("run the same command again"):
            _enter(made, way, kept)
        if unfinished and where.path:
            os.replace(unfinished, where.path)
        else:
            where.keep(folder)
        return Store(where)

    def claims(self) -> Alone:
        """Who runs what: this process alone, or those that share a database."""
        if not self.place.racer:
            return Alone()
        return Claims(self.place, self._storage.engine, self._number)

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
        with self.place.guarded(AGAIN):
            self._study.add_trial(kept)

    def results(self) -> list[tuple[Trial, Result]]:
        """All finished trials, each once: tuning first, then by entry and index."""
        pairs: dict[tuple[str, str, int], tuple[Trial, Result]] = {}
        with self.place.guarded(AGAIN):
            found = self._study.get_trials(deepcopy=False)
        for kept in found:
            trial = Trial(**kept.user_attrs["trial"])
            pairs.setdefault(trial.key, (trial, Result(**kept.user_attrs["result"])))
        order = {entry: i for i, entry in enumerate(self.plan.entries)}
        return sorted(
            pairs.values(),
            key=lambda pair: (-ord(pair[0].phase[0]), order[pair[0].entry], pair[0].index),
        )


def _enter(made: Place, way: StudyDirection, kept: dict[str, Any]) -> None:
    """Make the study with all that is `kept` beside its trials, unless another racer has."""
    storage = made.storage()
    try:
        try:
            study = optuna.create_study(study_name=made.study, storage=storage, direction=way)
        except (DuplicatedStudyError, StorageInternalError):  # which of them, drivers do not agree
            if made.attributes() is None:
                raise
            study = optuna.load_study(study_name=made.study, storage=storage)
        before = study.user_attrs
        if "plan" in before:
            return
        if before or study.get_trials(deepcopy=False) or study.direction != way:
            raise BadCall(
                f"--study {made.study}: in {made.name} that is an Optuna study, but not of a race; "
                f"choose another name"
            )
        number = storage.get_study_id_from_name(made.study)
        rows = [
            {"study_id": number, "key": key, "value_json": json.dumps(value)}
            for key, value in kept.items()
        ]
        try:
            with storage.engine.begin() as connection:  # all of it or nothing: keys are unique
                connection.execute(insert(ATTRIBUTES), rows)
        except SQLAlchemyError:
            if "plan" not in (made.attributes() or {}):
                raise
    finally:
        storage.remove_session()
        storage.engine.dispose()
