"""Findings in words: for the terminal and for programs."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import multiprocessing
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from typing import Any

import torch

from ..classes import classes
from .doctor import Finding, Outcome, examine
from .examination import table
from .subject import Subject

OUTCOMES: tuple[Outcome, ...] = ("pass", "fail", "not applicable")


def everyone() -> list[str]:
    """The classes of this package."""
    return list(classes)


def examined(
    targets: Sequence[str],
    only: str | Iterable[str] | None = None,
    options: dict[str, Any] | None = None,
) -> Iterator[tuple[str, list[Finding]]]:
    """Each target with its findings; several are shared out among processes, one per core."""
    if len(targets) == 1:
        yield targets[0], examine(targets[0], only, options)
        return
    work = functools.partial(examine, only=only, options=options)
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
        yield from zip(targets, pool.map(work, targets), strict=True)


def count(findings: Sequence[Finding]) -> dict[Outcome, int]:
    """How many passed, failed and did not apply."""
    return {o: sum(f.outcome == o for f in findings) for o in OUTCOMES}


def summary(findings: Sequence[Finding]) -> str:
    """One line: how many of the examinations pass."""
    found = count(findings)
    text = f"{found['pass']} of {len(findings)} examinations pass, "
    failing = f"{found['fail']} fail, " if found["fail"] else ""
    return f"{text}{failing}{found['not applicable']} not applicable"


def lines(target: str, findings: Sequence[Finding], failing_only: bool = False) -> Iterator[str]:
    """A line for each examination, the summary, and the reproductions of what failed."""
    width = max(len(name) for name in table) + 2
    for f in findings if not failing_only else [f for f in findings if f.outcome == "fail"]:
        word = "n.a." if f.outcome == "not applicable" else f.outcome
        yield f"{word:6}{f.name:{width}}{f.detail or f.about}"
    yield f"{target}: {summary(findings)}"
    for f in findings:
        if f.outcome == "fail":
            yield f"\n# {f.name}: {f.about}\n# found: {f.detail}\n{f.reproduction}".rstrip()


def as_json(target: str, findings: Sequence[Finding]) -> dict[str, Any]:
    """What was examined, with versions, counts and findings."""
    return {
        "target": target,
        "package": package(target),
        "torch": torch.__version__,
        "examinations": len(findings),
        **count(findings),
        "findings": [asdict(f) for f in findings],
    }


def package(target: Any) -> str:
    """The distribution that a class comes from and its version; nothing if there is none."""
    top = Subject(target).kind.__module__.split(".")[0]
    names = [top, *importlib.metadata.packages_distributions().get(top, [])]
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return f"{name} {importlib.metadata.version(name)}"
    return ""
