"""What a backend is."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from ..trace import Program
from .bucket import Bucket, Wanted


class Backend(NamedTuple):
    """One way to run a rule.

    name: as users give it, `backend="cpu"`, and as a report says it.
    takes: (what a group asks for, a parameter) -> whether it can step that parameter, with the
    gradient that is there now.
    bucket: what keeps such parameters, and steps them.
    source: the text that runs, made of a program; None for a program that it cannot run.
    """

    name: str
    takes: Callable[[Wanted, Tensor], bool]
    bucket: type[Bucket]
    source: Callable[[Program], str | None]
