"""The errors that all commands of the command line share. Each message is one line for the user.

`steepest` ends with exit code 2 for a BadCall and with 1 for a WorkerError.
"""

from __future__ import annotations


class BadCall(ValueError):  # noqa: N818 - it names the mistake
    """The call was wrong. The message says what was given, what was expected and what to do."""


class TaskError(BadCall):
    """The user's task cannot be run. `trace`: the traceback through the user's own lines, or ""."""

    def __init__(self, line: str, trace: str = "") -> None:
        super().__init__(line)
        self.trace = trace


class Diverged(FloatingPointError):  # noqa: N818 - a result of the training
    """The training cannot continue, because a number that must be finite is not."""


class WorkerError(RuntimeError):
    """The work on an item raised an error in a worker process, or several workers died on it."""
