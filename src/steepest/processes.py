"""Long-lived spawned processes that work on one item at a time.

With `concurrent.futures`, one killed worker loses every item in flight, and workers outlive a
killed parent. Here a killed worker loses only the time spent on its item, and another worker does
this item again. A worker ends when its pipe to the parent closes.
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
"""The pool gives up when this many workers have died on the same item."""
PAUSE = 0.5
"""Seconds until the pool asks for an item again after there was none."""
_END = object()
_parent: Connection | None = None
"""The pipe to the process with the pool. None outside of workers and processes that they fork."""


@dataclass
class _Failure:
    text: str
    trace: str


@dataclass
class _Note:
    value: Any


def tell(value: Any) -> None:
    """In a worker, send `value` to `on_note` of `Pool.map`. Elsewhere, do nothing.

    Only one process of a worker may call this at a time.
    """
    if _parent:
        with suppress(BrokenPipeError):  # the parent has ended, and this worker is about to
            _parent.send(_Note(value))


class Failed(Exception):  # noqa: N818, it carries a failure
    """The work on an item has failed in a child process of a worker.

    `args[0]` is what `answer_of` returned in the child process.
    """


def answer_of(work: Callable[[Any], Any], item: Any) -> Any:
    """Returns what `work(item)` returns.

    An exception that the work raises is returned as a value: a BadCall as it is, any other
    exception as a `_Failure`.
    """
    try:
        return work(item)
    except BadCall as error:  # the caller's own task or entry is wrong
        return error
    except Failed as error:
        return error.args[0]
    except Exception as error:
        return _Failure(f"{type(error).__name__}: {error}", traceback.format_exc())


def _serve(pipe: Connection, work: Callable[[Any], Any]) -> None:
    # A spawned process spawns its own children by default, and a DataLoader's workers would import
    # everything again in each epoch. Let them start as they do elsewhere.
    multiprocessing.set_start_method(None, force=True)
    global _parent
    _parent = pipe
    while True:
        try:
            item = pipe.recv()
        except EOFError:  # the parent closed its end or died
            return
        pipe.send(answer_of(work, item))


@contextmanager
def _ignoring_interrupts() -> Iterator[None]:
    # only the parent handles Ctrl-C: an ignored signal stays ignored in the new process
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class Pool:
    """Up to `jobs` processes that compute `work(item)`. They end when the `with` block ends."""

    def __init__(self, jobs: int, work: Callable[[Any], Any]) -> None:
        self._jobs = jobs
        self._work = work
        self._workers: dict[Connection, SpawnProcess] = {}

    def hire(self) -> None:
        """Start all processes now, so that they import modules while the caller imports its own."""
        while len(self._workers) < self._jobs:
            self._start()

    def _start(self) -> Connection:
        # not a daemon, since a task's DataLoader may start processes of its own
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, self._work))
        with _ignoring_interrupts():
            process.start()
        theirs.close()
        self._workers[ours] = process
        return ours

    def map(
        self, items: Iterable[Any], on_note: Callable[[Any, Any], object] = lambda *_: None
    ) -> Iterator[tuple[Any, Any]]:
        """Yield (item, answer) in the order in which the answers arrive.

        on_note: called with (item, value) for each value that the work on an item passes to `tell`.

        An item is taken from `items` when a worker is free. If `items` yields None, there is no
        item at the moment: the pool asks again after the next answer, or after PAUSE seconds.
        Raises the BadCall that `work` raised, or WorkerError for any other error.
        """
        source, retries = iter(items), deque[tuple[Any, int]]()
        busy: dict[Connection, tuple[Any, int]] = {}
        ended = False

        def assign() -> None:
            nonlocal ended
            while len(busy) < self._jobs and (retries or not ended):
                item, deaths = retries.popleft() if retries else (next(source, _END), 0)
                ended = ended or item is _END
                if item is None or item is _END:
                    break
                pipe = next((p for p in self._workers if p not in busy), None) or self._start()
                busy[pipe] = item, deaths
                with suppress(BrokenPipeError):  # it died while idle; the wait below notices
                    pipe.send(item)

        while True:
            assign()
            if ended and not busy:
                return
            if not busy:
                time.sleep(PAUSE)
            for pipe in wait(list(busy), None if ended else PAUSE) if busy else ():
                assert isinstance(pipe, Connection)
                item, deaths = busy[pipe]
                try:
                    answer = pipe.recv()
                    if isinstance(answer, _Note):
                        on_note(item, answer.value)
                        continue
                    del busy[pipe]
                except (EOFError, ConnectionResetError):
                    del busy[pipe]
                    self._workers.pop(pipe).join()
                    if deaths + 1 == DEATHS:
                        raise WorkerError(
                            f"{DEATHS} workers died on {item}, because the task ends its process; "
                            "check whether it runs out of memory or calls os._exit"
                        ) from None
                    retries.append((item, deaths + 1))
                    continue
                if isinstance(answer, BadCall):
                    raise answer
                if isinstance(answer, _Failure):
                    raise WorkerError(f"{answer.text} in {item}") from RuntimeError(answer.trace)
                assign()  # first, so that no worker waits while the caller uses the answer
                yield item, answer

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        for pipe, process in self._workers.items():
            process.terminate()
            process.join()
            pipe.close()
