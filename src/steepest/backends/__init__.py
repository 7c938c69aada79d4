"""How a step is computed: a folder and one object for each way. No module of this room names a
rule.
"""

from collections.abc import Iterable

from torch import Tensor

from .backend import Backend
from .bucket import Wanted
from .cpu import CPU
from .eager import EAGER
from .foreach import FOREACH

__all__ = ["BACKENDS", "Backend", "choose"]
BACKENDS: dict[str, Backend] = {each.name: each for each in (CPU, FOREACH, EAGER)}
"""By name, the fastest first."""


def choose(wanted: Wanted, params: Iterable[Tensor]) -> Backend:
    """The first backend that takes all of these parameters, from the one that is asked for on.

    The last of the list takes all but sparse gradients, and for these the list begins again.
    """
    names, params = [*BACKENDS], [*params]
    start = names.index(wanted.backend) if wanted.backend else 0
    order = (BACKENDS[name] for name in (*names[start:], *names[:start]))
    return next(one for one in order if all(one.takes(wanted, p) for p in params))
