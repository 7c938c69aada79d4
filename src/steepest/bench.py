"""`steepest bench`: the time of one step, compared with torch and other packages.

All contenders run in one process and take turns, each on its own tensors. A small matrix product
before each turn wakes torch's threads, as a backward pass does. The contenders are compared by the
median time of their turns.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import steepest
from steepest.backends import BACKENDS

BYTES = 28  # per float32 parameter with two states: read p g m s, write p m s


def resnet50() -> list[tuple[int, ...]]:
    """The 161 parameter tensors of ResNet-50, He et al. 2016, arXiv:1512.03385, table 1."""
    shapes: list[tuple[int, ...]] = [(64, 3, 7, 7), (64,), (64,)]
    channels = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            out = 4 * width
            convolutions = [(width, channels, 1, 1), (width, width, 3, 3), (out, width, 1, 1)]
            if block == 0:
                convolutions.append((out, channels, 1, 1))
            for shape in convolutions:
                shapes += [shape, (shape[0],), (shape[0],)]
            channels = out
    return [*shapes, (1000, 2048), (1000,)]


SETS: dict[str, Callable[[], list[tuple[int, ...]]]] = {
    "resnet50": resnet50,
    "300x3456": lambda: [(3456,)] * 300,
    "300x64": lambda: [(64,)] * 300,
}


def contenders() -> dict[str, Callable[[list[Tensor]], Any]]:
    """Returns label -> function that makes the optimizer from the parameters.

    Packages that are not installed are left out.
    """
    adamw = torch.optim.AdamW
    makers: dict[str, Callable[[list[Tensor]], Any]] = {
        "steepest AdaBelief": lambda ps: steepest.optimizer("adabelief", ps),
        "steepest AdamW": lambda ps: steepest.optimizer("adamw", ps),
        "steepest NAdam": lambda ps: steepest.optimizer("nadam", ps),
        "steepest AdaBelief, foreach": lambda ps: steepest.optimizer(
            "adabelief", ps, backend="foreach"
        ),
        "torch AdamW, fused": lambda ps: adamw(ps, fused=True),
        "torch AdamW, foreach": lambda ps: adamw(ps, foreach=True),
        "torch AdamW, loop": lambda ps: adamw(ps, foreach=False, fused=False),
    }
    for name in [*BACKENDS][1:]:  # the first is the default
        makers[f"steepest AdamW, {name}"] = lambda ps, b=name: steepest.optimizer(
            "adamw", ps, backend=b
        )
    for package in ("adabelief_pytorch", "pytorch_optimizer"):
        with contextlib.suppress(ImportError):
            cls = importlib.import_module(package).AdaBelief
            quiet = {"print_change_log": False} if package == "adabelief_pytorch" else {}
            label = package.replace("_", "-") + " AdaBelief"
            makers[label] = lambda ps, cls=cls, quiet=quiet: cls(ps, **quiet)
    return makers


def _make_params(shapes: list[tuple[int, ...]]) -> list[Tensor]:
    params: list[Tensor] = [torch.nn.Parameter(torch.randn(shape) * 0.02) for shape in shapes]
    for p in params:
        p.grad = torch.randn_like(p) * 1e-3
    return params


def copy_bound(shapes: list[tuple[int, ...]], rounds: int = 9) -> float:
    """Returns the seconds that moving 28 bytes per parameter takes at the speed of a large copy."""
    count = sum(torch.Size(s).numel() for s in shapes)
    source = torch.randn(max(count, 1 << 22))
    target = torch.empty_like(source)
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        target.copy_(source)
        times.append(time.perf_counter() - start)
    return statistics.median(times) * BYTES * count / (8 * source.numel())


def measure(
    shapes: list[tuple[int, ...]],
    seconds: float = 10.0,
    only: Callable[[str], bool] = lambda label: True,
    more: dict[str, Callable[[list[Tensor]], Any]] | None = None,
) -> dict[str, dict[str, float]]:
    """Returns label -> {"median", "best", "n"}: seconds per step, and the number of measured steps.

    seconds: the time for all contenders together.
    only: function that says for a label whether to measure this contender.
    more: further contenders, as `contenders` returns them.
    """
    makers = {k: v for k, v in {**contenders(), **(more or {})}.items() if only(k)}
    turns: dict[str, Callable[[], float]] = {}
    for label, make in makers.items():
        with contextlib.redirect_stdout(io.StringIO()):  # adabelief-pytorch prints a banner
            turns[label] = _make_turn(make(_make_params(shapes)))
    matrix = torch.randn(256, 256)
    times: dict[str, list[float]] = {label: [] for label in turns}
    for turn in turns.values():
        turn()
    stop = time.perf_counter() + seconds
    while time.perf_counter() < stop or len(next(iter(times.values()))) < 5:
        for label, turn in turns.items():
            torch.mm(matrix, matrix)
            times[label].append(turn())
    return {
        label: {"median": statistics.median(ts), "best": min(ts), "n": len(ts)}
        for label, ts in times.items()
    }


def _make_turn(optimizer: torch.optim.Optimizer) -> Callable[[], float]:
    """Returns a function that makes one step and returns its duration in seconds.

    A scheduler changes lr after each step.
    """
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 / (1 + 1e-4 * step))

    def turn() -> float:
        start = time.perf_counter()
        optimizer.step()
        seconds = time.perf_counter() - start
        schedule.step()
        return seconds

    return turn


def run(sets: list[str], seconds: float, threads: int | None = None) -> dict[str, Any]:
    """Measure the sets of shapes with these names. `table` turns the result into text.

    The result's "sets" has an entry for each set: its size, its copy bound in seconds, and what
    `measure` returns for it.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    result: dict[str, Any] = {
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "sets": {},
    }
    for name in sets:
        shapes = SETS[name]()
        result["sets"][name] = {
            "tensors": len(shapes),
            "parameters": sum(torch.Size(s).numel() for s in shapes),
            "copy_bound": copy_bound(shapes),
            "steps": measure(shapes, seconds),
        }
    return result


def table(result: dict[str, Any]) -> str:
    """Returns the measurements as text: milliseconds, and ratios to torch's fused AdamW."""
    lines = [f"one step, float32, {result['threads']} threads, torch {result['torch']}"]
    for name, measured in result["sets"].items():
        base = measured["steps"]["torch AdamW, fused"]["median"]
        lines.append(
            f"\n{name}: {measured['parameters']:,} parameters in {measured['tensors']} tensors"
        )
        lines.append(f"  {'':34}{'median ms':>10}{'best ms':>10}{'/ fused':>9}{'n':>6}")
        bound = {"median": measured["copy_bound"], "best": measured["copy_bound"], "n": 9}
        rows = {**measured["steps"], f"copying {BYTES} bytes a parameter": bound}
        for label, row in rows.items():
            ms = f"{row['median'] * 1e3:10.3f}{row['best'] * 1e3:10.3f}"
            lines.append(f"  {label:34}{ms}{row['median'] / base:9.3f}{row['n']:6}")
    return "\n".join(lines)
