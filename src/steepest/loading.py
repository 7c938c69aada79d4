"""Matches saved states to parameters.

`load` writes nothing. It returns the new state and groups, which the optimizer then takes over.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from .checkpoint import (
    FIXED,
    NOTES,
    Saved,
    Slot,
    canonical,
    check_elsewhere,
    check_group,
    check_rows,
    check_state,
    foreign_entries,
    listing,
    read,
    scalar_keys,
    state_shape,
)
from .checks import real as number
from .family import Family
from .options import SCHEDULED, STORAGE, WITHOUT_EFFECT


@dataclass(frozen=True)
class Loaded:
    """The result of a load: the parameters that were matched, and those that were not. Each is
    listed by its name, or by its group and position.

    missing: parameters of the optimizer that the checkpoint lacks, or that follow a reshaped
    parameter in a group without names. unexpected: parameters of the checkpoint that the optimizer
    lacks. reshaped: parameters whose saved state has another shape. Missing and reshaped parameters
    start with an empty state.
    """

    matched: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    reshaped: tuple[str, ...] = ()

    def __str__(self) -> str:
        meanings = {
            "missing": "not in the checkpoint, or after a reshaped parameter; starts empty",
            "unexpected": "only in the checkpoint",
            "reshaped": "another shape in the checkpoint; starts empty",
        }
        lines = [f"{len(self.matched)} parameters matched"]
        for name, meaning in meanings.items():
            if names := getattr(self, name):
                lines.append(f"{len(names)} {name} ({meaning}): {listing(names)}")
        return "\n".join(lines)


class Pair(NamedTuple):
    """A parameter and its saved state. fresh: whether the parameter starts with an empty state."""

    slot: Slot
    saved: Saved
    fresh: bool = False


def has_other_shape(slot: Slot, saved: Saved, family: Family) -> bool:
    """Whether the saved state belongs to a parameter of another shape than the slot's."""
    return any(
        isinstance(v, Tensor) and not v.is_nested and v.shape != state_shape(family, k, slot.tensor)
        for k, v in saved.state.items()
        if k in family.keys - scalar_keys(family)
    )


def _index_by_name(owner: str, called: str, rows: Sequence[Any], same: Any) -> dict[str, Any]:
    """Returns name -> row. Rows of the same parameter count as one row.

    Raises ValueError if two different parameters have the same name.
    """
    full = [row.name for row in rows]
    for names in (canonical(full), full):  # a part of a model may have the name of a wrapper
        index: dict[str, Any] = {}
        if all(same(index.setdefault(n, row), row) for n, row in zip(names, rows, strict=True)):
            return index
    raise ValueError(
        f"{called}: two parameters of the {owner} have the same name; take the names from the "
        "named_parameters() of one model"
    )


def by_name(
    called: str, slots: list[Slot], saved: list[Saved], strict: bool
) -> tuple[list[Pair], list[str], list[str]]:
    """Match by name. Returns the pairs, the missing parameters and the unexpected parameters.

    If `strict`, raises ValueError for a missing or unexpected parameter.
    """
    own = _index_by_name("optimizer", called, slots, lambda a, b: a.tensor is b.tensor)
    theirs = _index_by_name("checkpoint", called, saved, lambda a, b: a.key == b.key)
    missing = [slot.label for name, slot in own.items() if name not in theirs]
    unexpected = [row.label for name, row in theirs.items() if name not in own]
    if strict and (missing or unexpected):
        problems = [f"lacks {listing(missing)}"] if missing else []
        if unexpected:
            problems.append(f"has {listing(unexpected)}, which this optimizer lacks")
        raise ValueError(
            f"{called}: the checkpoint {' and '.join(problems)}; pass strict=False to load what "
            "matches"
        )
    return [Pair(own[n], theirs[n]) for n in own if n in theirs], missing, unexpected


def by_order(
    called: str, slots: list[Slot], saved: list[Saved], sizes: list[int], theirs: list[int]
) -> list[Pair]:
    """Match the entries of a checkpoint to the parameters by group and by position in the group.

    sizes, theirs: the sizes of the groups in the optimizer and in the checkpoint.
    """
    cure = "make both optimizers from named_parameters() to load by name"
    if len(sizes) != len(theirs):
        raise ValueError(
            f"{called}: the checkpoint has {len(theirs)} groups, expected {len(sizes)}; {cure}"
        )
    for i, (here, there) in enumerate(zip(sizes, theirs, strict=True)):
        if here != there:
            raise ValueError(
                f"{called}: group {i} of the checkpoint has {there} parameters, expected {here}; "
                f"{cure}"
            )
    return [Pair(a, b) for a, b in zip(slots, saved, strict=True)]


