"""An Adam in plain torch, copies of it with one planted fault each, and some odd but sound ones."""

from __future__ import annotations

import os
import threading
import time

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


class Decayed(torch.optim.Optimizer):
    """Adam with weight decay, amsgrad and foreach; its methods are what the faults replace."""

    def __init__(
        self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, amsgrad=False,
        foreach=False,
    ):  # fmt: skip
        super().__init__(
            params,
            {
                "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay,
                "amsgrad": amsgrad, "foreach": foreach,
            },
        )  # fmt: skip

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self.begin(group)
            for p, g in self.pairs(group):
                self.update(p, g + self.times * group["weight_decay"] * p, group)
        return loss

    def update(self, p, g, group):
        state, (beta1, beta2) = self.state[p], self.betas(group)
        if not state:
            state |= {"step": 0, "m": torch.zeros_like(p), "v": torch.zeros_like(p)}
            if group["amsgrad"]:
                state["max"] = torch.zeros_like(p)
        state["step"] += 1
        state["m"].mul_(beta1).add_(g, alpha=1 - beta1)
        v = state["v"].mul_(beta2).addcmul_(g, g, value=1 - beta2)
        if group["amsgrad"]:
            v = torch.maximum(state["max"], v, out=state["max"])
        root = (v / (1 - beta2 ** state["step"])).sqrt() + self.eps(group)
        p.sub_(group["lr"] * state["m"] / (1 - beta1 ** state["step"]) / root)

    times = 1

    def begin(self, group):
        pass

    def pairs(self, group):
        return [(p, p.grad) for p in group["params"] if p.grad is not None]

    def betas(self, group):
        return group["betas"]

    def eps(self, group):
        return group["eps"]


class FirstBetas(Decayed):
    """The betas of the first group, for all."""

    def betas(self, group):
        return self.param_groups[0]["betas"]


class Overwriting(Decayed):
    """add_param_group puts the default betas in the place of the group's."""

    def add_param_group(self, param_group):
        super().add_param_group({**param_group, "betas": self.defaults["betas"]})


class DefaultEps(Decayed):
    """The eps of the constructor, for all groups."""

    def eps(self, group):
        return self.defaults["eps"]


class Unmaximized(Decayed):
    """The maximum of amsgrad is zero after loading."""

    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)
        for state in self.state.values():
            if "max" in state:
                state["max"].zero_()


class Misaligned(Decayed):
    """On the second path, the gradients slip down where one is missing."""

    def pairs(self, group):
        gradients = [p.grad for p in group["params"] if p.grad is not None]
        return zip(group["params"], gradients) if group["foreach"] else super().pairs(group)  # noqa: B905


class DecayingAlways(Decayed):
    """Decay also where there is no gradient."""

    def begin(self, group):
        for p in group["params"]:
            if p.grad is None:
                p.mul_(1 - group["lr"] * group["weight_decay"])


class DecayedTwice(Decayed):
    """Decay is applied twice; only its formula, known by its name, can tell."""

    times = 2


REALISTIC = {
    FirstBetas: "group-options-betas",
    Overwriting: "group-options-betas",
    DefaultEps: "group-options-eps",
    Unmaximized: "resume-float32",
    Misaligned: "path-foreach",
    DecayingAlways: "no-gradient-weight-decay",
}
"""Each faulty class, and the examination that is meant for its fault."""


class Through(torch.optim.Optimizer):
    """Descent by a gradient over its averaged norm, and autograd goes through; its methods are what
    the faults replace.
    """

    def __init__(self, params, lr=0.1, weight_decay=0.0, differentiable=False):
        super().__init__(
            params, {"lr": lr, "weight_decay": weight_decay, "differentiable": differentiable}
        )

    def step(self, closure=None):
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            with torch.set_grad_enabled(group["differentiable"]):
                for p in group["params"]:
                    if p.grad is not None:
                        self.update(p, p.grad, self.state[p], group)
        return loss

    def update(self, p, g, state, group):
        size = self.norm(g)
        state["size"] = size = (size + self.earlier(state.get("size", size))) / 2
        rate, decay = self.rate(group), self.decay(group)
        p.copy_(p.clone() * (1 - rate * decay) - rate * g / (size + 1e-8))

    def norm(self, g):
        return torch.linalg.vector_norm(g)

    def earlier(self, size):
        return size

    def rate(self, group):
        return group["lr"]

    def decay(self, group):
        return group["weight_decay"]


class DetachedNorm(Through):
    """The norm is a number."""

    def norm(self, g):
        return super().norm(g.detach())


class DetachedState(Through):
    """What the steps before have left is a number."""

    def earlier(self, size):
        return size.detach()


class DetachedRate(Through):
    """lr is a number."""

    def rate(self, group):
        return torch.as_tensor(group["lr"]).item()


class DetachedDecay(Through):
    """weight_decay is a number."""

    def decay(self, group):
        return torch.as_tensor(group["weight_decay"]).item()


DETACHED = {
    DetachedNorm: "gradient 1", DetachedState: "gradient 1", DetachedRate: "lr",
    DetachedDecay: "weight_decay",
}  # fmt: skip
"""Each class whose gradients are wrong, and of what first."""


class HangsForked(torch.optim.SGD):
    """Never ends in a forked child."""

    parent = os.getpid()

    def step(self, closure=None):
        while os.getpid() != self.parent and os.getppid() == self.parent:  # no orphans
            time.sleep(0.1)
        return super().step(closure)


class HangsThread(torch.optim.SGD):
    """Never ends in a second thread."""

    def step(self, closure=None):
        while threading.current_thread() is not threading.main_thread():
            time.sleep(0.1)
        return super().step(closure)


class Centralizing(torch.optim.SGD):
    """Sound: the gradient without its mean over each row, in the place of the gradient."""

    def step(self, closure=None):
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None and p.dim() > 1:
                    p.grad = p.grad - p.grad.mean(1, keepdim=True)
        super().step()
        return loss


class WarmingUp(Decayed):
    """Sound: stands still for its first five steps."""

    def update(self, p, g, group):
        before = p.clone()
        super().update(p, g, group)
        if self.state[p]["step"] <= 5:
            p.copy_(before)
