"""A batch size chosen anew for each update, from the spread of the per-sample gradients."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.utils._pytree import tree_leaves, tree_map

from ..checks import batch_size, number, quietly, saved, slowly, unmoved, whole
from .loading import Loader

Loss = Callable[[nn.Module, Any], Tensor]


class _Alone(nn.Module):
    """The loss of one sample, as a batch of one, in a module: functional_call takes no function."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, sample: Any) -> Tensor:
        return self.loss(self.model, tree_map(lambda t: t.unsqueeze(0), sample))


def per_sample(model: nn.Module, loss: Loss, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of each sample of a batch, shape [m], and its gradient, shape [m, *p.shape] each.

    loss(model, batch): the mean loss over a batch, as a tensor without dimensions. batch: tensors
    of m samples each, in any nesting of tuples, lists and dicts. Gradients go by the names of the
    model's parameters; those with requires_grad=False have none. Dropout drops other units for each
    sample. By torch.func (vmap of grad), so m times the parameters are in memory at once; a model
    or a loss that vmap does not take (a GRU, `.item()`) goes sample by sample, m times as slow,
    which the logger "steepest" says once.

    Raises ValueError for a model with batch normalisation in training mode or that changes another
    buffer of its own, whose samples have no gradient of their own, and for a loss that is no
    number; torch's error where the memory does not suffice.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
            raise ValueError(
                f"per_sample: batch normalisation {name!r} in training mode was given, expected a "
                "model whose samples do not depend on each other; call eval() on it, or use "
                "GroupNorm or LayerNorm"
            )
    alone = _Alone(model, loss)
    params = {
        f"model.{name}": p.detach() for name, p in model.named_parameters() if p.requires_grad
    }

    def of_one(params: dict[str, Tensor], sample: Any) -> Tensor:
        return functional_call(alone, params, (sample,))

    gradients = vmap(grad_and_value(of_one), in_dims=(None, 0), randomness="different")
    with unmoved("per_sample", model):
        try:
            with quietly():
                grads, losses = gradients(params, batch)
        except Exception as error:  # of many kinds; the loop raises what is not vmap's own
            slowly("per_sample", error)
            grads, losses = _by_loop(model, loss, batch)
    return losses.detach(), {name.removeprefix("model."): g for name, g in grads.items()}


def _by_loop(model: nn.Module, loss: Loss, batch: Any) -> tuple[dict[str, Tensor], Tensor]:
    """The same, one sample after the other."""
    params = {name: p for name, p in model.named_parameters() if p.requires_grad}
    losses, rows = [], []
    for k in range(len(tree_leaves(batch)[0])):
        with torch.enable_grad():
            value = loss(model, tree_map(lambda t, k=k: t[k : k + 1], batch))
        if value.numel() != 1:
            raise ValueError(
                f"per_sample: the loss returned a tensor of shape {[*value.shape]}, expected the "
                "mean over the batch, a number"
            )
        value = value.reshape(())
        rows.append(torch.autograd.grad(value, [*params.values()], materialize_grads=True))
        losses.append(value.detach())
    columns = zip(*rows, strict=True)
    grads = {name: torch.stack(column) for name, column in zip(params, columns, strict=True)}
    return grads, torch.stack(losses)


def expected_loss(loss: float, gain: float, deviation: float, m: float) -> float:
    """E|S'| where the loss S' after a step with m samples is normal, (S - gain, deviation**2 / m).

    To first order S' = S - lr * g.(mean gradient of m samples), with the true gradient g: gain is
    lr * |g|**2 and deviation lr * sqrt(g.Cg), C the covariance of one sample's gradient. A loss
    below zero, which there is none of, counts as one that rebounds. The mean of a folded normal.
    """
    return loss - _progress(loss, gain, deviation, m)


def _progress(loss: float, gain: float, deviation: float, m: float) -> float:
    """S - E|S'|, arranged so that a gain far below the loss keeps its digits."""
    mean, spread = loss - gain, deviation / math.sqrt(m)
    if not spread:
        return loss - abs(mean)
    a = mean / spread
    density = math.exp(-min(a * a, 1500.0) / 2) / math.sqrt(2 * math.pi)  # 0 from there on
    return gain - 2 * (spread * density - mean * math.erfc(a / math.sqrt(2)) / 2)


def best_batch(loss: float, gain: float, deviation: float, largest: int) -> int:
    """The m in 1...largest with the most expected progress per sample, (S - E|S'|) / m.

    Yin, Luo and Nakamura, KDD 2017, "Small batch or large batch? Gaussian walk with rebound can
    teach"; the letters are those of `expected_loss`. E|S'| is convex in the spread x = 1 / sqrt(m)
    (its derivative grows with x), so x**2 * (S - E|S'|) rises to one maximum and falls: a bisection
    finds it. Raises ValueError for a loss below 0 or not finite, and FloatingPointError for a gain
    or deviation that is not finite.
    """
    loss = number("best_batch", "loss", loss, "[0, inf)")
    largest = whole("best_batch", "largest", largest, 1)
    if not (math.isfinite(gain) and math.isfinite(deviation)):
        raise FloatingPointError(
            f"best_batch: gain={gain} and deviation={deviation} were given, expected finite numbers"
        )

    def falls(m: int) -> bool:
        a, b = (_progress(loss, gain, deviation, n) / n for n in (m, m + 1))
        return b <= a

    return bisect_left(range(1, largest), True, key=falls) + 1


class AdaptiveBatch:
    """Draw samples until there are enough for the best progress per sample, then step.

    BA-SGD: Yin, Luo and Nakamura, KDD 2017, "Small batch or large batch? Gaussian walk with rebound
    can teach". Each update draws `loader.batch_size` samples at a time (the authors' m_0; their
    code takes 30), and from all it has drawn estimates loss, gradient and the gradient's variance
    per element (the covariance's diagonal), and from them m* (`best_batch`). When it has m* or
    `largest` of them it hands their mean gradient to the optimizer; at the end of an epoch it does
    with what it has. So an update may have up to m_0 - 1 samples more than it wants.

    model, loss: as for `per_sample`; the loss must not be negative. optimizer: any; the model of
    the loss after the step is that of a gradient step, each group with its own lr, and for a
    group of SGD with momentum (torch's or ours) that of its step with it: gain
    lr * g.(gamma * buffer + g), the authors' momentum variant. For others it is a heuristic.
    loader: a `Loader`. largest: at least m_0; all of the data if not given.

    `samples` counts the gradients computed so far, `batch_size` is the size of the last update and
    `wanted` its m*. Save the loader and the optimizer beside it, and load them before it.

    Raises ValueError for arguments, FloatingPointError for a loss or gradient that is not finite:
    parameters and optimizer are as before then, the samples drawn are gone.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        optimizer: torch.optim.Optimizer,
        loader: Loader,
        largest: int | None = None,
    ) -> None:
        self.model, self.loss, self.optimizer, self.loader = model, loss, optimizer, loader
        first = batch_size("AdaptiveBatch", loader, 2)
        samples = len(loader.dataset)  # type: ignore[arg-type]
        largest = samples if largest is None else largest
        self.largest = whole("AdaptiveBatch", "largest", largest, first)
        if any(group.get("maximize") for group in optimizer.param_groups):
            raise ValueError(
                "AdaptiveBatch: an optimizer with maximize=True was given, expected one that "
                "minimizes a loss"
            )
        self.samples = self.batch_size = self.wanted = 0
        self._batches: Iterator[Any] = iter(loader)

    def step(self) -> float:
        """One update; returns the mean loss of its samples, before the step."""
        params = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        count, loss, wanted = 0, 0.0, 1
        mean = {name: torch.zeros_like(p) for name, p in params.items()}
        squares = {name: torch.zeros_like(p) for name, p in params.items()}
        while count < wanted:
            batch = next(self._batches, None)
            if batch is None:
                self._batches = iter(self.loader)
                if count:
                    break
                continue
            losses, grads = per_sample(self.model, self.loss, batch)
            m = len(tree_leaves(batch)[0])
            total = count + m
            loss += (float(losses.double().mean()) - loss) * m / total
            if not math.isfinite(loss):
                raise FloatingPointError(
                    f"AdaptiveBatch: a loss of {loss} came out, expected a finite one"
                )
            for name, g in grads.items():  # Chan et al. 1979: no difference of large sums
                center = g.mean(0)
                apart = center - mean[name]
                squares[name] += (g - center).square().sum(0) + apart**2 * (count * m / total)
                mean[name] += apart * (m / total)
            count = total
            self.samples += m
            # one sample has no variance
            wanted = self._wanted(params, loss, mean, squares, count) if count > 1 else 2
        for name, p in params.items():
            p.grad = mean[name]
        self.optimizer.step()
        self.batch_size, self.wanted = count, wanted
        return loss

    def _wanted(
        self,
        params: Mapping[str, Tensor],
        loss: float,
        mean: dict[str, Tensor],
        squares: dict[str, Tensor],
        count: int,
    ) -> int:
        names = {p: name for name, p in params.items()}
        gain = variance = 0.0
        for group in self.optimizer.param_groups:
            lr = float(group["lr"])
            for p in group["params"]:
                if p not in names:
                    continue
                g = mean[names[p]].double()
                spread = squares[names[p]].double() / (count - 1)
                own, old, buffer = _direction(group, self.optimizer.state.get(p, {}))
                gain += lr * own * float((g * g).sum())
                if buffer is not None:
                    gain += lr * old * float((g * buffer.double()).sum())
                variance += (lr * own) ** 2 * float((g * g * spread).sum())
        return best_batch(loss, gain, math.sqrt(variance), self.largest)

    def state_dict(self) -> dict[str, Any]:
        """The counts; the loader and the optimizer save their own."""
        return {"samples": self.samples, "batch_size": self.batch_size, "wanted": self.wanted}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a saved state, and go on where the loader is; ValueError for another's."""
        self.__dict__.update(saved("AdaptiveBatch", state, {"samples", "batch_size", "wanted"}))
        self._batches = iter(self.loader)


def _direction(group: dict[str, Any], state: dict[str, Any]) -> tuple[float, float, Tensor | None]:
    """(k, c, buffer): SGD's step is -lr * (k * g + c * buffer)."""
    momentum = group.get("momentum", 0.0) if "dampening" in group else 0.0
    buffer = state.get("momentum_buffer")
    nesterov = group.get("nesterov", False)
    if not momentum:
        return 1.0, 0.0, None
    own = 1.0 if buffer is None else 1 - group["dampening"]  # the first buffer is g itself
    if nesterov:
        return 1 + momentum * own, momentum**2, buffer
    return own, momentum, buffer
