"""Rules that step matrices. Each has another branch for parameters of fewer than two dimensions."""

from ..definition import rule
from ..ops import (
    captured,
    carried,
    column_mean,
    columns,
    covariances,
    eigenvectors,
    maximum,
    mean,
    minimum,
    orthogonal,
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
from .adam import ADAM_KEYS, adamw
from .scaled import average


@rule(
    keys={"row": "row_var", "column": "col_var", "v": "variance"},
    shapes={"row": "rows", "column": "columns"},
    # eps[0] may be None; a limit does not apply to None
    limits={"beta2_decay": "[-inf, 0]", "eps1": "[0, inf)", "eps2": "[0, inf)", "d": "[1, inf]"},
    search={"lr": (1e-4, 1e-1)},
)
def adafactor(
    p,
    g,
    row,
    column,
    v,
    *,
    t,
    lr=1e-2,
    beta2_decay=-0.8,
    eps1=-1.0,
    eps2=1e-3,
    d=1.0,
    wd=0.0,
    matrix=True,
):
    """Adafactor. Shazeer and Stern 2018, arXiv:1804.04235, algorithms 4 and 5.

    RMSprop that keeps only the row means and the column means of a matrix of second moments. Its
    step is clipped to a root mean square of d, then multiplied by the root mean square of the
    parameter (at least eps2).
    Differs from the paper, as torch.optim.Adafactor does: eps1 is the smallest divisor instead of a
    term added to every square. None (here -1) means the machine epsilon of the dtype in which the
    parameter is stored, whatever `rounding` is. Use it where the second moment of large matrices
    does not fit in memory.
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


def scale_rate(other, lr, base_lr):
    """Scale another rate by the schedule of lr: other * lr / (first lr), and 0 where lr is 0."""
    return other * where(base_lr > 0, lr / base_lr, where(lr > 0, 1, 0))


@rule(
    keys={**ADAM_KEYS, "b": "momentum_buffer"},
    limits={
        "adamw_lr": "[0, inf)",
        "adamw_eps": "[0, inf)",
        "ns_steps": "[0, 100)",
        "momentum": ("[0, 1]", "it is the share that the average keeps of its old value"),
        "ns_a": ("(0, inf)", "it is the slope at 0, and a negative slope reverses the step"),
        "ns_b": "(-inf, inf)",
        "ns_c": "(-inf, inf)",
    },
    search={"lr": (1e-3, 1e-1)},
)
def muon(
    p,
    g,
    b,
    m,
    v,
    *,
    t,
    lr=1e-3,
    momentum=0.95,
    nesterov=True,
    ns_a=3.4445,
    ns_b=-4.775,
    ns_c=2.0315,
    eps=1e-7,
    ns_steps=5,
    adjust_lr_fn="original",
    adamw_lr=3e-4,
    beta1=0.9,
    beta2=0.95,
    adamw_eps=1e-10,
    wd=0.1,
    base_lr=captured("lr"),
    matrix=True,
):
    """Muon. Jordan et al. 2024, https://kellerjordan.github.io/posts/muon.

    Momentum whose step is made nearly orthogonal: its singular values become 0.67 to 1.21. Singular
    values below 0.0015 of the step's norm stay below 0.67. A parameter of more than two dimensions
    is flattened to a matrix whose rows are its first dimension. A parameter of fewer than two
    dimensions is stepped by AdamW with the same weight_decay and the rate adamw_lr, which a
    schedule of lr scales. Use it for the hidden matrices of transformers and multilayer networks;
    give embeddings and heads to adamw.
    Differs from the post, as torch.optim.Muon does: the momentum is an average, eps is the smallest
    divisor instead of a term added to the norm, weight decay is applied, and adjust_lr_fn can be
    that of Liu et al. Differs from the authors' code: a parameter of three dimensions is treated as
    a convolution; the authors' code treats it as a batch of matrices. For a convolution, the factor
    sqrt(rows / columns) is computed from the flattened matrix; the authors' code computes it from
    the kernel's height and width, so it is 1 for every square kernel.
    torch.optim.Muon takes only parameters of two dimensions.
    """
    if not matrix:
        rate = scale_rate(adamw_lr, lr, base_lr)
        p = p * (1 - rate * wd)
        p, m, v = adamw.function(p, g, m, v, t=t, lr=rate, beta1=beta1, beta2=beta2, eps=adamw_eps)
        return p, b, m, v
    b = average(momentum, b, g)
    step = average(momentum, b, g) if nesterov else b
    step = orthogonal(step, ns_a, ns_b, ns_c, eps, ns_steps)
    p = p * (1 - lr * wd)
    if adjust_lr_fn == "match_rms_adamw":
        return p - 0.2 * lr * sqrt(maximum(rows(p), columns(p))) * step, b, m, v
    return p - lr * sqrt(maximum(1, rows(p) / columns(p))) * step, b, m, v


@rule(
    keys={**ADAM_KEYS, "c": "covariances", "q": "bases"},
    shapes={"c": "covariances", "q": "covariances"},
    limits={
        "precondition_frequency": "[1, inf)",
        "eps": ("(0, inf)", "some second moments are 0 if a gradient has no full rank"),
    },
    called="SOAP",
    excused={
        "coarse": "SOAP makes full steps in directions in which a gradient of rank 1 is only a "
        "rounding error"
    },
)
def soap(
    p,
    g,
    m,
    v,
    c,
    q,
    *,
    t,
    lr=3e-3,
    beta1=0.95,
    beta2=0.95,
    eps=1e-8,
    precondition_frequency=10,
    wd=0.01,
    moves=carried(0),
    matrix=True,
):
    """SOAP. Vyas et al. 2024, arXiv:2409.11321, algorithms 3 and 4.

    Adam in the basis of the eigenvectors of the gradient's covariances. Each dimension has a
    covariance matrix, whose eigenvectors are refined every `precondition_frequency` steps. A
    dimension above 10,000 is not rotated, a parameter of fewer than two dimensions is stepped by
    Adam, and a complex parameter is refused.
    Differs from the paper, as the authors' code does: the first gradient only initialises the
    covariances, moments are bias-corrected, v is sorted together with the eigenvectors, weight
    decay comes after the step, and a parameter of more than two dimensions has a basis for each
    dimension. If the first gradient does not have full rank (for example, because the numbers of
    rows and columns differ), rounding decides some eigenvectors, and results may differ between
    machines. Use it for transformers, if memory has room for a square matrix for each side of each
    weight matrix.
    """
    g_turned = turned(g, q) if matrix else g
    m = where(t > 1, average(beta1, m, g), m)
    v = where(t > 1, beta2 * v + (1 - beta2) * g_turned**2, v)
    step = (turned(m, q) if matrix else m) / (sqrt(v) + eps)
    step = turned_back(step, q) if matrix else step
    rate = where(t > 1, lr * sqrt(1 - beta2 ** (t - 1)) / (1 - beta1 ** (t - 1)), 0)
    p = where(t > 1, (p - rate * step) * (1 - lr * wd), p)
    if not matrix:
        return p, m, v, c, q, moves
    c = average(beta2, c, covariances(g))
    moves = where(t > 1, moves + 1, 0)
    due = where(moves >= precondition_frequency, 1, 0)
    v = where(due > 0, lambda: ranked(v, c, q), v)
    q = where(t > 1, where(due > 0, lambda: refined(c, q, g), q), lambda: eigenvectors(c, g))
    return p, m, v, c, q, moves * (1 - due)
