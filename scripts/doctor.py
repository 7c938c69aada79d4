"""Writes docs/doctor.md and docs/passports.md: python scripts/doctor.py"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch

from steepest.check import Finding, examinations, examine, passport
from steepest.check.report import count, package
from steepest.classes import classes

DOCS = Path(__file__).parents[1] / "docs"
TARGETS = (
    "adabelief_pytorch:AdaBelief",
    "adabound:AdaBound",
    "pytorch_optimizer:AdaBelief",
    "torch.optim:AdamW",
    "steepest:AdaBelief",
    "steepest:AdaBound",
    "steepest:AdamW",
)
LONGEST = 200
"""Longer details are cut to this many characters."""
Findings = Callable[[str], list[Finding]]

INTRODUCTION = """\
# The doctor

`steepest check` examines any `torch.optim.Optimizer` subclass: {count} examinations, written from
torch's documented behaviour, each ending in pass, fail or not applicable with the reason. What
fails is printed with a script that fails the same way when pasted; it is the very text that was
run.

```console
$ steepest check adabelief                      # a rule or a class of this package
$ steepest check torch.optim:AdamW              # any other class
$ steepest check mine:Mine --option lr=0.1      # constructor options
$ steepest check mine:Mine --only resume --json
$ steepest check --all
```

The exit code is 0 if nothing fails, 1 if something does, 2 if the call was wrong. In Python:

```python
from steepest.check import examine

for finding in examine("torch.optim:AdamW", only="resume"):
    print(finding.outcome, finding.name, finding.detail)
```

As tests of your own package, an examination each under pytest:

```python
import torch
from steepest.check.suite import Suite


class TestMine(Suite):
    optimizer = torch.optim.AdamW
    known = {{"load-no-alias": "shares the loaded tensors, as torch does"}}
```

`options = {{"lr": 0.1}}` there reaches every construction; what stands in `known` has to fail.

An examination whose source says "beyond torch" asks for more than torch promises of its own
classes.
"""


def page(findings_of: Findings) -> str:
    """The page on the doctor."""
    lines = [INTRODUCTION.format(count=len(examinations()))]
    lines += ["## As found", "", f"`python scripts/doctor.py`, torch {torch.__version__}:", ""]
    lines += table([("", *(f"`{t}`" for t in TARGETS)), *rows(findings_of)])
    for target in TARGETS:
        failed = [f for f in findings_of(target) if f.outcome == "fail"]
        if failed:
            lines += ["", f"### {target}", ""]
            lines += [f"- `{f.name}`: {shortened(f.detail)}" for f in failed]
    lines += ["", "## The examinations", ""]
    listed = [(f"`{e.name}`", e.about, e.source) for e in examinations()]
    lines += table([("name", "what must hold", "source"), *listed])
    return "\n".join(lines) + "\n"


def rows(findings_of: Findings) -> list[tuple[str, ...]]:
    """Versions, counts, and each examination that at least one target fails."""
    outcomes = {t: {f.name: f.outcome for f in findings_of(t)} for t in TARGETS}
    counts = [count(findings_of(t)) for t in TARGETS]
    cells = [("version", *(package(t).split()[1] for t in TARGETS))]
    cells += [(f"**{o}**", *(str(c[o]) for c in counts)) for o in counts[0]]
    for e in examinations():
        row = [outcomes[t][e.name] for t in TARGETS]
        if "fail" in row:
            short = {"fail": "**fail**", "not applicable": "n.a.", "pass": "pass"}
            cells.append((f"`{e.name}`", *(short[outcome] for outcome in row)))
    return cells


def table(cells: list[tuple[str, ...]]) -> list[str]:
    """A Markdown table; the first row is its head."""
    escaped = [[c.replace("|", "\\|") for c in row] for row in cells]
    lines = ["| " + " | ".join(row) + " |" for row in escaped]
    return [lines[0], "| " + " | ".join("---" for _ in cells[0]) + " |", *lines[1:]]


def shortened(text: str) -> str:
    """A detail, cut to LONGEST characters."""
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."


def passports(findings_of: Findings) -> str:
    """The page of passports."""
    head = "# Passports\n\nOf every optimizer of this package, by `python scripts/doctor.py`."
    return "\n".join([head + "\n", *(passport(name, findings_of(name)) for name in classes)])


if __name__ == "__main__":
    once = cache(examine)
    (DOCS / "doctor.md").write_text(page(once), encoding="utf-8")
    (DOCS / "passports.md").write_text(passports(once), encoding="utf-8")
