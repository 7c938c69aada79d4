"""The checkpoint of one optimizer as one of another: which states mean the same, and which not."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from .backends.bucket import program_of
from .checkpoint import (
    FIXED,
    Saved,
    Slot,
    apart,
    check_elsewhere,
    check_group,
    check_rows,
    check_state,
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
"""Options that mean the same to rules that say so alone; every other means the same everywhere."""
_DECAYS: list[dict[str, bool]] = [
    {}, {"decoupled_weight_decay": True}, {"decoupled_weight_decay": False},
    {"weight_decouple": True, "fixed_decay": False}, {"weight_decouple": False},
    {"weight_decouple": True, "fixed_decay": True},
]  # fmt: skip
_FLAGS = {"nesterov", "amsgrad", "amsbound", "weight_decay"}.union(*_DECAYS)
Note = tuple[str, str]


@dataclass(frozen=True)
class Converted:
    """What `convert` has kept, dropped and invented: (what, why) each."""

    source: str
    target: str
    kept: tuple[Note, ...]
    dropped: tuple[Note, ...]
    invented: tuple[Note, ...]

    def __str__(self) -> str:
        lines = [f"{self.source} -> {self.target}"]
        for word in ("kept", "dropped", "invented"):
            lines += [f"  {word:<9} {what}: {why}" for what, why in getattr(self, word)]
        return "\n".join(lines)


class _Notes(dict[str, dict[Note, int]]):
    """kind -> note -> how many parameters it holds for, 0 for an option."""

    def add(self, kind: str, what: str, why: str, count: int = 0) -> None:
        notes = self.setdefault(kind, {})
        notes[what, why] = notes.get((what, why), 0) + count

    def of(self, kind: str) -> tuple[Note, ...]:
        rows = self.get(kind, {}).items()
        return tuple((f"{what} of {n} parameters" if n else what, why) for (what, why), n in rows)


def convert(
    checkpoint: Mapping[str, Any], to: str | Rule, source: str | Rule | None = None
) -> tuple[dict[str, Any], Converted]:
    """The checkpoint of one optimizer as one of another, and a report of what became of it.

    checkpoint: the state_dict of a class of this package, of torch.optim's class of that name, or
    of the authors' package. to, source: a class or rule, by name; source is needed where the
    checkpoint itself does not tell. The result loads into the class of `to`, torch's too; it shares
    tensors with `checkpoint`.

    A state goes on where it means the same: exp_avg and exp_avg_sq among Adam's kin, square_avg of
    RMSprop and Adadelta, and, by an exact factor, exp_avg and the buffers of momentum. With a
    state go the options that are its memory (momentum becomes beta1). Where one of the states
    that the new rule corrects by the step count is not to be had, the parameter begins anew at step
    0: a count that is right for one average would be wrong for the other. An option of another
    meaning takes the new class's default, lr too: a rate for gradients is none for unit steps.

    Raises ValueError for a damaged checkpoint and for one whose source cannot be told.
    """
    target = family_of(to)
    groups, rows = read("convert", checkpoint)
    check_rows("convert", checkpoint, rows)
    told = [i for i, g in enumerate(groups) if isinstance(g.get("rule"), str)]
    rest = [i for i in range(len(groups)) if i not in told]
    usual = family_of(source) if source is not None else None
    if usual is None and rest:
        usual = inferred([groups[i] for i in rest], [[r for r in rows if r.group == i]
                                                      for i in rest])  # fmt: skip
    notes, names = _Notes(), {}
    state: dict[Any, dict[str, Any]] = {}
    made = []
    for i, group in enumerate(groups):
        family = family_of(group["rule"]) if i in told else usual
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
        new, states = _converted(family, target, group, own, notes)
        made.append(check_group("convert", i, target, new))
        state |= {row.key: s for row, s in zip(own, states, strict=True) if s}
    for key, value in apart(checkpoint, rows).items():
        state[key] = value
        notes.add("kept", repr(key), "somebody else's, of no parameter")
    said = map(notes.of, ("kept", "dropped", "invented"))
    return {"state": state, "param_groups": made}, Converted(
        " and ".join(names), target.name, *said
    )


def _scalars(family: Family, rule: Rule, group: Mapping[str, Any]) -> dict[str, float]:
    return {n: family.scalar(group, n, rule) for n in (*rule.defaults, *rule.captured)
            if n in rule.defaults or n in group}  # fmt: skip


def _converted(
    source: Family, target: Family, group: dict[str, Any], rows: list[Saved], notes: _Notes
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A group as one of the target, and the states of its parameters."""
    if source is target:
        notes.add("kept", "everything", "the class is the same")
        return group, [row.state for row in rows]
    rule = source.rule(group)
    # what others keep beside a state is of the parameter, whatever steps it
    lent = [{k: v for k, v in row.state.items() if k not in source.keys} for row in rows]
    rows = [row._replace(state={k: v for k, v in row.state.items() if k in source.keys})
            for row in rows]  # fmt: skip
    for memory in (_memory(rule, target, _scalars(source, rule, group)), {}):
        found = _Notes()
        new = _regrouped(source, target, rule, group, memory, found)
        states = [_continued(source, target, rule, group, new, row, found) for row in rows]
        if any(states):
            break
    for kind, own in found.items():
        for (what, why), count in own.items():
            notes.add(kind, what, why, count)
    for key in (k for own in lent for k in own):
        notes.add("kept", str(key), "somebody else's", 1)
    return new, [{**made, **own} for made, own in zip(states, lent, strict=True)]


