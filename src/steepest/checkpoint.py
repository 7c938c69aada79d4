"""What stands in a saved state_dict: it is read, checked, and refused if it is none of ours."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .backends.bucket import program_of
from .checks import real as number
from .checks import short
from .definition import COMPENSATION, Rule, rules
from .families import families
from .family import Family, Selection
from .options import WITHOUT_EFFECT
from .tensors import describe

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
_UNKNOWN = "which is not known here: start a new optimizer from the model's weights"


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


def listing(names: Iterable[Any]) -> str:
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
                f"{called}: the checkpoint has {listing(map(repr, keys))} of its parameters "
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
    counts = program.saves_count and program.reads_t and bool(held)
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


# options


# loading
