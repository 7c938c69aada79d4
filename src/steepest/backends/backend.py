"""What a backend is."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from ..trace import Program
from .bucket import Bucket
from .wanted import Wanted


class Backend(NamedTuple):
    """One way to run a rule.

    name: what users write in `backend="cpu"`, and what reports print.
    takes: function of a group's options and a parameter. Returns whether the backend can step this
        parameter with its present gradient.
    bucket: the class whose objects step several parameters together.
    source: function of a program. Returns the code that the backend runs, or None if the backend
        cannot run the program.
    """

    name: str
    takes: Callable[[Wanted, Tensor], bool]
    bucket: type[Bucket]
    source: Callable[[Program], str | None]
