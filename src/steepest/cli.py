"""The command line, one function per verb. Heavy modules are imported inside their verb."""

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
"""128 + SIGINT, as shells count it."""


@app.callback()
def _verbs() -> None:
    """Keeps `steepest VERB` a command with verbs, however few there are."""


@app.command(epilog="Example: steepest race digits --optimizers adamw,momentum,eadam --budget 60s")
def race(
    task: Annotated[
        str,
        typer.Argument(
            help="digits, diabetes, text, digits-gan, bag-of-words; fashion-mnist, mnist, "
            "tinyshakespeare with --data; or a Python file with task(seed) or "
            "train(make_optimizer, report, seed).",
            metavar="TASK|FILE.py",
        ),
    ],
    optimizers: Annotated[
        str | None,
        typer.Option(
            help="Entries, separated by commas: a rule or module:Class, with parts such as "
            "+warmup+cosine+clip, or a method on the whole loss (steepest list --parts).",
            show_default="nine",
        ),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(
            help="The entry that the others are compared to; it takes part.",
            metavar="NAME",
            show_default="adamw, or the first",
        ),
    ] = None,
    search: Annotated[
        list[str] | None,
        typer.Option(
            help="Tune a knob over this range, log-uniform: adamw.weight_decay=1e-4:1. Once for "
            "each knob, or separated by commas.",
            metavar="ENTRY.KNOB=LOW:HIGH",
            show_default="the declared ranges",
        ),
    ] = None,
    trials: Annotated[
        int | None,
        typer.Option(help="Tuning trials for each fresh seed of an entry.", show_default="8"),
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(help="Fresh seeds per entry.", show_default="10")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Steps per run.", show_default="the task's")
    ] = None,
    budget: Annotated[
        str | None, typer.Option(help="Wall time, e.g. 60s or 5m, instead of --trials.")
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
            help="Database for the trials, e.g. postgresql+pg8000://user@host/db; the password "
            "comes from PGPASSWORD.",
            metavar="URL",
            show_default="study.db in --out",
        ),
    ] = None,
    study: Annotated[
        str | None,
        typer.Option(
            help="Name of the race in --storage: a new one, or one to join and share the work of.",
            metavar="NAME",
            show_default="one of its own",
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Study seed.", show_default="0")] = None,
    data: Annotated[
        str | None, typer.Option(help="Where the files of a task on your data lie.", metavar="DIR")
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Only say how long it takes and what it could detect.")
    ] = False,
) -> int:
    """Compare optimizers on a task: equal tuning, paired seeds, a verdict with its interval."""
    need_race()
    import os

    from steepest import tasks
    from steepest.errors import BadCall
    from steepest.processes import Pool
    from steepest.race.request import Request
    from steepest.race.trials import runner

    ranges = ",".join(search) if search else None
    request = Request(task, optimizers, trials, seeds, steps, budget, seed, data, baseline, ranges)
    jobs = (os.cpu_count() or 1) if jobs is None else jobs
    if jobs < 1:
        raise BadCall(f"--jobs {jobs}: expected a whole number of 1 or more")
    with tasks.held(task):  # what is checked is what runs
        request.check()
        folder = out or Path(f"race-{tasks.folder_name(task)}")
        with Pool(jobs, runner(task, optimizers)) as pool:
            pool.hire()
            from steepest.race import conduct, terminal  # scipy, optuna, matplotlib: meanwhile

            if plan:
                print(conduct.forecast(request, jobs, pool))
                return 0
            summary, interrupted = conduct.race(
                request, folder, jobs=jobs, pool=pool, resume=resume, storage=storage, study=study
            )
    terminal.show(summary)
    _say_where(folder)
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
            help="URL of the race's database, if it has moved or its password is in the URL.",
            metavar="URL",
        ),
    ] = None,
) -> int:
    """Rebuild report.html and summary.json of a race from its store, a study.db or a database."""
    need_race()
    from steepest.race import conduct, terminal

    terminal.show(conduct.rebuild(folder, storage))
    _say_where(folder)
    return 0


