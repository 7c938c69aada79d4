"""Conduct a race: plan, tune, run on fresh seeds, judge. The one place where the parts meet."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shlex
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import steepest
from steepest.race import BadCall, entries, protocol, report, tasks, trials
from steepest.race.protocol import TUNING, Plan, Trial
from steepest.race.store import Store
from steepest.race.summary import summarise
from steepest.race.wording import over_budget
from steepest.race.workers import Pool

try:
    import fcntl
except ImportError:  # Windows: there two races in one folder are not noticed
    fcntl = None

PACKAGES = ("torch", "numpy", "scipy", "scikit-learn", "optuna")
MOST = 100_000
"""Trials, seeds or steps that can be meant."""


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

    def command(self) -> str:
        """The command line that asks for this."""
        options = {key: value for key, value in asdict(self).items() if value is not None}
        words = ["steepest", "race", str(options.pop("task"))]
        return shlex.join(words + [w for k, v in options.items() for w in (f"--{k}", str(v))])

    def check(self) -> None:
        """BadCall at the first option that cannot be meant."""
        tasks.get(self.task)
        entries.parse(self.optimizers)
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


def race(
    request: Request, folder: Path, *, jobs: int, resume: bool = False
) -> tuple[dict[str, Any], bool]:
    """Run or continue a race in `folder`; (its summary, whether it was interrupted by Ctrl-C).

    Raises BadCall for a wrong request or folder, WorkerError if a task itself fails.
    """
    started = perf_counter()
    request.check()
    if resume and not folder.exists():
        raise BadCall(_NOTHING.format(folder))
    with _locked(folder), Pool(jobs, trials.run) as pool:
        store = _open(request, folder, resume)
        interrupted = False
        try:
            plan = store.plan if store else _plan(request, jobs, pool, started)
            task, first = tasks.get(plan.task), protocol.tuning(plan)
            if store is None:
                store = Store.create(folder, plan, provenance(request))
            _run(pool, store, first, "tuning")
            tuned = [pair for pair in store.results() if pair[0].phase == TUNING]
            chosen = {
                entry: protocol.best(task, [pair for pair in tuned if pair[0].entry == entry])
                for entry in plan.entries
            }
            _run(pool, store, protocol.fresh(plan, chosen), "fresh seeds")
        except KeyboardInterrupt:
            if store is None:
                raise
            interrupted = True
        return rebuild(folder), interrupted


def rebuild(folder: Path) -> dict[str, Any]:
    """Write summary.json and report.html of `folder` from its store alone; the summary."""
    store = Store(folder)
    task = tasks.get(store.plan.task)
    summary = summarise(task, store.plan, store.results(), store.provenance)
    _write(folder / "summary.json", json.dumps(summary, indent=1, allow_nan=False) + "\n")
    _write(folder / "report.html", report.page(summary))
    return summary


def _write(path: Path, text: str) -> None:
    unfinished = path.with_name(path.name + ".new")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)


_NOTHING = "no race in '{}' to continue: leave --resume out"


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """`folder`, made where it is missing, for this race alone; BadCall if another one runs in it.

    The lock ends with the process, however that ends.
    """
    path = folder / ".lock"
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = os.open(path, os.O_RDWR | os.O_CREAT)
        except OSError as error:
            raise BadCall(
                f"cannot write to '{folder}' ({error.strerror}): choose another folder with --out"
            ) from error
        if fcntl is None:
            break
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(lock), path.stat()):
                break
        except BlockingIOError:
            os.close(lock)
            raise BadCall(
                f"another race is running in '{folder}': wait for it, or choose another folder "
                f"with --out"
            ) from None
        except FileNotFoundError:
            pass
        except OSError:  # a file system without locks
            break
        os.close(lock)  # its last holder has just removed it: once more
    try:
        yield
    finally:
        with suppress(OSError):
            if fcntl is None:  # Windows removes no open file
                os.close(lock)
            path.unlink()
        if fcntl is not None:
            os.close(lock)


def _open(request: Request, folder: Path, resume: bool) -> Store | None:
    """The store to continue, or None where a new one is to be made in `folder`."""
    ours = (".lock", "study.db.new")  # what a kill before the first trial may have left
    if all(path.name.startswith(ours) for path in folder.iterdir()):
        if resume:
            raise BadCall(_NOTHING.format(folder))
        return None
    if not resume:
        raise BadCall(
            f"'{folder}' is not empty: expected a new folder; continue its race with --resume or "
            f"choose another folder with --out"
        )
    store = Store(folder)
    plan = store.plan
    field = request.optimizers and ",".join(entries.parse(request.optimizers))
    kept = {
        **asdict(plan),
        "optimizers": ",".join(plan.entries),
        "budget": plan.request.get("budget"),
    }
    for option, value in asdict(replace(request, optimizers=field)).items():
        if value is not None and value != kept[option]:
            name = option if option == "task" else f"--{option}"
            began = f"without {name}" if kept[option] is None else f"with {kept[option]}"
            raise BadCall(
                f"--resume with {name} {value}: the race in '{folder}' was started {began}; "
                f"leave it out, or choose another folder with --out"
            )
    now = provenance(request)
    for what in ("versions", "data_sha256"):
        if now[what] != store.provenance[what]:
            raise BadCall(
                f"--resume with other {what} ({now[what]}) than the race began with "
                f"({store.provenance[what]}): restore those, or choose another folder with --out"
            )
    return store


def _plan(request: Request, jobs: int, pool: Pool, started: float) -> Plan:
    task = tasks.get(request.task)
    plan = Plan(
        task=task.name,
        entries=entries.parse(request.optimizers),
        trials=request.trials or protocol.TRIALS,
        seeds=request.seeds or protocol.SEEDS,
        steps=request.steps or task.steps,
        seed=request.seed or 0,
        request={key: value for key, value in asdict(request).items() if value is not None},
    )
    if request.budget is None:
        return plan
    pilots = [
        Trial(task.name, "pilot", plan.baseline, i, 0, plan.steps, entries.defaults(plan.baseline))
        for i in range(jobs)  # all workers at once, as in the race
    ]
    measured = [result for _, result in pool.map(pilots)]
    cost = {
        "seconds": protocol.parse_budget(request.budget) - (perf_counter() - started),
        "field": len(plan.entries),
        "jobs": jobs,
        "run": max(result.wall_seconds for result in measured),
        "warm": max(result.warm_seconds for result in measured),
    }
    count, seeds = protocol.affordable(**cost, seeds=request.seeds)
    short = count + seeds > protocol.runs_within(**cost)
    plan = replace(plan, trials=count, seeds=seeds, over_budget=short)
    if short:
        print(f"steepest: {over_budget(asdict(plan))}", file=sys.stderr)
    return plan


def _run(pool: Pool, store: Store, planned: Iterable[Trial], phase: str) -> None:
    done = {trial.key for trial, _ in store.results()}
    todo = [trial for trial in planned if trial.key not in done]
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    console = Console(stderr=True)
    silent = not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=silent) as bar:
        shown = bar.add_task(f"{phase:<11}", total=len(todo))
        for trial, result in pool.map(todo):
            store.add(trial, result)
            bar.advance(shown)


def provenance(request: Request) -> dict[str, Any]:
    """Where and with what a race is run."""
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
        "data_sha256": tasks.get(request.task).data_hash(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(": ", 1)[1] for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"
