"""What a rule is: the decorator, its checks, the registry."""

import difflib
import inspect
import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from . import ops
from .errors import BadCall
from .trace import Program, TraceError, trace

rules: dict[str, "Rule"] = {}
COMPENSATION = "compensation"
"""The key of Kahan's second number in `optimizer.state[p]`, beside those of the rule."""
LARGEST = 10_000
"""The most rows of a covariance: of a larger dimension, `covariances` makes none."""
_EVERYWHERE = {"params", "backend", "weight_decay", "maximize", "rule", "rounding", "seed",
               "cautious", "clip_norm"}  # fmt: skip


class Clock(NamedTuple):
    """Something that begins after some steps: step(value) is when, and value(step) its inverse."""

    event: str
    step: Callable[[float], float]
    value: Callable[[float], float]


class Rule:
    """An optimizer as one function: parameter, gradient and states left of `*`, scalars right.

    Call it as it stands: `adam(p, g, m, v, t=1, lr=0.1)` on floats or torch tensors returns the new
    parameter, the new states and the new carried scalars, in the order of the signature.

    Attributes
    ----------
    states: names of the states, in order.
    defaults: scalar -> default value (numbers alone).
    choices: static choice (bool or str) -> default, bound before the rule is traced.
    carried: carried scalar -> its start.
    captured: group constant -> the hyperparameter that it is taken from.
    keys: state or carried scalar -> its key in `optimizer.state[p]`, torch's where torch has one.
    limits: hyperparameter -> (interval such as "[0, 1)", reason or "").
    search: hyperparameter -> (low, high), the log-uniform range that a race tunes it in.
    decay: how `weight_decay` acts by default: "coupled" (into the gradient) or "decoupled". A rule
        that has a scalar `wd` is given the decay there, and does with it what it will.
    counts: whether the step count is saved; else `t` is 1 at the first step and 2 ever after.
    shapes: state -> "rows", "columns" or "covariances", the shape that row_mean, column_mean and
        covariances make of the parameter's.
        A bool `matrix` among the choices is set for each parameter: whether it has 2 dimensions.
    sparse: what a sparse gradient does: "rows" steps those that it has (all at the first step),
        "dense" fills it up with zeros, "" refuses it.
    called: the name of its class; by default the rule's, `sparse_adam` as SparseAdam.
    switches: choice -> the option whose value other than 0 sets it.
    means: state or carried scalar -> (what it is, the scalar that is its memory). States of two
        rules that are the same thing go over by `steepest.convert`.
    units: option -> what a number means there. Rules that say the same may share the value.
    excused: requirement of an examination of `steepest check` -> why this rule does not meet it.
    includes: another rule -> (the hyperparameter that makes this rule that one, and how).
    clocks: hyperparameter that counts steps -> `Clock`.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        keys: Mapping[str, str] | None = None,
        limits: Mapping[str, str | tuple[str, str]] | None = None,
        search: Mapping[str, tuple[float, float]] | None = None,
        decay: str = "decoupled",
        counts: bool = True,
        forgets: Iterable[str] = (),
        sparse: str = "",
        shapes: Mapping[str, str] | None = None,
        called: str = "",
        switches: Mapping[str, str] | None = None,
        means: Mapping[str, tuple[Any, ...]] | None = None,
        units: Mapping[str, str] | None = None,
        excused: Mapping[str, str] | None = None,
        includes: Mapping[str, tuple[str, str]] | None = None,
        clocks: Mapping[str, "Clock"] | None = None,
    ) -> None:
        if not inspect.isfunction(function) or not function.__name__.isidentifier():
            cure = "write `def name(p, g, *, lr=1e-3)`"
            raise TypeError(
                f"@rule was given {function!r}, expected a function with a name; {cure}"
            )
        self.function, self.name = function, function.__name__
        self.decay, self.counts, self.sparse = decay, counts, sparse
        self.__doc__, self.__wrapped__ = function.__doc__, function
        self.__name__ = self.name
        self.forgets, self.shapes = frozenset(forgets), dict(shapes or {})
        self.called = called or "".join(word.title() for word in self.name.split("_"))
        self.switches, self.means = dict(switches or {}), dict(means or {})
        self.units, self.excused = dict(units or {}), dict(excused or {})
        self.includes, self.clocks = dict(includes or {}), dict(clocks or {})
        self._read_signature()
        named: dict[str, str] = dict(keys or {})
        self.keys = {n: named.get(n) or n for n in (*self.states, *self.carried)}
        keyed = [*self.keys.values()]
        if {"step", COMPENSATION} & {*keyed} or len({*keyed}) < len(keyed):
            cure = f"give each its own, and not 'step' or {COMPENSATION!r}"
            self._refuse(f"its states have the keys {keyed}", cure)
        if taken := _EVERYWHERE & {*self.scalars, *self.choices}:
            self._refuse(f"a scalar is called {min(taken)!r}", "rename it: every class has that")
        every = {**_LIMITS, **(limits or {})}
        mine = {n: every[n] for n in self.defaults if n in every}
        self.limits = {n: (x, "") if isinstance(x, str) else x for n, x in mine.items()}
        self.search = dict(search or {})
        if (lr := self.defaults.get("lr")) is not None:
            self.search.setdefault("lr", (lr / 30, lr * 30))
        if decay not in ("coupled", "decoupled"):
            self._refuse(f"decay={decay!r}", 'say decay="coupled" or decay="decoupled"')
        if sparse not in ("", "rows", "dense"):
            self._refuse(f"sparse={sparse!r}", 'say sparse="rows", "dense" or ""')
        known = {self.tensors[0], *self.states, *self.carried, *self.defaults, *self.choices}
        about = {"keys": keys, "limits": limits, "search": search, "forgets": forgets,
                 "shapes": shapes, "switches": switches, "means": means,
                 "clocks": clocks}  # fmt: skip
        for word, name in ((w, n) for w, names in about.items() for n in names or ()):
            if name not in known:
                self._refuse(f"{word} names {name!r}", "use a name from the signature")
        self._check_outputs()

    def _refuse(self, what: str, cure: str) -> None:
        raise TypeError(f"rule {self.name}: {what}; {cure}")

    def _read_signature(self) -> None:
        self.states, self.defaults, self.choices, self.carried, self.captured = [], {}, {}, {}, {}
        self.counted = False
        kinds = inspect.Parameter
        for parameter in inspect.signature(self.function).parameters.values():
            name, default = parameter.name, parameter.default
            if parameter.kind in (kinds.VAR_POSITIONAL, kinds.VAR_KEYWORD):
                self._refuse(f"argument *{name}", "name each tensor and each scalar on its own")
            elif parameter.kind is not kinds.KEYWORD_ONLY:
                if name == "t":
                    self._refuse("t stands left of `*`", "put it right of it, with the scalars")
                if default is not kinds.empty:
                    cure = "put a scalar right of `*`; for a start other than zero "
                    cure += f"write where(t > 1, {name}, start)"
                    self._refuse(f"tensor {name!r} has a default", cure)
                self.states.append(name)
            elif name == "t":
                self.counted = True
            elif isinstance(default, ops.carried):
                self.carried[name] = float(default)
            elif isinstance(default, ops.captured):
                self.captured[name] = str(default)
            elif isinstance(default, (bool, str)):
                self.choices[name] = default
            elif isinstance(default, (int, float)):
                self.defaults[name] = default
            else:
                given = "no default" if default is kinds.empty else f"the default {default!r}"
                cure = "give a number (beta1 and beta2 for a pair), a bool or str, "
                cure += "carried(start) or captured(name)"
                self._refuse(f"scalar {name!r} has {given}", cure)
        if len(self.states) < 2:
            what = f"it takes {len(self.states)} tensors"
            self._refuse(what, "begin with the parameter and its gradient")
        named = [*self.defaults, *self.carried, *self.captured]
        self.scalars = (*["t"] * self.counted, *named)
        self.tensors = tuple(self.states)
        self.states = tuple(self.states[2:])
        for name, source in self.captured.items():
            if source not in self.defaults:
                self._refuse(f"{name}=captured({source!r})", f"capture one of {[*self.defaults]}")

    def _check_outputs(self) -> None:
        options = [(False, True) if isinstance(v, bool) else (v,) for v in self.choices.values()]
        p, g = self.tensors[:2]
        kept, changed, read = set(), {p}, False
        for values in itertools.product(*options):
            program = self.trace((), **dict(zip(self.choices, values, strict=True)))
            read |= any(a is program.inputs[g] for node in program.body for a in node.args)
            changed |= {*program.outputs}
            kept |= {*filter(program.depends, (p, *self.states))}
        if not read:
            self._refuse(f"the gradient {g!r} is never read", "make the step of it")
        for name in (p, *self.states):
            if name not in changed:
                self._refuse(f"state {name!r} is never changed", "return its new value or drop it")
            if name not in kept and name not in self.forgets:
                cure = f"check the order of the outputs, or say @rule(forgets=[{name!r}])"
                self._refuse(f"the new {name!r} does not depend on the old one", cure)

    def shape(self, key: str, like: Any) -> Any:
        """The shape of the state with that key, of a parameter of shape `like`."""
        kind = next((kind for s, kind in self.shapes.items() if self.keys[s] == key), "")
        if kind == "covariances":
            return (sum(n * n for n in like if n <= LARGEST),)
        if kind == "rows":
            return (*like[:-1], 1)
        return (*like[:-2], 1, *like[-1:]) if kind == "columns" else like

    def trace(self, modifiers: tuple[Callable[..., Any], ...] = (), **choices: Any) -> Program:
        """The rule's program, with the static choices bound and the modifiers put before it."""
        try:
            return trace(self, modifiers, {**self.choices, **choices})
        except TraceError as error:
            raise TypeError(f"rule {self.name}: {error}") from None

    def __call__(self, *tensors: Any, **scalars: Any) -> Any:
        if len(tensors) != len(self.tensors):
            raise TypeError(f"{self.name} takes the tensors {self.tensors}, got {len(tensors)}")
        for name, source in self.captured.items():
            scalars.setdefault(name, scalars.get(source, self.defaults[source]))
        for name, default in (*self.defaults.items(), *self.carried.items()):
            scalars.setdefault(name, default)
        return self.function(*map(_ieee, tensors), **{n: _ieee(v) for n, v in scalars.items()})

    def __repr__(self) -> str:
        return f"<rule {self.name}>"


