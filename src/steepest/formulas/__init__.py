"""What an optimizer is: the mathematics, a rule each, in order of growing complexity.

This room imports the decorator and the words, and neither torch nor numpy.
"""

# in order of complexity
from . import gradient, scaled, adam, signs, bound, belief, momenta, free  # noqa: F401, I001
from . import norms, matrices  # noqa: F401
