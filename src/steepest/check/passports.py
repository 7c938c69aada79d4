"""The passport of a class of this package: its deviation from its oracle, and its examinations.

The oracle is an independent implementation of the same formula.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from ..backends import BACKENDS
from ..catalogue import docstring_parts
from ..classes import class_of
from ..oracles.trajectories import STEPS, path_deviation, settings_of
from .doctor import Finding, examine
from .guards import quiet
from .report import summary


def passport(name: Any, findings: Sequence[Finding] | None = None) -> str:
    """Return the passport of a class as a Markdown section.

    The section names the oracle (the implementation that the class is compared with) and gives the
    largest deviations from it, a summary of the examinations, and the differences from the paper.

    name: a rule or a class of this package.
    findings: the result of `examine`. By default `examine` runs now.
    """
    cls = class_of(name)
    findings = examine(cls) if findings is None else findings
    with quiet():
        settings = settings_of(cls)
        worst = {b: max(path_deviation(cls, s, backend=b) for s in settings) for b in BACKENDS}
    oracles = " and ".join(dict.fromkeys(f"{s.made_by.described}" for s in settings))
    sources = " and ".join(dict.fromkeys(s.made_by.source for s in settings))
    deviations = ", ".join(f"{backend} {value:.0e}" for backend, value in worst.items())
    text = [f"## {cls.__name__}", ""]
    text += [f"- Rule `{rule.name}`: {_paragraphs(rule)[0]}" for rule in cls.family.members]
    text += [
        f"- Oracle ({sources}): {oracles}, {len(settings)} settings of {STEPS} steps.",
        f"- Largest relative deviation after any step, in float64, by backend: {deviations}.",
        f"- Paths that agree with each other: {_agreeing_paths(findings)}.",
        f"- Examinations: {summary(findings)}.",
    ]
    text += [f"  - fails `{f.name}`: {f.detail}" for f in findings if f.outcome == "fail"]
    for rule in cls.family.members:
        if differs := docstring_parts(rule)["differs"]:
            text.append(f"- `{rule.name}`: {differs}")
    return "\n".join(text) + "\n"


def _paragraphs(rule: Any) -> list[str]:
    text = inspect.cleandoc(rule.__doc__ or rule.name)
    return [" ".join(part.split()) for part in text.split("\n\n")]


def _agreeing_paths(findings: Sequence[Finding]) -> str:
    names = [f.name for f in findings if f.outcome == "pass" and f.name.startswith("path-")]
    return ", ".join(n.removeprefix("path-") for n in names) or "none"
