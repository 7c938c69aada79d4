"""Which parameter takes which saved state.

`load` reads everything and writes nothing; the shell puts what it returns in place.
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
    apart,
    canonical,
    check_elsewhere,
    check_group,
    check_rows,
    check_state,
    listing,
    read,
    scalar_keys,
    shape,
)
from .checks import real as number
from .family import Family
from .options import SCHEDULED, STORAGE, WITHOUT_EFFECT


@dataclass(frozen=True)
class Loaded:
    """What a load has matched, by the names of the parameters, or by group and place.

    missing: here, and not in the checkpoint; unexpected: the other way round; reshaped: the saved
    state has another shape. Missing and reshaped parameters begin anew.
    """

    matched: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    reshaped: tuple[str, ...] = ()

    def __str__(self) -> str:
        about = {
            "missing": "not in the checkpoint, or behind one of another shape; begun anew",
            "unexpected": "in the checkpoint alone",
            "reshaped": "of another shape there, begun anew",
        }
        lines = [f"{len(self.matched)} parameters matched"]
        found = {name: getattr(self, name) for name in about}
        lines += [f"{len(x)} {n} ({about[n]}): {listing(x)}" for n, x in found.items() if x]
        return "\n".join(lines)


class Pair(NamedTuple):
    """A parameter and what was saved of it; fresh: its state begins anew."""

    slot: Slot
    saved: Saved
    fresh: bool = False


def misfit(slot: Slot, saved: Saved, family: Family) -> bool:
    """Whether the saved state belongs to a parameter of another shape."""
    return any(
        isinstance(v, Tensor) and not v.is_nested and v.shape != shape(family, k, slot.tensor)
        for k, v in saved.state.items()
        if k in family.keys - scalar_keys(family)
    )


def _named(what: str, called: str, rows: Sequence[Any], same: Any) -> dict[str, Any]:
    """Rows by name, those of one parameter taken once."""
    full = [row.name for row in rows]
    for names in (canonical(full), full):  # a model may have a part called like a wrapper
        found: dict[str, Any] = {}
        if all(same(found.setdefault(n, row), row) for n, row in zip(names, rows, strict=True)):
            return found
    raise ValueError(
        f"{called}: two parameters of the {what} have one name; take the names of one model's "
        "named_parameters()"
    )


def by_name(
    called: str, slots: list[Slot], saved: list[Saved], strict: bool
) -> tuple[list[Pair], list[str], list[str]]:
    """Pairs, and the names that are missing and unexpected."""
    mine = _named("optimizer", called, slots, lambda a, b: a.tensor is b.tensor)
    theirs = _named("checkpoint", called, saved, lambda a, b: a.key == b.key)
    missing = [slot.label for name, slot in mine.items() if name not in theirs]
    unexpected = [row.label for name, row in theirs.items() if name not in mine]
    if strict and (missing or unexpected):
        lacks = f" lacks {listing(missing)}" if missing else ""
        has = f"{' and' if lacks else ''} has {listing(unexpected)}" if unexpected else ""
        raise ValueError(
            f"{called}: the checkpoint{lacks}{has}{', which this optimizer has not' * bool(has)}; "
            "pass strict=False to load what matches"
        )
    return [Pair(mine[n], theirs[n]) for n in mine if n in theirs], missing, unexpected


def by_order(
    called: str, slots: list[Slot], saved: list[Saved], sizes: list[int], theirs: list[int]
) -> list[Pair]:
    """Pairs by group and place."""
    cure = "make the optimizer from named_parameters(), there and here, to load by name"
    if len(sizes) != len(theirs):
        raise ValueError(
            f"{called}: the checkpoint has a different number of groups, {len(theirs)} and not "
            f"{len(sizes)}; {cure}"
        )
    for i, (here, there) in enumerate(zip(sizes, theirs, strict=True)):
        if here != there:
            raise ValueError(
                f"{called}: group {i} of the checkpoint has another size, {there} parameters and "
                f"not {here}; {cure}"
            )
    return [Pair(a, b) for a, b in zip(slots, saved, strict=True)]


def slots_of(groups: list[dict[str, Any]], saved: list[Saved]) -> list[Slot]:
    """The optimizer's parameters, called by the checkpoint's names where they have none."""
    labels = iter([row.label for row in saved])
    found: list[Slot] = []
    for i, group in enumerate(groups):
        names = group.get("param_names")
        for j, p in enumerate(group["params"]):
            other = next(labels, f"parameter {j} of group {i}")
            found.append(Slot(p, names[j], names[j], i) if names else Slot(p, "", other, i))
    return found


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return number(a) == number(b)
    try:
        return bool(a == b)
    except (RuntimeError, TypeError, ValueError):  # arrays
        return False


def _copied(value: Any) -> Any:
    """A copy that shares no memory; copy.deepcopy refuses a tensor with a history."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, (list, tuple)) and type(value) in (list, tuple):
        return type(value)(map(_copied, value))
    if type(value) is dict:
        return {k: _copied(v) for k, v in value.items()}
    return copy.deepcopy(value)