def _meanings(rule: Rule) -> dict[str, tuple[Any, ...]]:
    """Key of a state -> what it means."""
    return {rule.keys[state]: about for state, about in rule.means.items()}


def _form(about: tuple[Any, ...], x: Mapping[str, float], t: float | None) -> tuple[float, float]:
    """(factor, shift) of a state over what it means; nan where there is no such relation."""
    return about[2](x, t) if len(about) > 2 else (1.0, 0.0)


def _means(rule: Rule, what: str) -> bool:
    return any(about[0] == what for about in rule.means.values())


def _memory(rule: Rule, target: Family, scalars: Mapping[str, float]) -> dict[str, float]:
    """Options of the target that come with the states: the memory of each, where names differ."""
    has = {what: scalars[scalar] for what, scalar, *_ in rule.means.values()}
    wanted = {what: s for member in target.members for what, s, *_ in member.means.values()}
    return {n: has[w] for w, n in wanted.items() if w in has and n not in PAIRS}


def _regrouped(
    source: Family, target: Family, rule: Rule, group: dict[str, Any], memory: dict[str, float],
    notes: _Notes,
) -> dict[str, Any]:  # fmt: skip
    """The options of the target: those that mean the same, its defaults for the others."""
    there = target.members[-1]  # the members of a family mean the same by an option

    def same(name: str) -> bool:
        unit = rule.units.get(name)
        return name not in _DIFFER or (unit is not None and unit == there.units.get(name))

    new = copy.deepcopy(target.arguments)
    options = [n for n in target.arguments if n not in _FLAGS]
    kept = [n for n in options if n in source.arguments and n not in memory and same(n)]
    new |= {n: group[n] for n in kept}
    new |= memory
    largest = _means(rule, LARGEST) and any(_means(m, LARGEST) for m in target.members)
    ahead = rule.name in ("nesterov", "classical_nesterov") and number(new.get("momentum", 0)) > 0
    flags = {"nesterov": ahead, "amsgrad": largest, "amsbound": largest}
    new |= {n: v for n, v in flags.items() if n in new}
    decay, fixed = group.get("weight_decay", 0.0), FIXED.get(target.name, {})
    tried = ({**new, "weight_decay": decay, **f} for f in _DECAYS if f.keys() <= new.keys() - fixed)
    wanted = source.select(group).modifiers
    if "weight_decay" not in target.arguments:
        notes.add("dropped", "weight_decay", f"no option of {target.name}")
    elif alike := next((g for g in tried if target.select(g).modifiers == wanted), None):
        new = alike
        kept.append("weight_decay")
    else:
        why = f"{target.name}'s default; its decay is of another kind than {source.name}'s {decay}"
        notes.add("invented", f"weight_decay={new['weight_decay']!r}", why)
    kept += [f"{n}={new[n]}" for n in target.arguments if n in _FLAGS - {"weight_decay"}
             and new[n] != target.arguments[n]]  # fmt: skip
    if shown := [n for n in kept if n not in WITHOUT_EFFECT and n != "differentiable"]:
        notes.add("kept", ", ".join(shown), "the same in both")
    for name, value in memory.items():
        notes.add("kept", f"{name}={value:g}", "the memory of the states that are kept")
    # entries of others: a scheduler's are of the rate, or of the momentum, that it found
    mine = {*source.arguments, *source.captured, *target.arguments, *WITHOUT_EFFECT, "rule"}
    others = {k: v for k, v in group.items() if k not in mine}
    if "lr" not in kept and (lost := sorted(SCHEDULED & others.keys())):
        notes.add("dropped", ", ".join(lost), "belongs to a schedule of another lr")
        others = {k: v for k, v in others.items() if k not in SCHEDULED}
    new |= others
    if lost := [n for n in (*source.arguments, *source.captured)
                if n not in {*target.arguments, *_FLAGS, *WITHOUT_EFFECT}]:  # fmt: skip
        notes.add("dropped", ", ".join(lost), f"no option of {target.name}")
    begun = [n for n in options if n not in kept and n not in memory and n not in WITHOUT_EFFECT]
    for name in [n for n in begun if n in source.arguments]:
        why = f"{target.name}'s default; {source.name}'s {group[name]!r} means something else"
        notes.add("invented", f"{name}={new[name]!r}", why)
    if fresh := [f"{n}={new[n]!r}" for n in begun if n not in source.arguments]:
        notes.add("invented", ", ".join(fresh), f"{target.name}'s default")
    for name, origin in target.captured.items():
        new[name] = number(new.get("initial_lr", new[origin]))
        notes.add("invented", f"{name}={new[name]:g}", f"taken from {origin}, as at the start")
    return new


