"""Reads and checks saved state_dicts, and refuses those that this package cannot load."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .backends.wanted import program_of
from .checks import real as number
from .checks import short
from .definition import COMPENSATION, Rule, rules
from .families import families
from .family import Family, Selection
from .options import WITHOUT_EFFECT
from .tensors import describe

# what torch.compile, activation checkpoints and FSDP insert into the names of parameters
WRAPPERS = ("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")
# entries of a group that are not options
NOTES = {"params", "param_names", "name", "rule"}
# torch overrides these after loading: an Adam checkpoint becomes decoupled in AdamW
FIXED: dict[str, dict[str, Any]] = {"AdamW": {"decoupled_weight_decay": True}}
# states of optimizers that this package does not have -> the optimizer
ELSEWHERE = {
    **dict.fromkeys(("exp_avg_sq_row", "exp_avg_sq_col", "RMS"), "transformers' Adafactor"),
    **dict.fromkeys(("state1", "state2", "absmax1", "qmap1"), "an optimizer of bitsandbytes"),
}
_LISTED = 10
_COMMON = {"step", COMPENSATION}
# options that older versions of torch's classes lack
_LATER = {"maximize", "differentiable", "decoupled_weight_decay"}
_UNKNOWN = "which is not known here, so start a new optimizer from the model's weights"


class Saved(NamedTuple):
    """A parameter in a checkpoint.

    key: the parameter's key in the checkpoint's `state`. name: its name, or "" if it has none.
    label: what messages call the parameter. group: the index of its group. state: its saved state.
    """

    key: int | str
    name: str
    label: str
    group: int
    state: dict[str, Any]


class Slot(NamedTuple):
    """A parameter of the optimizer that loads a checkpoint. name, label, group: as in `Saved`."""

    tensor: Tensor
    name: str
    label: str
    group: int


def listing(names: Iterable[Any]) -> str:
    """Returns the first ten names, joined by commas, and how many more there are."""
    names = [str(n) for n in names]
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def canonical(names: Sequence[str]) -> list[str]:
    """Returns the names of parameters without the parts that torch.compile, DDP and FSDP insert.

    A leading "module" is removed only if every name has it, because the model itself may have a
    part called "module".
    """
    paths = [[part for part in name.split(".") if part not in WRAPPERS] for name in names]
    while paths and all(len(parts) > 1 and parts[0] == "module" for parts in paths):
        paths = [parts[1:] for parts in paths]
    return [".".join(parts) for parts in paths]


# reading


def read(called: str, saved: Any) -> tuple[list[dict[str, Any]], list[Saved]]:
    """Returns the groups and parameters of a checkpoint. Raises ValueError if it is not valid."""

    def refuse(problem: str) -> None:
        raise ValueError(
            f"{called}: the checkpoint {problem}; it is damaged, or not an optimizer's state_dict"
        )

    if not isinstance(saved, Mapping) or not {"state", "param_groups"} <= saved.keys():
        given = [*saved] if isinstance(saved, Mapping) else type(saved).__name__
        raise ValueError(
            f"{called}: {given} was given, expected an optimizer's state_dict with the keys "
            "'state' and 'param_groups'"
        )
    states, groups = saved["state"], saved["param_groups"]
    readable = isinstance(states, Mapping) and isinstance(groups, (list, tuple))
    if not (readable and all(isinstance(g, Mapping) and "params" in g for g in groups)):
        raise ValueError(
            f"{called}: the checkpoint is damaged, expected an optimizer's state_dict in which "
            "'state' is a dict of dicts and 'param_groups' is a list of dicts with 'params'"
        )
    rows: list[Saved] = []
    for i, group in enumerate(groups):
        if odd := [k for k in group if not isinstance(k, str)]:
            refuse(f"has the option {odd[0]!r} in group {i}, expected a str")
        keys, names, rule = group["params"], group.get("param_names"), group.get("rule")
        if rule is not None and not isinstance(rule, (str, Rule)):
            refuse(f"has in group {i} a rule that is a {type(rule).__name__}, expected its name")
        if not isinstance(keys, (list, tuple)) or not all(
            isinstance(k, (int, str)) and not isinstance(k, bool) for k in keys
        ):
            refuse(f"has in group {i} params that are not a list of int or str")
        if names is not None and (
            not isinstance(names, (list, tuple))
            or len(names) != len(keys)
            or not all(isinstance(n, str) and n for n in names)
        ):
            refuse(f"has in group {i} param_names that are not a list of one name per parameter")
        # torch.distributed.checkpoint uses names as keys, in the order of the loading group
        if keys and all(isinstance(k, str) and not k.isdigit() for k in keys):
            names = keys
        for j, key in enumerate(keys):
            label = names[j] if names is not None else f"parameter {j} of group {i}"
            state = states.get(key, {})
            if not isinstance(state, Mapping):
                refuse(f"has a state of type {type(state).__name__} for {label}, expected a dict")
            if odd := [k for k in state if not isinstance(k, str)]:
                refuse(f"has the state {odd[0]!r} for {label}, expected a str")
            rows.append(Saved(key, names[j] if names else "", label, i, dict(state)))
    return [dict(g) for g in groups], rows


def check_rows(called: str, saved: Mapping[str, Any], rows: list[Saved]) -> None:
    """Raise ValueError if a parameter is in two groups, or has a state but is in no group."""
    groups: dict[int | str, int] = {}
    twice = [r.key for r in rows if groups.setdefault(r.key, r.group) != r.group]
    entries = foreign_entries(saved, rows)
    orphans = [k for k in saved["state"] if k not in groups and k not in entries]
    for keys, where in ((twice, "in two groups"), (orphans, "in no group")):
        if keys:
            raise ValueError(
                f"{called}: the checkpoint has the parameters {listing(map(repr, keys))} {where}, "
                "expected each in one group; it is damaged"
            )


def foreign_entries(saved: Mapping[str, Any], rows: list[Saved]) -> dict[Any, Any]:
    """Returns the entries of `state` that belong to other code, not to a parameter."""

    params = {row.key for row in rows}
    by_name = any(isinstance(key, str) and not key.isdigit() for key in params)

    def is_param_state(key: Any, value: Any) -> bool:
        if isinstance(key, int) or (isinstance(key, str) and key.isdigit()):
            return True
        has_form = isinstance(value, Mapping) and (by_name or "step" in value)
        return has_form and not rule_keys().isdisjoint(value)

    states = saved["state"].items()
    return {k: v for k, v in states if k not in params and not is_param_state(k, v)}


def check_group(called: str, index: int, family: Family, group: dict[str, Any]) -> dict[str, Any]:
    """Returns the group with normalised options.

    Raises ValueError or TypeError if no step can use the options.
    """
    try:
        group = family.plain(group, f" in the checkpoint's options for group {index}")
    except (TypeError, ValueError) as error:
        text = f"{called}{str(error).removeprefix(family.name)}"
        raise ValueError(f"{text}; the checkpoint is damaged, or of another optimizer") from None
    if not isinstance(rounding := group.get("rounding"), (str, type(None))):
        raise ValueError(
            f"{called}: rounding is a {type(rounding).__name__}, expected a str or None"
        )
    group = family.validate(group)
    program_of(family.select(group))
    return group


def scalar_keys(family: Family) -> set[str]:
    """Returns the state keys that hold single numbers: the step count and the carried scalars."""
    return {"step"}.union(*([r.keys[n] for n in r.carried] for r in family.members))


def needed(selection: Selection, state: Mapping[str, Any]) -> list[str]:
    """Returns the keys that the rule's next step reads but the state lacks."""
    rule, program = selection.rule, program_of(selection)
    keys = [rule.keys[s] for s in program.states]
    held = [k for k in keys if state.get(k) is not None]
    # without a saved count, the states tell whether there was a first step
    if (number(state["step"]) if "step" in state else bool(held)) == 0:
        return []
    wanted = [*keys, *(rule.keys[n] for n in rule.carried)]
    # a rule that never reads t needs no count
    if program.saves_count and program.reads_t and held:
        wanted.append("step")
    return [k for k in wanted if state.get(k) is None]


