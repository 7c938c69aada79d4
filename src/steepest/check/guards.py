"""Runs foreign code silently and within a time limit."""

from __future__ import annotations

import contextlib
import io
import signal
import threading
import time
import warnings
from collections.abc import Iterator
from typing import Any

SECONDS = 30
"""The time limit of one script, or of one attempt to construct or step a class, in seconds."""


@contextlib.contextmanager
def quiet() -> Iterator[io.StringIO]:
    """Silence warnings and catch printed text.

    Printed text is caught because some classes print when they are constructed.
    """
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()) as printed:
        warnings.simplefilter("ignore")
        yield printed


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """Raise TimeoutError if the Python code in the block runs longer than SECONDS.

    There is no limit outside the main thread, because other threads get no signals.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGALRM"):
        yield
        return

    def stop(*_: Any) -> None:
        raise TimeoutError(f"the code did not end within {SECONDS} s")

    before, began = signal.signal(signal.SIGALRM, stop), time.monotonic()
    left, interval = signal.setitimer(signal.ITIMER_REAL, SECONDS)  # the caller may have a timer
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if left:
            rest = max(left - (time.monotonic() - began), 0.01)
            signal.setitimer(signal.ITIMER_REAL, rest, interval)
