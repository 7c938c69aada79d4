"""The modules of the user's own that a task's file and entries import: what they were at the start.

A worker that starts later imports them anew, and would run another program where one was edited.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from pathlib import Path

from steepest.race.tasks.shape import TaskError

_hashes: dict[tuple[str, str], str] = {}


def modules(task: str, optimizers: str | None = None, *, anew: bool = False) -> dict[str, str]:
    """Name -> sha256 of each module so far that lies beside the task's file or, where one of the
    optimizers is a module:Class, where we are.

    anew: a race begins, whose workers are to import what there is now.
    """
    if anew:
        _hashes.clear()
    roots = {Path(task).resolve().parent} if task.endswith(".py") else set()
    roots |= {Path.cwd()} if ":" in (optimizers or "") else set()
    found = {}
    for name, module in [*sys.modules.items()]:
        file = getattr(module, "__file__", None)
        if not isinstance(file, str) or name.partition(".")[0] in ("steepest", "__main__"):
            continue
        path = Path(file)
        installed = any(part.endswith("-packages") for part in path.parts)
        if path.suffix != ".py" or installed or not roots & {*path.resolve().parents}:
            continue
        if path.resolve() != Path(task).resolve() and (known := _hash(name, path)):
            found[name] = known
    return dict(sorted(found.items()))


def _hash(name: str, path: Path) -> str | None:
    """As it was when it was first seen here: what is imported stays as it was."""
    key = name, str(path)
    if key not in _hashes:
        try:
            _hashes[key] = hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError:
            return None
    return _hashes[key]


def agree(task: str, began: Mapping[str, str]) -> None:
    """BadCall for a module that is another one here than where the race began."""
    now = modules(task, ":")
    for name, known in began.items():
        if now.get(name, known) != known:
            raise TaskError(
                f"the module {name!r}, which the task or an entry imports, was changed during the "
                f"race: restore it and go on with --resume, or start a new race"
            )
