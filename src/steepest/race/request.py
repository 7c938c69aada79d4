"""The options of a race, its provenance, and whether they agree with those of a stored race."""

from __future__ import annotations

import importlib.metadata
import math
import os
import platform
import shlex
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

import steepest
from steepest import tasks
from steepest.errors import BadCall
from steepest.race import budgets, field, searching
from steepest.race.schema import Provenance
from steepest.statistics import looks
from steepest.tasks import devices, user_modules
from steepest.training.recipe import Recipe

if TYPE_CHECKING:
    from steepest.race.store import Store

PACKAGES = ("torch", "numpy", "scipy", "scikit-learn", "optuna")
MOST = 100_000
"""The largest number of trials, of seeds, of steps and of runs."""


@dataclass(frozen=True)
class Request:
    """The options of `steepest race`; None if the protocol chooses the value."""

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
    looks: str | None = None
    fixed: bool | None = None
    margin: float | None = None
    spaces: str | None = None
    device: str | None = None
    together: int | None = None

    def units(self) -> tuple[int, ...]:
        """Number of units at each look; empty for a race of a fixed number of seeds.

        BadCall for options that exclude each other, or looks that no race can have.
        """
        design = {"--fixed": self.fixed, "--seeds": self.seeds, "--budget": self.budget}
        fixed = [option for option, value in design.items() if value]
        if fixed:
            asked = {"looks": self.looks, "margin": self.margin, "together": self.together}
            for option, value in ((f"--{name}", value) for name, value in asked.items()):
                if value is not None:
                    raise BadCall(
                        f"{option} {value} with {fixed[0]}: {fixed[0]} asks for a race of a fixed "
                        f"number of seeds, but {option} for a race in looks; leave one of them out"
                    )
            return ()
        if self.looks is None:
            return looks.LOOKS
        try:
            units = tuple(int(text) for text in self.looks.split(","))
            looks.check(units)
            if units[-1] > MOST:
                raise ValueError(f"expected at most {MOST:,} units")
        except ValueError as error:
            why = "" if "invalid literal" in str(error) else f" ({error})"
            raise BadCall(
                f"--looks {self.looks!r}: expected the number of units at each look, such as "
                f"5,8,12{why}"
            ) from None
        return units

    def smallest_gain(self) -> float | None:
        """The margin in the metric's unit. For a share, --margin is in points: 0.5 is 0.005."""
        if self.margin is None:
            return None
        return gain_of(self.margin, lambda: tasks.get(self.task, self.data).proportion)

    def entry_names(self) -> tuple[str, ...]:
        """The entries: those of --optimizers, and the baseline if it is not among them."""
        names = field.parse(self.optimizers)
        baseline = self.baseline_name()
        return names if baseline is None or baseline in names else (*names, baseline)

    def baseline_name(self) -> str | None:
        """The name of the baseline's entry; None if the protocol chooses the baseline."""
        if self.baseline is None:
            return None
        if "," in self.baseline or not self.baseline.strip():
            raise BadCall(f"--baseline {self.baseline!r}: expected the name of one entry")
        return field.parse(self.baseline)[0]

    def command(self) -> str:
        """The command line of this request."""
        options = {key: value for key, value in asdict(self).items() if value is not None}
        words = ["steepest", "race", str(options.pop("task"))]
        if options.pop("fixed", False):
            words.append("--fixed")
        return shlex.join(words + [w for k, v in options.items() for w in (f"--{k}", str(v))])

    def check(self, *, resume: bool = False) -> None:
        """Raise BadCall for the first option that is wrong.

        With `resume`, --search and --spaces are not checked here; `check_same_race` checks them.
        """
        task = tasks.get(self.task, self.data)  # first: its file may define rules
        devices.on(task, self.device)
        names = self.entry_names()
        for name in names:
            Recipe.read(name).check(task)
        if not resume:
            searching.check_spaces(self.spaces, names, searching.parse(self.search, names))
        self.units()
        self.smallest_gain()
        if self.together is not None and self.together < 0:
            raise BadCall(
                f"--together {self.together}: expected a number of units, or 0 to train the trials "
                f"one by one"
            )
        if self.together and not task.build:
            raise BadCall(
                f"--together {self.together}: {task.name} has its own training loop, and only the "
                f"race's loop trains several trials at once; leave --together out"
            )
        for option in ("trials", "seeds", "steps"):
            value = getattr(self, option)
            if value is not None and value < 1:
                raise BadCall(f"--{option} {value}: expected a whole number of 1 or more")
            if value is not None and value > MOST:
                raise BadCall(f"--{option} {value}: expected at most {MOST:,}")
        if self.budget is not None:
            budgets.parse_budget(self.budget)
            if self.trials is not None:
                raise BadCall(
                    f"--budget {self.budget} and --trials {self.trials}: give only one of them, "
                    f"since a budget decides the number of trials"
                )


