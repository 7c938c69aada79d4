"""The formulas of the optimizers: one rule for each, in order of complexity.

The formulas use the decorator `rule` and `ops`. They import neither torch nor numpy.
"""

# in order of complexity
from . import gradient, scaled, adam, signs, bound, belief, momenta, free  # noqa: F401, I001
from . import norms, matrices  # noqa: F401
