"""Decides which process runs which trial when several share a study.

A process claims a trial before it runs it. A claim is a row in the table of the study's system
attributes, whose keys are unique: on every database the first process to insert the row has the
trial. (Optuna's own RUNNING state is not enough: its trials have a number, not a name, so two
processes could run the same one.) A process also writes signs of life. When another process has
waited for GRACE seconds, by its own clock, without a new sign, it takes over the claims. So no two
clocks are compared.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable
from contextlib import suppress

from sqlalchemy import Engine, and_, column, delete, insert, select, table, update
from sqlalchemy.exc import SQLAlchemyError

from steepest.race.place import Place
from steepest.race.protocol import Trial

BEAT, GRACE = 5.0, 30.0
"""Seconds between two signs of life, and without one until a racer is taken for dead."""
CLAIM, RACER = "claim:", "racer:"
AGAIN = "run the same command with --resume"

_ROWS = table("study_system_attributes", column("study_id"), column("key"), column("value_json"))


def _claim(trial: Trial) -> str:
    return CLAIM + ":".join(map(str, trial.key))


class Alone:
    """The claims of a race that nobody can join; a context manager."""

    def take(self, trials: Iterable[Trial]) -> Trial | None:
        return next(iter(trials), None)

    def done(self, trial: Trial) -> None:
        pass

    def __enter__(self) -> Alone:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class Claims(Alone):
    """The claims of `place.racer`; gives back at its end what is not done."""

    def __init__(self, place: Place, engine: Engine, study: int) -> None:
        self._place, self._engine, self._study, self._me = place, engine, study, place.racer
        self._held: dict[str, str] = {}
        """Claim -> racer, as last seen."""
        self._signs: dict[str, tuple[object, float]] = {}
        """Racer -> its last sign, and when it was first seen here."""
        self._open: set[str] = set()
        self._over = threading.Event()
        self._heart = threading.Thread(target=self._live, daemon=True)

    def take(self, trials: Iterable[Trial]) -> Trial | None:
        """The first of `trials` that nobody else runs; None if others have all of them."""
        others = []
        with self._place.guarded(AGAIN):
            for trial in trials:
                if self._free(_claim(trial)):
                    break
                others.append(trial)
            else:
                self._look()
                trial = next((t for t in others if self._orphaned(_claim(t))), None)
        if trial:
            self._open.add(_claim(trial))
        return trial

    def done(self, trial: Trial) -> None:
        """It is stored: its claim stays, so that nobody runs it again."""
        self._open.discard(_claim(trial))

    def _free(self, key: str) -> bool:
        if key in self._open:
            return False
        for last in (False, True):
            if key in self._held:
                break
            try:
                self._insert(key, self._me)
                self._held[key] = self._me
            except SQLAlchemyError:  # of which kind, drivers do not agree
                self._look()
                if last and key not in self._held:  # nor has it been given back meanwhile
                    raise
        # what it claimed in an earlier life is its own: that life is over
        return self._held[key] == self._me

    def _orphaned(self, key: str) -> bool:
        owner = self._held.get(key, self._me)
        if owner == self._me:
            return False
        _, since = self._signs.setdefault(owner, (None, time.monotonic()))
        if time.monotonic() - since < GRACE:
            return False
        return self._replace(key, self._me, old=owner)

    def _look(self) -> None:
        query = select(_ROWS.c.key, _ROWS.c.value_json).where(
            _ROWS.c.study_id == self._study,
            _ROWS.c.key.startswith(CLAIM) | _ROWS.c.key.startswith(RACER),
        )
        with self._engine.connect() as connection:
            rows = {key: json.loads(value) for key, value in connection.execute(query)}
        self._held = {key: value for key, value in rows.items() if key.startswith(CLAIM)}
        now = time.monotonic()
        for key, sign in rows.items():
            racer = key.removeprefix(RACER)
            if racer != key and self._signs.get(racer, ("",))[0] != sign:
                self._signs[racer] = sign, now

    def _insert(self, key: str, value: object) -> None:
        row = {"study_id": self._study, "key": key, "value_json": json.dumps(value)}
        with self._engine.begin() as connection:
            connection.execute(insert(_ROWS), row)

    def _replace(self, key: str, value: object, old: object = None) -> bool:
        where = [_ROWS.c.study_id == self._study, _ROWS.c.key == key]
        if old is not None:
            where.append(_ROWS.c.value_json == json.dumps(old))
        change = update(_ROWS).where(and_(*where)).values(value_json=json.dumps(value))
        with self._engine.begin() as connection:
            return connection.execute(change).rowcount == 1

    def _beat(self) -> None:
        key, sign = RACER + self._me, time.time_ns()  # any number that was not there before
        if not self._replace(key, sign):
            self._insert(key, sign)

    def _live(self) -> None:
        while not self._over.wait(BEAT):
            with suppress(SQLAlchemyError):  # the race itself will notice, and says it
                self._beat()

    def __enter__(self) -> Claims:
        with self._place.guarded(AGAIN):
            self._beat()
        self._heart.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._heart.join(BEAT)
        mine = and_(_ROWS.c.study_id == self._study, _ROWS.c.key.in_(self._open))
        if self._open:
            with suppress(SQLAlchemyError), self._engine.begin() as connection:
                connection.execute(
                    delete(_ROWS).where(mine, _ROWS.c.value_json == json.dumps(self._me))
                )
