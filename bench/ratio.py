"""A step's time as a ratio to torch's fused AdamW, with its 95 % interval.

    python bench/ratio.py [--alternations 20] [--sets resnet50 300x64] [SRC ...]

SRC: source trees to compare, such as `src` and that of another checkout. They take turns, a block
each. In a block our AdamW, our AdaBelief and torch's fused AdamW take turns in one process on 2
threads, each with a scheduler attached. A block's ratio is the ratio of its medians.
"""

import argparse
import os
import subprocess
import sys

import numpy as np
from scipy import stats

BLOCK = """
import sys, torch
from steepest import bench
torch.set_num_threads(2)
labels = ("steepest AdamW", "steepest AdaBelief", "torch AdamW, fused")
for line in sys.stdin:
    name, seconds = line.split()
    times = bench.measure(bench.SETS[name](), float(seconds), lambda label: label in labels)
    print(*(times[label]["median"] for label in labels), flush=True)
"""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("trees", nargs="*", default=["src"])
    parser.add_argument("--alternations", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--sets", nargs="*", default=["resnet50", "300x3456", "300x64"])
    options = parser.parse_args()
    workers = {
        tree: subprocess.Popen(
            [sys.executable, "-c", BLOCK],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.path.abspath(tree)},
        )
        for tree in options.trees
    }
    for name in options.sets:
        times: dict[str, list[list[float]]] = {tree: [] for tree in workers}
        for _ in range(1 + options.alternations):
            for tree, worker in workers.items():
                worker.stdin.write(f"{name} {options.seconds}\n")
                worker.stdin.flush()
                times[tree].append([float(x) for x in worker.stdout.readline().split()])
        for tree, rows in times.items():
            adamw, belief, fused = np.array(rows[1:]).T  # the first block compiles
            for label, ours in (("AdamW", adamw), ("AdaBelief", belief)):
                logs = np.log(ours / fused)
                half = stats.t.ppf(0.975, len(logs) - 1) * stats.sem(logs)
                low, middle, high = np.exp([logs.mean() - half, logs.mean(), logs.mean() + half])
                print(
                    f"{name:9} {tree}: {label:9} {middle:.3f} of torch's fused AdamW "
                    f"[{low:.3f}, {high:.3f}], n={len(logs)}; {1e3 * np.median(ours):.3f} ms and "
                    f"{1e3 * np.median(fused):.3f} ms",
                    flush=True,
                )
    for worker in workers.values():
        worker.stdin.close()
        worker.wait(60)


if __name__ == "__main__":
    main()
