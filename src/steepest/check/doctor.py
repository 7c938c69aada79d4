"""Runs the examinations on a class; each ends in a finding, whatever happens on the way."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from types import CodeType
from typing import Any, Literal

import torch

from . import contract as contract
from .examination import Examination, table
from .subject import Subject, limited, quiet
from .target import TargetError

Outcome = Literal["pass", "fail", "not applicable"]


@dataclass(frozen=True)
class Finding:
    """What one examination found.

    detail: for a failure the observed and the expected, for "not applicable" the reason, else a
    remark or nothing. reproduction: on failure a script that fails the same way when pasted.
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
    """Examine an optimizer class; one finding per examination, in order.

    target: a subclass of torch.optim.Optimizer, a rule or its name, the name of a class of this
    package, or "module:Class". only: names of examinations, or their beginnings ("resume" for
    resume-float32 and its like). options: arguments of the constructor, beside the parameters, at
    every construction. Raises TargetError, a ValueError, for a class that cannot be constructed and
    for unknown names; whatever an examination raises is a finding.
    """
    subject = Subject(target, options)
    return [_examined(each, subject) for each in _chosen(only)]


def _chosen(only: str | Iterable[str] | None) -> list[Examination]:
    if only is None:
        return list(table.values())
    found: dict[str, Examination] = {}
    for name in [only] if isinstance(only, str) else only:
        some = {n: e for n, e in table.items() if n == name or n.startswith(f"{name}-")}
        if not some:
            raise TargetError(f"{name!r} is no examination; {_nearest(name)}")
        found |= some
    return [e for e in table.values() if e.name in found]


def _nearest(name: str) -> str:
    known = {*table, *(n.rsplit("-", 1)[0] for n in table)}
    close = difflib.get_close_matches(name, known, 1)
    return f"did you mean {close[0]!r}?" if close else "a run without --only names them all"


def _examined(each: Examination, subject: Subject) -> Finding:
    script = ""
    try:
        with quiet():
            script = each.script(subject)
            for need in each.needs:
                if reason := need(subject):
                    return Finding(each.name, each.about, "not applicable", reason)
        code = compile(script, f"<{each.name}>", "exec")
        remark = _run(code, dict(subject.namespace))
        return Finding(each.name, each.about, "pass", remark)
    except (Exception, SystemExit) as error:
        said = " ".join(str(error).split()) or type(error).__name__
        detail = said if isinstance(error, AssertionError) else f"{type(error).__name__}: {said}"
        return Finding(each.name, each.about, "fail", detail, script)


def _run(code: CodeType, namespace: dict[str, Any]) -> str:
    """Execute a script on one thread of torch, with its state left as it was; its remark."""
    threads, mode = torch.get_num_threads(), torch.is_grad_enabled()
    torch.set_num_threads(1)  # tiny tensors, and children forked of us
    namespace["__name__"] = "__examination__"
    try:
        with quiet() as said, torch.random.fork_rng(devices=[]), limited():
            exec(code, namespace)
    finally:
        torch.set_num_threads(threads)
        torch.set_grad_enabled(mode)
    remarks = [line for line in said.getvalue().splitlines() if line.startswith("found: ")]
    return " ".join(remarks).removeprefix("found: ")
