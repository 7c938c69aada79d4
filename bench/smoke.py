"""Every rule learns the digits: a race of all, as a table: python bench/smoke.py [--out DIR]

20 epochs, 8 trials of the learning rate (and what else the rule's search range has) for each of 3
fresh seeds, accuracy on test data. What stays below 95 % at a constant rate is raced again with
`+cosine`. A smoke test: it shows that a rule trains, not which is better.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import fmean

import steepest
from steepest.catalogue import docstring_parts
from steepest.race.tasks.images import BATCH, TRAIN

EPOCHS, TRIALS, SEEDS, ENOUGH = 20, 8, 3, 0.95


def race(out: Path, entries: list[str]) -> dict[str, list[float]]:
    """Test accuracies of each entry, one for each seed; goes on with a race that lies in `out`."""
    command = [sys.executable, "-m", "steepest", "race", "digits", "--out", str(out)]
    command += ["--steps", str(EPOCHS * TRAIN // BATCH), "--trials", str(TRIALS)]
    command += ["--seeds", str(SEEDS), "--optimizers", ",".join(entries)]
    subprocess.run([*command, *["--resume"] * out.exists()], check=True)
    found = json.loads((out / "summary.json").read_text())["entries"]
    return {name: found[name]["test"] for name in entries}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, help="where the races are kept; else thrown away")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out = options.out or Path(folder)
        found = race(out / "plain", [*steepest.rules])
        low = [name for name, test in found.items() if fmean(test) < ENOUGH]
        low = [
            n for n in low if "full batches alone" not in docstring_parts(steepest.rules[n])["when"]
        ]
        again = race(out / "cosine", [f"{name}+cosine" for name in low]) if low else {}
    print("| rule | accuracy, % | of the seeds | |\n|---|---|---|---|")
    for name, test in sorted(found.items(), key=lambda item: -fmean(item[1])):
        note = "" if fmean(test) >= ENOUGH else "meant for full batches"
        if other := again.get(f"{name}+cosine"):
            note = f"{100 * fmean(other):.1f} with `+cosine`"
        ends = f"{100 * min(test):.1f} to {100 * max(test):.1f}"
        print(f"| `{name}` | {100 * fmean(test):.1f} | {ends} | {note} |")
    print(f"n={SEEDS} seeds")
    return int(any(fmean(test) < ENOUGH for test in again.values()))


if __name__ == "__main__":
    sys.exit(main())
