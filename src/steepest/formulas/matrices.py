"""Rules on whole matrices; in the same rule, another way for what has fewer than two dimensions."""

from ..definition import rule
from .adam import ADAM_KEYS, adamw
from .scaled import average
from .words import (
    captured,
    carried,
    column_mean,
    columns,
    eigenvectors,
    inner,
    maximum,
    mean,
    minimum,
    orthogonal,
    outer,
    precision,
    ranked,
    refined,
    row_mean,
    rows,
    sqrt,
    turned,
    turned_back,
    where,
)


@rule(
    keys={"row": "row_var", "column": "col_var", "v": "variance"},
    shapes={"row": "rows", "column": "columns"},
    # None as eps[0] is no number, and in no limits
    limits={"beta2_decay": "[-inf, 0]", "eps1": "[0, inf)", "eps2": "[0, inf)", "d": "[1, inf]"},
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
    limits={"adamw_lr": "[0, inf)", "adamw_eps": "[0, inf)", "ns_steps": "[1, 100)"},
    search={"lr": (1e-3, 1e-1)},
)
def muon(
    p, g, b, m, v, *, t, lr=1e-3, momentum=0.95, nesterov=True, ns_a=3.4445, ns_b=-4.775,
    ns_c=2.0315, eps=1e-7, ns_steps=5, adjust_lr_fn="original",
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
    step = average(momentum, b, g) if nesterov else b
    step = orthogonal(step, ns_a, ns_b, ns_c, eps, ns_steps)
    if adjust_lr_fn == "match_rms_adamw":
        return p - 0.2 * lr * sqrt(maximum(rows(p), columns(p))) * step, b, m, v
    return p - lr * sqrt(maximum(1, rows(p) / columns(p))) * step, b, m, v


def basis(covariance, old, t, due):
    """Of eigenvectors: begun at the first step, refined when that is due."""
    later = where(due > 0, lambda: refined(covariance, old), old)
    return where(t > 1, later, lambda: eigenvectors(covariance))


@rule(
    keys={
        **ADAM_KEYS, "left": "row_cov", "right": "col_cov", "q": "row_basis", "r": "col_basis",
    },
    shapes={"left": "outer", "right": "inner", "q": "outer", "r": "inner"},
    limits={"precondition_frequency": "[1, inf)"},
)  # fmt: skip
def soap(
    p, g, m, v, left, right, q, r, *, t, lr=3e-3, beta1=0.95, beta2=0.95, eps=1e-8,
    precondition_frequency=10, wd=0.01, moves=carried(0), matrix=True,
):  # fmt: skip
    """SOAP. Vyas et al. 2024, arXiv:2409.11321, algorithms 3 and 4.

    Adam in the eigenvectors of the gradient's covariances, of rows and of columns, which are
    refined every few steps. A parameter of more than two dimensions is taken as a matrix of its
    first against all others, a dimension above 10,000 keeps its own axes, one of fewer than two
    goes by Adam. Differs from the paper as its authors' code does: the first gradient only begins
    the covariances, moments are corrected for their start, and v is sorted along with the
    eigenvectors. Of what the first gradient does not reach (it has no full rank where rows and
    columns differ), the eigenvectors are rounding's, so that machines may part there. Use it for
    transformers whose matrices are small enough for a square of each side.
    """
    g_turned = turned(g, q, r) if matrix else g
    m = where(t > 1, average(beta1, m, g), m)
    v = where(t > 1, beta2 * v + (1 - beta2) * g_turned**2, v)
    step = (turned(m, q, r) if matrix else m) / (sqrt(v) + eps)
    step = turned_back(step, q, r) if matrix else step
    rate = where(t > 1, lr * sqrt(1 - beta2 ** (t - 1)) / (1 - beta1 ** (t - 1)), 0)
    p = where(t > 1, (p - rate * step) * (1 - lr * wd), p)
    if not matrix:
        return p, m, v, left, right, q, r, moves
    left, right = average(beta2, left, outer(g)), average(beta2, right, inner(g))
    moves = where(t > 1, moves + 1, 0)
    due = where(moves >= precondition_frequency, 1, 0)
    v = where(due > 0, lambda: ranked(v, left, q, right, r), v)
    q, r = basis(left, q, t, due), basis(right, r, t, due)
    return p, m, v, left, right, q, r, moves * (1 - due)
