"""The trials of a race: one Optuna study, in the folder's `study.db` or in a database.

Only the parent process of a race writes to the study, and never a worker. Each trial is written in
one transaction.
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
from steepest.race import location
from steepest.race.leases import AGAIN, Leases, Unshared
from steepest.race.location import ATTRIBUTES, NO_STORE, Location
from steepest.race.protocol import Plan, Result, Trial
from steepest.race.schema import Provenance
from steepest.race.scores import final
from steepest.tasks import Task, facts, get

FORMAT = 3
"""Version of the stored format. It grows when older stores can no longer be read."""


class Store:
    """The plan, the provenance and the finished trials of one race.

    Reading a race needs none of the user's code.
    """

    def __init__(self, where: Path | Location) -> None:
        self.location = where if isinstance(where, Location) else location.of_race(where)
        attributes = self.location.attributes()
        if attributes is None or "plan" not in attributes:
            raise BadCall(
                NO_STORE.format(self.location.name, f"no study named {self.location.study!r} in it")
            )
        if attributes.get("format") != FORMAT:
            raise BadCall(
                f"'{self.location.name}' has format {attributes.get('format')}, but this version "
                f"of steepest reads format {FORMAT}: use the version that wrote it, or start a new "
                f"race"
            )
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            self._storage = self.location.storage()
            self._study = optuna.load_study(study_name=self.location.study, storage=self._storage)
        except Exception as error:  # optuna refuses the tables of another version
            why = str(error).strip().partition("\n")[0] or type(error).__name__
            raise BadCall(
                f"optuna {optuna.__version__} cannot read '{self.location.name}' ({why}): use the "
                f"version of optuna that wrote it"
            ) from error
        weakref.finalize(self, self._storage.engine.dispose)  # no connection outlives the store
        self._number = self._storage.get_study_id_from_name(self.location.study)
        self.plan = Plan(**attributes["plan"])
        self.task = Task(**attributes["task"])
        """The facts of the task, without its code."""
        self.spaces: dict[str, dict[str, tuple[float, float]]] = {
            entry: {knob: (low, high) for knob, (low, high) in ranges.items()}
            for entry, ranges in attributes["spaces"].items()
        }
        """Entry -> knob -> (low, high): the search ranges of the race."""
        self.provenance: Provenance = attributes["provenance"]

    @staticmethod
    def create(
        folder: Path,
        plan: Plan,
        provenance: Provenance,
        task: Task | None = None,
        where: Location | None = None,
    ) -> Store:
        """Create a new store. `task`: the task with the worst metric that a pilot run measured.

        If the process is killed, there is a complete store or none. If another process has
        meanwhile created this study in the database, the result is the store of that process.
        """
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        task = task or get(plan.task, plan.data)
        attributes = {
            "format": FORMAT,
            "provenance": provenance,
            "task": facts(task),
            "spaces": {entry: plan.space(entry) for entry in plan.entries},
            "plan": asdict(plan),
        }
        direction = StudyDirection.MAXIMIZE if task.maximize else StudyDirection.MINIMIZE
        where = where or location.in_folder(folder)
        unfinished = where.path and where.path.with_name(where.path.name + ".new")
        target = replace(where, path=unfinished)
        for leftover in folder.glob(location.FILE + ".new*"):  # SQLite's journal too
            leftover.unlink()
        with target.readable_errors("run the same command again"):
            _create_study(target, direction, attributes)
        if unfinished and where.path:
            os.replace(unfinished, where.path)
        else:
            where.save_link(folder)
        return Store(where)

    def leases(self) -> Unshared:
        """The leases that decide which process runs which trial, if several share the study."""
        if not self.location.racer:
            return Unshared()
        return Leases(self.location, self._storage.engine, self._number)

    def add(self, trial: Trial, result: Result) -> None:
        """Store one finished trial; its value in Optuna is the last validation metric."""
        ranges = {
            knob: (low, high)
            for knob, (low, high) in self.spaces[trial.entry].items()
            if low <= trial.hyper[knob] <= high  # a default may lie outside its range
        }
        frozen = create_trial(
            value=final(self.task, result),
            params={knob: trial.hyper[knob] for knob in ranges},
            distributions={k: FloatDistribution(*ranges[k], log=True) for k in ranges},
            intermediate_values=dict(zip(result.steps, result.validation, strict=True)),
            # the first two are columns in a dashboard
            user_attrs={
                "entry": trial.entry,
                "phase": trial.phase,
                "trial": asdict(trial),
                "result": asdict(result),
            },
        )
        with self.location.readable_errors(AGAIN):
            self._study.add_trial(frozen)

    def results(self) -> list[tuple[Trial, Result]]:
        """All finished trials, each once: tuning before fresh runs, then by entry and by index."""
        pairs: dict[tuple[str, str, int], tuple[Trial, Result]] = {}
        with self.location.readable_errors(AGAIN):
            stored = self._study.get_trials(deepcopy=False)
        for frozen in stored:
            trial = Trial(**frozen.user_attrs["trial"])
            pairs.setdefault(trial.key, (trial, Result(**frozen.user_attrs["result"])))
        order = {entry: i for i, entry in enumerate(self.plan.entries)}
        return sorted(
            pairs.values(),
            key=lambda pair: (-ord(pair[0].phase[0]), order[pair[0].entry], pair[0].index),
        )


def _create_study(where: Location, direction: StudyDirection, attributes: dict[str, Any]) -> None:
    """Create the study with its attributes, unless another process has already created it."""
    storage = where.storage()
    try:
        try:
            study = optuna.create_study(
                study_name=where.study, storage=storage, direction=direction
            )
        except (DuplicatedStudyError, StorageInternalError):  # each driver raises its own error
            if where.attributes() is None:
                raise
            study = optuna.load_study(study_name=where.study, storage=storage)
        known = study.user_attrs
        if "plan" in known:
            return
        if known or study.get_trials(deepcopy=False) or study.direction != direction:
            raise BadCall(
                f"--study {where.study}: {where.name} has an Optuna study of this name that is not "
                f"a race; choose another name"
            )
        number = storage.get_study_id_from_name(where.study)
        rows = [
            {"study_id": number, "key": key, "value_json": json.dumps(value)}
            for key, value in attributes.items()
        ]
        try:
            with storage.engine.begin() as connection:  # all rows or none: keys are unique
                connection.execute(insert(ATTRIBUTES), rows)
        except SQLAlchemyError:
            if "plan" not in (where.attributes() or {}):
                raise
    finally:
        storage.remove_session()
        storage.engine.dispose()
