"""Rules that use the norms of whole tensors to decide how far a parameter moves."""

from ..definition import rule
from ..ops import abs, captured, carried, maximum, minimum, norm, sqrt, total, where
from .adam import ADAM_KEYS, LR, adamw
from .scaled import average


@rule(
    search={"lr": (1e-4, 1e-1)},
    excused={"at_rest": "Fromage divides a parameter by sqrt(1 + lr**2) at every step"},
)
def fromage(p, g, *, lr=1e-2):
    """Fromage. Bernstein, Vahdat, Yue and Liu 2020, arXiv:2002.03432, algorithm 1.

    Gradient descent whose step has a length of lr times the parameter's norm. The parameter is then
    divided by sqrt(1 + lr^2), which keeps its norm from growing; the paper has no other weight
    decay. Use it, without weight decay, where one learning rate has to suit layers of very
    different scale.
    """
    ratio = where(norm(p) * norm(g) > 0, norm(p) / norm(g), 1)
    return (p - lr * ratio * g) / sqrt(1 + lr**2)


@rule(
    called="LARS",
    keys={"v": "momentum_buffer"},
    search={"lr": (1e-2, 1e1)},
    limits={
        "trust_coefficient": ("(0, inf)", "it multiplies every step, so a negative value ascends")
    },
    excused={"coarse": "the first steps of LARS are a thousandth of a parameter or less"},
)
def lars(p, g, v, *, lr=1.0, momentum=0.9, trust_coefficient=1e-3, wd=0.0):
    """LARS. You, Gitman and Ginsburg 2017, arXiv:1708.03888, algorithm 1.

    Momentum whose rate for each parameter p with gradient g is proportional to
    norm(p) / (norm(g) + weight_decay * norm(p)). Use it for convolutional networks with batches of
    thousands.
    """
    size, against = norm(p), norm(g) + wd * norm(p)
    ratio = where(size * against > 0, trust_coefficient * size / against, 1)
    v = momentum * v + lr * ratio * (g + wd * p)
    return p - v, v


@rule(called="LAMB", keys=ADAM_KEYS, search=LR)
def lamb(p, g, m, v, *, t, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-6, wd=0.0):
    """LAMB. You et al. 2020, arXiv:1904.00962, algorithm 2.

    LARS for Adam: the step, weight decay included, has a length of lr times the parameter's norm.
    The paper's function phi is the identity.
    Differs from the authors' code: both moments are bias-corrected, as in the paper; weight decay
    and the ratio of norms apply to every parameter of a group. In the authors' code, the user
    excludes biases and normalisation layers. Use it for transformers with batches of thousands.
    """
    m = average(beta1, m, g)
    v = beta2 * v + (1 - beta2) * g**2
    step = m / (1 - beta1**t) / (sqrt(v / (1 - beta2**t)) + eps) + wd * p
    ratio = where(norm(p) * norm(step) > 0, norm(p) / norm(step), 1)
    return p - lr * ratio * step, m, v


@rule(called="NovoGrad", keys=ADAM_KEYS, search=LR)
def novograd(p, g, m, *, t, lr=1e-2, beta1=0.95, beta2=0.98, eps=1e-8, wd=0.0, v=carried(0)):
    """NovoGrad. Ginsburg et al. 2019, arXiv:1905.11286, algorithm 1.

    Adam with a single second moment for each parameter: an average of the gradient's squared norm.
    The average starts at the squared norm of the first gradient. Each gradient is divided by the
    root of the average before momentum. Use it where Adam does well but its second moment takes too
    much memory.
    """
    squared = norm(g) ** 2
    v = where(t > 1, beta2 * v + (1 - beta2) * squared, squared)
    m = beta1 * m + g / (sqrt(v) + eps) + wd * p
    return p - lr * m, m, v


@rule(
    keys={**ADAM_KEYS, "last": "last_grad"},
    forgets=["last"],
    limits={"gamma": "[0, inf)"},
    search=LR,
    called="MARS",
)
def mars(p, g, m, v, last, *, t, lr=3e-3, beta1=0.95, beta2=0.99, eps=1e-8, gamma=0.025):
    """MARS. Yuan et al. 2024, arXiv:2411.10438, algorithm 1 and MARS-AdamW.

    AdamW on a corrected gradient: a multiple of the gradient's change since the last step is added
    to reduce the variance, and the norm is clipped to 1.
    Differs from the paper, as the paper's approximate form does: the last gradient is that of the
    last batch, instead of that of the current batch at the last parameters. As in the authors'
    code, the last gradient is zero at the first step. Differs from the authors' code: vectors and
    scalars are stepped in the same way as matrices; the authors' code steps them by AdamW. Use it
    as a trial for transformers where AdamW is already tuned, with a learning rate a few times as
    large.
    """
    corrected = g + gamma * beta1 / (1 - beta1) * (g - last)
    corrected = corrected / maximum(norm(corrected), 1)
    return *adamw.function(p, corrected, m, v, t=t, lr=lr, beta1=beta1, beta2=beta2, eps=eps), g


