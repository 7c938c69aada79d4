"""Variants of Adam with other averages: M-SVAG, ADOPT, Adan, AdEMAMix."""

from ..definition import rule
from ..ops import log, maximum, minimum, sqrt, where
from .adam import ADAM_KEYS, LR
from .scaled import average

SMALLEST = 2.0**-126
"""The smallest normal number of float32. It keeps a denominator above 0."""
E = 2.718281828459045  # the base of the natural logarithm


@rule(called="MSVAG", keys=ADAM_KEYS, limits={"beta": "[0, 1)"}, search={"lr": (1e-3, 1.0)})
def msvag(p, g, m, v, *, t, lr=1e-2, beta=0.9):
    """M-SVAG. Balles and Hennig 2018, arXiv:1705.07774.

    Momentum that damps noisy coordinates: each coordinate of the step is multiplied by
    m^2 / (m^2 + variance of m). Adam instead divides by the root of m^2 + variance. Adam's step has
    two effects: a sign, and a magnitude that falls with the variance. M-SVAG keeps only the
    magnitude. Here `share` is m^2 / v, which is finite even if a square overflows.
    Differs from the paper, as the authors' code does: rho is at most 0.9999, because it is 1 at
    t=1. There the variance is 0, so rho has no effect. Use it where SGD with momentum works and
    gradients are noisy in only some coordinates.
    """
    m = average(beta, m, g)
    v = beta * v + (1 - beta) * g**2
    rho = (1 - beta) ** 2 * (1 - beta ** (2 * t)) / ((1 - beta**t) ** 2 * (1 - beta**2))
    rho = minimum(rho, where(t > 1, 0.9999, 0.5))
    k = rho / (1 - rho)
    m_hat, v_hat = m / (1 - beta**t), v / (1 - beta**t)
    share = (m_hat / sqrt(maximum(v_hat, SMALLEST))) ** 2
    gamma = minimum(share / (k + (1 - k) * share), 1)
    return p - lr * gamma * m_hat, m, v


@rule(called="ADOPT", keys=ADAM_KEYS, decay="coupled", search=LR)
def adopt(p, g, m, v, *, t, lr=1e-3, beta1=0.9, beta2=0.9999, eps=1e-6, clip=True):
    """ADOPT. Taniguchi et al. 2024, arXiv:2411.02853.

    Adam that divides each gradient by the root of the second moment of the earlier gradients, and
    then averages the quotients. So it converges for every beta2. The first gradient only
    initialises the second moment. With `clip` (the paper's revised form), quotients are clipped to
    a magnitude of (t - 1)^(1/4), which is 1 at the first step that moves.
    Differs from the authors' package torch-adopt 0.1.0: the limit (t - 1)^(1/4) is not an option,
    and decoupled weight decay acts from the first step on. Use it where Adam is unsteady and a
    beta2 near 1 does not help.
    """
    scaled = g / maximum(sqrt(v), eps)
    if clip:
        limit = (t - 1) ** 0.25
        scaled = minimum(maximum(scaled, -limit), limit)
    m = where(t > 1, average(beta1, m, scaled), 0)
    return p - lr * m, m, where(t > 1, beta2 * v + (1 - beta2) * g**2, g**2)


@rule(
    keys={"m": "exp_avg", "v": "exp_avg_diff", "n": "exp_avg_sq", "previous": "last_grad"},
    forgets=["previous"],
    limits={"beta3": "[0, 1)"},
    search=LR,
)
def adan(
    p,
    g,
    m,
    v,
    n,
    previous,
    *,
    t,
    lr=1e-3,
    beta1=0.98,
    beta2=0.92,
    beta3=0.99,
    eps=1e-8,
    wd=0.0,
    no_prox=False,
):
    """Adan. Xie et al. 2022, arXiv:2208.06677, algorithm 1.

    Adam with Nesterov's look-ahead, computed from three averages: of the gradients, of their
    differences, and of the squares of (gradient + beta2 * difference). The betas are 1 minus the
    paper's, as in the authors' code. Weight decay divides the new parameter by 1 + lr * decay (the
    paper's proximal form). With no_prox=True, it multiplies the old parameter by 1 - lr * decay, as
    in AdamW.
    Differs from the paper, as the authors' code does: averages are bias-corrected. Use it for long
    runs, if memory has room for its four states, with learning rates up to ten times Adam's.
    """
    change = where(t > 1, g - previous, 0)
    m = average(beta1, m, g)
    v = average(beta2, v, change)
    n = beta3 * n + (1 - beta3) * (g + beta2 * change) ** 2
    ahead = m / (1 - beta1**t) + beta2 / (1 - beta2**t) * v
    step = lr * ahead / (sqrt(n / (1 - beta3**t)) + eps)
    p = p * (1 - lr * wd) - step if no_prox else (p - step) / (1 + lr * wd)
    return p, m, v, n, g


@rule(
    called="AdEMAMix",
    keys={"m": "exp_avg", "slow": "exp_avg_slow", "v": "exp_avg_sq"},
    limits={
        "beta3": "[0, 1)",
        **dict.fromkeys(("alpha", "beta3_warmup", "alpha_warmup"), "[0, inf)"),
    },
    search=LR,
)
def ademamix(
    p,
    g,
    m,
    slow,
    v,
    *,
    t,
    lr=1e-3,
    beta1=0.9,
    beta2=0.999,
    beta3=0.9999,
    alpha=2.0,
    beta3_warmup=0.0,
    alpha_warmup=0.0,
    eps=1e-8,
):
    """AdEMAMix. Pagliardini, Ablin and Grangier 2024, arXiv:2409.03137, algorithm 1.

    AdamW with a second, much slower average of the gradients, which is multiplied by alpha and not
    bias-corrected. alpha rises linearly from 0 over `alpha_warmup` steps. The half-life of the slow
    average rises from that of beta1 to that of beta3 over `beta3_warmup` steps. A warm-up of 0
    steps is off; the paper sets both to the total number of steps. The default of alpha is that of
    the authors' code.
    Differs from the authors' code: the warm-up of beta3 uses the logarithm of beta, as in the
    paper, instead of that of beta + 1e-8. Use it for long runs of tens of thousands of steps, where
    old gradients are still useful.
    """
    share = where(t < alpha_warmup, t / alpha_warmup, 1)
    short, long = (log(maximum(b, 1e-8)) for b in (beta1, beta3))
    rising = E ** (short * long / (long + t / beta3_warmup * (short - long)))
    beta = where(t < beta3_warmup, minimum(rising, beta3), beta3)
    m, slow = average(beta1, m, g), average(beta, slow, g)
    v = beta2 * v + (1 - beta2) * g**2
    mixed = m / (1 - beta1**t) + alpha * share * slow
    return p - lr * mixed / (sqrt(v / (1 - beta2**t)) + eps), m, slow, v
