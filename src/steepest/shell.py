"""The one torch.optim.Optimizer: groups, closures, hooks, checkpoints. How a step is computed
stands in `executor.py` and `backends/`, what is computed in `formulas/`.
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
from .options import STORAGE, outside, taken
from .trace import Program

P = ParamSpec("P")
_alive: weakref.WeakSet[RuleOptimizer] = weakref.WeakSet()


def _watched(step: Callable[P, Any]) -> Callable[P, Any]:
    """The step with torch's hooks and profiling, which get the arguments as they were given."""
    watched = torch.optim.Optimizer.profile_hook_step(step)

    @wraps(step)
    def given(*args: P.args, **kwargs: P.kwargs) -> Any:
        if torch.compiler.is_compiling():
            return uncompiled(*args, **kwargs)
        self: Any = args[0]
        for graphs in (torch.cuda, torch.xpu):
            if graphs.is_initialized() and graphs.is_current_stream_capturing():
                raise RuntimeError(
                    f"{self._called}: step() was called while a graph of the stream is captured "
                    "(torch.cuda.graph), which would repeat this step's learning rate and count "
                    "for ever; call it after the capture, with capturable=True too"
                )
        # torch's wrapper costs a small model as much as the rest of the step
        if (
            self._optimizer_step_pre_hooks
            or self._optimizer_step_post_hooks
            or _global_optimizer_pre_hooks
            or _global_optimizer_post_hooks
            or torch.autograd._profiler_enabled()
        ):
            return watched(*args, **kwargs)
        if torch._C._len_torch_dispatch_stack():  # of FakeTensorMode, say, which warns of data_ptr
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")
                return step(*args, **kwargs)
        return step(*args, **kwargs)

    uncompiled = torch._disable_dynamo(given)
    given.hooked = True  # type: ignore[attr-defined]  torch need not wrap it again
    return given


