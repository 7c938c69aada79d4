"""The one torch.optim.Optimizer: groups, closures, hooks, checkpoints. How a step is computed
stands in `plan.py` and `backends/`, what is computed in `formulas/`.
"""

from __future__ import annotations

import copyreg
import os
import threading
import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping
from itertools import accumulate, chain
from operator import is_
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from . import checkpoint
from . import families as house
from .definition import Rule, rules
from .plan import BACKENDS, Part, Stale, Wanted, parts

_NOTHING: tuple[Any, list[Tensor], Any, list[Part]] = (None, [], None, [])
_alive: weakref.WeakSet[RuleOptimizer] = weakref.WeakSet()


class RuleOptimizer(torch.optim.Optimizer):
    """A rule, or a family of them, as a torch.optim.Optimizer.

    params: iterable of tensors, of (name, tensor) pairs, or of dicts with options per group. The
    other arguments are those of the class (`help` shows its signature); `foreach`, `fused`,
    `capturable` and `print_change_log` are accepted without effect: the device chooses the backend.
    differentiable=True steps by the reference and lets autograd through. backend: "cpu", "foreach"
    or "eager", where None (the default) takes the fastest for each tensor.

    rounding: how a new value is stored in a 16-bit parameter: None to the nearest; "stochastic"
    (bfloat16 alone; seed: of its noise) up or down with the odds of the distances; "kahan" to the
    nearest, with what that cuts off in a second number of 16 bits, the state "compensation".
    cautious: drop the components of the step that do not oppose the current gradient, and never
    weight decay. clip_norm: as torch.nn.utils.clip_grad_norm_ before the step, over the parameters
    of a group, dtype and device, in the same loop; the gradients themselves stay as they are. A
    group may say `rule`, the name of a rule of its own, whose defaults it then takes; rounding and
    seed are those of the optimizer in every group that says nothing else.

    Raises ValueError for a value out of its limits, TypeError for an unknown argument, each saying
    what was given and what was expected; a step that raises has changed nothing.
    """

    family: ClassVar[house.Family]

    def __init__(self, params: Any, *args: Any, backend: str | None = None, **options: Any) -> None:
        options = self.family.bind(args, options)
        if backend not in (None, *BACKENDS):
            raise ValueError(f"backend={backend!r} was given, expected one of {BACKENDS} or None")
        self.backend = backend
        self._begin()
        if isinstance(params, (str, dict)) or not isinstance(params, Iterable):
            raise TypeError(
                f"{self._called}: params is a {type(params).__name__}, expected an iterable of "
                "tensors or dicts; pass model.parameters()"
            )
        if not isinstance(params, Tensor) and not (params := list(params)):
            raise ValueError(
                f"{self._called}: params is empty, expected at least one tensor; pass "
                "model.parameters(), and a new generator if this one was used up"
            )
        options = {n: v for n, v in options.items() if v is not None or n not in house.STORAGE}
        super().__init__(params, {**self.family.arguments, **options})
        if options.get("amsgrad") and options.get("rectify", self.defaults.get("rectify")):
            warnings.warn(
                "AdaBelief(amsgrad=True) under rectify=True has no effect, as in adabelief-pytorch "
                "0.2.1; pass rectify=False to use the maximum",
                stacklevel=3,
            )

    def stepped_by(self) -> set[str]:
        """What made the last step: CompiledPart, ForeachPart, SparsePart, ReferencePart."""
        return {type(part).__name__ for *_, parts in self._parts.values() for part in parts}

    @property
    def _called(self) -> str:
        return type(self).__name__

    def _begin(self) -> None:
        if not hasattr(self, "_lock"):
            self._lock = threading.RLock()
        self._parts: dict[int, tuple[Any, list[Tensor], Any, list[Part]]] = {}
        self._snapshot: list[Any] = []
        self._addresses: list[int] = []
        self._checked, self._by_identity = slice(0), True
        _alive.add(self)

    # groups

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; its options are checked first, and what it leaves out takes the defaults."""
        if not isinstance(param_group, dict):
            raise TypeError(f"param_group is a {type(param_group).__name__}, expected a dict")
        if "params" not in param_group:
            raise ValueError(
                f"{self._called}: a group with the keys {sorted(param_group)} was given, expected "
                'one with "params": the tensors'
            )
        family = self._family(param_group)
        if isinstance(rule := param_group.get("rule"), Rule) and rules.get(rule.name) is rule:
            param_group = {**param_group, "rule": rule.name}  # a copy of a rule is another rule
        shared = {n: v for n, v in self.defaults.items() if n in house.STORAGE}
        # only where the bytes are is for all
        own = self.defaults if family is self.family else {**family.arguments, **shared}
        group = {**own, **param_group}
        if group.get("rounding") == "stochastic":
            group.setdefault("seed", 0)
        family.misspelt(param_group)
        family.validate(group)
        for name, source in family.captured.items():
            group.setdefault(name, float(group[source]))
        known = {*group, "param_names"}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "optimizer contains a parameter group with duplicate")
            super().add_param_group(group)
        for name in {*group} - known:  # torch has put the options of this class beside its own
            del group[name]
        house.warn(self._called, self.param_groups)

    def _family(self, group: dict[str, Any]) -> house.Family:
        rule = group.get("rule")
        return self.family if rule is None else house.family_of(rule)

    # the step

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step on every parameter that has a gradient; returns the closure's loss, if there is
        one.

        All groups are checked and all loops compiled before the first write: a step that raises
        (RuntimeError for a sparse or misfit gradient) has changed nothing, unless it was
        interrupted in the middle of the writing (Ctrl-C), or torch's linear algebra failed there.
        """
        if torch.compiler.is_compiling():
            return _uncompiled_step(self, closure)
        # torch's wrapper of hooks and profiling costs a small model as much as the rest of the step
        if (
            self._optimizer_step_pre_hooks
            or self._optimizer_step_post_hooks
            or _global_optimizer_pre_hooks
            or _global_optimizer_post_hooks
            or torch.autograd._profiler_enabled()
        ):
            return _watched_step(self, closure)
        return self._step(closure)

    step.hooked = True  # type: ignore[attr-defined]  torch need not wrap it again

    def _step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with self._lock:
            if self._state_was_replaced():
                self._parts.clear()
            try:
                try:
                    work = self._ready()
                except Stale:
                    self._parts.clear()
                    work = self._ready()
                for each in work:
                    each()
            except BaseException:
                self._parts.clear()  # they may hold states that were not put in place
                raise
        return loss

    def _ready(self) -> list[Callable[[], None]]:
        work: list[Callable[[], None]] = []
        new: list[Part] = []
        for index in [i for i in self._parts if i >= len(self.param_groups)]:
            del self._parts[index]  # a group was removed
        for index, group in enumerate(self.param_groups):
            params = group["params"]
            family = self._family(group)
            watched = [group.get(name) for name in family.static]
            watched = [float(v) if isinstance(v, Tensor) else v for v in watched]
            known, old, made, mine = self._parts.get(index, _NOTHING)
            same = len(params) == len(old) and all(map(is_, params, old))
            if known != watched or not same:
                self._check_options(family, group)
                stored = {n: group[n] for n in ("rounding", "seed") if n in group}
                differentiable = bool(group.get("differentiable"))
                wanted = Wanted(family.select(group), self.backend, differentiable, **stored)
                if wanted != made or not same:
                    if old and not same and any("seed" in g for g in self.param_groups):
                        raise Stale  # the elements of later groups have other numbers now
                    unique, first = [*dict.fromkeys(params)], self._first()
                    mine = parts(wanted, unique, self.state.get, first.__getitem__)
                    new += mine
                self._parts[index] = watched, list(params), wanted, mine
            scalars = {}
            for part in mine:
                program = part.program
                if program not in scalars:
                    names = [n for n in program.scalars if n != "t"]
                    scalars[program] = [family.scalar(group, n, program.rule) for n in names]
                work.append(part.ready(scalars[program]))
        return [lambda: self._commit(new), *work] if new else work

    def _check_options(self, family: house.Family, group: dict[str, Any]) -> None:
        if missing := [n for n in family.arguments if n not in group]:
            raise ValueError(
                f"{self._called}: a group of the rule {family.name} lacks the options {missing}, "
                "expected all of them; give a group its rule when it is added, not later"
            )
        family.validate(group)

    def _first(self) -> dict[Tensor, int]:
        """The number of a parameter's first element, counted through all groups."""
        every = list(chain.from_iterable(group["params"] for group in self.param_groups))
        starts = accumulate((p.numel() for p in every), initial=0)
        return dict(zip(every, starts, strict=False))

    def _state_was_replaced(self) -> bool:
        """Whether the state has other tensors, as after `state[k] = v.to(...)`, or other memory."""
        flat = list(chain.from_iterable(map(dict.values, self.state.values())))
        try:
            if flat != self._snapshot:  # the same object is equal unasked
                return True
        except RuntimeError:  # two different tensors of several elements have no truth
            return True
        copied = self._by_identity and not all(map(is_, flat, self._snapshot))
        return copied or list(map(Tensor.data_ptr, flat[self._checked])) != self._addresses

    def _commit(self, new: list[Part]) -> None:
        found = {p: (part, k) for part in new for k, p in enumerate(part.owners)}
        # in the groups' order, whatever part it is in: a checkpoint of shards gathers state after
        # state in this order, and a shard may be empty in one process alone
        for p in filter(found.__contains__, self._first()):
            part, k = found[p]
            if part.states[k] or p in self.state:
                mine, planned = self.state[p], part.states[k] or {}
                mine.update(planned)
                for key in mine.keys() - planned.keys():
                    del mine[key]
                part.states[k] = mine
        self._snapshot = list(chain.from_iterable(map(dict.values, self.state.values())))
        # of one element, an equal copy passes for the original
        self._by_identity = any(p.numel() == 1 for p in self.state)
        # v.data = ..., v.share_memory_() change the memory and not the object. Looking at every
        # address is dear where tensors are tiny: there the first one's speak for all
        tiny = sum(p.numel() for p in self.state) < (1 << 14) * len(self.state)
        self._checked = slice(16) if tiny else slice(None)
        self._addresses = list(map(Tensor.data_ptr, self._snapshot[self._checked]))

    # checkpoints

    @torch._disable_dynamo
    def load_state_dict(  # type: ignore[override]  torch's returns nothing
        self, state_dict: dict[str, Any], strict: bool = True
    ) -> checkpoint.Loaded:
        """Take over a checkpoint of this class or, where torch.optim has the class, of torch's.

        Parameters are matched by name if they have names there and here (`named_parameters()`;
        what DDP, FSDP and torch.compile put before them does not count), else by order. A group
        takes the options of the saved group that its parameters come from; those that the
        checkpoint does not know keep their values, and those that nobody here knows are kept and
        named in a UserWarning. States keep the dtype they were saved in (until a
        step that needs a wider one) and share no memory with `state_dict`; their elements are not
        looked at.

        strict=False loads what matches, and the report says what did not; a parameter without a
        match begins anew. Without names it takes groups of the same sizes, and stops in each at
        the first parameter of another shape, for what follows may have moved.

        Raises ValueError or TypeError for a checkpoint that is damaged, of another optimizer or
        of another model, and changes nothing then.
        """
        if not isinstance(state_dict, Mapping):
            checkpoint.read(self._called, state_dict)
        saved: Any = dict(state_dict)
        for hook in self._optimizer_load_state_dict_pre_hooks.values():
            made = hook(self, saved)
            saved = saved if made is None else made
        with self._lock:
            state, groups, report = checkpoint.load(self, saved, strict, stacklevel=5)
            self.__setstate__({"state": state, "param_groups": groups})
        for done in self._optimizer_load_state_dict_post_hooks.values():
            done(self)
        return report

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "backend": self.backend}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._begin()

    def __reduce__(self) -> Any:
        from .classes import revive  # which makes its classes of this one

        if type(self).__module__ != "steepest":  # a subclass of the user's
            return copyreg.__newobj__, (type(self),), self.__getstate__()  # type: ignore[attr-defined]
        return revive, (self.family.members[0].name, self._called), self.__getstate__()


_uncompiled_step = torch._disable_dynamo(RuleOptimizer.step)
_watched_step = torch.optim.Optimizer.profile_hook_step(RuleOptimizer._step)


def _after_fork() -> None:
    # another thread may have held the lock, and it does not live in the child
    for optimizer in list(_alive):
        optimizer._lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
