"""The slow paths compared with the fast one, on 300 tensors of 64: python bench/slow_paths.py"""

import torch

import steepest
from steepest import bench


def drop_half_the_gradients(ps):
    for p in ps[::2]:
        p.grad = None
    return steepest.AdaBelief(ps)


def stride_gradients(ps):
    for p in ps:
        p.data = p.data.view(8, 8)
        p.grad = torch.randn(8, 8).t()
    return steepest.AdaBelief(ps)


PATHS = {
    "fast": steepest.AdaBelief,
    "half the gradients None": drop_half_the_gradients,
    "strided gradients": stride_gradients,
    "ten distinct step counts": lambda ps: _spread_counts(steepest.AdaBelief(ps)),
    "NAdam": steepest.NAdam,
    "NAdam, ten counts": lambda ps: _spread_counts(steepest.NAdam(ps)),
    "channels-last parameters": lambda ps: _make_channels_last(ps),
}


def _spread_counts(optimizer):
    """Step the parameters 1 to 10 times, so that their step counts differ."""
    ps = optimizer.param_groups[0]["params"]
    grads = [p.grad for p in ps]
    for turn in range(10):
        for k, p in enumerate(ps):
            p.grad = grads[k] if k % 10 <= turn else None
        optimizer.step()
    return optimizer


def _make_channels_last(ps):
    for p in ps:
        p.data = p.data.view(1, 4, 4, 4).to(memory_format=torch.channels_last)
        p.grad = torch.randn_like(p)
    return steepest.AdaBelief(ps)


if __name__ == "__main__":
    torch.set_num_threads(2)
    times = bench.measure(bench.SETS["300x64"](), 8, lambda label: label in PATHS, PATHS)
    for label, row in times.items():
        ratio = row["median"] / times["fast"]["median"]
        print(f"{label:26} {1e6 * row['median']:7.0f} us  {ratio:5.2f}  n={row['n']}")
