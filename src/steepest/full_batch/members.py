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
    """n models of one architecture. Their parameters are stacked along a new first dimension.

    `Population(model, n)` makes n copies; `Population(make, n)` calls make(k) for k = 0 ... n-1.
    An optimizer over `population.parameters()` steps all members at once. If its rule is
    elementwise, each member gets the same step as in an optimizer of its own. SGD and Adam are
    elementwise; LARS, Muon and clipping by the global norm are not.

    `losses` and `backward` run the members together (torch.func.vmap) or one after the other (a
    loop). With way=None, `losses` and `backward` each time both ways when they first get data of a
    new shape, and then use the faster way for this shape. A model that vmap does not support runs
    in the loop. way="vmap" and way="loop" fix the way. Both ways give the same losses and gradients
    up to rounding. `state_dict` saves the chosen ways, so a resumed run is bit-identical.

    Dropout draws a different mask for each member. Buffers are stacked and updated too.

    Raises TypeError or ValueError if a member is not a module, if n is below 1, or if the members'
    shapes differ.
    """

    def __init__(
        self, model: nn.Module | Callable[[int], nn.Module], n: int, way: str | None = None
    ) -> None:
        n = whole("Population", "n", n, 1)
        if way not in (*WAYS, None):
            raise ValueError(f"Population: way={way!r} was given, expected 'vmap', 'loop' or None")
        single = isinstance(model, nn.Module)
        members: Sequence[Any] = [deepcopy(model) if single else model(k) for k in range(n)]
        modules = [m for m in members if isinstance(m, nn.Module)]
        shapes = [[(k, v.shape) for k, v in m.state_dict().items()] for m in modules]
        if len(shapes) < n or any(s != shapes[0] for s in shapes):
            raise TypeError(
                "Population: members of different types or shapes were given, expected a module, "
                "or a function of the member's number that returns modules with the same shapes"
            )
        self.n, self.way = n, way
        self._members: list[nn.Module] = modules
        params, buffers = stack_module_state(self._members)
        frozen = {k for k, p in members[0].named_parameters() if not p.requires_grad}
        self._params = {
            k: nn.Parameter(v.detach().contiguous(), k not in frozen) for k, v in params.items()
        }
        self._buffers: dict[str, Tensor] = dict(buffers)
        self._frame = deepcopy(members[0])
        self._ways: dict[str, str] = {}
        self._tie()

    def _tie(self) -> None:
        """Make the members' tensors views of the stacked tensors, so vmap and loop share memory."""
        for k, member in enumerate(self._members):
            for name, p in member.named_parameters():
                p.data = self._params[name].data[k]
            for name, b in member.named_buffers():
                b.data = self._buffers[name][k]

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._tie()  # copying and unpickling give each view its own memory

    def parameters(self) -> list[nn.Parameter]:
        """The stacked parameters, each of shape (n, *p.shape), in the model's order."""
        return [*self._params.values()]

    def member(self, k: int) -> nn.Module:
        """A copy of the k-th member, with its own memory."""
        copy = deepcopy(self._members[k])
        for b in copy.buffers():  # a deep copy of a view copies the whole stacked tensor
            b.data = b.data.clone()
        return copy

    def train(self, mode: bool = True) -> None:
        """Put all members into training mode."""
        for module in (self._frame, *self._members):
            module.train(mode)

    def eval(self) -> None:
        """Put all members into evaluation mode."""
        self.train(False)

    def losses(self, loss: Loss, x: Tensor, y: Tensor) -> Tensor:
        """Return each member's loss(output, y) on the same data, without gradients."""
        with torch.no_grad():
            return self._run_faster("losses", self._compute_losses, loss, x, y)

    def backward(self, loss: Loss, x: Tensor, y: Tensor) -> Tensor:
        """Return each member's loss, and set `.grad` of the stacked parameters to the gradients."""
        return self._run_faster("backward", self._compute_gradients, loss, x, y)

    @torch.no_grad()
    def assign(self, stacked: Sequence[Tensor]) -> None:
        """Copy `stacked` into parameters(). It has the same shapes and the same order."""
        params = self.parameters()
        if [s.shape for s in stacked] != [p.shape for p in params]:
            raise ValueError(
                f"Population.assign: tensors of shapes {[tuple(s.shape) for s in stacked]} were "
                f"given, expected {[tuple(p.shape) for p in params]}"
            )
        for p, value in zip(params, stacked, strict=True):
            p.copy_(value)

    def losses_of(self, loss: Loss, x: Tensor, y: Tensor) -> Callable[[Sequence[Tensor]], Tensor]:
        """Return a function for Genetic.step(losses=...).

        The function takes up to n genomes, and returns the loss of each on the data x and y. It
        overwrites the members' parameters.
        """

        def losses(stacked: Sequence[Tensor]) -> Tensor:
            count = len(stacked[0])
            missing = self.n - count  # above 0 if the elite is not evaluated again
            if missing > 0:
                stacked = [torch.cat([s, s[:1].expand(missing, *s.shape[1:])]) for s in stacked]
            self.assign(stacked)
            return self.losses(loss, x, y)[:count]

        return losses

    # vmap or loop

    def _compute_losses(self, way: str, loss: Loss, x: Tensor, y: Tensor) -> Tensor:
        if way == "loop":
            return torch.stack([loss(member(x), y).detach() for member in self._members])
        member_loss = vmap(self._make_member_loss(loss, x, y), randomness="different")
        return member_loss(self._params, self._buffers)

    def _compute_gradients(self, way: str, loss: Loss, x: Tensor, y: Tensor) -> Tensor:
        trainable = {k: p for k, p in self._params.items() if p.requires_grad}
        if way == "loop":
            for p in trainable.values():
                p.grad = torch.zeros_like(p)
            losses = []
            for k, member in enumerate(self._members):
                for name, p in member.named_parameters():
                    # a view of the stacked gradient, to which backward() adds in place
                    p.grad = trainable[name].grad[k] if name in trainable else None  # type: ignore[index]
                value = loss(member(x), y)
                value.backward()
                losses.append(value.detach())
            return torch.stack(losses)
        frozen = {k: p.detach() for k, p in self._params.items() if k not in trainable}
        member_loss = self._make_member_loss(loss, x, y)

        def loss_of(params: dict[str, Tensor], frozen: dict[str, Tensor], buffers: Any) -> Tensor:
            return member_loss(params | frozen, buffers)

        params = {k: p.detach() for k, p in trainable.items()}
        gradients = vmap(grad_and_value(loss_of), randomness="different")
        grads, values = gradients(params, frozen, self._buffers)
        for k, p in trainable.items():
            p.grad = grads[k]
        return values

    def _make_member_loss(self, loss: Loss, x: Tensor, y: Tensor) -> Callable[..., Tensor]:
        def member_loss(params: Mapping[str, Tensor], buffers: Mapping[str, Tensor]) -> Tensor:
            return loss(functional_call(self._frame, {**params, **buffers}, (x,)), y)

        return member_loss

    def _run_faster(self, name: str, run: Callable[..., Tensor], *data: Any) -> Tensor:
        x, y = data[1:]
        key = f"{name} {tuple(x.shape)} {x.dtype} {tuple(y.shape)} {self._frame.training}"
        way = self.way or self._ways.get(key)
        if way is None:
            way = self._ways[key] = self._measure_faster(run, data)
        return run(way, *data)

    def _measure_faster(self, run: Callable[..., Tensor], data: tuple[Any, ...]) -> str:
        seconds: dict[str, list[float]] = {w: [] for w in WAYS}
        with self._restored():
            for _ in range(3):
                for way in WAYS:
                    start = perf_counter()
                    try:
                        float(run(way, *data).sum())  # float() waits for the device
                    except Exception:
                        if way == "loop":
                            raise
                        return "loop"  # vmap does not support every model
                    seconds[way].append(perf_counter() - start)
        # the first run of each is a warm-up
        return min(WAYS, key=lambda way: min(seconds[way][1:]))

    @contextmanager
    def _restored(self) -> Iterator[None]:
        """Restore the buffers and the random state on exit."""
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
        """The stacked parameters and buffers, and the chosen way for each shape of data."""
        return {
            "params": {k: p.detach().clone() for k, p in self._params.items()},
            "buffers": {k: b.clone() for k, b in self._buffers.items()},
            "ways": dict(self._ways),
        }

    @torch.no_grad()
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load what state_dict() returned.

        Raises ValueError, and changes nothing, if the saved names or shapes are not this object's.
        """
        pairs = []
        for name, own in (("params", self._params), ("buffers", self._buffers)):
            saved = state_dict.get(name)
            if not isinstance(saved, Mapping) or {k: v.shape for k, v in saved.items()} != {
                k: v.shape for k, v in own.items()
            }:
                raise ValueError(
                    f"Population: {name} of a different population were given, expected the "
                    f"state_dict of {self.n} members of this model"
                )
            pairs += [(own[k], saved[k]) for k in own]
        for own, value in pairs:
            own.copy_(value)
        self._ways = dict(state_dict["ways"])
