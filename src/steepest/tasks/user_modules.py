"""The modules of the user's own that a task's file and entries import: what they were at the start.

A worker that starts later imports them anew, and would run another program where one was edited.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path

from steepest.errors import TaskError

PYTHONS = os.path.join(os.path.realpath(os.path.dirname(os.__file__)), "")
"""Where the standard library lies."""
INSTALLED = f"-packages{os.sep}"
OURS = ("steepest", "steepest_task", "__main__")
"""No module of the user's own, or the task's file itself."""

_hashes: dict[tuple[str, str], str] = {}


def modules(task: str, optimizers: str | None = None, *, anew: bool = False) -> dict[str, str]:
    """Name -> sha256 of each module so far that lies beside the task's file or, where one of the
    optimizers is a module:Class, where we are.

    anew: a race begins, whose workers are to import what there is now.
    """
    if anew:
        _hashes.clear()
    roots = [Path(task).resolve().parent] if task.endswith(".py") else []
    roots += [Path.cwd()] if ":" in (optimizers or "") else []
    return {name: known for name, file in under(roots, task) if (known := _hash(name, Path(file)))}


def under(roots: Iterable[Path], task: str) -> Iterator[tuple[str, str]]:
    """Name and file of the modules below one of `roots`, by name: none that is installed, and not
    the task's own file.
    """
    starts = tuple(os.path.join(os.path.realpath(root), "") for root in roots)
    mine = os.path.realpath(task)
    for name, module in sorted(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if not isinstance(file, str) or not file.endswith(".py"):
            continue
        whole = _whole(file)
        if not whole.startswith(starts) or whole.startswith(PYTHONS) or INSTALLED in whole:
            continue
        if whole != mine and name.partition(".")[0] not in OURS:
            yield name, file


@cache
def _whole(file: str) -> str:
    """A module's file without links in its path: to ask the disk at every run takes long."""
    return os.path.realpath(file)


def _hash(name: str, path: Path) -> str | None:
    """As it was when it was first seen here: what is imported stays as it was."""
    key = name, str(path)
    if key not in _hashes:
        try:
            _hashes[key] = hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError:
            return None
    return _hashes[key]


def agree(began: Mapping[str, str]) -> None:
    """BadCall for a module that is another one here than where the race began."""
    for name, known in began.items():
        file = getattr(sys.modules.get(name), "__file__", None)
        if isinstance(file, str) and _hash(name, Path(file)) not in (known, None):
            raise TaskError(
                f"the module {name!r}, which the task or an entry imports, was changed during the "
                f"race: restore it and go on with --resume, or start a new race"
            )