def _lent(value: Any, p: Tensor | None = None) -> Any:
    """What others keep in a state, as it is: a tensor beside a parameter's state on its device."""
    if isinstance(value, Tensor) and p is not None:
        return value.detach().to(p.device, copy=True)
    try:
        return _copied(value)
    except Exception:  # whatever a stranger's object raises; torch copies nothing
        return value


def merged(
    called: str, index: int, groups: list[dict[str, Any]], sources: list[int], strict: bool
) -> tuple[dict[str, Any], list[str]]:
    """The options of the saved groups that a group's parameters come from, and a complaint."""
    first, *others = [groups[i] for i in sources] or [{}]
    keys = {k: None for g in (first, *others) for k in g if k not in ("params", "param_names")}
    taken = {k: first[k] for k in keys if k in first}
    differ = [k for k in keys if any(k not in g or k not in first or not _equal(g[k], first[k])
                                     for g in others)]  # fmt: skip
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


def unknown(family: Family, taken: Mapping[str, Any], own: Mapping[str, Any]) -> list[str]:
    """Options that may be another optimizer's: numbers and pairs that nobody here knows.

    A flag of torch, what a scheduler leaves, an entry that the group has here too (`lr_scale`), and
    whatever is no number (`name`) are in order.
    """
    known = {*family.arguments, *family.captured, *STORAGE, *WITHOUT_EFFECT, *SCHEDULED, *NOTES}

    def option(value: Any) -> bool:
        if isinstance(value, (tuple, list)):
            return bool(value) and all(map(option, value))
        return isinstance(value, bool) or not math.isnan(number(value))

    return [k for k, v in taken.items() if k not in known and k not in own and option(v)]


def load(
    optimizer: Any, saved: Any, strict: bool, stacklevel: int
) -> tuple[defaultdict[Tensor, dict[str, Any]], list[dict[str, Any]], Loaded]:
    """State, groups and report that a checkpoint makes of an optimizer, which is left as it is."""
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
        sources = [list(dict.fromkeys(b.group for a, b, _ in pairs if a.group == i))
                   for i in range(len(own))]  # fmt: skip
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
        lost: set[int] = set()
        for k, (slot, row, _) in enumerate(pairs):
            wrong = misfit(slot, row, families[slot.group])
            if wrong or slot.group in lost:
                pairs[k] = Pair(slot, row, fresh=True)
                (reshaped if wrong else missing).append(slot.label)
            if wrong and not named:  # what stands behind it may have moved up or down
                lost.add(slot.group)
    state: Any = _states(called, pairs, families, made, groups)
    state.update({k: _lent(v) for k, v in apart(saved, rows).items()})
    for complaint in complaints:
        warnings.warn(complaint, stacklevel=stacklevel)
    matched = tuple(dict.fromkeys(slot.label for slot, _, fresh in pairs if not fresh))
    report = Loaded(matched, tuple(missing), tuple(unexpected), tuple(reshaped))
    return state, made, report


