"""Checkpoints: which parameter takes which saved state, and what is refused.

`load` reads everything and writes nothing; the shell puts what it returns in place.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .checks import real as number
from .checks import short
from .definition import COMPENSATION, Rule, rules
from .families import SCHEDULED, STORAGE, WITHOUT_EFFECT, Family, Selection, families
from .plan import describe, program_of

# what torch.compile, activation checkpoints and FSDP put into the names of parameters
WRAPPERS = ("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")
# entries of a group that are no options
NOTES = {"params", "param_names", "name", "rule"}
# torch sets these whatever was saved: an Adam's checkpoint goes on decoupled in AdamW
FIXED: dict[str, dict[str, Any]] = {"AdamW": {"decoupled_weight_decay": True}}
# states of optimizers that are not here, and whose they are
ELSEWHERE = {
    **dict.fromkeys(("exp_avg_sq_row", "exp_avg_sq_col", "RMS"), "transformers' Adafactor"),
    **dict.fromkeys(("state1", "state2", "absmax1", "qmap1"), "an optimizer of bitsandbytes"),
}
_LISTED = 10
_COMMON = {"step", COMPENSATION}
# options that torch's classes have not had from the beginning
_LATER = {"maximize", "differentiable", "decoupled_weight_decay"}
_UNKNOWN = "which is not known here: begin anew, from the model's weights alone"


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
        lines += [f"{len(x)} {n} ({about[n]}): {_listed(x)}" for n, x in found.items() if x]
        return "\n".join(lines)


class Saved(NamedTuple):
    """A parameter in a checkpoint; name: "" if it has none."""

    key: int | str
    name: str
    label: str
    group: int
    state: dict[str, Any]


class Slot(NamedTuple):
    """A parameter of the optimizer that loads."""

    tensor: Tensor
    name: str
    label: str
    group: int


class Pair(NamedTuple):
    """A parameter and what was saved of it; fresh: its state begins anew."""

    slot: Slot
    saved: Saved
    fresh: bool = False


def _listed(names: Iterable[Any]) -> str:
    names = [str(n) for n in names]
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def canonical(names: Sequence[str]) -> list[str]:
    """The names of a model's parameters without what torch.compile, DDP, FSDP and their like put
    into them. A model may have a part called "module": only before every name is that DDP's.
    """
    found = [[part for part in name.split(".") if part not in WRAPPERS] for name in names]
    while found and all(len(parts) > 1 and parts[0] == "module" for parts in found):
        found = [parts[1:] for parts in found]
    return [".".join(parts) for parts in found]


# reading


def read(called: str, saved: Any) -> tuple[list[dict[str, Any]], list[Saved]]:
    """Groups and parameters of a checkpoint; ValueError for what is none."""

    def refuse(what: str, cure: str = "it is damaged, or no optimizer's state_dict") -> None:
        raise ValueError(f"{called}: the checkpoint {what}; {cure}")

    if not isinstance(saved, Mapping) or not {"state", "param_groups"} <= saved.keys():
        given = [*saved] if isinstance(saved, Mapping) else type(saved).__name__
        raise ValueError(
            f"{called}: {given} was given, expected an optimizer's state_dict with the keys "
            "'state' and 'param_groups'"
        )
    states, groups = saved["state"], saved["param_groups"]
    whole = isinstance(states, Mapping) and isinstance(groups, (list, tuple))
    if not (whole and all(isinstance(g, Mapping) and "params" in g for g in groups)):
        raise ValueError(
            f"{called}: a damaged checkpoint was given, expected an optimizer's state_dict: "
            "'state' a dict of dicts, 'param_groups' a list of dicts with 'params'"
        )
    found: list[Saved] = []
    for i, group in enumerate(groups):
        if odd := [k for k in group if not isinstance(k, str)]:
            refuse(f"has an option {odd[0]!r} in group {i}, expected names")
        keys, names, rule = group["params"], group.get("param_names"), group.get("rule")
        if rule is not None and not isinstance(rule, (str, Rule)):
            refuse(f"has in group {i} a rule that is a {type(rule).__name__}, expected its name")
        if not isinstance(keys, (list, tuple)) or not all(
            isinstance(k, (int, str)) and not isinstance(k, bool) for k in keys
        ):
            refuse(f"has in group {i} params that are no list of numbers or names")
        if names is not None and (
            not isinstance(names, (list, tuple))
            or len(names) != len(keys)
            or not all(isinstance(n, str) and n for n in names)
        ):
            refuse(f"has in group {i} param_names that are no list of one name per parameter")
        # torch.distributed.checkpoint calls parameters by their names, in the loading group's order
        if keys and all(isinstance(k, str) and not k.isdigit() for k in keys):
            names = keys
        for j, key in enumerate(keys):
            label = names[j] if names is not None else f"parameter {j} of group {i}"
            if not isinstance(states.get(key, {}), Mapping):
                given = type(states[key]).__name__
                refuse(f"has for {label} a {given}, expected an optimizer's state_dict with a dict")
            if odd := [k for k in states.get(key, {}) if not isinstance(k, str)]:
                refuse(f"has for {label} a state {odd[0]!r}, expected names")
            found.append(Saved(key, names[j] if names else "", label, i, dict(states.get(key, {}))))
    return [dict(g) for g in groups], found


def check_rows(called: str, saved: Mapping[str, Any], rows: list[Saved]) -> None:
    """ValueError for parameters in two groups, and states of parameters in none. What others keep
    in a state under a name of their own is no parameter's.
    """
    groups: dict[int | str, int] = {}
    twice = [r.key for r in rows if groups.setdefault(r.key, r.group) != r.group]
    entries = apart(saved, rows)
    astray = [k for k in saved["state"] if k not in groups and k not in entries]
    for keys, where in ((twice, "in two groups"), (astray, "in no group")):
        if keys:
            raise ValueError(
                f"{called}: the checkpoint has {_listed(map(repr, keys))} of its parameters "
                f"{where}; it is damaged"
            )


def apart(saved: Mapping[str, Any], rows: list[Saved]) -> dict[Any, Any]:
    """The entries of a state that are no parameter's: what others keep there, under a name."""

    mine = {row.key for row in rows}
    names = any(isinstance(key, str) and not key.isdigit() for key in mine)

    def lost(key: Any, value: Any) -> bool:
        state = isinstance(value, Mapping) and (names or "step" in value)
        state = state and not owned().isdisjoint(value)
        return state or isinstance(key, int) or (isinstance(key, str) and key.isdigit())

    return {k: v for k, v in saved["state"].items() if k not in mine and not lost(k, v)}


