"""What is trained in a race: bundled tasks, tasks on the user's data, tasks in the user's file."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any

from steepest.errors import BadCall
from steepest.tasks import gan, images, sparse, tables, text, user_file
from steepest.tasks.task import Setup, Task
from steepest.tasks.task import facts as facts

__all__ = ["DATA_TASKS", "TASKS", "Setup", "Task", "facts", "get", "held", "is_file", "words"]

TASKS = {
    task.name: task
    for task in (images.DIGITS, tables.DIABETES, text.TOPICS, gan.DIGITS_GAN, sparse.BAG)
}
"""Without a download."""
DATA_TASKS: dict[str, Callable[[Path], Task]] = {
    "fashion-mnist": lambda folder: images.idx_task("fashion-mnist", folder),
    "mnist": lambda folder: images.idx_task("mnist", folder),
    "tinyshakespeare": text.shakespeare,
}
"""On files that the user has: `--data`."""


def is_file(name: str) -> bool:
    """Whether a task's name means a file of the user's own."""
    return name.endswith(".py") or bool(re.search(r"[/\\]", name))


def held(name: str) -> AbstractContextManager[bytes | None]:
    """Meanwhile a task in a file is what the file says now; its source."""
    return user_file.held(Path(name)) if is_file(name) else nullcontext()


def generators(task: Task) -> list[Any]:
    """The random generators that the task's file has made at its top; none of a bundled task."""
    module = user_file.module_of(Path(task.file)) if task.file else None
    return [generator for _, generator in user_file.generators(module)] if module else []


def edited(name: str) -> str | None:
    """What to say where the file of a task is no longer what is held of it."""
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
        f"{Path(name).name} was changed during the race: all runs are of the source that it began "
        f"with, and --resume wants that one"
    )


def get(name: str, data: str | None = None) -> Task:
    """The task called `name`, or in the file `name`; BadCall names what is wrong with either.

    data: the folder that a task on the user's data reads.
    """
    if name in DATA_TASKS:
        if data is None:
            raise BadCall(f"task {name!r} reads files of yours: say with --data DIR where they lie")
        return _on_data(name, data)
    if data is not None:
        raise BadCall(
            f"--data {data} with the task {name!r}, which reads none: leave it out, or choose one "
            f"of {', '.join(DATA_TASKS)}"
        )
    if name in TASKS:
        return TASKS[name]
    if is_file(name):
        return user_file.load(Path(name))
    known = [*TASKS, *DATA_TASKS]
    mine = [f"{name}.py"] if Path(f"{name}.py").is_file() else []
    near = mine or get_close_matches(name, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise BadCall(
        f"unknown task {name!r}: expected one of {', '.join(known)}, or a Python file{hint}"
    )


@lru_cache(maxsize=2)
def _on_data(name: str, data: str) -> Task:
    return DATA_TASKS[name](Path(data))


def words(name: str) -> str:
    """A name for the folder of a race of this task."""
    return Path(name).stem if is_file(name) else name