def state_shape(family: Family, key: str, p: Tensor) -> Any:
    """Returns the shape that the state with this key has for the parameter `p`."""
    rule = next((r for r in family.members if key in r.keys.values()), family.members[0])
    return torch.Size(rule.shape(key, p.shape))


def rule_keys(carried: bool = False) -> set[str]:
    """Returns the state keys of all rules. A dict with one of these keys is a parameter's state.

    carried: whether to include the keys of carried scalars, which may be as short as "k".
    """
    return {r.keys[n] for r in rules.values() for n in (*r.states, *(r.carried if carried else ()))}


def _family_keys(family: Family, state: Mapping[Any, Any]) -> set[str]:
    """Returns the state's keys that belong to this family, except those that all families share."""
    return {k for k, v in state.items() if v is not None and k in family.keys} - _COMMON


def _refuse_owner(called: str, slot: Slot, saved: Saved, family: Family, who: str) -> None:
    odd = sorted(saved.state.keys() - family.keys)
    problem = f"a state {odd[0]!r} for" if odd else "options of another class for"
    raise ValueError(
        f"{called}: the checkpoint has {problem} {slot.label}, expected only "
        f"{sorted(family.keys if odd else options_of(family))}; it was saved by {who}"
    )


def check_elsewhere(
    called: str,
    slot: Slot,
    saved: Saved,
    family: Family,
    group: Any,
    saved_options: Mapping[str, Any],
) -> None:
    """Raise ValueError for the state of an optimizer that this package does not have.

    Call this before `check_group`, which would call the checkpoint damaged.
    """
    markers = [k for k in ELSEWHERE if k in saved.state and k not in family.keys]
    if not markers:
        return
    own, selection = _family_keys(family, saved.state), family.select(group).of(slot.tensor)
    try:
        family.plain(saved_options)
        foreign = bool(needed(selection, saved.state)) if own else "step" in saved.state
    except (TypeError, ValueError):  # the options are not the family's either
        foreign = True
    if foreign:
        _refuse_owner(called, slot, saved, family, f"{ELSEWHERE[markers[0]]}, {_UNKNOWN}")


