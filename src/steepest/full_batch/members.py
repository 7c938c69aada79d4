"""Many copies of one small model, trained or evaluated together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, stack_module_state, vmap

from ..checks import whole

Loss = Callable[[Any, Tensor], Tensor]
WAYS = ("vmap", "loop")


class Population:
    """n members of one architecture; their parameters stacked, the first dimension is the member.

    `Population(model, n)` makes n copies; `Population(make, n)` calls make(k) for k = 0 ... n-1.
    An optimizer over `population.parameters()` steps all members at once, each as if alone, if its
    rule is elementwise (SGD, Adam, ...; not LARS, Muon or a clip by the global norm).

    A call runs all members together (torch.func.vmap) or one after the other, whichever is quicker:
    that is measured at the first call with the shapes of the data, for `losses` and for `backward`,
    and kept; a model that vmap does not take goes one after the other. `way="vmap"` or "loop"
    decides without measuring. Members' losses and gradients agree to rounding between both, not to
    the bit; `state_dict` keeps the choices, so that a run that is resumed computes the same bits.

    Dropout draws anew for each member. Buffers are stacked too, and updated.

    Raises TypeError and ValueError for what is no module, n below 1, members that differ in shape.
    """

    def __init__(
        self, model: nn.Module | Callable[[int], nn.Module], n: int, way: str | None = None
    ) -> None:
        n = whole("Population", "n", n, 1)
        if way not in (*WAYS, None):
            raise ValueError(f"Population: way={way!r} was given, expected 'vmap', 'loop' or None")
        single = isinstance(model, nn.Module)
        made: Sequence[Any] = [deepcopy(model) if single else model(k) for k in range(n)]
        shapes = [[(k, v.shape) for k, v in m.state_dict().items()]
                  for m in made if isinstance(m, nn.Module)]  # fmt: skip
        if len(shapes) < n or any(s != shapes[0] for s in shapes):
            raise TypeError(
                "Population: members of several kinds were given, expected a module, or a function "
                "of the member's number that returns modules with the same shapes"
            )
        self.n, self.way = n, way
        self._members: list[nn.Module] = list(made)
        params, buffers = stack_module_state(self._members)
        frozen = {k for k, p in made[0].named_parameters() if not p.requires_grad}
        self._params = {
            k: nn.Parameter(v.detach().contiguous(), k not in frozen) for k, v in params.items()
        }
        self._buffers: dict[str, Tensor] = dict(buffers)
        self._frame = deepcopy(made[0])
        self._ways: dict[str, str] = {}
        self._tie()

    def _tie(self) -> None:
        for k, member in enumerate(self._members):  # views: one memory for both ways
            for name, p in member.named_parameters():
                p.data = self._params[name].data[k]
            for name, b in member.named_buffers():
                b.data = self._buffers[name][k]

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._tie()  # a copy of a view has memory of its own

    def parameters(self) -> list[nn.Parameter]:
        """The stacked parameters, each (n, *shape), in the model's order."""
        return [*self._params.values()]

    def member(self, k: int) -> nn.Module:
        """A copy of the k-th member, with memory of its own."""
        made = deepcopy(self._members[k])
        for b in made.buffers():  # a deep copy of a view is as large as the whole
            b.data = b.data.clone()
        return made

    def train(self, mode: bool = True) -> None:
        """Put all members into training mode."""
        for module in (self._frame, *self._members):
            module.train(mode)

    def eval(self) -> None:
        """Put all members into evaluation mode."""
        self.train(False)

    def losses(self, loss: Loss, x: Tensor, y: Tensor) -> Tensor:
        """The n members' losses, loss(output, y) each, on the same data; without gradients."""
        with torch.no_grad():
            return self._quicker("losses", self._losses, loss, x, y)

    def backward(self, loss: Loss, x: Tensor, y: Tensor) -> Tensor:
        """The n losses, and each member's gradient in `.grad` of the parameters, written over."""
        return self._quicker("backward", self._gradients, loss, x, y)

    @torch.no_grad()
    def assign(self, stacked: Sequence[Tensor]) -> None:
        """Copy tensors (n, *shape), in the order of parameters(), into the parameters."""
        params = self.parameters()
        if [s.shape for s in stacked] != [p.shape for p in params]:
            raise ValueError(
                f"Population.assign: {[tuple(s.shape) for s in stacked]} was given, expected "
                f"{[tuple(p.shape) for p in params]}"
            )
        for p, value in zip(params, stacked, strict=True):
            p.copy_(value)

    def losses_of(self, loss: Loss, x: Tensor, y: Tensor) -> Callable[[Sequence[Tensor]], Tensor]:
        """What Genetic.step(losses=...) takes: the losses of up to n genomes on this data.

        The members' parameters are written over.
        """

        def losses(stacked: Sequence[Tensor]) -> Tensor:
            count = len(stacked[0])
            if count < self.n:  # the places of an elite, which is not computed again
                stacked = [
                    torch.cat([s, s[:1].expand(self.n - count, *s.shape[1:])]) for s in stacked
                ]
            self.assign(stacked)
            return self.losses(loss, x, y)[:count]

        return losses

    # the two ways

    def _losses(self, way: str, loss: Loss, x: Tensor, y: Tensor) -> Tensor:
        if way == "loop":
            return torch.stack([loss(member(x), y).detach() for member in self._members])
        return vmap(self._one(loss, x, y), randomness="different")(self._params, self._buffers)

    def _gradients(self, way: str, loss: Loss, x: Tensor, y: Tensor) -> Tensor:
        wanted = {k: p for k, p in self._params.items() if p.requires_grad}
        if way == "loop":
            for p in wanted.values():
                p.grad = torch.zeros_like(p)
            found = []
            for k, member in enumerate(self._members):
                for name, p in member.named_parameters():
                    # autograd adds to a gradient that is there, in its place
                    p.grad = wanted[name].grad[k] if name in wanted else None  # type: ignore[index]
                value = loss(member(x), y)
                value.backward()
                found.append(value.detach())
            return torch.stack(found)
        rest = {k: p.detach() for k, p in self._params.items() if k not in wanted}
        one = self._one(loss, x, y)

        def split(some: dict[str, Tensor], others: dict[str, Tensor], b: Any) -> Tensor:
            return one(some | others, b)

        given = {k: p.detach() for k, p in wanted.items()}
        grads, values = vmap(grad_and_value(split), randomness="different")(
            given, rest, self._buffers
        )
        for k, p in wanted.items():
            p.grad = grads[k]
        return values

    def _one(self, loss: Loss, x: Tensor, y: Tensor) -> Callable[..., Tensor]:
        def one(params: Mapping[str, Tensor], buffers: Mapping[str, Tensor]) -> Tensor:
            return loss(functional_call(self._frame, {**params, **buffers}, (x,)), y)

        return one

    def _quicker(self, name: str, run: Callable[..., Tensor], *data: Any) -> Tensor:
        x, y = data[1:]
        key = f"{name} {tuple(x.shape)} {x.dtype} {tuple(y.shape)} {self._frame.training}"
        way = self.way or self._ways.get(key)
        if way is None:
            way = self._ways[key] = self._measured(run, data)
        return run(way, *data)

    def _measured(self, run: Callable[..., Tensor], data: tuple[Any, ...]) -> str:
        seconds: dict[str, list[float]] = {w: [] for w in WAYS}
        with self._unchanged():
            for _ in range(3):
                for way in WAYS:
                    start = perf_counter()
                    try:
                        float(run(way, *data).sum())  # waits for a device
                    except Exception:
                        if way == "loop":
                            raise
                        return "loop"  # vmap does not take every model, the loop does
                    seconds[way].append(perf_counter() - start)
        # the first of each warms up
        return min(WAYS, key=lambda way: min(seconds[way][1:]))

    @contextmanager
    def _unchanged(self) -> Iterator[None]:
        """Buffers and the random numbers are afterwards what they were."""
        buffers = {k: b.clone() for k, b in self._buffers.items()}
        device = self.parameters()[0].device
        try:
            with torch.random.fork_rng([] if device.type == "cpu" else [device]):
                yield
        finally:
            for k, b in buffers.items():
                self._buffers[k].copy_(b)

    # checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Stacked parameters and buffers, and which way was chosen for which data."""
        return {
            "params": {k: p.detach().clone() for k, p in self._params.items()},
            "buffers": {k: b.clone() for k, b in self._buffers.items()},
            "ways": dict(self._ways),
        }

    @torch.no_grad()
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over what state_dict() gave; ValueError for another shape, nothing changed then."""
        pairs = []
        for name, own in (("params", self._params), ("buffers", self._buffers)):
            saved = state_dict.get(name)
            if not isinstance(saved, Mapping) or {k: v.shape for k, v in saved.items()} != {
                k: v.shape for k, v in own.items()
            }:
                raise ValueError(
                    f"Population: {name} of a different population were given, expected those of "
                    f"{self.n} members of this model"
                )
            pairs += [(own[k], saved[k]) for k in own]
        for own, value in pairs:
            own.copy_(value)
        self._ways = dict(state_dict["ways"])
