"""Claims of papers on small real data: `python bench/reproductions NAME`.

Prints the mean and the standard deviation over the seeds. Below them come paired differences with
intervals and p values, after Holm's procedure over all differences, as in a race.
docs/reproductions.md has the results.
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
    "growth": growth,
    "sgdr": sgdr,
    "noise": noise,
    "saddle": saddle,
    "nesterov": nesterov,
    "least-squares": fit,
    "ba-sgd": adaptive,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python bench/reproductions", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("name", choices=REPRODUCTIONS)
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.seeds is not None and args.seeds < 1:
        parser.error(f"--seeds {args.seeds} was given, expected 1 or more")
    torch.set_num_threads(1)
    start = perf_counter()
    reproduction = REPRODUCTIONS[args.name]
    results = reproduction() if args.seeds is None else reproduction(args.seeds)
    seconds = perf_counter() - start
    if args.json:
        print(json.dumps({"name": args.name, "seconds": seconds, "rows": results.rows()}, indent=1))
    else:
        print(f"{(reproduction.__doc__ or '').partition(chr(10))[0]}\n{results.text()}")
        print(f"{seconds:.0f} s")


if __name__ == "__main__":
    main()
