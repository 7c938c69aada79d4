"""Conduct a race: plan, tune, run on fresh seeds, judge. The one place where the parts meet."""

from __future__ import annotations

import json
import sys
import uuid
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean
from time import perf_counter

from steepest import tasks
from steepest.errors import BadCall
from steepest.processes import Pool
from steepest.race import pairing, place, planning, protocol, report, searching, tables, trials
from steepest.race.folder import NOTHING, begun, locked, write
from steepest.race.outcomes import settle
from steepest.race.place import Place
from steepest.race.protocol import FRESH, PILOT, TUNING, Plan, Result, Trial
from steepest.race.request import MOST, Request, agree, provenance
from steepest.race.schema import Provenance, Summary
from steepest.race.store import Store
from steepest.race.summary import summarise
from steepest.race.terminal import Progress
from steepest.race.verdicts import over_budget, too_little
from steepest.tasks import Task
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
    """Run or continue a race in `folder`; (its summary, whether it was interrupted by Ctrl-C).

    pool: of `jobs` workers with the work `trials.runner(...)`, if there is one already.
    storage: URL of a database for its trials; study: a name there, of a new race or one to join.
    Raises BadCall for a wrong request or folder, WorkerError if a task itself fails.
    """
    with tasks.held(request.task):  # what is checked, known by its hash and run is one source
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
        raise BadCall(NOTHING.format(folder))
    work = trials.runner(request.task, request.optimizers)
    with locked(folder), nullcontext(pool) if pool else Pool(jobs, work) as pool:
        found = _found(request, folder, resume, storage, study)
        store = found if isinstance(found, Store) else None
        interrupted = False
        try:
            if isinstance(found, Place):
                plan = _plan(request, jobs, pool, started)
                task = _completed(tasks.get(plan.task, plan.data), plan, pool)
                protocol.tuning(plan)  # nothing is stored of a plan that fails
                store = Store.create(folder, plan, provenance(request), task, found)
                agree(request, store, f"--study {found.study}", found.name)
            assert store
            if store.place.racer:
                at = f"study {store.place.study} in {store.place.name}"
                print(f"steepest: {at}; --storage and --study join it", file=sys.stderr)
            # the files may have moved: what is in them has not changed
            plan, task = replace(store.plan, task=request.task, data=request.data), store.task
            _run(pool, store, protocol.tuning(plan))
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
        if edited := tasks.edited(request.task):
            print(f"steepest: {edited}", file=sys.stderr)
        return rebuild(folder, storage), interrupted


def _found(
    request: Request, folder: Path, resume: bool, storage: str | None, study: str | None
) -> Store | Place:
    """The store to continue or to join, or the place where a new one is to be made."""
    if begun(folder, resume):
        store = Store(place.of(folder, storage))
        if study not in (None, store.place.study):
            raise BadCall(
                f"--resume with --study {study}: the race in '{folder}' is study "
                f"{store.place.study}; leave it out, or choose another folder with --out"
            )
        agree(request, store, "--resume", str(folder))
        if storage:
            store.place.keep(folder)
        return store
    if storage is None:
        if study is not None:
            raise BadCall(f"--study {study}: names a study in a database; expected --storage too")
        return place.own(folder)
    new = f"race-{tasks.folder_name(request.task)}-{uuid.uuid4().hex[:8]}"
    where = place.at(storage, study or new)
    if "plan" not in (where.attributes() or {}):
        return where
    store = Store(where)
    agree(request, store, f"--study {study}", where.name)
    where.keep(folder)
    return store


def rebuild(folder: Path, storage: str | None = None) -> Summary:
    """Write all but the store of `folder` anew, from the store alone; the summary."""
    store = Store(place.of(folder, storage))
    task, pairs = settle(store.task, store.plan, store.results())
    backends = {
        entry: sorted({b for trial, r in pairs if trial.entry == entry for b in r.backends})
        for entry in store.plan.entries
    }
    known: Provenance = {**store.provenance, "backends": backends}
    summary = summarise(task, store.plan, pairs, known, store.spaces)
    for name, entry in summary["entries"].items():
        entry["measures"] = [r.measures for t, r in pairs if (t.phase, t.entry) == (FRESH, name)]
    write(folder / "summary.json", json.dumps(summary, indent=1, allow_nan=False) + "\n")
    write(folder / "report.html", report.page(summary))
    write(folder / "runs.csv", tables.runs(task, pairs))
    write(folder / "curves.csv", tables.curves(pairs))
    return summary


