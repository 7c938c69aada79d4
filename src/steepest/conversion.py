"""Converts the checkpoint of one optimizer into a checkpoint of another optimizer."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from .backends.wanted import program_of
from .checkpoint import (
    FIXED,
    Saved,
    Slot,
    check_elsewhere,
    check_group,
    check_rows,
    check_state,
    foreign_entries,
    read,
    scalar_keys,
)
from .checks import real as number
from .definition import COMPENSATION, Rule
from .families import family_of
from .family import Family
from .formulas import modifiers
from .formulas.meanings import LARGEST
from .options import PAIRS, SCHEDULED, WITHOUT_EFFECT
from .origin import inferred
from .printing import host_function

_DIFFER = ("lr", "eps", "momentum", "alpha")
"""Options that mean the same in two rules only if both rules have equal `units` for the option.

All other options mean the same in every rule.
"""
_DECAYS: list[dict[str, bool]] = [
    {},
    {"decoupled_weight_decay": True},
    {"decoupled_weight_decay": False},
    {"weight_decouple": True, "fixed_decay": False},
    {"weight_decouple": False},
    {"weight_decouple": True, "fixed_decay": True},
]
_FLAGS = {"nesterov", "amsgrad", "amsbound", "weight_decay"}.union(*_DECAYS)
Note = tuple[str, str]


@dataclass(frozen=True)
class Converted:
    """What `convert` kept, dropped and invented, as pairs of (what, why)."""

    source: str
    target: str
    kept: tuple[Note, ...]
    dropped: tuple[Note, ...]
    invented: tuple[Note, ...]

    def __str__(self) -> str:
        lines = [f"{self.source} -> {self.target}"]
        for outcome in ("kept", "dropped", "invented"):
            lines += [f"  {outcome:<9} {what}: {why}" for what, why in getattr(self, outcome)]
        return "\n".join(lines)


class _Notes(dict[str, dict[Note, int]]):
    """Outcome ("kept", ...) -> notes, each with the number of parameters that the note holds for.

    The number is 0 for a note on an option.
    """

    def add(self, outcome: str, what: str, why: str, count: int = 0) -> None:
        notes = self.setdefault(outcome, {})
        notes[what, why] = notes.get((what, why), 0) + count

    def of(self, outcome: str) -> tuple[Note, ...]:
        rows = self.get(outcome, {}).items()
        return tuple((f"{what} of {n} parameters" if n else what, why) for (what, why), n in rows)


def convert(
    checkpoint: Mapping[str, Any], to: str | Rule, source: str | Rule | None = None
) -> tuple[dict[str, Any], Converted]:
    """Convert the checkpoint of one optimizer into a checkpoint of another. Also returns a report.

    checkpoint: the state_dict of a class of this package, of torch.optim's class of the same name,
    or of the authors' package. to, source: a rule, or the name of a rule or class. source is needed
    only if the checkpoint does not show which optimizer saved it. The result loads into the class
    of `to`, and into torch.optim's class of that name. The result shares tensors with `checkpoint`.

    A state is kept if it means the same in both optimizers: exp_avg and exp_avg_sq in Adam and its
    variants, square_avg in RMSprop and Adadelta. exp_avg and the momentum buffers are converted
    into each other by an exact factor. The decay rate of a kept state is kept too (beta1 becomes
    momentum). A parameter starts over at step 0 if it lacks one of the states that the new rule
    corrects by the step count, because one count cannot be right for an old average and for a new
    one. An option takes the new class's default if it means something else there. This may include
    lr: a good factor for gradients is not a good length for steps.

    Raises ValueError for a damaged checkpoint, and if the source cannot be inferred.
    """
    target = family_of(to)
    groups, rows = read("convert", checkpoint)
    check_rows("convert", checkpoint, rows)
    named = [i for i, g in enumerate(groups) if isinstance(g.get("rule"), str)]
    rest = [i for i in range(len(groups)) if i not in named]
    usual = family_of(source) if source is not None else None
    if usual is None and rest:
        rest_rows = [[r for r in rows if r.group == i] for i in rest]
        usual = inferred([groups[i] for i in rest], rest_rows)
    notes, names = _Notes(), {}
    state: dict[Any, dict[str, Any]] = {}
    new_groups = []
    for i, group in enumerate(groups):
        family = family_of(group["rule"]) if i in named else usual
        assert family is not None
        names[family.name] = None
        group = {**family.arguments, **group}
        own = list({r.key: r for r in rows if r.group == i}.values())
        tensors, slots = family.keys - scalar_keys(family), []
        for row in own:
            like = [v for k, v in row.state.items() if isinstance(v, Tensor) and k in tensors]
            slots.append(Slot((like or [torch.empty(())])[0], row.name, row.label, i))
            check_elsewhere("convert", slots[-1], row, family, family.arguments, groups[i])
        group = check_group("convert", i, family, group)
        for slot, row in zip(slots, own, strict=True):
            check_state("convert", slot, row, family, group, groups[i])
        new, states = _convert_group(family, target, group, own, notes)
        new_groups.append(check_group("convert", i, target, new))
        state |= {row.key: s for row, s in zip(own, states, strict=True) if s}
    for key, value in foreign_entries(checkpoint, rows).items():
        state[key] = value
        notes.add("kept", repr(key), "stored by other code, not for a parameter")
    outcomes = map(notes.of, ("kept", "dropped", "invented"))
    report = Converted(" and ".join(names), target.name, *outcomes)
    return {"state": state, "param_groups": new_groups}, report


def _scalars(family: Family, rule: Rule, group: Mapping[str, Any]) -> dict[str, float]:
    names = [*rule.defaults, *(n for n in rule.captured if n in rule.defaults or n in group)]
    return {n: family.scalar(group, n, rule) for n in names}


def _convert_group(
    source: Family, target: Family, group: dict[str, Any], rows: list[Saved], notes: _Notes
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Returns a group's options for the target optimizer, and the new states of its parameters."""
    if source is target:
        notes.add("kept", "everything", "the class is the same")
        return group, [row.state for row in rows]
    rule, keys = source.rule(group), source.keys
    # entries of other code belong to the parameter, no matter which rule steps it
    foreign = [{k: v for k, v in row.state.items() if k not in keys} for row in rows]
    own = [{k: v for k, v in row.state.items() if k in keys} for row in rows]
    for decay_rates in (_decay_rates(rule, target, _scalars(source, rule, group)), {}):
        trial = _Notes()
        new = _convert_options(source, target, rule, group, decay_rates, trial)
        states = [_convert_state(source, target, rule, group, new, state, trial) for state in own]
        if any(states):
            break
    for outcome, counts in trial.items():
        for (what, why), count in counts.items():
            notes.add(outcome, what, why, count)
    for key in (k for entries in foreign for k in entries):
        notes.add("kept", str(key), "stored there by other code", 1)
    return new, [{**made, **entries} for made, entries in zip(states, foreign, strict=True)]


