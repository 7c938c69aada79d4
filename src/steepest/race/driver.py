"""Runs a race: plan, tune, train on fresh seeds, judge. Calls the other modules of the race."""

from __future__ import annotations

import json
import sys
import uuid
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from time import perf_counter

from steepest import tasks
from steepest.errors import BadCall
from steepest.processes import Pool
from steepest.race import (
    location,
    planning,
    protocol,
    report,
    rounds,
    scores,
    tables,
    together,
    trials,
)
from steepest.race.exports import Race
from steepest.race.folder import NO_RACE, has_race, locked, write
from steepest.race.location import Location
from steepest.race.outcomes import settle
from steepest.race.protocol import FRESH, TUNING, Plan, Result, Trial, Tuning
from steepest.race.request import Request, check_same_race, provenance
from steepest.race.schema import Provenance, Summary
from steepest.race.store import Store
from steepest.race.summary import summarise
from steepest.race.terminal import Progress
from steepest.report.waiting import waiting
from steepest.tasks import Task
from steepest.training.pairing import field, is_array, parted
from steepest.training.recipe import Recipe


def race(
    request: Request,
    folder: Path,
    *,
    jobs: int,
    pool: Pool | None = None,
    resume: bool = False,
    storage: str | None = None,
    study: str | None = None,
) -> tuple[Summary, bool]:
    """Run or continue a race in `folder`. Returns (its summary, whether Ctrl-C interrupted it).

    pool: `jobs` workers that run `trials.runner(...)`; None: start them here. storage: URL of a
    database for the trials. study: name of a study in the database, to create or to join. Raises
    BadCall for a wrong request or folder, and WorkerError if the task itself fails.
    """
    with tasks.held(request.task):  # the source that runs is the one that was checked and hashed
        return _race(request, folder, jobs, pool, resume, storage, study)


def _race(
    request: Request,
    folder: Path,
    jobs: int,
    pool: Pool | None,
    resume: bool,
    storage: str | None,
    study: str | None,
) -> tuple[Summary, bool]:
    started = perf_counter()
    request.check(resume=resume)
    if resume and not folder.exists():
        raise BadCall(NO_RACE.format(folder))
    work = trials.runner(request.task, request.optimizers)
    with locked(folder), nullcontext(pool) if pool else Pool(jobs, work) as pool:
        store, interrupted = None, False
        try:
            with waiting("preparing the race"):
                opened = _open(request, folder, resume, storage, study)
                if isinstance(opened, Location):
                    plan = planning.make_plan(request, jobs, pool, started)
                    task = planning.add_worst(tasks.get(plan.task, plan.data), plan, pool)
                    protocol.tuning(plan)  # a plan that fails here is not stored
                    if request.together is None:
                        plan = together.choose(plan, task, pool, jobs)
                    store = Store.create(folder, plan, provenance(request), task, opened)
                    check_same_race(request, store, f"--study {opened.study}", opened.name)
                else:
                    store = opened
            if store.location.racer:
                name = f"study {store.location.study} in {store.location.name}"
                print(f"steepest: {name}; others join with --storage and --study", file=sys.stderr)
            # the paths of this call: files may have moved, but have the same content
            plan, task = replace(store.plan, task=request.task, data=request.data), store.task
            while not (now := rounds.current(task, plan, store.results())).complete:
                trials_now = protocol.tuning(plan, now.entries, now.units)
                _run(pool, store, trials.tuning_items(plan, trials_now), now)
                chosen = _choose(task, plan, store.results())
                reported = protocol.fresh(plan, chosen, now.entries, now.units)
                _run(pool, store, trials.fresh_items(plan, reported), now)
        except KeyboardInterrupt:
            if store is None:
                raise
            interrupted = True
        if edited := tasks.edited(request.task):
            print(f"steepest: {edited}", file=sys.stderr)
        with waiting("writing the report"):
            return rebuild(folder, storage), interrupted


def _choose(
    task: Task, plan: Plan, pairs: Iterable[tuple[Trial, Result]]
) -> dict[str, list[Trial]]:
    """Entry -> the best trial of each of its tunings."""
    tuned = [pair for pair in pairs if pair[0].phase == TUNING]
    return {
        entry: [
            scores.best(task, group)
            for group in protocol.by_seed(plan, (p for p in tuned if p[0].entry == entry))
            if group
        ]
        for entry in plan.entries
    }


def _open(
    request: Request, folder: Path, resume: bool, storage: str | None, study: str | None
) -> Store | Location:
    """The store to continue or to join, or the location of a new store."""
    if has_race(folder, resume):
        store = Store(location.of_race(folder, storage))
        if study not in (None, store.location.study):
            raise BadCall(
                f"--resume with --study {study}: the race in '{folder}' is study "
                f"{store.location.study}; leave --study out, or choose another folder with --out"
            )
        check_same_race(request, store, "--resume", str(folder))
        if storage:
            store.location.save_link(folder)
        return store
    if storage is None:
        if study is not None:
            raise BadCall(
                f"--study {study} without --storage: give --storage too, the URL of the database "
                f"that has the study"
            )
        return location.in_folder(folder)
    new = f"race-{tasks.folder_name(request.task)}-{uuid.uuid4().hex[:8]}"
    where = location.in_database(storage, study or new)
    if "plan" not in (where.attributes() or {}):
        return where
    store = Store(where)
    check_same_race(request, store, f"--study {study}", where.name)
    where.save_link(folder)
    return store


