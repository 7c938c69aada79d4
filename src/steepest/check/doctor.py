"""Runs the examinations on a class.

Each examination gives a finding, even if the examination raises an error.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from types import CodeType
from typing import Any, Literal

import torch

from . import contract as contract
from .examination import Examination, table
from .guards import limited, quiet
from .subject import Subject
from .target import TargetError

Outcome = Literal["pass", "fail", "not applicable"]


@dataclass(frozen=True)
class Finding:
    """The result of one examination.

    about: one line on what the examination requires.
    detail: for "fail", what was observed and what was expected, or the error. For "not applicable",
    the reason. For "pass", a remark or "".
    reproduction: for "fail", a script that fails in the same way when it is run alone.
    """

    name: str
    about: str
    outcome: Outcome
    detail: str = ""
    reproduction: str = ""


def examinations() -> tuple[Examination, ...]:
    """All examinations, in the order of the report."""
    return tuple(table.values())


def examine(
    target: Any, only: str | Iterable[str] | None = None, options: dict[str, Any] | None = None
) -> list[Finding]:
    """Examine an optimizer class. Returns one finding per examination, in the order of the report.

    target: a subclass of torch.optim.Optimizer, a rule or its name, the name of a class of this
    package, or "module:Class".
    only: names of examinations, or the first words of names. For example, "resume" selects
    resume-float32 and all other examinations whose names begin with "resume-".
    options: arguments of the constructor other than the parameters. They are passed whenever an
    examination constructs the class.

    Raises TargetError, which is a ValueError, if the class cannot be constructed or a name is
    unknown. An error inside an examination becomes a finding.
    """
    subject = Subject(target, options)
    return [_run_examination(each, subject) for each in _select(only)]


def _select(only: str | Iterable[str] | None) -> list[Examination]:
    if only is None:
        return list(table.values())
    selected: set[str] = set()
    for name in [only] if isinstance(only, str) else only:
        names = [n for n in table if n == name or n.startswith(f"{name}-")]
        if not names:
            raise TargetError(f"there is no examination {name!r}; {_nearest(name)}")
        selected.update(names)
    return [e for e in table.values() if e.name in selected]


def _nearest(name: str) -> str:
    known = {*table, *(n.rsplit("-", 1)[0] for n in table)}
    close = difflib.get_close_matches(name, known, 1)
    return f"did you mean {close[0]!r}?" if close else "run without --only to list all names"


def _run_examination(each: Examination, subject: Subject) -> Finding:
    script = ""
    try:
        with quiet():
            script = each.script(subject)
            for need in each.needs:
                if reason := need(subject):
                    return Finding(each.name, each.about, "not applicable", reason)
        code = compile(script, f"<{each.name}>", "exec")
        remark = _execute(code, dict(subject.namespace))
        return Finding(each.name, each.about, "pass", remark)
    except (Exception, SystemExit) as error:
        name = type(error).__name__
        message = " ".join(str(error).split()) or name
        detail = message if isinstance(error, AssertionError) else f"{name}: {message}"
        return Finding(each.name, each.about, "fail", detail, script)


def _execute(code: CodeType, namespace: dict[str, Any]) -> str:
    """Execute a script with one torch thread, then restore torch's settings.

    Returns the remark: what the script printed after "note: ".
    """
    threads, mode = torch.get_num_threads(), torch.is_grad_enabled()
    torch.set_num_threads(1)  # the tensors are tiny, and some examinations fork
    namespace["__name__"] = "__examination__"
    try:
        with quiet() as printed, torch.random.fork_rng(devices=[]), limited():
            exec(code, namespace)
    finally:
        torch.set_num_threads(threads)
        torch.set_grad_enabled(mode)
    remarks = [line for line in printed.getvalue().splitlines() if line.startswith("note: ")]
    return " ".join(remarks).removeprefix("note: ")
