"""The torch.optim.Optimizer behind every class: groups, closures, hooks, checkpoints.

`formulas/` defines what a step computes, `backends/` runs it.
"""

from __future__ import annotations

import copy
import copyreg
import os
import threading
import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from typing import Any, ClassVar, ParamSpec

import torch
from torch import Tensor
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from .backends import BACKENDS
from .checkpoint import read
from .definition import Rule, rules
from .executor import Executor, Stale
from .families import family_of
from .family import Family, warn_about
from .loading import Loaded, load
from .options import STORAGE, list_params, outside
from .trace import Program

P = ParamSpec("P")
_alive: weakref.WeakSet[RuleOptimizer] = weakref.WeakSet()


def _with_hooks(step: Callable[P, Any]) -> Callable[P, Any]:
    """Returns the step with torch's hooks and profiling, which get the caller's own arguments."""
    hooked = torch.optim.Optimizer.profile_hook_step(step)

    @wraps(step)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> Any:
        if torch.compiler.is_compiling():
            return uncompiled(*args, **kwargs)
        self: Any = args[0]
        for graphs in (torch.cuda, torch.xpu):
            if graphs.is_initialized() and graphs.is_current_stream_capturing():
                raise RuntimeError(
                    f"{self._called}: step() was called during the capture of a graph "
                    "(torch.cuda.graph), which would repeat this step's learning rate and count "
                    "in every replay; call step() after the capture, even with capturable=True"
                )
        # for a small model torch's wrapper costs as much as the rest of the step
        if (
            self._optimizer_step_pre_hooks
            or self._optimizer_step_post_hooks
            or _global_optimizer_pre_hooks
            or _global_optimizer_post_hooks
            or torch.autograd._profiler_enabled()
        ):
            return hooked(*args, **kwargs)
        if torch._C._len_torch_dispatch_stack():  # e.g. FakeTensorMode, which warns about data_ptr
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")
                return step(*args, **kwargs)
        return step(*args, **kwargs)

    uncompiled = torch._disable_dynamo(wrapped)
    wrapped.hooked = True  # type: ignore[attr-defined]  so that torch does not wrap it again
    return wrapped


