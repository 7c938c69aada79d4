"""Writes docs/optimizers/, a page per optimizer, and a paragraph of the README:

    python scripts/pages.py --write

Without --write it names the pages that are out of date, and leaves with 1 if there are any. The
passports are those of docs/passports.md, which scripts/doctor.py writes.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from steepest.arguments import allowed, meaning
from steepest.catalogue import docstring_parts, facts
from steepest.definition import Rule, rules
from steepest.families import family_of
from steepest.latex import formula
from steepest.options import PAIRS, STORAGE, WITHOUT_EFFECT
from steepest.oracles import LIMIT, ORACLES, SETTINGS

DOCS = Path(__file__).parents[1] / "docs"
FOLDER = DOCS / "optimizers"
README = DOCS.parent / "README.md"


def pages() -> dict[Path, str]:
    """File -> the text it must have: the README and every page of the folder."""
    by_rule = {FOLDER / f"{rule.name}.md": page(rule) for rule in rules.values()}
    readme = compared(README.read_text(encoding="utf-8"))
    return {README: readme, FOLDER / "README.md": index(), **by_rule}


def index() -> str:
    """The table of all optimizers."""
    head = ("name", "class", "year", "paper", "kind", "states", "bytes", "oracle")
    cells = [head]
    for rule in rules.values():
        f = facts(rule)
        name, kind, oracle = f"[`{rule.name}`]({rule.name}.md)", f["kind"], f["oracle"] or "none"
        size = f"{f['bytes_per_parameter']:g}"
        year, paper = str(f["year"] or ""), linked(f["paper"])
        states = ", ".join(f"`{s}`" for s in f["states"])
        cells.append((name, f"`{f['class']}`", year, paper, kind, states, size, oracle))
    text = """# The optimizers

In order of growing complexity; `python scripts/pages.py --write` writes these pages from the rules
themselves, and `steepest list` prints the table. Bytes are those of the states, for each float32
parameter, with the class's defaults (of a matrix of 1024 x 1024, where a state is not like its
parameter). The oracle is what the rule is compared with, step by step: torch.optim, the package of
the method's authors, optax, pytorch-optimizer, or (of the paper's formula, by somebody who had not
seen the rule) a transcription.
"""
    return "\n".join([text, *table(cells)]) + "\n"


def page(rule: Rule) -> str:
    """The page of one optimizer."""
    text, f = docstring_parts(rule), facts(rule)
    lines = [f"# {text['title']}", "", f"`steepest.{f['class']}`, in a race `{rule.name}`."]
    lines += [*([f"{linked(text['paper'])}."] if text["paper"] else []), "", text["about"], ""]
    lines += [text["differs"], ""] if text["differs"] else []
    lines += ["## Formula", "", *formulas(rule)]
    lines += ["## Arguments", "", *arguments(rule), "", "## States", "", *states(rule, f), ""]
    lines += ["## Passport", "", *passport(f["class"]), ""]
    if links := races(rule.name):
        lines += ["## Measured races", "", *links, ""]
    lines += [
        "## See also",
        "",
        f"- `steepest show {rule.name} --backend cpu`: the loop it runs as.",
    ]
    lines += ["- [All optimizers](README.md), [how to choose](../how-to-choose.md)."]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)) + "\n"


def linked(paper: str) -> str:
    """The paper's citation, with arXiv and doi numbers as links."""
    paper = re.sub(r"\barXiv:([\w.]+\w)", r"[arXiv:\1](https://arxiv.org/abs/\1)", paper)
    return re.sub(r"\bdoi:([^\s;,]+\w)", r"[doi:\1](https://doi.org/\1)", paper)


def formulas(rule: Rule) -> list[str]:
    """The formula with the class's defaults, then one with each flag inverted."""
    family = family_of(rule)
    chosen = dict(family.select(family.arguments).choices)
    defaults = {name: chosen.get(name, default) for name, default in rule.choices.items()}
    seen, lines = set[str](), []
    for name in (None, *(n for n, v in defaults.items() if isinstance(v, bool))):
        switched = {} if name is None else {name: not defaults[name]}
        text = str(formula(rule, **{**defaults, **switched}))
        if text not in seen:
            lines += [f"With `{n}={v}`:\n" for n, v in switched.items()]
            lines += ["```math", text, "```", ""]
        seen.add(text)
    return lines


def arguments(rule: Rule) -> list[str]:
    """The constructor's arguments: meaning, symbol, default and its source, limits."""
    family, symbols = family_of(rule), formula(rule).symbols
    cells = [("argument", "what it is", "in the formula", "default", "as in", "allowed")]
    for name, default in {**family.arguments, **STORAGE}.items():
        if name in WITHOUT_EFFECT or (name == "clip_norm" and not rule.trace().elementwise):
            continue
        members = [n for n, (pair, _) in PAIRS.items() if pair == name and n in rule.defaults]
        scalars = members or ([name] if name in rule.defaults else [])
        signs = ", ".join(inline(symbols[n]) for n in scalars)
        source = (
            "this package" if name in STORAGE else source_of(rule, name, default, bool(scalars))
        )
        row = (meaning(rule, name), signs, f"`{default}`", source, allowed(rule, name))
        cells.append((f"`{name}`", *row))
    tuned = [f"`{n}` from {low:g} to {high:g}" for n, (low, high) in rule.search.items()]
    note = f"A race tunes {' and '.join(tuned)}." if tuned else "A race tunes nothing."
    others = ", ".join(f"`{n}`" for n in WITHOUT_EFFECT)
    return [*table(cells), "", f"{note} Accepted without effect: {others}."]


