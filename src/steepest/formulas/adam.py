"""Adam and its variants: momentum and a rate for each coordinate, both bias-corrected."""

from ..definition import rule
from ..ops import carried, maximum, sign, sqrt, where
from .meanings import AVERAGES, LARGEST, LENGTH, SECOND, with_eps
from .scaled import average

ADAM_KEYS = {"m": "exp_avg", "v": "exp_avg_sq"}
LR = {"lr": (1e-5, 1e-1)}
# with a large eps the denominator is constant: Adam is then momentum at another rate
LARGE_EPS = {"momentum": ("eps", "a large eps")}
_ABOUT = {"means": AVERAGES, "units": LENGTH, "search": LR}


@rule(keys=ADAM_KEYS, decay="coupled", includes=LARGE_EPS, **_ABOUT)
def adam(p, g, m, v, *, t, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8):
    """Adam. Kingma and Ba 2015, arXiv:1412.6980, algorithm 1.

    RMSprop with momentum. The averages of g and g^2 are corrected for their start at zero. Use it
    without weight decay; with weight decay, use AdamW.
    """
    m = average(beta1, m, g)
    v = beta2 * v + (1 - beta2) * g**2
    m_hat = m / (1 - beta1**t)
    v_hat = v / (1 - beta2**t)
    return p - lr * m_hat / (sqrt(v_hat) + eps), m, v


@rule(
    called="AdamW",
    keys=ADAM_KEYS,
    decay="decoupled",
    **_ABOUT,
    includes={"adam": ("weight_decay", "weight_decay=0"), **LARGE_EPS},
)
def adamw(p, g, m, v, *, t, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8):
    """AdamW. Loshchilov and Hutter 2019, arXiv:1711.05101, algorithm 2.

    Adam whose weight decay shrinks the parameter directly instead of passing through the gradient.
    Use it by default, above all for transformers.
    Differs from the paper: the decay is lr * weight_decay, as in torch.optim.AdamW.
    """
    return adam.function(p, g, m, v, t=t, lr=lr, beta1=beta1, beta2=beta2, eps=eps)


@rule(keys=ADAM_KEYS, decay="coupled", search=LR, sparse="rows")
def sparse_adam(p, g, m, v, *, t, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8):
    """SparseAdam as in torch.optim: lazy Adam for sparse gradients. Kingma and Ba 2015,
    arXiv:1412.6980.

    Adam that steps only the rows that a sparse gradient contains. The averages of the other rows do
    not change. A dense gradient steps all rows. Unlike in Adam, eps is added to the root of the
    second moment before its bias correction. Use it for large embeddings with sparse=True.
    """
    m = average(beta1, m, g)
    v = average(beta2, v, g**2)
    return p - lr * sqrt(1 - beta2**t) / (1 - beta1**t) * m / (sqrt(v) + eps), m, v


@rule(
    called="AMSGrad",
    keys={**ADAM_KEYS, "v_max": "max_exp_avg_sq"},
    decay="coupled",
    search=LR,
    means={**AVERAGES, "v_max": (LARGEST, "beta2")},
    units=LENGTH,
)
def amsgrad(p, g, m, v, v_max, *, t, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8):
    """AMSGrad. Reddi, Kale and Kumar 2018, arXiv:1904.09237, algorithm 2.

    Adam that divides by the root of the largest second moment up to now, so that the rate of a
    coordinate does not rise again. Use it where Adam leaves a minimum near the end of training.
    Differs from the paper: both moments are bias-corrected, as in torch.optim.Adam(amsgrad=True).
    """
    m = average(beta1, m, g)
    v = beta2 * v + (1 - beta2) * g**2
    v_max = maximum(v_max, v)
    return p - lr / (1 - beta1**t) * m / (sqrt(v_max / (1 - beta2**t)) + eps), m, v, v_max


