"""Every elementwise rule against the memory traffic of its states: python bench/rules.py [RULE ...]

A step reads and writes the parameter, its gradient and its states, and on a large set that is what
it costs. From AdaBelief's 28 bytes for a parameter (p, g, m, s read, p, m, s written) and the bytes
of another rule follows how much of AdaBelief's time it may take. The two take turns in one process;
of 5 processes the median of (time / AdaBelief's time) / (bytes / 28) is printed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys

import torch

from steepest import bench, optimizer
from steepest.catalogue import category_of
from steepest.definition import rules
from steepest.families import select_defaults
from steepest.plan import program_of
from steepest.trace import Program

LIMIT = 1.25
BASE = "adabelief"


def traffic(program: Program) -> int:
    """Bytes for a float32 parameter: every input that is read, every output that is written."""
    outputs = program.outputs.values()
    read = {a for n in program.body for a in n.args} | {*outputs}
    return 4 * (sum(node in read for node in program.inputs.values()) + len(outputs))


def elementwise() -> dict[str, Program]:
    """Rule -> its program, as its class has it by default."""
    found = {name: program_of(select_defaults(rule)) for name, rule in rules.items()}
    return {
        name: program for name, program in found.items() if category_of(program) == "elementwise"
    }


def once(names: list[str], seconds: float) -> dict[str, float]:
    """Rule -> its time as a multiple of AdaBelief's, in one process."""
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
        print(json.dumps(once(names, options.seconds)))
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
    for share, name, bytes_, ratio in sorted(rows, reverse=True):
        print(f"{name:20}{bytes_:6}{ratio:13.3f}{share:13.3f}{'  slow' * (share > LIMIT)}")
    return int(any(share > LIMIT for share, *_ in rows))


if __name__ == "__main__":
    sys.exit(main())
