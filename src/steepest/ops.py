"""The words a rule may use beyond `+ - * / **`.

A word looks at the type of its arguments and says itself in that type's way: on numbers here, on
symbols in `trace.py`, on torch tensors in `backends/eager/`. Nothing in this room imports torch.
"""

import math
from collections.abc import Callable
from typing import Any

_meanings: dict[type, dict[str, Callable[..., Any]]] = {}


def register(kind: type, **meanings: Callable[..., Any]) -> None:
    """Teach the words to a type and its subclasses: `register(Tensor, sqrt=torch.sqrt)`."""
    _meanings.setdefault(kind, {}).update(meanings)


def _say(word: str, *given: Any) -> Any:
    arguments = [a.whole() if isinstance(a, Parted) else a for a in given]
    for argument in arguments:
        for kind in type(argument).__mro__:
            if word in _meanings.get(kind, ()):
                return _meanings[kind][word](*arguments)
    return _NUMBER[word](*(Number(a) for a in arguments))


class Number(float):
    """A float with IEEE 754's arithmetic: 1/0 is inf and (-1)**0.5 is nan, no exception."""

    def _ieee(name: str) -> Callable[["Number", Any], Any]:  # type: ignore[misc]  # noqa: N805
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

    __add__, __radd__ = _ieee("__add__"), _ieee("__radd__")
    __sub__, __rsub__ = _ieee("__sub__"), _ieee("__rsub__")
    __mul__, __rmul__ = _ieee("__mul__"), _ieee("__rmul__")
    __truediv__, __rtruediv__ = _ieee("__truediv__"), _ieee("__rtruediv__")
    __pow__, __rpow__ = _ieee("__pow__"), _ieee("__rpow__")  # type: ignore[assignment]

    def __neg__(self) -> "Number":
        return Number(-float(self))


class Parted:
    """A parameter as share * old + moved, apart: what is left of the old one, and the step.

    A rule that is called with it returns it so: sums and host factors keep the parts, and wherever
    else it stands it is the whole.
    """

    def __init__(self, old: Any, share: Any = 1, moved: Any = 0) -> None:
        self.old, self.share, self.moved = old, share, moved

    def whole(self) -> Any:
        """Both parts together."""
        return self.share * self.old + self.moved

    def __add__(self, other: Any) -> "Parted":
        share, moved = (other.share, other.moved) if isinstance(other, Parted) else (0, other)
        return Parted(self.old, self.share + share, self.moved + moved)

    def __mul__(self, other: Any) -> Any:
        other = other.whole() if isinstance(other, Parted) else other
        number = isinstance(other, (int, float))
        # of torch's tensors, a norm
        if number or (other.host if hasattr(type(other), "host") else not other.ndim):
            return Parted(self.old, self.share * other, self.moved * other)
        return self.whole() * other

    __radd__, __rmul__ = __add__, __mul__

    def __neg__(self) -> "Parted":
        return self * -1

    def __sub__(self, other: Any) -> "Parted":
        return self + -other

    def __rsub__(self, other: Any) -> "Parted":
        return -self + other

    def __truediv__(self, other: Any) -> Any:
        return self * (1 / other)

    def __rtruediv__(self, other: Any) -> Any:
        return other / self.whole()

    def __pow__(self, other: Any) -> Any:
        return self.whole() ** other

    def __rpow__(self, other: Any) -> Any:
        return other ** self.whole()

    def __abs__(self) -> Any:
        return abs(self.whole())


def larger(a: float, b: float) -> float:
    """The larger of two numbers; nan if either is, as torch.maximum has it."""
    return a if a > b or a != a else b


def smaller(a: float, b: float) -> float:
    """The smaller of two numbers; nan if either is, as torch.minimum has it."""
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
    return _say("sqrt", x)


def log(x: Any) -> Any:
    """Natural logarithm; -inf of zero, nan below."""
    return _say("log", x)


def abs(x: Any) -> Any:
    """Absolute value."""
    return _say("abs", x)


def sign(x: Any) -> Any:
    """-1, 0 or 1; 0 for nan, as torch.sign has it."""
    return _say("sign", x)


def maximum(a: Any, b: Any) -> Any:
    """The larger of two; nan if either is."""
    return _say("maximum", a, b)


def minimum(a: Any, b: Any) -> Any:
    """The smaller of two; nan if either is."""
    return _say("minimum", a, b)


def norm(x: Any) -> Any:
    """Euclidean norm of the whole tensor: a scalar of its own for each parameter."""
    return _say("norm", x)


def mean(x: Any) -> Any:
    """Mean over the whole tensor: a scalar of its own for each parameter."""
    return _say("mean", x)


