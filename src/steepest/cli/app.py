"""The command `steepest`, to which other files add verbs, and the helpers that verbs share."""

from __future__ import annotations

import re
import sys

import typer

app = typer.Typer(
    name="steepest",
    help="Optimizers for PyTorch: use them, race them, see them.",
    add_completion=False,
    pretty_exceptions_enable=False,
)

PASSWORD = re.compile(r"(://[^\s:/@]*:)\S+(?=@)|((?:pass|pwd|secret|token)\w*=)[^\s&]+", re.I)
INTERRUPTED = 130
"""The exit code after Ctrl-C: 128 + SIGINT, as in shells."""


@app.callback()
def _verbs() -> None:
    """Make typer require a verb after `steepest`, even if only one verb exists."""


def say(line: str) -> None:
    """Print one line on stderr; passwords in URLs are masked."""
    print("steepest:", PASSWORD.sub(r"\1\2***", " ".join(line.split())), file=sys.stderr)
