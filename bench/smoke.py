"""Does every rule learn the digits? A race of all rules: python bench/smoke.py [--out DIR]

20 epochs, 3 seeds, 8 tuning trials per seed over the rule's search ranges. Prints a table of
accuracies on test data. Rules below 95 % at a constant rate are raced again with `+cosine`. This is
a smoke test: it shows that a rule trains, not which rule is better.
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
from steepest.tasks.images import BATCH, TRAIN

EPOCHS, TRIALS, SEEDS, ENOUGH = 20, 8, 3, 0.95


def race(out: Path, entries: list[str]) -> dict[str, list[float]]:
    """Entry -> its test accuracies, one per seed. Resumes the race in `out` if there is one."""
    command = [sys.executable, "-m", "steepest", "race", "digits", "--out", str(out)]
    command += ["--steps", str(EPOCHS * TRAIN // BATCH), "--trials", str(TRIALS)]
    command += ["--seeds", str(SEEDS), "--optimizers", ",".join(entries)]
    if out.exists():
        command.append("--resume")
    subprocess.run(command, check=True)
    summary = json.loads((out / "summary.json").read_text())["entries"]
    return {name: summary[name]["test"] for name in entries}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, help="folder for the races; by default a temporary one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out = options.out or Path(folder)
        plain = race(out / "plain", [*steepest.rules])
        low = [name for name, test in plain.items() if fmean(test) < ENOUGH]
        parts = {name: docstring_parts(steepest.rules[name]) for name in low}
        low = [name for name in low if "full batches alone" not in parts[name]["when"]]
        cosine = race(out / "cosine", [f"{name}+cosine" for name in low]) if low else {}
    print("| rule | accuracy, % | of the seeds | |\n|---|---|---|---|")
    for name, test in sorted(plain.items(), key=lambda item: -fmean(item[1])):
        note = "" if fmean(test) >= ENOUGH else "meant for full batches"
        if test_with_cosine := cosine.get(f"{name}+cosine"):
            note = f"{100 * fmean(test_with_cosine):.1f} with `+cosine`"
        span = f"{100 * min(test):.1f} to {100 * max(test):.1f}"
        print(f"| `{name}` | {100 * fmean(test):.1f} | {span} | {note} |")
    print(f"n={SEEDS} seeds")
    return int(any(fmean(test) < ENOUGH for test in cosine.values()))


if __name__ == "__main__":
    sys.exit(main())
