"""The overhead of a race: wall time divided by (seconds inside the runs / workers).

Wall time is that of the command, from start to end of its process: import, workers, store, report.
A tiny race runs first, to fill the cache of compiled loops. "Seconds inside runs" includes the
evaluations; "training alone" does not.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter


def race(arguments: list[str], out: Path, jobs: int) -> float:
    """The wall time of `steepest race` in seconds."""
    command = [sys.executable, "-m", "steepest", "race", *arguments]
    command += ["--jobs", str(jobs), "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    start = perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
    return perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("race", nargs="*", default=["digits"], help="arguments of `steepest race`")
    options, more = parser.parse_known_args()
    arguments = [*options.race, *more]
    with tempfile.TemporaryDirectory() as folder:
        tiny = [*arguments, "--trials", "1", "--seeds", "1"]
        race(tiny, Path(folder) / "warm", 1)
        out = Path(folder) / "race"
        wall = race(arguments, out, options.jobs)
        with (out / "runs.csv").open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    inside = sum(float(row["wall_seconds"]) for row in rows)
    training = sum(float(row["training_seconds"] or 0) for row in rows)
    report = {
        "runs": len(rows),
        "workers": options.jobs,
        "wall seconds": round(wall, 1),
        "seconds inside runs": round(inside, 1),
        "seconds of training alone": round(training, 1),
        "wall / (inside / workers)": round(wall / (inside / options.jobs), 3),
        "wall / (training alone / workers)": round(wall / (training / options.jobs), 3),
    }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
