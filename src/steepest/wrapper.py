"""What stands around another optimizer: groups, states, checkpoints and copies go through."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from .checkpoint import Saved, read
from .checks import plain, real
from .definition import inside
from .loading import Pair, by_name, by_order, slots_of
from .shell import RuleOptimizer

Kind = tuple[Any, str, Callable[[Any], Any]]
# the key in a state_dict of what wrappers add to it: a list, innermost first
LAYERS = "wrappers"


class Wrapper(torch.optim.Optimizer):
    """What is common to optimizers around another one: groups, states, checkpoints, copies."""

    optimizer: torch.optim.Optimizer
    _options: ClassVar[dict[str, tuple[Kind, str]]] = {}

    @torch._disable_dynamo
    def __init__(self, optimizer: torch.optim.Optimizer, **options: Any) -> None:
        if not isinstance(optimizer, torch.optim.Optimizer):
            name = type(self).__name__
            kind = isinstance(optimizer, type)
            given = f"the class {optimizer.__name__}" if kind else f"a {type(optimizer).__name__}"
            raise TypeError(
                f"{name}: {given} was given, expected an optimizer that is made already; write "
                f"{name}(steepest.AdamW(model.parameters()))"
            )
        if any(group.get("differentiable") for group in optimizer.param_groups):
            name = type(self).__name__
            raise ValueError(
                f"{name}: an optimizer with differentiable=True was given, expected False, as "
                f"autograd does not go through what {name} does to the parameters"
            )
        self.__setstate__({"optimizer": optimizer, **self._checked(options)})

    def _checked(self, options: Mapping[str, Any], where: str = "") -> dict[str, Any]:
        """The options of this class; ValueError for one that is missing or out of its limits."""
        found = {}
        for name, ((kind, words, make), interval) in self._options.items():
            value: Any = options.get(name)
            given = plain(value)
            right = isinstance(given, kind) and (kind is bool or not isinstance(given, bool))
            if not right or not inside(interval, real(int(given) if kind is bool else given)):
                expected = words if kind is bool else f"{words} in {interval}"
                raise ValueError(
                    f"{type(self).__name__}: {name}={value!r} was given{where}, expected {expected}"
                )
            found[name] = make(given)
        return found

    # whose groups, states and defaults they are: schedulers read and write them

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The wrapped optimizer's own list."""
        return self.optimizer.param_groups

    @property
    def state(self) -> Any:  # type: ignore[override]
        """The wrapped optimizer's own states."""
        return self.optimizer.state

    @property
    def defaults(self) -> dict[str, Any]:  # type: ignore[override]
        """A copy of the wrapped optimizer's defaults."""
        return dict(self.optimizer.defaults)  # torch adds a key to what it gets here

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the wrapped optimizer."""
        self.optimizer.add_param_group(param_group)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset all gradients, as the wrapped optimizer does it."""
        self.optimizer.zero_grad(set_to_none)

    def _params(self) -> list[Tensor]:
        """Each parameter once."""
        return [*{id(p): p for group in self.param_groups for p in group["params"]}.values()]

    def __repr__(self) -> str:
        options = ", ".join(f"{name}={getattr(self, name)!r}" for name in self._options)
        return f"{type(self).__name__} ({options}) around {self.optimizer!r}"

    def __getstate__(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer} | {n: getattr(self, n) for n in self._options}

    # checkpoints

    def _layer(self, saved: dict[str, Any]) -> dict[str, Any]:
        """What this class adds to a checkpoint."""
        return {"kind": self._kind()} | {n: getattr(self, n) for n in self._options}

    def _read(self, layer: Mapping[str, Any], pairs: list[Pair]) -> dict[str, Any]:
        """The attributes that a checkpoint's layer stands for; ValueError for a damaged one."""
        return self._checked(layer, " in the checkpoint")

    @classmethod
    def _kind(cls) -> str:
        """The name of the public class, which a subclass of the user's shares."""
        return next(c.__name__ for c in cls.__mro__ if Wrapper in c.__bases__)

    @torch._disable_dynamo
    def state_dict(self) -> dict[str, Any]:
        """The wrapped optimizer's state_dict, and under "wrappers" what this class adds."""
        for before in self._optimizer_state_dict_pre_hooks.values():
            before(self)
        saved = self.optimizer.state_dict()
        saved = {**saved, LAYERS: [*saved.get(LAYERS, ()), self._layer(saved)]}
        for after in self._optimizer_state_dict_post_hooks.values():
            made = after(self, saved)
            saved = saved if made is None else made
        return saved

    @torch._disable_dynamo
    def load_state_dict(self, state_dict: dict[str, Any]) -> Any:  # type: ignore[override]
        """Take over a checkpoint of this class around an optimizer like the wrapped one.

        Its options are taken over too. Returns what the wrapped optimizer's load_state_dict
        returns. Raises ValueError for a checkpoint of something else or a damaged one, and changes
        nothing then, if the wrapped optimizer changes nothing when it refuses one.
        """
        called, kind = type(self).__name__, self._kind()
        saved: Any = dict(state_dict) if isinstance(state_dict, Mapping) else state_dict
        for before in self._optimizer_load_state_dict_pre_hooks.values():
            made = before(self, saved)
            saved = saved if made is None else made
        groups, rows = read(called, saved)
        saved = dict(saved)
        layers = saved.pop(LAYERS, [])
        if not isinstance(layers, (list, tuple)) or not all(
            isinstance(layer, Mapping) for layer in layers
        ):
            raise ValueError(
                f"{called}: {LAYERS!r} of the checkpoint is no list of dicts; it is damaged"
            )
        found = layers[-1].get("kind") if layers else None
        if found != kind:
            raise ValueError(
                f"{called}: a checkpoint of {'a ' + str(found) if layers else 'no wrapper'} was "
                f"given, expected one of {kind}; load it into what it was saved from, or into "
                ".optimizer, the wrapped one"
            )
        new = self._read(layers[-1], self._pairs(groups, rows))
        if layers[:-1]:
            saved[LAYERS] = list(layers[:-1])
        report: Any = self.optimizer.load_state_dict(saved)
        self.__dict__.update(new)
        for done in self._optimizer_load_state_dict_post_hooks.values():
            done(self)
        return report

    def _pairs(self, groups: list[dict[str, Any]], rows: list[Saved]) -> list[Pair]:
        """Which parameter is which of the checkpoint's, as the wrapped optimizer will have it."""
        called, own, base = type(self).__name__, self.param_groups, self.optimizer
        while isinstance(base, Wrapper):
            base = base.optimizer
        slots = slots_of(own, rows)
        named = rows and all(row.name for row in (*slots, *rows))
        if named and isinstance(base, RuleOptimizer):  # torch's match by order, names or not
            return by_name(called, slots, rows, strict=True)[0]
        sizes = [[len(g["params"]) for g in gs] for gs in (own, groups)]
        return by_order(called, slots, rows, *sizes)
