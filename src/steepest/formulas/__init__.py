"""What an optimizer is: the mathematics, one rule each, in order of growing complexity.

This package imports the decorator and `ops`, and neither torch nor numpy.
"""

# in order of complexity
from . import gradient, scaled, adam, signs, bound, belief, momenta, free  # noqa: F401, I001
from . import norms, matrices  # noqa: F401
