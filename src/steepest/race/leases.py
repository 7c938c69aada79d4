"""Decides which process runs which trial if several processes share a study.

Before a process runs a trial, it takes a lease on the trial. A lease is a row in the table of the
study's system attributes. The keys of this table are unique, so on every database the first process
that inserts the row gets the trial. (Optuna's own RUNNING state is not enough: an Optuna trial has
a number and no name, so two processes could run the same trial of a race.)

A process also writes heartbeats. If another process sees no new heartbeat for GRACE seconds of its
own clock, it takes over the leases of the silent process. So clocks of two machines are never
compared.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import TypeVar

from sqlalchemy import Engine, and_, column, delete, insert, select, table, update
from sqlalchemy.exc import SQLAlchemyError

from steepest.race.location import Location
from steepest.race.protocol import Trial, Tuning

BEAT, GRACE = 5.0, 30.0
"""Seconds between two heartbeats; seconds without a heartbeat after which a process counts as
dead."""
LEASE, RACER = "claim:", "racer:"
"""Prefix of the keys of leases; prefix of the keys of heartbeats."""
AGAIN = "run the same command with --resume"

_ROWS = table("study_system_attributes", column("study_id"), column("key"), column("value_json"))


Item = TypeVar("Item", bound=Trial | Tuning)


def _key(trial: Trial | Tuning) -> str:
    return LEASE + ":".join(map(str, trial.key))


class Unshared:
    """The leases of a race that no other process can join: every trial is free."""

    def take(self, trials: Iterable[Item]) -> Item | None:
        return next(iter(trials), None)

    def done(self, trial: Trial | Tuning) -> None:
        pass

    def __enter__(self) -> Unshared:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class Leases(Unshared):
    """The leases that this process holds; its name is `location.racer`.

    Exit deletes the leases of unfinished trials.
    """

    def __init__(self, location: Location, engine: Engine, study: int) -> None:
        self._location, self._engine, self._study = location, engine, study
        self._racer = location.racer
        self._held: dict[str, str] = {}
        """Key of a lease -> the process that held it when the table was last read."""
        self._heartbeats: dict[str, tuple[object, float]] = {}
        """Process -> (its last heartbeat, the time at which this process first saw that
        heartbeat)."""
        self._open: set[str] = set()
        """Keys of the leases of this process whose trials are not finished."""
        self._over = threading.Event()
        self._heart = threading.Thread(target=self._send_heartbeats, daemon=True)

    def take(self, trials: Iterable[Item]) -> Item | None:
        """Lease the first of `trials` that no other process runs; None if others run them all."""
        taken = []
        with self._location.readable_errors(AGAIN):
            for trial in trials:
                if self._lease(_key(trial)):
                    break
                taken.append(trial)
            else:
                self._refresh()
                trial = next((t for t in taken if self._take_over(_key(t))), None)
        if trial:
            self._open.add(_key(trial))
        return trial

    def done(self, trial: Trial | Tuning) -> None:
        """Note that the trial is stored. Its lease stays, so no process runs the trial again."""
        self._open.discard(_key(trial))

    def _lease(self, key: str) -> bool:
        if key in self._open:
            return False
        for last in (False, True):
            if key in self._held:
                break
            try:
                self._insert(key, self._racer)
                self._held[key] = self._racer
            except SQLAlchemyError:  # each driver raises its own error
                self._refresh()
                if last and key not in self._held:  # not a lease that was deleted meanwhile
                    raise
        # an earlier process of the same racer has ended, so its leases belong to this process
        return self._held[key] == self._racer

    def _take_over(self, key: str) -> bool:
        owner = self._held.get(key, self._racer)
        if owner == self._racer:
            return False
        _, since = self._heartbeats.setdefault(owner, (None, time.monotonic()))
        if time.monotonic() - since < GRACE:
            return False
        return self._replace(key, self._racer, old=owner)

    def _refresh(self) -> None:
        """Read all leases and heartbeats."""
        query = select(_ROWS.c.key, _ROWS.c.value_json).where(
            _ROWS.c.study_id == self._study,
            _ROWS.c.key.startswith(LEASE) | _ROWS.c.key.startswith(RACER),
        )
        with self._engine.connect() as connection:
            rows = {key: json.loads(value) for key, value in connection.execute(query)}
        self._held = {key: value for key, value in rows.items() if key.startswith(LEASE)}
        now = time.monotonic()
        for key, heartbeat in rows.items():
            racer = key.removeprefix(RACER)
            if racer != key and self._heartbeats.get(racer, ("",))[0] != heartbeat:
                self._heartbeats[racer] = heartbeat, now

    def _insert(self, key: str, value: object) -> None:
        row = {"study_id": self._study, "key": key, "value_json": json.dumps(value)}
        with self._engine.begin() as connection:
            connection.execute(insert(_ROWS), row)

    def _replace(self, key: str, value: object, old: object = None) -> bool:
        """Set the value of a row; False if there is no such row, or if its value is not `old`."""
        where = [_ROWS.c.study_id == self._study, _ROWS.c.key == key]
        if old is not None:
            where.append(_ROWS.c.value_json == json.dumps(old))
        change = update(_ROWS).where(and_(*where)).values(value_json=json.dumps(value))
        with self._engine.begin() as connection:
            return connection.execute(change).rowcount == 1

    def _beat(self) -> None:
        key, heartbeat = RACER + self._racer, time.time_ns()  # any new number will do
        if not self._replace(key, heartbeat):
            self._insert(key, heartbeat)

    def _send_heartbeats(self) -> None:
        while not self._over.wait(BEAT):
            with suppress(SQLAlchemyError):  # the race will get the same error and report it
                self._beat()

    def __enter__(self) -> Leases:
        with self._location.readable_errors(AGAIN):
            self._beat()
        self._heart.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._heart.join(BEAT)
        own = and_(
            _ROWS.c.study_id == self._study,
            _ROWS.c.key.in_(self._open),
            _ROWS.c.value_json == json.dumps(self._racer),
        )
        if self._open:
            with suppress(SQLAlchemyError), self._engine.begin() as connection:
                connection.execute(delete(_ROWS).where(own))