def check_group(called: str, index: int, family: Family, group: dict[str, Any]) -> dict[str, Any]:
    """The group with its options made plain; ValueError or TypeError for those with which it could
    not step.
    """
    try:
        group = family.plain(group, f" in the checkpoint's options for group {index}")
    except (TypeError, ValueError) as error:
        text = f"{called}{str(error).removeprefix(family.name)}"
        raise ValueError(f"{text}; it is damaged, or of another optimizer") from None
    if not isinstance(rounding := group.get("rounding"), (str, type(None))):
        raise ValueError(
            f"{called}: rounding is a {type(rounding).__name__}, expected a str or None"
        )
    group = family.validate(group)
    program_of(family.select(group))
    return group


def scalar_keys(family: Family) -> set[str]:
    """The keys of a state that are single numbers."""
    return {"step"}.union(*([r.keys[n] for n in r.carried] for r in family.members))


def needed(selection: Selection, state: Mapping[str, Any]) -> list[str]:
    """What a state lacks of the keys that the rule's next step reads."""
    rule, program = selection.rule, program_of(selection)
    keys = [rule.keys[s] for s in program.states]
    held = [k for k in keys if state.get(k) is not None]
    # where t is never read, any count will do, and none
    counts = program.saves_count and program.counts and bool(held)
    # without a saved count, what is there tells a first step from a later one
    if (number(state["step"]) if "step" in state else bool(held)) == 0:
        return []
    carried = [rule.keys[n] for n in rule.carried]
    wanted = [*keys, *carried, *["step"] * counts]
    return [k for k in wanted if state.get(k) is None]


