"""The verbs for races that have ended: report, export, profile."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from steepest.cli.app import app
from steepest.cli.race import need_race, show_summary


@app.command(epilog="Example: steepest report my-race")
def report(
    folder: Annotated[Path, typer.Argument(help="Folder of a race.", metavar="DIR")],
    storage: Annotated[
        str | None,
        typer.Option(
            help="URL of the race's database, if the database has moved or the URL has a password.",
            metavar="URL",
        ),
    ] = None,
) -> int:
    """Rebuild report.html and summary.json of a race from its trials in study.db or a database."""
    need_race()
    from steepest.race import driver

    show_summary(driver.rebuild(folder, storage), folder)
    return 0


@app.command(epilog="Example: steepest export my-race --to latex --out table.tex")
def export(
    folder: Annotated[Path, typer.Argument(help="Folder of a race.", metavar="DIR")],
    to: Annotated[
        str, typer.Option(help="The format: tensorboard, wandb or latex.", metavar="FORMAT")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="File or folder to write.",
            show_default="tensorboard, wandb.jsonl or table.tex in DIR",
        ),
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(help="URL of the race's database: see steepest report.", metavar="URL"),
    ] = None,
) -> int:
    """Write a race as TensorBoard's event files, runs for Weights & Biases, or a LaTeX table."""
    need_race()
    from steepest.race import driver, exports

    exports.check(to)
    print(exports.export(driver.load(folder, storage), to, folder, out))
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

    from steepest import profiles
    from steepest.errors import BadCall

    result = profiles.profile([profiles.read(folder) for folder in folders])
    result["reproduce"] = shlex.join(["steepest", "profile", *map(str, folders)])
    if out:
        try:
            out.write_text(profiles.page(result), encoding="utf-8")
        except OSError as error:
            raise BadCall(
                f"cannot write '{out}' ({error.strerror}): choose another file with --out"
            ) from None
    if as_json:
        print(json.dumps(result, indent=1))
        return 0
    Console(file=sys.stdout).print(profiles.table(result))
    print("\n".join(profiles.notes(result)))
    if out:
        print(f"page: {out}")
    return 0
