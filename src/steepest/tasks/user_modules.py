"""Hashes of the user's own modules, which must not change during a race.

A worker process that starts later imports these modules again. If they had been edited meanwhile,
that worker would run other code.
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
"""The folder of the standard library."""
INSTALLED = f"-packages{os.sep}"
OURS = ("steepest", "steepest_task", "__main__")
"""Top-level names of modules that are not the user's own, and the name of the task's file."""

_hashes: dict[tuple[str, str], str] = {}


def modules(task: str, optimizers: str | None = None, *, anew: bool = False) -> dict[str, str]:
    """Name -> sha256 of the user's modules that have been imported so far.

    These are modules below the folder of the task's file. If an optimizer is given as module:Class,
    modules below the current folder are included too. anew: forget earlier hashes, because a race
    begins.
    """
    if anew:
        _hashes.clear()
    roots = [Path(task).resolve().parent] if task.endswith(".py") else []
    roots += [Path.cwd()] if ":" in (optimizers or "") else []
    hashes = {name: _hash_first_seen(name, Path(file)) for name, file in under(roots, task)}
    return {name: digest for name, digest in hashes.items() if digest}


def under(roots: Iterable[Path], task: str) -> Iterator[tuple[str, str]]:
    """(name, file) of the imported modules below one of `roots`, sorted by name.

    Installed modules and the task's own file are left out.
    """
    starts = tuple(os.path.join(os.path.realpath(root), "") for root in roots)
    task_file = os.path.realpath(task)
    for name, module in sorted(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if not isinstance(file, str) or not file.endswith(".py"):
            continue
        path = _real_path(file)
        if not path.startswith(starts) or path.startswith(PYTHONS) or INSTALLED in path:
            continue
        if path != task_file and name.partition(".")[0] not in OURS:
            yield name, file


@cache
def _real_path(file: str) -> str:
    """The path with links resolved. It is cached, because asking the disk in every run is slow."""
    return os.path.realpath(file)


def _hash_first_seen(name: str, path: Path) -> str | None:
    """The hash that the file had when it was first seen, or None if it could not be read.

    Later edits do not count, because an imported module does not change.
    """
    key = name, str(path)
    if key not in _hashes:
        try:
            _hashes[key] = hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError:
            return None
    return _hashes[key]


def agree(began: Mapping[str, str]) -> None:
    """Raise TaskError if a module's file differs from the one that the race began with."""
    for name, digest in began.items():
        file = getattr(sys.modules.get(name), "__file__", None)
        if isinstance(file, str) and _hash_first_seen(name, Path(file)) not in (digest, None):
            raise TaskError(
                f"the module {name!r}, which the task or an entry imports, was changed during the "
                f"race: restore it and continue with --resume, or start a new race"
            )
