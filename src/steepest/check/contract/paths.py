"""A formula's implementations must agree with each other and with an independent implementation."""

from __future__ import annotations

from typing import Any

import torch

from ...backends import BACKENDS
from ...oracles.trajectories import path_deviation, same_name, settings_of  # noqa: F401  in values
from ..examination import examination
from ..needs import capturable, differentiated, known, own_backend, plain, taken
from .helpers import drive

_CAPTURABLE = {
    "one": "{'capturable': False}",
    "two": "{'capturable': True}",
    "device": "torch.accelerator.current_accelerator()",
}
_REFERENCE = "{'backend': 'eager'}"
_PRINTED = [name for name in BACKENDS if name != "eager"]


@examination(
    "path",
    "torch.optim: foreach, fused and capturable are implementations of one formula",
    plain,
    cases={
        "foreach": {"one": "{'foreach': False}", "two": "{'foreach': True}"},
        "fused": {"one": "{'fused': False}", "two": "{'fused': True}"},
        "capturable": _CAPTURABLE,
        "default": {"one": "{'foreach': False}", "two": "{}"},
        **{f"backend-{b}": {"one": _REFERENCE, "two": f"{{'backend': {b!r}}}"} for b in _PRINTED},
    },
    case_needs={
        "foreach": taken(foreach=True),
        "default": taken(foreach=False),
        "fused": taken(fused=True),
        "capturable": capturable,
        **{f"backend-{name}": own_backend for name in _PRINTED},
    },
)
def path(make: Any, one: Any, two: Any, variants: Any, device: Any) -> None:
    """With various options and missing gradients, two ways to compute a step agree in float64."""
    for options in variants:
        ends = []
        for way in (one, two):
            start = torch.ones(3, 2, dtype=torch.float64, device=device)
            params = [torch.nn.Parameter(start.clone()) for _ in range(2)]
            optimizer = make(params, **options, **way)
            for t in range(20):
                params[0].grad = None
                drive(optimizer, params[t % 3 == 1 :], 1, start=t)
            ends.append(torch.cat([p.detach().flatten() for p in params]))
        difference = ((ends[0] - ends[1]).abs() / (ends[0].abs() + 1e-3)).max().item()
        assert difference < 1e-6, (
            f"after 20 steps {two} and {one} differ by {difference:.1e} with {options}"
        )
    print(f"note: both agree with {len(variants)} sets of options")


@examination("path-differentiable", "torch.optim: differentiable", plain, differentiated)
def differentiable(make: Any, tensors: Any) -> None:
    """differentiable=True makes the same steps. Autograd through three steps agrees with finite
    differences for the parameter and the gradients, and for lr and weight decay as tensors."""

    def end(start: torch.Tensor, *grads: torch.Tensor, **options: Any) -> torch.Tensor:
        q = start.clone()
        optimizer = make([q], **options)
        for g in grads:
            q.grad = g.clone()
            optimizer.step()
        return q

    def weighed(values: Any, names: Any) -> torch.Tensor:
        options = dict(zip(names, values[4:], strict=True))
        moved = end(*values[:4], differentiable=True, **options) - values[0]
        return (weights * moved).sum()

    random = torch.Generator().manual_seed(0)
    drawn = torch.empty(5, 2, 2, dtype=torch.float64).uniform_(0.4, 1.6, generator=random)
    *inputs, weights = drawn.unbind()
    actual, expected = end(*inputs, differentiable=True), end(*inputs)
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-9)
    for names in ([], tensors):
        values = [*inputs, *(torch.tensor(0.05, dtype=torch.float64) for _ in names)]
        values = [x.clone().requires_grad_() for x in values]
        grads = torch.autograd.grad(weighed(values, names), values, allow_unused=True)
        for k, name in enumerate(["parameter", "gradient 1", "gradient 2", "gradient 3", *names]):
            step = 1e-4 * values[k].detach() * (weights if k < 4 else 1)
            up, down = ([*values[:k], values[k] + s, *values[k + 1 :]] for s in (step, -step))
            change = (weighed(up, names) - weighed(down, names)).item() / 2
            slope = 0.0 if grads[k] is None else (grads[k] * step).sum().item()
            both = f"{name}: autograd finds {1e4 * slope:.3e}, expected {1e4 * change:.3e}"
            assert abs(slope - change) <= 1e-3 * abs(change) + 1e-13, both


@examination(
    "trajectory",
    "the method's paper, in an implementation that is independent of the examined class",
    plain,
    known,
)
def trajectory(make: Any, comparisons: Any) -> None:
    """In float64, 100 steps agree with those of an independent implementation."""
    worst, oracle = 0.0, ""
    for setting in comparisons:
        deviation = path_deviation(make, setting)
        oracle = setting.made_by.described
        assert deviation <= setting.bound, (
            f"{setting} has a relative deviation of {deviation:.1e} from {oracle}"
        )
        worst = max(worst, deviation)
    count = f"{len(comparisons)} settings of 100 steps"
    print(f"note: within {worst:.0e} of {oracle} after every step, {count}")
