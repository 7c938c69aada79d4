"""The meaning of each argument of a class, for `help`, __init__.pyi and docs/optimizers."""

from __future__ import annotations

from typing import Any

from .definition import Rule
from .family import Family
from .options import PAIRS, STORAGE, WITHOUT_EFFECT

_RATES = {
    "a length": "learning rate: about how far a step moves an element, in units of the parameter",
    "a share of the gradient": "learning rate: a step moves by about lr times the gradient",
}
_DECAYS = {
    "coupled": "L2 penalty: adds weight_decay times the parameter to the gradient",
    "decoupled": "decoupled decay: each step multiplies the parameter by 1 - lr * weight_decay",
}
_TEXTS = {
    "lr": "learning rate: multiplies the step",
    "betas": "decay rates of the running averages: the share of the old value kept at each step",
    "beta": "decay rate of the running averages: the share of the old value kept at each step",
    "eps": "keeps a denominator away from 0",
    "momentum": "share of the momentum buffer that is kept at each step; 0: no momentum",
    "dampening": "the share of each new gradient that is not added to the momentum buffer",
    "nesterov": "True: Nesterov momentum",
    "maximize": "True: maximize the objective instead of minimizing it",
    "differentiable": "True: autograd can go through the step, which is slower",
    "amsgrad": "True: use the running maximum of the second moment",
    "amsbound": "True: use the running maximum of the second moment",
    "centered": "True: subtract the squared average of the gradient from the second moment",
    "decoupled_weight_decay": "True: weight decay acts on the parameter, not on the gradient",
    "weight_decouple": "True: weight decay acts on the parameter, not on the gradient",
    "decouple": "True: weight decay acts on the parameter, not on the gradient",
    "fixed_decay": "True: the decoupled decay is not multiplied by lr",
    "rectify": "True: warm up as RAdam does",
    "degenerated_to_sgd": "True: SGD with momentum replaces a step that cannot be rectified; "
    "False: no step does",
    "initial_accumulator_value": "the initial value of the sum or average of squared gradients",
    "lr_decay": "at step t, lr is divided by 1 + (t - 1) * lr_decay",
    "rho": "decay rate of both averages of squares: the share of the old value kept at each step",
    "momentum_decay": "how fast the momentum warms up",
    "final_lr": "the SGD learning rate that the steps approach, if lr keeps its first value",
    "gamma": "how fast the bounds close in: halfway after about 1 / gamma steps",
    "lambd": "decay: each step multiplies the parameter by 1 - lambd * (the current rate)",
    "alpha": "decay rate of the average of squared gradients: the share kept at each step",
    "t0": "the step at which averaging begins",
    "etas": "factors of an element's step size: when the gradient's sign flips, and when it stays",
    "step_sizes": "the smallest and the largest step of an element, in units of the parameter",
    "beta2_decay": "exponent of t in the second moment's decay rate, 1 - t**beta2_decay",
    "d": "the largest root mean square of an update, before it is multiplied by lr",
    "ns_coefficients": "coefficients of the Newton-Schulz polynomial",
    "ns_steps": "number of Newton-Schulz iterations",
    "adjust_lr_fn": 'how lr depends on the shape: "original" (also for None) or "match_rms_adamw"',
    "adamw_lr": "learning rate of the parameters that are not matrices; AdamW steps them",
    "adamw_eps": "eps of the parameters that are not matrices",
    "clip": "True: clip the scaled gradient to +-(t - 1)**0.25",
    "no_prox": "True: weight decay before the step; False: as a proximal step after it",
    "beta3_warmup": "steps over which the slow average's memory grows; 0: no warm-up",
    "alpha_warmup": "steps over which the slow average's weight grows; 0: no warm-up",
    "warmup_steps": "steps over which lr rises from near 0; 0: no warm-up",
    "r": "exponent of t, in the weights of the average",
    "weight_lr_power": "exponent of the largest lr so far, in the weights of the average",
    "trust_coefficient": "factor of a layer's rate: lr * trust_coefficient * (parameter norm) / "
    "(gradient norm)",
    "settled": "switch to SGD when its estimated rate is this close to the running average",
    "d0": "first guess of the distance to the solution, in units of the parameter",
    "d_coef": "multiplies the estimated distance",
    "growth_rate": "the largest factor by which the estimate grows at a step",
    "precondition_frequency": "steps between two refinements of the eigenvectors",
    "rounding": 'how a 16-bit parameter is stored: None (to the nearest), "stochastic" or "kahan"',
    "seed": "seed of the stochastic rounding",
    "cautious": "True: drop the components of the step that do not oppose the current gradient",
    "clip_norm": "the largest norm of a group's gradients; None: no limit",
    "backend": '"cpu", "foreach" or "eager"; None: the fastest for each tensor',
}
# rules that give a name another meaning
_OTHERS = {
    ("asgd", "alpha"): "exponent with which the rate falls",
    ("ademamix", "alpha"): "the weight of the slow average",
    ("adafactor", "eps"): "the lower bounds of the root mean square gradient (None: the machine "
    "epsilon of the dtype) and of the parameter's root mean square",
    ("mars", "gamma"): "how much of the gradient's change is added to the gradient",
    ("muon", "momentum"): "decay rate of the average of gradients: the share kept at each step",
}


def meaning(rule: Rule, name: str) -> str:
    """A short description of an argument of a rule; "" if there is none."""
    if other := _OTHERS.get((rule.name, name)):
        return other
    if name == "lr" and rule.units.get("lr") in _RATES:
        return _RATES[rule.units["lr"]]
    if name == "weight_decay":
        return _DECAYS[rule.decay] if "wd" not in rule.defaults else "decay, as in the formula"
    return _TEXTS.get(name, "")


def allowed(rule: Rule, name: str) -> str:
    """The interval that an argument must lie in; "" if it has no limits."""
    parts = [n for n, (key, _) in PAIRS.items() if key == name and n in rule.defaults] or [name]
    every = {"weight_decay": ("[0, inf)", ""), "clip_norm": ("(0, inf]", ""), **rule.limits}
    return " and ".join(dict.fromkeys(every[n][0] for n in parts if n in every))


def arguments_section(family: Family) -> str:
    """The "Arguments" section of a docstring: defaults, limits and meanings."""
    rule, lines = family.members[0], ["Arguments", "---------"]
    every: dict[str, Any] = {**family.arguments, **STORAGE, "backend": None}
    for name, default in every.items():
        if name in WITHOUT_EFFECT:
            continue
        interval = allowed(rule, name)
        lines.append(f"{name} = {default!r}" + (f", in {interval}" if interval else ""))
        if description := meaning(rule, name):
            lines.append(f"    {description}")
    lines.append(f"{', '.join(WITHOUT_EFFECT)}: accepted without effect")
    return "\n".join(lines)
