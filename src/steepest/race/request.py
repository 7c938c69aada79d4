"""What the caller asked for, where it is run, and whether a stored race is the same."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

import steepest
from steepest import tasks
from steepest.errors import BadCall
from steepest.race import field, protocol, searching
from steepest.race.schema import Provenance
from steepest.tasks import user_modules
from steepest.training.recipe import Recipe

if TYPE_CHECKING:
    from steepest.race.store import Store

PACKAGES = ("torch", "numpy", "scipy", "scikit-learn", "optuna")
MOST = 100_000
"""Trials, seeds, steps or runs that can be meant."""


@dataclass(frozen=True)
class Request:
    """What the caller asked for; None where the choice is left to the protocol."""

    task: str
    optimizers: str | None = None
    trials: int | None = None
    seeds: int | None = None
    steps: int | None = None
    budget: str | None = None
    seed: int | None = None
    data: str | None = None
    baseline: str | None = None
    search: str | None = None

    def field(self) -> tuple[str, ...]:
        """The entries: those of --optimizers, and the baseline where it is not among them."""
        names = field.parse(self.optimizers)
        alone = self.against()
        return names if alone is None or alone in names else (*names, alone)

    def against(self) -> str | None:
        """The baseline's name as entries have it; None where the protocol chooses."""
        if self.baseline is None:
            return None
        if "," in self.baseline or not self.baseline.strip():
            raise BadCall(f"--baseline {self.baseline!r}: expected the name of one entry")
        return field.parse(self.baseline)[0]

    def command(self) -> str:
        """The command line that asks for this."""
        options = {key: value for key, value in asdict(self).items() if value is not None}
        words = ["steepest", "race", str(options.pop("task"))]
        return shlex.join(words + [w for k, v in options.items() for w in (f"--{k}", str(v))])

    def check(self, *, resume: bool = False) -> None:
        """BadCall at the first option that cannot be meant; of a stored race `agree` has ranges."""
        task = tasks.get(self.task, self.data)  # first: its file may define rules
        names = self.field()
        for name in names:
            Recipe.read(name).check(task)
        if not resume:
            searching.parse(self.search, names)
        for option in ("trials", "seeds", "steps"):
            value = getattr(self, option)
            if value is not None and value < 1:
                raise BadCall(f"--{option} {value}: expected a whole number of 1 or more")
            if value is not None and value > MOST:
                raise BadCall(f"--{option} {value}: expected at most {MOST:,}")
        if self.budget is not None:
            protocol.parse_budget(self.budget)
            if self.trials is not None:
                raise BadCall(
                    f"--budget {self.budget} and --trials {self.trials}: expected one of them; "
                    f"a budget decides the number of trials"
                )


def agree(request: Request, store: Store, option: str, where: str) -> None:
    """BadCall unless the race in `where`, meant by `option`, is what is asked for here.

    That is the same request, as far as it is given, and the same code and data.
    """
    plan = store.plan
    names = request.optimizers and ",".join(request.field())
    ranges = request.search and searching.parse(request.search, plan.entries)
    ranges = searching.written(plan.search if ranges == plan.search else ranges or {})
    kept = {
        **asdict(plan),
        "optimizers": ",".join(plan.entries),
        "budget": plan.request.get("budget"),
        "search": searching.written(plan.search),
    }
    asked = asdict(
        replace(
            request, optimizers=names, baseline=request.against(),
            search=ranges if request.search else None,
        )
    )  # fmt: skip
    for name, value in asked.items():
        # a file and its data are known by what is in them, below
        moved = name == "data" or (name == "task" and store.task.file and tasks.is_file(value))
        if value is not None and value != kept[name] and not moved:
            word = name if name == "task" else f"--{name}"
            began = f"without {word}" if kept[name] is None else f"with {kept[name]}"
            raise BadCall(
                f"{option} with {word} {value}: the race in '{where}' was started {began}; "
                f"leave it out, or choose another folder with --out"
            )
    now = provenance(request)
    began = store.provenance.get("modules_sha256", {})
    for name, known in now["modules_sha256"].items():
        if began.get(name, known) != known:
            raise BadCall(
                f"{option} with another module {name!r} than the race in '{where}' began with: "
                f"restore it, or choose another folder with --out"
            )
    for what in ("versions", "task_sha256", "data_sha256"):
        if now[what] != store.provenance[what]:
            raise BadCall(
                f"{option} with other {what} ({now[what]}) than the race began with "
                f"({store.provenance[what]}): restore those, or choose another folder with --out"
            )
    if now["machine"] != store.provenance["machine"]:
        here = f"this machine ({now['machine']['processor']})"
        print(
            f"steepest: the race in '{where}' began on another than {here}: do not compare its "
            f"times", file=sys.stderr,
        )  # fmt: skip


def provenance(request: Request) -> Provenance:
    """Where and with what a race is run."""
    task = tasks.get(request.task, request.data)
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    versions = {"steepest": steepest.__version__, "python": platform.python_version(), **versions}
    return {
        "command": request.command(),
        "versions": versions,
        "machine": {
            "cores": os.cpu_count(),
            "processor": _processor(),
            "system": f"{platform.system()} {platform.machine()}",
            "vector_instructions": torch.backends.cpu.get_cpu_capability(),
        },
        "task_sha256": task.source_hash,
        "modules_sha256": user_modules.modules(request.task, request.optimizers),
        "data_sha256": task.data_hash(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(": ", 1)[1] for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"
