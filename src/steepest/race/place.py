"""Where the study of a race is: `study.db` in its folder, or a database that several may share."""

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
"""Of a race without --storage: all is in its folder."""
LINK = "storage.json"
"""In the folder of a race whose study is in a database: which, and as whom it claims trials."""
EXAMPLE = "postgresql+pg8000://user@host/database or sqlite:///races.db"
NO_STORE = "'{}' is not the store of a race ({}): expected one that `steepest race` wrote"
PATIENCE = 60
"""Seconds for an answer of a database."""
SECRET = re.compile(r"pass|pwd|secret|token", re.IGNORECASE)

_STUDIES = table("studies", column("study_id"), column("study_name"))
ATTRIBUTES = table("study_user_attributes", column("study_id"), column("key"), column("value_json"))


@dataclass(frozen=True)
class Place:
    """A study and the way to it. `url` may have a password: only `name` is for people."""

    url: URL
    study: str
    racer: str = ""
    """Who claims trials there; empty where nobody else can come."""
    path: Path | None = None
    """The file in the race's folder."""

    @property
    def name(self) -> str:
        return str(self.path or _public(self.url))

    def keep(self, folder: Path) -> None:
        """Have `folder` find this place again: without the password."""
        known = {"storage": _public(self.url), "study": self.study, "racer": self.racer}
        write(folder / LINK, json.dumps(known, indent=1) + "\n")

    def attributes(self) -> dict[str, Any] | None:
        """What is kept beside the trials; None without such a study. Nothing is written."""
        query = (
            select(ATTRIBUTES.c.key, ATTRIBUTES.c.value_json)
            .select_from(_STUDIES.outerjoin(
                ATTRIBUTES, _STUDIES.c.study_id == ATTRIBUTES.c.study_id
            ))
            .where(_STUDIES.c.study_name == self.study)
        )  # fmt: skip
        try:
            with self._engine().connect() as connection:  # Optuna would add its tables first
                if not inspect(connection).has_table(ATTRIBUTES.name):
                    return None
                rows = connection.execute(query).all()
        except (SQLAlchemyError, ImportError, TypeError) as error:  # TypeError: a URL's option
            self._explain(error, "do the same again", reading=True)
        return {key: json.loads(value) for key, value in rows if key is not None} if rows else None

    def _engine(self) -> Engine:
        """To read: a foreign file stays as it is."""
        path = self.path
        if path is None:
            return create_engine(self.url, poolclass=NullPool, connect_args=_arguments(self.url))
        # a kill in the middle of a write leaves a journal, which a read-only connection cannot undo
        mode = "rw" if path.with_name(path.name + "-journal").exists() else "ro"
        uri = f"{path.resolve().as_uri()}?mode={mode}"
        return create_engine(
            "sqlite://", poolclass=NullPool, creator=lambda: sqlite3.connect(uri, uri=True)
        )

    def storage(self) -> RDBStorage:
        """Optuna's, with its tables."""
        if self.path is not None:
            # by path, not by URL: in a URL the signs ?, %, # and {} of a folder mean something
            path = self.path

            def connect() -> sqlite3.Connection:
                return sqlite3.connect(path, check_same_thread=False)

            return RDBStorage("sqlite:///study.db", engine_kwargs={"creator": connect})
        # a server may have been restarted between two trials
        options = {"connect_args": _arguments(self.url), "pool_pre_ping": True}
        text = self.url.render_as_string(hide_password=False)
        text = text.replace("{", "{{").replace("}", "}}")  # Optuna formats it
        for _ in range(2):
            try:
                return RDBStorage(text, engine_kwargs=options)
            except (SQLAlchemyError, StorageInternalError):  # another racer makes the tables
                time.sleep(0.5)
        return RDBStorage(text, engine_kwargs=options)

    @contextmanager
    def guarded(self, again: str) -> Iterator[None]:
        """An error of the disk or the database as one line; what was stored before stays valid."""
        try:
            yield
        except (StorageInternalError, SQLAlchemyError, KeyError) as error:  # KeyError: no study
            self._explain(error, again)

    def _explain(self, error: Exception, again: str, *, reading: bool = False) -> NoReturn:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        said = cause.args[0] if cause.args else ""
        why = said.get("M") if isinstance(said, dict) else str(cause)  # pg8000 gives all fields
        why = str(why or type(cause).__name__).strip().partition("\n")[0]
        full = getattr(cause, "errno", None) == errno.ENOSPC or re.search("full|No space", why)
        remedy = "make room" if full else "mend that"
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


def own(folder: Path) -> Place:
    """The file in a race's own folder."""
    return Place(make_url("sqlite://"), STUDY, path=folder / FILE)


def at(storage: str, study: str) -> Place:
    """A study of that name in a database, and a new racer."""
    return Place(_parsed(storage), study, uuid.uuid4().hex)


def of(folder: Path, storage: str | None = None) -> Place:
    """Where the race in `folder` is; `storage`: its database has moved, or wants a password."""
    link = folder / LINK
    if link.is_file():
        try:
            known = json.loads(link.read_text(encoding="utf-8"))
            place = Place(_parsed(storage or known["storage"]), known["study"], known["racer"])
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, BadCall):
                raise
            raise BadCall(
                f"'{link}' is damaged ({error}): restore it, or join its study again with "
                f"--storage and --study in a new folder"
            ) from error
        if storage:
            place.keep(folder)
        return place
    if storage:
        raise BadCall(f"--storage, but the race in '{folder}' is kept in its {FILE}: leave it out")
    if not (folder / FILE).is_file():
        raise BadCall(f"no {FILE} in '{folder}': expected the folder of a race")
    return own(folder)


def _parsed(storage: str) -> URL:
    """The URL with what the environment adds; BadCall, in which no password is shown."""
    try:
        url = make_url(storage)
        dialect = url.get_dialect()
    except (ArgumentError, NoSuchModuleError, ValueError) as error:
        scheme = f"{storage.partition('://')[0]!r}" if "://" in storage else "no scheme"
        what = "that SQLAlchemy knows" if isinstance(error, NoSuchModuleError) else "of a database"
        raise BadCall(f"--storage with {scheme}: expected a URL {what}, {EXAMPLE}") from None
    except ImportError as error:
        raise BadCall(f"--storage: {error}") from None
    if url.get_backend_name() == "sqlite":
        if url.database in (None, "", ":memory:"):
            raise BadCall(f"--storage {storage}: keeps nothing; expected a file, {EXAMPLE}")
        return url.set(database=os.path.abspath(str(url.database)))
    if dialect.driver == "pg8000" and not url.username:
        return url.set(username=os.environ.get("PGUSER") or getpass.getuser())
    return url


def _public(url: URL) -> str:
    url = url.difference_update_query([key for key in url.query if SECRET.search(key)])
    return URL.create(
        url.drivername, url.username, None, url.host, url.port, url.database, url.query
    ).render_as_string()


def _arguments(url: URL) -> dict[str, Any]:
    """For the driver: patience with others, but not with a server that is silent for ever."""
    if url.drivername.endswith("+pg8000"):  # it does not look where libpq finds a password
        password = url.password or os.environ.get("PGPASSWORD", "")
        return {"timeout": PATIENCE, "password": password}
    return {"timeout": PATIENCE} if url.get_backend_name() == "sqlite" else {}
