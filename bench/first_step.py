"""Seconds for the import and the first step in a fresh process: python bench/first_step.py

cold: with an empty cache of compiled loops. cached: with a full one. torch's AdamW is the
reference: its first step imports parts of torch that ours needs too. Medians of 5 processes each,
which take turns.
"""

import os
import statistics
import subprocess
import sys
import tempfile

STEP = """
import time, torch
p = [torch.nn.Parameter(torch.randn(64)) for _ in range(10)]
for q in p: q.grad = torch.randn(64)
{imports}
start = time.perf_counter()
{make}.step()
print(time.perf_counter() - start)
"""
IMPORT = (
    "import time, torch; s = time.perf_counter(); import steepest; print(time.perf_counter() - s)"
)
TORCH = STEP.format(imports="", make="torch.optim.AdamW(p, fused=True)")
OURS = STEP.format(imports="import steepest", make="steepest.AdaBelief(p)")


def seconds(code: str, cache: str) -> float:
    """The seconds that a fresh process prints."""
    environment = {**os.environ, "STEEPEST_CACHE_DIR": cache}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, check=True
    )
    return float(done.stdout)


if __name__ == "__main__":
    times: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as full:
        seconds(OURS, full)
        for _ in range(5):
            with tempfile.TemporaryDirectory() as empty:
                times.setdefault("torch AdamW", []).append(seconds(TORCH, full))
                times.setdefault("cold", []).append(seconds(OURS, empty))
                times.setdefault("cached", []).append(seconds(OURS, full))
                times.setdefault("import steepest, after torch", []).append(seconds(IMPORT, full))
    base = statistics.median(times["torch AdamW"])
    for label, runs in times.items():
        median = statistics.median(runs)
        beyond = f"  {median - base:+.2f} beyond torch" if label in ("cold", "cached") else ""
        print(f"{label:30} {median:.2f} s{beyond}  n={len(runs)}")
