"""What each argument of a class means: for `help`, for the stub and for the pages."""

from __future__ import annotations

from typing import Any

from .definition import Rule
from .family import Family
from .options import PAIRS, STORAGE, WITHOUT_EFFECT

_RATES = {
    "a length": "learning rate: about how far a step moves an element, in units of the parameter",
    "a share of the gradient": "learning rate: the share of the gradient that a step moves by",
}
_DECAYS = {
    "coupled": "L2 decay: this times the parameter is added to the gradient",
    "decoupled": "decay: a step shrinks the parameter by lr times this share",
}
_TEXTS = {
    "lr": "learning rate: multiplies the step",
    "betas": "memories of the running averages, each the share of the old value at a step",
    "beta": "memory of the running averages: the share of the old value at a step",
    "eps": "keeps a denominator away from 0",
    "momentum": "memory of past steps: the share that is kept at a step; 0 keeps none",
    "dampening": "the share of a gradient that the momentum buffer leaves out",
    "nesterov": "True: look ahead along the momentum",
    "maximize": "True: go uphill",
    "differentiable": "True: autograd goes through the step, which is slower",
    "amsgrad": "True: use the largest second moment so far",
    "amsbound": "True: use the largest second moment so far",
    "centered": "True: subtract the squared average of the gradient from the second moment",
    "decoupled_weight_decay": "True: weight decay shrinks the parameter, not through the gradient",
    "weight_decouple": "True: weight decay shrinks the parameter, not through the gradient",
    "decouple": "True: weight decay shrinks the parameter, not through the gradient",
    "fixed_decay": "True: the decoupled decay is not multiplied by lr",
    "rectify": "True: warm up as RAdam does",
    "degenerated_to_sgd": "True: a step that is not rectified yet is one of momentum, else none",
    "initial_accumulator_value": "where the sum or average of squared gradients starts",
    "lr_decay": "lr is divided by 1 + (t - 1) times this at step t",
    "rho": "memory of both averages of squares: the share of the old value at a step",
    "momentum_decay": "how fast the momentum warms up",
    "final_lr": "the rate of SGD at the end, at the lr of the start",
    "gamma": "how fast the bounds close in: halfway after about 1 / gamma steps",
    "lambd": "shrinks the parameter by lr times this at a step",
    "alpha": "memory of the average of squared gradients: the share of the old value at a step",
    "t0": "the step at which averaging begins",
    "etas": "factors of an element's step where the gradient's sign turns, and where it stays",
    "step_sizes": "the least and the largest step of an element, in units of the parameter",
    "beta2_decay": "power of t by which the second moment's memory grows",
    "d": "the largest root mean square of an update, before lr",
    "ns_coefficients": "of the polynomial of the Newton-Schulz iteration",
    "ns_steps": "iterations of Newton-Schulz",
    "adjust_lr_fn": '"original", "match_rms_adamw" or None (original): how lr follows the shape',
    "adamw_lr": "learning rate of parameters that are no matrix, which AdamW steps",
    "adamw_eps": "eps of parameters that are no matrix",
    "clip": "True: hold a divided gradient within (t - 1)**0.25",
    "no_prox": "True: decay before the step, False: by a proximal step after it",
    "beta3_warmup": "steps over which the slow average's memory grows; 0: none",
    "alpha_warmup": "steps over which the slow average's weight grows; 0: none",
    "warmup_steps": "steps over which lr rises from near 0; 0: none",
    "r": "power of t in the weights of the average",
    "weight_lr_power": "power of the largest lr so far in the weights of the average",
    "trust_coefficient": "the rate of a layer as a share of its norm over the gradient's",
    "settled": "how close a rate must be to its average for the switch to SGD",
    "d0": "the first guess of the distance to the solution, in units of the parameter",
    "d_coef": "multiplies the estimated distance",
    "growth_rate": "the largest factor by which the estimate grows at a step",
    "precondition_frequency": "steps between two refinements of the eigenvectors",
    "rounding": 'how a 16-bit parameter is stored: None (to the nearest), "stochastic" or "kahan"',
    "seed": "of the stochastic rounding",
    "cautious": "True: drop the components of the step that do not oppose the current gradient",
    "clip_norm": "the largest norm of a group's gradients; None: no limit",
    "backend": '"cpu", "foreach" or "eager"; None: the fastest for each tensor',
}
# where a rule means something else by the name
_OTHERS = {
    ("asgd", "alpha"): "power by which lr falls",
    ("ademamix", "alpha"): "the weight of the slow average",
    ("adafactor", "eps"): "the floors of a squared gradient's root (None: the dtype's own "
    "precision) and of the parameter's size",
    ("mars", "gamma"): "the weight of the gradient's change in the gradient that is used",
    ("muon", "momentum"): "memory of the average of gradients: the share of the old value",
}


def meaning(rule: Rule, name: str) -> str:
    """What an argument means to a rule, in a few words; "" where nothing is known of it."""
    if other := _OTHERS.get((rule.name, name)):
        return other
    if name == "lr" and rule.units.get("lr") in _RATES:
        return _RATES[rule.units["lr"]]
    if name == "weight_decay":
        return _DECAYS[rule.decay] if "wd" not in rule.defaults else "decay, as in the formula"
    return _TEXTS.get(name, "")


def allowed(rule: Rule, name: str) -> str:
    """The interval that an argument must lie in; "" where it has none."""
    parts = [n for n, (key, _) in PAIRS.items() if key == name and n in rule.defaults] or [name]
    every = {"weight_decay": ("[0, inf)", ""), "clip_norm": ("(0, inf]", ""), **rule.limits}
    return " and ".join(dict.fromkeys(every[n][0] for n in parts if n in every))


def listed(family: Family) -> str:
    """A paragraph for a docstring: each argument, its default, its limits and its meaning."""
    rule, lines = family.members[0], ["Arguments", "---------"]
    every: dict[str, Any] = {**family.arguments, **STORAGE, "backend": None}
    for name, default in every.items():
        if name in WITHOUT_EFFECT:
            continue
        bounds = "".join(f", in {b}" for b in [allowed(rule, name)] if b)
        lines.append(f"{name} = {default!r}{bounds}")
        if words := meaning(rule, name):
            lines.append(f"    {words}")
    lines.append(f"{', '.join(n for n in WITHOUT_EFFECT)}: accepted without effect")
    return "\n".join(lines)