def remaining_share(lr, base_lr):
    """The current lr as a share of the group's first lr; lr itself if the first lr is 0."""
    return where(base_lr > 0, lr / base_lr, lr)


@rule(
    keys={"m": "exp_avg", "v": "exp_avg_sq", "b": "momentum_buffer", "rate": "exp_avg2"},
    decay="coupled",
    search=LR,
    limits={"settled": "[0, inf]"},
    called="SWATS",
)
def swats(
    p,
    g,
    m,
    v,
    b,
    *,
    t,
    lr=1e-3,
    beta1=0.9,
    beta2=0.999,
    eps=1e-8,
    settled=1e-9,
    base_lr=captured("lr"),
    rate=carried(0),
    sgd=carried(0),
    k=carried(0),
):
    """SWATS. Keskar and Socher 2017, arXiv:1712.07628, algorithm 1.

    Adam that switches to SGD with momentum, at a learning rate that it computes itself. At each
    step it computes the rate with which SGD would make the same step, and it switches as soon as
    this rate is within `settled` of its running average. All groups share one average, and `k`
    counts its steps. From the switch on, the average is SGD's rate, and a schedule of lr scales it.
    For this, the state `sgd` holds (lr at the switch) / (first lr); it is 0 before the switch.
    Differs from the paper: the paper's single epsilon of 1e-9 is two options here, `settled` and
    Adam's eps of 1e-8; the paper's lr is constant. Use it where SGD has a better final result than
    Adam, but you do not want to tune SGD.
    """
    m = average(beta1, m, g)
    v = beta2 * v + (1 - beta2) * g**2
    step = lr * sqrt(1 - beta2**t) / (1 - beta1**t) * m / (sqrt(v) + eps)
    along = total(step * g)
    now = total(step**2) / along
    average_now = where(abs(along) > 0, beta2 * rate + (1 - beta2) * now, rate)
    k = k + 1
    unbiased = average_now / (1 - beta2**k)
    settles = where(abs(along) > 0, where(abs(unbiased - now) < settled, k - 1, 0), 0)
    left = remaining_share(lr, base_lr)
    b = where(sgd > 0, beta1 * b + g, b)
    p = p - where(sgd > 0, (1 - beta1) * rate * (left / sgd) * b, step)
    rate = where(sgd > 0, rate, where(settles > 0, unbiased, average_now))
    return p, m, v, b, rate, where(sgd > 0, sgd, where(settles > 0, where(left > 0, left, 1), 0)), k


@rule(
    keys={**ADAM_KEYS, "start": "p0"},
    search={"lr": (0.1, 10)},
    limits={
        "d0": ("(0, inf)", "d starts at d0, and sums are divided by d0"),
        "d_coef": ("(0, inf)", "d_coef multiplies the estimate of the distance"),
        "growth_rate": ("[1, inf]", "it is the largest factor by which d can grow in a step"),
    },
    excused={"coarse": "the first steps of Prodigy are a thousandth of a parameter or less"},
)
def prodigy(
    p,
    g,
    m,
    v,
    s,
    start,
    *,
    t,
    lr=1.0,
    beta1=0.9,
    beta2=0.999,
    eps=1e-8,
    d0=1e-6,
    d_coef=1.0,
    growth_rate=float("inf"),
    wd=0.0,
    d=carried(0),
    d_max=carried(0),
    r=carried(0),
):
    """Prodigy. Mishchenko and Defazio 2023, arXiv:2306.06101, algorithm 4.

    Adam that finds its learning rate: d grows to an estimate of the distance to the solution. All
    groups share one d, computed with the options of the first group that has a gradient.
    Differs from the authors' package prodigyopt: groups may have different learning rates, and a
    group neither moves nor decays while its lr is 0. Use it where you cannot tune a learning rate:
    leave lr at 1, and if you need a schedule, take a cosine.
    """
    start = where(t > 1, start, p)
    d, d_max = where(d > 0, d, d0), where(d_max > 0, d_max, d0)
    beta3, rate = sqrt(beta2), d * lr
    m = where(lr > 0, beta1 * m + (1 - beta1) * d * g, m)
    v = where(lr > 0, beta2 * v + (1 - beta2) * d**2 * g**2, v)
    s = where(lr > 0, beta3 * s + d / d0 * rate * g, s)
    # a group whose lr is 0 adds nothing
    along, reach = total(d / d0 * rate * g * (start - p)), total(where(lr > 0, 1, 0) * abs(s))
    r = where(reach > 0, beta3 * r + along, r)
    estimate = where(reach > 0, d_coef * r / reach, d)
    first = where(d > d0, d, maximum(d, estimate))
    d_max = maximum(d_max, estimate)
    d = minimum(d_max, first * growth_rate)
    step = rate * m / (sqrt(v) + d * eps)
    return p * (1 - rate * wd) - step, m, v, s, start, d, d_max, r