def total(x: Any) -> Any:
    """Sum over the parameters of all groups that the rule steps, one scalar for all. In a modifier,
    as where a group is clipped: over those of the group.
    """
    return _say("total", x)


def row_mean(x: Any) -> Any:
    """Mean over the last dimension, which stays as one of size 1."""
    return _say("row_mean", x)


def column_mean(x: Any) -> Any:
    """Mean over the last dimension but one, which stays as one of size 1."""
    return _say("column_mean", x)


def orthogonal(x: Any, a: Any, b: Any, c: Any, eps: Any, steps: Any) -> Any:
    """Nearly the orthogonal matrix nearest to x, all dimensions but the first taken as one.

    Steps of a quintic Newton-Schulz iteration in bfloat16 (Jordan et al. 2024, Muon), of x over its
    norm, or over eps if that is larger: a x + b x x^T x + c (x x^T)^2 x. After five of Muon's the
    singular values that were above 0.0015 of the norm are between 0.67 and 1.21; what was smaller
    is at most 485 times what it was.
    """
    return _say("orthogonal", x, a, b, c, eps, steps)


def covariances(x: Any) -> Any:
    """Of each dimension of x its covariance over all others, a square each; one after the other.

    A dimension that is too large (10,000) has none, and keeps its own axes.
    """
    return _say("covariances", x)


def turned(x: Any, bases: Any) -> Any:
    """x in the bases of its dimensions, of a matrix left^T x right; bases lie as `covariances`."""
    return _say("turned", x, bases)


def turned_back(x: Any, bases: Any) -> Any:
    """The inverse of `turned`: of a matrix left x right^T."""
    return _say("turned_back", x, bases)


def eigenvectors(covariances: Any, x: Any) -> Any:
    """Bases of the eigenvectors of x's covariances, in columns, that of the largest first."""
    return _say("eigenvectors", covariances, x)


def refined(covariances: Any, bases: Any, x: Any) -> Any:
    """Bases nearer to the eigenvectors of the covariances: ordered, one power iteration, QR."""
    return _say("refined", covariances, bases, x)


def ranked(x: Any, covariances: Any, bases: Any) -> Any:
    """x, held in the bases, after they are ordered as `refined` does."""
    return _say("ranked", x, covariances, bases)


def rows(x: Any) -> Any:
    """The size of the first dimension."""
    return _say("rows", x)


def columns(x: Any) -> Any:
    """The size of all dimensions but the first, taken as one."""
    return _say("columns", x)


def precision(x: Any) -> Any:
    """The distance from 1 to the next number of the dtype that a parameter x is stored in.

    Not of a wider one that the step is computed in. Whatever the rounding: Kahan's second number
    and stochastic rounding change how a step is stored, and not the step.
    """
    return _say("precision", x)


def where(condition: Any, then: Any, otherwise: Any) -> Any:
    """One side for good, by scalars alone: what the other side holds, nan or not, is lost.

    A side that is dear may be a function of nothing, which is called if that side is taken.
    """
    if isinstance(condition, (bool, int, float)):
        return chosen(condition, then, otherwise)
    known = any("where" in _meanings.get(kind, ()) for kind in type(condition).__mro__)
    if not known or (
        hasattr(type(condition), "ndim") and condition.ndim
    ):  # one element of a tensor is a scalar
        raise TypeError(
            f"where() of a {type(condition).__name__}: its condition is of scalars; to choose by "
            "elements use maximum, minimum or sign"
        )
    if not hasattr(type(condition), "ndim"):  # of a trace: both sides are needed
        then, otherwise = side(then), side(otherwise)
    if isinstance(then, Parted) and isinstance(otherwise, Parted):
        share = _say("where", condition, then.share, otherwise.share)
        return Parted(then.old, share, _say("where", condition, then.moved, otherwise.moved))
    return _say("where", condition, then, otherwise)


def chosen(condition: Any, then: Any, otherwise: Any) -> Any:
    """`where` by a condition that is known: of the side not taken there is no gradient either."""
    return side(then if condition else otherwise)


def side(x: Any) -> Any:
    """A side of `where`, called if it is a function; a number in the arithmetic of numbers."""
    x = x() if callable(x) else x
    return Number(x) if type(x) in (int, float) else x


class carried(float):  # noqa: N801  reads as a word in a signature
    """A scalar that each parameter carries from step to step: `mu_product=carried(1)`.

    It starts at the value given, and the rule returns its next value after the states.
    """


class captured(str):  # noqa: N801
    """A group's own constant: `base_lr=captured("lr")` keeps the lr it was made with."""
