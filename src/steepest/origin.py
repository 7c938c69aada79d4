"""Infers which optimizer saved a checkpoint, if the checkpoint does not name the optimizer."""

from __future__ import annotations

from typing import Any

from .checkpoint import ELSEWHERE, Saved, check_group, needed
from .families import families
from .family import Family
from .options import WITHOUT_EFFECT


def inferred(groups: list[dict[str, Any]], rows: list[list[Saved]]) -> Family:
    """Returns the family that saved a checkpoint, inferred from the options and states in it."""
    all_families = list(families.values())
    options = set(WITHOUT_EFFECT).union(*({*f.arguments, *f.captured} for f in all_families))
    state_keys = {*ELSEWHERE}.union(*(f.keys for f in all_families))

    def is_possible(family: Family, foreign_keys: bool = False) -> bool:
        for group, group_rows in zip(groups, rows, strict=True):
            full = {**family.arguments, **group}
            if not options & group.keys() <= {*family.arguments, *family.captured}:
                return False
            try:
                full = check_group("convert", 0, family, full)
            except (TypeError, ValueError):
                return False
            selection = family.select(full)
            for row in group_rows:
                keys = {k for k, v in row.state.items() if v is not None}
                known = (keys & state_keys if foreign_keys else keys) <= family.keys
                if not known or needed(selection, row.state):
                    return False
        return True

    def is_exact(family: Family) -> bool:
        own_options = {*family.arguments, *family.captured} - {*WITHOUT_EFFECT}
        return all(options & g.keys() - {*WITHOUT_EFFECT} == own_options for g in groups)

    def steps_as(family: Family) -> list[Any]:
        selections = [family.select({**family.arguments, **g}) for g in groups]
        # adamw counts as adam: they differ only in the decay, which a group does not record
        return [(s.rule.name.replace("adamw", "adam"), s.modifiers, s.choices) for s in selections]

    # if the options identify the optimizer, unknown state keys may belong to other code
    candidates = [f for f in all_families if is_possible(f)]
    if not candidates:
        candidates = [f for f in all_families if is_exact(f) and is_possible(f, foreign_keys=True)]
    candidates = [f for f in candidates if is_exact(f)] or candidates
    all_keys = {key for group_rows in rows for row in group_rows for key in row.state}
    elsewhere = {ELSEWHERE[key] for key in all_keys if key in ELSEWHERE}
    if not candidates and elsewhere:
        raise ValueError(
            f"convert: the checkpoint was saved by {min(elsewhere)}, which is not known here, so "
            "start a new optimizer from the model's weights"
        )
    if not candidates:
        raise ValueError(
            "convert: no optimizer known here has the checkpoint's options and states; pass "
            "as source= the name of the optimizer that saved it"
        )
    if any(steps_as(f) != steps_as(candidates[0]) for f in candidates):
        names = " or ".join(f.name for f in candidates)
        raise ValueError(
            f"convert: {names} may have saved the checkpoint; pass as source= the name of the "
            "right optimizer"
        )
    # the family whose defaults differ least from the saved options
    changed = [
        sum(g.get(k, v) != v for g in groups for k, v in f.arguments.items()) for f in candidates
    ]
    return candidates[changed.index(min(changed))]