def gain_of(margin: float, proportion: Callable[[], bool]) -> float:
    """--margin in the metric's unit. proportion: returns whether the metric is a share."""
    if not 0 < margin < math.inf:
        raise BadCall(
            f"--margin {margin:g}: expected a number above 0, in points if the metric is a share, "
            f"else in the metric's unit"
        )
    return margin / 100 if proportion() else margin


def check_same_race(request: Request, store: Store, option: str, where: str) -> None:
    """Raise BadCall unless the stored race has the requested options, and the same code and data.

    option, where: the option that names the stored race and the place of the race, for the message.
    """
    _check_options(request, store, option, where)
    now, before = provenance(replace(request, device=store.plan.device)), store.provenance
    modules = before.get("modules_sha256", {})
    for name, sha256 in now["modules_sha256"].items():
        if modules.get(name, sha256) != sha256:
            raise BadCall(
                f"{option}: module {name!r} has changed since the race in '{where}' began; restore "
                f"the file of the module, or choose another folder with --out"
            )
    for what in ("versions", "task_sha256", "data_sha256"):
        if now[what] != before[what]:
            raise BadCall(
                f"{option}: the race began with {what} {before[what]}, not {now[what]}; restore "
                f"what has changed, or choose another folder with --out"
            )
    if now["machine"] != before["machine"]:
        warning = (
            f"the race in '{where}' began on another machine than this one "
            f"({now['machine']['processor']}): do not compare times within this race"
        )
        print(f"steepest: {warning}", file=sys.stderr)


def _check_options(request: Request, store: Store, option: str, where: str) -> None:
    """Raise BadCall for the first option that differs from the option of the stored race."""
    plan = store.plan
    asked = asdict(request) | {"baseline": request.baseline_name(), "search": None}
    asked["looks"] = request.looks and ",".join(map(str, request.units()))
    if request.optimizers:
        asked["optimizers"] = ",".join(request.entry_names())
    if request.search:
        ranges = searching.parse(request.search, plan.entries)
        # equal ranges may be given in another order
        asked["search"] = searching.as_option(plan.search if ranges == plan.search else ranges)
    stored = {
        **asdict(plan),
        "optimizers": ",".join(plan.entries),
        "budget": plan.request.get("budget"),
        "search": searching.as_option(plan.search),
        "looks": ",".join(map(str, plan.looks)) or None,
        "fixed": not plan.looks,
        "seeds": None if plan.looks else plan.seeds,
        "margin": plan.request.get("margin"),
        "together": plan.together,
    }
    for name, value in asked.items():
        # the task's file and its data may have moved: `check_same_race` compares their hashes
        moved = name == "data" or (name == "task" and store.task.file and tasks.is_file(value))
        if value is not None and value != stored[name] and not moved:
            name_shown = name if name == "task" else f"--{name}"
            began = f"without {name_shown}" if stored[name] is None else f"with {stored[name]}"
            raise BadCall(
                f"{option} with {name_shown} {value}: the race in '{where}' was started {began}; "
                f"leave {name_shown} out, or choose another folder with --out"
            )


def provenance(request: Request) -> Provenance:
    """Which software, data and machine a race runs with."""
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
            **({"device": devices.title(request.device)} if request.device else {}),
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
