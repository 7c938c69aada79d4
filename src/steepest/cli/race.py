"""The verbs for races: race, report, profile."""

from __future__ import annotations

import json
import shlex
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from steepest.cli.app import INTERRUPTED, app, say

RACE_MODULES = ("optuna", "sqlalchemy", "rich", "scipy", "sklearn", "matplotlib", "PIL", "jinja2")


@app.command(epilog="Example: steepest race digits --optimizers adamw,momentum,eadam --budget 60s")
def race(
    task: Annotated[
        str,
        typer.Argument(
            help="One of digits, diabetes, text, digits-gan, bag-of-words; fashion-mnist, mnist or "
            "tinyshakespeare, which need --data; or a Python file that defines task(seed) or "
            "train(make_optimizer, report, seed).",
            metavar="TASK|FILE.py",
        ),
    ],
    optimizers: Annotated[
        str | None,
        typer.Option(
            help="Entries, separated by commas: a rule or module:Class, optionally with parts "
            "(adam+warmup+cosine), or a full-batch method; see steepest list --parts.",
            show_default="nine rules",
        ),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(
            help="The entry that the others are compared with; it takes part too.",
            metavar="NAME",
            show_default="adamw, or the first",
        ),
    ] = None,
    search: Annotated[
        list[str] | None,
        typer.Option(
            help="Tune a hyperparameter over this range, log-uniform, such as "
            "adamw.weight_decay=1e-4:1. Repeat the option for more, or separate them by commas.",
            metavar="ENTRY.KNOB=LOW:HIGH",
            show_default="the declared ranges",
        ),
    ] = None,
    trials: Annotated[
        int | None, typer.Option(help="Tuning trials per entry and seed.", show_default="8")
    ] = None,
    looks: Annotated[
        str | None,
        typer.Option(
            help="Units of an entry at each look at the results. A unit is one tuning and 3 fresh "
            "runs of its best trial. An entry that is decided at a look runs no more.",
            metavar="N,N,...",
            show_default="5,8,12",
        ),
    ] = None,
    margin: Annotated[
        float | None,
        typer.Option(
            help="The smallest gain that would matter to you, in the unit in which differences "
            "are shown. The verdict then says which entries gain less.",
            metavar="SIZE",
            show_default="none",
        ),
    ] = None,
    fixed: Annotated[
        bool,
        typer.Option("--fixed", help="No looks: one tuning and one fresh run for each of --seeds."),
    ] = False,
    seeds: Annotated[
        int | None, typer.Option(help="Fresh seeds per entry; means --fixed.", show_default="10")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Steps per run.", show_default="the task's")
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(help="Wall time such as 60s or 5m, instead of --trials; means --fixed."),
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(help="Worker processes.", show_default="one per core")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the race.", show_default="race-TASK")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the race in --out.")] = False,
    storage: Annotated[
        str | None,
        typer.Option(
            help="Database for the trials, such as postgresql+pg8000://user@host/db; it reads the "
            "password from PGPASSWORD.",
            metavar="URL",
            show_default="study.db in --out",
        ),
    ] = None,
    study: Annotated[
        str | None,
        typer.Option(
            help="Name of the race in --storage: a new name, or the name of a race to join and "
            "help with.",
            metavar="NAME",
            show_default="a new name",
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of the whole race.", show_default="0")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Folder with the data files of the task.", metavar="DIR")
    ] = None,
    plan: Annotated[
        bool,
        typer.Option(
            "--plan",
            help="Do not race: estimate the time, and the smallest difference it can detect.",
        ),
    ] = False,
) -> int:
    """Compare optimizers on a task: equal tuning, paired seeds, a verdict with an interval."""
    need_race()
    import os

    from steepest import tasks
    from steepest.errors import BadCall
    from steepest.processes import Pool
    from steepest.race.request import Request
    from steepest.race.trials import runner

    ranges = ",".join(search) if search else None
    request = Request(
        task,
        optimizers,
        trials,
        seeds,
        steps,
        budget,
        seed,
        data,
        baseline,
        ranges,
        looks,
        fixed or None,
        margin,
    )
    jobs = (os.cpu_count() or 1) if jobs is None else jobs
    if jobs < 1:
        raise BadCall(f"--jobs {jobs}: expected a whole number of 1 or more")
    with tasks.held(task):  # check and run the same version of the file
        request.check()
        folder = out or Path(f"race-{tasks.folder_name(task)}")
        with Pool(jobs, runner(task, optimizers)) as pool:
            pool.hire()
            from steepest.race import (  # slow imports, while the workers start
                driver,
                planning,
                terminal,
            )

            if plan:
                print(planning.forecast(request, jobs, pool))
                return 0
            summary, interrupted = driver.race(
                request, folder, jobs=jobs, pool=pool, resume=resume, storage=storage, study=study
            )
    terminal.show(summary)
    _print_paths(folder)
    if interrupted:
        where = ["--data", data] if data else []
        again = shlex.join(["steepest", "race", task, *where, "--out", str(folder), "--resume"])
        say(f"interrupted; to continue: {again}")
        return INTERRUPTED
    return 0


@app.command(epilog="Example: steepest report my-race")
def report(
    folder: Annotated[Path, typer.Argument(help="Folder of a race.", metavar="DIR")],
    storage: Annotated[
        str | None,
        typer.Option(
            help="URL of the race's database, if it has moved or if the URL holds the password.",
            metavar="URL",
        ),
    ] = None,
) -> int:
    """Rebuild report.html and summary.json of a race from its trials in study.db or a database."""
    need_race()
    from steepest.race import driver, terminal

    terminal.show(driver.rebuild(folder, storage))
    _print_paths(folder)
    return 0


@app.command(epilog="Example: steepest profile race-digits race-diabetes --out profile.html")
def profile(
    folders: Annotated[
        list[Path], typer.Argument(help="Folders of finished races.", metavar="DIR DIR...")
    ],
    out: Annotated[
        Path | None, typer.Option(help="Also write an HTML page with the figure to this file.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> int:
    """Compare optimizers across several races by a performance profile of the steps to target."""
    need_race()
    from rich.console import Console

    from steepest.errors import BadCall
    from steepest.race import profile

    result = profile.profile([profile.read(folder) for folder in folders])
    result["reproduce"] = shlex.join(["steepest", "profile", *map(str, folders)])
    if out:
        try:
            out.write_text(profile.page(result), encoding="utf-8")
        except OSError as error:
            raise BadCall(
                f"cannot write '{out}' ({error.strerror}): choose another file with --out"
            ) from None
    if as_json:
        print(json.dumps(result, indent=1))
        return 0
    Console(file=sys.stdout).print(profile.table(result))
    print("\n".join(profile.notes(result)))
    if out:
        print(f"page: {out}")
    return 0


def need_race() -> None:
    """Raise BadCall with the pip command if a module of the extra `race` is missing."""
    from steepest.errors import BadCall

    missing = [name for name in RACE_MODULES if find_spec(name) is None]
    if missing:
        raise BadCall(f"not installed: {', '.join(missing)}; run pip install 'steepest[race]'")


def _print_paths(folder: Path) -> None:
    for label, name in (
        ("report:", "report.html"),
        ("summary:", "summary.json"),
        ("runs:", "runs.csv"),
    ):
        print(f"{label:<9}{folder / name}")
