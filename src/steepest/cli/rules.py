"""The verbs for optimizers: list, show, bench, check."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from steepest.cli.app import app


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
        str | None,
        typer.Option("--set", help="Set of tensors: resnet50, 300x3456 or 300x64; all by default."),
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
        raise BadCall(f"{given}: give either NAME (or module:Class) or --all; see steepest list")
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
