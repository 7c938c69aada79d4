"""Methods that look at the loss as a whole: closed form, curvature, and search without gradients.

Each is a `torch.optim.Optimizer` whose step takes a closure that returns the loss of all data, or,
for least squares, a function. `closures` holds what they share.
"""

from torch.optim import LBFGS

from .curvature import Newton, NewtonCG
from .evolution import Genetic
from .linear import LinearFit, least_squares
from .members import Population
from .quasi import BFGS
from .residuals import LevenbergMarquardt
from .searches import Annealing, CoordinateSearch

__all__ = [
    "BFGS", "LBFGS", "Annealing", "CoordinateSearch", "Genetic", "LevenbergMarquardt", "LinearFit",
    "Newton", "NewtonCG", "Population", "least_squares",
]  # fmt: skip
