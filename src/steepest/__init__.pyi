# written by scripts/stub.py --write
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, overload

from torch import Tensor, nn
from torch.optim import LBFGS as LBFGS
from torch.optim.optimizer import ParamsT

from . import check as check
from . import full_batch as full_batch
from . import oracles as oracles
from . import race as race
from . import schedules as schedules
from . import strategies as strategies
from .averaged import AveragedOptimizer as AveragedOptimizer
from .conversion import convert as convert
from .definition import Rule as Rule
from .groups import param_groups as param_groups
from .shared import SharedOptimizer as SharedOptimizer
from .shell import RuleOptimizer as RuleOptimizer
from .wrappers import Lookahead as Lookahead
from .wrappers import SAM as SAM

__version__: str
__all__: list[str]
rules: dict[str, Rule]

@overload
def rule(function: Callable[..., Any]) -> Rule: ...
@overload
def rule(
    *,
    keys: Mapping[str, str] | None = None,
    limits: Mapping[str, str | tuple[str, str]] | None = None,
    search: Mapping[str, tuple[float, float]] | None = None,
    decay: Literal["coupled", "decoupled"] = "decoupled",
    counts: bool = True,
    forgets: Iterable[str] = (),
    sparse: Literal["", "rows", "dense"] = "",
    shapes: Mapping[str, str] | None = None,
    called: str = "",
    switches: Mapping[str, str] | None = None,
    means: Mapping[str, tuple[Any, ...]] | None = None,
    units: Mapping[str, str] | None = None,
    excused: Mapping[str, str] | None = None,
    includes: Mapping[str, tuple[str, str]] | None = None,
    clocks: Mapping[str, Any] | None = None,
) -> Callable[[Callable[..., Any]], Rule]: ...
@overload
def optimizer(  # pyright: ignore[reportOverlappingOverload]
    rule: Literal["lbfgs", "LBFGS"], params: ParamsT | nn.Module, **hyper: Any
) -> LBFGS: ...
@overload
def optimizer(rule: str | Rule, params: ParamsT | nn.Module, **hyper: Any) -> RuleOptimizer: ...

class SGD(RuleOptimizer):
    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.001,
        momentum: float | Tensor = 0,
        dampening: float | Tensor = 0,
        weight_decay: float | Tensor = 0,
        nesterov: bool = False,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
        *,
        rounding: Literal["stochastic", "kahan"] | None = None,
        seed: int = 0,
        cautious: bool = False,
        clip_norm: float | Tensor | None = None,
        backend: Literal["cpu", "foreach", "eager"] | None = None,
    ) -> None: ...

class ASGD(RuleOptimizer):
    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.01,
        lambd: float | Tensor = 0.0001,
        alpha: float | Tensor = 0.75,
        t0: float | Tensor = 1000000.0,
        weight_decay: float | Tensor = 0,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        capturable: bool | None = False,
        *,
        rounding: Literal["stochastic", "kahan"] | None = None,
        seed: int = 0,
        cautious: bool = False,
        clip_norm: float | Tensor | None = None,
        backend: Literal["cpu", "foreach", "eager"] | None = None,
    ) -> None: ...

class Rprop(RuleOptimizer):
    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.01,
        etas: Sequence[float | Tensor] = (0.5, 1.2),
        step_sizes: Sequence[float | Tensor] = (1e-06, 50),
        capturable: bool | None = False,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        *,
        rounding: Literal["stochastic", "kahan"] | None = None,
        seed: int = 0,
        cautious: bool = False,
        clip_norm: float | Tensor | None = None,
        backend: Literal["cpu", "foreach", "eager"] | None = None,
    ) -> None: ...

class Adagrad(SharedOptimizer):
    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.01,
        lr_decay: float | Tensor = 0,
        weight_decay: float | Tensor = 0,
        initial_accumulator_value: float | Tensor = 0,
        eps: float | Tensor = 1e-10,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        *,
        rounding: Literal["stochastic", "kahan"] | None = None,
        seed: int = 0,
        cautious: bool = False,
        clip_norm: float | Tensor | None = None,
        backend: Literal["cpu", "foreach", "eager"] | None = None,
    ) -> None: ...

