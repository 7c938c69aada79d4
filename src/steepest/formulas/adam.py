"""Adam and its nearest kin: momentum and a rate for each coordinate, both unbiased."""

from ..definition import rule
from ..ops import carried, maximum, sign, sqrt, where
from .meanings import AVERAGES, LARGEST, LENGTH, SECOND, with_eps
from .scaled import average

ADAM_KEYS = {"m": "exp_avg", "v": "exp_avg_sq"}
LR = {"lr": (1e-5, 1e-1)}
# its denominator is constant then, and its averaged gradient is momentum at another rate
LARGE_EPS = {"momentum": ("eps", "a large eps")}
_ABOUT = {"means": AVERAGES, "units": LENGTH, "search": LR}


@rule(keys=ADAM_KEYS, decay="coupled", includes=LARGE_EPS, **_ABOUT)
def adam(p, g, m, v, *, t, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8):
    """Adam. Kingma and Ba 2015, arXiv:1412.6980, algorithm 1.

    RMSprop with momentum, both averages corrected for their start at zero. Use it where no weight
    decay is wanted; else AdamW.
    """
    m = average(beta1, m, g)
    v = beta2 * v + (1 - beta2) * g**2
    m_hat = m / (1 - beta1**t)
    v_hat = v / (1 - beta2**t)
    return p - lr * m_hat / (sqrt(v_hat) + eps), m, v


@rule(
    called="AdamW", keys=ADAM_KEYS, decay="decoupled", **_ABOUT,
    includes={"adam": ("weight_decay", "weight_decay=0"), **LARGE_EPS},
)  # fmt: skip
def adamw(p, g, m, v, *, t, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8):
    """AdamW. Loshchilov and Hutter 2019, arXiv:1711.05101, algorithm 2.

    Adam whose weight decay shrinks the parameter directly instead of passing through the gradient.
    Use it by default, and for transformers above all.
    Differs from the paper: the decay is lr * weight_decay, as in torch.optim.AdamW.
    """
    return adam.function(p, g, m, v, t=t, lr=lr, beta1=beta1, beta2=beta2, eps=eps)


@rule(keys=ADAM_KEYS, decay="coupled", search=LR, sparse="rows")
def sparse_adam(p, g, m, v, *, t, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8):
    """SparseAdam, as torch.optim has it: the lazy Adam of sparse gradients. Kingma and Ba 2015,
    arXiv:1412.6980.

    Adam that steps, of an embedding, the rows that a sparse gradient has, and leaves the averages
    of the others alone; on a dense gradient, all rows. Differs from Adam also in that eps is beside
    the root of the second moment before its correction. Use it for large embeddings with
    sparse=True.
    """
    m = average(beta1, m, g)
    v = average(beta2, v, g**2)
    return p - lr * sqrt(1 - beta2**t) / (1 - beta1**t) * m / (sqrt(v) + eps), m, v


@rule(
    called="AMSGrad", keys={**ADAM_KEYS, "v_max": "max_exp_avg_sq"}, decay="coupled", search=LR,
    means={**AVERAGES, "v_max": (LARGEST, "beta2")}, units=LENGTH,
)  # fmt: skip
def amsgrad(p, g, m, v, v_max, *, t, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8):
    """AMSGrad. Reddi, Kale and Kumar 2018, arXiv:1904.09237, algorithm 2.

    Adam whose rates never rise again: the largest second moment so far is used. Use it where Adam,
    near its end, leaves a minimum that it had found.
    Differs from the paper: both moments are bias-corrected, as in torch.optim.Adam(amsgrad=True).
    """
    m = average(beta1, m, g)
    v = beta2 * v + (1 - beta2) * g**2
    v_max = maximum(v_max, v)
    return p - lr / (1 - beta1**t) * m / (sqrt(v_max / (1 - beta2**t)) + eps), m, v, v_max


