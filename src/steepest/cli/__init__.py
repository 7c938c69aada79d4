"""The command line, one function per verb. Each verb imports the heavy modules that it needs."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from io import TextIOWrapper
from typing import Any

from steepest.cli import race as race  # each file adds its verbs to `app`, in this order
from steepest.cli import results as results
from steepest.cli import rules as rules
from steepest.cli.app import INTERRUPTED, app, say


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb and return the exit code.

    The code is 0 for success, 2 for a wrong call and INTERRUPTED after Ctrl-C. It is 1 if a check,
    a worker or the operating system reports a failure.
    """
    from steepest.errors import BadCall, WorkerError

    for stream in (sys.stdout, sys.stderr):  # not every terminal can print every character
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        code: Any = app(args=arguments, standalone_mode=False)
        return int(code or 0)
    except (BadCall, WorkerError, OSError) as error:
        # the traceback through the user's task file, if there is one
        print(getattr(error, "trace", ""), end="", file=sys.stderr)
        say(str(error))
        return 2 if isinstance(error, BadCall) else 1
    except KeyboardInterrupt:
        say("interrupted")
        return INTERRUPTED
    except Exception as error:
        # usage errors: depending on the version, their class is click's or typer's
        explain = getattr(error, "format_message", None)
        if explain is None:
            raise
        given = shlex.join(["steepest", *(sys.argv[1:] if arguments is None else arguments)])
        say(f"{explain().rstrip('.')} (in: {given}); see steepest --help")
        return 2
