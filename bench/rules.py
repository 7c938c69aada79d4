"""Step time of every elementwise rule against its memory traffic: python bench/rules.py [RULE ...]

On a large set, the cost of a step is reading and writing the parameter, its gradient and its
states. AdaBelief moves 28 bytes per parameter (reads p, g, m, s; writes p, m, s), so a rule that
moves B bytes should take B / 28 of AdaBelief's time. The two take turns in one process. Prints the
median over 5 processes of (time / AdaBelief's time) / (B / 28).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys

import torch

from steepest import bench, optimizer
from steepest.backends.wanted import program_of
from steepest.catalogue import category_of
from steepest.definition import rules
from steepest.families import select_defaults
from steepest.trace import Program

LIMIT = 1.25
BASE = "adabelief"


def traffic(program: Program) -> int:
    """Bytes per float32 parameter: every input that is read, every output that is written."""
    outputs = program.outputs.values()
    read = {a for n in program.body for a in n.args} | {*outputs}
    return 4 * (sum(node in read for node in program.inputs.values()) + len(outputs))


def elementwise() -> dict[str, Program]:
    """Rule -> its program with the defaults of its class."""
    programs = {name: program_of(select_defaults(rule)) for name, rule in rules.items()}
    return {name: p for name, p in programs.items() if category_of(p) == "elementwise"}


def measure_once(names: list[str], seconds: float) -> dict[str, float]:
    """Rule -> its step time divided by AdaBelief's, in one process."""
    shapes, ratios = bench.resnet50(), {}
    for name in names:
        makers = {n: lambda ps, n=n: optimizer(n, ps) for n in (BASE, name)}
        times = bench.measure(shapes, seconds, lambda label: label in (BASE, name), makers)  # noqa: B023
        ratios[name] = times[name]["median"] / times[BASE]["median"]
    return ratios


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("rules", nargs="*")
    parser.add_argument("--processes", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.5, help="for each rule in each process")
    parser.add_argument("--once", action="store_true", help="one process, as JSON")
    options = parser.parse_args()
    programs = elementwise()
    names = options.rules or [name for name in programs if name != BASE]
    torch.set_num_threads(2)
    if options.once:
        print(json.dumps(measure_once(names, options.seconds)))
        return 0
    command = [sys.executable, __file__, "--once", "--seconds", str(options.seconds), *names]
    runs = []
    for k in range(options.processes):
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        runs.append(json.loads(done.stdout))
        print(f"process {k + 1} of {options.processes}", file=sys.stderr, flush=True)
    base, rows = traffic(programs[BASE]), []
    for name in names:
        ratio = statistics.median(run[name] for run in runs)
        bytes_ = traffic(programs[name])
        rows.append((ratio / (bytes_ / base), name, bytes_, ratio))
    print(
        f"{'rule':20}{'bytes':>6}{'/ AdaBelief':>13}{'/ predicted':>13}   n={len(runs)} processes"
    )
    for excess, name, bytes_, ratio in sorted(rows, reverse=True):
        mark = "  slow" if excess > LIMIT else ""
        print(f"{name:20}{bytes_:6}{ratio:13.3f}{excess:13.3f}{mark}")
    return int(any(excess > LIMIT for excess, *_ in rows))


if __name__ == "__main__":
    sys.exit(main())
