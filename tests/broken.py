"""An Adam in plain torch, and six copies of it with one planted fault each."""

from __future__ import annotations

import torch


class Sound(torch.optim.Optimizer):
    """Adam, with a second path for `foreach`; the methods below are what the faults replace."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, foreach=False):
        if isinstance(lr, torch.Tensor) and lr.numel() != 1:
            raise ValueError("Tensor lr must be 1-element")
        if not lr >= 0 or not eps >= 0 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"lr={lr}, betas={betas}, eps={eps}: out of range")
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "foreach": foreach})

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            with_gradient = [p for p in group["params"] if p.grad is not None]
            if any(p.grad.is_sparse for p in with_gradient):
                raise RuntimeError("sparse gradients are not supported")
            if any(p.is_complex() for p in with_gradient):
                raise RuntimeError("complex parameters are not supported")
            self.begin(group)
            for p in with_gradient:
                self.update(p, self.gradient(p), self.state[p], group)
        return loss

    def update(self, p, g, state, group):
        if "m" not in state:
            state["m"], state["v"] = torch.zeros_like(p), torch.zeros_like(p)
            state["step"] = 0
        state["step"] += 1
        t, (beta1, beta2) = self.count(state, group), group["betas"]
        state["m"].lerp_(g, 1 - beta1)
        state["v"].mul_(beta2).addcmul_(g, g, value=1 - beta2)
        m, v = state["m"], state["v"]
        if self.corrected(group):
            m, v = m / (1 - beta1**t), v / (1 - beta2**t)
        self.write(p, p - group["lr"] * m / self.root(v, group))

    def begin(self, group):
        pass

    def gradient(self, p):
        return p.grad

    def count(self, state, group):
        return state["step"]

    def corrected(self, group):
        return True

    def root(self, v, group):
        return v.sqrt() + group["eps"]

    def write(self, p, new):
        p.copy_(new)


class Uncorrected(Sound):
    """No bias correction on the second path."""

    def corrected(self, group):
        return not group["foreach"]


class Forgetful(Sound):
    """The state is lost on load."""

    def load_state_dict(self, state_dict):
        super().load_state_dict({**state_dict, "state": {}})


class Scribbling(Sound):
    """The gradient is modified."""

    def gradient(self, p):
        return p.grad.mul_(0.5)


class Collective(Sound):
    """One step counter for the group."""

    def begin(self, group):
        group["count"] = group.get("count", 0) + 1

    def count(self, state, group):
        return group["count"]


class Reassigning(Sound):
    """p.data is reassigned."""

    def write(self, p, new):
        p.data = new


class Dividing(Sound):
    """NaN on a zero gradient: nothing keeps the root from zero."""

    def root(self, v, group):
        return v.sqrt()


FAULTS = {
    Uncorrected: "path-foreach",
    Forgetful: "resume-float32",
    Scribbling: "gradient-unmodified-plain",
    Collective: "late-gradient",
    Reassigning: "memory-kept-float32",
    Dividing: "zero-gradient",
}
"""Each faulty class, and the examination that is meant for its fault."""
