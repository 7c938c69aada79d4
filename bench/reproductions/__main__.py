"""Claims of papers on small real data: `python bench/reproductions NAME`.

Printed: the mean over the seeds, the standard deviation, and a 95 % t interval of the mean; below,
paired differences with intervals and p values after Holm's procedure over all of them, as in a
race. docs/reproductions.md has what came out.
"""

from __future__ import annotations

import argparse
import json
from time import perf_counter

import torch
from adaptive import adaptive
from convex import fit, nesterov
from noisy import noise
from saddles import saddle
from scheduled import growth, sgdr

REPRODUCTIONS = {
    "growth": growth, "sgdr": sgdr, "noise": noise, "saddle": saddle, "nesterov": nesterov,
    "least-squares": fit, "ba-sgd": adaptive,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python bench/reproductions", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("name", choices=REPRODUCTIONS)
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    if given.seeds is not None and given.seeds < 1:
        parser.error(f"--seeds {given.seeds} was given, expected 1 or more")
    torch.set_num_threads(1)
    began = perf_counter()
    reproduction = REPRODUCTIONS[given.name]
    found = reproduction() if given.seeds is None else reproduction(given.seeds)
    seconds = perf_counter() - began
    if given.json:
        print(json.dumps({"name": given.name, "seconds": seconds, "rows": found.rows()}, indent=1))
    else:
        print(f"{(reproduction.__doc__ or '').partition(chr(10))[0]}\n{found.text()}")
        print(f"{seconds:.0f} s")


if __name__ == "__main__":
    main()