class Adadelta(RuleOptimizer):
    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1.0,
        rho: float | Tensor = 0.9,
        eps: float | Tensor = 1e-06,
        weight_decay: float | Tensor = 0,
        foreach: bool | None = None,
        capturable: bool | None = False,
        maximize: bool = False,
        differentiable: bool = False,
        *,
        rounding: Literal["stochastic", "kahan"] | None = None,
        seed: int = 0,
        cautious: bool = False,
        clip_norm: float | Tensor | None = None,
        backend: Literal["cpu", "foreach", "eager"] | None = None,
    ) -> None: ...

class RMSprop(RuleOptimizer):
    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.01,
        alpha: float | Tensor = 0.99,
        eps: float | Tensor = 1e-08,
        weight_decay: float | Tensor = 0,
        momentum: float | Tensor = 0,
        centered: bool = False,
        capturable: bool | None = False,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        *,
        rounding: Literal["stochastic", "kahan"] | None = None,
        seed: int = 0,
        cautious: bool = False,
        clip_norm: float | Tensor | None = None,
        backend: Literal["cpu", "foreach", "eager"] | None = None,
    ) -> None: ...

class Adam(RuleOptimizer):
    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.001,
        betas: Sequence[float | Tensor] = (0.9, 0.999),
        eps: float | Tensor = 1e-08,
        weight_decay: float | Tensor = 0,
        amsgrad: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool | None = False,
        differentiable: bool = False,
        fused: bool | None = None,
        decoupled_weight_decay: bool = False,
        *,
        rounding: Literal["stochastic", "kahan"] | None = None,
        seed: int = 0,
        cautious: bool = False,
        clip_norm: float | Tensor | None = None,
        backend: Literal["cpu", "foreach", "eager"] | None = None,
    ) -> None: ...

class AdamW(RuleOptimizer):
    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.001,
        betas: Sequence[float | Tensor] = (0.9, 0.999),
        eps: float | Tensor = 1e-08,
        weight_decay: float | Tensor = 0.01,
        amsgrad: bool = False,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool | None = False,
        differentiable: bool = False,
        fused: bool | None = None,
        decoupled_weight_decay: bool = True,
        *,
        rounding: Literal["stochastic", "kahan"] | None = None,
        seed: int = 0,
        cautious: bool = False,
        clip_norm: float | Tensor | None = None,
        backend: Literal["cpu", "foreach", "eager"] | None = None,
    ) -> None: ...

class Adamax(RuleOptimizer):
    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.002,
        betas: Sequence[float | Tensor] = (0.9, 0.999),
        eps: float | Tensor = 1e-08,
        weight_decay: float | Tensor = 0,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        capturable: bool | None = False,
        *,
        rounding: Literal["stochastic", "kahan"] | None = None,
        seed: int = 0,
        cautious: bool = False,
        clip_norm: float | Tensor | None = None,
        backend: Literal["cpu", "foreach", "eager"] | None = None,
    ) -> None: ...

class NAdam(RuleOptimizer):
    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.002,
        betas: Sequence[float | Tensor] = (0.9, 0.999),
        eps: float | Tensor = 1e-08,
        weight_decay: float | Tensor = 0,
        momentum_decay: float | Tensor = 0.004,
        decoupled_weight_decay: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool | None = False,
        differentiable: bool = False,
        *,
        rounding: Literal["stochastic", "kahan"] | None = None,
        seed: int = 0,
        cautious: bool = False,
        clip_norm: float | Tensor | None = None,
        backend: Literal["cpu", "foreach", "eager"] | None = None,
    ) -> None: ...

class RAdam(RuleOptimizer):
    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.001,
        betas: Sequence[float | Tensor] = (0.9, 0.999),
        eps: float | Tensor = 1e-08,
        weight_decay: float | Tensor = 0,
        decoupled_weight_decay: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool | None = False,
        differentiable: bool = False,
        *,
        rounding: Literal["stochastic", "kahan"] | None = None,
        seed: int = 0,
        cautious: bool = False,
        clip_norm: float | Tensor | None = None,
        backend: Literal["cpu", "foreach", "eager"] | None = None,
    ) -> None: ...

class SparseAdam(RuleOptimizer):
    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.001,
        betas: Sequence[float | Tensor] = (0.9, 0.999),
        eps: float | Tensor = 1e-08,
        maximize: bool = False,
        differentiable: bool = False,
        *,
        rounding: Literal["stochastic", "kahan"] | None = None,
        seed: int = 0,
        cautious: bool = False,
        clip_norm: float | Tensor | None = None,
        backend: Literal["cpu", "foreach", "eager"] | None = None,
    ) -> None: ...