def fold(choose, window):
    """The largest or the smallest value of a window. choose: maximum or minimum."""
    value = window[0]
    for other in window[1:]:
        value = choose(value, other)
    return value


def single_step(variance, pull, spread):
    """The square root of YellowFin's momentum.

    It is the x that minimises x^2 D^2 + (1 - x)^4 C / h_min^2, or a lower bound if the bound is
    larger. The bound depends only on `spread`. variance: C. pull: (D h_min)^2. spread: the ratio of
    the curvatures, h_max / h_min.
    """
    q = where(pull > 0, 2 * variance / pull, 0)  # z = 1 - x solves q z^3 + z = 1
    w = (1 / (2 * q) + sqrt(1 / (4 * q**2) + 1 / (27 * q**3))) ** (1 / 3)
    near = where(q > 1e-6, w - 1 / (3 * q * w), 1 - q)
    z = near - (q * near**3 + near - 1) / (3 * q * near**2 + 1)  # a Newton step
    return maximum(1 - z, (sqrt(spread) - 1) / (sqrt(spread) + 1))


@rule(
    keys={"b": "momentum_buffer", "m": "grad_avg"},
    decay="coupled",
    search={"lr": (0.1, 10)},
    limits={"beta": "[0, 1)"},
    called="YellowFin",
)
def yellowfin(
    p,
    g,
    b,
    m,
    *,
    t,
    lr=1.0,
    beta=0.999,
    high=carried(0),
    low=carried(0),
    squares=carried(0),
    size=carried(0),
    distance=carried(0),
    h1=carried(0),
    h2=carried(0),
    h3=carried(0),
    h4=carried(0),
    h5=carried(0),
    h6=carried(0),
    h7=carried(0),
    h8=carried(0),
    h9=carried(0),
    h10=carried(0),
    h11=carried(0),
    h12=carried(0),
    h13=carried(0),
    h14=carried(0),
    h15=carried(0),
    h16=carried(0),
    h17=carried(0),
    h18=carried(0),
    h19=carried(0),
    k=carried(0),
):
    """YellowFin. Zhang and Mitliagkas 2017, arXiv:1706.03471, algorithms 1 to 4.

    Momentum that tunes itself. Its learning rate and momentum are the best for a noisy quadratic
    whose curvatures lie between the smallest and the largest squared norm of the last 20 gradients.
    lr multiplies the learning rate, which rises over the first 200 steps. Norms and variance are
    computed over the parameters of all groups, and averaged with the beta of the first group. `k`
    counts the optimizer's steps.
    Differs from the paper and from the authors' code: the values are averaged, not their
    logarithms. Neither large gradients nor the growth of the largest curvature is clipped. Use it
    where momentum works but is not tuned.
    """
    h = total(g**2)
    # at the first step, copies of the first norm fill the window; they do not widen the range
    earlier = (h1, h2, h3, h4, h5, h6, h7, h8, h9, h10, h11, h12, h13, h14, h15, h16, h17, h18, h19)
    window = (h, *(where(k > 0, past, h) for past in earlier))
    high = average(beta, high, fold(maximum, window))
    low = average(beta, low, fold(minimum, window))
    squares, size = average(beta, squares, h), average(beta, size, sqrt(h))
    distance = average(beta, distance, where(squares > 0, size / squares, 0))
    m = average(beta, m, g)
    k = k + 1
    seen, own = 1 - beta**k, 1 - beta**t
    variance = maximum(squares / seen - total((m / own) ** 2), 0)
    root = single_step(variance, (distance * low / seen**2) ** 2, where(low > 0, high / low, 1))
    rate = where(low > 0, lr * (1 - root) ** 2 * seen / low * minimum(1, k / 200), 0)
    b = root**2 * b + g
    return p - rate * b, b, m, high, low, squares, size, distance, *window[:-1], k
