"""The functions that a rule may use beyond `+ - * / **`.

Each function is implemented per type of its arguments: for numbers here, for symbols in `trace.py`,
for torch tensors in `backends/eager/`. This module does not import torch.
"""

import math
from collections.abc import Callable
from typing import Any

_implementations: dict[type, dict[str, Callable[..., Any]]] = {}


def register(of: type, **implementations: Callable[..., Any]) -> None:
    """Implement functions for a type and its subclasses: `register(Tensor, sqrt=torch.sqrt)`."""
    _implementations.setdefault(of, {}).update(implementations)


def _dispatch(name: str, *operands: Any) -> Any:
    arguments = [a.joined() if isinstance(a, SplitParameter) else a for a in operands]
    for argument in arguments:
        for base in type(argument).__mro__:
            if name in _implementations.get(base, ()):
                return _implementations[base][name](*arguments)
    return _NUMBER[name](*(Number(a) for a in arguments))


class Number(float):
    """A float with IEEE 754 arithmetic: 1/0 is inf and (-1)**0.5 is nan, without an exception."""

    def _make_operation(name: str) -> Callable[["Number", Any], Any]:  # type: ignore[misc]  # noqa: N805
        plain = getattr(float, name)

        def operation(self: "Number", other: Any) -> Any:
            if isinstance(other, int):
                other = float(other)
            try:
                result = plain(self, other)
            except ZeroDivisionError:
                if "pow" in name:
                    return Number(math.inf)
                above, below = (other, self) if name == "__rtruediv__" else (self, other)
                if above == 0 or above != above:
                    return Number(math.nan)
                return Number(math.copysign(math.inf, above) * math.copysign(1.0, below))
            except OverflowError:
                base, exponent = (other, self) if name == "__rpow__" else (self, other)
                return Number(-math.inf if base < 0 and exponent % 2 == 1 else math.inf)
            if isinstance(result, complex):
                return Number(math.nan)
            return result if result is NotImplemented else Number(result)

        return operation

    __add__, __radd__ = _make_operation("__add__"), _make_operation("__radd__")
    __sub__, __rsub__ = _make_operation("__sub__"), _make_operation("__rsub__")
    __mul__, __rmul__ = _make_operation("__mul__"), _make_operation("__rmul__")
    __truediv__, __rtruediv__ = _make_operation("__truediv__"), _make_operation("__rtruediv__")
    __pow__, __rpow__ = _make_operation("__pow__"), _make_operation("__rpow__")  # type: ignore[assignment]

    def __neg__(self) -> "Number":
        return Number(-float(self))


class SplitParameter:
    """A parameter as share * old + moved. `share` is the factor of the old value, and `moved` is
    the step.

    A sum, or a product with a scalar, keeps the two terms apart. Any other operation adds them up
    and returns an ordinary value.
    """

    def __init__(self, old: Any, share: Any = 1, moved: Any = 0) -> None:
        self.old, self.share, self.moved = old, share, moved

    def joined(self) -> Any:
        """Returns the sum of both terms."""
        return self.share * self.old + self.moved

    def __add__(self, other: Any) -> "SplitParameter":
        share, moved = (
            (other.share, other.moved) if isinstance(other, SplitParameter) else (0, other)
        )
        return SplitParameter(self.old, self.share + share, self.moved + moved)

    def __mul__(self, other: Any) -> Any:
        other = other.joined() if isinstance(other, SplitParameter) else other
        number = isinstance(other, (int, float))
        # a tensor without dimensions is a scalar too, such as a norm
        if number or (other.host if hasattr(type(other), "host") else not other.ndim):
            return SplitParameter(self.old, self.share * other, self.moved * other)
        return self.joined() * other

    __radd__, __rmul__ = __add__, __mul__

    def __neg__(self) -> "SplitParameter":
        return self * -1

    def __sub__(self, other: Any) -> "SplitParameter":
        return self + -other

    def __rsub__(self, other: Any) -> "SplitParameter":
        return -self + other

    def __truediv__(self, other: Any) -> Any:
        return self * (1 / other)

    def __rtruediv__(self, other: Any) -> Any:
        return other / self.joined()

    def __pow__(self, other: Any) -> Any:
        return self.joined() ** other

    def __rpow__(self, other: Any) -> Any:
        return other ** self.joined()

    def __abs__(self) -> Any:
        return abs(self.joined())