def _plan(request: Request, jobs: int, pool: Pool, started: float) -> Plan:
    task = tasks.get(request.task, request.data)
    field = request.field()
    plan = Plan(
        task=request.task,
        entries=field,
        trials=request.trials or protocol.TRIALS,
        seeds=request.seeds or protocol.SEEDS,
        steps=request.steps or task.steps,
        seed=request.seed or 0,
        request={key: value for key, value in asdict(request).items() if value is not None},
        data=request.data,
        search=searching.parse(request.search, field),
    ).compared_to(request.against())
    if request.budget is None:
        return _meant(plan)
    run, warm, _ = _measured(plan, jobs, jobs, pool)
    spent = perf_counter() - started
    cost = {"entries": len(plan.entries), "jobs": jobs, "run": run, "warm": warm}
    left = protocol.parse_budget(request.budget) - spent
    count, seeds = protocol.affordable(left, **cost, seeds=request.seeds)
    short = seeds * (count + 1) > protocol.runs_within(left, **cost)
    enough = None
    if count < protocol.LEAST_TRIALS:
        enough = spent + protocol.enough(**cost, seeds=request.seeds)
    plan = replace(plan, trials=count, seeds=seeds, over_budget=short, enough=enough)
    for said in (over_budget(plan.record()) if short else "", too_little(plan.record())):
        if said:
            print(f"steepest: {said}", file=sys.stderr)
    return _meant(plan)


def _meant(plan: Plan) -> Plan:
    if plan.runs > MOST:
        raise BadCall(
            f"{plan.runs:,} runs: expected at most {MOST:,}; give less of --budget, --trials, "
            f"--seeds or --optimizers"
        )
    return plan


def _pilots(plan: Plan, names: Sequence[str], count: int) -> list[Trial]:
    """`count` runs of each of the entries `names` with its defaults; no seed of theirs is raced."""
    return [
        Trial(
            plan.task, PILOT, name, i, protocol.derive(plan.seed, PILOT, i), plan.steps,
            Recipe.read(name).defaults, plan.data,
        )
        for i in range(count)
        for name in names
    ]  # fmt: skip


def _measured(
    plan: Plan, jobs: int, count: int, pool: Pool
) -> tuple[float, float, list[tuple[Trial, Result]]]:
    """Seconds of a run, the mean over all entries; of an entry's first step, the longest; and the
    baseline's pilot runs, `count` or more. Entries that step as it does are taken to be as quick.
    """
    found = list(pool.map(_pilots(plan, [plan.baseline], jobs + max(jobs, count))))
    # every worker has one of the first, and imports in it what it needs: once, and no run's time
    wall = {plan.baseline: fmean(r.wall_seconds for t, r in found if t.index >= jobs)}
    rivals = [e for e in plan.entries if e != plan.baseline]
    dear = [e for e in rivals if Recipe.read(e).other_cost]
    probed = list(pool.map(_pilots(plan, dear or rivals[:1], 1)))
    wall |= {trial.entry: result.wall_seconds for trial, result in probed if trial.entry in dear}
    warm = max((result.warm_seconds for _, result in probed), default=0.0)
    return fmean(wall.get(entry, wall[plan.baseline]) for entry in plan.entries), warm, found


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
    if task.worst is not None:
        return task
    return replace(task, worst=result.validation[0], measured=result.validation[0])


PILOT_PAIRS = 4
"""Differences between two pilot runs from which `--plan` takes the spread of differences."""


