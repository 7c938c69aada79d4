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

    name: as users write it in `backend="cpu"`, and as reports print it.
    takes: (options of a group, parameter) -> whether it can step that parameter with its present
        gradient.
    bucket: the class that holds such parameters and steps them.
    source: program -> the code that runs; None if the backend cannot run the program.
    """

    name: str
    takes: Callable[[Wanted, Tensor], bool]
    bucket: type[Bucket]
    source: Callable[[Program], str | None]
