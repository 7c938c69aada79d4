"""What a rule is: the decorator, its checks, the registry."""

import difflib
import inspect
import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, NoReturn

from . import ops
from .errors import BadCall
from .trace import Program, TraceError, trace

rules: dict[str, "Rule"] = {}
COMPENSATION = "compensation"
"""The key of Kahan's compensation in `optimizer.state[p]`. No state of a rule may have it."""
LARGEST = 10_000
"""The largest size of a dimension that has a covariance matrix."""
_OF_EVERY_CLASS = {
    "params",
    "backend",
    "weight_decay",
    "maximize",
    "rule",
    "rounding",
    "seed",
    "cautious",
    "clip_norm",
}
"""Names that no rule may use, because every class has options of these names."""


class Clock(NamedTuple):
    """An event that begins at a step which a hyperparameter sets.

    event: what begins. step: function from the hyperparameter's value to the step at which the
    event begins. value: the inverse function of `step`.
    """

    event: str
    step: Callable[[float], float]
    value: Callable[[float], float]


class Rule:
    """An optimizer as one function. Parameter, gradient and states are its arguments left of `*`,
    and scalars are its arguments right of `*`.

    A rule can be called like the function: `adam(p, g, m, v, t=1, lr=0.1)` with floats or torch
    tensors returns the new parameter, the new states and the new carried scalars, in the order of
    the signature.

    Attributes
    ----------
    states: names of the states, in order.
    defaults: scalar -> default value (numbers only).
    choices: static choice (bool or str) -> default. A choice is fixed before the rule is traced.
        If there is a bool choice named `matrix`, it is set for each parameter. It is True if the
        parameter has 2 dimensions or more.
    carried: carried scalar -> its first value.
    captured: group constant -> the hyperparameter whose first value it keeps.
    keys: state or carried scalar -> its key in `optimizer.state[p]`. This is torch's key if torch
        has the same state.
    limits: hyperparameter -> (interval such as "[0, 1)", reason or "").
    search: hyperparameter -> (low, high), the log-uniform range in which a race tunes it.
    decay: how `weight_decay` acts by default: "coupled" (into the gradient) or "decoupled". A rule
        with a scalar `wd` gets the decay as that scalar, and applies it itself.
    counts: whether the step count is saved; if not, `t` is 1 at the first step and 2 at every later
        one.
    forgets: states whose new value does not depend on the old one.
    shapes: state -> "rows", "columns" or "covariances". The state then has the shape of
        row_mean(p), column_mean(p) or covariances(p), where p is the parameter.
    sparse: what the rule does with a sparse gradient. "rows" steps only the rows in the gradient
        (at the first step all rows), "dense" makes the gradient dense, "" refuses it.
    called: the name of the class; by default made of the rule's name (`sparse_adam`: SparseAdam).
    switches: choice -> the option that sets it. The choice is True if the option is not 0.
    means: state or carried scalar -> (what it is, the scalar that is its decay rate).
        `steepest.convert` keeps a state if a state of the new rule has the same meaning.
    units: option -> what its value means. Rules in which the value means the same can share it.
    excused: what `steepest check` requires -> why this rule does not meet the requirement.
    includes: another rule -> (a hyperparameter of this rule, the setting that turns this rule into
        the other rule).
    clocks: hyperparameter that counts steps -> its `Clock`.
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
            raise TypeError(
                f"@rule was given {function!r}, expected a function with a name; "
                "write `def name(p, g, *, lr=1e-3)`"
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
        renamed: dict[str, str] = dict(keys or {})
        self.keys = {n: renamed.get(n) or n for n in (*self.states, *self.carried)}
        state_keys = [*self.keys.values()]
        reserved = {"step", COMPENSATION}
        if reserved & {*state_keys} or len({*state_keys}) < len(state_keys):
            hint = f"give each state another key, but not 'step' or {COMPENSATION!r}"
            self._refuse(f"its states have the keys {state_keys}", hint)
        if taken := _OF_EVERY_CLASS & {*self.scalars, *self.choices}:
            hint = "rename it: every class has an option of that name"
            self._refuse(f"a scalar is called {min(taken)!r}", hint)
        all_limits = {**_LIMITS, **(limits or {})}
        own_limits = {n: all_limits[n] for n in self.defaults if n in all_limits}
        self.limits = {n: (x, "") if isinstance(x, str) else x for n, x in own_limits.items()}
        self.search = dict(search or {})
        if (lr := self.defaults.get("lr")) is not None:
            self.search.setdefault("lr", (lr / 30, lr * 30))
        if decay not in ("coupled", "decoupled"):
            self._refuse(f"decay={decay!r}", 'say decay="coupled" or decay="decoupled"')
        if sparse not in ("", "rows", "dense"):
            self._refuse(f"sparse={sparse!r}", 'say sparse="rows", "dense" or ""')
        known = {self.tensors[0], *self.states, *self.carried, *self.defaults, *self.choices}
        about = {
            "keys": keys,
            "limits": limits,
            "search": search,
            "forgets": forgets,
            "shapes": shapes,
            "switches": switches,
            "means": means,
            "clocks": clocks,
        }
        for fact, name in ((fact, name) for fact, names in about.items() for name in names or ()):
            if name not in known:
                mistake = f"{fact} names {name!r}, which is not in the signature"
                self._refuse(mistake, "use a name from the signature")
        self._check_outputs()

    def _refuse(self, mistake: str, hint: str) -> NoReturn:
        raise TypeError(f"rule {self.name}: {mistake}; {hint}")

    def _read_signature(self) -> None:
        self.states, self.defaults, self.choices, self.carried, self.captured = [], {}, {}, {}, {}
        self.counted = False
        for parameter in inspect.signature(self.function).parameters.values():
            name, default = parameter.name, parameter.default
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                self._refuse(
                    f"argument *{name}",
                    "write each tensor and each scalar as an argument with a name",
                )
            elif parameter.kind is not parameter.KEYWORD_ONLY:
                if name == "t":
                    self._refuse("t is left of `*`", "put it to the right, with the scalars")
                if default is not parameter.empty:
                    hint = (
                        "put a scalar right of `*`, or, for a state that does not start at zero, "
                    )
                    hint += f"write where(t > 1, {name}, start)"
                    self._refuse(f"tensor {name!r} has a default", hint)
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
                no_default = default is parameter.empty
                has = "no default" if no_default else f"the default {default!r}"
                hint = "give a number (beta1 and beta2 for a pair), a bool or str, "
                hint += "carried(start) or captured(name)"
                self._refuse(f"scalar {name!r} has {has}", hint)
        if len(self.states) < 2:
            mistake = f"it takes {len(self.states)} tensors"
            self._refuse(mistake, "begin with the parameter and its gradient")
        names = [*self.defaults, *self.carried, *self.captured]
        self.scalars = ("t", *names) if self.counted else (*names,)
        self.tensors = tuple(self.states)
        self.states = tuple(self.states[2:])
        for name, source in self.captured.items():
            if source not in self.defaults:
                self._refuse(f"{name}=captured({source!r})", f"capture one of {[*self.defaults]}")

    def _check_outputs(self) -> None:
        options = [(False, True) if isinstance(v, bool) else (v,) for v in self.choices.values()]
        p, g = self.tensors[:2]
        depending, changed, read = set(), {p}, False
        for values in itertools.product(*options):
            program = self.trace((), **dict(zip(self.choices, values, strict=True)))
            read |= any(a is program.inputs[g] for node in program.body for a in node.args)
            changed |= {*program.outputs}
            depending |= {*filter(program.depends, (p, *self.states))}
        if not read:
            self._refuse(f"the gradient {g!r} is never read", "compute the step from it")
        for name in (p, *self.states):
            if name not in changed:
                self._refuse(f"state {name!r} is never changed", "return its new value or drop it")
            if name not in depending and name not in self.forgets:
                hint = f"check the order of the outputs, or write @rule(forgets=[{name!r}])"
                self._refuse(f"the new {name!r} does not depend on the old one", hint)

    def shape(self, key: str, like: Any) -> Any:
        """Returns the shape that the state with this key has for a parameter of shape `like`."""
        shape = next((shape for s, shape in self.shapes.items() if self.keys[s] == key), "")
        if shape == "covariances":
            return (sum(n * n for n in like if n <= LARGEST),)
        if shape == "rows":
            return (*like[:-1], 1)
        return (*like[:-2], 1, *like[-1:]) if shape == "columns" else like

    def trace(self, modifiers: tuple[Callable[..., Any], ...] = (), **choices: Any) -> Program:
        """Returns the rule as a program.

        The static choices are bound, and the modifiers are applied before the rule.
        """
        try:
            return trace(self, modifiers, {**self.choices, **choices})
        except TraceError as error:
            raise TypeError(f"rule {self.name}: {error}") from None

    def __call__(self, *tensors: Any, **scalars: Any) -> Any:
        if len(tensors) != len(self.tensors):
            raise TypeError(
                f"{self.name} takes the tensors {self.tensors}, but got {len(tensors)} of them"
            )
        for name, source in self.captured.items():
            scalars.setdefault(name, scalars.get(source, self.defaults[source]))
        for name, default in (*self.defaults.items(), *self.carried.items()):
            scalars.setdefault(name, default)
        return self.function(
            *map(_as_ieee, tensors), **{n: _as_ieee(v) for n, v in scalars.items()}
        )

    def __repr__(self) -> str:
        return f"<rule {self.name}>"


def _as_ieee(x: Any) -> Any:
    return ops.Number(x) if isinstance(x, (int, float)) and not isinstance(x, bool) else x


_LIMITS = {
    "lr": "[0, inf)",
    "eps": "[0, inf)",
    "beta1": "[0, 1)",
    "beta2": "[0, 1)",
    "momentum": "[0, inf)",
    "lr_decay": "[0, inf)",
    "initial_accumulator_value": "[0, inf)",
    "momentum_decay": "[0, inf)",
    "wd": "[0, inf)",
}
"""Hyperparameter -> its limits in every rule that does not give its own."""


def inside(interval: str, value: float) -> bool:
    """Whether a number is in an interval, written like "[0, 1)". nan is in no interval."""
    low, high = (float(x) for x in interval[1:-1].split(","))
    above = low < value or (interval[0] == "[" and value == low)
    below = value < high or (interval[-1] == "]" and value == high)
    return above and below and not math.isnan(value)


def rule(function: Callable[..., Any] | None = None, **about: Any) -> Any:
    """Make an optimizer from a function, and register it under the function's name.

    Write `@rule` or `@rule(keys=..., limits=..., search=...)`; `Rule` describes these options and
    all others. Raises TypeError with a message that names the rule, the argument and the
    correction.
    """
    if function is None:
        return lambda f: rule(f, **about)
    new = Rule(function, **about)
    plain = new.name.replace("_", "").lower()  # the name of its class in lower case
    for known in rules.values():
        same = known.name == new.name
        reloaded = same and inspect.getmodule(known.function) is inspect.getmodule(function)
        if known.name.replace("_", "").lower() == plain and not reloaded:
            other = "" if same else f" ({known.name})"
            new._refuse(f"a rule of that name exists{other}", "give the function another name")
    rules[new.name] = new
    return new


def find(name: str) -> Rule:
    """Returns the rule of this name.

    Raises BadCall for an unknown name, and suggests a similar name or lists all names.
    """
    if name in rules:
        return rules[name]
    raise BadCall(f"{name!r} is not a known rule; {nearest(name, rules)}")


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns `did you mean ...?` for a misspelt name, or all known names if none is similar."""
    known = sorted(known)
    closest = difflib.get_close_matches
    close = closest(name, known, 1) or closest(name.lower(), known, 1)
    return f"did you mean {close[0]!r}?" if close else f"expected one of: {', '.join(known)}"
