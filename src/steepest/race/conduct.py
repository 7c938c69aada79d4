"""Conduct a race: plan, tune, run on fresh seeds, judge. The one place where the parts meet."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch

import steepest
from steepest.race import BadCall, entries, planning, protocol, report, tables, tasks, trials
from steepest.race.protocol import FRESH, PILOT, TUNING, Plan, Result, Trial
from steepest.race.store import Store
from steepest.race.summary import summarise
from steepest.race.tasks import Task
from steepest.race.terminal import Progress
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
    data: str | None = None

    def command(self) -> str:
        """The command line that asks for this."""
        options = {key: value for key, value in asdict(self).items() if value is not None}
        words = ["steepest", "race", str(options.pop("task"))]
        return shlex.join(words + [w for k, v in options.items() for w in (f"--{k}", str(v))])

    def check(self) -> None:
        """BadCall at the first option that cannot be meant."""
        tasks.get(self.task, self.data)  # first: its file may define rules
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
            if store is None:
                plan = _plan(request, jobs, pool, started)
                task = _completed(tasks.get(plan.task, plan.data), plan, pool)
                first = protocol.tuning(plan)
                store = Store.create(folder, plan, provenance(request), task)
            else:  # the files may have moved: what is in them has not changed
                plan, task = replace(store.plan, task=request.task, data=request.data), store.task
                first = protocol.tuning(plan)
            _run(pool, store, first)
            tuned = [pair for pair in store.results() if pair[0].phase == TUNING]
            chosen = {
                entry: [
                    protocol.best(task, mine)
                    for mine in protocol.by_seed(plan, (p for p in tuned if p[0].entry == entry))
                ]
                for entry in plan.entries
            }
            _run(pool, store, protocol.fresh(plan, chosen))
        except KeyboardInterrupt:
            if store is None:
                raise
            interrupted = True
        return rebuild(folder), interrupted


def rebuild(folder: Path) -> dict[str, Any]:
    """Write all but the store of `folder` anew, from the store alone; the summary."""
    store = Store(folder)
    pairs = store.results()
    task = _seen(store.task, store.plan, pairs)
    backends = {
        entry: sorted({b for trial, r in pairs if trial.entry == entry for b in r.backends})
        for entry in store.plan.entries
    }
    known = {**store.provenance, "backends": backends}
    with entries.declared(store.spaces):
        summary = summarise(task, store.plan, pairs, known)
    for entry, found in summary["entries"].items():
        found["measures"] = [r.measures for t, r in pairs if (t.phase, t.entry) == (FRESH, entry)]
    _write(folder / "summary.json", json.dumps(summary, indent=1, allow_nan=False) + "\n")
    _write(folder / "report.html", report.page(summary))
    _write(folder / "runs.csv", tables.runs(task, pairs))
    _write(folder / "curves.csv", tables.curves(pairs))
    return summary


def _seen(task: Task, plan: Plan, pairs: Sequence[tuple[Trial, Result]]) -> Task:
    """The task with what only its runs tell: whether there is test data, and a target."""
    ended = [(t, r) for t, r in pairs if not r.diverged]
    tested = all(r.tested for t, r in ended if t.phase == FRESH)
    target = task.target
    if target is None:  # what the baseline ends at; until it has, what its first trial ended at
        mine = [(t.phase, r.validation[-1]) for t, r in ended if t.entry == plan.baseline]
        last = [v for phase, v in mine if phase == FRESH] or [v for _, v in mine[:1]]
        target = median(last) if last else task.worst
    return replace(task, test_data=tested, target=target)


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
    path, made = folder / ".lock", not folder.exists()
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
            if made:
                folder.rmdir()  # which fails unless it is empty: of a race that never began
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
        # a file and its data are known by what is in them, below
        moved = option == "data" or (option == "task" and store.task.file and tasks.is_file(value))
        if value is not None and value != kept[option] and not moved:
            name = option if option == "task" else f"--{option}"
            began = f"without {name}" if kept[option] is None else f"with {kept[option]}"
            raise BadCall(
                f"--resume with {name} {value}: the race in '{folder}' was started {began}; "
                f"leave it out, or choose another folder with --out"
            )
    now = provenance(request)
    for what in ("versions", "task_sha256", "data_sha256"):
        if now[what] != store.provenance[what]:
            raise BadCall(
                f"--resume with other {what} ({now[what]}) than the race began with "
                f"({store.provenance[what]}): restore those, or choose another folder with --out"
            )
    return store


def _plan(request: Request, jobs: int, pool: Pool, started: float) -> Plan:
    task = tasks.get(request.task, request.data)
    plan = Plan(
        task=request.task,
        entries=entries.parse(request.optimizers),
        trials=request.trials or protocol.TRIALS,
        seeds=request.seeds or protocol.SEEDS,
        steps=request.steps or task.steps,
        seed=request.seed or 0,
        request={key: value for key, value in asdict(request).items() if value is not None},
        data=request.data,
    )
    if request.budget is None:
        return plan
    measured = [result for _, result in pool.map(_pilots(plan, [plan.baseline], jobs))]
    cost = {
        "seconds": protocol.parse_budget(request.budget) - (perf_counter() - started),
        "field": len(plan.entries),
        "jobs": jobs,
        "run": max(result.wall_seconds for result in measured),
        "warm": max(result.warm_seconds for result in measured),
    }
    count, seeds = protocol.affordable(**cost, seeds=request.seeds)
    short = seeds * (count + 1) > protocol.runs_within(**cost)
    plan = replace(plan, trials=count, seeds=seeds, over_budget=short)
    if short:
        print(f"steepest: {over_budget(asdict(plan))}", file=sys.stderr)
    return plan


def _pilots(plan: Plan, names: Sequence[str], count: int) -> list[Trial]:
    """`count` runs of each of the entries `names` with its defaults; no seed of theirs is raced."""
    return [
        Trial(
            plan.task, PILOT, name, i, protocol.derive(plan.seed, PILOT, i), plan.steps,
            entries.defaults(name), plan.data,
        )
        for i in range(count)
        for name in names
    ]  # fmt: skip


def _completed(task: Task, plan: Plan, pool: Pool) -> Task:
    """The task with what a pilot run tells of a file: that it runs, and how bad untrained is."""
    if not task.file:
        return task
    ((_, result),) = pool.map(_pilots(plan, [plan.baseline], 1))
    if task.worst is None and not result.validation:
        raise BadCall(
            f"{task.name}: the pilot run of {plan.baseline} diverged ({result.diverged}) before "
            f"its first report: expected a metric; report earlier, or say WORST = ... in the file"
        )
    return task if task.worst is not None else replace(task, worst=result.validation[0])


PILOT_PAIRS = 4
"""Differences between two pilot runs from which `--plan` takes the spread of differences."""


def forecast(request: Request, jobs: int) -> str:
    """What `--plan` prints: how long the race would take, and which difference it could detect.

    The spread is that of the baseline's defaults between one seed and another, as if pairing by
    seed gained nothing: two entries at their defaults would say more about their defaults.
    """
    started = perf_counter()
    request.check()
    with Pool(jobs, trials.run) as pool:
        plan = _plan(request, jobs, pool, started)
        found = list(pool.map(_pilots(plan, [plan.baseline], 2 * PILOT_PAIRS)))
    ends = {t.index: r.validation[-1] for t, r in found if not r.diverged}
    pairs = [(i, i + 1) for i in range(0, 2 * PILOT_PAIRS, 2)]
    return planning.text(
        plan,
        jobs,
        max(result.wall_seconds for _, result in found),
        max(result.warm_seconds for _, result in found),
        [ends[i] - ends[j] for i, j in pairs if i in ends and j in ends],
        proportion=tasks.get(plan.task, plan.data).proportion,
    )


def _run(pool: Pool, store: Store, planned: Iterable[Trial]) -> None:
    known = store.results()
    done = {trial.key for trial, _ in known}
    agreed = _Agreement()
    for trial, result in known:
        agreed.check(trial, result)
    todo = [trial for trial in planned if trial.key not in done]
    with Progress(store.task, store.plan, known) as shown:
        for trial, result in pool.map(todo):
            if result.diverged and trial.phase == FRESH:
                result.test = store.task.worst
            agreed.check(trial, result)
            store.add(trial, result)
            shown.advance(trial, result)


class _Agreement:
    """What has to be the same in all runs for differences to be paired."""

    def __init__(self) -> None:
        self._first: dict[object, tuple[Trial, object]] = {}

    def check(self, trial: Trial, result: Result) -> None:
        """BadCall for the first run that differs from an earlier one."""
        self._same("initial weights", ("weights", trial.seed), trial, result.initial)
        if not result.diverged:
            self._same("steps of the reports", "steps", trial, result.steps)
            if trial.phase == FRESH:
                self._same("presence of test=...", "tested", trial, result.tested)

    def _same(self, what: str, key: object, trial: Trial, value: object) -> None:
        other, before = self._first.setdefault(key, (trial, value))
        if value != before:
            raise BadCall(
                f"{trial.task}: the {what} of {trial.entry} (seed {trial.seed}) are not those of "
                f"{other.entry} (seed {other.seed}): expected the same for every entry; draw all "
                f"that is random from the seed"
            )


def provenance(request: Request) -> dict[str, Any]:
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
        "data_sha256": task.data_hash(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(": ", 1)[1] for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"