def _continued(
    source: Family, target: Family, rule: Rule, group: dict[str, Any], new: dict[str, Any],
    row: Saved, notes: _Notes,
) -> dict[str, Any]:  # fmt: skip
    """What the target goes on with of a parameter's state; nothing where it begins anew."""
    old = {k: v for k, v in row.state.items() if v is not None}
    if not old:
        return {}
    selection = target.select(new)
    there, program = selection.rule, program_of(selection)
    t = number(old["step"]) if "step" in old else None
    x, y = _scalars(source, rule, group), _scalars(target, there, new)
    mine, theirs = _meanings(rule), _meanings(there)
    has = {mine[k][0]: k for k in old if k in mine}
    made: dict[str, Any] = {}
    lacks: list[str] = []
    found: list[tuple[str, str, str]] = []
    for key in [there.keys[s] for s in program.states]:
        what = theirs.get(key, ("",))[0]
        (a, shift), (b, other) = (1.0, 0.0), (1.0, 0.0)
        if what in has:
            before, after = mine[has[what]], theirs[key]
            if before != after or x.get("dampening") != y.get("dampening"):
                (a, shift), (b, other) = _form(before, x, t), _form(after, y, t)
        factor, more = b / a, other - shift
        if what not in has or math.isnan(factor + more):
            lacks.append(key)
            continue
        value = old[has[what]]
        why = what if key == has[what] else f"{what}, from {has[what]}"
        if factor != 1:
            value, why = value * factor, f"{why} times {factor:g}"
        if more:  # rounding may leave less than nothing
            value = (value + more).clamp_min(0)
            if -more * torch.finfo(value.dtype).eps > 1e-3 * float(value.mean()):
                lacks.append(key)  # the digits that are left are those of the rounding
                continue
            why = f"{why}, {'with' if more > 0 else 'without'} the eps that EAdam adds up"
        made[key] = value
        found.append(("kept", key, why))
    counted = there.counts and (program.reads_t or there.carried)
    zeros = [k for k in lacks if not counted or theirs.get(k, ("",))[0] == LARGEST]
    if not made or (there.counts and t is None) or len(zeros) < len(lacks):
        return _anew(target, old, lacks, made, notes)
    like = next(iter(made.values()))
    for key in zeros:
        made[key] = torch.zeros_like(like)
        found.append(("invented", key, "zeros, as at a first step; it needs no count"))
    if there.counts:
        made["step"] = old["step"]
        found.append(("kept", "step", "the averages are as old"))
    if there.carried and t:
        values = _carried(selection, y, t)
        for n, v in values.items():
            made[there.keys[n]] = torch.tensor(v, dtype=torch.float64, device="cpu")
        keys = ", ".join(there.keys[n] for n in values)
        found.append(("invented", keys, "what that many steps with these options make of it"))
    if COMPENSATION in old:
        made[COMPENSATION] = old[COMPENSATION]
        found.append(("kept", COMPENSATION, "the parameter's last digits"))
    coupled = [modifiers.coupled in x.modifiers for x in (source.select(group), selection)]
    if coupled[0] != coupled[1]:
        kind = "with" if coupled[0] else "without"
        found.append(("kept", "averages", f"of gradients {kind} the L2 term, unlike those to come"))
    gone = [k for k in old if k not in made and k not in has.values()]
    gone += [k for w, k in has.items()
             if not any(theirs.get(n, ("",))[0] == w for n in made)]  # fmt: skip
    found += [("dropped", k, f"{target.name} has no state of that meaning") for k in gone]
    for kind, what, why in found:
        notes.add(kind, what, why, 1)
    return made


