"""What is trained: bundled tasks, tasks on the user's data, and tasks in the user's own file.

Files of this folder import only `steepest.errors` and `steepest.tasks` from the package. To add a
bundled task, write one file with a `Task`, and add the task to `TASKS`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any

from steepest.errors import BadCall
from steepest.tasks import devices, gan, images, sparse, tables, text, user_file
from steepest.tasks.seeding import generators_of
from steepest.tasks.task import Setup, Task
from steepest.tasks.task import facts as facts

__all__ = ["DATA_TASKS", "TASKS", "Setup", "Task", "facts", "folder_name", "get", "held", "is_file"]

TASKS = {
    task.name: task
    for task in (images.DIGITS, tables.DIABETES, text.TOPICS, gan.DIGITS_GAN, sparse.BAG)
}
"""Tasks that need no download."""
DATA_TASKS: dict[str, Callable[[Path], Task]] = {
    "fashion-mnist": lambda folder: images.idx_task("fashion-mnist", folder),
    "mnist": lambda folder: images.idx_task("mnist", folder),
    "tinyshakespeare": text.shakespeare,
}
"""Name -> a function that makes the task from the folder that `--data` names."""


def is_file(name: str) -> bool:
    """Whether a task's name is the path of a user's file."""
    return name.endswith(".py") or bool(re.search(r"[/\\]", name))


def held(name: str) -> AbstractContextManager[bytes | None]:
    """Use the present source of a task's file until the block ends, even if the file is edited.

    Yields that source, or None for a task that is not in a user's file.
    """
    return user_file.held(Path(name)) if is_file(name) else nullcontext()


def generators(task: Task) -> list[Any]:
    """The random generators in the task's file right after its import; [] for a bundled task."""
    module = user_file.module_of(Path(task.file)) if task.file else None
    return [generator for _, generator in generators_of(module)] if module else []


def edited(name: str) -> str | None:
    """Return a message if the task's file differs from the source that `held` keeps, else None."""
    if not is_file(name):
        return None
    with user_file.held(Path(name)) as source:
        try:
            same = Path(name).read_bytes() == source
        except OSError:
            same = False
    if same:
        return None
    return (
        f"{Path(name).name} was changed during the race: all runs use the source that the race "
        f"began with, and --resume needs that source"
    )


def get(name: str, data: str | None = None, device: str | None = None) -> Task:
    """Return the task called `name`, or the task in the file `name`.

    Raises BadCall if there is no such task, or if it cannot be on the device.

    data: the folder of a task in `DATA_TASKS`. device: the device for the task's model and data,
    such as cuda. If it is None, they are on the CPU, or where the user's file puts them.
    """
    return devices.on(_get(name, data), device)


def _get(name: str, data: str | None) -> Task:
    if name in DATA_TASKS:
        if data is None:
            raise BadCall(
                f"task {name!r} reads your files: expected --data DIR, the folder of these files"
            )
        return _make_data_task(name, data)
    if data is not None:
        raise BadCall(
            f"--data {data} was given, but the task {name!r} reads no files: leave --data out, or "
            f"choose one of {', '.join(DATA_TASKS)}"
        )
    if name in TASKS:
        return TASKS[name]
    if is_file(name):
        return user_file.load(Path(name))
    known = [*TASKS, *DATA_TASKS]
    file = [f"{name}.py"] if Path(f"{name}.py").is_file() else []
    similar = file or get_close_matches(name, known, n=1)
    hint = f"; did you mean {similar[0]!r}?" if similar else ""
    raise BadCall(
        f"unknown task {name!r}: expected one of {', '.join(known)}, or a Python file{hint}"
    )


@lru_cache(maxsize=2)
def _make_data_task(name: str, data: str) -> Task:
    return DATA_TASKS[name](Path(data))


def folder_name(name: str) -> str:
    """The task's name, for use in a folder's name. For a file: its name without path and ending."""
    return Path(name).stem if is_file(name) else name
