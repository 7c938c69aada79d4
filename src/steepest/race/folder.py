"""The folder of a race: only one race at a time runs in it, and all files in it are complete."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from steepest.errors import BadCall

try:
    import fcntl
except ImportError:  # Windows: there two races in one folder are not noticed
    fcntl = None

NO_RACE = "no race in '{}' to continue: leave --resume out"


def write(path: Path, text: str) -> None:
    """Write a file that gets its name only when it is complete."""
    unfinished = path.with_name(path.name + ".new")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)


def has_race(folder: Path, resume: bool) -> bool:
    """Whether `folder` has a race.

    BadCall if `resume` is true and there is no race, or if it is false and there are files.
    """
    # a kill before the first trial may leave these
    leftovers = (".lock", "study.db.new", "storage.json.new")
    if all(path.name.startswith(leftovers) for path in folder.iterdir()):
        if resume:
            raise BadCall(NO_RACE.format(folder))
        return False
    if not resume:
        raise BadCall(
            f"'{folder}' is not empty: continue the race in it with --resume, or choose another "
            f"folder with --out"
        )
    return True


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock `folder`, created if it is missing; BadCall if another race runs in it.

    The lock is released when the process ends, even if the process is killed.
    """
    path, created = folder / ".lock", not folder.exists()
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = os.open(path, os.O_RDWR | os.O_CREAT)
        except OSError as error:
            raise BadCall(
                f"cannot write to '{folder}' ({error.strerror}): choose another folder with --out"
            ) from error
        if fcntl is None:
            break
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(lock), path.stat()):
                break
        except BlockingIOError:
            os.close(lock)
            raise BadCall(
                f"another race is running in '{folder}': wait until it ends, or choose another "
                f"folder with --out"
            ) from None
        except FileNotFoundError:
            pass
        except OSError:  # a file system without locks
            break
        os.close(lock)  # the last holder has just removed the file: try again
    try:
        yield
    finally:
        with suppress(OSError):
            if fcntl is None:  # Windows cannot remove an open file
                os.close(lock)
            path.unlink()
            if created:
                folder.rmdir()  # fails unless it is empty, which means that no race began
        if fcntl is not None:
            os.close(lock)