def shape(family: Family, key: str, p: Tensor) -> Any:
    """The shape that a parameter's state of that key has in a family."""
    rule = next((r for r in family.members if key in r.keys.values()), family.members[0])
    return torch.Size(rule.shape(key, p.shape))


def owned(carried: bool = False) -> set[str]:
    """The keys that the rules here give to their states: whoever has one is stepped by a rule.
    carried: with their numbers, whose names may be short, like k.
    """
    return {r.keys[n] for r in rules.values() for n in (*r.states, *(r.carried if carried else ()))}


def _own(family: Family, state: Mapping[Any, Any]) -> set[str]:
    """The keys of a family's own that a state has."""
    return {k for k, v in state.items() if v is not None and k in family.keys} - _COMMON


def _refuse_owner(called: str, slot: Slot, saved: Saved, family: Family, who: str) -> None:
    odd = sorted(saved.state.keys() - family.keys)
    what = f"a state {odd[0]!r} for" if odd else "the options of another class beside the state of"
    raise ValueError(
        f"{called}: the checkpoint has {what} {slot.label}, expected some of "
        f"{sorted(family.keys if odd else options_of(family))}; it was saved by {who}"
    )


def check_elsewhere(
    called: str, slot: Slot, saved: Saved, family: Family, group: Any, given: Mapping[str, Any]
) -> None:
    """ValueError for a state of an optimizer that is not here: before its options are looked at,
    of which some would be refused as damaged.
    """
    found = [k for k in ELSEWHERE if k in saved.state and k not in family.keys]
    if not found:
        return
    own, selection = _own(family, saved.state), family.select(group).of(slot.tensor)
    try:
        family.plain(given)
        odd = bool(needed(selection, saved.state)) if own else "step" in saved.state
    except (TypeError, ValueError):  # its options are none of ours either
        odd = True
    if odd:
        _refuse_owner(called, slot, saved, family, f"{ELSEWHERE[found[0]]}, {_UNKNOWN}")


def options_of(family: Family) -> set[str]:
    """The options that tell a family from others."""
    return {*family.arguments, *family.captured} - {*WITHOUT_EFFECT}


def owner(
    selection: Selection, family: Family, given: Mapping[str, Any], state: Mapping[Any, Any]
) -> str:
    """Who saved a state, if it was another optimizer, and what to do; "" if all that the family
    does not know in it is what others keep beside a state (slow weights, tags).

    given: the saved options. Where they are the family's own, and so is the rest of the state, an
    entry is somebody's whatever it is called, but for Adam's averages.
    """
    odd, mine = {k for k in state if k not in family.keys}, options_of(family)
    own, foreign = _own(family, state), _known_options() & given.keys() - mine
    theirs = odd & owned(carried=True)
    whole = not needed(selection, state) if own else not program_of(selection).states
    if whole and not foreign and mine - _LATER <= given.keys():
        theirs = {k for k in theirs if "exp_avg" in k}
    # with the same keys the options alone tell: a class that knows all of them, and more
    known = mine & given.keys()
    better = [f for f in families.values() if known < options_of(f) & given.keys()]
    if theirs or (own and any(own <= f.keys for f in better)):
        return "another optimizer, see steepest.convert"
    # a count of nothing; where noise is rounded by the count, it is the rule's own
    counted = "step" in state and not own and given.get("rounding") != "stochastic"
    counted = counted and any(isinstance(state[k], Tensor) for k in odd)
    counted = counted and bool(foreign or program_of(selection).states)
    return f"another optimizer, {_UNKNOWN}" * counted


