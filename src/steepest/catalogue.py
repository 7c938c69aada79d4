"""The facts about a rule that `steepest list`, `steepest show` and the docs print."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from .backends import BACKENDS
from .backends.wanted import program_of
from .definition import Rule, rules
from .errors import BadCall
from .families import family_of, select_defaults
from .trace import Program

WIDTH = 100
"""The largest width of the table, in characters."""
_LINK = re.compile(r"\b(?:arXiv|doi):\S*\w")


def category_of(program: Program) -> str:
    """Returns the kind of step: "elementwise", "reducing" (has a norm, mean or sum) or "matrix"."""
    if program.elementwise:
        return "elementwise"
    return "matrix" if program.matrix else "reducing"


def docstring_parts(rule: Rule) -> dict[str, str]:
    """The parts of a rule's docstring, without line breaks.

    title: the first sentence. paper: the rest of the first paragraph. about: the text between the
    first paragraph and the deviations from the paper. when: the sentence that begins with "Use".
    differs: the deviations from the paper, and the text after them.
    """
    head, *rest = inspect.cleandoc(rule.__doc__ or rule.name).split("\n\n")
    title, _, paper = " ".join(head.split()).partition(". ")
    text = " ".join(" ".join(rest).split())
    about, _, differs = text.partition("Differs from the ")
    use = re.search(r"(?:^|(?<=\. ))Use .*?\.(?= [A-Z]|$)", text)
    return {
        "title": title.rstrip("."),
        "paper": paper.rstrip("."),
        "about": about.strip(),
        "when": use[0] if use else "",
        "differs": f"Differs from the {differs}" if differs else "",
    }


SQUARE = (1024, 1024)
"""The shape of the parameter whose state bytes are counted."""


def facts(rule: Rule) -> dict[str, Any]:
    """Returns what is known about a rule without running it, as values that JSON can hold.

    states and bytes_per_parameter hold for the default options and a float32 parameter of
    1024 x 1024 elements. oracle is None if the rule has no oracle.
    """
    from .oracles import ORACLES

    text = docstring_parts(rule)
    year = re.search(r"\b(1[89]|20)\d\d\b", text["paper"])
    link = _LINK.search(text["paper"])
    program = program_of(select_defaults(rule))
    row = ORACLES.get(rule.name)
    sizes = [math.prod(rule.shape(rule.keys[s], SQUARE)) for s in program.states]
    return {
        "name": rule.name,
        "class": family_of(rule).name,
        "title": text["title"],
        "year": int(year[0]) if year else None,
        "paper": text["paper"],
        "link": link[0] if link else None,
        "kind": category_of(program),
        "oracle": row.source if row else None,
        "states": [rule.keys[s] for s in program.states],
        "bytes_per_parameter": round(4 * sum(sizes) / math.prod(SQUARE), 2),
        "when": text["when"],
        "defaults": {**rule.defaults, **rule.choices},
    }


def listing() -> list[dict[str, Any]]:
    """The facts of every rule, in order of growing complexity."""
    return [facts(rule) for rule in rules.values()]


def table(rows_of_facts: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns a header, then one line of at most WIDTH characters for each rule.

    st: the number of states. B: the bytes of all states per parameter. paper: the arXiv number, or,
    if the paper has none, the citation, cut to fit.
    """
    rows: list[tuple[str, ...]] = [("name", "class", "year", "st", "B", "kind", "oracle", "paper")]
    for f in rows_of_facts:
        size = f"{f['bytes_per_parameter']:g}"
        year, oracle = f["year"] or "-", f["oracle"] or "none"
        start = (f["name"], f["class"], year, len(f["states"]), size, f["kind"], oracle)
        number = f["link"] if str(f["link"]).startswith("arXiv") else None
        rows.append((*map(str, start), number or f["paper"]))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [x.ljust(width) for x, width in zip(row, widths, strict=True)]
        for column in (3, 4):
            cells[column] = row[column].rjust(widths[column])
        line = " ".join(cells).rstrip()
        lines.append(line if len(line) <= WIDTH else line[: WIDTH - 3].rstrip() + "...")
    return lines


def shown(rule: Rule, backend: str | None = None) -> str:
    """Returns the rule's source, or the code that `backend` generates for the class's defaults."""
    if backend is None:
        return inspect.getsource(rule.function)
    if backend not in BACKENDS:
        known = ", ".join(BACKENDS)
        raise BadCall(f"backend {backend!r} was given, expected one of {known}")
    program = program_of(select_defaults(rule))
    text = BACKENDS[backend].source(program)
    if text is None:
        why = "works on whole matrices" if program.matrix else "sums over whole tensors"
        raise BadCall(
            f"backend {backend!r} generates no code for {rule.name}, because this rule {why}; "
            "leave --backend out"
        )
    return text
