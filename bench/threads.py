"""One thread, torch's OpenMP or our own thread pool, for several sizes: python bench/threads.py

The three take turns in one process. A matrix product before each turn leaves torch's threads
spinning, as a backward does. The result decides `ENOUGH` and the choice in
src/steepest/backends/threads.py.
"""

import statistics
import time

import torch

import steepest
from steepest.backends import threads

OPENMP = threads._openmp()
WAYS = {"one thread": None, "OpenMP": lambda: OPENMP, "pool": lambda: None}
ENOUGH = threads.ENOUGH


def measure(elements: int, tensors: int, seconds: float = 2.0) -> dict[str, float]:
    """Way of threading -> median milliseconds of a step of AdaBelief."""
    optimizers = {}
    for way in WAYS:
        ps = [torch.nn.Parameter(torch.randn(elements // tensors)) for _ in range(tensors)]
        for p in ps:
            p.grad = torch.randn_like(p)
        optimizers[way] = steepest.AdaBelief(ps)
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    matrix, stop = torch.randn(512, 512), time.perf_counter() + seconds
    while time.perf_counter() < stop:
        for way, openmp in WAYS.items():
            threads.ENOUGH = 1 << 62 if openmp is None else 0
            threads._openmp = openmp or threads._openmp
            torch.mm(matrix, matrix)
            start = time.perf_counter()
            optimizers[way].step()
            times[way].append(time.perf_counter() - start)
    return {way: 1e3 * statistics.median(ts[1:]) for way, ts in times.items()}


if __name__ == "__main__":
    torch.set_num_threads(2)
    print(f"{'elements':>10} {'tensors':>8}" + "".join(f"{way:>12}" for way in WAYS) + "  (ms)")
    for power in (16, 17, 18, 19, 20, 22, 24):
        for tensors in (1, 64):
            times = measure(1 << power, tensors)
            print(f"{1 << power:>10} {tensors:>8}" + "".join(f"{t:12.3f}" for t in times.values()))
