"""Rules on whole matrices; in the same rule, another way for what has fewer than two dimensions."""

from ..definition import rule
from .adam import ADAM_KEYS, adamw
from .scaled import average
from .words import (
    captured,
    column_mean,
    columns,
    maximum,
    mean,
    minimum,
    orthogonal,
    precision,
    row_mean,
    rows,
    sqrt,
    where,
)


@rule(
    keys={"row": "row_var", "column": "col_var", "v": "variance"},
    shapes={"row": "rows", "column": "columns"},
    limits={"beta2_decay": "[-inf, 0]", "eps2": "[0, inf)", "d": "[1, inf)"},
    search={"lr": (1e-4, 1e-1)},
)
def adafactor(
    p, g, row, column, v, *, t, lr=1e-2, beta2_decay=-0.8, eps1=-1.0, eps2=1e-3, d=1.0,
    wd=0.0, matrix=True,
):  # fmt: skip
    """Adafactor. Shazeer and Stern 2018, arXiv:1804.04235, algorithms 4 and 5.

    RMSprop that keeps, of a matrix of second moments, the means of its rows and columns alone;
    its step is clipped to a root mean square of d and is a share of the parameter's own.
    Differs from the paper as torch.optim.Adafactor does: eps1 is not added to every square, it
    bounds what is divided by; None (here -1) is the precision of the parameter's dtype. Use it
    where the second moment of large matrices does not fit in memory.
    """
    eps1 = where(eps1 < 0, precision(p), eps1)
    if matrix:
        row = average(1 - t**beta2_decay, row, row_mean(g**2))
        column = average(1 - t**beta2_decay, column, column_mean(g**2))
        estimate = row * column / maximum(column_mean(row), eps1)
    else:
        estimate = v = average(1 - t**beta2_decay, v, g**2)
    step = g / sqrt(maximum(estimate, eps1**2))
    size = maximum(eps2, sqrt(mean(p**2))) * minimum(lr, 1 / sqrt(t))
    p = p * (1 - lr * wd)
    return p - size / maximum(1, sqrt(mean(step**2)) / d) * step, row, column, v


def scaled(other, lr, base_lr):
    """Another rate, by the share of its start that a schedule has left of lr."""
    return other * where(base_lr > 0, lr / base_lr, 1)


@rule(
    keys={**ADAM_KEYS, "b": "momentum_buffer"},
    limits={"adamw_lr": "[0, inf)", "adamw_eps": "[0, inf)"},
    search={"lr": (1e-3, 1e-1)},
)
def muon(
    p, g, b, m, v, *, t, lr=1e-3, momentum=0.95, nesterov=True, adjust_lr_fn="original",
    adamw_lr=3e-4, beta1=0.9, beta2=0.95, adamw_eps=1e-10, base_lr=captured("lr"), matrix=True,
):  # fmt: skip
    """Muon. Jordan et al. 2024, https://kellerjordan.github.io/posts/muon.

    Momentum whose step is made orthogonal: all its singular values become about 1. A parameter
    of more than two dimensions is taken as a matrix of its first against all others; one of
    fewer goes by AdamW at adamw_lr, which a schedule of lr scales too. Differs from the post:
    the momentum is an average, as in torch.optim.Muon. Use it for the hidden matrices of
    transformers and multilayer networks; hand embeddings and heads to adamw.
    """
    if not matrix:
        rate = scaled(adamw_lr, lr, base_lr)
        new = adamw.function(p, g, m, v, t=t, lr=rate, beta1=beta1, beta2=beta2, eps=adamw_eps)
        return new[0], b, *new[1:]
    b = average(momentum, b, g)
    step = orthogonal(average(momentum, b, g) if nesterov else b)
    if adjust_lr_fn == "match_rms_adamw":
        return p - 0.2 * lr * sqrt(maximum(rows(p), columns(p))) * step, b, m, v
    return p - lr * sqrt(maximum(1, rows(p) / columns(p))) * step, b, m, v