def slots_of(groups: list[dict[str, Any]], saved: list[Saved]) -> list[Slot]:
    """Returns the optimizer's parameters as slots.

    A parameter without a name takes the label of the checkpoint's parameter at the same position.
    """
    labels = iter([row.label for row in saved])
    slots: list[Slot] = []
    for i, group in enumerate(groups):
        names = group.get("param_names")
        for j, p in enumerate(group["params"]):
            label = next(labels, f"parameter {j} of group {i}")
            slots.append(Slot(p, names[j], names[j], i) if names else Slot(p, "", label, i))
    return slots


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return number(a) == number(b)
    try:
        return bool(a == b)
    except (RuntimeError, TypeError, ValueError):  # arrays
        return False


def _copied(value: Any) -> Any:
    """Returns a copy that shares no memory.

    It detaches tensors, because copy.deepcopy raises for a tensor with an autograd history.
    """
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, (list, tuple)) and type(value) in (list, tuple):
        return type(value)(map(_copied, value))
    if type(value) is dict:
        return {k: _copied(v) for k, v in value.items()}
    return copy.deepcopy(value)


def _copied_foreign(value: Any, p: Tensor | None = None) -> Any:
    """Returns a copy of an entry that other code keeps in the state.

    If the entry is in the state of a parameter `p`, a tensor is copied to the parameter's device.
    """
    if isinstance(value, Tensor) and p is not None:
        return value.detach().to(p.device, copy=True)
    try:
        return _copied(value)
    except Exception:  # a foreign object may raise anything; torch does not copy it either
        return value


def merge_options(
    called: str, index: int, groups: list[dict[str, Any]], sources: list[int], strict: bool
) -> tuple[dict[str, Any], list[str]]:
    """Returns the saved options for a group, and complaints about them.

    The options come from the saved groups that the group's parameters come from. If these saved
    groups differ, `strict` raises ValueError; without `strict`, differing options are left out.
    """
    first, *others = [groups[i] for i in sources] or [{}]
    keys = {k: None for g in (first, *others) for k in g if k not in ("params", "param_names")}
    taken = {k: first[k] for k in keys if k in first}

    def agrees(group: dict[str, Any], key: str) -> bool:
        return key in group and key in first and _equal(group[key], first[key])

    differ = [k for k in keys if not all(agrees(g, k) for g in others)]
    if not differ:
        return taken, []
    complaint = (
        f"{called}: group {index} has parameters of the checkpoint's groups "
        f"{listing(sources)}, which differ in {listing(differ)}"
    )
    if strict:
        raise ValueError(f"{complaint}; group them as they were saved, or pass strict=False")
    kept = {k: v for k, v in taken.items() if k not in differ}
    return kept, [f"{complaint}; this optimizer's values are kept"]


def unknown_options(family: Family, taken: Mapping[str, Any], own: Mapping[str, Any]) -> list[str]:
    """Returns the entries of a saved group that may be options of another optimizer.

    These are numbers and sequences of numbers. They do not include torch's flags, the entries of
    schedulers, or entries that the optimizer's own group also has (`lr_scale`).
    """
    known = {*family.arguments, *family.captured, *STORAGE, *WITHOUT_EFFECT, *SCHEDULED, *NOTES}

    def is_numeric(value: Any) -> bool:
        if isinstance(value, (tuple, list)):
            return bool(value) and all(map(is_numeric, value))
        return isinstance(value, bool) or not math.isnan(number(value))

    return [k for k, v in taken.items() if k not in known and k not in own and is_numeric(v)]


def load(
    optimizer: Any, saved: Any, strict: bool, stacklevel: int
) -> tuple[defaultdict[Tensor, dict[str, Any]], list[dict[str, Any]], Loaded]:
    """Returns the new state, groups and report. Does not change the optimizer itself."""
    called = type(optimizer).__name__
    groups, rows = read(called, saved)
    own: list[dict[str, Any]] = optimizer.param_groups
    slots = slots_of(own, rows)
    missing: list[str] = []
    unexpected: list[str] = []
    reshaped: list[str] = []
    named = bool(slots) and all(s.name for s in slots) and all(r.name for r in rows) and bool(rows)
    if named:
        pairs, missing, unexpected = by_name(called, slots, rows, strict)
        sources: list[list[int]] = [[] for _ in own]
        for slot, row, _ in pairs:
            if row.group not in sources[slot.group]:
                sources[slot.group].append(row.group)
    else:
        sizes = [[len(g["params"]) for g in gs] for gs in (own, groups)]
        pairs = by_order(called, slots, rows, *sizes)
        sources = [[i] for i in range(len(own))]
    check_rows(called, saved, rows)
    for slot, row, _ in pairs:
        family = optimizer._family(own[slot.group])
        full = {**family.arguments, **own[slot.group]}
        check_elsewhere(called, slot, row, family, full, groups[row.group])
    made, complaints, families = _options(optimizer, groups, sources, strict)
    if not strict:
        unmatched: set[int] = set()
        for k, (slot, row, _) in enumerate(pairs):
            wrong = has_other_shape(slot, row, families[slot.group])
            if wrong or slot.group in unmatched:
                pairs[k] = Pair(slot, row, fresh=True)
                (reshaped if wrong else missing).append(slot.label)
            if wrong and not named:  # the parameters after this one may have moved up or down
                unmatched.add(slot.group)
    state: Any = _states(called, pairs, families, made, groups)
    state.update({k: _copied_foreign(v) for k, v in foreign_entries(saved, rows).items()})
    for complaint in complaints:
        warnings.warn(complaint, stacklevel=stacklevel)
    matched = tuple(dict.fromkeys(slot.label for slot, _, fresh in pairs if not fresh))
    report = Loaded(matched, tuple(missing), tuple(unexpected), tuple(reshaped))
    return state, made, report