class RuleOptimizer(torch.optim.Optimizer):
    """A rule, or a family of them, as a torch.optim.Optimizer.

    params: iterable of tensors, of (name, tensor) pairs, or of dicts with options per group. The
    other arguments are those of the class (`help` shows its signature); `foreach`, `fused`,
    `capturable` and `print_change_log` are accepted without effect: the device chooses the backend,
    and a step inside the capture of a CUDA graph is refused.
    differentiable=True steps by the reference and lets autograd through all that a step depends on:
    parameters (no leaves: pass clones), gradients, earlier steps, options that are tensors which
    require grad; without it such a tensor is its value. backend: "cpu", "foreach" or "eager"; what
    that one cannot step, the others do. None (the default) takes the fastest for each tensor.

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

    family: ClassVar[Family]

    @torch._disable_dynamo  # half an optimizer would come out of a break in the middle
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
                "tensors or dicts; pass model.parameters()"
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
                "AdaBelief(amsgrad=True) under rectify=True has no effect, as in adabelief-pytorch "
                "0.2.1; pass rectify=False to use the maximum",
                stacklevel=outside(),
            )

    def stepped_by(self) -> set[str]:
        """The names of the backends that made the last step, such as "cpu"."""
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
        """Add a group; its options are checked first, and what it leaves out takes the defaults."""
        if not isinstance(param_group, dict):
            raise TypeError(f"param_group is a {type(param_group).__name__}, expected a dict")
        if "params" not in param_group:
            raise ValueError(
                f"{self._called}: a group with the keys {sorted(param_group)} was given, expected "
                'one with "params": the tensors'
            )
        family = self._family(param_group)
        taken(self._called, param_group)
        if isinstance(rule := param_group.get("rule"), Rule) and rules.get(rule.name) is rule:
            param_group = {**param_group, "rule": rule.name}  # a copy of a rule is another rule
        all_have = {*STORAGE, "differentiable"}
        shared = {n: v for n, v in self.defaults.items() if n in all_have}
        # only where the bytes are, and whether autograd goes through, is for all
        own = self.defaults if family is self.family else {**family.arguments, **shared}
        group = {**own, **param_group}
        if group.get("rounding") == "stochastic":
            group.setdefault("seed", 0)
        group = family.validate(group)
        for name, source in family.captured.items():
            if name not in group:
                given = family.read(group, source, family.rule(group))
                # as it was then, whatever becomes of the tensor
                group[name] = given.clone() if isinstance(given, Tensor) else given
        known = {*group, "param_names"}
        with self._lock, warnings.catch_warnings():
            warnings.filterwarnings("ignore", "optimizer contains a parameter group with duplicate")
            super().add_param_group(group)
        for name in {*group} - known:  # torch has put the options of this class beside its own
            del group[name]
        warn_about(self._called, family, self.param_groups)

    def _family(self, group: dict[str, Any]) -> Family:
        rule = group.get("rule")
        return self.family if rule is None else family_of(rule)

    # the step

    @_watched
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step on every parameter that has a gradient; returns the closure's loss, if there is
        one.

        All groups are checked and all loops compiled before the first write: a step that raises
        (RuntimeError for a sparse or misfit gradient) has changed nothing, unless it was
        interrupted in the middle of the writing (Ctrl-C), or torch's linear algebra failed there.
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
                                f"{self._called}: states were replaced by another thread while "
                                "step() looked at them; replace them between steps"
                            ) from None
            except BaseException:
                self._executor = None  # it may have been interrupted while writing
                raise
        return loss

    def _check_options(self, family: Family, group: dict[str, Any]) -> None:
        if missing := [n for n in family.arguments if n not in group]:
            raise ValueError(
                f"{self._called}: a group of the rule {family.name} lacks the options {missing}, "
                "expected all of them; give a group its rule when it is added, not later"
            )
        family.validate(group)

    # checkpoints

    @torch._disable_dynamo
    def state_dict(self) -> dict[str, Any]:
        """torch's, with plain numbers where others have put numpy's into the groups, so that
        torch.load(weights_only=True) reads it.
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

        Raises ValueError or TypeError for a checkpoint that is damaged, of another optimizer (by
        its states, or by options that another class has and this one has not) or of another model,
        and changes nothing then.
        """
        if not isinstance(state_dict, Mapping):
            read(self._called, state_dict)
        saved: Any = dict(state_dict)
        for hook in self._optimizer_load_state_dict_pre_hooks.values():
            made = hook(self, saved)
            saved = saved if made is None else made
        with self._lock:
            state, groups, report = load(self, saved, strict, stacklevel=5)
            self.__setstate__({"state": state, "param_groups": groups})
        for done in self._optimizer_load_state_dict_post_hooks.values():
            done(self)
        return report

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "backend": self.backend}

    @torch._disable_dynamo
    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "defaults" in state and "backend" not in state:  # from torch's class, which knows less
            self.backend = vars(self).get("backend")
            for options in (self.defaults, *self.param_groups):
                options |= {**self.family.arguments, **options}
        self._begin()

    @torch._disable_dynamo
    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        make, given, state = self.__reduce__()
        memo[id(self)] = made = make(*given)
        made.__setstate__(copy.deepcopy(state, memo))
        return made

    def __reduce__(self) -> Any:
        from .classes import revive  # which makes its classes of this one

        if type(self).__module__ != "steepest":  # a subclass of the user's
            return copyreg.__newobj__, (type(self),), self.__getstate__()  # type: ignore[attr-defined]
        return revive, (self.family.members[0].name, self._called), self.__getstate__()


def _after_fork() -> None:
    for optimizer in list(_alive):
        if optimizer._lock.acquire(blocking=False):
            optimizer._lock.release()
        else:  # by a thread in the middle of a step, which does not live in the child
            del optimizer._lock
            optimizer._begin()
    for kind in (Family, Program):
        for found in vars(kind).values():
            if hasattr(found, "lock"):  # before Python 3.12 a cached_property has one
                found.lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
