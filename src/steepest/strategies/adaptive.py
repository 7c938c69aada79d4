"""Choose the batch size of each update from the variance of the per-sample gradients."""

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


class _SampleLoss(nn.Module):
    """A module that returns the loss of one sample. torch's functional_call needs a module."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, sample: Any) -> Tensor:
        return self.loss(self.model, tree_map(lambda t: t.unsqueeze(0), sample))


def per_sample(model: nn.Module, loss: Loss, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss and the gradient of each sample in a batch.

    loss(model, batch): the mean loss over a batch, a tensor without dimensions. batch: tensors in
    any nesting of tuples, lists and dicts. The first dimension of each tensor has size m, the
    number of samples.

    Returns the losses, shape [m], and a dict from parameter name to gradients, shape
    [m, *p.shape], for the parameters that require a gradient. Dropout drops different units for
    each sample. Uses torch.func (vmap of grad), so the gradients take m times the memory of the
    parameters. If vmap does not support the model or the loss, as with a GRU or `.item()`, samples
    run one by one, m times slower. The logger "steepest" reports this once.

    Raises ValueError if the loss is not a single number. Raises ValueError also if the model has
    batch normalisation in training mode or changes another buffer when called, because the loss of
    a sample would then depend on other samples. Raises torch's error if memory runs out.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
            raise ValueError(
                f"per_sample: batch normalisation {name!r} in training mode was given, expected a "
                "model whose samples do not depend on each other; call eval() on the model, "
                "or use GroupNorm or LayerNorm"
            )
    module = _SampleLoss(model, loss)
    params = {
        f"model.{name}": p.detach() for name, p in model.named_parameters() if p.requires_grad
    }

    def sample_loss(params: dict[str, Tensor], sample: Any) -> Tensor:
        return functional_call(module, params, (sample,))

    gradients = vmap(grad_and_value(sample_loss), in_dims=(None, 0), randomness="different")
    with unmoved("per_sample", model):
        try:
            with quietly():
                grads, losses = gradients(params, batch)
        except Exception as error:  # of any type; the loop raises the model's own errors again
            slowly("per_sample", error)
            grads, losses = _loop_over_samples(model, loss, batch)
    return losses.detach(), {name.removeprefix("model."): g for name, g in grads.items()}


def _loop_over_samples(
    model: nn.Module, loss: Loss, batch: Any
) -> tuple[dict[str, Tensor], Tensor]:
    """Compute the gradients and losses of the samples, one sample after the other."""
    params = {name: p for name, p in model.named_parameters() if p.requires_grad}
    losses, rows = [], []
    for k in range(len(tree_leaves(batch)[0])):
        with torch.enable_grad():
            value = loss(model, tree_map(lambda t, k=k: t[k : k + 1], batch))
        if value.numel() != 1:
            raise ValueError(
                f"per_sample: the loss returned a tensor of shape {[*value.shape]}, expected the "
                "mean over the batch as a single number"
            )
        value = value.reshape(())
        rows.append(torch.autograd.grad(value, [*params.values()], materialize_grads=True))
        losses.append(value.detach())
    columns = zip(*rows, strict=True)
    grads = {name: torch.stack(column) for name, column in zip(params, columns, strict=True)}
    return grads, torch.stack(losses)


def expected_loss(loss: float, gain: float, deviation: float, m: float) -> float:
    """The expected absolute loss E|S'| after a step with m samples.

    S is the loss before the step. S' is normal with mean S - gain and variance deviation**2 / m, so
    |S'| has a folded normal distribution. To first order S' = S - lr * g.(mean gradient of m
    samples), where g is the true gradient. So `gain` is lr * |g|**2, and `deviation` is
    lr * sqrt(g.Cg), where C is the covariance of one sample's gradient. The normal S' can be
    negative, but a loss cannot, so |S'| is used instead.
    """
    return loss - _progress(loss, gain, deviation, m)


def _progress(loss: float, gain: float, deviation: float, m: float) -> float:
    """S - E|S'|, without cancellation even if `gain` is far below `loss`."""
    mean, spread = loss - gain, deviation / math.sqrt(m)
    if not spread:
        return loss - abs(mean)
    a = mean / spread
    density = math.exp(-min(a * a, 1500.0) / 2) / math.sqrt(2 * math.pi)  # exp is 0 at this cap
    return gain - 2 * (spread * density - mean * math.erfc(a / math.sqrt(2)) / 2)


def best_batch(loss: float, gain: float, deviation: float, largest: int) -> int:
    """The m from 1 to `largest` with the most expected progress per sample, (S - E|S'|) / m.

    Yin, Luo and Nakamura, KDD 2017, "Small batch or large batch? Gaussian walk with rebound can
    teach". The symbols are those of `expected_loss`. E|S'| is convex in x = 1 / sqrt(m) (its
    derivative grows with x), so x**2 * (S - E|S'|) has a single maximum, which bisection finds.
    Raises ValueError if `loss` is below 0 or not finite. Raises FloatingPointError if `gain` or
    `deviation` is not finite.
    """
    loss = number("best_batch", "loss", loss, "[0, inf)")
    largest = whole("best_batch", "largest", largest, 1)
    if not (math.isfinite(gain) and math.isfinite(deviation)):
        raise FloatingPointError(
            f"best_batch: gain={gain} and deviation={deviation} were given, expected finite numbers"
        )

    def falls_after(m: int) -> bool:
        a, b = (_progress(loss, gain, deviation, n) / n for n in (m, m + 1))
        return b <= a

    return bisect_left(range(1, largest), True, key=falls_after) + 1