class RuleOptimizer(torch.optim.Optimizer):
    """A torch.optim.Optimizer that steps by a rule, or by a family of rules.

    params: iterable of tensors, of (name, tensor) pairs, or of dicts with options per group. The
    other arguments are those of the class (`help` shows its signature). `foreach`, `fused`,
    `capturable` and `print_change_log` are accepted without effect: the device decides the backend,
    and a step during the capture of a CUDA graph raises RuntimeError.
    differentiable: True steps by the reference implementation, and autograd goes through everything
    that the step depends on: parameters (pass clones, not leaves), gradients, earlier steps, and
    options that are tensors requiring grad. False uses only the values of such options.
    backend: "cpu", "foreach" or "eager". If this backend cannot step a tensor, another does.
    None (the default) takes the fastest backend for each tensor.

    rounding: how a 16-bit parameter stores a new value. None rounds to the nearest number.
    "stochastic" (bfloat16 only) rounds up or down at random, and the nearer number is more likely.
    "kahan" rounds to the nearest and keeps the rounding error in a second 16-bit number, the state
    "compensation". seed: the seed of the stochastic rounding.
    cautious: drop the components of the step that do not oppose the current gradient; weight decay
    is never dropped.
    clip_norm: clip the gradients as torch.nn.utils.clip_grad_norm_ does. The norm is taken over the
    parameters of a group that have the same dtype and device. `.grad` itself does not change.
    A group may name another `rule`. The group then takes the defaults of this rule; only rounding,
    seed, cautious, clip_norm and differentiable still default to the optimizer's values.

    Raises ValueError for a value out of its limits and TypeError for an unknown argument; both say
    what was given and what was expected. A step that raises has changed nothing.
    """

    family: ClassVar[Family]

    @torch._disable_dynamo  # a graph break in the middle would leave half an optimizer
    def __init__(self, params: Any, *args: Any, backend: str | None = None, **options: Any) -> None:
        options = self.family.bind(args, options)
        if backend not in (None, *BACKENDS):
            known = (*BACKENDS,)
            raise ValueError(f"backend={backend!r} was given, expected one of {known} or None")
        self.backend = backend
        self._begin()
        if isinstance(params, (str, dict)) or not isinstance(params, Iterable):
            raise TypeError(
                f"{self._called}: params is a {type(params).__name__}, expected an iterable of "
                "tensors or of dicts; pass model.parameters()"
            )
        if not isinstance(params, Tensor) and not (params := list(params)):
            raise ValueError(
                f"{self._called}: params is empty, expected at least one tensor; pass "
                "model.parameters(), and a new generator if this one was used up"
            )
        options = {n: v for n, v in options.items() if v is not None or n not in STORAGE}
        super().__init__(params, self.family.plain({**self.family.arguments, **options}))
        if options.get("amsgrad") and options.get("rectify", self.defaults.get("rectify")):
            warnings.warn(
                "AdaBelief(amsgrad=True) has no effect with rectify=True, as in adabelief-pytorch "
                "0.2.1; pass rectify=False to use amsgrad",
                stacklevel=outside(),
            )

    def stepped_by(self) -> set[str]:
        """The names of the backends that computed the last step, such as "cpu"."""
        groups = self._executor.groups if self._executor is not None else []
        return {str(bucket.wanted.backend) for group in groups for bucket in group.buckets}

    @property
    def _called(self) -> str:
        return type(self).__name__

    def _begin(self) -> None:
        if not hasattr(self, "_lock"):
            self._lock = threading.RLock()
        self._executor: Executor | None = None
        _alive.add(self)

    # groups

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group. Missing options take their defaults, and all options are checked first."""
        if not isinstance(param_group, dict):
            raise TypeError(f"param_group is a {type(param_group).__name__}, expected a dict")
        if "params" not in param_group:
            raise ValueError(
                f"{self._called}: a group with the keys {sorted(param_group)} was given, expected "
                'the key "params" with the tensors'
            )
        family = self._family(param_group)
        list_params(self._called, param_group)
        if isinstance(rule := param_group.get("rule"), Rule) and rules.get(rule.name) is rule:
            # checkpoints save the name, and only a registered rule can be found by its name
            param_group = {**param_group, "rule": rule.name}
        # a group with another rule shares only these defaults with the optimizer
        common = {*STORAGE, "differentiable"}
        shared = {n: v for n, v in self.defaults.items() if n in common}
        defaults = self.defaults if family is self.family else {**family.arguments, **shared}
        group = {**defaults, **param_group}
        if group.get("rounding") == "stochastic":
            group.setdefault("seed", 0)
        group = family.validate(group)
        for name, source in family.captured.items():
            if name not in group:
                value = family.read(group, source, family.rule(group))
                # a copy: the user may change the tensor later
                group[name] = value.clone() if isinstance(value, Tensor) else value
        known = {*group, "param_names"}
        with self._lock, warnings.catch_warnings():
            warnings.filterwarnings("ignore", "optimizer contains a parameter group with duplicate")
            super().add_param_group(group)
        for name in {*group} - known:  # torch added this class's options to another rule's group
            del group[name]
        warn_about(self._called, family, self.param_groups)

    def _family(self, group: dict[str, Any]) -> Family:
        rule = group.get("rule")
        return self.family if rule is None else family_of(rule)

    # the step

    @_with_hooks
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step every parameter that has a gradient. Returns the closure's loss, or None without a
        closure.

        All groups are checked and all loops compiled before anything is written. So a step that
        raises (RuntimeError for a sparse or mismatched gradient) has changed nothing. There are two
        exceptions: Ctrl-C during the writing, and an error in torch's linear algebra.
        """
        return self._step(closure)

    def _step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with self._lock:
            try:
                for last in (*[False] * 9, True):
                    try:
                        if self._executor is None or not self._executor.is_current():
                            self._executor = Executor(self)
                        self._executor.prepare()()
                        self._executor.release()
                        break
                    except Stale:
                        self._executor = None
                        if last:
                            raise RuntimeError(
                                f"{self._called}: another thread replaced states while step() was "
                                "reading them; replace them between steps"
                            ) from None
            except BaseException:
                self._executor = None  # it may have been interrupted while it wrote
                raise
        return loss

    def _check_options(self, family: Family, group: dict[str, Any]) -> None:
        if missing := [n for n in family.arguments if n not in group]:
            raise ValueError(
                f"{self._called}: a group of the rule {family.name} lacks the options {missing}, "
                "expected all of them; set a group's rule when you add the group, not later"
            )
        family.validate(group)

    # checkpoints

    @torch._disable_dynamo
    def state_dict(self) -> dict[str, Any]:
        """Returns torch's state_dict. NumPy numbers in the groups become Python numbers, so that
        torch.load(weights_only=True) can read the file.
        """
        saved = super().state_dict()
        groups = saved.get("param_groups", ()) if isinstance(saved, dict) else ()  # after hooks
        for own, group in zip(self.param_groups, groups, strict=False):
            group |= self._family(own).saved(group)
        return saved

    @torch._disable_dynamo
    def load_state_dict(  # type: ignore[override]  torch's returns nothing
        self, state_dict: dict[str, Any], strict: bool = True
    ) -> Loaded:
        """Load a checkpoint of this class, or of torch.optim's class of the same name.

        Parameters are matched by name if both sides have names (`named_parameters()`; prefixes of
        DDP, FSDP and torch.compile are ignored), else by order. A group takes the options of the
        saved group that its parameters come from. Options that the checkpoint lacks keep their
        current values; unknown options are kept and named in a UserWarning. States keep the dtype
        in which they were saved (until a step needs a wider dtype) and share no memory with
        `state_dict`. The elements of states are not checked.

        strict=False loads what matches, and the returned report lists what does not match. A
        parameter without a match starts with an empty state. Without names, each group must have as
        many parameters as the saved group. In each group, parameters are matched in order up to the
        first one of another shape; those after it may have moved.

        Raises ValueError or TypeError for a checkpoint that is damaged, of another model, or of
        another optimizer. Another optimizer is recognised by its states, or by options that only
        another class has. A load that raises changes nothing.
        """
        if not isinstance(state_dict, Mapping):
            read(self._called, state_dict)
        saved: Any = dict(state_dict)
        for hook in self._optimizer_load_state_dict_pre_hooks.values():
            returned = hook(self, saved)
            saved = saved if returned is None else returned
        with self._lock:
            state, groups, report = load(self, saved, strict, stacklevel=5)
            self.__setstate__({"state": state, "param_groups": groups})
        for hook in self._optimizer_load_state_dict_post_hooks.values():
            hook(self)
        return report

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "backend": self.backend}

    @torch._disable_dynamo
    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "defaults" in state and "backend" not in state:  # saved by torch's class
            self.backend = vars(self).get("backend")
            for options in (self.defaults, *self.param_groups):
                options |= {**self.family.arguments, **options}
        self._begin()

    @torch._disable_dynamo
    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        make, args, state = self.__reduce__()
        memo[id(self)] = copied = make(*args)
        copied.__setstate__(copy.deepcopy(state, memo))
        return copied

    def __reduce__(self) -> Any:
        from .classes import revive  # here, because classes.py imports this module

        if type(self).__module__ != "steepest":  # a subclass of the user's
            return copyreg.__newobj__, (type(self),), self.__getstate__()  # type: ignore[attr-defined]
        return revive, (self.family.members[0].name, self._called), self.__getstate__()


def _after_fork() -> None:
    for optimizer in list(_alive):
        if optimizer._lock.acquire(blocking=False):
            optimizer._lock.release()
        else:  # a thread of the parent held the lock, and does not exist in the child
            del optimizer._lock
            optimizer._begin()
    for cls in (Family, Program):
        for attribute in vars(cls).values():
            if hasattr(attribute, "lock"):  # before Python 3.12 a cached_property has one
                attribute.lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
