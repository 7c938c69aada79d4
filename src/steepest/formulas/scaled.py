"""Rules with a rate for each coordinate: Rprop, Adagrad, Adadelta, RMSprop, Adamax."""

from ..definition import rule
from ..ops import abs, maximum, minimum, sign, sqrt, where
from .meanings import FIRST, LENGTH, SECOND


def average(beta, old, new):
    """The next value of an exponential moving average: beta * old + (1 - beta) * new.

    This function computes old + (1 - beta) * (new - old), which is two to three times as precise in
    float32. Most averages of squares are written in the first form, because it stays inf after a
    square has overflowed; the second form would become nan.
    """
    return old + (1 - beta) * (new - old)


@rule(
    keys={"z": "step_size"},
    forgets=["prev"],
    limits={
        "etaminus": "(0, 1)",
        "etaplus": "(1, inf)",
        "step_min": "[0, inf)",
        "step_max": ("(0, inf]", "if it is 0, no parameter moves"),
    },
    search={"lr": (1e-4, 1e-1)},
    units={"lr": LENGTH["lr"]},
    excused={
        "beyond_signs": "Rprop moves by the sign alone, and in torch.optim's formula NaN has the "
        "sign 0",
        "scheduled": "the lr of Rprop is its first step size; Rprop sets all later step sizes",
    },
)
def rprop(p, g, prev, z, *, t, lr=1e-2, etaminus=0.5, etaplus=1.2, step_min=1e-6, step_max=50.0):
    """Resilient propagation. Riedmiller and Braun 1993, doi:10.1109/ICNN.1993.298623.

    Uses only the sign of the gradient: each coordinate has a step size, which grows while the sign
    stays the same and shrinks when the sign flips. Use it with full batches only: mini-batch noise
    flips the signs.
    Differs from the paper: as in torch.optim.Rprop, a coordinate does not move when its sign flips;
    in the paper it goes back.
    """
    turn = sign(g * prev)
    same, turned = maximum(turn, 0), minimum(turn, 0)
    factor = 1 + (etaplus - 1) * same + (1 - etaminus) * turned
    z = minimum(maximum(where(t > 1, z, lr) * factor, step_min), step_max)
    g = g * (1 + turned)
    return p - z * sign(g), g, z


@rule(keys={"v": "sum"}, decay="coupled", search={"lr": (1e-3, 1.0)}, sparse="rows", units=LENGTH)
def adagrad(p, g, v, *, t, lr=1e-2, lr_decay=0.0, initial_accumulator_value=0.0, eps=1e-10):
    """Adagrad. Duchi, Hazan and Singer 2011, JMLR 12.

    Gradient descent whose rate for each coordinate falls with the sum of its squared gradients:
    rare features keep a large rate. Use it for sparse features, such as bags of words.
    Differs from the paper: the option lr_decay lowers lr, as in torch.optim.Adagrad.
    """
    v = where(t > 1, v, initial_accumulator_value) + g**2
    return p - lr / (1 + (t - 1) * lr_decay) * g / (sqrt(v) + eps), v


@rule(
    keys={"v": "square_avg", "d": "acc_delta"},
    decay="coupled",
    limits={"rho": "[0, 1]", "eps": "[0, inf)"},
    search={"lr": (1e-2, 1e1)},
    means={"v": (SECOND, "rho")},
)
def adadelta(p, g, v, d, *, lr=1.0, rho=0.9, eps=1e-6):
    """Adadelta. Zeiler 2012, arXiv:1212.5701, algorithm 1.

    RMSprop whose rate is the root mean square of the last moves, so that the units of the gradient
    cancel. eps is added inside both roots. The first moves grow from eps, so eps, not lr, decides
    how slowly training begins. Use it where the scale of the gradients changes and no single rate
    suits.
    Differs from the paper: lr multiplies the step, as in torch.optim.Adadelta (in the paper, lr is
    1).
    """
    v = rho * v + (1 - rho) * g**2
    delta = sqrt(d + eps) / sqrt(v + eps) * g
    return p - lr * delta, v, rho * d + (1 - rho) * delta**2


@rule(
    called="RMSprop",
    keys={"v": "square_avg", "a": "grad_avg", "b": "momentum_buffer"},
    decay="coupled",
    limits={"alpha": ("[0, 1]", "above 1, the share 1 - alpha of the new square is negative")},
    search={"lr": (1e-5, 1e-1)},
    means={"v": (SECOND, "alpha")},
    units=LENGTH,
    switches={"heavy": "momentum"},
    includes={"sgd": ("eps", "a large eps")},
)
def rmsprop(
    p, g, v, a, b, *, lr=1e-2, alpha=0.99, eps=1e-8, momentum=0.0, centered=False, heavy=False
):
    """RMSprop. Tieleman and Hinton 2012, Coursera lecture 6.5; centred: Graves 2013,
    arXiv:1308.0850.

    Adagrad with a moving average instead of the sum, so that the rate can rise again. `centered`
    subtracts the squared mean gradient; `heavy` applies momentum to the scaled gradient. Use it for
    recurrent networks, GANs and reinforcement learning, where momentum hurts.
    Differs from the lecture, as torch.optim.RMSprop does: eps is added outside the root, and lr
    multiplies the momentum buffer. Graves adds eps inside the root, and has lr inside the buffer.
    """
    v = alpha * v + (1 - alpha) * g**2
    spread = v
    if centered:
        a = average(alpha, a, g)
        spread = v - a * a
    step = g / (sqrt(spread) + eps)
    if heavy:
        step = b = momentum * b + step
    return p - lr * step, v, a, b


@rule(
    keys={"m": "exp_avg", "u": "exp_inf"},
    decay="coupled",
    search={"lr": (1e-5, 1e-1)},
    means={"m": (FIRST, "beta1")},
    units={"lr": LENGTH["lr"]},
)
def adamax(p, g, m, u, *, t, lr=2e-3, beta1=0.9, beta2=0.999, eps=1e-8):
    """Adamax. Kingma and Ba 2015, arXiv:1412.6980, algorithm 2.

    Adam with the largest recent gradient instead of the root mean square. Use it instead of Adam
    where single gradients are huge.
    Differs from the paper: eps is inside the maximum, as in torch.optim.Adamax.
    """
    m = average(beta1, m, g)
    u = maximum(beta2 * u, abs(g) + eps)
    return p - lr / (1 - beta1**t) * m / u, m, u
