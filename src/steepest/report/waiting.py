"""What a terminal shows while there is nothing else to show."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from rich.console import Console
from rich.text import Text


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Show `what` as a moving line on stderr until the context ends, if stderr is a terminal."""
    console = Console(stderr=True)
    with console.status(Text(f"{what} ...")) if console.is_terminal else nullcontext():
        yield