def _options(
    optimizer: Any, groups: list[dict[str, Any]], sources: list[list[int]], strict: bool
) -> tuple[list[dict[str, Any]], list[str], list[Family]]:
    """Returns the new groups, the warnings about them, and their families."""
    called, made, complaints, families = type(optimizer).__name__, [], [], []
    foreign: dict[str, None] = {}
    for index, (own, from_groups) in enumerate(zip(optimizer.param_groups, sources, strict=True)):
        family = optimizer._family(own)
        taken, complaint = merge_options(called, index, groups, from_groups, strict)
        complaints += complaint
        if "rule" in taken and optimizer._family({**own, "rule": taken["rule"]}) is not family:
            raise ValueError(
                f"{called}: group {index} has the rule {taken['rule']!r} in the checkpoint, but "
                f"{own.get('rule')!r} in this optimizer; give the group that rule"
            )
        foreign.update(dict.fromkeys(unknown_options(family, taken, own)))
        # an option that is newer than the checkpoint keeps its current value
        defaults = optimizer.defaults if family is optimizer.family else family.arguments
        try:
            new = {k: _copied(v) for k, v in taken.items() if k not in ("params", "rule")}
        except TypeError as error:
            raise ValueError(
                f"{called}: the checkpoint's options of group {index} cannot be copied ({error}); "
                "the checkpoint is damaged"
            ) from None
        group = {**new, **defaults, **own, **new}  # in the order of the checkpoint
        for name, source in family.captured.items() if from_groups else ():
            if name not in taken and not math.isnan(number(group[source])):
                group[name] = number(group.get("initial_lr", group[source]))
        group |= {k: own.get(k, v) for k, v in FIXED.get(family.name, {}).items() if k in group}
        names = groups[from_groups[0]].get("param_names") if from_groups else None
        if names is not None and "param_names" not in own:
            group["param_names"] = list(names)
        made.append(check_group(called, index, family, group))
        families.append(family)
    if foreign:
        complaints.append(
            f"{called}: the checkpoint's groups have {listing(foreign)}, which this optimizer does "
            "not know; they are kept in the groups, without effect"
        )
    return made, complaints, families


def _states(
    called: str,
    pairs: list[Pair],
    families: list[Family],
    groups: list[dict[str, Any]],
    saved: list[dict[str, Any]],
) -> defaultdict[Tensor, dict[str, Any]]:
    """Check and copy the saved states. Returns parameter -> state."""
    owners: dict[int | str, Tensor] = {}
    owned: dict[Tensor, int | str] = {}
    for slot, row, _ in pairs:
        p = slot.tensor
        if owners.setdefault(row.key, p) is not p or owned.setdefault(p, row.key) != row.key:
            raise ValueError(
                f"{called}: {slot.label} is tied to another parameter in the checkpoint or in this "
                "optimizer, but not in both; tie the parameters as when the checkpoint was saved"
            )
    taken = [(slot, row) for slot, row, fresh in pairs if not fresh and row.state]
    for slot, row in taken:
        check_state(called, slot, row, families[slot.group], groups[slot.group], saved[row.group])
    state: defaultdict[Tensor, dict[str, Any]] = defaultdict(dict)
    for slot, row in taken:
        p, known = slot.tensor, families[slot.group].keys
        for key, value in row.state.items():
            copied = _copied_state(key, value, p) if key in known else _copied_foreign(value, p)
            state[p][key] = copied
    return state


def _copied_state(key: str, value: Any, p: Tensor) -> Any:
    """Returns a copy of a saved state, in the saved dtype.

    The copy is on the parameter's device; only a step count stays on the device of `value`.
    """
    if isinstance(value, Tensor):
        device = value.device if key == "step" else p.device
        return value.detach().resolve_conj().resolve_neg().to(device, copy=True)
    return value if value is None or type(value) in (int, float) else float(value)