@app.command(epilog="Example: steepest profile race-digits race-diabetes --out profile.html")
def profile(
    folders: Annotated[
        list[Path], typer.Argument(help="Folders of finished races.", metavar="DIR DIR...")
    ],
    out: Annotated[Path | None, typer.Option(help="Write a page with the figure.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> int:
    """Compare optimizers across several races: a performance profile of steps to target."""
    need_race()
    from rich.console import Console

    from steepest.errors import BadCall
    from steepest.race import profile

    found = profile.profile([profile.read(folder) for folder in folders])
    found["reproduce"] = shlex.join(["steepest", "profile", *map(str, folders)])
    if out:
        try:
            out.write_text(profile.page(found), encoding="utf-8")
        except OSError as error:
            raise BadCall(
                f"cannot write '{out}' ({error.strerror}): choose another file with --out"
            ) from None
    if as_json:
        print(json.dumps(found, indent=1))
        return 0
    Console(file=sys.stdout).print(profile.table(found))
    print("\n".join(profile.notes(found)))
    if out:
        print(f"page: {out}")
    return 0


@app.command("list", epilog="Example: steepest list --json")
def list_(
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    parts: Annotated[
        bool, typer.Option("--parts", help="What else may enter a race, and what behind a +.")
    ] = False,
) -> int:
    """List the optimizers: name, class, year, states and their bytes, kind, oracle, paper."""
    if parts:
        from steepest.training.methods import listing, table
    else:
        from steepest.catalogue import listing, table

    found = listing()
    print(json.dumps(found, indent=2) if as_json else "\n".join(table(found)))
    return 0


@app.command(epilog="Example: steepest show adabelief --backend cpu")
def show(
    name: Annotated[
        str, typer.Argument(help="A rule, as `steepest list` names it.", metavar="NAME")
    ],
    backend: Annotated[
        str | None,
        typer.Option(help="Such as cpu, foreach or eager: what it runs, generated or as written."),
    ] = None,
) -> int:
    """Print the source of an optimizer, or the loop that is generated from it."""
    from steepest.catalogue import shown
    from steepest.definition import find

    print(shown(find(name), backend), end="")
    return 0


@app.command(epilog="Example: steepest bench --set 300x64 --seconds 5")
def bench(
    only: Annotated[
        str | None, typer.Option("--set", help="resnet50, 300x3456 or 300x64; all by default.")
    ] = None,
    seconds: Annotated[float, typer.Option(help="About how long each set takes.")] = 20.0,
    threads: Annotated[
        int | None, typer.Option(help="torch's threads.", show_default="as is")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
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
    found = bench.run([only] if only else list(bench.SETS), seconds, threads)
    print(json.dumps(found, indent=2) if as_json else bench.table(found))
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
        bool, typer.Option("--all", help="All optimizers of this package instead of one.")
    ] = False,
    only: Annotated[
        list[str] | None, typer.Option(help="An examination or the beginning of its name.")
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option(help="Of the constructor, e.g. lr=0.1.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> int:
    """Examine any torch optimizer: a line per examination, a reproduction for each that fails."""
    import os

    from steepest.check import report
    from steepest.check.subject import read_option
    from steepest.errors import BadCall

    if (name is None) != every:
        given = "NAME and --all were both" if every else "no NAME was"
        raise BadCall(f"{given} given, expected NAME, module:Class or --all; see steepest list")
    sys.path.insert(0, os.getcwd())  # the caller's own modules
    options = dict(read_option(text) for text in option or [])
    targets = report.everyone() if name is None else [name]
    found = dict(report.examined(targets, only, options))
    if as_json:
        shown = [report.as_json(target, findings) for target, findings in found.items()]
        print(json.dumps(shown if every else shown[0], indent=2))
    else:
        for target, findings in found.items():
            print("\n".join(report.lines(target, findings, failing_only=every)))
    return int(any(f.outcome == "fail" for findings in found.values() for f in findings))


def need_race() -> None:
    """BadCall with the pip command if a module of the extra `race` is missing."""
    from steepest.errors import BadCall

    missing = [name for name in RACE_MODULES if find_spec(name) is None]
    if missing:
        raise BadCall(f"{', '.join(missing)} is missing: run pip install 'steepest[race]'")


def say(line: str) -> None:
    """One line on stderr, without the password of a URL in it."""
    print("steepest:", PASSWORD.sub(r"\1\2***", " ".join(line.split())), file=sys.stderr)


def _say_where(folder: Path) -> None:
    for what, name in {
        "report": "report.html",
        "summary": "summary.json",
        "runs": "runs.csv",
    }.items():
        print(f"{what + ':':<9}{folder / name}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb; its exit code: 0 done, 1 the thing checked failed, 2 the call was wrong."""
    from steepest.errors import BadCall, WorkerError

    for stream in (sys.stdout, sys.stderr):  # not every terminal can show every sign
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        code: Any = app(args=arguments, standalone_mode=False)
        return int(code or 0)
    except (BadCall, WorkerError, OSError) as error:
        print(getattr(error, "trace", ""), end="", file=sys.stderr)  # of a task file's own lines
        say(str(error))
        return 2 if isinstance(error, BadCall) else 1
    except KeyboardInterrupt:
        say("interrupted")
        return INTERRUPTED
    except Exception as error:
        # typer's usage errors: their class is click's or typer's own, by version
        explain = getattr(error, "format_message", None)
        if explain is None:
            raise
        given = shlex.join(["steepest", *(sys.argv[1:] if arguments is None else arguments)])
        say(f"{explain().rstrip('.')}; given: {given}; see: steepest --help")
        return 2
