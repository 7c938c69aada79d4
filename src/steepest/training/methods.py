"""Methods on the whole loss as entries, and what `steepest list --parts` says of them and of parts.

Each step of such a method sees all training data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from steepest.report.tables import align
from steepest.training.parts import PARTS, Knobs


@dataclass(frozen=True)
class Method:
    """called: its class in `steepest.full_batch`; options of it. The others as of a part."""

    called: str
    about: str
    source: str
    knobs: Knobs
    options: dict[str, Any] = field(default_factory=dict)
    needs: str = "samples"


LENGTH: Knobs = {"lr": (0.1, 1.0, 2.0)}
SQUARES = "levenberg-marquardt"
_DAMPED: Knobs = {"damping": (1e-4, 1e-2, 1e1)}
WHOLE = {
    "newton": Method("Newton", "the whole Hessian, damped", "Levenberg 1944", _DAMPED),
    "saddle-free-newton": Method(
        "Newton", "with the Hessian's absolute eigenvalues", "arXiv:1406.2572", _DAMPED,
        {"saddle_free": True},
    ),
    "newton-cg": Method("NewtonCG", "by products with the Hessian", "Nocedal-Wright", LENGTH),
    SQUARES: Method(
        "LevenbergMarquardt", "Gauss-Newton, damped", "Marquardt 1963",
        {"damping": (1e-5, 1e-3, 1e1)}, needs="samples, residuals",
    ),
    "bfgs": Method("BFGS", "the inverse Hessian from gradients", "Broyden 1970", LENGTH),
    "lbfgs": Method(  # a step of torch's is up to 20 iterations
        "LBFGS", "the same from the last 100 gradients", "torch.optim", LENGTH,
        {"line_search_fn": "strong_wolfe", "max_iter": 1},
    ),
    "genetic": Method(
        "Genetic", "50 models, selection, crossover, mutation", "Holland 1975",
        {"sigma": (1e-3, 1e-1, 1.0)},
    ),
    "annealing": Method(
        "Annealing", "random moves, seldom upwards", "Kirkpatrick 1983",
        {"sigma": (1e-4, 1e-2, 1.0), "temperature": (1e-4, 1e-2, 1.0)},
    ),
    "greedy": Method(
        "CoordinateSearch", "one parameter after the other", "Hooke 1961",
        {"size": (1e-3, 1e-1, 1.0)},
    ),
}  # fmt: skip


def listing() -> list[dict[str, Any]]:
    """The facts of every part, in the order in which an entry has them, and of every method."""
    found = {**{f"+{name}": part for name, part in PARTS.items()}, **WHOLE}
    return [
        {
            "name": name,
            "about": one.about,
            "tuned": {knob: list(span) for knob, span in one.knobs.items()},
            "needs": one.needs,
            "source": one.source,
        }
        for name, one in found.items()
    ]


def table(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """`listing()` in lines of at most 100 columns, below a head; ranges are in the JSON."""
    heads = ("name", "about", "tuned", "source")
    rows = [heads, *((f["name"], f["about"], ", ".join(f["tuned"]), f["source"]) for f in found)]
    return align(rows)