def larger(a: float, b: float) -> float:
    """The larger of two numbers; nan if one of them is nan, as in torch.maximum."""
    return a if a > b or a != a else b


def smaller(a: float, b: float) -> float:
    """The smaller of two numbers; nan if one of them is nan, as in torch.minimum."""
    return a if a < b or a != a else b


_NUMBER: dict[str, Callable[..., Any]] = {
    "sqrt": lambda x: Number(math.sqrt(x)) if x >= 0 else Number(math.nan),
    "log": lambda x: Number(math.log(x) if x > 0 else -math.inf if x == 0 else math.nan),
    "abs": lambda x: Number(math.fabs(x)),
    "sign": lambda x: Number((x > 0) - (x < 0)),
    "maximum": larger,
    "minimum": smaller,
    "norm": lambda x: Number(math.fabs(x)),
    "mean": Number,
    "total": Number,
    "row_mean": Number,
    "column_mean": Number,
    "orthogonal": lambda x, *about: Number((x > 0) - (x < 0)),
    "covariances": lambda x: Number(x * x),
    "turned": lambda x, bases: Number(x * bases),
    "turned_back": lambda x, bases: Number(x * bases),
    "eigenvectors": lambda covariances, x: Number(1),
    "refined": lambda covariances, bases, x: Number(1),
    "ranked": lambda x, *about: Number(x),
    "rows": lambda x: Number(1),
    "columns": lambda x: Number(1),
    "precision": lambda x: Number(2.0**-52),
}


def sqrt(x: Any) -> Any:
    """Square root; nan below zero."""
    return _dispatch("sqrt", x)


def log(x: Any) -> Any:
    """Natural logarithm; -inf at zero, nan below zero."""
    return _dispatch("log", x)


def abs(x: Any) -> Any:
    """Absolute value."""
    return _dispatch("abs", x)


def sign(x: Any) -> Any:
    """Sign of x: -1, 0 or 1; 0 for nan, as in torch.sign."""
    return _dispatch("sign", x)


def maximum(a: Any, b: Any) -> Any:
    """The larger of two values; nan if one of them is nan."""
    return _dispatch("maximum", a, b)


def minimum(a: Any, b: Any) -> Any:
    """The smaller of two values; nan if one of them is nan."""
    return _dispatch("minimum", a, b)


def norm(x: Any) -> Any:
    """Euclidean norm of the whole tensor: one scalar for each parameter."""
    return _dispatch("norm", x)


def mean(x: Any) -> Any:
    """Mean over the whole tensor: one scalar for each parameter."""
    return _dispatch("mean", x)


def total(x: Any) -> Any:
    """Sum over the parameters of all groups that the rule steps: one scalar for all of them.

    In a modifier, such as the one that clips gradients, the sum is over one group's parameters.
    """
    return _dispatch("total", x)


def row_mean(x: Any) -> Any:
    """Mean over the last dimension, which is kept with size 1."""
    return _dispatch("row_mean", x)


def column_mean(x: Any) -> Any:
    """Mean over the second to last dimension, which is kept with size 1."""
    return _dispatch("column_mean", x)


def orthogonal(x: Any, a: Any, b: Any, c: Any, eps: Any, steps: Any) -> Any:
    """An approximation of the orthogonal matrix nearest to x; all dimensions but the first are
    flattened.

    A quintic Newton-Schulz iteration in bfloat16 (Jordan et al. 2024, Muon). It starts from x
    divided by its norm, or by eps if eps is larger. Each step replaces x by
    a x + b x x^T x + c (x x^T)^2 x. After five steps with Muon's coefficients, singular values that
    were above 0.0015 of the norm are between 0.67 and 1.21; smaller ones have grown by a factor of
    at most 485.
    """
    return _dispatch("orthogonal", x, a, b, c, eps, steps)