class Adafactor(RuleOptimizer):
    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.01,
        beta2_decay: float | Tensor = -0.8,
        eps: Sequence[float | Tensor | None] = (None, 0.001),
        d: float | Tensor = 1.0,
        weight_decay: float | Tensor = 0.0,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        *,
        rounding: Literal["stochastic", "kahan"] | None = None,
        seed: int = 0,
        cautious: bool = False,
        clip_norm: float | Tensor | None = None,
        backend: Literal["cpu", "foreach", "eager"] | None = None,
    ) -> None: ...

class Muon(RuleOptimizer):
    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.001,
        weight_decay: float | Tensor = 0.1,
        momentum: float | Tensor = 0.95,
        nesterov: bool = True,
        ns_coefficients: Sequence[float | Tensor] = (3.4445, -4.775, 2.0315),
        eps: float | Tensor = 1e-07,
        ns_steps: float | Tensor = 5,
        adjust_lr_fn: Literal["original", "match_rms_adamw"] | None = None,
        adamw_lr: float | Tensor = 0.0003,
        betas: Sequence[float | Tensor] = (0.9, 0.95),
        adamw_eps: float | Tensor = 1e-10,
        differentiable: bool = False,
        *,
        rounding: Literal["stochastic", "kahan"] | None = None,
        seed: int = 0,
        cautious: bool = False,
        clip_norm: float | Tensor | None = None,
        backend: Literal["cpu", "foreach", "eager"] | None = None,
    ) -> None: ...

class AdaBelief(RuleOptimizer):
    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.001,
        betas: Sequence[float | Tensor] = (0.9, 0.999),
        eps: float | Tensor = 1e-16,
        weight_decay: float | Tensor = 0.0,
        amsgrad: bool = False,
        weight_decouple: bool = True,
        fixed_decay: bool = False,
        rectify: bool = True,
        degenerated_to_sgd: bool = True,
        print_change_log: bool | None = True,
        maximize: bool = False,
        differentiable: bool = False,
        *,
        rounding: Literal["stochastic", "kahan"] | None = None,
        seed: int = 0,
        cautious: bool = False,
        clip_norm: float | Tensor | None = None,
        backend: Literal["cpu", "foreach", "eager"] | None = None,
    ) -> None: ...

class AdaBound(RuleOptimizer):
    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.001,
        betas: Sequence[float | Tensor] = (0.9, 0.999),
        final_lr: float | Tensor = 0.1,
        gamma: float | Tensor = 0.001,
        eps: float | Tensor = 1e-08,
        weight_decay: float | Tensor = 0.0,
        amsbound: bool = False,
        maximize: bool = False,
        differentiable: bool = False,
        *,
        rounding: Literal["stochastic", "kahan"] | None = None,
        seed: int = 0,
        cautious: bool = False,
        clip_norm: float | Tensor | None = None,
        backend: Literal["cpu", "foreach", "eager"] | None = None,
    ) -> None: ...

class ADOPT(RuleOptimizer):
    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.001,
        betas: Sequence[float | Tensor] = (0.9, 0.9999),
        eps: float | Tensor = 1e-06,
        clip: bool = True,
        weight_decay: float | Tensor = 0.0,
        decouple: bool = False,
        maximize: bool = False,
        differentiable: bool = False,
        *,
        rounding: Literal["stochastic", "kahan"] | None = None,
        seed: int = 0,
        cautious: bool = False,
        clip_norm: float | Tensor | None = None,
        backend: Literal["cpu", "foreach", "eager"] | None = None,
    ) -> None: ...

class Momentum(RuleOptimizer):
    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.001,
        momentum: float | Tensor = 0.9,
        dampening: float | Tensor = 0.0,
        weight_decay: float | Tensor = 0.0,
        maximize: bool = False,
        differentiable: bool = False,
        *,
        rounding: Literal["stochastic", "kahan"] | None = None,
        seed: int = 0,
        cautious: bool = False,
        clip_norm: float | Tensor | None = None,
        backend: Literal["cpu", "foreach", "eager"] | None = None,
    ) -> None: ...

class Nesterov(RuleOptimizer):
    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.001,
        momentum: float | Tensor = 0.9,
        dampening: float | Tensor = 0.0,
        weight_decay: float | Tensor = 0.0,
        maximize: bool = False,
        differentiable: bool = False,
        *,
        rounding: Literal["stochastic", "kahan"] | None = None,
        seed: int = 0,
        cautious: bool = False,
        clip_norm: float | Tensor | None = None,
        backend: Literal["cpu", "foreach", "eager"] | None = None,
    ) -> None: ...

