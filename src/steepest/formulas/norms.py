"""Rules that look at a whole tensor: its norm decides how far the parameter goes."""

from ..definition import rule
from .adam import ADAM_KEYS, LR, adamw
from .scaled import average
from .words import abs, carried, maximum, minimum, norm, sqrt, total, where


@rule(search={"lr": (1e-4, 1e-1)})
def fromage(p, g, *, lr=1e-2):
    """Fromage. Bernstein, Vahdat, Yue and Liu 2020, arXiv:2002.03432, algorithm 1.

    Gradient descent whose step is a share of the parameter's norm. The division keeps the norm
    from growing; it is all that there is of weight decay in the paper. Use it where one rate
    must do for layers of very different scale, without weight decay.
    """
    ratio = where(norm(p) * norm(g) > 0, norm(p) / norm(g), 1)
    return (p - lr * ratio * g) / sqrt(1 + lr**2)


@rule(keys={"v": "momentum_buffer"}, search={"lr": (1e-2, 1e1)})
def lars(p, g, v, *, lr=1.0, momentum=0.9, trust_coefficient=1e-3, wd=0.0):
    """LARS. You, Gitman and Ginsburg 2017, arXiv:1708.03888, algorithm 1.

    Momentum whose rate is, for each layer, a share of the ratio of the parameter's norm to the
    gradient's and the decay's. Use it for convolutional networks at batches of thousands.
    """
    size, against = norm(p), norm(g) + wd * norm(p)
    ratio = where(size * against > 0, trust_coefficient * size / against, 1)
    v = momentum * v + lr * ratio * (g + wd * p)
    return p - v, v


@rule(keys=ADAM_KEYS, search=LR)
def lamb(p, g, m, v, *, t, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-6, wd=0.0):
    """LAMB. You et al. 2020, arXiv:1904.00962, algorithm 2.

    Adam whose step, decay included, is as long as a share of the parameter: LARS for Adam. The
    paper's phi is the identity. Use it for transformers at batches of thousands.
    """
    m = average(beta1, m, g)
    v = beta2 * v + (1 - beta2) * g**2
    step = m / (1 - beta1**t) / (sqrt(v / (1 - beta2**t)) + eps) + wd * p
    ratio = where(norm(p) * norm(step) > 0, norm(p) / norm(step), 1)
    return p - lr * ratio * step, m, v


@rule(keys=ADAM_KEYS, search=LR)
def novograd(p, g, m, *, t, lr=1e-2, beta1=0.95, beta2=0.98, eps=1e-8, wd=0.0, v=carried(0)):
    """NovoGrad. Ginsburg et al. 2019, arXiv:1905.11286, algorithm 1.

    Momentum of gradients that are divided by an average norm: Adam with one second moment for a
    whole layer, which starts at the first gradient's own. Use it where Adam does well and its
    second moment is too much memory: one number a layer.
    """
    squared = norm(g) ** 2
    v = where(t > 1, beta2 * v + (1 - beta2) * squared, squared)
    m = beta1 * m + g / (sqrt(v) + eps) + wd * p
    return p - lr * m, m, v


@rule(
    keys={**ADAM_KEYS, "last": "last_grad"}, forgets=["last"], limits={"gamma": "[0, inf)"},
    search=LR,
)  # fmt: skip
def mars(p, g, m, v, last, *, t, lr=3e-3, beta1=0.95, beta2=0.99, eps=1e-8, gamma=0.025):
    """MARS. Yuan et al. 2024, arXiv:2411.10438, algorithm 1 and MARS-AdamW.

    AdamW of a gradient whose variance is reduced by its change since the last step, and whose norm
    is held within 1. Differs from the paper, as its approximate form: the last gradient is that of
    the last batch, not of this one at the last point. Use it as a trial for transformers where
    AdamW is tuned already, with a rate a few times as large.
    """
    corrected = g + gamma * beta1 / (1 - beta1) * where(t > 1, g - last, 0)
    corrected = corrected / maximum(norm(corrected), 1)
    return *adamw.function(p, corrected, m, v, t=t, lr=lr, beta1=beta1, beta2=beta2, eps=eps), g


@rule(
    keys={"m": "exp_avg", "v": "exp_avg_sq", "b": "momentum_buffer", "rate": "exp_avg2"},
    decay="coupled", search=LR,
)  # fmt: skip
def swats(
    p, g, m, v, b, *, t, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, settled=1e-9,
    rate=carried(0), sgd=carried(0),
):  # fmt: skip
    """SWATS. Keskar and Socher 2017, arXiv:1712.07628, algorithm 1.

    Adam that goes over to SGD with momentum as soon as the rate with which SGD would make the
    same step has settled: its average is within `settled` of it. `sgd` is 1 from then on. Use
    it where SGD ends better than Adam and nobody wants to tune SGD.
    """
    m = average(beta1, m, g)
    v = beta2 * v + (1 - beta2) * g**2
    step = lr * sqrt(1 - beta2**t) / (1 - beta1**t) * m / (sqrt(v) + eps)
    along = total(step * g)
    now = total(step**2) / along
    average_now = where(abs(along) > 0, beta2 * rate + (1 - beta2) * now, rate)
    unbiased = average_now / (1 - beta2**t)
    near = where(abs(along) > 0, where(abs(unbiased - now) < settled, 1, 0), 0)
    b = where(sgd > 0, beta1 * b + g, b)
    p = p - where(sgd > 0, (1 - beta1) * rate * b, step)
    rate = where(sgd > 0, rate, where(near * (t - 1) > 0, unbiased, average_now))
    return p, m, v, b, rate, where(sgd > 0, 1, where(near * (t - 1) > 0, 1, 0))


@rule(keys={**ADAM_KEYS, "start": "p0"}, search={"lr": (0.1, 10)})
def prodigy(
    p, g, m, v, s, start, *, t, lr=1.0, beta1=0.9, beta2=0.999, eps=1e-8, d0=1e-6, d_coef=1.0,
    growth_rate=float("inf"), wd=0.0, d=carried(0), d_max=carried(0), r=carried(0),
):  # fmt: skip
    """Prodigy. Mishchenko and Defazio 2023, arXiv:2306.06101, algorithm 4.

    Adam that finds its own rate: d grows to an estimate of the distance to the solution. Use it
    where no rate can be searched: lr stays 1, with a cosine schedule if any.
    """
    start = where(t > 1, start, p)
    d, d_max = where(t > 1, d, d0), where(t > 1, d_max, d0)
    beta3 = sqrt(beta2)
    rate = d * lr
    m = beta1 * m + (1 - beta1) * d * g
    v = beta2 * v + (1 - beta2) * d**2 * g**2
    s = beta3 * s + d / d0 * rate * g
    r = beta3 * r + d / d0 * rate * total(g * (start - p))
    reach = total(abs(s))
    estimate = where(reach > 0, d_coef * r / reach, d)
    first = where(d > d0, d, maximum(d, estimate))
    d_max = maximum(d_max, estimate)
    d = minimum(d_max, first * growth_rate)
    step = rate * m / (sqrt(v) + d * eps)
    return p * (1 - rate * wd) - step, m, v, s, start, d, d_max, r
