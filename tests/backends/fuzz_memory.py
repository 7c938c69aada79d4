"""Change anything about random parameters, gradients and states between steps, and look at what a
step writes: python tests/backends/fuzz_memory.py SEED STEPS BACKEND, with MALLOC_PERTURB_ set.

Buffers have guard values on both sides; whenever memory is freed, others take memory of that size.
The step is AdamW's formula in NumPy, or an error that names the tensor and has changed nothing.
"""

import random
import sys
import threading

import numpy as np
import torch

import steepest

GUARD, OTHER, EDGE = 3.5, 7.25, 16
BETA1, BETA2, EPS, LR, DECAY = 0.9, 0.999, 1e-8, 0.01, 0.1
SHAPES = ((), (5,), (64,), (6, 6), (3, 7), (2, 3, 4), (2, 3, 4, 4), (1, 1), (4, 1, 3))


class World:
    def __init__(self, seed: int, backend: str) -> None:
        self.random = random.Random(seed)
        torch.manual_seed(seed)
        self.guarded: list[tuple[torch.Tensor, int]] = []
        self.others: list[torch.Tensor] = []
        self.params = [torch.nn.Parameter(self.new(shape)) for shape in SHAPES]
        self.params += [torch.nn.Parameter(self.new((4, 5), torch.float64))]
        half = len(self.params) // 2
        groups = [{"params": self.params[:half]}, {"params": self.params[half:]}]
        options = {"lr": LR, "betas": (BETA1, BETA2), "eps": EPS, "weight_decay": DECAY}
        self.optimizer = steepest.AdamW(groups, backend=backend, **options)

    def new(self, shape, dtype=torch.float32, like=None) -> torch.Tensor:
        """Random values inside a larger buffer, in the strides of `like`."""
        size = int(np.prod(shape))
        if self.random.random() < 0.3:
            made = torch.randn(shape, dtype=dtype)
        else:
            buffer = torch.full((size + 2 * EDGE,), GUARD, dtype=dtype)
            self.guarded = [*self.guarded[-150:], (buffer, size)]
            made = buffer[EDGE : EDGE + size].view(shape)
            made.normal_()
        if like is not None and like.shape == made.shape:
            made = made.as_strided(made.shape, like.stride(), made.storage_offset())
        return made

    def intact(self) -> None:
        for buffer, size in self.guarded:
            if buffer.untyped_storage().nbytes() == buffer.numel() * buffer.element_size():
                edges = torch.cat([buffer[:EDGE], buffer[EDGE + size :]])
                assert bool((edges == GUARD).all()), "a guard was touched"
        for other in self.others:
            assert bool((other == OTHER).all()), "memory of others was written"

    def take(self, size: int) -> None:
        """Others take what was just freed."""
        made = [torch.full((max(1, size),), OTHER) for _ in range(6)]
        self.others = [*self.others[-60:], *made]

    # what others do between two steps

    def mutate(self) -> None:
        p = self.random.choice(self.params)
        self.random.choice(
            [self.of_parameter, self.of_gradient, self.of_gradient, self.of_state, self.of_state]
        )(p)

    def elsewhere(self, x: torch.Tensor) -> None:
        """Away and back: the same tensor in other memory, or in the same."""
        kept, size = x.detach().clone(), x.untyped_storage().nbytes()
        x.untyped_storage().resize_(0)
        self.take(x.numel())
        x.untyped_storage().resize_(size)
        x.detach().copy_(kept)

    def of_parameter(self, p) -> None:
        what = self.random.randrange(6)
        data = p.data
        if what == 0:
            p.data = self.new(p.shape, p.dtype, data)
            self.take(p.numel())
        elif what == 1 and p.dim() == 2 and p.shape[0] == p.shape[1]:
            p.data = data.t()  # the same address
        elif what == 2 and p.dim() == 4:
            p.data = data.to(memory_format=torch.channels_last)
        elif what == 3 and p.dim() > 1:
            p.data = self.new(p.shape[::-1], p.dtype)  # gradient and states are of another shape
        elif what == 4:
            p.data = data.to(torch.float64 if p.dtype is torch.float32 else torch.float32)
        elif what == 5 and data.storage_offset() == 0 and data.is_contiguous() and reaches(p):
            self.elsewhere(p)

    def of_gradient(self, p) -> None:
        what = self.random.randrange(10)
        if what == 0:
            p.grad = None
        elif what == 1 and p.dim() > 1:
            p.grad = self.new(p.shape[::-1], p.dtype).permute(*reversed(range(p.dim())))
        elif what == 2 and p.dim() > 1 and p.grad is not None:
            p.grad.data = self.new(p.shape[::-1], p.grad.dtype)
        elif what == 3:
            p.grad = torch._neg_view(self.new(p.shape, p.dtype))
        elif what == 4 and p.grad is not None and p.grad.storage_offset() == 0:
            p.grad.untyped_storage().resize_(0)
            self.take(p.numel())
        elif what == 5 and p.grad is not None and reaches(p.grad):
            p.grad.data = p.grad.data.to(torch.float16)
        elif what == 6 and p.dim():
            p.grad = self.new((1,) * p.dim(), p.dtype).expand(p.shape)
        else:
            p.grad = self.new(p.shape, p.dtype, p.data)

    def of_state(self, p) -> None:
        state = self.optimizer.state.get(p)
        if not state:
            return
        key = self.random.choice(["exp_avg", "exp_avg_sq", "step"])
        x = state.get(key)
        what = self.random.randrange(12)
        if not isinstance(x, torch.Tensor) or not reaches(x) or what == 0:
            self.optimizer.state.pop(p)
            self.take(p.numel())
        elif what == 1:
            state[key] = x.clone()
            self.take(x.numel())
        elif what == 2:
            x.data = x.data.clone()
            self.take(x.numel())
        elif what == 3 and x.storage_offset() == 0:
            self.elsewhere(x)
        elif what == 4 and x.storage_offset() == 0 and x.untyped_storage().nbytes():
            x.untyped_storage().resize_(0)
            self.take(x.numel())
            if self.random.random() < 0.5:  # fewer bytes, maybe at the same address
                x.untyped_storage().resize_(max(1, x.numel() // 2))
        elif what == 5 and x.dim() > 1:
            state[key] = x.t().contiguous().t() if x.dim() == 2 else x.clone()
        elif what == 6 and key != "step":
            state[key] = x.double()
        elif what == 7 and x.dim() > 1:
            state[key] = self.new(x.shape[::-1], x.dtype).abs()
        elif what == 8:
            state[key] = x.to("meta")
        elif what == 9:
            state["tag"] = self.random.choice([torch.ones(3), 7, "note", None])
        elif what == 10:
            state.clear()
        elif what == 11 and key != "step":
            state[key] = self.new(p.shape, p.dtype, p.data).abs_()

    # a step

    def expected(self):
        """What each parameter becomes, or None where a tensor does not fit."""
        found = []
        for p in self.params:
            g, state = p.grad, self.optimizer.state.get(p) or {}
            own = {k: state.get(k) for k in ("exp_avg", "exp_avg_sq")}
            step = state.get("step")
            if not reaches(p):
                return None
            if g is not None and (
                g.shape != p.shape or g.dtype != p.dtype or g.device != p.device or not reaches(g)
            ):
                return None
            tensors = [x for x in (*own.values(), step) if isinstance(x, torch.Tensor)]
            if tensors and not all(map(reaches, tensors)):
                return None
            if isinstance(step, torch.Tensor) and step.is_meta:
                return None
            if any(x is not None and (x.shape != p.shape or x.is_meta) for x in own.values()):
                return None
            t = float(step) if step is not None else float(own["exp_avg"] is not None)
            if state and t > 0 and any(x is None for x in own.values()):
                return None
            if g is None:
                found.append(number(p))
                continue
            m, v = (0.0 if x is None else number(x) for x in own.values())
            g, t = number(g), t + 1
            m = BETA1 * m + (1 - BETA1) * g
            v = BETA2 * v + (1 - BETA2) * g * g
            step = (m / (1 - BETA1**t)) / (np.sqrt(v / (1 - BETA2**t)) + EPS)
            found.append(number(p) * (1 - LR * DECAY) - LR * step)
        return found

    def step(self) -> str:
        expected = self.expected()
        before = [p.detach().clone() if reaches(p) else None for p in self.params]
        refused = None
        try:
            self.optimizer.step()
        except (RuntimeError, ValueError) as error:
            refused = str(error)
        if refused is not None:
            assert expected is None, f"{refused}; nothing was wrong"
            assert "shape (" in refused, refused
            for p, old in zip(self.params, before, strict=True):
                assert old is None or torch.equal(p.detach(), old), "an error moved a parameter"
            self.intact()
            for p in self.params:  # begin anew
                if not reaches(p):
                    p.data = self.new(p.shape, p.dtype)
                p.grad = self.new(p.shape, p.dtype)
            self.optimizer.state.clear()
            return "error"
        assert expected is not None, "a tensor that does not fit was stepped"
        for p, want in zip(self.params, expected, strict=True):
            have = number(p)
            assert np.allclose(have, want, rtol=2e-5, atol=2e-6), (tuple(p.shape), have, want)
        self.intact()
        return "step"


def reaches(x: torch.Tensor) -> bool:
    if x.is_meta or not x.numel():
        return True
    last = sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True)) + 1
    return (x.storage_offset() + last) * x.element_size() <= x.untyped_storage().nbytes()


def number(x: torch.Tensor) -> np.ndarray:
    return x.detach().resolve_neg().double().clone().numpy()  # numpy pins the storage


def main(seed: int, steps: int, backend: str) -> None:
    world = World(seed, backend)
    for p in world.params:
        p.grad = world.new(p.shape, p.dtype)
    ends = {"step": 0, "error": 0}
    for _ in range(steps):
        for _ in range(world.random.choice([0, 1, 1, 2, 3])):
            if world.random.random() < 0.3:
                other = threading.Thread(target=world.mutate)
                other.start()
                other.join()
            else:
                world.mutate()
        if world.random.random() < 0.2:
            found: list[str] = []
            other = threading.Thread(target=lambda found=found: found.append(world.step()))
            other.start()
            other.join()
            ends[found[0]] += 1  # nothing there: the thread has printed why
        else:
            ends[world.step()] += 1
    print(ends["step"], ends["error"])


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
