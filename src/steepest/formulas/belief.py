"""AdaBelief: Adam with the second moment of the gradient's prediction error."""

from ..definition import rule
from ..ops import maximum, sqrt, where
from .adam import LARGE_EPS, LR, rectification
from .meanings import FIRST, LENGTH
from .scaled import average


@rule(
    keys={"m": "exp_avg", "s": "exp_avg_var", "s_max": "max_exp_avg_var"},
    limits={
        "beta1": (
            "(0, 1)",
            "with beta1=0 the average m is the gradient g, the belief g - m is zero and the step "
            "explodes, so use RMSprop or a beta1 such as 0.5",
        )
    },
    called="AdaBelief",
    search=LR,
    means={"m": (FIRST, "beta1")},
    units={"lr": LENGTH["lr"]},
    includes=LARGE_EPS,
)
def adabelief(
    p,
    g,
    m,
    s,
    s_max,
    *,
    t,
    lr=1e-3,
    beta1=0.9,
    beta2=0.999,
    eps=1e-16,
    rectify=True,
    degenerated_to_sgd=True,
    amsgrad=False,
):
    """AdaBelief. Zhuang et al. 2020, arXiv:2010.07468, algorithm 2.

    Adam whose second moment s is that of g - m, where m is the average gradient. A step is large if
    m predicts the gradient well, and small if not. eps is added to the stored s at every step, so s
    after bias correction is at least eps / (1 - beta2). Use it with eps=1e-8 where SGD does better
    than Adam, and with eps=1e-16 where Adam does better.
    Differs from the paper, as the package adabelief-pytorch 0.2.1 does: rectify (RAdam's warm-up,
    which the paper never used) is on by default, and amsgrad then has no effect.
    """
    m = average(beta1, m, g)
    s = beta2 * s + (1 - beta2) * (g - m) ** 2 + eps
    m_hat = m / (1 - beta1**t)
    if rectify:
        rho, factor = rectification(t, beta2)
        adaptive = factor * sqrt(1 - beta2**t) / (sqrt(s) + eps)
        moved = p - lr * m_hat * where(rho >= 5, adaptive, 1)
        return moved if degenerated_to_sgd else where(rho >= 5, moved, p), m, s, s_max
    s_max = maximum(s_max, s) if amsgrad else s_max
    s_hat = (s_max if amsgrad else s) / (1 - beta2**t)
    return p - lr * m_hat / (sqrt(s_hat) + eps), m, s, s_max