def _options(
    optimizer: Any, groups: list[dict[str, Any]], sources: list[list[int]], strict: bool
) -> tuple[list[dict[str, Any]], list[str], list[Family]]:
    """The new groups, complaints to be made of them, and their families."""
    called, made, complaints, families = type(optimizer).__name__, [], [], []
    foreign: dict[str, None] = {}
    for index, (own, places) in enumerate(zip(optimizer.param_groups, sources, strict=True)):
        family = optimizer._family(own)
        taken, complaint = merged(called, index, groups, places, strict)
        complaints += complaint
        if "rule" in taken and optimizer._family({**own, "rule": taken["rule"]}) is not family:
            raise ValueError(
                f"{called}: the checkpoint steps group {index} by the rule {taken['rule']!r}, here "
                f"it has {own.get('rule')!r}; route its parameters as they were"
            )
        foreign.update(dict.fromkeys(unknown(family, taken, own)))
        # an option from after the checkpoint was saved keeps the value that it has here
        defaults = optimizer.defaults if family is optimizer.family else family.arguments
        try:
            new = {k: _copied(v) for k, v in taken.items() if k not in ("params", "rule")}
        except TypeError as error:
            raise ValueError(
                f"{called}: the checkpoint's options of group {index} cannot be copied, {error}; "
                "it is damaged"
            ) from None
        group = {**new, **defaults, **own, **new}  # in the order of the checkpoint
        for name, source in family.captured.items() if places else ():
            if name not in taken and not math.isnan(number(group[source])):
                group[name] = number(group.get("initial_lr", group[source]))
        group |= {k: own.get(k, v) for k, v in FIXED.get(family.name, {}).items() if k in group}
        names = groups[places[0]].get("param_names") if places else None
        if names is not None and "param_names" not in own:
            group["param_names"] = list(names)
        made.append(check_group(called, index, family, group))
        families.append(family)
    if foreign:
        complaints.append(
            f"{called}: the checkpoint's groups have {listing(foreign)}, which this optimizer does "
            "not know; kept in the groups, without effect"
        )
    return made, complaints, families


def _states(
    called: str,
    pairs: list[Pair],
    families: list[Family],
    groups: list[dict[str, Any]],
    saved: list[dict[str, Any]],
) -> defaultdict[Tensor, dict[str, Any]]:
    """Each parameter's state, checked and copied."""
    owners: dict[int | str, Tensor] = {}
    owned: dict[Tensor, int | str] = {}
    for slot, row, _ in pairs:
        p = slot.tensor
        if owners.setdefault(row.key, p) is not p or owned.setdefault(p, row.key) != row.key:
            raise ValueError(
                f"{called}: the checkpoint has {slot.label} once and this optimizer twice, or the "
                "other way round; tie parameters as they were when it was saved"
            )
    taken = [(slot, row) for slot, row, fresh in pairs if not fresh and row.state]
    for slot, row in taken:
        check_state(called, slot, row, families[slot.group], groups[slot.group], saved[row.group])
    state: defaultdict[Tensor, dict[str, Any]] = defaultdict(dict)
    for slot, row in taken:
        p, known = slot.tensor, families[slot.group].keys
        state[p] = {k: _moved(k, v, p) if k in known else _lent(v, p)
                    for k, v in row.state.items()}  # fmt: skip
    return state


def _moved(key: str, value: Any, p: Tensor) -> Any:
    """A saved state on its parameter's device, in its own dtype and memory."""
    if isinstance(value, Tensor):
        device = value.device if key == "step" else p.device
        return value.detach().resolve_conj().resolve_neg().to(device, copy=True)
    return value if value is None or type(value) in (int, float) else float(value)