def _meanings(rule: Rule) -> dict[str, tuple[Any, ...]]:
    """Returns key of a state -> what the state means."""
    return {rule.keys[state]: about for state, about in rule.means.items()}


def _form(about: tuple[Any, ...], x: Mapping[str, float], t: float | None) -> tuple[float, float]:
    """Returns (factor, shift) such that state = factor * quantity + shift.

    The quantity is what the state means. A nan in the result says that there is no such relation.
    """
    return about[2](x, t) if len(about) > 2 else (1.0, 0.0)


def _has_meaning(rule: Rule, what: str) -> bool:
    return any(about[0] == what for about in rule.means.values())


def _decay_rates(rule: Rule, target: Family, scalars: Mapping[str, float]) -> dict[str, float]:
    """Returns option of the target optimizer -> the value of the source optimizer's decay rate.

    Both rates belong to states of the same meaning. Members of a tuple such as `betas` are left
    out.
    """
    has = {what: scalars[scalar] for what, scalar, *_ in rule.means.values()}
    wanted = {what: s for member in target.members for what, s, *_ in member.means.values()}
    return {n: has[w] for w, n in wanted.items() if w in has and n not in PAIRS}


def _convert_options(
    source: Family,
    target: Family,
    rule: Rule,
    group: dict[str, Any],
    decay_rates: dict[str, float],
    notes: _Notes,
) -> dict[str, Any]:
    """Returns the target optimizer's options.

    An option keeps the source optimizer's value if it means the same in both optimizers. If not,
    it takes the target optimizer's default.
    """
    new_rule = target.members[-1]  # an option means the same in all members of a family

    def same(name: str) -> bool:
        unit = rule.units.get(name)
        return name not in _DIFFER or (unit is not None and unit == new_rule.units.get(name))

    new = copy.deepcopy(target.arguments)
    options = [n for n in target.arguments if n not in _FLAGS]
    kept = [n for n in options if n in source.arguments and n not in decay_rates and same(n)]
    new |= {n: group[n] for n in kept}
    new |= decay_rates
    new |= _flags(rule, target, new)
    decay, fixed = group.get("weight_decay", 0.0), FIXED.get(target.name, {})
    tried = ({**new, "weight_decay": decay, **f} for f in _DECAYS if f.keys() <= new.keys() - fixed)
    wanted = source.select(group).modifiers
    if "weight_decay" not in target.arguments:
        notes.add("dropped", "weight_decay", f"{target.name} has no such option")
    elif equal := next((g for g in tried if target.select(g).modifiers == wanted), None):
        new = equal
        kept.append("weight_decay")
    else:
        why = f"{target.name}'s default; {source.name}'s {decay} acts in another way"
        notes.add("invented", f"weight_decay={new['weight_decay']!r}", why)
    flags = [n for n in target.arguments if n in _FLAGS - {"weight_decay"}]
    kept += [f"{n}={new[n]}" for n in flags if new[n] != target.arguments[n]]
    if shown := [n for n in kept if n not in WITHOUT_EFFECT and n != "differentiable"]:
        notes.add("kept", ", ".join(shown), "the same in both")
    for name, value in decay_rates.items():
        notes.add("kept", f"{name}={value:g}", "the decay rate of the states that are kept")
    # entries of other code; those of a scheduler belong to the lr or momentum that it started from
    known = {*source.arguments, *source.captured, *target.arguments, *WITHOUT_EFFECT, "rule"}
    foreign = {k: v for k, v in group.items() if k not in known}
    if "lr" not in kept and (lost := sorted(SCHEDULED & foreign.keys())):
        notes.add("dropped", ", ".join(lost), "belongs to a schedule of another lr")
        foreign = {k: v for k, v in foreign.items() if k not in SCHEDULED}
    new |= foreign
    accepted = {*target.arguments, *_FLAGS, *WITHOUT_EFFECT}
    if lost := [n for n in (*source.arguments, *source.captured) if n not in accepted]:
        notes.add("dropped", ", ".join(lost), f"{target.name} has no such option")
    reset = {*options} - {*kept, *decay_rates, *WITHOUT_EFFECT}
    for name in [n for n in options if n in reset and n in source.arguments]:
        why = f"{target.name}'s default; {source.name}'s {group[name]!r} means something else"
        notes.add("invented", f"{name}={new[name]!r}", why)
    if added := [n for n in options if n in reset and n not in source.arguments]:
        defaults = ", ".join(f"{n}={new[n]!r}" for n in added)
        notes.add("invented", defaults, f"{target.name}'s default")
    for name, origin in target.captured.items():
        new[name] = number(new.get("initial_lr", new[origin]))
        notes.add(
            "invented", f"{name}={new[name]:g}", f"taken from {origin}, as in a new optimizer"
        )
    return new


