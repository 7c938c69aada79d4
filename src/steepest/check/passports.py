"""The passport of an optimizer of this package: what it was compared with, and what was found."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from ..backends import BACKENDS
from ..catalogue import said
from ..classes import class_of
from ..oracles.trajectories import STEPS, apart, settings_of
from .doctor import Finding, examine
from .report import summary
from .subject import quiet


def passport(name: Any, findings: Sequence[Finding] | None = None) -> str:
    """A section of Markdown: oracle, largest deviation, paths, differences from the paper.

    name: a rule or a class of this package. findings: what `examine` found, if it is at hand.
    """
    kind = class_of(name)
    findings = examine(kind) if findings is None else findings
    with quiet():
        settings = settings_of(kind)
        worst = {b: max(apart(kind, s, backend=b) for s in settings) for b in BACKENDS}
    oracles = " and ".join(dict.fromkeys(f"{s.made_by.described}" for s in settings))
    kinds = " and ".join(dict.fromkeys(s.made_by.kind for s in settings))
    found = ", ".join(f"{b} {far:.0e}" for b, far in worst.items())
    text = [f"## {kind.__name__}", ""]
    for rule in kind.family.members:
        about = _paragraphs(rule)
        text.append(f"- Rule `{rule.name}`: {about[0]}")
    text += [
        f"- Oracle ({kinds}): {oracles}, {len(settings)} settings of {STEPS} steps.",
        f"- Largest relative deviation after any step, in float64, by backend: {found}.",
        f"- Paths that agree with each other: {_paths(findings)}.",
        f"- Examinations: {summary(findings)}.",
    ]
    text += [f"  - fails `{f.name}`: {f.detail}" for f in findings if f.outcome == "fail"]
    differs = {rule.name: said(rule)["differs"] for rule in kind.family.members}
    text += [f"- `{name}`: {words}" for name, words in differs.items() if words]
    return "\n".join(text) + "\n"


def _paragraphs(rule: Any) -> list[str]:
    text = inspect.cleandoc(rule.__doc__ or rule.name)
    return [" ".join(part.split()) for part in text.split("\n\n")]


def _paths(findings: Sequence[Finding]) -> str:
    names = [f.name for f in findings if f.outcome == "pass" and f.name.startswith("path-")]
    return ", ".join(n.removeprefix("path-") for n in names) or "none"
