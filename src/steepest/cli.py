"""The command line, one function per verb. Only the verbs that need heavy modules import them."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    name="steepest",
    help="Optimizers for PyTorch: use them, race them, see them.",
    add_completion=False,
    pretty_exceptions_enable=False,
)

RACE_MODULES = ("optuna", "sqlalchemy", "rich", "scipy", "sklearn", "matplotlib", "jinja2")
PASSWORD = re.compile(r"(://[^\s:/@]*:)\S+(?=@)|((?:pass|pwd|secret|token)\w*=)[^\s&]+", re.I)
INTERRUPTED = 130
"""The exit code after Ctrl-C: 128 + SIGINT, as in shells."""


@app.callback()
def _verbs() -> None:
    """Make typer require a verb after `steepest`, even if only one verb exists."""


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


@app.command("list", epilog="Example: steepest list --json")
def list_(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    parts: Annotated[
        bool,
        typer.Option(
            "--parts", help="List the parts of race entries (+cosine, ...) and full-batch methods."
        ),
    ] = False,
) -> int:
    """List the optimizers: name, class, year, states and their bytes, kind, oracle, paper."""
    if parts:
        from steepest.training.listing import listing, table
    else:
        from steepest.catalogue import listing, table

    rows = listing()
    print(json.dumps(rows, indent=2) if as_json else "\n".join(table(rows)))
    return 0


@app.command(epilog="Example: steepest show adabelief --backend cpu")
def show(
    name: Annotated[
        str, typer.Argument(help="A rule's name, as in steepest list.", metavar="NAME")
    ],
    backend: Annotated[
        str | None,
        typer.Option(help="Print the code that this backend runs: cpu, foreach or eager."),
    ] = None,
) -> int:
    """Print the source of an optimizer, or the code that a backend generates from it."""
    from steepest.catalogue import shown
    from steepest.definition import find

    print(shown(find(name), backend), end="")
    return 0


@app.command(epilog="Example: steepest bench --set 300x64 --seconds 5")
def bench(
    only: Annotated[
        str | None, typer.Option("--set", help="resnet50, 300x3456 or 300x64; all by default.")
    ] = None,
    seconds: Annotated[float, typer.Option(help="Seconds per set, approximately.")] = 20.0,
    threads: Annotated[
        int | None, typer.Option(help="Number of torch's threads.", show_default="torch's own")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> int:
    """Time one step of each backend against torch's AdamW and other packages, in one process."""
    from steepest import bench
    from steepest.errors import BadCall

    if only is not None and only not in bench.SETS:
        raise BadCall(f"--set {only}: expected one of {', '.join(bench.SETS)}")
    if not 0 < seconds < float("inf"):
        raise BadCall(f"--seconds {seconds:g}: expected a number above 0")
    if threads is not None and threads < 1:
        raise BadCall(f"--threads {threads}: expected a whole number of 1 or more")
    result = bench.run([only] if only else list(bench.SETS), seconds, threads)
    print(json.dumps(result, indent=2) if as_json else bench.table(result))
    return 0


@app.command(epilog="Example: steepest check torch.optim:AdamW --option lr=0.01 --only resume")
def check(
    name: Annotated[
        str | None,
        typer.Argument(
            help="A rule or class of this package, or module:Class.", metavar="NAME|module:Class"
        ),
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Check all optimizers of this package instead of one.")
    ] = False,
    only: Annotated[
        list[str] | None,
        typer.Option(help="Run only this examination; the beginning of its name is enough."),
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option(help="An argument of the constructor, such as lr=0.1.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> int:
    """Examine any torch optimizer. Prints a line per examination, and a script for each failure."""
    import os

    from steepest.check import report
    from steepest.check.subject import read_option
    from steepest.errors import BadCall

    if (name is None) != every:
        given = "NAME and --all were both given" if every else "no NAME was given"
        raise BadCall(f"{given}, expected NAME, module:Class or --all; see steepest list")
    sys.path.insert(0, os.getcwd())  # module:Class may be a file of the caller
    options = dict(read_option(text) for text in option or [])
    targets = report.everyone() if name is None else [name]
    results = dict(report.examined(targets, only, options))
    if as_json:
        reports = [report.as_json(target, findings) for target, findings in results.items()]
        print(json.dumps(reports if every else reports[0], indent=2))
    else:
        for target, findings in results.items():
            print("\n".join(report.lines(target, findings, failing_only=every)))
    return int(any(f.outcome == "fail" for findings in results.values() for f in findings))


def need_race() -> None:
    """Raise BadCall with the pip command if a module of the extra `race` is missing."""
    from steepest.errors import BadCall

    missing = [name for name in RACE_MODULES if find_spec(name) is None]
    if missing:
        raise BadCall(f"not installed: {', '.join(missing)}; run pip install 'steepest[race]'")


def say(line: str) -> None:
    """Print one line on stderr; passwords in URLs are masked."""
    print("steepest:", PASSWORD.sub(r"\1\2***", " ".join(line.split())), file=sys.stderr)


def _print_paths(folder: Path) -> None:
    for label, name in (
        ("report:", "report.html"),
        ("summary:", "summary.json"),
        ("runs:", "runs.csv"),
    ):
        print(f"{label:<9}{folder / name}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb and return the exit code.

    The code is 0 for success, 2 for a wrong call and INTERRUPTED after Ctrl-C. It is 1 if a check,
    a worker or the operating system reports a failure.
    """
    from steepest.errors import BadCall, WorkerError

    for stream in (sys.stdout, sys.stderr):  # not every terminal can print every character
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        code: Any = app(args=arguments, standalone_mode=False)
        return int(code or 0)
    except (BadCall, WorkerError, OSError) as error:
        # the traceback through the user's task file, if there is one
        print(getattr(error, "trace", ""), end="", file=sys.stderr)
        say(str(error))
        return 2 if isinstance(error, BadCall) else 1
    except KeyboardInterrupt:
        say("interrupted")
        return INTERRUPTED
    except Exception as error:
        # usage errors: depending on the version, their class is click's or typer's
        explain = getattr(error, "format_message", None)
        if explain is None:
            raise
        given = shlex.join(["steepest", *(sys.argv[1:] if arguments is None else arguments)])
        say(f"{explain().rstrip('.')}; given: {given}; see: steepest --help")
        return 2
