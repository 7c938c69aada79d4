"""The folder of a race: for one race at a time, and never with half a file in it."""

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

NOTHING = "no race in '{}' to continue: leave --resume out"


def write(path: Path, text: str) -> None:
    """A file that takes its name when it is whole."""
    unfinished = path.with_name(path.name + ".new")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)


def begun(folder: Path, resume: bool) -> bool:
    """Whether a race is in `folder`; BadCall unless that is what `resume` expects."""
    # what a kill before the first trial may have left
    ours = (".lock", "study.db.new", "storage.json.new")
    if all(path.name.startswith(ours) for path in folder.iterdir()):
        if resume:
            raise BadCall(NOTHING.format(folder))
        return False
    if not resume:
        raise BadCall(
            f"'{folder}' is not empty: expected a new folder; continue its race with --resume or "
            f"choose another folder with --out"
        )
    return True


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """`folder`, made where it is missing, for this race alone; BadCall if another one runs in it.

    The lock ends with the process, however that ends.
    """
    path, made = folder / ".lock", not folder.exists()
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
                f"another race is running in '{folder}': wait for it, or choose another folder "
                f"with --out"
            ) from None
        except FileNotFoundError:
            pass
        except OSError:  # a file system without locks
            break
        os.close(lock)  # its last holder has just removed it: once more
    try:
        yield
    finally:
        with suppress(OSError):
            if fcntl is None:  # Windows removes no open file
                os.close(lock)
            path.unlink()
            if made:
                folder.rmdir()  # which fails unless it is empty: of a race that never began
        if fcntl is not None:
            os.close(lock)
