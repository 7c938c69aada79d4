"""Rules that scale the whole gradient by one rate: descent, momentum, Nesterov, averaging."""

from ..definition import Clock, rule
from ..ops import carried, maximum, where
from .meanings import BACK, MOVE, SHARE, TOTAL

_BUFFER = {
    "keys": {"b": "momentum_buffer"},
    "counts": False,
    "decay": "coupled",
    "limits": {"dampening": "(-inf, inf)"},
    "means": {"b": TOTAL},
    "units": SHARE,
    "includes": {"sgd": ("momentum", "momentum=0")},
}


@rule(called="SGD", decay="coupled", search={"lr": (1e-3, 1.0)}, sparse="rows", units=SHARE)
def sgd(p, g, *, lr=1e-3):
    """(Stochastic) gradient descent. Robbins and Monro 1951, doi:10.1214/aoms/1177729586.

    The simplest rule: every coordinate moves against its gradient at the same rate. The data loader
    decides whether this is batch, stochastic or mini-batch descent. Use it as a baseline, or where
    memory has no room for a state.
    """
    return p - lr * g


@rule(**_BUFFER, search={"lr": (1e-3, 1.0)}, sparse="dense")
def momentum(p, g, b, *, t, lr=1e-3, momentum=0.9, dampening=0.0):
    """Momentum as in torch.optim.SGD. Polyak 1964, doi:10.1016/0041-5553(64)90137-5.

    Gradient descent along a decaying sum of all gradients. lr multiplies the sum, so a change of lr
    acts at once (in `classical_momentum`, it acts only on new gradients). Use it for convolutional
    networks, with a tuned learning rate and a schedule.
    Differs from the paper: the first buffer is the gradient itself, without dampening, as in torch.
    """
    b = momentum * b + where(t > 1, 1 - dampening, 1) * g
    return p - lr * b, b


@rule(**_BUFFER, search={"lr": (1e-3, 1.0)}, sparse="dense")
def nesterov(p, g, b, *, t, lr=1e-3, momentum=0.9, dampening=0.0):
    """Nesterov momentum as in torch.optim.SGD. Nesterov 1983; Sutskever et al. 2013, PMLR 28(3).

    Momentum that looks one step ahead: the step is the gradient plus momentum times the new buffer.
    Use it where momentum does well.
    Differs from the paper: the gradient is taken at the stored parameter, which is the paper's
    look-ahead point only while lr is constant (in `classical_nesterov`, always).
    """
    b = momentum * b + where(t > 1, 1 - dampening, 1) * g
    return p - lr * (g + momentum * b), b


@rule(
    counts=False,
    decay="coupled",
    search={"lr": (1e-3, 1.0)},
    means={"v": MOVE},
    units=SHARE,
    includes={"sgd": ("momentum", "momentum=0")},
)
def classical_momentum(p, g, v, *, lr=1e-3, momentum=0.9):
    """Momentum with the rate inside the buffer. Polyak 1964; Ruder 2016, arXiv:1609.04747, section
    4.1.

    The buffer is the last move, so a change of lr takes effect gradually, over 1/(1-momentum)
    steps. At constant lr this rule equals `momentum`. Use it to reproduce a paper that has the
    learning rate inside the buffer.
    """
    v = momentum * v + lr * g
    return p - v, v


@rule(
    counts=False,
    decay="coupled",
    search={"lr": (1e-3, 1.0)},
    means={"v": BACK},
    units=SHARE,
    includes={"sgd": ("momentum", "momentum=0")},
)
def classical_nesterov(p, g, v, *, lr=1e-3, momentum=0.9):
    """Nesterov's accelerated gradient. Sutskever et al. 2013, PMLR 28(3), equations 3 and 4.

    Classical momentum whose gradient is taken at the look-ahead point, to which the momentum alone
    would move the parameter. Use it to reproduce a paper in which the learning rate changes.
    Differs from the paper: the stored parameter is the look-ahead point, theta + momentum * v,
    because a training loop evaluates the gradient at the stored parameter; v is the paper's v.
    """
    v_new = momentum * v - lr * g
    return p - momentum * v + (1 + momentum) * v_new, v_new


@rule(
    called="ASGD",
    decay="coupled",
    keys={"a": "ax"},
    search={"lr": (1e-3, 1.0)},
    limits={"lambd": "(-inf, inf)", "alpha": "(-inf, inf)", "t0": "(-inf, inf]"},
    units={"lr": SHARE["lr"]},
    clocks={"t0": Clock("begins to average", lambda t0: t0, lambda step: step)},
)
def asgd(p, g, a, *, t, lr=1e-2, lambd=1e-4, alpha=0.75, t0=1e6, eta=carried(1), mu=carried(1)):
    """Averaged SGD. Polyak and Juditsky 1992, doi:10.1137/0330046; as in torch.optim.ASGD.

    Gradient descent with a falling rate. The state `ax` is the running mean of the parameters. The
    mean is for the user; the descent does not use it. Use it on convex problems,
    where the mean of the iterates is better than the last iterate.
    Differs from the paper: averaging begins at step t0 (as in Bottou's code), and the rate and the
    averaging weight of a step are computed at the end of the previous step.
    """
    eta = where(t > 1, eta, lr)
    p = p * (1 - lambd * eta) - eta * g
    a = where(mu == 1, p, a + mu * (p - a))
    return p, a, lr / (1 + lambd * lr * t) ** alpha, 1 / maximum(1, t - t0)