@cache
def _known_options() -> set[str]:
    return set().union(*map(options_of, families.values()))


def check_state(
    called: str, slot: Slot, saved: Saved, family: Family, group: Any, given: Mapping[str, Any]
) -> None:
    """Raise ValueError for a state that the group's rule cannot go on from; given: the options that
    were saved with it.
    """

    def refuse(what: str, cure: str = "it is damaged") -> None:
        raise ValueError(f"{called}: the checkpoint's {what}; {cure}")

    p, scalars = slot.tensor, scalar_keys(family)
    selection = family.select(group).of(p)
    if who := owner(selection, family, given, saved.state):
        _refuse_owner(called, slot, saved, family, who)
    for key, value in saved.state.items():
        if key not in family.keys:  # somebody else's
            continue
        of, other = f"{key!r} of {slot.label}", f"its parameter {slot.label} is {describe(p)}"
        if key in scalars:
            x = number(value)
            count = key == "step"
            whole = not count or (0 <= x <= 2**53 and not x % 1)
            if isinstance(value, bool) or not math.isfinite(x) or not whole:
                shown = value if isinstance(value, (str, Tensor)) else short(value)
                shown = describe(value) if math.isnan(x) and isinstance(value, Tensor) else shown
                refuse(f"{of} is {shown!s}, expected a {'count' if count else 'finite number'}")
        elif isinstance(value, Tensor):
            if (
                value.layout is not torch.strided
                or value.is_nested
                or (value.is_meta and not p.is_meta)
            ):
                refuse(f"{of} has no dense memory, expected a tensor with elements")
            if value.shape != shape(family, key, p):
                cure = "load it into the model that it was saved with, or pass strict=False"
                refuse(f"{key!r} is {describe(value)}, {other}", cure)
            if value.is_complex() != p.is_complex() or not (
                value.is_floating_point() or value.is_complex()
            ):
                refuse(f"{key!r} is {describe(value)}, {other}")
            if hasattr(value, "to_local") != hasattr(p, "to_local"):
                cure = "load it by torch.distributed.checkpoint.state_dict"
                refuse(f"{of} and its parameter are not both sharded", cure)
        elif value is not None:
            refuse(f"{of} is a {type(value).__name__}, expected a tensor")
    if missing := needed(selection, saved.state):
        cure = "it was cut, or saved by another version: begin anew, from the weights alone"
        has = f"which this optimizer needs, and has {sorted(saved.state)}"
        refuse(f"state of {slot.label} lacks {missing}, {has}", cure)


# matching


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
        lacks = f" lacks {_listed(missing)}" if missing else ""
        has = f"{' and' if lacks else ''} has {_listed(unexpected)}" if unexpected else ""
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


def _slots(groups: list[dict[str, Any]], saved: list[Saved]) -> list[Slot]:
    """The optimizer's parameters, called by the checkpoint's names where they have none."""
    labels = iter([row.label for row in saved])
    found: list[Slot] = []
    for i, group in enumerate(groups):
        names = group.get("param_names")
        for j, p in enumerate(group["params"]):
            other = next(labels, f"parameter {j} of group {i}")
            found.append(Slot(p, names[j], names[j], i) if names else Slot(p, "", other, i))
    return found


# options


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
        f"{_listed(sources)}, which differ in {_listed(differ)}"
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


# loading


def load(
    optimizer: Any, saved: Any, strict: bool, stacklevel: int
) -> tuple[defaultdict[Tensor, dict[str, Any]], list[dict[str, Any]], Loaded]:
    """State, groups and report that a checkpoint makes of an optimizer, which is left as it is."""
    called = type(optimizer).__name__
    groups, rows = read(called, saved)
    own: list[dict[str, Any]] = optimizer.param_groups
    slots = _slots(own, rows)
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
            f"{called}: the checkpoint's groups have {_listed(foreign)}, which this optimizer does "
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
