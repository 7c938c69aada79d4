"""Linear least squares in closed form, for data in memory or as a stream."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checks import number


@dataclass(frozen=True)
class LinearFit:
    """The result of least_squares, in float64: the model y = X @ coefficients + intercept.

    `predict` evaluates the model at new points.
    """

    coefficients: Tensor
    """Shape (p), or (p, k) if y has k columns."""
    intercept: Tensor
    """Shape (), or (k) if y has k columns. It is zero with intercept=False."""
    rank: int
    """Rank of X, with centred columns if there is an intercept. If the rank is below p, the columns
    are linearly dependent, and the coefficients are the minimum-norm solution."""
    singular_values: Tensor
    """Singular values of X in descending order. With an intercept, X is centred first here too."""
    residual: Tensor
    """Sum of squares of y - prediction. Shape (), or (k) if y has k columns."""
    rows: int
    """The number of rows of X."""

    def predict(self, x: Any) -> Tensor:
        """Return the predictions in float64, shape (n) or (n, k). x: shape (n, p)."""
        return _to_matrix(x, "X") @ self.coefficients + self.intercept


def least_squares(x: Any, y: Any = None, ridge: float = 0.0, intercept: bool = True) -> LinearFit:
    """The coefficients w and intercept b that minimise |X w + b - y|^2 + ridge |w|^2.

    x: shape (n, p). y: shape (n) or (n, k). Both are tensors or arrays of real numbers. For data
    that does not fit in memory, leave y out and pass an iterable of pairs (x, y) as x.
    ridge: the penalty, at least 0. The intercept is not penalised.

    Each piece of data is merged into one triangular factor (QR of stacked factors, TSQR: Demmel et
    al. 2012, arXiv:0808.2664), so memory holds one piece and (p + k + 1)^2 numbers. The solution
    comes from the singular value decomposition of this factor. X^T X is never formed, because it
    would square the condition number (Golub & Van Loan, Matrix Computations, sections 5.3 and 5.5).

    A singular value below eps * max(n, p) * (the largest singular value) counts as zero. If X is
    rank-deficient, w has minimum norm, and `rank` of the result is below p.

    Raises TypeError or ValueError for empty data, numbers that are not finite, shapes that do not
    match, and a ridge below 0.
    """
    ridge = number("least_squares", "ridge", ridge, "[0, inf)")
    if y is None and hasattr(x, "shape"):
        raise ValueError(
            "least_squares: X was given without y, expected both, or an iterable of pairs (X, y)"
        )
    factor, rows, width, flat = None, 0, 0, False
    for piece_x, piece_y in [(x, y)] if y is not None else x:
        a, b = _to_matrix(piece_x, "X"), _to_matrix(piece_y, "y")
        if factor is None:
            width, flat = a.shape[1], _count_dims(piece_y) == 1
        b = b[:, None] if b.dim() == 1 else b
        if len(a) != len(b) or a.shape[1] != width or a.dim() != 2:
            raise ValueError(
                f"least_squares: X of shape {tuple(a.shape)} and y of shape {tuple(b.shape)} were "
                f"given, expected the same number of rows in both and {width} columns in X"
            )
        if factor is not None and factor.shape[1] != 1 + width + b.shape[1]:
            raise ValueError(
                f"least_squares: a piece whose y has {b.shape[1]} columns was given, expected "
                f"{factor.shape[1] - 1 - width} as in the first piece"
            )
        rows += len(a)
        ones = torch.full((len(a), 1), float(intercept), dtype=a.dtype, device=a.device)
        factor = stack(factor, torch.cat([ones, a, b.to(a.device)], 1))
    if factor is None or not rows or not width:
        raise ValueError(
            f"least_squares: {rows} rows of {width} columns were given, expected at least one row "
            "and one column"
        )
    return _solve(factor, rows, width, float(ridge), intercept, flat)


def stack(factor: Tensor | None, rows: Tensor) -> Tensor:
    """Merge `rows` into the triangular `factor`. `factor` is None before the first rows."""
    matrix = rows if factor is None else torch.cat([factor, rows])
    return torch.linalg.qr(matrix, mode="r").R


def _solve(
    factor: Tensor, rows: int, width: int, ridge: float, intercept: bool, flat: bool
) -> LinearFit:
    # the first column of the data is all ones: the factor without its first row and column
    # belongs to the centred data
    head = factor[0]
    rest = factor[1:] if intercept else factor
    a, b = rest[:, 1 : 1 + width], rest[:, 1 + width :]
    if intercept:  # a centred constant column is only rounding errors
        rounding = 100 * torch.finfo(a.dtype).eps * factor[:, 1 : 1 + width].norm(dim=0)
        a = torch.where(a.norm(dim=0) > rounding, a, 0)
    if not len(a):  # one row and an intercept
        a, b = a.new_zeros(1, width), b.new_zeros(1, b.shape[1])
    u, s, vh = torch.linalg.svd(a, full_matrices=False)
    kept = s > s.max() * max(rows, width) * torch.finfo(s.dtype).eps
    gain = s / (s.square() + ridge) if ridge else torch.where(kept, 1 / torch.where(kept, s, 1), 0)
    coefficients = vh.T @ (gain[:, None] * (u.T @ b))
    constant = torch.zeros_like(b[0])
    if intercept:
        constant = (head[1 + width :] - head[1 : 1 + width] @ coefficients) / head[0]
    residual = (b - a @ coefficients).square().sum(0)
    values = torch.zeros(min(rows, width), dtype=s.dtype, device=s.device)
    values[: min(len(s), len(values))] = s[: len(values)]
    if flat:
        coefficients, constant, residual = coefficients[:, 0], constant[0], residual[0]
    return LinearFit(coefficients, constant, int(kept.sum()), values, residual, rows)


def _count_dims(data: Any) -> int:
    return torch.as_tensor(data).dim()


def _to_matrix(data: Any, name: str) -> Tensor:
    try:
        # numpy reads Python floats as float64, torch reads them as float32
        matrix = data if isinstance(data, Tensor) else torch.as_tensor(np.asarray(data))
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"least_squares: {name} is a {type(data).__name__}, expected a tensor or an array of "
            "real numbers"
        ) from error
    if matrix.is_complex() or matrix.dim() not in ((2,) if name == "X" else (1, 2)):
        raise ValueError(
            f"least_squares: {name} of shape {tuple(matrix.shape)} and {matrix.dtype} was given, "
            f"expected real numbers in {'two' if name == 'X' else 'one or two'} dimensions"
        )
    matrix = matrix.detach().double()
    if not math.isfinite(float(matrix.abs().sum())):
        raise ValueError(
            f"least_squares: {name} holds numbers that are not finite, expected finite ones; leave "
            "out the rows with other numbers"
        )
    return matrix
