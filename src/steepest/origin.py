"""Which optimizer saved a checkpoint that does not say so itself."""

from __future__ import annotations

from typing import Any

from .checkpoint import ELSEWHERE, Saved, check_group, needed
from .families import families
from .family import Family
from .options import WITHOUT_EFFECT


def inferred(groups: list[dict[str, Any]], rows: list[list[Saved]]) -> Family:
    """The family that saved a checkpoint, by the names of its options and states."""
    every = list(families.values())
    options = set(WITHOUT_EFFECT).union(*({*f.arguments, *f.captured} for f in every))
    theirs = {*ELSEWHERE}.union(*(f.keys for f in every))

    def possible(family: Family, lent: bool = False) -> bool:
        for group, own in zip(groups, rows, strict=True):
            full = {**family.arguments, **group}
            if not options & group.keys() <= {*family.arguments, *family.captured}:
                return False
            try:
                full = check_group("convert", 0, family, full)
            except (TypeError, ValueError):
                return False
            selection = family.select(full)
            for row in own:
                held = {k for k, v in row.state.items() if v is not None}
                known = (held & theirs if lent else held) <= family.keys
                if not known or needed(selection, row.state):
                    return False
        return True

    def exact(family: Family) -> bool:
        mine = {*family.arguments, *family.captured} - {*WITHOUT_EFFECT}
        return all(options & g.keys() - {*WITHOUT_EFFECT} == mine for g in groups)

    def steps_as(family: Family) -> list[Any]:
        found = [family.select({**family.arguments, **g}) for g in groups]
        # adamw is adam: they differ in the decay that a group says nothing about
        return [(s.rule.name.replace("adamw", "adam"), s.modifiers, s.choices) for s in found]

    # keys that nobody here knows may be somebody else's, where the options tell who it was
    able = [f for f in every if possible(f)]
    able = able or [f for f in every if exact(f) and possible(f, lent=True)]
    able = [f for f in able if exact(f)] or able
    found = {ELSEWHERE[k] for row in (r for own in rows for r in own) for k in row.state
             if k in ELSEWHERE}  # fmt: skip
    if not able and found:
        raise ValueError(
            f"convert: the checkpoint is of {min(found)}, which is not known here: start a new "
            "optimizer from the model's weights"
        )
    if not able:
        raise ValueError(
            "convert: the checkpoint's options and states are of no optimizer that is known here; "
            "pass source=, the name of the one that saved it"
        )
    if any(steps_as(f) != steps_as(able[0]) for f in able):
        raise ValueError(
            f"convert: the checkpoint may be of {' or '.join(f.name for f in able)}; pass source=, "
            "the name of the one that saved it"
        )
    unlike = [sum(g.get(k, v) != v for g in groups for k, v in f.arguments.items()) for f in able]
    return able[unlike.index(min(unlike))]
