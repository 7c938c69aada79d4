"""The base class of Adagrad, whose states processes can share before the first step."""

from __future__ import annotations

import torch

from . import codecs
from .shell import RuleOptimizer


class SharedOptimizer(RuleOptimizer):
    """Call `share_memory()` to move all states to shared memory, as with torch.optim.Adagrad."""

    @torch.no_grad()
    def share_memory(self) -> None:
        """Move all states to shared memory: the sums and the step counts. States that do not exist
        yet are created first.

        The parameters themselves are not moved: share them by `model.share_memory()`. Unlike in
        torch, the step count is shared too, so `lr_decay` counts the steps of all processes.
        """
        with self._lock:
            for group in self.param_groups:
                if self._family(group) is self.family:
                    start = float(group["initial_accumulator_value"])
                    for p in dict.fromkeys(group["params"]):
                        self._begin_state(p, start)
            for state in self.state.values():
                for value in filter(torch.is_tensor, state.values()):
                    value.share_memory_()

    def _begin_state(self, p: torch.Tensor, start: float) -> None:
        state = self.state[p]
        count = float(state.get("step", 0))
        state["step"] = torch.tensor(count, dtype=torch.float32, device="cpu")
        wide = torch.float32 if p.dtype in codecs.HALVES else p.dtype
        if "sum" not in state:
            # a complex parameter has one sum for the real part and one for the imaginary part
            value = complex(start, start) if p.is_complex() else start
            state["sum"] = torch.full_like(p, value, dtype=wide)
