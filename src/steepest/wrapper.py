"""The base class of optimizers that wrap another optimizer."""

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

OptionType = tuple[Any, str, Callable[[Any], Any]]
# the state_dict's key for what wrappers add to it: a list, innermost first
LAYERS = "wrappers"


class Wrapper(torch.optim.Optimizer):
    """An optimizer around another optimizer, whose groups and states it shares.

    A copy of the wrapper contains a copy of the wrapped optimizer.
    _options: option of the wrapper -> its type and its interval.
    """

    optimizer: torch.optim.Optimizer
    _options: ClassVar[dict[str, tuple[OptionType, str]]] = {}

    @torch._disable_dynamo
    def __init__(self, optimizer: torch.optim.Optimizer, **options: Any) -> None:
        if not isinstance(optimizer, torch.optim.Optimizer):
            name = type(self).__name__
            given = f"a {type(optimizer).__name__}"
            if isinstance(optimizer, type):
                given = f"the class {optimizer.__name__}"
            raise TypeError(
                f"{name}: {given} was given, expected an optimizer object; write "
                f"{name}(steepest.AdamW(model.parameters()))"
            )
        if any(group.get("differentiable") for group in optimizer.param_groups):
            name = type(self).__name__
            raise ValueError(
                f"{name}: an optimizer with differentiable=True was given, but autograd cannot go "
                f"through the steps of {name}; make the optimizer with differentiable=False"
            )
        self.__setstate__({"optimizer": optimizer, **self._checked(options)})

    def _checked(self, options: Mapping[str, Any], where: str = "") -> dict[str, Any]:
        """Returns the options of this class.

        Raises ValueError if an option is missing or out of its limits.
        """
        checked = {}
        for name, ((type_, description, convert), interval) in self._options.items():
            given: Any = options.get(name)
            value, is_flag = plain(given), type_ is bool
            fits = isinstance(value, type_) and (is_flag or not isinstance(value, bool))
            if not fits or not inside(interval, real(int(value) if is_flag else value)):
                expected = description if is_flag else f"{description} in {interval}"
                raise ValueError(
                    f"{type(self).__name__}: {name}={given!r} was given{where}, expected {expected}"
                )
            checked[name] = convert(value)
        return checked

    # the wrapped optimizer's own groups, states and defaults, for schedulers to read and write

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The wrapped optimizer's own list of groups."""
        return self.optimizer.param_groups

    @property
    def state(self) -> Any:  # type: ignore[override]
        """The wrapped optimizer's own states."""
        return self.optimizer.state

    @property
    def defaults(self) -> dict[str, Any]:  # type: ignore[override]
        """A copy of the wrapped optimizer's defaults."""
        return dict(self.optimizer.defaults)  # a copy, since torch adds a key to it

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the wrapped optimizer."""
        self.optimizer.add_param_group(param_group)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset all gradients by the wrapped optimizer's own method."""
        self.optimizer.zero_grad(set_to_none)

    def _params(self) -> list[Tensor]:
        """Returns each parameter once, even if it is in several groups."""
        return [*{id(p): p for group in self.param_groups for p in group["params"]}.values()]

    def __repr__(self) -> str:
        options = ", ".join(f"{name}={getattr(self, name)!r}" for name in self._options)
        return f"{type(self).__name__} ({options}) around {self.optimizer!r}"

    def __getstate__(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer} | {n: getattr(self, n) for n in self._options}

    # checkpoints

    def _layer(self, saved: dict[str, Any]) -> dict[str, Any]:
        """Returns what this class adds to `saved`, the wrapped optimizer's checkpoint."""
        return {"kind": self._public_name()} | {n: getattr(self, n) for n in self._options}

    def _read(self, layer: Mapping[str, Any], pairs: list[Pair]) -> dict[str, Any]:
        """Returns the new attributes, read from `layer`: what this class added to a checkpoint.

        Raises ValueError if `layer` is damaged.
        """
        return self._checked(layer, " in the checkpoint")

    @classmethod
    def _public_name(cls) -> str:
        """Returns the name of the public class, even if `cls` is a user's subclass of it."""
        return next(c.__name__ for c in cls.__mro__ if Wrapper in c.__bases__)

    @torch._disable_dynamo
    def state_dict(self) -> dict[str, Any]:
        """The wrapped optimizer's state_dict; its key "wrappers" holds what this class adds."""
        for hook in self._optimizer_state_dict_pre_hooks.values():
            hook(self)
        saved = self.optimizer.state_dict()
        saved = {**saved, LAYERS: [*saved.get(LAYERS, ()), self._layer(saved)]}
        for hook in self._optimizer_state_dict_post_hooks.values():
            returned = hook(self, saved)
            saved = saved if returned is None else returned
        return saved

    @torch._disable_dynamo
    def load_state_dict(self, state_dict: dict[str, Any]) -> Any:  # type: ignore[override]
        """Load a checkpoint that this class saved around an optimizer like the wrapped one. The
        options of this class are loaded too.

        Returns what the wrapped optimizer's load_state_dict returns. Raises ValueError for a
        checkpoint that is damaged or of another class. A load that raises changes nothing, provided
        that the wrapped optimizer changes nothing when its own load raises.
        """
        called, expected = type(self).__name__, self._public_name()
        saved: Any = dict(state_dict) if isinstance(state_dict, Mapping) else state_dict
        for hook in self._optimizer_load_state_dict_pre_hooks.values():
            returned = hook(self, saved)
            saved = saved if returned is None else returned
        groups, rows = read(called, saved)
        saved = dict(saved)
        layers = saved.pop(LAYERS, [])
        if not isinstance(layers, (list, tuple)) or not all(
            isinstance(layer, Mapping) for layer in layers
        ):
            raise ValueError(
                f"{called}: {LAYERS!r} of the checkpoint is not a list of dicts; it is damaged"
            )
        wrapper = layers[-1].get("kind") if layers else None
        if wrapper != expected:
            given = f"a {wrapper}" if layers else "no wrapper"
            raise ValueError(
                f"{called}: the checkpoint is of {given}, expected {expected}; load it into an "
                "optimizer like the one that saved it, or into .optimizer, which is inside this one"
            )
        new = self._read(layers[-1], self._pairs(groups, rows))
        if layers[:-1]:
            saved[LAYERS] = list(layers[:-1])
        report: Any = self.optimizer.load_state_dict(saved)
        self.__dict__.update(new)
        for hook in self._optimizer_load_state_dict_post_hooks.values():
            hook(self)
        return report

    def _pairs(self, groups: list[dict[str, Any]], rows: list[Saved]) -> list[Pair]:
        """Returns this optimizer's parameters, each paired with its entry in the checkpoint.

        They are matched by name or by order, as the wrapped optimizer matches them.
        """
        called, own, base = type(self).__name__, self.param_groups, innermost(self.optimizer)
        slots = slots_of(own, rows)
        named = rows and all(row.name for row in (*slots, *rows))
        if named and isinstance(base, RuleOptimizer):  # torch's optimizers match by order only
            return by_name(called, slots, rows, strict=True)[0]
        sizes = [[len(g["params"]) for g in gs] for gs in (own, groups)]
        return by_order(called, slots, rows, *sizes)


def innermost(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The optimizer inside all wrappers of this package, or `optimizer` if it has no wrapper."""
    while isinstance(optimizer, Wrapper):
        optimizer = optimizer.optimizer
    return optimizer
