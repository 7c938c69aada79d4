"""AdaBelief against torch's fused AdamW and adabelief-pytorch: python bench/step.py [SET ...]

The three take turns in one process on 2 threads, each with a scheduler attached. Compares the best
of three medians of each. The foreach backend is compared with torch's foreach AdamW in the same
way.
"""

import sys

import torch

from steepest import bench

THREE = ("steepest AdaBelief", "torch AdamW, fused", "adabelief-pytorch AdaBelief")
LISTS = ("steepest AdamW, foreach", "steepest AdaBelief, foreach", "torch AdamW, foreach")


def best_of_three(name: str, labels: tuple[str, ...], seconds: float = 5.0) -> dict[str, float]:
    """Label -> the best of three medians, in milliseconds."""
    rounds = [
        bench.measure(bench.SETS[name](), seconds, lambda label: label in labels) for _ in range(3)
    ]
    return {label: 1e3 * min(r[label]["median"] for r in rounds) for label in labels}


if __name__ == "__main__":
    torch.set_num_threads(2)
    for name in sys.argv[1:] or bench.SETS:
        ours, fused, package = (best_of_three(name, THREE)[label] for label in THREE)
        print(
            f"{name:9} AdaBelief {ours:.3f} ms, torch fused AdamW {fused:.3f}: {ours / fused:.3f};",
            end=" ",
        )
        print(f"adabelief-pytorch {package:.3f}: {package / ours:.1f} times ours")
        ours, belief, foreach = (best_of_three(name, LISTS)[label] for label in LISTS)
        print(
            f"{'':9} foreach: AdamW {ours:.3f} ms, torch's {foreach:.3f}: {ours / foreach:.3f}",
            end=" ",
        )
        print(f"(AdaBelief {belief / foreach:.3f})", flush=True)
