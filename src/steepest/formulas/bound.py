"""AdaBound and AMSBound: Adam at the start, SGD with momentum at the end."""

from ..definition import Clock, rule
from ..ops import captured, maximum, minimum, sqrt, where
from .adam import ADAM_KEYS, LR
from .meanings import AVERAGES, LARGEST, LENGTH
from .scaled import average


def halfway(gamma):
    """The step at which the bounds are halfway to final_lr."""
    return 1 / gamma if gamma else float("inf")


_ABOUT = {
    "decay": "coupled",
    "limits": {"gamma": "[0, 1)", "final_lr": "[0, inf)"},
    "units": LENGTH,
    "clocks": {"gamma": Clock("is halfway to SGD", halfway, lambda step: 1 / step)},
}
_SEARCH = {**LR, "final_lr": (1e-3, 1e1)}


def clip_rate(rate, t, lr, base_lr, final_lr, gamma):
    """The rate of each coordinate, clipped to two bounds that close in on final_lr."""
    # a schedule of lr scales both bounds, except in a group that was made with lr=0
    final = final_lr * where(base_lr > 0, lr / base_lr, where(lr > 0, 1, 0))
    lower = final * (1 - 1 / (gamma * t + 1))
    upper = where(final > 0, final * (1 + 1 / (gamma * t)), 0)
    return minimum(maximum(rate, lower), upper)


@rule(
    called="AdaBound",
    keys=ADAM_KEYS,
    search=_SEARCH,
    means=AVERAGES,
    **_ABOUT,
    includes={"adam": ("gamma", "gamma=0")},
)
def adabound(
    p,
    g,
    m,
    v,
    *,
    t,
    lr=1e-3,
    beta1=0.9,
    beta2=0.999,
    final_lr=0.1,
    gamma=1e-3,
    eps=1e-8,
    base_lr=captured("lr"),
):
    """AdaBound. Luo et al. 2019, arXiv:1902.09843, algorithm 2.

    Adam whose rate for each coordinate is clipped between bounds that start at (0, inf) and end at
    final_lr. It becomes SGD on an averaged gradient, which equals heavy-ball SGD at the rate
    final_lr * (1 - beta1). Use it where SGD ends well but starts slowly; not for GANs.
    Differs from the paper, as the package adabound 0.0.5 does: the bias correction is inside the
    clipped rate, the rate has no factor 1/sqrt(t), and a schedule of lr scales the bounds. Differs
    from the package: each group saves its first lr as base_lr, so groups added later are stepped,
    and a resumed run keeps its bounds. If lr is 0 at construction, the bounds are those of the
    paper, unscaled. With gamma=0 the bounds never close, and the rule is Adam.
    """
    m = average(beta1, m, g)
    v = beta2 * v + (1 - beta2) * g**2
    rate = lr * sqrt(1 - beta2**t) / (1 - beta1**t) / (sqrt(v) + eps)
    return p - clip_rate(rate, t, lr, base_lr, final_lr, gamma) * m, m, v


@rule(
    called="AMSBound",
    keys={**ADAM_KEYS, "v_max": "max_exp_avg_sq"},
    search=_SEARCH,
    means={**AVERAGES, "v_max": (LARGEST, "beta2")},
    **_ABOUT,
    includes={"amsgrad": ("gamma", "gamma=0")},
)
def amsbound(
    p,
    g,
    m,
    v,
    v_max,
    *,
    t,
    lr=1e-3,
    beta1=0.9,
    beta2=0.999,
    final_lr=0.1,
    gamma=1e-3,
    eps=1e-8,
    base_lr=captured("lr"),
):
    """AMSBound. Luo et al. 2019, arXiv:1902.09843, algorithm 3.

    AdaBound that divides by the root of the largest second moment up to now, like AMSGrad. Use it
    where AdaBound's rates should only fall.
    Differs from the paper and from the package in the points in which `adabound` differs: the bias
    correction is inside the clipped rate, the rate has no factor 1/sqrt(t), a schedule of lr scales
    the bounds, and each group saves its first lr as base_lr. The maximum of the second moments is
    taken before the bias correction.
    """
    m = average(beta1, m, g)
    v = beta2 * v + (1 - beta2) * g**2
    v_max = maximum(v_max, v)
    rate = lr * sqrt(1 - beta2**t) / (1 - beta1**t) / (sqrt(v_max) + eps)
    return p - clip_rate(rate, t, lr, base_lr, final_lr, gamma) * m, m, v, v_max