@rule(called="NAdam", keys=ADAM_KEYS, decay="coupled", **_ABOUT)
def nadam(
    p, g, m, v, *, t, lr=2e-3, beta1=0.9, beta2=0.999, eps=1e-8, momentum_decay=4e-3,
    mu_product=carried(1),
):  # fmt: skip
    """NAdam. Dozat 2016, ICLR workshop, algorithm 2.

    Adam with Nesterov's look-ahead: the next step's momentum is used already now, under a beta1
    that warms up. The product of all those betas is carried from step to step for the bias
    correction. Use it in the place of Adam, with the same rates. Differs from the paper: the
    warm-up of beta1 has the form of torch.optim.NAdam.
    """
    mu = beta1 * (1 - 0.5 * 0.96 ** (t * momentum_decay))
    mu_next = beta1 * (1 - 0.5 * 0.96 ** ((t + 1) * momentum_decay))
    mu_product = mu_product * mu
    m = average(beta1, m, g)
    v = beta2 * v + (1 - beta2) * g**2
    ahead = (1 - mu) / (1 - mu_product) * g + mu_next / (1 - mu_product * mu_next) * m
    return p - lr * ahead / (sqrt(v / (1 - beta2**t)) + eps), m, v, mu_product


def rectification(t, beta2):
    """RAdam's length of memory rho_t, and its rectifying factor (nan where rho_t is small)."""
    rho_inf = 2 / (1 - beta2) - 1
    rho = rho_inf - 2 * t * beta2**t / (1 - beta2**t)
    factor = (rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho)
    return rho, sqrt(factor)


@rule(called="RAdam", keys=ADAM_KEYS, decay="coupled", **_ABOUT)
def radam(p, g, m, v, *, t, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8):
    """Rectified Adam. Liu et al. 2020, arXiv:1908.03265, algorithm 2.

    Adam that is plain momentum while too few gradients were seen to trust the second moment, and
    warms up by a factor of its own after that. Use it in the place of Adam with a warm-up.
    Differs from the paper: rho must exceed 5 instead of 4, and eps is added, as torch.optim.RAdam.
    """
    m = average(beta1, m, g)
    v = beta2 * v + (1 - beta2) * g**2
    rho, rectify = rectification(t, beta2)
    adaptive = rectify * sqrt(1 - beta2**t) / (sqrt(v) + eps)
    return p - lr / (1 - beta1**t) * m * where(rho > 5, adaptive, 1), m, v


@rule(
    called="EAdam", keys=ADAM_KEYS, decay="coupled", search=LR, units={"lr": LENGTH["lr"]},
    means={**AVERAGES, "v": (SECOND, "beta2", with_eps)}, includes=LARGE_EPS,
)  # fmt: skip
def eadam(p, g, m, v, *, t, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8):
    """EAdam. Yuan and Gao 2020, arXiv:2011.02150.

    Adam with eps added to the stored second moment at every step and nowhere else: the sum tends to
    eps / (1 - beta2), a floor 1000 times eps. AdaBelief without the belief. Use it beside
    AdaBelief, to see what eps alone does.
    """
    m = average(beta1, m, g)
    v = beta2 * v + (1 - beta2) * g**2 + eps
    return p - lr / (1 - beta1**t) * m / sqrt(v / (1 - beta2**t)), m, v


@rule(keys=ADAM_KEYS, search=LR)
def yogi(
    p, g, m, v, *, t, lr=1e-2, beta1=0.9, beta2=0.999, eps=1e-3, initial_accumulator_value=1e-6
):
    """Yogi. Zaheer et al. 2018, NeurIPS 31, algorithm 2.

    Adam whose second moment moves toward the squared gradient by a share of that square, and not of
    the distance: it grows as fast and falls more slowly.
    Differs from the paper, as optax and pytorch-optimizer: both averages are corrected as Adam's,
    and the second starts at initial_accumulator_value, where the paper takes the squared gradient
    of a large batch. Differs from these two, as the paper: the first starts at 0. They start it at
    1e-6 too, so that a parameter without a gradient moves. In its authors' library, TensorFlow
    Addons, eps stands beside the root before its correction. Use it where gradients are sparse or
    Adam diverges for want of a steady second moment.
    """
    m = average(beta1, m, g)
    v = where(t > 1, v, initial_accumulator_value)
    v = v - (1 - beta2) * sign(v - g**2) * g**2
    m_hat = m / (1 - beta1**t)
    return p - lr * m_hat / (sqrt(v / (1 - beta2**t)) + eps), m, v
