"""Hashes of the user's own modules, which must not change during a race.

A worker process that starts later in the race imports these modules again. If a module had been
edited by then, this worker would run other code than the workers before it.
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
"""Modules with these top-level names are left out. "steepest_task" is the task's file itself."""

_hashes: dict[tuple[str, str], str] = {}


def modules(task: str, optimizers: str | None = None, *, anew: bool = False) -> dict[str, str]:
    """Name -> sha256 of each of the user's modules that has been imported so far.

    The user's modules are those below the folder of the task's file. If `optimizers` names a class
    as module:Class, modules below the current folder are included too. anew: forget earlier hashes,
    because a new race begins.
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
    """The path with links resolved. It is cached, because asking the disk in each run is slow."""
    return os.path.realpath(file)


def _hash_first_seen(name: str, path: Path) -> str | None:
    """The hash that the file had when it was first seen, or None if it could not be read.

    A later edit does not change the result, because the module in memory stays the same.
    """
    key = name, str(path)
    if key not in _hashes:
        try:
            _hashes[key] = hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError:
            return None
    return _hashes[key]


def agree(began: Mapping[str, str]) -> None:
    """Raise TaskError if a module's hash differs from `began`, the hashes at the race's start."""
    for name, digest in began.items():
        file = getattr(sys.modules.get(name), "__file__", None)
        if isinstance(file, str) and _hash_first_seen(name, Path(file)) not in (digest, None):
            raise TaskError(
                f"the module {name!r}, which the task or an entry imports, was changed during the "
                f"race: restore it and continue with --resume, or start a new race"
            )
