"""Starting other processes, with a limit of time and nothing left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.blocks import ROOT

TORCHRUN = (
    "torch.distributed.run", "--nproc-per-node", "2",
    "--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "--local-addr", "127.0.0.1",
)  # fmt: skip
LOOPBACK = "lo" if sys.platform == "linux" else "lo0"


def python(*arguments: str, cwd: Path, limit: float = 120) -> tuple[int, str]:
    """Exit code and output of `python ARGUMENTS`; -9 and what there was if it took too long.

    The workers of torchrun have sessions of their own: they are asked to end through it.
    """
    paths = filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])
    settings = {
        "PYTHONPATH": os.pathsep.join(paths), "GLOO_SOCKET_IFNAME": LOOPBACK,
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, *arguments], cwd=cwd, env={**os.environ, **settings},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=limit)
        return process.returncode, output
    except subprocess.TimeoutExpired:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=5)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate(timeout=5)
        return -9, output