def _flags(rule: Rule, target: Family, new: Mapping[str, Any]) -> dict[str, bool]:
    """Returns the target optimizer's flags that make its rule most like the source rule."""
    largest = _has_meaning(rule, LARGEST) and any(_has_meaning(m, LARGEST) for m in target.members)
    ahead = rule.name in ("nesterov", "classical_nesterov") and number(new.get("momentum", 0)) > 0
    flags = {"nesterov": ahead, "amsgrad": largest, "amsbound": largest}
    return {n: v for n, v in flags.items() if n in new}


def _convert_state(
    source: Family,
    target: Family,
    rule: Rule,
    group: dict[str, Any],
    new: dict[str, Any],
    state: dict[str, Any],
    notes: _Notes,
) -> dict[str, Any]:
    """Returns the state from which the target optimizer continues.

    If the parameter has to start over, this is what `_start_over` returns.
    """
    old = {k: v for k, v in state.items() if v is not None}
    if not old:
        return {}
    selection = target.select(new)
    new_rule, program = selection.rule, program_of(selection)
    t = number(old["step"]) if "step" in old else None
    x, y = _scalars(source, rule, group), _scalars(target, new_rule, new)
    meanings, new_meanings = _meanings(rule), _meanings(new_rule)
    has = {meanings[k][0]: k for k in old if k in meanings}
    made: dict[str, Any] = {}
    lacks: list[str] = []
    trial: list[tuple[str, str, str]] = []
    for key in [new_rule.keys[s] for s in program.states]:
        what = new_meanings.get(key, ("",))[0]
        (a, shift), (b, new_shift) = (1.0, 0.0), (1.0, 0.0)
        if what in has:
            before, after = meanings[has[what]], new_meanings[key]
            if before != after or x.get("dampening") != y.get("dampening"):
                (a, shift), (b, new_shift) = _form(before, x, t), _form(after, y, t)
        factor, added = b / a, new_shift - shift
        if what not in has or math.isnan(factor + added):
            lacks.append(key)
            continue
        value = old[has[what]]
        why = what if key == has[what] else f"{what}, from {has[what]}"
        if factor != 1:
            value, why = value * factor, f"{why} times {factor:g}"
        if added:
            value = (value + added).clamp_min(0)  # rounding may make it negative
            if -added * torch.finfo(value.dtype).eps > 1e-3 * float(value.mean()):
                lacks.append(key)  # the digits that are left are only rounding errors
                continue
            why = f"{why}, {'with' if added > 0 else 'without'} the eps that EAdam adds up"
        made[key] = value
        trial.append(("kept", key, why))
    counted = new_rule.counts and (program.reads_t or new_rule.carried)
    zeros = [k for k in lacks if not counted or new_meanings.get(k, ("",))[0] == LARGEST]
    if not made or (new_rule.counts and t is None) or len(zeros) < len(lacks):
        return _start_over(target, old, lacks, made, notes)
    like = next(iter(made.values()))
    for key in zeros:
        made[key] = torch.zeros_like(like)
        trial.append(("invented", key, "zeros, as at a first step; this state needs no step count"))
    if new_rule.counts:
        made["step"] = old["step"]
        trial.append(("kept", "step", "the number of steps in the averages"))
    if new_rule.carried and t:
        values = _carried(selection, y, t)
        for n, v in values.items():
            made[new_rule.keys[n]] = torch.tensor(v, dtype=torch.float64, device="cpu")
        keys = ", ".join(new_rule.keys[n] for n in values)
        trial.append(("invented", keys, "its value after `step` steps with these options"))
    if COMPENSATION in old:
        made[COMPENSATION] = old[COMPENSATION]
        trial.append(("kept", COMPENSATION, "the parameter's last digits"))
    coupled = [modifiers.coupled in s.modifiers for s in (source.select(group), selection)]
    if coupled[0] != coupled[1]:
        why = "old gradients had no L2 term, new ones have it"
        if coupled[0]:
            why = "old gradients had the L2 term, new ones do not"
        trial.append(("kept", "averages", why))
    continued = {new_meanings[n][0] for n in made if n in new_meanings}
    gone = [k for k in old if k not in made and k not in has.values()]
    gone += [key for what, key in has.items() if what not in continued]
    trial += [("dropped", k, f"no state of {target.name} means the same") for k in gone]
    for outcome, what, why in trial:
        notes.add(outcome, what, why, 1)
    return made


