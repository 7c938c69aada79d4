"""The backends, which compute steps. Each backend has a folder and one `Backend` object.

No code here is written for a particular rule.
"""

from collections.abc import Iterable

from torch import Tensor

from .backend import Backend
from .cpu import CPU
from .eager import EAGER
from .foreach import FOREACH
from .wanted import Wanted

__all__ = ["BACKENDS", "Backend", "choose"]
BACKENDS: dict[str, Backend] = {each.name: each for each in (CPU, FOREACH, EAGER)}
"""Name of a backend -> `Backend`. The fastest backend comes first."""


def choose(wanted: Wanted, params: Iterable[Tensor]) -> Backend:
    """Return the first backend that can step all of these parameters.

    The search starts at the backend that `wanted` requests, or else at the fastest one, and follows
    the order of BACKENDS. After the last backend it continues with the first, because the last
    backend cannot step sparse gradients.
    """
    names, params = [*BACKENDS], [*params]
    start = names.index(wanted.backend) if wanted.backend else 0
    order = (BACKENDS[name] for name in (*names[start:], *names[:start]))
    return next(backend for backend in order if all(backend.takes(wanted, p) for p in params))