class ClassicalMomentum(RuleOptimizer):
    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.001,
        momentum: float | Tensor = 0.9,
        weight_decay: float | Tensor = 0.0,
        maximize: bool = False,
        differentiable: bool = False,
        *,
        rounding: Literal["stochastic", "kahan"] | None = None,
        seed: int = 0,
        cautious: bool = False,
        clip_norm: float | Tensor | None = None,
        backend: Literal["cpu", "foreach", "eager"] | None = None,
    ) -> None: ...

class ClassicalNesterov(RuleOptimizer):
    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.001,
        momentum: float | Tensor = 0.9,
        weight_decay: float | Tensor = 0.0,
        maximize: bool = False,
        differentiable: bool = False,
        *,
        rounding: Literal["stochastic", "kahan"] | None = None,
        seed: int = 0,
        cautious: bool = False,
        clip_norm: float | Tensor | None = None,
        backend: Literal["cpu", "foreach", "eager"] | None = None,
    ) -> None: ...

class AMSGrad(RuleOptimizer):
    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.001,
        betas: Sequence[float | Tensor] = (0.9, 0.999),
        eps: float | Tensor = 1e-08,
        weight_decay: float | Tensor = 0.0,
        maximize: bool = False,
        differentiable: bool = False,
        *,
        rounding: Literal["stochastic", "kahan"] | None = None,
        seed: int = 0,
        cautious: bool = False,
        clip_norm: float | Tensor | None = None,
        backend: Literal["cpu", "foreach", "eager"] | None = None,
    ) -> None: ...

class EAdam(RuleOptimizer):
    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.001,
        betas: Sequence[float | Tensor] = (0.9, 0.999),
        eps: float | Tensor = 1e-08,
        weight_decay: float | Tensor = 0.0,
        maximize: bool = False,
        differentiable: bool = False,
        *,
        rounding: Literal["stochastic", "kahan"] | None = None,
        seed: int = 0,
        cautious: bool = False,
        clip_norm: float | Tensor | None = None,
        backend: Literal["cpu", "foreach", "eager"] | None = None,
    ) -> None: ...

class Yogi(RuleOptimizer):
    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.01,
        betas: Sequence[float | Tensor] = (0.9, 0.999),
        eps: float | Tensor = 0.001,
        initial_accumulator_value: float | Tensor = 1e-06,
        weight_decay: float | Tensor = 0.0,
        maximize: bool = False,
        differentiable: bool = False,
        *,
        rounding: Literal["stochastic", "kahan"] | None = None,
        seed: int = 0,
        cautious: bool = False,
        clip_norm: float | Tensor | None = None,
        backend: Literal["cpu", "foreach", "eager"] | None = None,
    ) -> None: ...

class Signum(RuleOptimizer):
    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.0001,
        momentum: float | Tensor = 0.9,
        weight_decay: float | Tensor = 0.0,
        maximize: bool = False,
        differentiable: bool = False,
        *,
        rounding: Literal["stochastic", "kahan"] | None = None,
        seed: int = 0,
        cautious: bool = False,
        clip_norm: float | Tensor | None = None,
        backend: Literal["cpu", "foreach", "eager"] | None = None,
    ) -> None: ...

class Lion(RuleOptimizer):
    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.0001,
        betas: Sequence[float | Tensor] = (0.9, 0.99),
        weight_decay: float | Tensor = 0.0,
        maximize: bool = False,
        differentiable: bool = False,
        *,
        rounding: Literal["stochastic", "kahan"] | None = None,
        seed: int = 0,
        cautious: bool = False,
        clip_norm: float | Tensor | None = None,
        backend: Literal["cpu", "foreach", "eager"] | None = None,
    ) -> None: ...

class Grams(RuleOptimizer):
    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.001,
        betas: Sequence[float | Tensor] = (0.9, 0.999),
        eps: float | Tensor = 1e-06,
        weight_decay: float | Tensor = 0.0,
        maximize: bool = False,
        differentiable: bool = False,
        *,
        rounding: Literal["stochastic", "kahan"] | None = None,
        seed: int = 0,
        cautious: bool = False,
        clip_norm: float | Tensor | None = None,
        backend: Literal["cpu", "foreach", "eager"] | None = None,
    ) -> None: ...