def _start_over(
    target: Family, old: dict[str, Any], lacks: list[str], made: dict[str, Any], notes: _Notes
) -> dict[str, Any]:
    """Returns the state of a parameter that starts over. Only Kahan's compensation is kept."""
    keys = ", ".join(k for k in old if k != COMPENSATION)
    why = f"no state of {target.name} means the same"
    if made and lacks:
        why = (
            f"{target.name} also needs {', '.join(lacks)}, which these states do not give; one "
            "step count corrects all states, so the parameter starts over"
        )
    notes.add("dropped", keys, why, 1)
    if COMPENSATION not in old:
        return {}
    notes.add("kept", COMPENSATION, "the parameter's last digits", 1)
    return {"step": torch.tensor(0.0, device="cpu"), COMPENSATION: old[COMPENSATION]}


_MOST_STEPS = 100_000
"""The largest number of steps that `_replay` computes.

NAdam carries a product of numbers below 1, which is zero long before this many steps.
"""


def _carried(selection: Any, scalars: Mapping[str, float], t: float) -> dict[str, float]:
    return dict(_replay(selection, tuple(scalars.items()), t))


@lru_cache(maxsize=16)  # the parameters of a group mostly have the same options and count
def _replay(selection: Any, options: tuple[tuple[str, float], ...], t: float) -> dict[str, float]:
    """Returns the carried scalars after t steps with these options."""
    scalars = dict(options)
    program, rule = program_of(selection), selection.rule
    host, values = host_function(program, 8), list(rule.carried.values())
    named = [scalars.get(n, 0.0) for n in program.scalars if n != "t"]
    for k in range(1, int(min(t, _MOST_STEPS)) + 1):
        made = host(*([float(k)] if program.reads_t else []), *named, *values)
        values = list(made[len(program.slots) :])
    return dict(zip(rule.carried, values, strict=True))