def _ieee(x: Any) -> Any:
    return ops.Number(x) if isinstance(x, (int, float)) and not isinstance(x, bool) else x


_LIMITS = {
    "lr": "[0, inf)", "eps": "[0, inf)", "beta1": "[0, 1)", "beta2": "[0, 1)",
    "momentum": "[0, inf)", "lr_decay": "[0, inf)", "initial_accumulator_value": "[0, inf)",
    "momentum_decay": "[0, inf)", "wd": "[0, inf)",
}  # fmt: skip


def inside(interval: str, value: float) -> bool:
    """Whether a number lies in an interval written as "[0, 1)"; a nan lies in none."""
    low, high = (float(x) for x in interval[1:-1].split(","))
    above = low < value or (interval[0] == "[" and value == low)
    below = value < high or (interval[-1] == "]" and value == high)
    return above and below and not math.isnan(value)


def rule(function: Callable[..., Any] | None = None, **about: Any) -> Any:
    """Make an optimizer of a function, and register it under the function's name.

    `@rule` or `@rule(keys=..., limits=..., search=...)`; what these and more say is described at
    `Rule`. Raises TypeError, naming the rule, the
    argument and the cure.
    """
    if function is None:
        return lambda f: rule(f, **about)
    made = Rule(function, **about)
    plain = made.name.replace("_", "").lower()  # as its class is called, whatever the capitals
    for known in rules.values():
        same = known.name == made.name
        again = same and inspect.getmodule(known.function) is inspect.getmodule(function)
        if known.name.replace("_", "").lower() == plain and not again:
            other = "" if same else f", {known.name}"
            made._refuse(f"a rule of that name exists{other}", "give the function another name")
    rules[made.name] = made
    return made


def find(name: str) -> Rule:
    """The rule of that name; a ValueError names the nearest known ones."""
    if name in rules:
        return rules[name]
    raise BadCall(f"{name!r} is no known rule; {nearest(name, rules)}")


def nearest(name: str, known: Iterable[str]) -> str:
    """`did you mean ...?` for a misspelt name."""
    known = sorted(known)
    match = difflib.get_close_matches
    close = match(name, known, 1) or match(name.lower(), known, 1)
    return f"did you mean {close[0]!r}?" if close else f"expected one of: {', '.join(known)}"
