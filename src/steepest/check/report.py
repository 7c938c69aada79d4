"""Findings as text for the terminal, and as JSON for programs."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import multiprocessing
import os
import re
import shutil
import signal
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from typing import Any

import torch

from ..classes import classes
from .doctor import Finding, Outcome, examine
from .examination import table
from .target import resolve

OUTCOMES: tuple[Outcome, ...] = ("pass", "fail", "not applicable")


def everyone() -> list[str]:
    """Return the names of all classes of this package."""
    return list(classes)


def examined(
    targets: Sequence[str],
    only: str | Iterable[str] | None = None,
    options: dict[str, Any] | None = None,
) -> Iterator[tuple[str, list[Finding]]]:
    """Yield each target with its findings.

    Several targets are examined in parallel, in one process per core.
    """
    if len(targets) == 1:
        yield targets[0], examine(targets[0], only, options)
        return
    work = functools.partial(examine, only=only, options=options)
    context, others = multiprocessing.get_context("spawn"), {*multiprocessing.active_children()}
    pool = ProcessPoolExecutor(os.cpu_count(), context, initializer=_ignore_interrupts)
    try:
        with _interrupts_blocked():  # the workers start blocked; their imports take seconds
            futures = [pool.submit(work, target) for target in targets]
        for target, future in zip(targets, futures, strict=True):
            yield target, future.result()
    except BaseException:
        with _interrupts_blocked():
            workers = {*multiprocessing.active_children()} - others
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in workers:
                worker.terminate()
            for worker in workers:
                worker.join()
        raise
    pool.shutdown()


def _ignore_interrupts() -> None:
    """Ignore Ctrl-C in a worker.

    Ctrl-C reaches the workers too, but only the parent handles it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextlib.contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Delay SIGINT until the block ends, on platforms that can delay it."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def count(findings: Sequence[Finding]) -> dict[Outcome, int]:
    """Count how many examinations passed, failed and did not apply."""
    return {o: sum(f.outcome == o for f in findings) for o in OUTCOMES}


def summary(findings: Sequence[Finding]) -> str:
    """Return one line: how many examinations pass, fail and do not apply."""
    counts = count(findings)
    text = f"{counts['pass']} of {len(findings)} examinations pass, "
    failing = f"{counts['fail']} fail, " if counts["fail"] else ""
    return f"{text}{failing}{counts['not applicable']} not applicable"


def lines(target: str, findings: Sequence[Finding], failing_only: bool = False) -> Iterator[str]:
    """Yield a line for each examination, then the summary, then a reproduction of each failure.

    failing_only: whether only failed examinations get a line.
    """
    width = max(len(name) for name in table) + 2
    room = max(shutil.get_terminal_size((120, 24)).columns - width - 6, 20)
    failures = [f for f in findings if f.outcome == "fail"]
    for f in failures if failing_only else findings:
        label = "n.a." if f.outcome == "not applicable" else f.outcome
        text = plain_text(f.detail or f.about)
        short = text if len(text) <= room else text[: room - 3] + "..."
        yield f"{label:6}{f.name:{width}}{short}"
    yield f"{target}: {summary(findings)}"
    for f in failures:
        head = f"\n# {f.name}: {f.about}\n# found: {plain_text(f.detail)}\n"
        yield (head + f.reproduction).rstrip()


def plain_text(text: str) -> str:
    """Return the text on one line, without the codes that colour text in a terminal."""
    return " ".join(re.sub(r"\x1b\[[0-?]*[ -/]*[@-~]", "", text).split())


def as_json(target: str, findings: Sequence[Finding]) -> dict[str, Any]:
    """Return a dict with the target, versions, counts and findings."""
    return {
        "target": target,
        "package": package(target),
        "torch": torch.__version__,
        "examinations": len(findings),
        **count(findings),
        "findings": [asdict(f) for f in findings],
    }


def package(target: Any) -> str:
    """Return the name and version of the distribution from which a class comes.

    Returns "" if there is no such distribution.
    """
    top = resolve(target)[0].__module__.split(".")[0]
    names = [top, *importlib.metadata.packages_distributions().get(top, [])]
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return f"{name} {importlib.metadata.version(name)}"
    return ""
