"""Where the study of a race is stored: in `study.db` in its folder, or in a database that several
processes share.
"""

from __future__ import annotations

import errno
import getpass
import json
import os
import re
import sqlite3
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from sqlalchemy import URL, Engine, column, create_engine, inspect, select, table
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from steepest.errors import BadCall
from steepest.race.folder import write

STUDY, FILE = "race", "study.db"
"""Name and file of the study if a race has no --storage."""
LINK = "storage.json"
"""If a study is in a database, this file in the race's folder has its URL, its name and the
racer."""
EXAMPLE = "postgresql+pg8000://user@host/database or sqlite:///races.db"
NO_STORE = "'{}' is not the store of a race ({}): expected a store that `steepest race` wrote"
TIMEOUT = 60
"""Seconds to wait for an answer of a database."""
SECRET = re.compile(r"pass|pwd|secret|token", re.IGNORECASE)

_STUDIES = table("studies", column("study_id"), column("study_name"))
ATTRIBUTES = table("study_user_attributes", column("study_id"), column("key"), column("value_json"))


@dataclass(frozen=True)
class Location:
    """A study and how to reach it."""

    url: URL
    """May contain a password. Messages show `name` instead."""
    study: str
    racer: str = ""
    """Name under which this process holds leases; empty if no other process can join."""
    path: Path | None = None
    """The file of the study, if it is in the race's folder."""

    @property
    def name(self) -> str:
        return str(self.path or _public(self.url))

    def save_link(self, folder: Path) -> None:
        """Write a file into `folder` that says where its study is, without the password."""
        link = {"storage": _public(self.url), "study": self.study, "racer": self.racer}
        write(folder / LINK, json.dumps(link, indent=1) + "\n")

    def attributes(self) -> dict[str, Any] | None:
        """What the study stores beside its trials; None without such a study. Writes nothing."""
        joined = _STUDIES.outerjoin(ATTRIBUTES, _STUDIES.c.study_id == ATTRIBUTES.c.study_id)
        query = (
            select(ATTRIBUTES.c.key, ATTRIBUTES.c.value_json)
            .select_from(joined)
            .where(_STUDIES.c.study_name == self.study)
        )
        try:
            with self._engine().connect() as connection:  # Optuna would create its tables
                if not inspect(connection).has_table(ATTRIBUTES.name):
                    return None
                rows = connection.execute(query).all()
        except (SQLAlchemyError, ImportError, TypeError) as error:  # TypeError: a URL's option
            self._raise_readable(error, "run the same command again", reading=True)
        return {key: json.loads(value) for key, value in rows if key is not None} if rows else None

    def _engine(self) -> Engine:
        """An engine for reading only, so that a file that is no study is not changed."""
        path = self.path
        if path is None:
            return create_engine(self.url, poolclass=NullPool, connect_args=_arguments(self.url))
        # a kill during a write leaves a journal, which a read-only connection cannot roll back
        mode = "rw" if path.with_name(path.name + "-journal").exists() else "ro"
        uri = f"{path.resolve().as_uri()}?mode={mode}"
        return create_engine(
            "sqlite://", poolclass=NullPool, creator=lambda: sqlite3.connect(uri, uri=True)
        )

    def storage(self) -> RDBStorage:
        """Optuna's storage; creates its tables if they are missing."""
        if self.path is not None:
            # by path: in a URL, the characters ?, %, #, { and } of a folder's name are special
            path = self.path

            def connect() -> sqlite3.Connection:
                return sqlite3.connect(path, check_same_thread=False)

            return RDBStorage("sqlite:///study.db", engine_kwargs={"creator": connect})
        # the server may restart between two trials
        options = {"connect_args": _arguments(self.url), "pool_pre_ping": True}
        text = self.url.render_as_string(hide_password=False)
        text = text.replace("{", "{{").replace("}", "}}")  # Optuna calls str.format on it
        for _ in range(2):
            try:
                return RDBStorage(text, engine_kwargs=options)
            except (SQLAlchemyError, StorageInternalError):  # another racer creates the tables
                time.sleep(0.5)
        return RDBStorage(text, engine_kwargs=options)

    @contextmanager
    def readable_errors(self, again: str) -> Iterator[None]:
        """Raise an error of the disk or database as one line that ends with "then `again`"."""
        try:
            yield
        except (StorageInternalError, SQLAlchemyError, KeyError) as error:  # KeyError: no study
            self._raise_readable(error, again)

    def _raise_readable(self, error: Exception, again: str, *, reading: bool = False) -> NoReturn:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        first = cause.args[0] if cause.args else ""
        why = first.get("M") if isinstance(first, dict) else str(cause)  # pg8000 gives all fields
        why = str(why or type(cause).__name__).strip().partition("\n")[0]
        full = getattr(cause, "errno", None) == errno.ENOSPC or re.search("full|No space", why)
        remedy = "make room" if full else "solve this problem"
        if self.path is not None and reading:
            raise BadCall(NO_STORE.format(self.name, why)) from error
        if self.path is not None:
            raise OSError(f"cannot write '{self.path}' ({why}): {remedy}, then {again}") from error
        if isinstance(error, ImportError):
            remedy = "install that driver, or pg8000 with pip install 'steepest[postgresql]'"
        elif re.search("password|authentication", why):
            remedy = "give the password in PGPASSWORD or in the URL of --storage"
        if self.url.password:
            why = why.replace(self.url.password, "***")
        raise BadCall(f"cannot use the database {self.name} ({why}): {remedy}, then {again}") from (
            None if self.url.password else error
        )


