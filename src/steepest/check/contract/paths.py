"""One formula, several ways through the code: they must agree, and agree with the reference."""

from __future__ import annotations

from typing import Any

import torch

from ...backends import BACKENDS
from ...oracles.trajectories import apart, same_name, settings_of  # noqa: F401  in its comparisons
from ..examination import examination
from ..needs import capturable, differentiated, known, own_backend, plain, taken
from .helpers import drive

_CAPTURABLE = {
    "one": "{'capturable': False}", "two": "{'capturable': True}",
    "device": "torch.accelerator.current_accelerator()",
}  # fmt: skip
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
        "foreach": taken(foreach=True), "default": taken(foreach=False),
        "fused": taken(fused=True), "capturable": capturable,
        **{f"backend-{name}": own_backend for name in _PRINTED},
    },
)  # fmt: skip
def path(make: Any, one: Any, two: Any, variants: Any, device: Any) -> None:
    """Both ways make the same steps in float64, whatever else is on; some lack a gradient."""
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
        far = ((ends[0] - ends[1]).abs() / (ends[0].abs() + 1e-3)).max().item()
        assert far < 1e-6, f"{two} with {options} is {far:.1e} off {one} after 20 steps"
    print(f"found: they agree, with {len(variants)} sets of options")


@examination("path-differentiable", "torch.optim: differentiable", plain, differentiated)
def differentiable(make: Any, tensors: Any) -> None:
    """differentiable=True makes the same steps, and through three of them autograd finds the slopes
    that finite differences find: of parameter, gradients, and an lr and a decay that are
    tensors."""

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
        return (tilt * moved).sum()

    random = torch.Generator().manual_seed(0)
    every = torch.empty(5, 2, 2, dtype=torch.float64).uniform_(0.4, 1.6, generator=random)
    *given, tilt = every.unbind()
    torch.testing.assert_close(end(*given, differentiable=True), end(*given), rtol=1e-6, atol=1e-9)
    for names in ([], tensors):
        values = [*given, *(torch.tensor(0.05, dtype=torch.float64) for _ in names)]
        values = [x.clone().requires_grad_() for x in values]
        found = torch.autograd.grad(weighed(values, names), values, allow_unused=True)
        for k, name in enumerate(["parameter", "gradient 1", "gradient 2", "gradient 3", *names]):
            step = 1e-4 * values[k].detach() * (tilt if k < 4 else 1)
            up, down = ([*values[:k], values[k] + s, *values[k + 1 :]] for s in (step, -step))
            change = (weighed(up, names) - weighed(down, names)).item() / 2
            mine = 0.0 if found[k] is None else (found[k] * step).sum().item()
            said = f"{name}: autograd finds {1e4 * mine:.3e}, differences {1e4 * change:.3e}"
            assert abs(mine - change) <= 1e-3 * abs(change) + 1e-13, said


@examination(
    "trajectory",
    "the method's paper, by an implementation that is independent of the one examined",
    plain,
    known,
)
def trajectory(make: Any, comparisons: Any) -> None:
    """In float64 the path follows that of an independent implementation for 100 steps."""
    worst, against = 0.0, ""
    for setting in comparisons:
        far = apart(make, setting)
        against = setting.made_by.described
        assert far <= setting.bound, f"{setting}: up to {far:.1e} off {against}, relatively"
        worst = max(worst, far)
    many = f"{len(comparisons)} settings of 100 steps"
    print(f"found: within {worst:.0e} of {against} after every step, {many}")