@rule(called="NAdam", keys=ADAM_KEYS, decay="coupled", **_ABOUT)
def nadam(
    p,
    g,
    m,
    v,
    *,
    t,
    lr=2e-3,
    beta1=0.9,
    beta2=0.999,
    eps=1e-8,
    momentum_decay=4e-3,
    mu_product=carried(1),
):
    """NAdam. Dozat 2016, ICLR workshop, algorithm 2.

    Adam with Nesterov's look-ahead: a step already uses the momentum of the next step. beta1 rises
    during a warm-up, and the product of its values is kept for the bias correction. Use it instead
    of Adam, with the same learning rates.
    Differs from the paper: the warm-up of beta1 is that of torch.optim.NAdam.
    """
    mu = beta1 * (1 - 0.5 * 0.96 ** (t * momentum_decay))
    mu_next = beta1 * (1 - 0.5 * 0.96 ** ((t + 1) * momentum_decay))
    mu_product = mu_product * mu
    m = average(beta1, m, g)
    v = beta2 * v + (1 - beta2) * g**2
    ahead = (1 - mu) / (1 - mu_product) * g + mu_next / (1 - mu_product * mu_next) * m
    return p - lr * ahead / (sqrt(v / (1 - beta2**t)) + eps), m, v, mu_product


def rectification(t, beta2):
    """RAdam's rho_t, the length of an average in steps, and its factor (nan for a small rho_t)."""
    rho_inf = 2 / (1 - beta2) - 1
    rho = rho_inf - 2 * t * beta2**t / (1 - beta2**t)
    factor = (rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho)
    return rho, sqrt(factor)


@rule(called="RAdam", keys=ADAM_KEYS, decay="coupled", **_ABOUT)
def radam(p, g, m, v, *, t, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8):
    """Rectified Adam. Liu et al. 2020, arXiv:1908.03265, algorithm 2.

    Adam that makes momentum steps until the second moment averages enough gradients to be reliable.
    After that, a factor raises its steps to those of Adam. Use it instead of Adam with a warm-up.
    Differs from the paper: the factor acts where the paper's rho is above 5 instead of 4, and eps
    is added to the divisor, as in torch.optim.RAdam.
    """
    m = average(beta1, m, g)
    v = beta2 * v + (1 - beta2) * g**2
    rho, rectify = rectification(t, beta2)
    adaptive = rectify * sqrt(1 - beta2**t) / (sqrt(v) + eps)
    return p - lr / (1 - beta1**t) * m * where(rho > 5, adaptive, 1), m, v


@rule(
    called="EAdam",
    keys=ADAM_KEYS,
    decay="coupled",
    search=LR,
    units={"lr": LENGTH["lr"]},
    means={**AVERAGES, "v": (SECOND, "beta2", with_eps)},
    includes=LARGE_EPS,
)
def eadam(p, g, m, v, *, t, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8):
    """EAdam. Yuan and Gao 2020, arXiv:2011.02150.

    Adam that adds eps to the stored second moment at every step, and nowhere else. The sum of the
    added eps tends to eps / (1 - beta2), so the second moment has a floor of 1000 eps by default.
    AdaBelief adds eps in the same place. Use it to separate two effects: EAdam against Adam shows
    the effect of this eps, and AdaBelief against EAdam shows the effect of AdaBelief's second
    moment.
    """
    m = average(beta1, m, g)
    v = beta2 * v + (1 - beta2) * g**2 + eps
    return p - lr / (1 - beta1**t) * m / sqrt(v / (1 - beta2**t)), m, v


@rule(keys=ADAM_KEYS, search=LR)
def yogi(
    p, g, m, v, *, t, lr=1e-2, beta1=0.9, beta2=0.999, eps=1e-3, initial_accumulator_value=1e-6
):
    """Yogi. Zaheer et al. 2018, NeurIPS 31, algorithm 2.

    Adam whose second moment v moves toward g^2 by (1 - beta2) * g^2; in Adam, v moves by
    (1 - beta2) * |g^2 - v|. So v rises at least as fast as in Adam, but falls slowly while
    gradients are small.
    Differs from the paper, as optax and pytorch-optimizer do: both averages are bias-corrected as
    in Adam, and v starts at initial_accumulator_value. In the paper, v starts at the squared
    gradient of a large batch. Differs from both packages: m, the average of g, starts at 0 as in
    the paper. In the packages m starts at 1e-6, so a parameter moves even if its gradient is zero.
    TensorFlow Addons, the authors' library, adds eps to the root of v before the bias correction.
    Use it where gradients are sparse, or where Adam diverges because its second moment is unsteady.
    """
    m = average(beta1, m, g)
    v = where(t > 1, v, initial_accumulator_value)
    v = v - (1 - beta2) * sign(v - g**2) * g**2
    m_hat = m / (1 - beta1**t)
    return p - lr * m_hat / (sqrt(v / (1 - beta2**t)) + eps), m, v