class AdaptiveBatch:
    """Draw samples until the batch has the best expected progress per sample, then step.

    BA-SGD: Yin, Luo and Nakamura, KDD 2017, "Small batch or large batch? Gaussian walk with rebound
    can teach". An update draws `loader.batch_size` samples at a time (the authors' m_0; their code
    uses 30). From all samples that it has drawn so far, it estimates the loss, the gradient, and
    the variance of each gradient element (the diagonal of the covariance). From these estimates
    `best_batch` computes m*, the best number of samples, which is at most `largest`. When m*
    samples or more are drawn, the update passes their mean gradient to the optimizer. At the end of
    an epoch the update uses the samples drawn so far. Because it draws m_0 samples at a time, an
    update may use up to m_0 - 1 samples more than m*.

    model, loss: as for `per_sample`; the loss must not be negative.
    optimizer: any optimizer. The loss after the step is predicted for a plain gradient step, with
    each group's own lr. For SGD with momentum gamma (torch's or ours), it is predicted for the
    momentum step, with gain lr * g.(gamma * buffer + g): the authors' momentum variant. For all
    other optimizers the prediction is a heuristic.
    loader: a `Loader`. largest: at least m_0; by default all data.

    `samples` counts the gradients computed so far. `batch_size` is the number of samples in the
    last update, and `wanted` is the m* of that update. In a checkpoint, also save the states of the
    loader and the optimizer. Load these two states before the state of this object.

    Raises ValueError for invalid arguments. Raises FloatingPointError if the loss or gradient is
    not finite. The parameters and the optimizer then stay unchanged, but the loader does not repeat
    the samples that were already drawn.
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
                "minimizes the loss"
            )
        self.samples = self.batch_size = self.wanted = 0
        self._batches: Iterator[Any] = iter(loader)

    def step(self) -> float:
        """Make one update. Returns the mean loss, before the update, of the samples it used."""
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
                    f"AdaptiveBatch: the mean loss is {loss}, expected a finite number; check the "
                    "data and the learning rate"
                )
            for name, g in grads.items():  # Chan et al. 1979: merges variances without cancellation
                center = g.mean(0)
                shift = center - mean[name]
                squares[name] += (g - center).square().sum(0) + shift**2 * (count * m / total)
                mean[name] += shift * (m / total)
            count = total
            self.samples += m
            # the variance needs two samples
            wanted = self._choose_size(params, loss, mean, squares, count) if count > 1 else 2
        for name, p in params.items():
            p.grad = mean[name]
        self.optimizer.step()
        self.batch_size, self.wanted = count, wanted
        return loss

    def _choose_size(
        self,
        params: Mapping[str, Tensor],
        loss: float,
        mean: dict[str, Tensor],
        squares: dict[str, Tensor],
        count: int,
    ) -> int:
        """Return m*.

        count: the number of gradients that have been computed, one per sample. mean: their mean.
        squares: the sum of their squared deviations from the mean.
        """
        names = {p: name for name, p in params.items()}
        gain = variance = 0.0
        for group in self.optimizer.param_groups:
            lr = float(group["lr"])
            for p in group["params"]:
                if p not in names:
                    continue
                g = mean[names[p]].double()
                g_variance = squares[names[p]].double() / (count - 1)
                k, c, buffer = _momentum_factors(group, self.optimizer.state.get(p, {}))
                gain += lr * k * float((g * g).sum())
                if buffer is not None:
                    gain += lr * c * float((g * buffer.double()).sum())
                variance += (lr * k) ** 2 * float((g * g * g_variance).sum())
        return best_batch(loss, gain, math.sqrt(variance), self.largest)

    def state_dict(self) -> dict[str, Any]:
        """`samples`, `batch_size` and `wanted`, without the states of the loader and optimizer."""
        return {"samples": self.samples, "batch_size": self.batch_size, "wanted": self.wanted}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load what state_dict() returned, and continue at the loader's position.

        Raises ValueError for anything else.
        """
        self.__dict__.update(saved("AdaptiveBatch", state, {"samples", "batch_size", "wanted"}))
        self._batches = iter(self.loader)


def _momentum_factors(
    group: dict[str, Any], state: dict[str, Any]
) -> tuple[float, float, Tensor | None]:
    """(k, c, buffer), where SGD's step is -lr * (k * g + c * buffer)."""
    momentum = group.get("momentum", 0.0) if "dampening" in group else 0.0
    buffer = state.get("momentum_buffer")
    nesterov = group.get("nesterov", False)
    if not momentum:
        return 1.0, 0.0, None
    share = 1.0 if buffer is None else 1 - group["dampening"]  # the first buffer is g itself
    if nesterov:
        return 1 + momentum * share, momentum**2, buffer
    return share, momentum, buffer