def options_of(family: Family) -> set[str]:
    """Returns the options by which a family is recognised."""
    return {*family.arguments, *family.captured} - {*WITHOUT_EFFECT}


def other_owner(
    selection: Selection, family: Family, saved_options: Mapping[str, Any], state: Mapping[Any, Any]
) -> str:
    """Returns "" if the family itself saved a state, else text on who saved it and what to do.

    An unknown entry does not prove another optimizer, because other code may keep entries in the
    state (slow weights, tags). If options and state are complete for the family, the only sign of
    another optimizer is an unknown entry with "exp_avg" in its name, as in Adam's averages.
    """
    odd, options = {k for k in state if k not in family.keys}, options_of(family)
    own, foreign = _family_keys(family, state), _known_options() & saved_options.keys() - options
    theirs = odd & rule_keys(carried=True)
    complete = not needed(selection, state) if own else not program_of(selection).states
    if complete and not foreign and options - _LATER <= saved_options.keys():
        theirs = {k for k in theirs if "exp_avg" in k}
    # two classes may have equal keys: does another one know more of the saved options?
    known = options & saved_options.keys()
    better = [f for f in families.values() if known < options_of(f) & saved_options.keys()]
    if theirs or (own and any(own <= f.keys for f in better)):
        return "another optimizer, see steepest.convert"
    # a step count without any state of this rule; only stochastic rounding needs a bare count
    counted = "step" in state and not own and saved_options.get("rounding") != "stochastic"
    counted = counted and any(isinstance(state[k], Tensor) for k in odd)
    if counted and (foreign or program_of(selection).states):
        return f"another optimizer, {_UNKNOWN}"
    return ""


@cache
def _known_options() -> set[str]:
    return set().union(*map(options_of, families.values()))


def check_state(
    called: str,
    slot: Slot,
    saved: Saved,
    family: Family,
    group: Any,
    saved_options: Mapping[str, Any],
) -> None:
    """Raise ValueError for a state that the group's rule cannot continue from."""

    def refuse(problem: str, cure: str = "it is damaged") -> None:
        raise ValueError(f"{called}: the checkpoint's {problem}; {cure}")

    p, scalars = slot.tensor, scalar_keys(family)
    selection = family.select(group).of(p)
    if who := other_owner(selection, family, saved_options, saved.state):
        _refuse_owner(called, slot, saved, family, who)
    for key, value in saved.state.items():
        if key not in family.keys:  # an entry of other code
            continue
        entry = f"{key!r} of {slot.label}"
        parameter = f"but {slot.label} is {describe(p)}"
        if key in scalars:
            x = number(value)
            is_count = key == "step"
            valid = not is_count or (0 <= x <= 2**53 and not x % 1)
            if isinstance(value, bool) or not math.isfinite(x) or not valid:
                shown = value if isinstance(value, (str, Tensor)) else short(value)
                shown = describe(value) if math.isnan(x) and isinstance(value, Tensor) else shown
                expected = "count" if is_count else "finite number"
                refuse(f"{entry} is {shown!s}, expected a {expected}")
        elif isinstance(value, Tensor):
            if (
                value.layout is not torch.strided
                or value.is_nested
                or (value.is_meta and not p.is_meta)
            ):
                refuse(f"{entry} has no dense memory, expected a tensor with elements")
            if value.shape != state_shape(family, key, p):
                cure = "load it into the model that was saved with the state, or pass strict=False"
                refuse(f"{key!r} is {describe(value)}, {parameter}", cure)
            if value.is_complex() != p.is_complex() or not (
                value.is_floating_point() or value.is_complex()
            ):
                refuse(f"{key!r} is {describe(value)}, {parameter}")
            if hasattr(value, "to_local") != hasattr(p, "to_local"):
                cure = "load the checkpoint by torch.distributed.checkpoint.state_dict"
                refuse(f"{entry} and its parameter differ, because only one is sharded", cure)
        elif value is not None:
            refuse(f"{entry} is a {type(value).__name__}, expected a tensor")
    if missing := needed(selection, saved.state):
        cure = (
            "it was cut, or saved by another version, so start a new optimizer from the model's "
            "weights"
        )
        has = f"which this optimizer needs, and has only {sorted(saved.state)}"
        refuse(f"state of {slot.label} lacks {missing}, {has}", cure)