class AMSBound(RuleOptimizer):
    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.001,
        betas: Sequence[float | Tensor] = (0.9, 0.999),
        final_lr: float | Tensor = 0.1,
        gamma: float | Tensor = 0.001,
        eps: float | Tensor = 1e-08,
        weight_decay: float | Tensor = 0.0,
        maximize: bool = False,
        differentiable: bool = False,
        *,
        rounding: Literal["stochastic", "kahan"] | None = None,
        seed: int = 0,
        cautious: bool = False,
        clip_norm: float | Tensor | None = None,
        backend: Literal["cpu", "foreach", "eager"] | None = None,
    ) -> None: ...

class MSVAG(RuleOptimizer):
    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.01,
        beta: float | Tensor = 0.9,
        weight_decay: float | Tensor = 0.0,
        maximize: bool = False,
        differentiable: bool = False,
        *,
        rounding: Literal["stochastic", "kahan"] | None = None,
        seed: int = 0,
        cautious: bool = False,
        clip_norm: float | Tensor | None = None,
        backend: Literal["cpu", "foreach", "eager"] | None = None,
    ) -> None: ...

class Adan(RuleOptimizer):
    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.001,
        betas: Sequence[float | Tensor] = (0.98, 0.92, 0.99),
        eps: float | Tensor = 1e-08,
        weight_decay: float | Tensor = 0.0,
        no_prox: bool = False,
        maximize: bool = False,
        differentiable: bool = False,
        *,
        rounding: Literal["stochastic", "kahan"] | None = None,
        seed: int = 0,
        cautious: bool = False,
        clip_norm: float | Tensor | None = None,
        backend: Literal["cpu", "foreach", "eager"] | None = None,
    ) -> None: ...

class AdEMAMix(RuleOptimizer):
    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.001,
        betas: Sequence[float | Tensor] = (0.9, 0.999, 0.9999),
        alpha: float | Tensor = 2.0,
        beta3_warmup: float | Tensor = 0.0,
        alpha_warmup: float | Tensor = 0.0,
        eps: float | Tensor = 1e-08,
        weight_decay: float | Tensor = 0.0,
        maximize: bool = False,
        differentiable: bool = False,
        *,
        rounding: Literal["stochastic", "kahan"] | None = None,
        seed: int = 0,
        cautious: bool = False,
        clip_norm: float | Tensor | None = None,
        backend: Literal["cpu", "foreach", "eager"] | None = None,
    ) -> None: ...

class SGDScheduleFree(AveragedOptimizer):
    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1.0,
        momentum: float | Tensor = 0.9,
        warmup_steps: float | Tensor = 0.0,
        r: float | Tensor = 0.0,
        weight_lr_power: float | Tensor = 2.0,
        weight_decay: float | Tensor = 0.0,
        maximize: bool = False,
        differentiable: bool = False,
        *,
        rounding: Literal["stochastic", "kahan"] | None = None,
        seed: int = 0,
        cautious: bool = False,
        clip_norm: float | Tensor | None = None,
        backend: Literal["cpu", "foreach", "eager"] | None = None,
    ) -> None: ...

class AdamWScheduleFree(AveragedOptimizer):
    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.0025,
        betas: Sequence[float | Tensor] = (0.9, 0.999),
        eps: float | Tensor = 1e-08,
        weight_decay: float | Tensor = 0.0,
        warmup_steps: float | Tensor = 0.0,
        r: float | Tensor = 0.0,
        weight_lr_power: float | Tensor = 2.0,
        maximize: bool = False,
        differentiable: bool = False,
        *,
        rounding: Literal["stochastic", "kahan"] | None = None,
        seed: int = 0,
        cautious: bool = False,
        clip_norm: float | Tensor | None = None,
        backend: Literal["cpu", "foreach", "eager"] | None = None,
    ) -> None: ...

class Fromage(RuleOptimizer):
    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.01,
        weight_decay: float | Tensor = 0.0,
        maximize: bool = False,
        differentiable: bool = False,
        *,
        rounding: Literal["stochastic", "kahan"] | None = None,
        seed: int = 0,
        cautious: bool = False,
        clip_norm: float | Tensor | None = None,
        backend: Literal["cpu", "foreach", "eager"] | None = None,
    ) -> None: ...

