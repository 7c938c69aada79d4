"""Methods that use the loss of all data: closed form, curvature, and search without gradients.

Each method is a `torch.optim.Optimizer` whose step takes a closure that returns the loss of all
data. Two names are not optimizers: the function `least_squares`, and `Population`, which holds many
copies of a model. The module `closures` holds the code that the methods share.
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
    "BFGS",
    "LBFGS",
    "Annealing",
    "CoordinateSearch",
    "Genetic",
    "LevenbergMarquardt",
    "LinearFit",
    "Newton",
    "NewtonCG",
    "Population",
    "least_squares",
]
