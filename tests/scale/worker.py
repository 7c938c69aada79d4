"""What torchrun starts: the cases of the modules named, one after the other, in one process group.

`python -m torch.distributed.run ... -m tests.scale.worker FOLDER MODULE...` leaves
FOLDER/results/CASE.N for each case and rank: nothing, or the traceback. FOLDER is also where cases
and tests exchange checkpoints.
"""

from __future__ import annotations

import faulthandler
import importlib
import os
import sys
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

LIMIT = 100
"""Seconds until a worker that hangs shows where, and ends itself."""
PATIENCE = 15
"""Seconds that one process waits for the other in a collective."""


def cases(module: str) -> dict[str, Callable[[Path], None]]:
    """The cases of a module in this folder, by name."""
    return importlib.import_module(f"tests.scale.{module}").CASES


def begin(**where: Any) -> None:
    """Join the other processes."""
    dist.init_process_group("gloo", timeout=timedelta(seconds=PATIENCE), **where)


def begin_again(path: Path) -> None:
    """Meet them in a new group, by a file: the old one may have lost its step."""
    rank, world = dist.get_rank(), dist.get_world_size()
    dist.destroy_process_group()
    begin(init_method=path.as_uri(), rank=rank, world_size=world)


def run(case: Callable[[Path], None], folder: Path) -> str:
    """Nothing, or the traceback."""
    torch.manual_seed(0)
    try:
        case(folder)
    except BaseException:  # torch raises a failed checkpoint as one
        return traceback.format_exc()
    return ""


def outcomes(folder: Path, name: str, own: str) -> list[str]:
    """What the case came to in all processes; no collective, for one may have failed amid one."""
    files = [folder / "results" / f"{name}.{rank}" for rank in range(dist.get_world_size())]
    draft = folder / f"draft.{dist.get_rank()}"
    draft.write_text(own)
    draft.rename(files[dist.get_rank()])
    while not all(file.exists() for file in files):
        time.sleep(0.002)
    return [file.read_text() for file in files]


def main(folder: Path, modules: list[str]) -> None:
    """Run the cases; after one that failed the processes meet in a new group."""
    faulthandler.dump_traceback_later(LIMIT, exit=True)
    torch.set_num_threads(1)
    begin()
    (folder / f"pid.{dist.get_rank()}").write_text(str(os.getpid()))
    for module in modules:
        for name, case in cases(module).items():
            if any(outcomes(folder, name, run(case, folder))):
                begin_again(folder / f"after-{name}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
