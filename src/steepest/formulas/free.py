"""Schedule-Free rules: they average the iterates instead of lowering the learning rate."""

from ..definition import rule
from ..ops import carried, maximum, sqrt, where

_LIMITS = {"warmup_steps": "[0, inf)", "r": "[0, inf)", "weight_lr_power": "[0, inf)"}


def weigh(t, lr, warmup_steps, r, weight_lr_power, lr_max, weight_sum):
    """The warmed-up lr, the share of the newest z in the average, and the carried scalars."""
    lr = lr * where(t < warmup_steps, t / warmup_steps, 1)
    lr_max = maximum(lr_max, lr)
    weight = t**r * lr_max**weight_lr_power
    weight_sum = weight_sum + weight
    return lr, where(weight_sum > 0, weight / weight_sum, 0), lr_max, weight_sum


def move_points(y, z, step, lr, beta, c):
    """The new y, at which the next gradient is taken, and the new z.

    The average x is not stored, because y = (1 - beta) z + beta x.
    """
    return y + c * (z - y) - lr * (1 - beta * (1 - c)) * step, z - lr * step


@rule(
    called="SGDScheduleFree",
    decay="coupled",
    limits={**_LIMITS, "momentum": "(0, 1)"},
    search={"lr": (1e-2, 1e1)},
)
def schedule_free_sgd(
    p,
    g,
    z,
    *,
    t,
    lr=1.0,
    momentum=0.9,
    warmup_steps=0.0,
    r=0.0,
    weight_lr_power=2.0,
    lr_max=carried(-1),
    weight_sum=carried(0),
):
    """Schedule-Free SGD. Defazio et al. 2024, arXiv:2405.15682, equations 3 to 5.

    Gradient descent on a point z. Gradients are taken at a point y between z and x, and x is the
    weighted average of all z. The average replaces a schedule, and y replaces a momentum buffer.
    During training the parameter is y; `eval()` sets it to x, and `train()` sets it to y again.
    Differs from the paper, as the authors' package schedulefree does: lr has a warm-up, and the
    average has other weights. Use it where SGD does well and the number of steps is not known
    beforehand.
    """
    z = where(t > 1, z, p)
    lr, c, lr_max, weight_sum = weigh(t, lr, warmup_steps, r, weight_lr_power, lr_max, weight_sum)
    y, z = move_points(p, z, g, lr, momentum, c)
    return y, z, lr_max, weight_sum


@rule(
    called="AdamWScheduleFree",
    keys={"v": "exp_avg_sq"},
    limits={**_LIMITS, "beta1": "(0, 1)"},
    search={"lr": (1e-4, 1e-1)},
)
def schedule_free_adamw(
    p,
    g,
    z,
    v,
    *,
    t,
    lr=2.5e-3,
    beta1=0.9,
    beta2=0.999,
    eps=1e-8,
    wd=0.0,
    warmup_steps=0.0,
    r=0.0,
    weight_lr_power=2.0,
    lr_max=carried(-1),
    weight_sum=carried(0),
):
    """Schedule-Free AdamW. Defazio et al. 2024, arXiv:2405.15682, algorithm 1.

    Schedule-Free SGD whose gradient is divided by the root of Adam's second moment. beta1 sets the
    point between z and x where gradients are taken. Weight decay acts on y and is added to the
    divided gradient.
    Differs from the paper, as the authors' package schedulefree does: the bias correction is
    applied to the second moment instead of lr, because lr sets the weights of the average. Use it
    instead of AdamW with a schedule, where the number of steps is not known beforehand.
    """
    z = where(t > 1, z, p)
    v = beta2 * v + (1 - beta2) * g**2
    step = g / (sqrt(v / (1 - beta2**t)) + eps) + wd * p
    lr, c, lr_max, weight_sum = weigh(t, lr, warmup_steps, r, weight_lr_power, lr_max, weight_sum)
    y, z = move_points(p, z, step, lr, beta1, c)
    return y, z, v, lr_max, weight_sum
