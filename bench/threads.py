"""One thread, torch's OpenMP or a pool of our own, by size: python bench/threads.py

Each in turns within one process, after a matrix product that leaves torch's threads spinning as a
backward does. Decides `ENOUGH` and the choice in src/steepest/backends/threads.py.
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
    """Way -> median milliseconds of a step of AdaBelief."""
    made = {}
    for way in WAYS:
        ps = [torch.nn.Parameter(torch.randn(elements // tensors)) for _ in range(tensors)]
        for p in ps:
            p.grad = torch.randn_like(p)
        made[way] = steepest.AdaBelief(ps)
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    other, stop = torch.randn(512, 512), time.perf_counter() + seconds
    while time.perf_counter() < stop:
        for way, openmp in WAYS.items():
            threads.ENOUGH = 1 << 62 if openmp is None else 0
            threads._openmp = openmp or threads._openmp
            torch.mm(other, other)
            start = time.perf_counter()
            made[way].step()
            times[way].append(time.perf_counter() - start)
    return {way: 1e3 * statistics.median(ts[1:]) for way, ts in times.items()}


if __name__ == "__main__":
    torch.set_num_threads(2)
    print(f"{'elements':>10} {'tensors':>8}" + "".join(f"{way:>12}" for way in WAYS) + "  (ms)")
    for power in (16, 17, 18, 19, 20, 22, 24):
        for tensors in (1, 64):
            found = measure(1 << power, tensors)
            print(f"{1 << power:>10} {tensors:>8}" + "".join(f"{t:12.3f}" for t in found.values()))