def source_of(rule: Rule, name: str, default: Any, in_formula: bool) -> str:
    """Where a default comes from: another package's class, the formula or this package."""
    row, class_name = ORACLES.get(rule.name), family_of(rule).name
    for module in ("torch.optim", *([row.module] if row and row.module != "torch" else [])):
        other = getattr(importlib.import_module(module), class_name, None)
        parameters = inspect.signature(other).parameters if isinstance(other, type) else {}
        if name in parameters and parameters[name].default == default:
            return f"`{module}.{class_name}`"
    return "its formula" if in_formula or name in rule.choices else "this package"


def states(rule: Rule, row: dict[str, Any]) -> list[str]:
    """The section on the states that are kept between steps."""
    symbols = formula(rule).symbols
    names = {key: name for name, key in rule.keys.items()}
    keys = [f"`{key}` ({inline(symbols[names[key]])})" for key in row["states"]]
    size = row["bytes_per_parameter"]
    of_own = ", ".join(keys) or "none"
    lines = [f"Of each parameter's shape: {of_own}; {size:g} bytes per float32 parameter."]
    if row["kind"] == "matrix":
        lines[0] += " For matrices some of them are of another size."
    if rule.carried:
        named = ", ".join(f"`{rule.keys[n]}` ({inline(symbols[n])})" for n in rule.carried)
        lines.append(f"One number for each parameter tensor: {named}.")
    return lines


def passport(class_name: str) -> list[str]:
    """The section of a class in docs/passports.md, without its heading."""
    text = (DOCS / "passports.md").read_text(encoding="utf-8")
    section = re.search(rf"^## {class_name}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    if not section:
        return ["Not examined yet: `python scripts/doctor.py`."]
    # the page says the rest already
    return [x for x in section[1].strip().splitlines() if not re.match("- (Rule )?`", x)]


def races(name: str, file: Path = DOCS / "findings.md") -> list[str]:
    """A link to each section of the findings that names the optimizer in backquotes."""
    if not file.exists():
        return []
    pieces = re.split(r"^#+ (.+)\n", file.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    sections = zip(pieces[::2], pieces[1::2], strict=True)
    titles = [title for title, text in sections if f"`{name}`" in text]
    return [f"- [{title}](../{file.name}#{anchor(title)})" for title in titles]


def anchor(title: str) -> str:
    """GitHub's anchor of a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def inline(symbol: str) -> str:
    """An inline formula, quoted so that Markdown leaves it alone."""
    return f"$`{symbol}`$"


def table(cells: Sequence[tuple[str, ...]]) -> list[str]:
    """A Markdown table; the first row is its head."""
    rows = ["| " + " | ".join(c.replace("|", "\\|") for c in row) + " |" for row in cells]
    return [rows[0], "| " + " | ".join("---" for _ in cells[0]) + " |", *rows[1:]]


COMPARED_WITH = {
    "torch": "torch.optim",
    "package": "the authors' own packages",
    "optax": "optax",
    "pytorch-optimizer": "pytorch-optimizer",
}


def compared(readme: str) -> str:
    """The README with a current paragraph on what the rules are compared with."""
    names: dict[str, list[str]] = {}
    for name, row in ORACLES.items():
        names.setdefault(row.source, []).append(f"`{name}`")
    others = ", ".join(f"{len(names[k])} with {other}" for k, other in COMPARED_WITH.items())
    loose: dict[str, float] = {}
    for setting in SETTINGS:
        if setting.bound > LIMIT:
            loose[setting.rule] = max(setting.bound, loose.get(setting.rule, 0))
    bounds = ", ".join(f"`{rule}` ({bound:.0e} in some settings)" for rule, bound in loose.items())
    transcribed = names["transcription"]
    groups = f"{others}, and {len(transcribed)} that have none of these ({', '.join(transcribed)})"
    sentences = (
        f"- Every optimizer is compared, step by step, with another implementation: of "
        f"{len(ORACLES)} rules {groups} with a transcription of the paper. In float64 they agree "
        f"within {LIMIT:.0e}, but for {bounds}; `src/steepest/oracles/` says why, and "
        "tests measure it. Every class is also compared with a second transcription, in NumPy, by "
        "somebody who had not seen the rule (`tests/oracles/test_transcriptions.py`)."
    )
    text = textwrap.fill(sentences, 110, subsequent_indent="  ", break_on_hyphens=False) + "\n"
    start, stop = "<!-- by scripts/pages.py -->\n", "<!-- end -->\n"
    head, rest = readme.split(start)
    return head + start + text + stop + rest.split(stop, 1)[1]


def stale() -> list[Path]:
    """The files that are out of date, and pages that belong to no rule."""
    current = pages()
    old = [f for f, text in current.items() if not f.exists() or f.read_text("utf-8") != text]
    return old + sorted({*FOLDER.glob("*.md")} - {*current})


if __name__ == "__main__":
    if "--write" in sys.argv[1:]:
        FOLDER.mkdir(exist_ok=True)
        for file in {*FOLDER.glob("*.md")} - {*pages()}:
            file.unlink()
        for file, text in pages().items():
            file.write_text(text, encoding="utf-8")
    for file in (left := stale()):
        print(f"out of date: {file}; run python scripts/pages.py --write")
    sys.exit(bool(left))
