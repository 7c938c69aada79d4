"""The verb `race`."""

from __future__ import annotations

import shlex
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from steepest.cli.app import INTERRUPTED, app, say

if TYPE_CHECKING:
    from steepest.race.schema import Summary

RACE_MODULES = ("optuna", "sqlalchemy", "rich", "scipy", "sklearn", "matplotlib", "PIL", "jinja2")
IMPORT = "Options with --import"
"""Heading in the help of the options that need --import."""
ONLY_IMPORT = {"imported", "metric", "maximize", "proportion", "worst"}
FOR_IMPORT = ONLY_IMPORT | {"baseline", "margin", "out"}
"""Parameters that --import accepts. Those in ONLY_IMPORT are accepted only with --import."""


@app.command(epilog="Example: steepest race digits --optimizers adamw,momentum,eadam --budget 60s")
def race(
    context: typer.Context,
    task: Annotated[
        str | None,
        typer.Argument(
            help="One of digits, diabetes, text, digits-gan, bag-of-words; fashion-mnist, mnist or "
            "tinyshakespeare, which need --data; or a Python file that defines task(seed) or "
            "train(make_optimizer, report, seed).",
            metavar="TASK|FILE.py",
            show_default=False,
        ),
    ] = None,
    optimizers: Annotated[
        str | None,
        typer.Option(
            help="Entries, separated by commas. An entry is a rule or module:Class, optionally "
            "with parts (adam+warmup+cosine), or a full-batch method; see steepest list --parts.",
            show_default="nine rules",
        ),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(
            help="The entry with which the others are compared; added if --optimizers lacks it.",
            metavar="NAME",
            show_default="adamw, or the first",
        ),
    ] = None,
    search: Annotated[
        list[str] | None,
        typer.Option(
            help="Tune a hyperparameter over this range, log-uniform, such as "
            "adamw.weight_decay=1e-4:1. For more ranges, repeat the option or use commas.",
            metavar="ENTRY.KNOB=LOW:HIGH",
            show_default="the declared ranges",
        ),
    ] = None,
    spaces: Annotated[
        str | None,
        typer.Option(
            help="Tune over a published search space instead: lr-only (only the learning rate) or "
            "algoperf (adamw, momentum, nesterov, lamb). Ranges of --search take precedence.",
            metavar="NAME",
            show_default="the declared ranges",
        ),
    ] = None,
    trials: Annotated[
        int | None, typer.Option(help="Tuning trials per entry and seed.", show_default="8")
    ] = None,
    looks: Annotated[
        str | None,
        typer.Option(
            help="Number of units of an entry at each look at the results. A unit is one tuning "
            "and 3 fresh runs of its best trial. An entry that is decided at a look gets no more "
            "units.",
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
    together: Annotated[
        int | None,
        typer.Option(
            help="Number of units of an entry whose tuning trials are trained at once, which is "
            "faster for small models; 0 trains all trials one by one.",
            metavar="UNITS",
            show_default="a measurement before the start decides",
        ),
    ] = None,
    fixed: Annotated[
        bool,
        typer.Option(
            "--fixed", help="No looks: run one tuning and one fresh run for each of --seeds seeds."
        ),
    ] = False,
    seeds: Annotated[
        int | None,
        typer.Option(help="Number of fresh seeds per entry; implies --fixed.", show_default="10"),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Steps per run.", show_default="the task's")
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(help="Wall time such as 60s or 5m, instead of --trials; implies --fixed."),
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
            help="URL of a database for the trials, such as postgresql+pg8000://user@host/db; the "
            "password is read from PGPASSWORD.",
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
        int | None,
        typer.Option(help="The seed from which the race derives all others.", show_default="0"),
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Folder with the data files of the task.", metavar="DIR")
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            help="Where the model and the data are, such as cuda, cuda:1 or mps. The function in "
            "your file must have a parameter for it: task(seed, device).",
            metavar="DEVICE",
            show_default="the CPU, or as your file says",
        ),
    ] = None,
    plan: Annotated[
        bool,
        typer.Option(
            "--plan",
            help="Do not race: estimate the race's time and the smallest difference that it can "
            "detect.",
        ),
    ] = False,
    imported: Annotated[
        Path | None,
        typer.Option(
            "--import",
            help="Do not race: judge the runs in this CSV file; give no TASK. The file has one row "
            "for each run, and the columns entry, seed and test (or the column of --metric). The "
            "columns unit, diverged, validation and steps are optional.",
            metavar="FILE.csv",
            rich_help_panel=IMPORT,
        ),
    ] = None,
    metric: Annotated[
        str, typer.Option(help="The column to judge.", metavar="COLUMN", rich_help_panel=IMPORT)
    ] = "test",
    maximize: Annotated[
        bool | None,
        typer.Option(
            "--maximize/--minimize",
            help="Whether a larger or a smaller metric is better. One of the two is required.",
            show_default=False,
            rich_help_panel=IMPORT,
        ),
    ] = None,
    proportion: Annotated[
        bool,
        typer.Option(
            "--proportion",
            help="The metric is a share of 0 to 1, shown in %. Not needed for values like 91.2%.",
            rich_help_panel=IMPORT,
        ),
    ] = False,
    worst: Annotated[
        str | None,
        typer.Option(
            help="Diverged runs, and runs that end worse than this metric, count as this metric.",
            metavar="NUMBER",
            show_default="the worst in the file",
            rich_help_panel=IMPORT,
        ),
    ] = None,
) -> int:
    """Compare optimizers on a task: equal tuning, paired seeds, a verdict with an interval."""
    need_race()
    _check_kind(context)
    if imported is not None:
        from steepest.race.imported import Import, judge
        from steepest.race.run_table import Source

        folder = out or Path(f"race-{imported.stem}")
        source = Source(imported, metric, bool(maximize), proportion)
        show_summary(judge(Import(source, worst, baseline, margin), folder), folder)
        return 0
    assert task is not None
    import os

    from steepest.report.waiting import waiting

    with waiting("starting"):
        from steepest import tasks
        from steepest.errors import BadCall
        from steepest.processes import Pool
        from steepest.race.request import Request
        from steepest.race.trials import runner

    ranges = ",".join(search) if search else None
    request = Request(
        task,
        optimizers=optimizers,
        trials=trials,
        seeds=seeds,
        steps=steps,
        budget=budget,
        seed=seed,
        data=data,
        baseline=baseline,
        search=ranges,
        looks=looks,
        fixed=fixed or None,
        margin=margin,
        spaces=spaces,
        device=device,
        together=together,
    )
    jobs = (os.cpu_count() or 1) if jobs is None else jobs
    if jobs < 1:
        raise BadCall(f"--jobs {jobs}: expected a whole number of 1 or more")
    with tasks.held(task):  # check and run the same version of the file
        request.check()
        folder = out or Path(f"race-{tasks.folder_name(task)}")
        with Pool(jobs, runner(task, optimizers)) as pool:
            pool.hire()
            with waiting("starting"):  # slow imports, while the workers start
                from steepest.race import driver, planning

            if plan:
                with waiting("pilot runs"):
                    forecast = planning.forecast(request, jobs, pool)
                print(forecast)
                return 0
            summary, interrupted = driver.race(
                request, folder, jobs=jobs, pool=pool, resume=resume, storage=storage, study=study
            )
    show_summary(summary, folder)
    if interrupted:
        where = ["--data", data] if data else []
        again = shlex.join(["steepest", "race", task, *where, "--out", str(folder), "--resume"])
        say(f"interrupted; to continue: {again}")
        return INTERRUPTED
    return 0


def need_race() -> None:
    """Raise BadCall with the pip command if a module of the extra `race` is missing."""
    from steepest.errors import BadCall

    missing = [name for name in RACE_MODULES if find_spec(name) is None]
    if missing:
        raise BadCall(f"not installed: {', '.join(missing)}; run pip install 'steepest[race]'")


def _check_kind(context: typer.Context) -> None:
    """Raise BadCall if race and import options are mixed, or a required option is missing."""
    from steepest.errors import BadCall

    given = {
        parameter.name: "/".join((*parameter.opts, *parameter.secondary_opts))
        for parameter in context.command.params
        if (source := context.get_parameter_source(parameter.name or ""))
        and source.name == "COMMANDLINE"
    }
    if "imported" not in given:
        if "task" not in given:
            raise BadCall(
                "no TASK given: give one, as in steepest race digits, or give --import FILE.csv"
            )
        if wrong := given.keys() & ONLY_IMPORT:
            option = min(given[name] for name in wrong)
            raise BadCall(
                f"{option} without --import: the option is for runs in a CSV file; leave it out"
            )
        return
    file = context.params["imported"]
    if wrong := given.keys() - FOR_IMPORT:
        option = min(given[name] for name in wrong)
        raise BadCall(
            f"--import {file} with {option}: an import runs nothing itself; leave {option} out"
        )
    if "maximize" not in given:
        raise BadCall(
            f"--import {file} without a direction: give --maximize if more of "
            f"{context.params['metric']} is better, else --minimize"
        )


def show_summary(summary: Summary, folder: Path) -> None:
    """Print the table, the verdict and the paths of the files."""
    from steepest.race import terminal

    terminal.show(summary)
    for label, name in (
        ("report:", "report.html"),
        ("summary:", "summary.json"),
        ("runs:", "runs.csv"),
    ):
        if name != "runs.csv" or not summary["plan"].get("imported"):
            print(f"{label:<9}{folder / name}")
