"""The errors that every verb of the package uses: what they say is one line for people."""

from __future__ import annotations


class BadCall(ValueError):  # noqa: N818 - the call is wrong, nothing failed
    """The call was wrong: one line that says what was given, what was expected and what to do."""


class TaskError(BadCall):
    """The user's task cannot be run; `trace` is the traceback in the user's own lines, or empty."""

    def __init__(self, line: str, trace: str = "") -> None:
        super().__init__(line)
        self.trace = trace


class Diverged(FloatingPointError):  # noqa: N818 - a result, no mistake
    """The training cannot go on: a number that must be finite is not."""


class WorkerError(RuntimeError):
    """An item raised an error in its worker process, or killed one worker after another."""
