"""How a step is computed: a folder and one object for each backend. No module here names a rule."""

from collections.abc import Iterable

from torch import Tensor

from .backend import Backend
from .cpu import CPU
from .eager import EAGER
from .foreach import FOREACH
from .wanted import Wanted

__all__ = ["BACKENDS", "Backend", "choose"]
BACKENDS: dict[str, Backend] = {each.name: each for each in (CPU, FOREACH, EAGER)}
"""Name -> backend, the fastest first."""


def choose(wanted: Wanted, params: Iterable[Tensor]) -> Backend:
    """The first backend, from the requested one on, that takes all of these parameters.

    The last backend takes everything but sparse gradients; for these the search continues at the
    first.
    """
    names, params = [*BACKENDS], [*params]
    start = names.index(wanted.backend) if wanted.backend else 0
    order = (BACKENDS[name] for name in (*names[start:], *names[:start]))
    return next(backend for backend in order if all(backend.takes(wanted, p) for p in params))