def _anew(
    target: Family, old: dict[str, Any], lacks: list[str], made: dict[str, Any], notes: _Notes
) -> dict[str, Any]:
    """The state of a parameter that begins anew."""
    keys = ", ".join(k for k in old if k != COMPENSATION)
    why = f"{target.name} has no state of that meaning"
    if made and lacks:
        why = (
            f"{target.name} also needs {', '.join(lacks)}, which cannot be had from these; one "
            "step count corrects both, so the parameter begins anew"
        )
    notes.add("dropped", keys, why, 1)
    if COMPENSATION not in old:
        return {}
    notes.add("kept", COMPENSATION, "the parameter's last digits", 1)
    return {"step": torch.tensor(0.0, device="cpu"), COMPENSATION: old[COMPENSATION]}


_WALK = 100_000
"""Steps after which what NAdam carries, a product of numbers below 1, has long been zero."""


def _carried(selection: Any, scalars: Mapping[str, float], t: float) -> dict[str, float]:
    return dict(_walked(selection, tuple(scalars.items()), t))


@lru_cache(maxsize=16)  # the parameters of a group mostly have the same options and count
def _walked(selection: Any, options: tuple[tuple[str, float], ...], t: float) -> dict[str, float]:
    """The carried scalars after t steps with these options."""
    scalars = dict(options)
    program, rule = program_of(selection), selection.rule
    host, values = host_function(program, 8), list(rule.carried.values())
    named = [scalars.get(n, 0.0) for n in program.scalars if n != "t"]
    for k in range(1, int(min(t, _WALK)) + 1):
        made = host(*([float(k)] if program.reads_t else []), *named, *values)
        values = list(made[len(program.slots) :])
    return dict(zip(rule.carried, values, strict=True))
