"""Every rule learns the digits: a race of all, as a table: python bench/smoke.py [--out DIR]

20 epochs, 8 trials of the learning rate (and what else the rule's search range has) for each of 3
fresh seeds, accuracy on test data. A smoke test: it shows that a rule trains, not which is better.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import steepest
from steepest.catalogue import said
from steepest.race.tasks.images import BATCH, TRAIN

EPOCHS, TRIALS, SEEDS, ENOUGH = 20, 8, 3, 0.95


def race(out: Path) -> None:
    """The race of every rule; goes on with what lies in `out`."""
    command = [sys.executable, "-m", "steepest", "race", "digits", "--out", str(out)]
    command += ["--steps", str(EPOCHS * TRAIN // BATCH), "--trials", str(TRIALS)]
    command += ["--seeds", str(SEEDS), "--optimizers", ",".join(steepest.rules)]
    subprocess.run([*command, *["--resume"] * out.exists()], check=True)


def table(out: Path) -> tuple[list[str], list[str]]:
    """The table's lines, and the rules that stay below."""
    found = json.loads((out / "summary.json").read_text())["entries"]
    rows, below = [], []
    for name, entry in found.items():
        mean = sum(entry["test"]) / len(entry["test"])
        low, _, high = (100 * x for x in (min(entry["test"]), 0, max(entry["test"])))
        full = "full batches alone" in said(steepest.rules[name])["when"]
        note = "" if mean >= ENOUGH else "meant for full batches" if full else "below"
        below += [name] * (note == "below")
        rows.append((mean, f"| `{name}` | {100 * mean:.1f} | {low:.1f} to {high:.1f} | {note} |"))
    head = ["| rule | accuracy, % | of the seeds | |", "|---|---|---|---|"]
    return head + [line for _, line in sorted(rows, reverse=True)], below


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, help="where the race is kept; else it is thrown away")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out = options.out or Path(folder) / "race"
        race(out)
        lines, below = table(out)
    print("\n".join(lines), f"\nn={SEEDS} seeds; below {ENOUGH:.0%}: {', '.join(below) or 'none'}")
    return int(bool(below))


if __name__ == "__main__":
    sys.exit(main())
