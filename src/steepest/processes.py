"""Long-lived spawned processes that work on one item at a time.

Not `concurrent.futures`: there one killed worker loses every item in flight, and workers outlive
a killed parent. Here it costs its item's time, and a worker ends when its pipe to the parent does.
"""

from __future__ import annotations

import multiprocessing
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

from steepest.errors import BadCall, WorkerError

DEATHS = 3
"""Workers that one item may cost before the pool gives up on it."""
PAUSE = 0.5
"""Seconds until the pool asks again for an item where there was none."""
_END = object()


@dataclass
class _Failure:
    text: str
    trace: str


def _serve(pipe: Connection, work: Callable[[Any], Any]) -> None:
    # a spawned process spawns its own by default, and a DataLoader's workers would import all
    # anew in each epoch: they start as they do outside of a race
    multiprocessing.set_start_method(None, force=True)
    while True:
        try:
            item = pipe.recv()
        except EOFError:  # the parent closed its end, or died
            return
        try:
            answer = work(item)
        except BadCall as error:  # of the caller's own task or entry
            answer = error
        except Exception as error:
            answer = _Failure(f"{type(error).__name__}: {error}", traceback.format_exc())
        pipe.send(answer)


@contextmanager
def _deaf_to_interrupt() -> Iterator[None]:
    # an ignored signal stays ignored across exec: Ctrl-C is for the parent alone
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class Pool:
    """Up to `jobs` processes that answer `work(item)`; a context manager that ends them."""

    def __init__(self, jobs: int, work: Callable[[Any], Any]) -> None:
        self._jobs = jobs
        self._work = work
        self._workers: dict[Connection, SpawnProcess] = {}

    def hire(self) -> None:
        """Start all processes now: they import what they need while the caller does."""
        while len(self._workers) < self._jobs:
            self._hire()

    def _hire(self) -> Connection:
        # no daemon: a task's DataLoader may have processes of its own
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, self._work))
        with _deaf_to_interrupt():
            process.start()
        theirs.close()
        self._workers[ours] = process
        return ours

    def map(self, items: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
        """(item, answer) as the answers come; WorkerError if an item raises, or its own BadCall.

        An item is taken when a worker is free for it. None is no item: there is none at this
        moment, and the next is asked for after the next answer, or after PAUSE seconds.
        """
        source, again = iter(items), deque[tuple[Any, int]]()
        busy: dict[Connection, tuple[Any, int]] = {}
        ended = False

        def share_out() -> None:
            nonlocal ended
            while len(busy) < self._jobs and (again or not ended):
                item, deaths = again.popleft() if again else (next(source, _END), 0)
                ended = ended or item is _END
                if item is None or item is _END:
                    break
                pipe = next((p for p in self._workers if p not in busy), None) or self._hire()
                busy[pipe] = item, deaths
                with suppress(BrokenPipeError):  # it died while idle: the wait below sees that
                    pipe.send(item)

        while True:
            share_out()
            if ended and not busy:
                return
            if not busy:
                time.sleep(PAUSE)
            for pipe in wait(list(busy), None if ended else PAUSE) if busy else ():
                assert isinstance(pipe, Connection)
                item, deaths = busy.pop(pipe)
                try:
                    answer = pipe.recv()
                except (EOFError, ConnectionResetError):
                    self._workers.pop(pipe).join()
                    if deaths + 1 == DEATHS:
                        raise WorkerError(
                            f"{DEATHS} workers died on {item}: the task ends its process; does it "
                            f"run out of memory, or call os._exit?"
                        ) from None
                    again.append((item, deaths + 1))
                    continue
                if isinstance(answer, BadCall):
                    raise answer
                if isinstance(answer, _Failure):
                    raise WorkerError(f"{answer.text} in {item}") from RuntimeError(answer.trace)
                share_out()  # no worker waits for what the caller does with an answer
                yield item, answer

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        for pipe, process in self._workers.items():
            process.terminate()
            process.join()
            pipe.close()