def covariances(x: Any) -> Any:
    """Returns a covariance matrix for each dimension of x: products of entries, summed over all
    other dimensions. The matrices are flattened and concatenated.

    A dimension larger than 10,000 has no covariance matrix, and `turned` does not change it.
    """
    return _dispatch("covariances", x)


def turned(x: Any, bases: Any) -> Any:
    """Returns x in the coordinates of the bases: left^T x right for a matrix.

    bases: a square matrix for each dimension of x, flattened and concatenated as in `covariances`.
    """
    return _dispatch("turned", x, bases)


def turned_back(x: Any, bases: Any) -> Any:
    """The inverse of `turned`: left x right^T for a matrix."""
    return _dispatch("turned_back", x, bases)


def eigenvectors(covariances: Any, x: Any) -> Any:
    """Returns the eigenvectors of each covariance matrix of x, as the columns of a basis.

    The eigenvector with the largest eigenvalue comes first.
    """
    return _dispatch("eigenvectors", covariances, x)


def refined(covariances: Any, bases: Any, x: Any) -> Any:
    """Returns bases that are closer to the eigenvectors of the covariances.

    The basis vectors are sorted, and one power iteration with a QR decomposition follows.
    """
    return _dispatch("refined", covariances, bases, x)


def ranked(x: Any, covariances: Any, bases: Any) -> Any:
    """Returns x in the order into which `refined` sorts the basis vectors.

    x: a tensor in the coordinates of `bases`.
    """
    return _dispatch("ranked", x, covariances, bases)


def rows(x: Any) -> Any:
    """The size of the first dimension."""
    return _dispatch("rows", x)


def columns(x: Any) -> Any:
    """The product of the sizes of all dimensions but the first."""
    return _dispatch("columns", x)


def precision(x: Any) -> Any:
    """The distance from 1 to the next larger number in the dtype in which parameter x is stored.

    The step may be computed in a wider dtype. Kahan's second number and stochastic rounding do not
    matter here: they change how a step is stored, not the step itself.
    """
    return _dispatch("precision", x)


def where(condition: Any, then: Any, otherwise: Any) -> Any:
    """Returns one of two values, chosen by a scalar condition. A nan in the other has no effect.

    A value that is expensive to compute may be given as a function without arguments. A step then
    calls the function only if its value is chosen.
    """
    if isinstance(condition, (bool, int, float)):
        return choose_side(condition, then, otherwise)
    known = any("where" in _implementations.get(base, ()) for base in type(condition).__mro__)
    is_tensor = hasattr(type(condition), "ndim")
    if not known or (is_tensor and condition.ndim):  # a tensor without dimensions is a scalar
        raise TypeError(
            f"where() of a {type(condition).__name__}: the condition must be a scalar; to choose "
            "by elements use maximum, minimum or sign"
        )
    if not is_tensor:  # a traced condition: both sides are needed
        then, otherwise = evaluate_side(then), evaluate_side(otherwise)
    if isinstance(then, SplitParameter) and isinstance(otherwise, SplitParameter):
        share = _dispatch("where", condition, then.share, otherwise.share)
        return SplitParameter(
            then.old, share, _dispatch("where", condition, then.moved, otherwise.moved)
        )
    return _dispatch("where", condition, then, otherwise)


def choose_side(condition: Any, then: Any, otherwise: Any) -> Any:
    """`where` for a condition of known value. No gradient flows to the side that is not chosen."""
    return evaluate_side(then if condition else otherwise)


def evaluate_side(x: Any) -> Any:
    """Returns the value of one side of `where`.

    A function is called, and a number becomes a `Number`.
    """
    x = x() if callable(x) else x
    return Number(x) if type(x) in (int, float) else x


class carried(float):  # noqa: N801  written in signatures like a function
    """A scalar that each parameter carries from step to step: `mu_product=carried(1)`.

    The scalar starts at the number in parentheses. The rule returns the scalar's next value after
    the new states.
    """


class captured(str):  # noqa: N801
    """A constant of a group: `base_lr=captured("lr")` keeps the lr that the group was made with."""