def forecast(request: Request, jobs: int, pool: Pool) -> str:
    """What `--plan` prints: how long the race would take, and which difference it could detect.

    The spread is that of the baseline's defaults between one seed and another, as if pairing by
    seed gained nothing: two entries at their defaults would say more about their defaults.
    """
    started = perf_counter()
    request.check()
    plan = _plan(request, jobs, pool, started)
    run, warm, found = _measured(plan, jobs, 2 * PILOT_PAIRS, pool)
    ends = {t.index: r.validation[-1] for t, r in found if not r.diverged}
    pairs = [(i, i + 1) for i in range(0, 2 * PILOT_PAIRS, 2)]
    return planning.text(
        plan,
        jobs,
        run,
        warm,
        [ends[i] - ends[j] for i, j in pairs if i in ends and j in ends],
        proportion=tasks.get(plan.task, plan.data).proportion,
        lost=(sum(r.diverged is not None for _, r in found), len(found)),
    )


def _run(pool: Pool, store: Store, planned: Sequence[Trial]) -> None:
    known = store.results()
    seen: set[tuple[str, str, int]] = set()
    agreed = _Agreement()

    def learn(pairs: Iterable[tuple[Trial, Result]], shown: Progress | None = None) -> None:
        for trial, result in pairs:
            if trial.key not in seen:
                agreed.check(trial, result)
                seen.add(trial.key)
                if shown:
                    shown.advance(trial, result)

    learn(known)
    with Progress(store.task, store.plan, known) as shown, store.claims() as claims:

        def todo() -> Iterator[Trial | None]:
            given: set[tuple[str, str, int]] = set()
            left = deque(planned)
            while left:
                if left[0].key in seen or left[0].key in given:
                    left.popleft()
                    continue
                trial = claims.take(t for t in left if t.key not in seen and t.key not in given)
                if trial is None:  # others run what is left
                    learn(store.results(), shown)
                else:
                    given.add(trial.key)
                yield trial

        for trial, result in pool.map(todo()):
            agreed.check(trial, result)
            store.add(trial, result)
            claims.done(trial)
            learn([(trial, result)], shown)


class _Agreement:
    """What has to be the same in all runs for differences to be paired."""

    def __init__(self) -> None:
        self._first: dict[object, tuple[Trial, object]] = {}
        self._began: dict[int, tuple[Trial, Result]] = {}

    def check(self, trial: Trial, result: Result) -> None:
        """BadCall for the first run that differs from an earlier one."""
        key = "weights", trial.seed, Recipe.read(trial.entry).model_of
        self._same("initial weights", key, trial, result.initial)
        self._batches(trial, result)
        if not result.diverged:
            self._same("steps of the reports", "steps", trial, result.steps)
            if trial.phase == FRESH:
                self._same("presence of test=...", "tested", trial, result.tested)

    def _batches(self, trial: Trial, result: Result) -> None:
        """A state that goes on from run to run shows in the first batch. What parts two runs later,
        or is no array, ends no race: the verdict says that they are not paired.
        """
        if not result.first:
            return
        other, before = self._began.setdefault(trial.seed, (trial, result))
        name = pairing.field(result.first, before.first)
        if name is None or not any(pairing.is_array(r.first, name) for r in (result, before)):
            return
        at = pairing.parted(result.batches, before.batches)
        since = "from the first on" if at is None else f"up to step {result.steps[at]}"
        raise BadCall(
            f"{trial.task}: the batches of {trial.entry} (seed {trial.seed}) are not those of "
            f"{other.entry} {since}: batch{name} is another one already in the first; expected "
            f"the same for every entry: make what gives the batches inside of task(seed), so that "
            f"nothing of it goes on from run to run, draw all that is random from the seed, and "
            f"leave out what takes no part in training, such as times"
        )

    def _same(self, what: str, key: object, trial: Trial, value: object) -> None:
        other, before = self._first.setdefault(key, (trial, value))
        if value != before:
            raise BadCall(
                f"{trial.task}: the {what} of {trial.entry} (seed {trial.seed}) are not those of "
                f"{other.entry} (seed {other.seed}): expected the same for every entry; draw all "
                f"that is random from the seed"
            )