def load(folder: Path, storage: str | None = None) -> Race:
    """The race in `folder`, as its store has it. Writes nothing."""
    store = Store(location.of_race(folder, storage))
    stored = store.results()
    now = rounds.current(store.task, store.plan, stored)
    task, pairs = settle(store.task, store.plan, stored)
    backends = {
        entry: sorted({b for trial, r in pairs if trial.entry == entry for b in r.backends})
        for entry in store.plan.entries
    }
    made_with: Provenance = {**store.provenance, "backends": backends}
    summary = summarise(task, store.plan, pairs, made_with, store.spaces, now)
    for name, entry in summary["entries"].items():
        entry["measures"] = [r.measures for t, r in pairs if (t.phase, t.entry) == (FRESH, name)]
    return Race(task, store.plan, pairs, summary)


def rebuild(folder: Path, storage: str | None = None) -> Summary:
    """Write all files of `folder` again from the store; returns the summary."""
    race = load(folder, storage)
    task, pairs, summary = race.task, race.pairs, race.summary
    write(folder / "summary.json", json.dumps(summary, indent=1, allow_nan=False) + "\n")
    write(folder / "report.html", report.page(summary))
    write(folder / "runs.csv", tables.runs(task, race.plan, pairs))
    write(folder / "curves.csv", tables.curves(pairs))
    return summary


def _run(pool: Pool, store: Store, planned: Sequence[Trial | Tuning], now: rounds.Round) -> None:
    """Run the planned trials that are not stored yet; wait for trials that other processes run."""
    stored = store.results()
    seen: set[tuple[str, str, int]] = set()
    pairing = _PairingCheck()

    def take_in(pairs: Iterable[tuple[Trial, Result]], shown: Progress | None = None) -> None:
        for trial, result in pairs:
            if trial.key not in seen:
                pairing.check(trial, result)
                seen.add(trial.key)
                if shown:
                    shown.advance(trial, result)

    take_in(stored)
    with Progress(store.task, store.plan, stored, now=now) as shown, store.leases() as leases:

        def next_items() -> Iterator[Trial | Tuning | None]:
            """Yield items for this process; None while others run all items that are left."""
            started: set[tuple[str, str, int]] = set()

            def waits(item: Trial | Tuning) -> bool:
                return item.key not in started and any(t.key not in seen for t in item.trials)

            left = deque(planned)
            while left:
                if not waits(left[0]):
                    left.popleft()
                    continue
                item = leases.take(filter(waits, left))
                if item is None:
                    take_in(store.results(), shown)
                else:
                    started.add(item.key)
                yield item

        for item, answer in pool.map(next_items(), shown.note):
            results = answer if isinstance(item, Tuning) else [answer]
            pairs = list(zip(item.trials, results, strict=True))
            for trial, result in pairs:
                pairing.check(trial, result)
                store.add(trial, result)
            leases.done(item)
            shown.ended(item)
            take_in(pairs, shown)


class _PairingCheck:
    """Checks the values that all runs of a seed, or of the race, must share to be paired."""

    def __init__(self) -> None:
        self._values: dict[object, tuple[Trial, object]] = {}
        """What is compared -> (the first run with a value, its value)."""
        self._firsts: dict[int, tuple[Trial, Result]] = {}
        """Seed -> its first run with batches that could be read."""

    def check(self, trial: Trial, result: Result) -> None:
        """Raise BadCall if the run differs from an earlier run."""
        key = "weights", trial.seed, Recipe.read(trial.entry).model_of
        self._compare("initial weights", key, trial, result.initial)
        self._compare_batches(trial, result)
        if not result.diverged and not result.halted:
            self._compare("steps of the reports", "steps", trial, result.steps)
            if trial.phase == FRESH:
                self._compare("presence of test=...", "tested", trial, result.tested)

    def _compare_batches(self, trial: Trial, result: Result) -> None:
        """Raise BadCall if an array of the first batch differs: a run then affects later runs.

        If batches differ only later, or only in an object that is no array, the race goes on. The
        notes then say that the entry is not paired.
        """
        if not result.first:
            return
        other, before = self._firsts.setdefault(trial.seed, (trial, result))
        name = field(result.first, before.first)
        if name is None or not any(is_array(r.first, name) for r in (result, before)):
            return
        at = parted(result.batches, before.batches)
        since = "from the first on" if at is None else f"up to step {result.steps[at]}"
        raise BadCall(
            f"{trial.task}: the batches of {trial.entry} (seed {trial.seed}) {since} differ from "
            f"those of {other.entry}, beginning with batch{name} of the first batch; to give every "
            f"entry the same batches, create them inside task(seed), so that no run changes the "
            f"batches of later runs, draw everything random from the seed, and leave out what "
            f"training does not use, such as times"
        )

    def _compare(self, what: str, key: object, trial: Trial, value: object) -> None:
        other, before = self._values.setdefault(key, (trial, value))
        if value != before:
            raise BadCall(
                f"{trial.task}: the {what} of {trial.entry} (seed {trial.seed}) and of "
                f"{other.entry} (seed {other.seed}) differ; make them the same for every entry, "
                f"and draw everything random from the seed"
            )