class LARS(RuleOptimizer):
    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1.0,
        momentum: float | Tensor = 0.9,
        trust_coefficient: float | Tensor = 0.001,
        weight_decay: float | Tensor = 0.0,
        maximize: bool = False,
        differentiable: bool = False,
        *,
        rounding: Literal["stochastic", "kahan"] | None = None,
        seed: int = 0,
        cautious: bool = False,
        clip_norm: float | Tensor | None = None,
        backend: Literal["cpu", "foreach", "eager"] | None = None,
    ) -> None: ...

class LAMB(RuleOptimizer):
    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.001,
        betas: Sequence[float | Tensor] = (0.9, 0.999),
        eps: float | Tensor = 1e-06,
        weight_decay: float | Tensor = 0.0,
        maximize: bool = False,
        differentiable: bool = False,
        *,
        rounding: Literal["stochastic", "kahan"] | None = None,
        seed: int = 0,
        cautious: bool = False,
        clip_norm: float | Tensor | None = None,
        backend: Literal["cpu", "foreach", "eager"] | None = None,
    ) -> None: ...

class NovoGrad(RuleOptimizer):
    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.01,
        betas: Sequence[float | Tensor] = (0.95, 0.98),
        eps: float | Tensor = 1e-08,
        weight_decay: float | Tensor = 0.0,
        maximize: bool = False,
        differentiable: bool = False,
        *,
        rounding: Literal["stochastic", "kahan"] | None = None,
        seed: int = 0,
        cautious: bool = False,
        clip_norm: float | Tensor | None = None,
        backend: Literal["cpu", "foreach", "eager"] | None = None,
    ) -> None: ...

class MARS(RuleOptimizer):
    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.003,
        betas: Sequence[float | Tensor] = (0.95, 0.99),
        eps: float | Tensor = 1e-08,
        gamma: float | Tensor = 0.025,
        weight_decay: float | Tensor = 0.0,
        maximize: bool = False,
        differentiable: bool = False,
        *,
        rounding: Literal["stochastic", "kahan"] | None = None,
        seed: int = 0,
        cautious: bool = False,
        clip_norm: float | Tensor | None = None,
        backend: Literal["cpu", "foreach", "eager"] | None = None,
    ) -> None: ...

class SWATS(RuleOptimizer):
    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.001,
        betas: Sequence[float | Tensor] = (0.9, 0.999),
        eps: float | Tensor = 1e-08,
        settled: float | Tensor = 1e-09,
        weight_decay: float | Tensor = 0.0,
        maximize: bool = False,
        differentiable: bool = False,
        *,
        rounding: Literal["stochastic", "kahan"] | None = None,
        seed: int = 0,
        cautious: bool = False,
        clip_norm: float | Tensor | None = None,
        backend: Literal["cpu", "foreach", "eager"] | None = None,
    ) -> None: ...

class Prodigy(RuleOptimizer):
    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1.0,
        betas: Sequence[float | Tensor] = (0.9, 0.999),
        eps: float | Tensor = 1e-08,
        d0: float | Tensor = 1e-06,
        d_coef: float | Tensor = 1.0,
        growth_rate: float | Tensor = float("inf"),
        weight_decay: float | Tensor = 0.0,
        maximize: bool = False,
        differentiable: bool = False,
        *,
        rounding: Literal["stochastic", "kahan"] | None = None,
        seed: int = 0,
        cautious: bool = False,
        clip_norm: float | Tensor | None = None,
        backend: Literal["cpu", "foreach", "eager"] | None = None,
    ) -> None: ...

class YellowFin(RuleOptimizer):
    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1.0,
        beta: float | Tensor = 0.999,
        weight_decay: float | Tensor = 0.0,
        maximize: bool = False,
        differentiable: bool = False,
        *,
        rounding: Literal["stochastic", "kahan"] | None = None,
        seed: int = 0,
        cautious: bool = False,
        clip_norm: float | Tensor | None = None,
        backend: Literal["cpu", "foreach", "eager"] | None = None,
    ) -> None: ...

class SOAP(RuleOptimizer):
    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.003,
        betas: Sequence[float | Tensor] = (0.95, 0.95),
        eps: float | Tensor = 1e-08,
        precondition_frequency: float | Tensor = 10,
        weight_decay: float | Tensor = 0.01,
        maximize: bool = False,
        differentiable: bool = False,
        *,
        rounding: Literal["stochastic", "kahan"] | None = None,
        seed: int = 0,
        cautious: bool = False,
        clip_norm: float | Tensor | None = None,
        backend: Literal["cpu", "foreach", "eager"] | None = None,
    ) -> None: ...
