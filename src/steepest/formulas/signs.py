"""Rules whose direction comes from signs: Signum, Lion, Grams."""

from ..definition import rule
from ..ops import abs, maximum, minimum, sign, sqrt
from .adam import ADAM_KEYS, LR
from .scaled import average

_SMALL = {"lr": (1e-6, 1e-2)}


def sign_or_nan(x):
    """The sign, but nan for nan. A sign of 0 would stop the coordinate without a warning."""
    return sign(x) + 0 * minimum(maximum(x, -1), 1)


@rule(keys={"m": "momentum_buffer"}, limits={"momentum": "[0, 1)"}, search=_SMALL)
def signum(p, g, m, *, lr=1e-4, momentum=0.9):
    """Signum. Bernstein et al. 2018, arXiv:1802.04434, algorithm 2.

    Momentum that moves every coordinate by the same length: the step is lr times the sign of an
    averaged gradient. A sign can be sent in one bit. momentum=0 is signSGD. A gradient of nan makes
    the parameter nan, as in optax; with torch's sign of nan, which is 0, the coordinate would never
    move again. Use it where gradients are sent over a slow network, or where their size means
    little.
    """
    m = momentum * m + (1 - momentum) * g
    return p - lr * sign_or_nan(m), m


@rule(keys={"m": "exp_avg"}, search=_SMALL)
def lion(p, g, m, *, lr=1e-4, beta1=0.9, beta2=0.99):
    """Lion. Chen et al. 2023, arXiv:2302.06675, algorithm 2.

    Signum that gives the newest gradient more weight in the step (1 - beta1) than in the stored
    average (1 - beta2). Every coordinate moves by lr, so lr should be a tenth of Adam's or
    less. Weight decay is multiplied by lr, so it should be ten times Adam's. A gradient of nan
    makes the parameter nan, as in `signum`. Use it for large batches and long runs where memory is
    short: it has one state, and AdamW has two.
    """
    return p - lr * sign_or_nan(beta1 * m + (1 - beta1) * g), beta2 * m + (1 - beta2) * g


@rule(keys=ADAM_KEYS, search=LR)
def grams(p, g, m, v, *, t, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-6):
    """Grams. Cao, Li and Song 2024, arXiv:2412.17107.

    Adam that takes only the length of its step from the momentum; the direction is the sign of the
    newest gradient.
    Differs from the paper, as the authors' package grams-pytorch 0.0.2 does: eps is added to the
    root of the second moment before the bias correction. Use it as a trial where AdamW is already
    tuned: it has the same hyperparameters.
    """
    m = average(beta1, m, g)
    v = beta2 * v + (1 - beta2) * g**2
    rate = lr * sqrt(1 - beta2**t) / (1 - beta1**t)
    return p - rate * sign(g) * abs(m) / (sqrt(v) + eps), m, v
