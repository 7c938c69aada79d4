"""A tuning by successive halving: all its trials start, and the better half goes on at each rung.

Karnin, Koren and Somekh (2013), ICML; Jamieson and Talwalkar (2016), arXiv:1502.07943. A rung is a
number of steps. Until it is halted, a trial trains like a full run: its schedules have the full
length. If the system can fork, each trial is a child process, which waits at a rung and then goes
on. If not, a trial ends at the rung, and starts again from step 0 if it goes on. Both ways give the
same numbers.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

import torch

from steepest.processes import Failed, answer_of
from steepest.race.protocol import Result, Trial, Tuning

OnReport = Callable[[Result], bool]
"""Called with the result of a run after each report; returns whether the run goes on."""
Run = Callable[[Trial, OnReport | None], Result]
SHARE = 0.5
"""Largest share of the free memory that waiting trials may take, with one worker per core."""
DEATH_SIGNAL = 1
"""PR_SET_PDEATHSIG of prctl(2)."""


def run(tuning: Tuning, train: Run, better: Callable[[float, float], bool]) -> list[Result]:
    """The results of all trials. `better`: whether the first metric is better than the second.

    At each rung the trials with the best last validation metric go on; of equal metrics, the lower
    index wins. A diverged trial never goes on, even if fewer trials than planned then go on.
    """
    results: dict[int, Result] = {}
    way = _Forked if can_fork() else _Repeated
    runs: list[_Paused] = [way(trial, tuning.steps, train) for trial in tuning.trials]
    going = list(range(len(runs)))
    alone = way is _Forked
    try:
        for _, most in tuning.rungs:
            scores: dict[int, float] = {}
            for i in going:
                if i in results:  # its loop has ended early
                    scores[i] = results[i].validation[-1]
                    continue
                state = runs[i].advance()
                if isinstance(state, Result):
                    results[i] = state
                    if not state.diverged:
                        scores[i] = state.validation[-1]
                    continue
                scores[i] = state
                # measured while none of the others runs
                if alone and _crowded(runs[i].private_bytes(), len(runs)):
                    waiting = range(i + 1, len(runs))
                    runs[i + 1 :] = [
                        _Repeated(tuning.trials[k], tuning.steps, train) for k in waiting
                    ]
                alone = False
            chosen = best(scores, most, better)
            for i in scores:
                if i not in chosen and i not in results:
                    results[i] = runs[i].stop()
            going = sorted(chosen)
        for i in going:
            if i not in results:
                state = runs[i].advance()
                assert isinstance(state, Result)
                results[i] = state
    finally:
        for each in runs:
            each.close()
    return [results[i] for i in range(len(runs))]


def best(
    scores: Mapping[int, float], most: int, better: Callable[[float, float], bool]
) -> list[int]:
    """Indices of the `most` best scores, best first. Of equal scores, the lower index wins."""
    left, chosen = dict(sorted(scores.items())), []
    while left and len(chosen) < most:
        top = next(iter(left))
        for i, score in left.items():
            if better(score, left[top]):
                top = i
        chosen.append(top)
        del left[top]
    return chosen


def apart(work: Callable[[Tuning], list[Result]], tuning: Tuning) -> list[Result]:
    """Return `work(tuning)`, computed in a child process if this process can fork."""
    if not can_fork():
        return work(tuning)
    child = _Forked(tuning, (), lambda item, _: work(item))
    try:
        return child.advance()
    finally:
        child.close()


class _Paused(Protocol):
    """A run that stops at each rung."""

    def advance(self) -> float | Result:
        """Train to the next rung and return the metric there, or the result if the run ends."""
        ...

    def stop(self) -> Result:
        """Halt the run at the rung where it waits; returns its result."""
        ...

    def private_bytes(self) -> int:
        """Bytes of memory that the run takes while it waits."""
        ...

    def close(self) -> None: ...


class _Repeated:
    """Starts the run again for each rung. This gives the same numbers, since runs are seeded."""

    def __init__(self, trial: Trial, rungs: Sequence[int], train: Run) -> None:
        self._trial, self._rungs, self._train, self._at = trial, rungs, train, 0
        self._halted: Result | None = None

    def advance(self) -> float | Result:
        if self._at == len(self._rungs):
            return self._train(self._trial, None)
        rung, waits = self._rungs[self._at], []

        def before(result: Result) -> bool:
            waits.append(result.steps[-1] >= rung)
            return not waits[-1]

        result = self._train(self._trial, before)
        self._at += 1
        if not any(waits):
            return result
        self._halted = result
        return result.validation[-1]

    def stop(self) -> Result:
        assert self._halted
        return self._halted

    def private_bytes(self) -> int:
        return 0

    def close(self) -> None:
        pass


class _Forked:
    """A child process that waits at each rung until it is told to go on."""

    def __init__(self, trial: Any, rungs: Sequence[int], train: Callable[..., Any]) -> None:
        self._trial, self._rungs, self._train = trial, rungs, train
        self._process: Any = None
        self._pipe: Connection

    def advance(self) -> Any:
        return self._ask(True)

    def stop(self) -> Result:
        result = self._ask(False)
        assert isinstance(result, Result)
        return result

    def private_bytes(self) -> int:
        """Bytes that the process has written since its start; sys.maxsize if this is unknown."""
        try:
            lines = Path(f"/proc/{self._process.pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            return sys.maxsize
        return 1024 * sum(int(x.split()[1]) for x in lines if x.startswith("Private_Dirty:"))

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._pipe.close()

    def _start(self) -> None:
        context = multiprocessing.get_context("fork")
        self._pipe, theirs = context.Pipe()
        child = (self._trial, self._rungs, self._train, theirs, os.getpid())
        process = context.Process(target=_train, args=child)
        process.start()
        self._process = process
        theirs.close()

    def _ask(self, goes_on: bool) -> Any:
        try:
            if self._process is None:
                self._start()
            else:
                self._pipe.send(goes_on)
            message = self._pipe.recv()
        except (EOFError, ConnectionError):
            # ends the worker; the pool repeats the tuning in a new worker
            raise SystemExit(f"the process of {self._trial} has died") from None
        if isinstance(message, float):
            return message
        if not isinstance(message, Result | list):
            raise Failed(message)
        self.close()  # a thread of the user's code may still run in the child
        return message


def _train(
    trial: Any, rungs: Sequence[int], train: Callable[..., Any], pipe: Connection, parent: int
) -> None:
    """What a child process does."""
    _die_with(parent)
    left = list(rungs)

    def waits(result: Result) -> bool:
        while left and result.steps[-1] >= left[0]:
            left.pop(0)
            pipe.send(result.validation[-1])
            if not pipe.recv():
                return False
        return True

    with suppress(EOFError, BrokenPipeError):  # the worker has ended
        pipe.send(answer_of(lambda each: train(each, waits), trial))


def system_forks() -> bool:
    """Whether a forked process can train on this system.

    In a forked process, system libraries break on macOS, and autograd breaks with an accelerator.
    """
    accelerator = torch.accelerator.is_available() or torch.cuda.is_initialized()
    return sys.platform == "linux" and not accelerator


def can_fork() -> bool:
    """Whether a child of this process can train.

    This needs a process that computes with one thread: a forked child lacks all other threads.
    """
    return system_forks() and torch.get_num_threads() == 1


def _die_with(parent: int) -> None:
    """Ask Linux to kill this process when its parent ends, even if the parent is killed."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _crowded(each: int, count: int) -> bool:
    """Whether `count` processes of `each` bytes per worker, on each core, take too much memory."""
    return each * count > SHARE * _free_bytes() / (os.cpu_count() or 1)


def _free_bytes() -> int:
    """Free bytes of memory of this system, or of its container; 0 if this is unknown."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = 1024 * next(int(x.split()[1]) for x in lines if x.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return 0
    with suppress(OSError, ValueError):  # no container, or one without a limit
        limit, used = (
            int(Path(f"/sys/fs/cgroup/memory.{what}").read_text()) for what in ("max", "current")
        )
        free = min(free, limit - used)
    return free
