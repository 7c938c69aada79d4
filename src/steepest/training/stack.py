"""Losses and gradients of many small models at once, each on a batch of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.utils._pytree import tree_flatten, tree_unflatten

from steepest.errors import BadCall
from steepest.tasks.task import Setup

LARGEST = 1_000_000
"""A model may have at most this many parameters. Stacks of larger models save no time."""


class _WithLoss(nn.Module):
    """A model whose output is its training loss on a batch."""

    def __init__(self, setup: Setup) -> None:
        super().__init__()
        self.model, self._loss = setup.model, setup.loss

    def forward(self, batch: Any) -> Tensor:
        return self._loss(self.model, batch)


class Stack:
    """Models of one architecture whose parameters are slices of stacked tensors.

    Each model stays usable alone. Its parameters and gradients are views of the stacks, so its own
    optimizer updates it in place.

    Raises BadCall for models that cannot be stacked: with buffers, of different shapes, or of more
    than LARGEST parameters.
    """

    def __init__(self, setups: Sequence[Setup]) -> None:
        self._setups = setups
        self._frame = _WithLoss(setups[0])
        models = [setup.model for setup in setups]
        named = [dict(_WithLoss(setup).named_parameters()) for setup in setups]
        first, *others = ([(k, p.shape, p.dtype, p.device) for k, p in n.items()] for n in named)
        if any(each != first for each in others):
            raise BadCall("the models have parameters of different names or shapes")
        if any(True for model in models for _ in model.buffers()):
            raise BadCall("the models have buffers, which a training step may change")
        if sum(p.numel() for p in named[0].values()) > LARGEST:
            raise BadCall(f"the models have more than {LARGEST:,} parameters")
        self._stacked: dict[str, Tensor] = {}
        self._grads: dict[str, Tensor] = {}
        self._slices: list[tuple[nn.Parameter, Tensor, Tensor | None]] = []
        """(parameter of a model, its slice of the stack, its slice of the stacked gradients)"""
        for name, p in named[0].items():
            stacked = self._stacked[name] = torch.stack([each[name].detach() for each in named])
            grads: list[Tensor | None] = [None] * len(named)
            if p.requires_grad:
                self._grads[name] = torch.zeros_like(stacked)
                grads = [*self._grads[name]]
            for each, data, grad in zip(named, stacked, grads, strict=True):
                each[name].data = data
                self._slices.append((each[name], data, grad))

    def gradients(self, batches: Sequence[Any]) -> list[float]:
        """Compute each model's loss on its own batch, and set its gradients. Returns the losses.

        If the batches cannot be stacked, the models are computed one by one.
        """
        self._attach()
        stacked = _stack(batches)
        return self._alone(batches) if stacked is None else self._together(stacked)

    def check(self, batches: Sequence[Any]) -> None:
        """Raise BadCall if the gradients of these batches cannot be computed together.

        They must equal the gradients of the models computed one by one, up to rounding. The models
        do not change.
        """
        stacked = _stack(batches)
        if stacked is None:
            raise BadCall("the batches of the models are not tensors of equal shapes")
        self._attach()
        try:
            losses = self._together(stacked)
            for setup, batch, loss in zip(self._setups, batches, losses, strict=True):
                params = [p for p in setup.model.parameters() if p.requires_grad]
                alone = setup.loss(setup.model, batch)
                grads = torch.autograd.grad(alone, params, allow_unused=True)
                if any(grad is None for grad in grads):  # alone, no optimizer would step it
                    raise BadCall("a parameter gets no gradient")
                own = [
                    (alone.detach(), torch.tensor(loss)),
                    *zip(grads, _grads(params), strict=True),
                ]
                if not _equal(own[:1]) or not _equal(own[1:]):
                    raise BadCall(
                        "together, the models have other losses or gradients than one by one"
                    )
        except BadCall:
            raise
        except Exception as error:  # vmap does not support every model
            raise BadCall(f"{type(error).__name__}: {error}") from error

    def _attach(self) -> None:
        """Make parameters and gradients slices again."""
        for p, data, grad in self._slices:
            if p.data_ptr() != data.data_ptr():  # an optimizer has given it other memory
                data.copy_(p.detach())
                p.data = data
            p.grad = grad

    def _together(self, stacked: Any) -> list[float]:
        trained = {name: p for name, p in self._stacked.items() if name in self._grads}
        frozen = {name: p for name, p in self._stacked.items() if name not in self._grads}

        def loss(trained: dict[str, Tensor], frozen: dict[str, Tensor], batch: Any) -> Tensor:
            return functional_call(self._frame, trained | frozen, (batch,))

        # gradients within vmap, because the check of a user's loss asks for a gradient
        grads, losses = vmap(grad_and_value(loss))(trained, frozen, stacked)
        for name, grad in grads.items():
            self._grads[name].copy_(grad)
        return losses.tolist()

    def _alone(self, batches: Sequence[Any]) -> list[float]:
        losses: list[float] = []
        for grads in self._grads.values():
            grads.zero_()
        for setup, batch in zip(self._setups, batches, strict=True):
            loss = setup.loss(setup.model, batch)
            loss.backward()
            losses.append(loss.item())
        return losses


def _grads(params: Sequence[Tensor]) -> list[Tensor]:
    return [p.grad for p in params if p.grad is not None]


def _equal(pairs: Sequence[tuple[Tensor, Tensor]]) -> bool:
    """Whether the tensors of each pair are equal, up to rounding of the largest element."""
    largest = max(float(x.abs().max()) for x, _ in pairs)
    return all(
        bool(((x - y).abs() <= largest * torch.finfo(x.dtype).eps ** 0.5).all()) for x, y in pairs
    )


def _stack(batches: Sequence[Any]) -> Any:
    """Stack the batches along a new first dimension. Returns None if they cannot be stacked."""
    leaves, (spec, *others) = zip(*map(tree_flatten, batches), strict=True)
    if any(other != spec for other in others):
        return None
    stacked: list[Tensor] = []
    for column in zip(*leaves, strict=True):
        if not all(isinstance(x, Tensor) and x.shape == column[0].shape for x in column):
            return None
        stacked.append(torch.stack(column))
    return tree_unflatten(stacked, spec)
