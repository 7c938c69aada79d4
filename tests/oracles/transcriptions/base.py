"""What every transcription shares: groups, states, and the order of a step."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

Array = np.ndarray
# options that many comparisons share
DECAY, UP = {"weight_decay": 0.03}, {"maximize": True}
SHORT = {"betas": (0.5, 0.9)}


class Transcription:
    """An optimizer in NumPy, in float64, one array at a time.

    groups: dicts with "params", a list of arrays, and options of their own. After a step the new
    value is `groups[i]["params"][j]`; options (lr) may be changed between steps.
    """

    defaults: ClassVar[dict[str, Any]] = {}

    def __init__(self, groups: list[dict[str, Any]], **options: Any) -> None:
        self.groups = [{**self.defaults, **options, **group} for group in groups]
        for group in self.groups:
            group["params"] = [np.array(p, np.float64) for p in group["params"]]
        self.state: dict[tuple[int, int], dict[str, Any]] = {}

    def step(self, grads: list[list[Array | None]]) -> None:
        """One step; a parameter whose gradient is None is left alone."""
        for i, group in enumerate(self.groups):
            for j, g in enumerate(grads[i]):
                if g is not None:
                    state = self.state.setdefault((i, j), {})
                    p = group["params"][j].copy()
                    new = self.update(p, np.asarray(g, np.float64), state, group)
                    group["params"][j] = np.asarray(new, np.float64)

    def update(self, p: Array, g: Array, state: dict[str, Any], o: dict[str, Any]) -> Array:
        """The new parameter; state is empty before a parameter's first step."""
        raise NotImplementedError