def in_folder(folder: Path) -> Location:
    """The location of a study in the race's own folder."""
    return Location(make_url("sqlite://"), STUDY, path=folder / FILE)


def in_database(storage: str, study: str) -> Location:
    """The location of the study `study` in the database at the URL `storage`, for a new racer."""
    return Location(_parsed(storage), study, uuid.uuid4().hex)


def of_race(folder: Path, storage: str | None = None) -> Location:
    """The location of the study of the race in `folder`.

    `storage`: URL of its database, if the database has moved or needs a password.
    """
    link = folder / LINK
    if link.is_file():
        try:
            fields = json.loads(link.read_text(encoding="utf-8"))
            url = _parsed(storage or fields["storage"])
            location = Location(url, fields["study"], fields["racer"])
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, BadCall):
                raise
            raise BadCall(
                f"'{link}' is damaged ({error}): restore the file, or join the study again with "
                f"--storage and --study in a new folder"
            ) from error
        if storage:
            location.save_link(folder)
        return location
    if storage:
        raise BadCall(
            f"--storage was given, but the race in '{folder}' is stored in its {FILE}: leave "
            f"--storage out"
        )
    if not (folder / FILE).is_file():
        raise BadCall(f"no {FILE} in '{folder}': expected the folder of a race")
    return in_folder(folder)


def _parsed(storage: str) -> URL:
    """Parse a URL; a missing user name is read from the environment. Errors show no password."""
    try:
        url = make_url(storage)
        dialect = url.get_dialect()
    except (ArgumentError, NoSuchModuleError, ValueError) as error:
        scheme = f"{storage.partition('://')[0]!r}" if "://" in storage else "no scheme"
        what = "that SQLAlchemy knows" if isinstance(error, NoSuchModuleError) else "of a database"
        raise BadCall(
            f"--storage with {scheme}: expected a URL {what}, such as {EXAMPLE}"
        ) from None
    except ImportError as error:
        raise BadCall(f"--storage: {error}") from None
    if url.get_backend_name() == "sqlite":
        if url.database in (None, "", ":memory:"):
            raise BadCall(
                f"--storage {storage}: this database is only in memory; give another one, such as "
                f"{EXAMPLE}"
            )
        return url.set(database=os.path.abspath(str(url.database)))
    if dialect.driver == "pg8000" and not url.username:
        return url.set(username=os.environ.get("PGUSER") or getpass.getuser())
    return url


def _public(url: URL) -> str:
    """The URL without passwords and other secrets."""
    url = url.difference_update_query([key for key in url.query if SECRET.search(key)])
    return URL.create(
        url.drivername, url.username, None, url.host, url.port, url.database, url.query
    ).render_as_string()


def _arguments(url: URL) -> dict[str, Any]:
    """Arguments for the driver: a timeout, and for pg8000 the password (or PGPASSWORD)."""
    if url.drivername.endswith("+pg8000"):  # unlike libpq, pg8000 ignores PGPASSWORD
        password = url.password or os.environ.get("PGPASSWORD", "")
        return {"timeout": TIMEOUT, "password": password}
    return {"timeout": TIMEOUT} if url.get_backend_name() == "sqlite" else {}
